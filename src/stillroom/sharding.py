"""Networks cut into shards, one a process, and put together again: torch's FSDP2 (`fully_shard`).

Weights of two and more axes are cut by their first axis; vectors and scalars, a hundredth of most networks, stay
whole on every process, and the Engine reduces their gradients itself. Blocks that a network repeats, and plain
layers beside them, are gathered one at a time, when their forward pass or their backward pass begins, and freed when
it ends. So a weight can be used inside the forward pass of the module that holds it, and nowhere else: `explained`
turns torch's complaint about anything else into one line.

A process steps its own shards as plain tensors: an optimizer goes number by number, and does not see the cut. Every
process builds each network whole, off the device, before it is cut, and holds it whole again when the fit is over.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from stillroom.errors import UserError, reason

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from stillroom.engine import Engine
    from stillroom.runtime import Runtime
    from stillroom.teacher import Teacher

FSDP = "torch.distributed.fsdp"
PLAIN = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Layers whose weights are used in their own forward pass, and nowhere else."""
MISUSE = ("DTensor", "FSDP", "storage of size 0", "tensor subclass")
"""What torch's messages say where a weight is used while it is in pieces."""
SECOND_ORDER = (
    "a gradient of a gradient (autograd.grad with create_graph) goes through a sharded network, whose weights are "
    "freed in between: drop --engine.shard, or pass --engine.shard players where the network is the teacher"
)

# -- shards and whole tensors -----------------------------------------------------------------------------------


def is_cut(tensor: Tensor) -> bool:
    """Whether this process holds a shard of `tensor` only."""
    return hasattr(tensor, "device_mesh")


def local(tensor: Tensor) -> Tensor:
    """This process's shard of a tensor that is cut, sharing its memory; any other tensor itself."""
    return tensor.detach().to_local() if is_cut(tensor) else tensor  # type: ignore[attr-defined]


def cut_as(parameter: Any, shard: Tensor) -> Tensor:
    """`shard`, this process's part of something shaped as `parameter`, as the tensor that is cut in the same way."""
    if not is_cut(parameter):
        return shard
    from torch.distributed.tensor import DTensor

    layout = {"shape": parameter.shape, "stride": parameter.stride()}
    return DTensor.from_local(shard, parameter.device_mesh, parameter.placements, run_check=False, **layout)


def own_part(parameter: Any, whole: Tensor) -> Tensor:
    """The rows of `whole`, shaped as `parameter`, that fall to this process; all where `parameter` is not cut."""
    if not is_cut(parameter):
        return whole
    mesh = parameter.device_mesh
    size = -(-len(whole) // mesh.size())
    return whole[mesh.get_local_rank() * size :][:size]


def gathered(tensors: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """The tensors, those that are cut whole and off the device; all processes must ask. None without `keep`."""
    found = {}
    for name, tensor in tensors.items():
        whole = tensor.full_tensor() if is_cut(tensor) else tensor  # type: ignore[attr-defined]
        if keep:
            found[name] = whole.cpu() if is_cut(tensor) else whole
    return found


# -- cutting ----------------------------------------------------------------------------------------------------


def cut_networks(
    method: str, players: Mapping[str, nn.Module], teacher: Teacher | None, engine: Engine, runtime: Runtime
) -> dict[str, nn.Module]:
    """Cut the players, or the teacher's network as well, as the Engine's option `shard` says; returns what is cut.

    A process that is alone cuts nothing. Raises UserError where what is cut shares weights with something else.
    """
    if engine.shard == "no" or runtime.size == 1:
        return {}
    others = {} if teacher is None else {"the teacher": teacher.module}
    cut = {**players, **(others if engine.shard == "all" else {})}
    _refuse_shared({**players, **others}, cut, method)
    low = torch.bfloat16 if engine.precision == "bfloat16" else None
    for network in cut.values():
        shard(network, runtime.mesh(), low, engine.compile)
    return cut


def shard(
    network: nn.Module, mesh: DeviceMesh, low: torch.dtype | None = None, compiled: bool = False
) -> None:
    """Cut `network` over `mesh`, in place; with `low`, weights are gathered in that type and summed in float32.

    Every process must hold the same whole network, which may be off the device: only shards are moved there.
    `compiled` compiles the forward pass of each repeated block, between gathering and freeing its weights.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    if "ignored_params" not in inspect.signature(fully_shard).parameters:
        raise UserError(f"--engine.shard needs torch 2.7 or newer, this is {torch.__version__}: drop it")
    policy = MixedPrecisionPolicy(low, torch.float32 if low else None, cast_forward_inputs=False)
    units = _units(network)
    kept = _kept_whole(network, units)
    entries = _entries(network)
    for unit in units:
        unit.register_forward_hook(_watch_second_order)
        if compiled and type(unit) not in PLAIN and all(unit is not entry for entry in entries):
            unit.__dict__["_eager"] = unit.__dict__.get("forward")
            unit.forward = torch.compile(unit.forward)  # and not its hooks
        fully_shard(unit, mesh=mesh, reshard_after_forward=True, mp_policy=policy, ignored_params=kept)
    for entry in entries:  # by itself the first unit that is asked would become the root of all below it
        entry._get_fsdp_state()._lazy_init()  # type: ignore[operator, union-attr]


def _is_list(module: nn.Module) -> bool:
    """Whether it only holds modules, and has no forward pass."""
    return type(module).forward is nn.Module.forward


def _holds_matrix(module: nn.Module) -> bool:
    return any(p.ndim > 1 for p in module.parameters())


def _entries(network: nn.Module) -> list[nn.Module]:
    """The modules whose forward passes are called from outside.

    A list has none of its own; a wrapper around one network may be asked by other names than `forward`.
    """
    holders = [child for child in network.children() if _holds_matrix(child)]
    if _is_list(network):
        return [entry for child in holders for entry in _entries(child)]
    bare = not any(p.ndim > 1 for p in network.parameters(recurse=False))
    if bare and len(holders) == 1 and not _is_list(holders[0]):
        return _entries(holders[0])
    return [network] if _holds_matrix(network) else []


def _units(network: nn.Module) -> list[nn.Module]:
    """What is gathered at a time, inner units before those around them: repeated blocks, plain layers, entries.

    A plain layer beside the blocks is a unit because it can then be asked by itself, and its output be read where
    the network's own is not; one that shares a weight is left to the entry, which holds both.
    """
    entries = _entries(network)
    order = list({id(part): part for entry in entries for part in entry.modules()}.values())
    found: list[nn.Module] = []
    for part in order:
        if isinstance(part, (nn.ModuleList, nn.Sequential)):
            there = [child for child in part if _holds_matrix(child) and not _is_list(child)]
            kinds = Counter(map(type, there))
            found += [child for child in there if kinds[type(child)] > 1]
    blocks = [block for block in found if next(block.children(), None) is not None]
    inside = {id(part) for block in blocks for part in block.modules()}
    users = Counter(p for part in order for p in part.parameters(recurse=False))
    layers = [
        part
        for part in order
        if type(part) in PLAIN and id(part) not in inside and all(users[p] == 1 for p in part.parameters())
    ]
    chosen = {id(unit) for unit in [*blocks, *layers, *entries]}
    return [part for part in reversed(order) if id(part) in chosen]


def _kept_whole(network: nn.Module, units: list[nn.Module]) -> set[nn.Parameter]:
    """Vectors and scalars, and what several units share."""
    cut = {id(unit) for unit in units}
    owners: dict[nn.Parameter, set[int]] = {p: set() for p in network.parameters()}

    def walk(module: nn.Module, owner: int) -> None:
        owner = id(module) if id(module) in cut else owner
        for parameter in module.parameters(recurse=False):
            owners[parameter].add(owner)
        for child in module.children():
            walk(child, owner)

    walk(network, 0)
    return {p for p, own in owners.items() if p.ndim < 2 or len(own) > 1 or 0 in own}


def _watch_second_order(module: nn.Module, inputs: object, output: object) -> None:
    """Have a backward pass that builds a graph refused: the next one would find the weights freed."""
    for tensor in tree_leaves(output):
        if isinstance(tensor, Tensor) and tensor.requires_grad:
            tensor.register_hook(_refuse_second_order)


def _refuse_second_order(gradient: Tensor) -> None:
    if torch.is_grad_enabled():
        raise UserError(SECOND_ORDER)


def graph_leaves(network: nn.Module) -> list[nn.Parameter]:
    """The trainable parameters as a forward pass uses them: what gradients are taken with respect to.

    FSDP keeps these objects and fills them each time that a unit is gathered.
    """
    leaves = {p: None for p in network.parameters() if p.requires_grad and not is_cut(p)}
    for unit in _cut_units(network):
        unit.unshard()
        leaves |= {p: None for p in unit.parameters() if p.requires_grad and not is_cut(p)}
        unit.reshard()
    return list(leaves)


def _cut_units(network: nn.Module) -> list[Any]:
    if not any(map(is_cut, network.parameters())):
        return []
    from torch.distributed.fsdp import FSDPModule

    return [module for module in network.modules() if isinstance(module, FSDPModule)]


def _refuse_shared(networks: Mapping[str, nn.Module], cut: Iterable[str], method: str) -> None:
    """Raise UserError where a network that is to be cut shares a weight with another one."""
    owner: dict[nn.Parameter, str] = {}
    wanted = set(cut)
    for name, network in networks.items():
        for key, parameter in network.named_parameters():
            other = owner.setdefault(parameter, name)
            if other != name and wanted & {other, name}:
                raise UserError(
                    f"method '{method}' has the weight '{key}' in both {other} and {name}, which cannot be sharded "
                    "apart: drop --engine.shard"
                )


# -- putting together -------------------------------------------------------------------------------------------


def assemble(network: nn.Module, device: torch.device) -> None:
    """Make `network` whole on every process, on `device`, as if it had never been cut; all processes must ask."""
    units = _cut_units(network)
    made: dict[nn.Parameter, nn.Parameter] = {}
    for module in network.modules() if units else ():
        for name, parameter in list(module._parameters.items()):
            if parameter is None or not is_cut(parameter):
                continue
            if parameter not in made:
                whole = parameter.full_tensor().detach().to(device)  # type: ignore[attr-defined]
                made[parameter] = nn.Parameter(whole, parameter.requires_grad)
            setattr(module, name, made[parameter])
    for unit in units:
        unit.__class__ = type(unit).__mro__[2]  # of FSDPLinear, FSDPModule, Linear, ...
    for module in network.modules() if units else ():
        _forget(module)


def _forget(module: nn.Module) -> None:
    """Take from a module what `fully_shard` hung on it, so that it can be copied, saved and cut again."""
    from torch.distributed._composable.contract import REGISTRY_KEY, STATE_KEY
    from torch.distributed._composable_state import _module_state_mapping

    for name, hooks in module.__dict__.items():
        if name.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called")) and hooks:
            for key, hook in list(hooks.items()):
                inner = getattr(hook, "hook", hook)
                if inner is _watch_second_order or str(getattr(inner, "__module__", "")).startswith(FSDP):
                    del hooks[key]
    for name in (REGISTRY_KEY, STATE_KEY, "_is_fsdp_managed_module", "_fsdp_use_orig_params"):
        module.__dict__.pop(name, None)
    if "_eager" in module.__dict__:
        eager = module.__dict__.pop("_eager"), module.__dict__.pop("forward")
        module.__dict__.update({"forward": eager[0]} if eager[0] else {})
    _module_state_mapping.pop(module, None)


@contextmanager
def explained(method: str, sharded: bool) -> Iterator[None]:
    """Inside, torch's complaint about a weight that is used while it is in pieces becomes a UserError."""
    try:
        yield
    except (RuntimeError, AssertionError) as error:
        if sharded and any(word in str(error) for word in MISUSE):
            raise UserError(
                f"method '{method}' uses weights of a sharded network outside its forward and backward pass "
                f"({reason(error)[:120]}): drop --engine.shard"
            ) from error
        raise

"""A student that is derived from its teacher: fewer blocks, narrower layers, the teacher's weights where they fit."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from stillroom.errors import UserError
from stillroom.models import smaller
from stillroom.models.cutting import blocks_to_keep, cut
from stillroom.models.libraries import timm_made, timm_options, torchvision_made
from stillroom.models.names import OURS, build
from stillroom.models.probing import quietly
from stillroom.models.transplanting import transplant
from stillroom.models.wrapping import core_of, describe, is_transformers, rewrapped, told
from stillroom.seeds import seeded

EXAMPLE = "shrink:depth=0.5,width=0.5"


@dataclass(frozen=True)
class Shrink:
    """What is left of the teacher."""

    depth: float = 1.0
    """Share of each stage's blocks, in (0, 1]."""
    width: float = 1.0
    """Share of heads, channels and hidden sizes, in (0, 1]."""

    @property
    def name(self) -> str:
        """As it is written on the command line."""
        return f"shrink:depth={self.depth:g},width={self.width:g}"


def is_shrink(name: str) -> bool:
    """Whether a student's name says that it is derived from the teacher."""
    return name == "shrink" or name.startswith("shrink:")


def parse_shrink(name: str) -> Shrink:
    """What `shrink:depth=D,width=W` says, either part left out being 1; UserError for anything else."""
    shares: dict[str, float] = {}
    for part in name.partition(":")[2].split(","):
        key, _, value = part.partition("=")
        try:
            share = float(value)
        except ValueError:
            share = math.nan
        if key not in ("depth", "width") or key in shares or not 0 < share <= 1:
            raise UserError(
                f"student '{name}' says {part or 'nothing'!r}: write it like {EXAMPLE}, each in (0, 1]"
            )
        shares[key] = share
    return Shrink(**shares)


def shrink(
    network: nn.Module,
    depth: float = 1.0,
    width: float = 1.0,
    *,
    seed: int = 0,
    example: Tensor | None = None,
) -> nn.Module:
    """A smaller copy of `network`, trainable, with its weights where they fit.

    - depth: of n repeated blocks in a row the nearest number to depth x n is left, one at least, the first and the
      last among them and the rest evenly spread (`cutting.evenly`), with their own weights. A block that changes the
      shape of what it is given begins a row and stays.
    - width: heads (which keep their width), channels and hidden sizes, by the options that the library's network has.
      Of a tensor that is smaller then, the leading part in every dimension is copied.

    Both 1 give a copy. Networks of transformers, of timm and our own are made anew from their smaller config or name;
    of any other module a copy loses blocks, and width has to be 1. Wrappers stay around what is inside; their linear
    layers that read a network of transformers, by its hidden size, read less of it. `example`
    [1, ...] is an input, needed for networks of timm by name and our own, and to tell blocks that change shapes. Fresh
    weights, where the teacher has none that fit, depend on `seed`. Raises UserError where nothing can be made smaller.
    """
    core = core_of(network)
    if depth == width == 1:
        return copy.deepcopy(network).requires_grad_(True).train()
    with seeded(seed):
        inner = _smaller(network, core, Shrink(depth, width), example, seed)
    if _size(inner) == _size(core):
        raise UserError(
            f"{Shrink(depth, width).name} leaves {type(core).__name__} as it is, which has too few repeated blocks, or "
            "sizes too small: pass a smaller share, or --task.student by name"
        )
    made = rewrapped(network, inner)
    if is_transformers(core):
        _narrow_readers(made, inner, getattr(core.config, "hidden_size", 0) if width != 1 else 0)
    return made.requires_grad_(True).train()


def _narrow_readers(whole: nn.Module, core: Any, before: int) -> None:
    """Of the linear layers around `core` that take its old hidden size the inputs that are left of it."""
    now = getattr(core.config, "hidden_size", before)
    own = {id(part) for part in core.modules()}
    for part in whole.modules():
        if id(part) not in own and isinstance(part, nn.Linear) and part.in_features == before != now:
            part.weight = nn.Parameter(part.weight.detach()[:, :now].clone())
            part.in_features = now


def _size(network: nn.Module) -> int:
    return sum(value.numel() for value in network.parameters())


def _smaller(
    network: nn.Module, core: nn.Module, wanted: Shrink, example: Tensor | None, seed: int
) -> nn.Module:
    if is_transformers(core):
        return _of_transformers(core, wanted)
    said = describe(core)
    if isinstance(said, str) and said.partition(":")[0] in OURS:
        return _of_ours(core, said, wanted, _needed(example), seed)
    made, depth_done = core, False
    library, name, options = _of_library(core, said, example)
    if library == "timm":
        found = _by_options(
            core, wanted, timm_made, name, options, smaller.timm_changes(core, wanted.depth, wanted.width)
        )
        made, depth_done = (core, False) if found is None else (found, True)
    elif library == "torchvision" and wanted.width != 1:
        changes = smaller.torchvision_changes(options, wanted.width)
        made = _by_options(core, Shrink(1.0, wanted.width), torchvision_made, name, options, changes) or core
    if made is core and wanted.width != 1:
        raise UserError(
            f"the width of {type(core).__name__} cannot be derived: pass shrink:depth=... alone, or --task.student by "
            "name"
        )
    if depth_done or wanted.depth == 1:
        return made
    return _without_blocks(network, core, made, wanted.depth, example)


def _without_blocks(
    network: nn.Module, core: nn.Module, made: nn.Module, depth: float, example: Tensor | None
) -> nn.Module:
    """A copy of `made`, which is `core` or a narrower one, with fewer blocks."""
    whole = network if made is core else rewrapped(network, made)
    inside = core_of(whole)
    prefix = next(path for path, part in whole.named_modules() if part is inside)
    found = blocks_to_keep(whole, depth, example)
    kept = {path[len(prefix) :].lstrip("."): ids for path, ids in found.items() if path.startswith(prefix)}
    said = describe(made)
    left = cut(copy.deepcopy(made), kept)
    left.__dict__.pop("_description", None)
    if said is None:
        return left
    return told(left, {"library": "stillroom", "kind": "cut", "kept": kept, "network": said})


def _of_transformers(core: Any, wanted: Shrink) -> nn.Module:
    from stillroom.hub import quiet

    config = smaller.smaller_config(core.config, wanted.depth, wanted.width)
    try:
        with quiet():
            made = type(core)(config)
    except Exception as error:
        raise UserError(
            f"{wanted.name} makes no {type(core).__name__} ({str(error).splitlines()[0]}): pass another share"
        ) from error
    transplant(core, made)
    if getattr(core, "generation_config", None) is not None:
        made.generation_config = copy.deepcopy(core.generation_config)
    return made.to(next(core.parameters()).dtype)


def _of_ours(core: nn.Module, name: str, wanted: Shrink, example: Tensor, seed: int) -> nn.Module:
    made = build(
        smaller.smaller_name(name, wanted.depth, wanted.width),
        shape=tuple(example.shape[1:]),
        classes=_outputs(core, example),
        seed=seed,
    )
    transplant(core, made)
    return made


def _of_library(core: nn.Module, said: Any, example: Tensor | None) -> tuple[str, str, dict[str, Any]]:
    """Library, name and options of a network of timm or torchvision; empty ones for others."""
    if isinstance(said, dict) and said.get("library") in ("timm", "torchvision"):
        return said["library"], said["name"], dict(said["options"])
    library, _, name = said.partition(":") if isinstance(said, str) else ("", "", "")
    if library == "timm":
        x = _needed(example)
        return library, name, timm_options(name, tuple(x.shape[1:]), _outputs(core, x))
    if library == "torchvision":
        return library, name, {"num_classes": _outputs(core, _needed(example))}
    return "", "", {}


def _by_options(
    core: nn.Module,
    wanted: Shrink,
    make: Callable[[str, dict[str, Any]], nn.Module],
    name: str,
    options: dict[str, Any],
    tries: Any,
) -> nn.Module | None:
    """The first smaller network that `tries` make, with the weights of `core`; None where none is as wanted."""
    library = "timm" if make is timm_made else "torchvision"
    for changes in tries:
        described = {**options, **changes}
        try:
            made = make(name, described)
        except UserError:
            continue
        odd = transplant(core, made)
        if _size(made) > _size(core) or (wanted.width == 1 and odd):
            continue
        return told(made, {"library": library, "name": name, "options": described})
    return None


def _needed(example: Tensor | None) -> Tensor:
    if example is None:
        raise UserError(
            "a network that is known by its name is shrunk for its inputs: pass shrink(..., example=x)"
        )
    return example


def _outputs(network: nn.Module, example: Tensor) -> int:
    held = next(network.parameters())
    with quietly(network):
        return int(network(example.to(held.device, held.dtype)).shape[-1])

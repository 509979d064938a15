"""Networks in shards: cut by one process here, and by two in `processes.py`, whose weights are one process's."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from processes import Block, Crash, Plainer, Tower, case, in_two_processes
from stillroom import catalogue
from stillroom.checkpoint import listing, load_tensors
from stillroom.engine import Engine
from stillroom.errors import UserError
from stillroom.sharding import _units, assemble, cut_as, graph_leaves, is_cut, local, own_part, shard
from test_every_method import problem, state
from toys import Fit, Toy, apart, same, weights_of

CASES = [
    "fit:37:1:sgd:float32",
    "fit:33:3:adamw:float32",
    "centred:37:3:sgd:float32",
    "matching:150:3:adamw:float32",
    "fit:37:1:sgd:bfloat16",
]
"""37 samples leave a last batch of 5 (3 and 2, micro-batches of one and none), 33 one of 1: none for one process."""

RESUMED = ["in-fit:37:3:sgd:float32", "out-fit:37:3:sgd:float32", "left-fit:37:3:sgd:float32"]
METHODS = ["kd", "f-distill"]


@pytest.fixture(scope="module")
def alone() -> dict[str, dict[str, Tensor]]:
    """Each case in one process."""
    found = {}
    for name in {*CASES, *(name.partition("-")[2] for name in RESUMED)}:
        method, task, engine = case(name)
        found[name] = weights_of(engine.fit(method, task, 0).product)
    return found


# -- one process ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mesh() -> Iterator[Any]:
    """A group of this process alone, in which nothing is lost by being cut."""
    from torch.distributed import HashStore, destroy_process_group, init_process_group
    from torch.distributed.device_mesh import init_device_mesh

    init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    destroy_process_group()


class Wrapped(nn.Module):
    """Asks its network by another name than `forward`."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.scale = network, nn.Parameter(torch.ones(()))

    def estimate(self, x: Tensor) -> Tensor:
        return self.network(x) * self.scale


class Tied(nn.Module):
    """A table that is read and, turned, put out."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.blocks = nn.Embedding(9, 6), nn.ModuleList([Block(6), Block(6)])
        self.head = nn.Linear(6, 9, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def names_of(network: nn.Module) -> list[str]:
    names = {module: name for name, module in network.named_modules()}
    return [names[unit] for unit in _units(network)]


def test_units_are_repeated_blocks_layers_beside_them_and_the_network() -> None:
    assert names_of(Tower()) == ["head", "blocks.2", "blocks.1", "blocks.0", "stem", ""]
    assert names_of(Wrapped(Tower())) == [f"network{'.' * bool(n)}{n}" for n in names_of(Tower())]
    assert names_of(nn.ModuleDict({"a": Block(4), "b": nn.Linear(2, 2)})) == ["b", "a.down", "a.up", "a"]
    assert names_of(nn.LayerNorm(3)) == []


def test_a_weight_of_two_layers_is_left_to_the_network_that_holds_both(mesh: Any) -> None:
    assert names_of(Tied()) == ["blocks.1", "blocks.0", ""]
    network, ids = Tied(), torch.arange(5)
    expected, before = network(ids), weights_of(network)
    shard(network, mesh)
    assert torch.equal(network(ids), expected)
    assemble(network, torch.device("cpu"))
    assert network.head.weight is network.table.weight
    assert same(weights_of(network), before)


def test_matrices_are_cut_and_vectors_are_not(mesh: Any) -> None:
    network = Tower()
    shard(network, mesh)
    assert all(is_cut(p) == (p.ndim > 1) for p in network.parameters())


def test_what_was_cut_is_put_together_as_if_nothing_had_been(mesh: Any) -> None:
    network, x = Plainer(), torch.randn(5, 4)
    before = weights_of(network)
    plain = [{k: len(v) for k, v in m.__dict__.items() if k.endswith("_hooks")} for m in network.modules()]
    kinds, names = [type(m) for m in network.modules()], [sorted(m.__dict__) for m in network.modules()]
    for _ in range(2):  # a network of several stages is cut more than once
        shard(network, mesh)
        network(x).sum().backward()
        assemble(network, torch.device("cpu"))
        assert [type(m) for m in network.modules()] == kinds
        assert [sorted(m.__dict__) for m in network.modules()] == names
        hooks = [
            {k: len(v) for k, v in m.__dict__.items() if k.endswith("_hooks")} for m in network.modules()
        ]
        assert hooks == plain
        assert same(weights_of(network), before)
        assert torch.equal(copy.deepcopy(network)(x), network(x))


def test_hooks_of_others_stay(mesh: Any) -> None:
    network, seen = Tower(), []
    network.blocks[1].register_forward_hook(lambda module, args, output: seen.append(output))
    shard(network, mesh)
    assemble(network, torch.device("cpu"))
    network(torch.randn(2, 4))
    assert len(seen) == 1


def test_gradients_are_those_of_the_leaves_alone(mesh: Any) -> None:
    own, other = Wrapped(Tower()), nn.Linear(3, 3)
    twin, x = copy.deepcopy(own), torch.randn(6, 4)
    shard(own, mesh)
    leaves = graph_leaves(own)
    assert len(leaves) == len(list(own.parameters()))
    torch.autograd.backward(other(own.estimate(x)).square().sum(), inputs=leaves)
    torch.autograd.backward(other(twin.estimate(x)).square().sum(), inputs=list(twin.parameters()))
    assert all(p.grad is None for p in other.parameters())
    for p, q in zip(own.parameters(), twin.parameters(), strict=True):
        assert p.grad is not None
        assert torch.equal(local(p.grad), q.grad)


def test_compiled_blocks_are_given_back_their_own_forward_pass(mesh: Any, monkeypatch: Any) -> None:
    asked: list[object] = []
    monkeypatch.setattr(torch, "compile", lambda call: asked.append(call) or call)
    network = Tower()
    shard(network, mesh, compiled=True)
    assert len(asked) == 3
    assert all("forward" in block.__dict__ for block in network.blocks)
    assemble(network, torch.device("cpu"))
    assert not any("forward" in block.__dict__ for block in network.blocks)


def test_parts_and_wholes(mesh: Any) -> None:
    layer, whole = nn.Linear(3, 5), torch.randn(5, 3)
    shard(layer, mesh)
    assert torch.equal(own_part(layer.weight, whole), whole)
    assert torch.equal(cut_as(layer.weight, whole).full_tensor(), whole)
    assert own_part(layer.bias, whole) is whole
    assert cut_as(layer.bias, whole) is whole
    local(layer.weight).zero_()
    assert not layer.weight.full_tensor().any()


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("rows", [1, 3, 4, 9])
def test_parts_are_cut_as_torch_cuts_them(rows: int, size: int) -> None:
    class Cut:
        def __init__(self, rank: int) -> None:
            self.device_mesh = self
            self.rank = rank

        def size(self) -> int:
            return size

        def get_local_rank(self) -> int:
            return self.rank

    whole = torch.arange(rows)
    parts = [own_part(Cut(rank), whole) for rank in range(size)]
    expected = [*whole.chunk(size), *[whole[:0]] * size][:size]
    assert all(torch.equal(a, b) for a, b in zip(parts, expected, strict=True))


def test_alone_a_process_cuts_nothing() -> None:
    whole = weights_of(Engine(epochs=1).fit(Fit(), Toy(), 0).product)
    assert same(weights_of(Engine(epochs=1, shard="all").fit(Fit(), Toy(), 0).product), whole)


def test_networks_that_share_a_weight_are_not_cut_apart() -> None:
    from stillroom.sharding import _refuse_shared

    base = nn.Linear(2, 2)
    both = {"student": nn.Sequential(base, nn.Linear(2, 1)), "the teacher": base, "critic": nn.Linear(2, 1)}
    with pytest.raises(UserError, match="method 'm' has the weight 'weight' in both student and the teacher"):
        _refuse_shared(both, ["student"], "m")
    _refuse_shared(both, ["critic"], "m")


# -- two processes ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> tuple[Path, dict[str, Any]]:
    """All that two processes do here, in one launch."""
    folder = tmp_path_factory.mktemp("shards")
    method, task, engine = case(RESUMED[0].partition("-")[2])
    with pytest.raises(ConnectionAbortedError):
        engine.fit(method, task, 0, folder / RESUMED[0] / "run", Crash(7))
    for name in METHODS:
        problem(name)  # teaches, so that the two processes find their teachers kept
    jobs = {
        "sharded": CASES,
        "sharded_methods": METHODS,
        "resumed": RESUMED,
        "held": ["held"],
        "refused": ["second order", "penalty", "copy"],
    }
    words = [word for job, names in jobs.items() for word in (f"+{job}", *names)]
    return folder, in_two_processes("several", words, folder, shared_cache)


@pytest.mark.parametrize("name", CASES)
def test_two_processes_in_shards_end_with_the_weights_of_one(name: str, together: Any, alone: Any) -> None:
    """To 1e-6; Adam divides rounding by small gradients, and bfloat16 rounds each gradient before it is summed."""
    bound = 0.02 if name.endswith("bfloat16") else 1e-5 if "adamw" in name else 1e-6
    assert apart(alone[name], together[1][name]) < bound


@pytest.mark.parametrize("name", METHODS)
def test_methods_of_the_catalogue_in_shards_do_what_they_do_alone(name: str, together: Any) -> None:
    """f-distill has three players and reads its teacher, in shards too, from the middle."""
    assert apart(state(catalogue.find(name)), together[1][name]) < 1e-5


@pytest.mark.parametrize("name", RESUMED[:2])
def test_a_checkpoint_is_whole_whoever_wrote_it(name: str, together: Any, alone: Any) -> None:
    """One process, then two in shards; two in shards, then two that hold everything."""
    assert apart(alone[name.partition("-")[2]], together[1][name]) < 1e-6


def test_one_process_goes_on_where_two_in_shards_were_stopped(together: Any, alone: Any) -> None:
    name = RESUMED[2]
    method, task, engine = case(name.partition("-")[2])
    run = together[0] / name / "run"
    newest = listing(run / "checkpoints")[-1]
    assert newest.name == "step-00000006"
    moments = load_tensors(newest / "student.optimizer.safetensors")
    assert moments["head.weight|momentum_buffer"].shape == (3, 15)
    assert apart(alone[name.partition("-")[2]], weights_of(engine.fit(method, task, 0, run).product)) < 1e-6


def test_a_process_holds_half_of_what_is_cut(together: Any) -> None:
    """Weights, moments, averages and teacher; the vectors, all of which stay, are 1 in 50 of this network."""
    whole, cut = together[1]["held"]["counts"].double()
    network = Tower(width=64)
    vectors = sum(p.numel() for p in network.parameters() if p.ndim < 2)
    matrices = sum(p.numel() for p in network.parameters() if p.ndim > 1)
    assert whole.tolist() == [vectors + matrices, 2 * (vectors + matrices), *[vectors + matrices] * 2]
    half = vectors + matrices / 2 + 32  # a row of the three of the head
    assert cut.tolist() == [half, 2 * half, half, half]


def test_what_cannot_be_done_in_shards_is_refused_in_one_line(together: Any) -> None:
    said = json.loads((together[0] / "said.json").read_text())
    assert "gradient of a gradient" in said["second order"]
    for name in ("penalty", "copy"):
        assert said[name].startswith("method 'peeking' uses weights of a sharded network outside its forward")
    assert all(line.count("\n") == 0 and "--engine.shard" in line for line in said.values())

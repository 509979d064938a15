"""Branches on one stem: what is shared, what is narrower, whose weights, and that the answer is the network's."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stillroom.errors import UserError
from stillroom.metrics import multiply_adds
from stillroom.models import build
from stillroom.models.wrapping import Rescaled
from stillroom.predictors.parts.branches import Branched, Cosine, branch, last_shared, rebuilt, stem_of

SMALL = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LARGE = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
SEEDS = (1, 2, 3)


def network(name: str) -> tuple[nn.Module, Tensor]:
    x = LARGE if name.startswith(("timm", "torchvision")) else SMALL
    return build(name, shape=x.shape[1:], classes=4, seed=0), x


def by_hand(made: Branched, index: int, x: Tensor) -> Tensor:
    """The logits of one branch, as a whole network of its own with the stem's modules put back."""
    whole = copy.deepcopy(made.branches[index])
    first = made.branches[0]
    for path in made.cut.stem:
        whole.set_submodule(path, copy.deepcopy(first.get_submodule(path)))
    return whole(x)


NAMES = [
    "cnn:8-16-16",
    "resnet:8-16-16@2",
    "mlp:16-16-8",
    "timm:test_resnet",
    "timm:test_vit",
    "timm:test_convnext",
]


@pytest.mark.filterwarnings("ignore:.*cannot be made narrower")
@pytest.mark.parametrize("name", NAMES)
def test_each_branch_answers_as_the_whole_network_would(name: str) -> None:
    student, x = network(name)
    made = branch(student, SEEDS, x[:1], width=0.5).eval()
    with torch.no_grad():
        apart = made(x, apart=True)
        torch.testing.assert_close(made(x), apart.mean(1))
        for index in range(3):
            torch.testing.assert_close(apart[:, index], by_hand(made, index, x))
    assert apart.shape == (len(x), 3, 4)
    assert (apart[:, 0] - apart[:, 1]).abs().max() > 1e-3


@pytest.mark.filterwarnings("ignore:.*cannot be made narrower")
@pytest.mark.parametrize("name", NAMES)
def test_all_branches_teach_the_stem_and_no_other_branch(name: str) -> None:
    student, x = network(name)
    made = branch(student, SEEDS, x[:1], width=0.5)
    stem = {id(p) for path in made.cut.stem for p in made.branches[0].get_submodule(path).parameters()}
    stem |= {id(made.branches[0].get_parameter(name)) for name in made.cut.tied}
    named = dict(made.named_parameters())
    shared = {n for n, p in named.items() if id(p) in stem}
    for index in range(3):
        weight = torch.randn(4, generator=torch.Generator().manual_seed(9))
        loss = (made(x, apart=True)[:, index] * weight).sum()
        found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
        reached = {n for n, g in zip(named, found, strict=True) if g is not None and bool((g != 0).any())}
        own = {n for n in named if n.startswith(f"branches.{index}.")} - shared
        assert reached <= own | shared
        assert len(reached & shared) > 0.5 * len(shared)  # the stem, from every branch
        assert len(reached & own) > 0.4 * len(own)  # timm begins residual branches at 0


def test_the_stem_is_computed_once_and_counted_once() -> None:
    student, x = network("resnet:8-16-16@2")
    made = branch(student, SEEDS, x[:1])
    calls: list[int] = []
    made.branches[0].stage1.register_forward_hook(lambda *_: calls.append(1))
    made(x)
    assert len(calls) == 1
    one = branch(student, SEEDS[:1], x[:1])
    stem = multiply_adds(nn.Sequential(student.conv, student.norm, nn.ReLU(), student.stage1), (1, 8, 8))
    whole = multiply_adds(one, (1, 8, 8))
    assert multiply_adds(made, (1, 8, 8)) == stem + 3 * (whole - stem)
    keys = [key for key in made.state_dict() if "stage1" in key]
    assert keys
    assert all(key.startswith("branches.0.") for key in keys)


@pytest.mark.parametrize(
    ("name", "width", "wanted"),
    [
        ("resnet:16-32-64", 0.75, "resnet:16-24-48"),  # the published one on CIFAR
        ("cnn:12-36-36", 2 / 3, "cnn:12-24-24"),
        ("mlp:32-16-16", 0.5, "mlp:32-8-8"),
        ("cnn:8-16", 0.5, "cnn:8-8"),
        ("cnn:4-8-8-16", 0.5, "cnn:4-8-4-8"),
    ],
)
def test_what_comes_after_the_stem_is_narrower(name: str, width: float, wanted: str) -> None:
    student, x = network(name)
    made = branch(student, SEEDS, x[:1], width=width)
    assert made.network == wanted
    stem = last_shared(student)
    before, after = (n.get_submodule(stem) for n in (student, made.branches[0]))
    assert [p.shape for p in before.parameters()] == [p.shape for p in after.parameters()]


def test_timm_networks_are_narrower_in_their_last_two_stages() -> None:
    student, x = network("timm:test_resnet")
    assert last_shared(student) == "layer2"
    made = branch(student, SEEDS[:2], x[:1], width=0.5)
    widths = [
        [getattr(n, f"layer{i}")[-1].conv1.out_channels for i in (1, 2, 3, 4)]
        for n in (student, made.branches[0])
    ]
    assert widths[1][:2] == widths[0][:2]
    assert [2 * width for width in widths[1][2:]] == widths[0][2:]
    again = rebuilt(
        made.description, lambda seed: build(made.network, shape=(3, 32, 32), classes=4, seed=seed)
    )
    again.load_state_dict(made.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(x), made.eval()(x))


def test_the_stem_keeps_its_weights_and_branches_have_their_own() -> None:
    student, x = network("resnet:8-16-16")
    made = branch(student, SEEDS, x[:1])
    assert torch.equal(made.branches[0].conv.weight, student.conv.weight)
    kernels = [student, *made.branches]
    weights = [n.stage2[0].conv1.weight for n in kernels]
    assert not any(torch.equal(a, b) for i, a in enumerate(weights) for b in weights[:i])
    assert torch.equal(branch(student, SEEDS, x[:1]).branches[2].fc.weight, made.branches[2].fc.weight)
    kept = branch(student, SEEDS, x[:1], width=0.5, keep_weights=True)
    for one in kept.branches:
        assert torch.equal(one.stage2[0].conv2.weight, student.stage2[0].conv2.weight[:8, :8])


def test_one_branch_is_the_network_with_a_cosine_classifier() -> None:
    student, x = network("resnet:8-16-16")
    made = branch(student, SEEDS[:1], x[:1], width=0.5, scale=7.0).eval()
    assert made.network == "resnet:8-16-16"
    features = copy.deepcopy(student).eval()
    features.fc = nn.Identity()
    head = made.branches[0].fc
    with torch.no_grad():
        expected = 7 * F.normalize(features(x)) @ F.normalize(head.weight).T
        torch.testing.assert_close(made(x), expected)


def test_cosine_logits_see_directions_alone() -> None:
    layer = Cosine(6, 4, 30.0)
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    logits = layer(x)
    assert logits.abs().max() <= 30 + 1e-4
    torch.testing.assert_close(layer(3.7 * x), logits, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(layer.weight.norm(dim=1), torch.ones(4))
    with torch.no_grad():
        layer.weight.mul_(torch.tensor([[0.1], [2.0], [5.0], [9.0]]))
    torch.testing.assert_close(layer(x), logits, rtol=1e-5, atol=1e-4)
    assert layer.bias is None
    aligned = layer(layer.weight.detach())
    torch.testing.assert_close(aligned.diagonal(), torch.full((4,), 30.0))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x.bfloat16()).dtype == torch.float32


class Own(nn.Module):
    """In-place activations at the cut, a shared activation, a parameter before the cut, and a long skip."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.randn(1, 1, 1, 1))
        self.one, self.two = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.three = nn.Conv2d(6, 6, 3, padding=1)
        self.out = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        early = self.one(x + self.shift)
        late = self.two(self.act(early * 1.0))
        return self.out((self.three(self.act(late)) + early).mean((2, 3)))


def test_an_unknown_network_is_cut_by_path_and_drawn_anew() -> None:
    torch.manual_seed(0)
    student = Own()
    with pytest.warns(UserWarning, match="Own cannot be made narrower"):
        made = branch(student, SEEDS, SMALL[:1], after="two", width=0.5)
    assert made.network is None
    assert made.cut.stem == ["one", "two"]
    assert made.cut.tied == ["shift"]
    assert made.branches[2].shift is made.branches[0].shift
    assert torch.equal(made.branches[0].shift, student.shift)
    assert not torch.equal(made.branches[1].three.weight, student.three.weight)
    for index in range(3):
        torch.testing.assert_close(made(SMALL, apart=True)[:, index], by_hand(made, index, SMALL))
    named = dict(made.named_parameters())
    whole = torch.autograd.grad(made(SMALL).square().sum(), list(named.values()))
    parts = torch.stack([by_hand_kept(made, index) for index in range(3)], 1).mean(1).square().sum()
    for ours, theirs in zip(whole, torch.autograd.grad(parts, list(named.values())), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def by_hand_kept(made: Branched, index: int) -> Tensor:
    """One branch of `Own` written out, on the very parameters."""
    first, own = made.branches[0], made.branches[index]
    early = first.one(SMALL + first.shift)
    late = first.two(early.relu())
    return own.out((own.three(late.relu()) + early).mean((2, 3)))


def test_copies_and_wrapped_networks_work() -> None:
    student, x = network("resnet:8-16-16")
    wrapped = Rescaled(student, [2.0], [0.5])
    made = branch(wrapped, SEEDS, x[:1], width=0.5).eval()
    assert made.cut.after == "network.stage1"
    assert made.branches[1].network.stage2[0].conv1.out_channels == 8
    other = copy.deepcopy(made)
    with torch.no_grad():
        other.branches[0].network.conv.weight.zero_()
        torch.testing.assert_close(made(x, apart=True)[:, 1], by_hand(made, 1, x))
        assert not torch.allclose(other(x, apart=True)[:, 1], made(x, apart=True)[:, 1])


def test_dropout_in_the_stem_is_drawn_once() -> None:
    student = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 8), nn.Dropout(0.5), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)
    )
    with pytest.warns(UserWarning, match="cannot be made narrower"):
        made = branch(student, SEEDS, SMALL[:1], after="2", width=0.5).train()
    for other in made.branches[1:]:
        other[3].load_state_dict(made.branches[0][3].state_dict())
        other[5].load_state_dict(made.branches[0][5].state_dict())
    apart = made(SMALL, apart=True)
    torch.testing.assert_close(apart[:, 0], apart[:, 1])


@pytest.mark.parametrize(
    ("name", "after", "says"),
    [
        ("cnn:8-16", "9", r"--method.cut '9' is no module of CNN"),
        ("cnn:8-16", "4", r"leaves nothing to branch but the classifier"),
        ("cnn:8", "", r"where to cut CNN is not known: pass --method.cut .*children: 0, 1"),
        ("timm:test_resnet", "global_pool.pool", r""),
    ],
)
def test_places_that_are_no_cut_are_one_line(name: str, after: str, says: str) -> None:
    student, x = network(name)
    with pytest.raises(UserError, match=says or "leaves nothing"):
        branch(student, SEEDS, x[:1], after)


def test_a_module_that_is_met_twice_is_no_cut() -> None:
    with pytest.raises(UserError, match="'act' takes part 2 times in a forward pass"):
        stem_of(Own(), "act", SMALL[:1])


def test_a_description_that_is_not_whole_is_one_line() -> None:
    student, x = network("cnn:4-4-4")
    told: dict[str, Any] = branch(student, SEEDS, x[:1]).description
    with pytest.raises(UserError, match="not described in full"):
        rebuilt(
            {**told, "head": "nowhere"}, lambda seed: build("cnn:4-4-4", shape=(1, 8, 8), classes=4, seed=0)
        )

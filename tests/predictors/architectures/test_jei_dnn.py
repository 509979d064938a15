"""JEI-DNN: the specification's identities, the numbers of the authors' code, and networks that really stop."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import stillroom
from stillroom import UserError
from stillroom.cli import main
from stillroom.data import TensorSource
from stillroom.engine import Watcher
from stillroom.fitter import Fitter
from stillroom.method import Clock
from stillroom.models import build
from stillroom.predictors.architectures.jei_dnn import (
    JEIDNN,
    EarlyExit,
    EarlyExiting,
    Gates,
    Heads,
    Settings,
    ThresholdExits,
    best_exit,
    blend,
    conformal_sets,
    conformal_threshold,
    conformal_thresholds,
    cross_entropies,
    exit_probabilities,
    exit_weights,
    gate_loss,
    gate_targets,
    head_loss,
    leaving,
    positive_ratios,
    uncertainty,
    warm_up_weights,
)
from stillroom.predictors.architectures.jei_dnn.heads import gate_operations
from stillroom.predictors.architectures.jei_dnn.losses import confidence_thresholds, first_true
from stillroom.predictors.architectures.jei_dnn.noisy import NoisySource
from stillroom.predictors.architectures.jei_dnn.places import exit_paths
from stillroom.predictors.architectures.jei_dnn.training import head_steps
from stillroom.runtime import Runtime
from stillroom.teaching import teach

REFERENCE = json.loads((Path(__file__).parent / "reference_jei_dnn.json").read_text())
COSTS = torch.tensor([0.2, 0.45, 0.7, 1.0], dtype=torch.float64)
TIGHT = {"rtol": 1e-9, "atol": 1e-9}
"""The reference numbers were computed in float64."""


def logits_of(samples: int = 6, exits: int = 4, classes: int = 5) -> tuple[Tensor, Tensor]:
    """Logits [n, 1, L, C] and labels of the reference, float64."""
    axes = (torch.arange(size, dtype=torch.float64) for size in (samples, exits, classes))
    n, at, c = torch.meshgrid(*axes, indexing="ij")
    logits = (1 + 0.8 * at) * (1.7 * n + 0.9 * c + 0.6 * at + 0.3).sin()
    return logits[:, None], (3 * torch.arange(samples) + 1) % classes


def reference_gates() -> Gates:
    gates = Gates(3, 1).double()
    rows = [torch.tensor([0.8, -0.5, 0.4, -0.3], dtype=torch.float64) * (1 + 0.2 * i) for i in range(3)]
    with torch.no_grad():
        gates.weight.copy_(torch.stack(rows)[None])
        gates.bias.copy_(torch.tensor([[-0.9, -0.6, -0.2]], dtype=torch.float64))
    return gates


def exactly(value: Tensor, expected: Any) -> None:
    torch.testing.assert_close(value.detach(), torch.tensor(expected, dtype=value.dtype), **TIGHT)


# -- against the authors' code ----------------------------------------------------------------------------------


def test_gates_see_and_say_what_the_published_ones_do() -> None:
    logits, _ = logits_of()
    exactly(reference_gates()(uncertainty(logits[:, :, :-1]))[:, 0], REFERENCE["gate_logits"])
    assert gate_operations(10) == REFERENCE["gate_flops"]


@pytest.mark.parametrize(("name", "bias"), [("", None), ("_open", 1.5), ("_shut", -4.0)])
def test_exit_probabilities_and_exits_are_the_published_ones(name: str, bias: float | None) -> None:
    logits, _ = logits_of()
    gates = reference_gates()
    if bias is not None:
        gates.bias.data.fill_(bias)
    p = exit_probabilities(gates(uncertainty(logits[:, :, :-1])).sigmoid())
    exactly(p[:, 0, :-1], REFERENCE[f"P{name}"])
    assert leaving(p)[:, 0].tolist() == REFERENCE[f"exit{name}"]


def test_the_gate_loss_is_the_published_one() -> None:
    logits, y = logits_of()
    gates = reference_gates()
    best = best_exit(cross_entropies(logits, y), COSTS, torch.tensor([0.4], dtype=torch.float64))
    ratios = torch.tensor([[3.0, 1.5, 0.7]], dtype=torch.float64)
    loss = gate_loss(gates(uncertainty(logits[:, :, :-1])), gate_targets(best, 4), ratios)
    exactly(loss[0], REFERENCE["gate_loss"])
    weight, bias = torch.autograd.grad(loss.sum(), [gates.weight, gates.bias])
    exactly(weight[0], REFERENCE["gate_grad_weight"])
    exactly(bias[0], REFERENCE["gate_grad_bias"])


def test_the_head_loss_without_stop_gradient_is_the_published_one_times_the_exits() -> None:
    logits, y = logits_of()
    early = logits[:, :, :-1].clone().requires_grad_()
    p = exit_probabilities(reference_gates()(uncertainty(early)).sigmoid())[..., :-1]
    losses = cross_entropies(early, y)
    loss = head_loss(losses, exit_weights(losses, p, stop_gradient=False))[0]
    exactly(loss / 3, REFERENCE["head_loss_mean_over_exits"])
    exactly(torch.autograd.grad(loss, early)[0][:, 0] / 3, REFERENCE["head_grad"])


def test_the_warm_up_loss_is_the_published_one() -> None:
    logits, y = logits_of()
    losses = cross_entropies(logits[:, :, :-1], y)
    exactly(head_loss(losses, warm_up_weights(4).double())[0], REFERENCE["warm_up"])
    assert warm_up_weights(4).tolist() == [4, 3, 2]


@pytest.mark.parametrize(("count", "miscoverage"), [(30, 0.2), (100, 0.05), (100, 0.2)])
def test_the_published_conformal_threshold_is_the_next_larger_score(count: int, miscoverage: float) -> None:
    scores = (torch.arange(count, dtype=torch.float64) * 0.754877666) % 1
    own, ranked = conformal_threshold(scores, miscoverage), scores.sort().values
    rank = int((ranked <= own).sum())
    assert rank == -(-(count + 1) * round(100 * (1 - miscoverage)) // 100)
    assert ranked[rank].item() == pytest.approx(REFERENCE[f"conformal_{count}"][str(miscoverage)], abs=1e-12)


def test_too_few_scores_exclude_no_class() -> None:
    assert conformal_threshold(torch.rand(15), 0.05) == 1.0
    assert conformal_threshold(torch.arange(19) / 20, 0.05) == pytest.approx(18 / 20)


# -- exit probabilities and the rule ----------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=7))
def test_exit_probabilities_sum_to_one_and_both_caps_are_one(gates: list[float]) -> None:
    g = torch.tensor(gates, dtype=torch.float64)
    p = exit_probabilities(g)
    assert (p >= 0).all()
    torch.testing.assert_close(p.sum(), torch.tensor(1.0, dtype=torch.float64))
    torch.testing.assert_close(p[:-1].cumsum(0), g.cumsum(0).clamp_max(1.0))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=7))
def test_a_sample_leaves_where_half_of_what_is_left_does(gates: list[float]) -> None:
    """prod (1 - h_j) telescopes to 1 - sum P_j."""
    p = exit_probabilities(torch.tensor(gates, dtype=torch.float64))
    left, wanted = 1.0, len(gates)
    for index, share in enumerate(p[:-1].tolist()):
        if abs(share - 0.5 * left) < 1e-9:
            return  # a tie, decided by rounding
        if share > 0.5 * left:
            wanted = index
            break
        left -= share
    assert int(leaving(p)) == wanted


@pytest.mark.parametrize(("gate", "exit_"), [(1.0, 0), (0.51, 0), (0.49, 1), (0.3, 2), (0.05, 3), (0.0, 3)])
def test_equal_gates_add_up(gate: float, exit_: int) -> None:
    assert int(leaving(exit_probabilities(torch.full((3,), gate)))) == exit_


def test_statistics_of_certain_and_uniform_answers() -> None:
    seen = uncertainty(torch.tensor([[0.0, 0.0, 0.0, 0.0], [50.0, 0.0, 0.0, 0.0]]))
    log4 = torch.tensor(4.0).log().item()
    torch.testing.assert_close(seen, torch.tensor([[0.25, log4, 0.0, log4], [1.0, 0.0, 1.0, 0.0]]))
    p = torch.tensor([0.5, 0.3, 0.2])
    squared = p**2 / (p**2).sum()
    entropy = -(squared * squared.log()).sum()
    torch.testing.assert_close(uncertainty(p.log())[3], entropy)


# -- losses -----------------------------------------------------------------------------------------------------


def test_lambda_decides_the_best_exit_at_its_ends() -> None:
    losses = torch.tensor([[[2.0, 1.0, 0.5, 0.1]], [[0.1, 0.2, 0.3, 0.4]]])
    for weight, wanted in ((0.0, [3, 0]), (1e-6, [3, 0]), (1e6, [0, 0])):
        assert best_exit(losses, COSTS.float(), torch.tensor([weight]))[:, 0].tolist() == wanted
    # CE falls by 1, .5, .4 at costs .25, .25, .3: exits pay below lambda = 4, 2, 4/3
    each = [
        int(best_exit(losses[:1], COSTS.float(), torch.tensor([w]))) for w in (1.3, 1.4, 1.9, 2.1, 3.9, 4.1)
    ]
    assert each == [3, 2, 2, 1, 1, 0]


def test_targets_are_monotone_and_start_at_the_best_exit() -> None:
    targets = gate_targets(torch.arange(4), 4)
    assert targets.tolist() == [[1, 1, 1], [0, 1, 1], [0, 0, 1], [0, 0, 0]]


def test_ratios_count_who_is_best_where() -> None:
    best = torch.tensor([[0], [0], [1], [3], [3], [3], [3], [3]])
    torch.testing.assert_close(positive_ratios(best, 4), torch.tensor([[3.0, 5.0, 5.0]]))
    torch.testing.assert_close(
        positive_ratios(torch.zeros(8, 1, dtype=torch.int64), 2), torch.tensor([[0.0]])
    )


def test_the_gate_loss_weighs_ones_by_their_ratio() -> None:
    logits = torch.tensor([[[0.3, -0.7]]])
    targets = torch.tensor([[[1.0, 0.0]]])
    ones, zeros = F.softplus(torch.tensor(-0.3)), F.softplus(torch.tensor(-0.7))
    for ratio in (0.0, 1.0, 5.0):
        loss = gate_loss(logits, targets, torch.tensor([[ratio, 4.0]]))
        torch.testing.assert_close(loss[0], (ratio * ones + zeros) / 2)


def weighted(stop_gradient: bool, normalise: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of the head loss by logits, the weights, and the gradient of each exit's own loss."""
    logits, y = logits_of()
    early = logits[:, :, :-1].clone().requires_grad_()
    losses = cross_entropies(early, y)
    p = torch.rand(6, 1, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 3
    weights = exit_weights(losses, p, normalise, stop_gradient)
    grad = torch.autograd.grad(head_loss(losses, weights)[0], early, retain_graph=True)[0]
    own = torch.autograd.grad(losses.sum(), early)[0] / len(y)
    return grad, weights.detach(), own


def test_with_stop_gradient_the_gradient_is_the_weighted_one() -> None:
    for normalise in (True, False):
        grad, weights, own = weighted(stop_gradient=True, normalise=normalise)
        torch.testing.assert_close(grad, weights[..., None] * own)
        assert weights.std() > 0.1 if normalise else True


def test_without_stop_gradient_the_weights_cancel() -> None:
    grad, weights, own = weighted(stop_gradient=False)
    torch.testing.assert_close(grad, own)
    assert (weights - 1).abs().max() > 0.3


def test_normalising_keeps_each_sample_s_loss() -> None:
    logits, y = logits_of()
    losses = cross_entropies(logits[:, :, :-1], y)
    p = torch.rand(6, 1, 3, dtype=torch.float64) / 3
    torch.testing.assert_close((exit_weights(losses, p) * losses).sum(-1), losses.sum(-1))
    assert (exit_weights(losses, torch.zeros_like(p)) == 0).all()
    torch.testing.assert_close(exit_weights(losses, p, normalise=False), p)


def test_gates_send_no_gradient_to_heads() -> None:
    logits, y = logits_of()
    early = logits[:, :, :-1].clone().requires_grad_()
    assert not uncertainty(early).requires_grad
    losses = cross_entropies(early, y)
    p = exit_probabilities(reference_gates()(uncertainty(early)).sigmoid())[..., :-1]
    assert p.requires_grad  # by the gates, which the heads' loss must not see
    assert not exit_weights(losses, p).requires_grad


def test_soft_labels_are_the_mean_of_hard_ones() -> None:
    logits, y = logits_of()
    hard = F.one_hot(y, 5).double()
    torch.testing.assert_close(cross_entropies(logits, hard), cross_entropies(logits, y))
    mixed = 0.7 * hard + 0.3 * hard.roll(1, -1)
    other = cross_entropies(logits, (y + 1) % 5)
    torch.testing.assert_close(cross_entropies(logits, mixed), 0.7 * cross_entropies(logits, y) + 0.3 * other)


@pytest.mark.parametrize(("weight", "exit_"), [(1e4, 0), (0.0, 3)])
def test_trained_gates_follow_lambda_to_its_ends(weight: float, exit_: int) -> None:
    """lambda to infinity: all leave at once. lambda = 0 and only the last exit right: nobody leaves early."""
    generator = torch.Generator().manual_seed(0)
    logits, y = torch.randn(200, 1, 4, 5, generator=generator), torch.randint(5, (200,), generator=generator)
    logits[:, 0, -1] = 8.0 * F.one_hot(y, 5)
    best = best_exit(cross_entropies(logits, y), COSTS.float(), torch.tensor([weight]))
    assert (best == exit_).all()
    gates, seen = Gates(3, 1), uncertainty(logits[:, :, :-1])
    optimizer = torch.optim.Adam(gates.parameters(), lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        gate_loss(gates(seen), gate_targets(best, 4), positive_ratios(best, 4).clamp_min(1)).sum().backward()
        optimizer.step()
    taken = leaving(exit_probabilities(gates(seen).sigmoid()))
    assert (taken == exit_).float().mean() == 1


# -- conformal sets, thresholds, budgets ------------------------------------------------------------------------


def test_conformal_sets_cover_what_they_promise() -> None:
    generator = torch.Generator().manual_seed(3)
    logits = 2 * torch.randn(40_000, 3, 6, generator=generator)
    p = logits.softmax(-1)
    y = torch.multinomial(logits[:, 1].softmax(-1), 1, generator=generator).squeeze(1)
    exits = torch.randint(3, (40_000,), generator=generator)
    half = 20_000
    q = conformal_thresholds(p[:half], y[:half], exits[:half], 0.1)
    rest = torch.arange(half, 40_000)
    sets = conformal_sets(p[rest, exits[rest]], q[exits[rest]])
    for exit_ in range(3):  # covered at each exit, not only on the whole
        at = exits[rest] == exit_
        assert abs(sets[at, y[rest][at]].float().mean() - 0.9) < 0.02


def test_rare_exits_take_the_scores_of_all_samples() -> None:
    p = torch.rand(400, 2, 4).softmax(-1)
    y = torch.randint(4, (400,))
    for rare in (20, 21):
        exits = (torch.arange(400) >= rare).long()
        scores = 1 - p[torch.arange(400), 0, y]
        wanted = conformal_threshold(scores if rare == 20 else scores[:21], 0.1)
        assert conformal_thresholds(p, y, exits, 0.1)[0].item() == pytest.approx(wanted)


def test_thresholds_meet_their_mean_costs() -> None:
    confidence = torch.rand(5000, 3, generator=torch.Generator().manual_seed(0))
    targets = [0.9, 0.6, 0.3]
    found = confidence_thresholds(confidence, COSTS.float(), targets)
    for threshold, target in zip(found, targets, strict=True):
        assert COSTS[first_true(confidence >= threshold)].mean().item() == pytest.approx(target, abs=2e-3)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0.1, 1), min_size=1, max_size=6, unique=True), st.floats(0.05, 1))
def test_two_neighbours_are_blended_to_the_budget(costs: list[float], budget: float) -> None:
    c = torch.tensor(costs, dtype=torch.float64)
    shares = blend(c, budget)
    assert shares.sum().item() == pytest.approx(1)
    assert (shares >= 0).all()
    wanted = min(max(budget, min(costs)), max(costs))
    assert (shares * c).sum().item() == pytest.approx(wanted)
    used = c[shares > 0]
    assert not ((c > used.min()) & (c < used.max())).any()


# -- stopping ---------------------------------------------------------------------------------------------------


class Counting(nn.Module):
    """A residual chain of the user's own that counts the samples each block sees; `around`: block 0 feeds the head."""

    def __init__(self, around: bool = False) -> None:
        super().__init__()
        self.around, self.calls = around, [0, 0, 0, 0]
        self.blocks = nn.ModuleList([nn.Conv2d(2, 2, 3, padding=1) for _ in range(4)])
        self.fc = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        first = None
        for index, block in enumerate(self.blocks):
            self.calls[index] += len(x)
            x = block(x).tanh() + x if index == 0 or not self.around else block(x).tanh()
            first = x if first is None else first
        return self.fc((x + first if self.around else x).mean((2, 3)))


class Chain(Counting):
    """The same with blocks as modules that hold their residual."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Residual() for _ in range(4)])

    def forward(self, x: Tensor) -> Tensor:
        for index, block in enumerate(self.blocks):
            self.calls[index] += len(x)
            x = block(x)
        return self.fc(x.mean((2, 3)))


class Residual(nn.Module):
    """x + tanh(conv(x))."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x).tanh()


def exits_on(backbone: nn.Module, rule: Any = "gates") -> EarlyExit:
    """Exits with gates that send samples to all exits."""
    paths = exit_paths(backbone, ("blocks.0", "blocks.1", "blocks.2"), torch.zeros(1, 2, 4, 4))
    heads, gates = Heads([2, 2, 2], 3, 1), Gates(3, 1)
    with torch.no_grad():
        for weight in heads.weights:
            weight.mul_(4)
        gates.weight.copy_(torch.tensor([6.0, 0.0, 0.0, 0.0]))
        gates.bias.copy_(torch.tensor([-4.4, -4.2, -4.0]))
    made = EarlyExit(backbone, paths, heads, gates, Settings(("only",), rule)).measure((2, 4, 4))
    made.thresholds.fill_(0.6)
    return made.eval()


@pytest.fixture
def inputs() -> Tensor:
    return torch.randn(24, 2, 4, 4, generator=torch.Generator().manual_seed(4))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(7)


@pytest.mark.parametrize("rule", ["gates", "threshold"])
def test_a_single_sample_skips_the_blocks_after_its_exit(inputs: Tensor, rule: Any) -> None:
    network = exits_on(Chain(), rule)
    with torch.no_grad():
        logits = network(inputs)
    taken = network.leave(logits)[:, 0]
    assert set(taken.tolist()) >= {0, 1, 3}
    for index, wanted in enumerate(taken.tolist()):
        network.backbone.calls[:] = [0] * 4
        answer = network.predict(inputs[index : index + 1])
        assert network.backbone.calls == [1] * (wanted + 1) + [0] * (3 - wanted)
        assert answer.exit.tolist() == [wanted + 1]
        assert answer.stopped
        torch.testing.assert_close(answer.probabilities, logits[index, :, wanted].softmax(-1))
        assert answer.cost.item() == pytest.approx(network.shares[wanted].item())


def test_of_a_batch_only_who_is_left_goes_on(inputs: Tensor) -> None:
    network = exits_on(Chain())
    logits = network(inputs).detach()
    taken = network.leave(logits)[:, 0]
    assert network.drops(inputs)
    network.backbone.calls[:] = [0] * 4
    answer = network.predict(inputs)
    left = [int((taken >= block).sum()) for block in range(4)]
    assert network.backbone.calls == left
    assert left[0] > left[1] > left[3] > 0
    assert answer.exit.tolist() == (taken + 1).tolist()
    chosen = logits[torch.arange(24), 0, taken].softmax(-1)
    torch.testing.assert_close(answer.probabilities, chosen)
    assert answer.label.tolist() == chosen.argmax(-1).tolist()


def test_where_something_goes_around_an_exit_a_batch_is_computed_in_full_and_says_so(inputs: Tensor) -> None:
    network = exits_on(Counting(around=True))
    confidence = network(inputs)[:, 0, 0].softmax(-1).amax(-1)
    network.gates.bias.data[0, 0] = -6 * confidence.median().item()  # opens for half of them
    logits = network(inputs).detach()
    taken = network.leave(logits)[:, 0]
    with pytest.warns(UserWarning, match="cannot be dropped inside Counting"):
        answer = network.predict(inputs)
    assert not answer.stopped
    assert answer.exit.tolist() == (taken + 1).tolist()
    torch.testing.assert_close(answer.probabilities, logits[torch.arange(24), 0, taken].softmax(-1))
    early = int((taken == 0).nonzero()[0])
    network.backbone.calls[:] = [0] * 4
    assert network.predict(inputs[early : early + 1]).stopped
    assert network.backbone.calls == [1, 0, 0, 0]


def test_predicting_leaves_the_backbone_without_hooks(inputs: Tensor) -> None:
    network = exits_on(Chain())
    network.predict(inputs)
    assert not any(module._forward_hooks for module in network.modules())
    with pytest.raises(UserError, match="setting 1 is none"):
        network.predict(inputs, setting=1)


def test_costs_count_blocks_heads_and_gates() -> None:
    network = exits_on(Chain())
    block, head, gate = 2 * 2 * 9 * 16, 2 * 3, gate_operations(3)
    assert network.costs[:3].tolist() == [(block + head + gate) * count for count in (1, 2, 3)]
    assert network.costs[3].item() == network.full.item() == 4 * block + 3 * (head + gate) + 2 * 3
    bare = exits_on(Chain(), "threshold")
    assert bare.costs.tolist() == [(block + head) * c for c in (1, 2, 3)] + [4 * block + 4 * 2 * 3]
    assert bare.full == network.full


# -- places -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "paths"),
    [
        ("mlp:8-8-8", ["2", "4"]),
        ("cnn:4-4-4", ["1", "3"]),
        ("resnet:4-8@2", ["stage1.0", "stage1.1", "stage2.0"]),
        ("timm:resnet10t", ["act1", "layer1", "layer2", "layer3"]),
    ],
)
def test_known_networks_have_an_exit_after_every_block_but_the_last(name: str, paths: list[str]) -> None:
    network = build(name, shape=(3, 32, 32), classes=4, seed=0)
    assert exit_paths(network, (), torch.zeros(1, 3, 32, 32)) == paths


def test_wildcards_stand_for_one_name_and_exits_are_put_in_order() -> None:
    x = torch.zeros(1, 2, 4, 4)
    assert exit_paths(Chain(), ("blocks.*",), x) == [f"blocks.{index}" for index in range(4)]
    assert exit_paths(Chain(), ("blocks.2", "blocks.0", "blocks.0"), x) == ["blocks.0", "blocks.2"]
    assert exit_paths(Chain(), ("blocks.*.conv",), x) == [f"blocks.{index}.conv" for index in range(4)]


@pytest.mark.parametrize(
    ("network", "wanted", "says"),
    [
        (Chain(), ("blocks.9",), r"--method.exits 'blocks.9' is no module of Chain: .* blocks.\d"),
        (Chain(), ("block.*",), r"--method.exits 'block.\*' is no module of Chain"),
        (Chain(), (), "the blocks of Chain are not known: pass --method.exits"),
        (build("cnn:4", shape=(2, 4, 4), classes=3, seed=0), (), "has one exit, its own output"),
        (Chain(), ("blocks",), "'blocks' takes part 0 times in a forward pass"),
    ],
)
def test_wrong_places_are_named(network: nn.Module, wanted: tuple[str, ...], says: str) -> None:
    with pytest.raises(UserError, match=says):
        exit_paths(network, wanted, torch.zeros(1, 2, 4, 4))


def test_a_vision_transformer_is_left_at_its_class_token() -> None:
    timm = pytest.importorskip("timm")
    options = {"img_size": 8, "patch_size": 4, "embed_dim": 12, "depth": 3, "num_heads": 2, "num_classes": 4}
    vit = timm.create_model("vit_tiny_patch16_224", **options).eval()
    paths = exit_paths(vit, ("blocks.*",), torch.zeros(1, 3, 8, 8))[:-1]
    network = EarlyExit(vit, paths, Heads([12, 12], 4, 1), Gates(2, 1), Settings(("",)), class_token=True)
    network.gates.bias.data.copy_(torch.tensor([[-9.0, 9.0]]))
    x = torch.randn(5, 3, 8, 8)
    features, final = network.features(x)
    tokens = vit.blocks[0](vit.norm_pre(vit._pos_embed(vit.patch_embed(x))))
    torch.testing.assert_close(features[0], vit.norm(tokens)[:, 0].detach())
    torch.testing.assert_close(final, vit(x).detach())
    answer = network.predict(x)
    assert answer.stopped
    assert answer.exit.tolist() == [2] * 5
    torch.testing.assert_close(answer.probabilities, network(x)[:, 0, 1].softmax(-1).detach())


# -- training ---------------------------------------------------------------------------------------------------


def fitted(method: Any, **changes: Any) -> tuple[Any, Any]:
    task, engine = JEIDNN.default_task().quick(), replace(JEIDNN.default_engine(), epochs=6, evaluate_every=0)
    teach(task, engine.quick(), None, Watcher)
    method = method.variant(warmup_epochs=2, period=2, **changes)
    result = method.run(task, Fitter(engine, task, 0))
    return method, result


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 40), st.integers(1, 9))
def test_steps_of_the_heads_are_counted(steps: int, period: int) -> None:
    assert head_steps(steps, period) == sum(step // period % 2 for step in range(steps))


def test_all_arms_have_equally_many_steps_of_the_heads() -> None:
    arms = [
        JEIDNN(),
        JEIDNN(stop_gradient=False),
        JEIDNN(jointly=False),
        JEIDNN(leave="random"),
        ThresholdExits(),
    ]
    counts = [fitted(arm)[1].extra for arm in arms]
    assert len({count["updates of heads"] for count in counts}) == 1
    assert [count["updates of gates"] > 0 for count in counts] == [True, True, True, True, False]
    assert counts[0]["updates of heads"] + counts[0]["updates of gates"] == 12


def test_the_released_arithmetic_trains_heads_as_if_all_exits_weighed_alike() -> None:
    """At equal gates: lambda infinite or not, the heads come out the same."""
    heads = fitted(JEIDNN(exit_costs=(0.01, 3.0), stop_gradient=False))[0].heads
    torch.testing.assert_close(heads.bias[0], heads.bias[1], rtol=1e-4, atol=1e-6)
    own = fitted(JEIDNN(exit_costs=(0.01, 3.0)))[0].heads
    assert (own.bias[0] - own.bias[1]).abs().max() > 1e-5


def test_gates_of_different_lambdas_part() -> None:
    gates = fitted(JEIDNN(exit_costs=(0.0, 100.0)))[0].gates
    assert (gates.bias[1] > gates.bias[0]).all()


def test_resting_heads_do_not_move_and_the_warm_up_ends_when_all_rest() -> None:
    method, _ = fitted(JEIDNN())
    heads, memory = method.heads, method._fresh_memory(6)
    method.memory = memory
    kept = heads.bias.detach().clone()
    method._judge_heads(torch.zeros(30, 6, 3, 10))
    accuracy = memory["accuracy"].clone()
    assert (memory["waited"] == 0).all()
    heads.bias.data.add_(1.0)
    for epoch in (1, 2):  # no better than before, for two epochs
        assert not memory["resting"].any()
        method._judge_heads(torch.zeros(30, 6, 3, 10))
        assert (memory["waited"] == epoch).all()
    assert memory["resting"].all()
    torch.testing.assert_close(memory["accuracy"], accuracy)
    torch.testing.assert_close(heads.bias.detach(), kept)
    method._turn(Clock(7, 100, 1, 20))
    assert int(memory["warm until"]) == 7


def test_the_product_is_the_best_epoch_s() -> None:
    method, _ = fitted(JEIDNN())
    with torch.no_grad():
        for name in list(method.memory):
            if name.startswith("kept"):
                method.memory[name].zero_()
    method.memory["worth"] = torch.tensor([2.0, 2.0, 2.0, -1.0, -1.0, -1.0])
    made = method.product()
    assert (made.heads.bias[:3] == 0).all()
    torch.testing.assert_close(made.heads.bias[3:], method.heads.bias[3:])
    assert (made.gates.weight[0] == 0).all()
    torch.testing.assert_close(made.gates.bias[5], method.gates.bias[5])


def test_random_exits_have_the_histogram_of_the_gates() -> None:
    (own, first), (_, second) = (
        fitted(JEIDNN(exit_costs=(0.01,), leave=leave)) for leave in ("gates", "random")
    )
    taken = first.product.leave(own._held_logits(first.product.heads))[:, 0].bincount(minlength=3) / 30
    chance = second.product
    torch.testing.assert_close(chance.histogram[0], taken)
    shares = chance.leave(torch.randn(20_000, 1, 3, 10))[:, 0].bincount(minlength=3) / 20_000
    torch.testing.assert_close(shares, taken, rtol=0, atol=0.02)


def test_scores_are_means_at_the_budgets() -> None:
    method, result = fitted(JEIDNN(exit_costs=(0.01, 1.0)))
    task = method.task.but(budgets=(0.6, 0.8))
    score = task.score(result.product, "test", Runtime())
    assert sum(score["per_sample"]) / 900 == pytest.approx(score["accuracy"])
    assert score["cost"] == pytest.approx(0.7)
    rows = score["settings"]
    assert [row["name"] for row in rows] == ["λ=0.01", "λ=1", "first exit", "last exit"]
    assert all(sum(row["histogram"]) == pytest.approx(1) for row in rows)
    assert rows[-1]["cost"] == pytest.approx(1.0)
    teacher = task.score(task.make_teacher().module, "test", Runtime())
    assert teacher["accuracy"] == pytest.approx(rows[-1]["accuracy"])
    other = task.but(judged_by="calibration")
    assert other.metric == "expected_calibration_error"
    assert not other.higher_is_better


# -- noise, wrong inputs, users -----------------------------------------------------------------------------------


def test_noise_belongs_to_the_sample() -> None:
    plain = TensorSource(torch.zeros(6, 1, 4, 4), torch.arange(6))
    source = NoisySource(plain, 0.5, seed=1)
    x, _ = source.fetch(torch.arange(6), None)
    assert torch.equal(x, source.fetch(torch.arange(6), 3)[0])
    assert torch.equal(x[[4, 1]], source.subset(torch.tensor([4, 1])).fetch(torch.arange(2), None)[0])
    assert x.std().item() == pytest.approx(0.5, abs=0.1)
    fresh = NoisySource(plain, 0.5, seed=1, fresh=True)
    assert torch.equal(fresh.fetch(torch.arange(6), None)[0], x)
    assert not torch.equal(fresh.fetch(torch.arange(6), 3)[0], fresh.fetch(torch.arange(6), 4)[0])
    assert source.fixed
    assert not fresh.fixed


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"exit_costs": (-0.1, 1.0)}, "--method.exit-costs is -0.1"),
        ({"exit_costs": ()}, "--method.exit-costs is -1"),
        ({"exit_costs": (1.0, 0.1)}, "--method.exit-costs is 1 0.1: pass rising weights"),
        ({"period": 0}, "--method.period is 0"),
        ({"patience": 0}, "--method.patience is 0"),
        ({"miscoverage": 0.0}, "--method.miscoverage is 0.0"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        JEIDNN(**options).check()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"student": "mlp:8"}, "--task.student is 'mlp:8', but the student is the teacher"),
        ({"budgets": (0.0,)}, "--task.budgets is 0.0"),
        ({"noise": -1.0}, "--task.noise is -1.0"),
        ({"validation_samples": 5}, "--task.validation-samples is 5: pass 10 to 790"),
        ({"teacher": "none"}, "exits need a backbone"),
    ],
)
def test_wrong_tasks_are_named(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        EarlyExiting(**options).check(0, teacher=True)


def test_a_warm_up_without_end_is_refused() -> None:
    with pytest.raises(UserError, match="--method.warmup-epochs is 9 of 6 epochs"):
        task, engine = JEIDNN.default_task().quick(), replace(JEIDNN.default_engine(), epochs=6)
        teach(task, engine.quick(), None, Watcher)
        JEIDNN(warmup_epochs=9).run(task, Fitter(engine, task, 0))


QUICK = ["--task.train-samples", "150", "--task.validation-samples", "40", "--task.teacher-epochs", "2"]
QUICK = [*QUICK, "--task.teacher", "resnet:4@3", "--engine.epochs", "4", "--method.warmup-epochs", "1"]


def test_a_run_from_the_command_line_comes_back(tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = [*QUICK, "--method.period", "1", "--method.exits", "stage1.*"]
    assert main(["run", "jei-dnn", *options, "--out", str(out)]) == 0
    result = json.loads((out / "result.json").read_text())
    assert list(result["arms"]) == ["teacher", "threshold-exits", "jei-dnn"]
    assert len(result["figures"]) == 5
    extra = [result["arms"][arm]["extra"]["updates of heads"] for arm in ("threshold-exits", "jei-dnn")]
    assert extra[0] == extra[1]
    network = stillroom.Run(out).student()
    assert network.exits == ["stage1.0", "stage1.1", "stage1.2"]
    x = torch.randn(4, 1, 8, 8)
    one = [network.predict(x[index : index + 1], setting=2) for index in range(4)]
    both = network.predict(x, setting=2)
    torch.testing.assert_close(torch.cat([answer.probabilities for answer in one]), both.probabilities)
    assert "network.predict(x, setting=0)" in (out / "student" / "README.md").read_text()


def test_a_user_s_own_network_and_data(tmp_path: Path) -> None:
    x = torch.randn(150, 2, 4, 4)
    y = torch.arange(150) % 3
    x = x + y.view(-1, 1, 1, 1)
    backbone = Chain()
    method = JEIDNN(exits=("blocks.0", "blocks.2"), exit_costs=(0.1,), warmup_epochs=1, period=1)
    out = tmp_path / "run"
    network, run = stillroom.distill(backbone, None, data=(x, y), method=method, out=out, epochs=4)
    answer = network.predict(x[:1])
    assert answer.label.shape == (1,)
    with pytest.raises(UserError, match="network of your own: pass load"):
        run.student()
    again = run.student(Chain())
    torch.testing.assert_close(again.predict(x[:1]).probabilities, answer.probabilities)
    assert torch.equal(again.conformal, network.conformal)

"""DP-KD: the scores, the choices, the loss, the theory, and runs of the whole, held to the specification's checks."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import stillroom
from stillroom.cli import main
from stillroom.engine import Engine, Watcher
from stillroom.errors import UserError
from stillroom.fitter import Fitter
from stillroom.method import Method
from stillroom.predictors.baselines import KD, Plain
from stillroom.predictors.classification import Classification
from stillroom.predictors.labels.data_pruning_kd import (
    DataPruningKD,
    KeptAlone,
    PrunedClassification,
    pruned_kd_loss,
    sweep,
    sweep_figure,
    table,
)
from stillroom.predictors.labels.data_pruning_kd.claims import drawn, helps, named
from stillroom.predictors.labels.data_pruning_kd.controls import OwnTeacher
from stillroom.predictors.labels.data_pruning_kd.ridge import (
    distilled_ridge,
    expected_error,
    ridge,
    student_map,
)
from stillroom.predictors.labels.data_pruning_kd.scoring import RUNS, order_of
from stillroom.predictors.parts.pruning import (
    Forgetting,
    el2n,
    grand_last_layer,
    herding,
    in_turn,
    kept,
    kept_count,
    margin,
    prototype_distance,
    random_order,
    ranked,
)
from stillroom.reports import pruning_figures
from stillroom.reports.drawing import checked
from stillroom.runtime import Runtime
from stillroom.teaching import teach
from toys import same, weights_of

TIGHT = {"rtol": 1e-12, "atol": 1e-12}
EXACT: dict[str, Any] = {"dtype": torch.float64}

# fmt: off
EL2N = [0.6515763475113315, 1.2487199293918394, 1.1823818448390335,
        1.3261527868461815, 1.055117120268878, 1.0438698899270118]
MARGIN = [-0.11203125142938003, 0.7383918943223341, 0.47232706473531655,
          0.8721080766980598, 0.4908014971410949, 0.33744097996830985]
GRAND = [1.5175753222342967, 3.079574412873638, 2.724839546109334,
         2.9665148459994346, 2.5660321619926387, 2.5156507878533727]
# fmt: on


def layer() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features [6, 4], weights [4, 5], biases [5] and labels [6] of the reference, float64."""
    b, c, d = (torch.arange(n, **EXACT) for n in (6, 5, 4))
    h = 1.5 * (0.9 * b[:, None] - 0.7 * d + 0.2).cos()
    w = 1.1 * (1.3 * d[:, None] + 0.8 * c).sin()
    return h, w, 0.4 * (1.7 * c).cos(), (3 * torch.arange(6) + 1) % 5


def tiny(**changes: Any) -> PrunedClassification:
    """120 digits."""
    return PrunedClassification().quick().but(**changes)


def fitted(
    method: Method, task: PrunedClassification, seed: int = 0, folder: Path | None = None, **changes: Any
) -> Any:
    """The result of a run on `task`, whose teacher is taught, and what trained it."""
    engine = replace(Engine(epochs=3, evaluate_every=0), **changes)
    if method.uses_teacher:
        teach(task, engine, None, Watcher)
    fitter = Fitter(engine, task, seed, folder)
    return method.run(task, fitter), fitter


# -- scores -----------------------------------------------------------------------------------------------------------


def test_scores_have_the_public_code_s_numbers() -> None:
    """mansheej/data_diet at aee462e, JAX in float64: l2_error, grad_norm (of a linear model) and max_margin."""
    h, w, bias, y = layer()
    z = h @ w + bias
    for found, numbers in ((el2n(z, y), EL2N), (margin(z, y), MARGIN), (grand_last_layer(z, h, y), GRAND)):
        torch.testing.assert_close(found, torch.tensor(numbers, **EXACT), **TIGHT)


@pytest.mark.parametrize("bias", [True, False])
def test_grand_is_the_norm_of_the_last_layer_s_gradient(bias: bool) -> None:
    h, w, b, y = layer()
    last = nn.Linear(4, 5, bias=bias, dtype=torch.float64)
    with torch.no_grad():
        last.weight.copy_(w.T)
        if bias:
            last.bias.copy_(b)
    norms = []
    for i in range(6):
        gradients = torch.autograd.grad(
            F.cross_entropy(last(h[i : i + 1]), y[i : i + 1]), list(last.parameters())
        )
        norms.append(torch.cat([g.flatten() for g in gradients]).norm())
    torch.testing.assert_close(grand_last_layer(last(h), h, y, bias), torch.stack(norms), **TIGHT)


@pytest.mark.parametrize("classes", [2, 5, 10])
def test_el2n_of_a_uniform_prediction_and_its_ends(classes: int) -> None:
    uniform = el2n(torch.zeros(3, classes, **EXACT), torch.arange(3) % classes)
    torch.testing.assert_close(uniform, torch.full((3,), math.sqrt(1 - 1 / classes), **EXACT))
    sure = 50 * F.one_hot(torch.tensor([0, 0]), classes).double()
    torch.testing.assert_close(el2n(sure, torch.tensor([0, 1])), torch.tensor([0, math.sqrt(2)], **EXACT))


def test_the_margin_is_negative_where_the_answer_is_right() -> None:
    z = torch.tensor([[3.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    found = margin(z, torch.tensor([0, 2]))
    shares = z[0].softmax(-1)
    torch.testing.assert_close(found, torch.stack([shares[1] - shares[0], torch.tensor(0.0)]))


def forgotten(rows: Tensor, batches: list[list[int]] | None = None) -> Tensor:
    """Counts for correctness rows [samples, epochs]."""
    memory = Forgetting(len(rows))
    for epoch in range(rows.shape[1]):
        for ids in batches or [list(range(len(rows)))]:
            memory.update(torch.tensor(ids), rows[ids, epoch])
    return memory.scores()


def test_forgetting_of_a_sequence_made_by_hand() -> None:
    rows = torch.tensor(
        [[1, 1, 0, 1, 0, 0, 1], [0, 0, 0, 0, 0, 0, 0], [0, 1, 1, 1, 1, 1, 1], [1, 0, 0, 0, 0, 0, 0]]
    )
    assert forgotten(rows).tolist() == [2, math.inf, 0, 1]


def test_forgetting_has_the_public_code_s_numbers_in_shuffled_batches() -> None:
    """mansheej/data_diet at aee462e, forgetting.py."""
    n, e = torch.arange(7, **EXACT)[:, None], torch.arange(9, **EXACT)[None]
    right = (2.3 * n * (1 + e) + 0.5 * n).sin() > 0.2
    right[3] = False
    memory = Forgetting(7)
    for epoch in range(9):
        for ids in ((torch.arange(7) * 3 + epoch) % 7).split(3):
            memory.update(ids, right[ids, epoch])
    assert memory.scores().tolist() == [math.inf, 3, 2, math.inf, 4, 2, 1]


def test_forgetting_goes_on_from_what_was_kept() -> None:
    rows = torch.tensor([[1, 1, 0, 1, 0, 0, 1]])
    first, second = Forgetting(1), Forgetting(1)
    for epoch in range(7):
        if epoch == 4:
            second.load(first.memory)
            first = second
        first.update(torch.tensor([0]), rows[:, epoch])
    assert first.scores().tolist() == [2]


def test_prototypes_are_far_where_samples_are_odd() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(60, 2, generator=generator) * 0.1 + torch.tensor([[5.0, 0.0], [-5.0, 0.0]]).repeat(
        30, 1
    )
    points[7] += torch.tensor([0.0, 3.0])
    found = prototype_distance(points, 2, seed=0)
    assert int(found.argmax()) == 7
    centre = points[0::2].mean(0)
    torch.testing.assert_close(found[0].float(), (points[0] - centre).norm(), rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="60 samples make no 61 clusters"):
        prototype_distance(points, 61, seed=0)


def test_herding_takes_next_what_brings_the_mean_nearest() -> None:
    generator = torch.Generator().manual_seed(1)
    features, labels = torch.randn(12, 3, generator=generator), torch.arange(12) % 2
    order = herding(features, labels)
    assert sorted(order.tolist()) == list(range(12))
    unit = F.normalize(features.double(), dim=-1)
    for label in (0, 1):
        own = [i for i in order.tolist() if labels[i] == label]
        mean = unit[labels == label].mean(0)
        for count in range(6):
            # of those left, the one whose mean with those taken is nearest, up to the equal length of all
            def gain(i: int, taken: list[int] = own[:count], mean: Tensor = mean) -> float:
                pull = (len(taken) + 1) * mean - unit[taken].sum(0)
                return float(unit[i] @ pull)

            left = own[count:]
            assert gain(own[count]) >= max(map(gain, left)) - 1e-12


# -- choices ----------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.floats(0.001, 1), st.integers(0, 2**40), st.booleans())
def test_choices_are_nested_exact_and_the_seed_s(
    samples: int, fraction: float, seed: int, scored: bool
) -> None:
    scores = (torch.arange(samples) % 7).float()  # many are equal
    order = ranked(scores, seed) if scored else random_order(samples, seed)
    again = ranked(scores, seed) if scored else random_order(samples, seed)
    assert torch.equal(order, again)
    assert sorted(order.tolist()) == list(range(samples))
    if fraction * samples < 0.5:
        with pytest.raises(UserError, match=r"which keeps none: pass .* or more"):
            kept(order, fraction)
        return
    few, more = kept(order, fraction), kept(order, min(1.0, 1.7 * fraction))
    assert len(few) == kept_count(samples, fraction) == math.floor(fraction * samples + 0.5)
    assert set(few.tolist()) <= set(more.tolist())
    assert (few.diff() > 0).all()
    assert torch.equal(kept(order, 1.0), torch.arange(samples))


def test_other_seeds_choose_others_and_ties_are_not_cut_by_place() -> None:
    assert not torch.equal(random_order(100, 0), random_order(100, 1))
    equal = torch.zeros(100)
    firsts = torch.stack([ranked(equal, seed)[:10].float().mean() for seed in range(40)])
    assert abs(firsts.mean() - 49.5) < 5


def test_the_largest_scores_are_kept_infinite_ones_first() -> None:
    scores = torch.tensor([0.0, 3.0, math.inf, 1.0, 2.0])
    assert ranked(scores, 0).tolist() == [2, 1, 4, 3, 0]
    assert ranked(-scores, 0).tolist() == [0, 3, 4, 1, 2]


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.29, 0.5])
def test_in_turn_keeps_equal_numbers_or_the_shares_of_the_classes(fraction: float) -> None:
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    order = random_order(100, 3)
    counts = labels[kept(in_turn(order, labels), fraction)].bincount(minlength=3)
    rest = counts[counts < torch.tensor([60, 30, 10])]
    assert rest.max() - rest.min() <= 1
    shares = labels[kept(in_turn(order, labels, equal=False), fraction)].bincount(minlength=3)
    assert (shares - fraction * torch.tensor([60, 30, 10])).abs().max() <= 1
    for label in range(3):  # each class in its own order
        own = [i for i in order.tolist() if labels[i] == label]
        assert [i for i in in_turn(order, labels).tolist() if labels[i] == label] == own


def test_the_size_does_not_fall_short_by_rounding() -> None:
    assert kept_count(100, 0.29) == 29  # 0.29 * 100 is 28.999...
    assert kept_count(800, 0.05) == 40


# -- the loss ---------------------------------------------------------------------------------------------------------


def logits() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    z, v = (2 * torch.randn(6, 5, generator=generator, **EXACT) for _ in range(2))
    return z.requires_grad_(), v, torch.arange(6) % 5


@pytest.mark.parametrize("alpha", [0.25, 0.9, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_the_gradient_of_both_terms_is_their_closed_form(alpha: float, temperature: float) -> None:
    z, v, y = logits()
    loss, _ = pruned_kd_loss(z, v, y, alpha, temperature)
    grad = torch.autograd.grad(loss, z)[0]
    taught = alpha * temperature * ((z / temperature).softmax(-1) - (v / temperature).softmax(-1)) / 6
    labels = (1 - alpha) * (z.softmax(-1) - F.one_hot(y, 5)) / 6
    torch.testing.assert_close(grad, taught + labels)


def test_the_loss_at_its_ends_and_beside_them() -> None:
    z, v, y = logits()
    plain = F.cross_entropy(z, y)
    assert pruned_kd_loss(z, None, y, 0.0, 2.0)[0].item() == plain.item()
    taught = 4 * F.kl_div((z / 2).log_softmax(-1), (v / 2).softmax(-1), reduction="batchmean")
    no_labels = torch.full_like(y, -7)  # would be an error if it were looked at
    torch.testing.assert_close(pruned_kd_loss(z, v, no_labels, 1.0, 2.0)[0], taught)
    for alpha in (1e-7, 1 - 1e-7):
        expected = (1 - alpha) * plain + alpha * taught
        torch.testing.assert_close(pruned_kd_loss(z, v, y, alpha, 2.0)[0], expected)


# -- the theory -------------------------------------------------------------------------------------------------------


def problem(seed: int, d: int = 40, n: int = 400) -> tuple[Tensor, Tensor]:
    """X [d, n] with a spectrum that falls as 1 / sqrt(k), and w* of length 1."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.arange(1, d + 1, **EXACT).pow(-0.25)[:, None] * torch.randn(d, n, generator=generator, **EXACT)
    truth = torch.randn(d, generator=generator, **EXACT)
    return x, truth / truth.norm()


@pytest.mark.parametrize("noise", [0.5, 1.0])
@pytest.mark.parametrize("fraction", [0.1, 0.25])
def test_the_ridge_student_s_error_falls_with_its_teacher_s_data(fraction: float, noise: float) -> None:
    """The specification's check: d = 40, n = 400, lambda = 5, alpha = .8."""
    seen = [s for s in (40, 100, 220, 400) if s >= fraction * 400]
    errors = torch.tensor(
        [
            [expected_error(*problem(seed), noise, int(fraction * 400), s, 0.8, 5.0) for s in seen]
            for seed in range(8)
        ]
    )
    assert (errors.mean(0).diff() < 0).all()
    assert (errors[:, 0] > 1.2 * errors[:, -1]).all()
    plain = torch.stack([expected_error(*problem(seed), noise, 40, 400, 0.0, 5.0) for seed in range(8)])
    taught = torch.stack([expected_error(*problem(seed), noise, 40, 400, 0.8, 5.0) for seed in range(8)])
    assert (taught < plain).all()


def test_the_expected_error_is_the_mean_over_noise() -> None:
    (x, truth), kept_, seen, alpha = problem(0, d=8, n=60), 12, 40, 0.7
    generator = torch.Generator().manual_seed(5)
    errors = []
    for _ in range(1000):
        y = x.T @ truth + 0.6 * torch.randn(60, generator=generator, **EXACT)
        teacher = ridge(x[:, :seen], y[:seen], 2.0)
        student = distilled_ridge(x[:, :kept_], y[:kept_], teacher, alpha, 2.0)
        torch.testing.assert_close(student_map(x, kept_, seen, alpha, 2.0) @ y[:seen], student)
        errors.append((student - truth).square().sum())
    found = torch.stack(errors)
    expected = expected_error(x, truth, 0.6, kept_, seen, alpha, 2.0)
    assert abs(found.mean() - expected) < 4 * found.std() / math.sqrt(len(found))


def test_ridge_at_its_limits() -> None:
    x, truth = problem(1, d=8, n=60)
    y = x.T @ truth
    args = {"noise": 0.5, "kept": 20, "alpha": 0.0, "penalty": 2.0}
    alone = [expected_error(x, truth, seen=seen, **args) for seen in (20, 60)]
    torch.testing.assert_close(alone[0], alone[1])  # without a teacher its data do not matter
    teacher = ridge(x, y, 2.0)
    torch.testing.assert_close(distilled_ridge(x, y, teacher, 0.0, 2.0), teacher)
    # as many samples as dimensions or more, hardly a penalty, no labels: the student is its teacher
    torch.testing.assert_close(distilled_ridge(x[:, :20], y[:20], teacher, 1.0, 1e-12), teacher)
    with pytest.raises(ValueError, match="30 of 20 of 60 samples"):
        student_map(x, 30, 20, 0.5, 1.0)


# -- runs -------------------------------------------------------------------------------------------------------------


def test_all_samples_without_a_teacher_is_plain_training_to_the_bit() -> None:
    plain, _ = fitted(Plain(), tiny(), seed=4)
    for method in (DataPruningKD(fraction=1.0, alpha=0.0), KeptAlone(fraction=1.0)):
        mine, _ = fitted(method, tiny(), seed=4)
        assert same(weights_of(plain.product), weights_of(mine.product))


def test_all_samples_with_a_teacher_is_distillation_to_the_bit() -> None:
    theirs, _ = fitted(KD(alpha=0.9, temperature=2.0), tiny())
    mine, _ = fitted(DataPruningKD(fraction=1.0, alpha=0.9), tiny())
    assert same(weights_of(theirs.product), weights_of(mine.product))


@pytest.mark.parametrize("rule", list(RUNS))
def test_every_rule_keeps_so_many_nested_and_the_same_again(rule: Any) -> None:
    small = {"score_epochs": 1, "score_runs": min(1, RUNS[rule][0])}
    lists = []
    for fraction in (0.1, 0.1, 0.5):
        method, task = DataPruningKD(rule, fraction, alpha=0.0, **small), tiny()
        result, _ = fitted(method, task, steps=2)
        assert method.kept is not None
        lists.append(method.kept.tolist())
        assert task.recall(result.product, "kept").ids == lists[-1]
    assert [len(ids) for ids in lists] == [12, 12, 60]
    assert lists[0] == lists[1]
    assert set(lists[0]) < set(lists[2])
    other = DataPruningKD(rule, 0.1, alpha=0.0, **small)
    fitted(other, tiny(), seed=1, steps=2)
    assert other.kept.tolist() != lists[0]


def test_with_wrong_labels_the_hard_end_holds_them_and_the_easy_end_does_not() -> None:
    task = PrunedClassification(label_noise=0.15, train_samples=400)
    truth = task.but(label_noise=0.0).train().labels
    wrong = task.train().labels != truth
    shares = {}
    for end in ("hard", "easy"):
        method = DataPruningKD("el2n", 0.1, end=end, alpha=0.0, score_runs=1)
        fitted(method, task, epochs=1)
        shares[end] = wrong[method.kept].float().mean().item()
        assert method.scores is not None
    assert shares["hard"] > 0.6
    assert shares["easy"] == 0.0


def test_scores_come_from_networks_trained_on_all_data_and_are_charged() -> None:
    task = tiny()
    sizes: list[int] = []

    class Counting(Fitter):
        def __call__(self, method: Method, stage: str = "", **changes: Any) -> Any:
            sizes.append(len(method.source(task)))
            return super().__call__(method, stage, **changes)

    teach(task, Engine(epochs=2), None, Watcher)
    method = DataPruningKD("el2n", 0.1, alpha=0.5, score_runs=2, score_epochs=1)
    result = method.run(task, Counting(Engine(epochs=2, evaluate_every=0), task, 0))
    assert sizes == [120, 120, 12]
    assert 0 < result.extra["seconds for scores"] < result.seconds


@pytest.mark.parametrize(("budget", "steps"), [("steps", 9), ("epochs", 3)])
def test_the_budget_is_that_of_all_data_or_of_as_many_epochs(budget: Any, steps: int) -> None:
    result, _ = fitted(DataPruningKD(fraction=0.1, alpha=0.5, budget=budget), tiny())
    assert result.steps == steps  # 120 samples, batches of 50, 3 epochs
    result, _ = fitted(DataPruningKD(fraction=0.1, alpha=0.5, budget=budget), tiny(), steps=30)
    assert result.steps == {"steps": 30, "epochs": 10}[budget]


def test_auto_takes_the_best_on_validation_and_ends_as_that_weight_does() -> None:
    task = tiny(label_noise=0.15)
    auto = DataPruningKD(fraction=0.2, alphas=(0.0, 0.5, 1.0))
    result, fitter = fitted(auto, task, epochs=30)
    assert fitter.stages == 3
    tried = {a: result.extra[f"validation, alpha {a:g}"] for a in auto.alphas}
    chosen = result.extra["alpha"]
    assert tried[chosen] == max(tried.values())
    assert len(set(tried.values())) > 1
    fixed, _ = fitted(DataPruningKD(fraction=0.2, alpha=chosen), task, epochs=30)
    assert same(weights_of(result.product), weights_of(fixed.product))
    assert task.recall(result.product, "kept").alpha == chosen
    assert task.score(result.product, "test", Runtime())["alpha"] == chosen


def test_the_baseline_is_trained_on_the_very_samples_without_a_teacher() -> None:
    method = DataPruningKD("el2n", 0.2, balanced=True, alpha=1.0, score_runs=1, score_epochs=1)
    plain = method.baseline(tiny())
    assert isinstance(plain, KeptAlone)
    assert not plain.uses_teacher
    assert plain.baseline(tiny()) is None
    fitted(method, tiny(), steps=2)
    fitted(plain, tiny(), steps=2)
    assert torch.equal(method.kept, plain.kept)
    assert plain.role == "the same student trained on the kept samples without a teacher"


class Crash(Watcher):
    def __init__(self, at: int) -> None:
        self.left = at

    def stepped(self, step: int, row: Any) -> None:
        self.left -= 1
        if not self.left:
            raise ConnectionAbortedError


@pytest.mark.parametrize("at", [5, 11, 17])
def test_killed_in_any_stage_it_goes_on_with_the_same_bits(at: int, tmp_path: Path) -> None:
    """9 steps for the scores of forgetting, 9 for each of two weights, 9 for the student."""
    task, engine = tiny(), Engine(epochs=3, evaluate_every=0, checkpoint_every=2)
    teach(task, engine, None, Watcher)
    method = DataPruningKD("forgetting", 0.3, alphas=(0.5, 1.0))
    whole = method.variant().run(task, Fitter(engine, task, 0, tmp_path / "whole"))
    watcher = Crash(at)
    with pytest.raises(ConnectionAbortedError):
        method.variant().run(task, Fitter(engine, task, 0, tmp_path / "broken", lambda name: watcher))
    again = method.variant().run(task, Fitter(engine, task, 0, tmp_path / "broken"))
    assert task.recall(whole.product, "kept") == task.recall(again.product, "kept")
    assert same(weights_of(whole.product), weights_of(again.product))


def test_accumulation_does_not_change_what_is_forgotten() -> None:
    found = []
    for parts in (1, 3):
        task = tiny(label_noise=0.3)
        fitter = Fitter(Engine(epochs=20, accumulate=parts, evaluate_every=0), task, 0)
        found.append(order_of("forgetting", True, 1, 0, task, fitter)[1])
    assert torch.equal(found[0], found[1])
    assert found[0][found[0].isfinite()].sum() > 10


# -- the problem ------------------------------------------------------------------------------------------------------


def test_teacher_and_student_share_their_wrong_labels_and_validation_has_none() -> None:
    task = PrunedClassification(label_noise=0.15).paired(3)
    right = PrunedClassification()
    wrong = task.train().labels != right.train().labels
    assert 90 < int(wrong.sum()) < 150  # of 800, each with a chance of 15 %
    assert len(task.train()) == 800
    job = task.teacher_job(Engine())
    assert torch.equal(job.task.train().labels, task.train().labels)
    assert torch.equal(task.images.validation.labels, right.images.validation.labels)
    assert torch.equal(task.images.test.labels, right.images.test.labels)
    assert job.key["data"] != right.teacher_job(Engine()).key["data"]
    other = PrunedClassification(label_noise=0.15).paired(4)
    assert not torch.equal(other.train().labels, task.train().labels)
    x, y = task.train().subset(torch.tensor([5, 3])).fetch(torch.tensor([1]), None)
    assert torch.equal(x, right.train().fetch(torch.tensor([3]), None)[0])
    assert y.item() == task.train().labels[3].item()


def pictures() -> tuple[Tensor, Tensor]:
    """A hundred images of three classes, told apart by their brightness."""
    y = torch.arange(100) % 3
    x = 80 * y[:, None, None, None] + torch.randint(
        0, 60, (100, 1, 4, 4), generator=torch.Generator().manual_seed(0)
    )
    return x.to(torch.uint8), y


def test_a_user_s_networks_and_data_and_the_list_that_is_left(tmp_path: Path) -> None:
    x, y = pictures()
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    student = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    made, run = stillroom.distill(
        teacher, student, (x, y), "data-pruning-kd", rule="grand", fraction=0.2, alphas=(0.5, 1.0), score_runs=1,
        epochs=3, seed=5, out=tmp_path / "r",
    )  # fmt: skip
    assert isinstance(made, nn.Sequential)
    found = json.loads((run.path / "student" / "indices.json").read_text())
    assert (found["rule"], found["fraction"], found["seed"], found["samples"]) == ("grand", 0.2, 5, 70)
    assert found["alpha"] in (0.5, 1.0)
    assert len(found["ids"]) == len(found["rows"]) == 14
    # the rows are those of the data that came in: the same images, whatever was cut off for the other splits
    train = PrunedClassification().using(data=(x, y)).images.train
    assert torch.equal(y[found["rows"]], train.labels[found["ids"]])
    images, _ = train.fetch(torch.tensor(found["ids"]), None)
    pixels = x[found["rows"]].float()
    assert torch.corrcoef(torch.stack([images.flatten(), pixels.flatten()]))[0, 1] > 0.9999
    again = json.loads((run.path / "config.json").read_text())["options"]
    assert again["rule"] == "grand"
    page = (run.path / "report.html").read_text()
    for title in (
        "What was kept, by class",
        "Scores of the rule grand",
        "Accuracy against the kept fraction",
    ):
        assert title in page
    assert "the same student trained on the kept samples without a teacher" in str(run.result["verdict"])
    assert (
        max(row["step"] for row in run.metrics()) == 6
    )  # of 70 samples; its stages' rows are not among them


def test_the_command_line_takes_a_weight_or_auto(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = [
        "run",
        "data-pruning-kd",
        "--engine.epochs",
        "1",
        "--task.teacher-epochs",
        "1",
        "--method.fraction",
        "0.05",
    ]
    assert main([*run, "--method.alpha", "0.7", "--out", str(tmp_path / "a")]) == 0
    assert json.loads((tmp_path / "a" / "student" / "indices.json").read_text())["alpha"] == 0.7
    assert main([*run, "--method.rule", "magic", "--out", str(tmp_path / "b")]) == 2
    assert "magic" in capsys.readouterr().err


# -- what cannot work -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"fraction": 0.0}, r"--method.fraction is 0.0: pass a number from 0 \(itself excluded\) to 1"),
        ({"fraction": 1.01}, r"--method.fraction is 1.01: pass a number from 0 \(itself excluded\) to 1"),
        ({"alpha": 1.5}, "--method.alpha is 1.5: pass a number from 0 to 1"),
        ({"alpha": "best"}, "--method.alpha is 'best': pass auto or a number from 0 to 1"),
        ({"alphas": (0.5, -1.0)}, "--method.alphas is -1.0: pass a number from 0 to 1"),
        ({"alphas": ()}, "--method.alphas is empty: pass at least one weight"),
        ({"temperature": 0.0}, "--method.temperature is 0.0: pass a number above 0"),
        ({"rule": "best"}, "--method.rule is 'best': pass one of random, el2n"),
        ({"end": "easy"}, "--method.rule random has no scores: drop --method.end easy"),
        ({"score_runs": -1}, "--method.score-runs is -1: pass 0 or more"),
    ],
)
def test_options_out_of_range_are_one_line(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=f"^{says}"):
        DataPruningKD(**options).check()


def test_a_fraction_that_leaves_nothing_or_too_little_for_the_classes() -> None:
    with pytest.raises(
        UserError, match="--method.fraction is 0.001 of 120 samples, which keeps none: pass 0.0083 or"
    ):
        DataPruningKD(fraction=0.001, alpha=0.0).bind(tiny(), 0)
    with pytest.raises(UserError, match="0.05 of 120 samples, 6 for 10 classes: pass 0.083 or more, or drop"):
        DataPruningKD(fraction=0.05, balanced=True).bind(tiny(), 0)
    DataPruningKD(fraction=0.05).bind(tiny(), 0)


def test_data_without_labels_and_a_network_without_a_last_layer() -> None:
    x, _ = pictures()
    with pytest.raises(UserError, match="has no labels: pass --task.label-column"):
        PrunedClassification().using(data=(x, None)).check(0, teacher=False)

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

        def forward(self, x: Tensor) -> Tensor:
            return 2 * self.body(x)

    odd = tiny().using(student=Odd())
    with pytest.raises(UserError, match="the logits of Odd are no linear layer's"):
        DataPruningKD("herding", 0.5).bind(odd, 0)
    DataPruningKD("el2n", 0.5).bind(odd, 0)


def test_the_share_of_wrong_labels_is_below_one() -> None:
    with pytest.raises(
        UserError, match=r"--task.label-noise is 1.0: pass a number from 0 to 1 \(itself excluded\)"
    ):
        PrunedClassification(label_noise=1.0).check(0, teacher=False)


# -- claims -----------------------------------------------------------------------------------------------------------


def test_a_teacher_of_its_own_sees_the_student_s_samples_and_more() -> None:
    task = tiny()
    seen: list[tuple[str, Tensor]] = []

    class Watching(Fitter):
        def __call__(self, method: Method, stage: str = "", **changes: Any) -> Any:
            seen.append((stage, method.ids if stage else method.kept))
            return super().__call__(method, stage, **changes)

    method = OwnTeacher(fraction=0.1, network="mlp:16", teacher_fraction=0.5)
    method.run(task, Watching(Engine(epochs=2, evaluate_every=0), task, 0))
    assert [(name, len(ids)) for name, ids in seen] == [("teacher", 60), ("", 12)]
    assert set(seen[1][1].tolist()) < set(seen[0][1].tolist())
    assert method.teacher.module[1].out_features == 16
    with pytest.raises(UserError, match="--method.teacher-fraction is 0.05: pass a number from 0.1 to 1"):
        OwnTeacher(fraction=0.1, teacher_fraction=0.05).check()
    with pytest.raises(UserError, match="this teacher is trained once: pass a number"):
        OwnTeacher(alpha="auto").check()


def test_the_sweep_s_arms_and_its_figure() -> None:
    arms = sweep(("random", "el2n"), (0.05, 1.0), (0.0, "auto"), alphas=(0.5,))
    assert list(arms)[:3] == ["random 5% alone", "random 5% taught", "random 100% alone"]
    assert isinstance(arms["el2n 5% alone"], KeptAlone)
    assert arms[named("el2n", 1.0, "auto")].alphas == (0.5,)
    entry = {
        "arms": {
            name: {
                "options": {"rule": m.rule, "fraction": m.fraction, "alpha": m.alpha},
                "scores": [0.5, 0.6],
            }
            for name, m in arms.items()
        }
    }
    rows = table(entry)
    assert len(rows) == 8
    assert rows[0] == {"rule": "random", "fraction": 0.05, "alpha": 0.0, "scores": [0.5, 0.6]}
    figure = sweep_figure(entry)
    assert checked(figure["svg"], figure["title"])
    for label in ("random, alone", "random, taught", "el2n, alone", "el2n, taught"):
        assert label in figure["svg"]
    assert "worst seed" in figure["caption"]
    of_one = {"arms": {name: arm for name, arm in entry["arms"].items() if name.startswith("random")}}
    of_one["arms"]["random, fixed"] = {
        "options": {"rule": "random", "fraction": 0.05, "alpha": 0.5},
        "scores": [0.5],
    }
    (figure,) = drawn(of_one)
    for label in ("random, alone", "random, alpha 0.5", "random, alpha chosen"):
        assert label in figure["svg"]


def test_the_figures_say_what_is_lost_and_what_has_no_score() -> None:
    labels, mask = torch.tensor([0, 0, 1, 2]), torch.tensor([True, False, True, False])
    figure = pruning_figures.kept_by_class(labels, mask, ["ape", "bee", "cat"])
    assert "No sample of 1 class is kept." in figure["caption"]
    assert "of the 4 samples and of the 2 kept" in figure["caption"]
    figure = pruning_figures.scores(torch.tensor([0.0, 1.0, math.inf, math.inf]), mask, "forgetting")
    assert "2 samples were never learned" in figure["caption"]
    assert checked(figure["svg"], figure["title"])
    figure = pruning_figures.weight({0.0: 0.5, 0.5: 0.75}, 0.5, "accuracy")
    assert "chosen: 0.5" in figure["svg"]
    source = PrunedClassification().train()
    few = pruning_figures.kept_figures(source, torch.arange(9), torch.rand(800), "el2n", None)
    assert len(few) == 3
    assert len(pruning_figures.kept_figures(source, torch.arange(9), None, "random", None)) == 1


def test_the_main_claim_has_every_cell_and_one_alpha_for_none() -> None:
    claim = helps()
    assert {(m.rule, m.fraction) for m in claim.arms.values()} == {
        (rule, f) for rule in ("random", "el2n", "forgetting") for f in (0.05, 0.25, 0.5)
    } | {("random", 1.0)}
    headline = [rule for rule in claim.rules if rule.headline]
    assert len(headline) == 9
    assert all(
        claim.arms[rule.better].alpha == "auto" and claim.arms[rule.worse].alpha == 0 for rule in headline
    )
    assert claim.task.label_noise == 0.15
    fractions = sorted({m.fraction for m in claim.arms.values()})
    assert all(a < b for a, b in pairwise(fractions))


def test_it_works_on_a_task_that_knows_nothing_of_it() -> None:
    task = Classification(student_samples=100, train_samples=120, teacher_epochs=1)
    result, _ = fitted(DataPruningKD(fraction=0.3, alpha=1.0), task, epochs=1)
    assert len(task.recall(result.product, "kept").ids) == 30

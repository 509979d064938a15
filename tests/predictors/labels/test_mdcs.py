"""MDCS: the specification's identities, the numbers of the authors' code, and runs on users' own networks."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stillroom import Run, distill
from stillroom.engine import Engine
from stillroom.errors import UserError
from stillroom.method import Clock
from stillroom.predictors.baselines import Plain
from stillroom.predictors.classification import Classification
from stillroom.predictors.labels.mdcs import (
    MDCS,
    LogitAdjustment,
    LongTailed,
    RepeatedMDCS,
    adjustment,
    confident,
    consistency_loss,
    divergences,
    diversity_loss,
    expert_divergence,
    prediction_variance,
)
from stillroom.predictors.parts.branches import Branched, Cosine
from stillroom.predictors.text_classification import TextClassification
from stillroom.runtime import Runtime
from stillroom.workflow import Job, execute
from toys import batch_of, updates_of

REFERENCE = json.loads((Path(__file__).parent / "reference_mdcs.json").read_text())
CLOSE = {"rtol": 1e-6, "atol": 1e-6}
"""The published code has its class counts in float32, the rest in float64."""
PUBLISHED = (-0.5, 1.0, 2.5)


def tensors(n: int, classes: int) -> tuple[Tensor, Tensor]:
    """Logits [2 n, 3, C] of weak and strong views, and labels [n], of the reference: float64."""
    sizes = (2, n, 3, classes)
    v, b, k, i = torch.meshgrid(*(torch.arange(size, dtype=torch.float64) for size in sizes), indexing="ij")
    z = 3 * (1.3 * b + 0.7 * i + 0.5 * k + 0.4 * v + 0.2).sin() + 0.3 * v * (2.1 * i + b).cos()
    y = z[0].mean(1).argmax(-1)
    y[::3] = (y[::3] + 1) % classes
    return z.reshape(2 * n, 3, classes), y


class Given(nn.Module):
    """A student of three experts that answers with the logits it was given."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits.detach().clone())

    def forward(self, x: Tensor, apart: bool = False) -> Tensor:
        assert apart
        return self.logits


def update_of(z: Tensor, y: Tensor, counts: list[int], epoch: int = 20, **options: Any) -> tuple[Any, Tensor]:
    """What MDCS yields where its student answers `z`, in an epoch of 400, counted from 1; and the logits."""
    method = MDCS(**options)
    method.student, method.adjustment = Given(z), adjustment(torch.tensor(counts), method.exponents)
    batch = batch_of(torch.zeros(len(y), 2, 1, 2, 2), y)
    batch.clock = Clock(0, 100, epoch - 1, 400)
    (update,) = updates_of(method, batch)
    return update, method.student.logits


# -- against the authors' code ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(6, 5), (9, 10)])
@pytest.mark.parametrize("epoch", [1, 10, 20, 35])
def test_losses_and_gradients_are_the_published_ones(size: tuple[int, int], epoch: int) -> None:
    n, classes = size
    z, y = tensors(n, classes)
    expected = REFERENCE["losses"][f"n={n},C={classes},epoch={epoch}"]
    counts = REFERENCE["losses"][f"n={n},C={classes}"]["counts"]
    update, logits = update_of(z, y, counts, epoch)
    torch.testing.assert_close(update.loss.item(), expected["loss"], **CLOSE)
    (grad,) = torch.autograd.grad(update.loss, logits)
    if "grad" in expected:
        torch.testing.assert_close(grad, torch.tensor(expected["grad"], dtype=torch.float64), **CLOSE)
    else:
        torch.testing.assert_close(grad.norm().item(), expected["grad_norm"], **CLOSE)


def test_the_cosine_classifier_is_the_published_one() -> None:
    layer = Cosine(4, 3, 30.0)
    weight = torch.tensor([[math.sin(1.1 * i + 0.7 * j) for i in range(4)] for j in range(3)])
    layer.weight.data.copy_(weight)
    x = torch.tensor([[math.cos(0.9 * a + 1.3 * b) for b in range(4)] for a in range(5)], requires_grad=True)
    logits = layer(x)
    at_x, at_weight = torch.autograd.grad(logits.square().sum(), [x, layer.weight])
    expected = {key: torch.tensor(value) for key, value in REFERENCE["cosine"].items()}
    torch.testing.assert_close(logits, expected["logits"])
    torch.testing.assert_close(at_x, expected["grad_x"], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(at_weight, expected["grad_w"].T, rtol=1e-4, atol=1e-3)


# -- the losses ---------------------------------------------------------------------------------------------------


def test_exponents_of_0_and_no_consistency_are_plain_cross_entropy_of_each_expert() -> None:
    z, y = tensors(6, 5)
    update, _ = update_of(z, y, [200, 75, 28, 10, 4], exponents=(0.0, 0.0, 0.0), eta=0.0)
    expected = sum(F.cross_entropy(z[:, k], y.repeat(2)) for k in range(3))
    torch.testing.assert_close(update.loss, expected, **CLOSE)
    off, _ = update_of(z, y, [200, 75, 28, 10, 4], exponents=(0.0, 0.0, 1e-3), eta=0.0)
    assert 1e-5 < (off.loss - expected).abs() < 1e-1


def test_an_exponent_of_1_is_the_balanced_softmax() -> None:
    """The softmax of Ren et al.: n_c exp z_c / sum_i n_i exp z_i; its gradient is that less the one-hot label."""
    z, y = tensors(6, 5)
    z = z[:6, :1].clone().requires_grad_()
    n = torch.tensor([200, 75, 28, 10, 4])
    loss = diversity_loss(z + adjustment(n, (1.0,)), y)
    balanced = n * z[:, 0].exp() / (n * z[:, 0].exp()).sum(-1, keepdim=True)
    torch.testing.assert_close(loss, -balanced.gather(-1, y[:, None]).log().mean(), **CLOSE)
    (grad,) = torch.autograd.grad(loss, z)
    torch.testing.assert_close(grad[:, 0], (balanced - F.one_hot(y, 5)) / 6, **CLOSE)


@pytest.mark.parametrize("scale", [3.0, 0.001])
def test_counts_and_shares_are_the_same(scale: float) -> None:
    """A constant added to log n changes no loss (but for the 1e-9 in the logarithm)."""
    z, y = tensors(6, 5)
    n = torch.tensor([200.0, 75, 28, 10, 4])
    losses = [diversity_loss(z + adjustment(c, PUBLISHED), y.repeat(2)) for c in (n, n * scale)]
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-4)


def test_adjustment_is_a_power_of_the_counts_and_does_not_overflow() -> None:
    n = torch.tensor([5000, 50, 1])
    found = adjustment(n, PUBLISHED)
    expected = torch.tensor(PUBLISHED, dtype=torch.float64)[:, None] * n.double().log()
    torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(adjustment(torch.tensor([10**9]), (-1.0,)).item(), math.log(2e-9))
    assert torch.isfinite(adjustment(torch.tensor([10**9, 1]), (10.0, -10.0))).all()


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_consistency_reaches_the_confident_rows_of_the_strong_view_alone(temperature: float) -> None:
    """Its gradient there is tau (softmax(strong / tau) - softmax(weak / tau)) / |I_k|."""
    z, y = tensors(9, 10)
    n = torch.tensor(REFERENCE["losses"]["n=9,C=10"]["counts"])
    both = (z + adjustment(n, PUBLISHED)).requires_grad_()
    weak, strong = both[:9], both[9:]
    chosen = confident(weak, y)
    assert 0 < chosen.sum() < chosen.numel()
    loss = consistency_loss(weak, strong, chosen, temperature=temperature)
    (grad,) = torch.autograd.grad(loss, both)
    assert (grad[:9] == 0).all()
    apart = (strong / temperature).softmax(-1) - (weak / temperature).softmax(-1)
    expected = temperature * apart * chosen[..., None] / chosen.sum(0)[None, :, None].clamp_min(1)
    torch.testing.assert_close(grad[9:], expected)
    assert (grad[9:][~chosen] == 0).all()


def test_consistency_is_the_mean_over_the_confident_ones_of_each_expert() -> None:
    z, y = tensors(9, 10)
    weak, strong = z[:9], z[9:]
    chosen = confident(weak, y)
    rows = divergences(weak, strong)
    expected = sum(rows[chosen[:, k], k].mean() for k in range(3) if chosen[:, k].any())
    torch.testing.assert_close(consistency_loss(weak, strong, chosen), expected)
    log = weak.log_softmax(-1)
    torch.testing.assert_close(rows, (log.exp() * (log - strong.log_softmax(-1))).sum(-1))
    assert (divergences(weak, weak) < 1e-12).all()


def test_confidence_is_judged_with_the_adjusted_logits() -> None:
    z = torch.zeros(1, 2, 2)
    n = torch.tensor([100, 1])
    adjusted = z + adjustment(n, (-1.0, 1.0))
    assert confident(adjusted, torch.tensor([0])).tolist() == [[False, True]]
    assert confident(adjusted, torch.tensor([1])).tolist() == [[True, False]]


def test_an_all_wrong_batch_has_no_consistency_loss() -> None:
    z, _ = tensors(6, 5)
    z = z.requires_grad_()
    chosen = torch.zeros(6, 3, dtype=torch.bool)
    loss = consistency_loss(z[:6], z[6:], chosen)
    assert loss == 0
    (grad,) = torch.autograd.grad(loss, z)
    assert (grad == 0).all()
    one = chosen.clone()
    one[2, 1] = True
    torch.testing.assert_close(consistency_loss(z[:6], z[6:], one), divergences(z[:6], z[6:])[2, 1])


def test_parts_of_a_step_add_up_to_the_step() -> None:
    z, y = tensors(9, 10)
    weak, strong, chosen = z[:9], z[9:], confident(z[:9], y)
    whole, shares = consistency_loss(weak, strong, chosen), chosen.double().mean(0)
    parts = [
        len(weak[part]) / 9 * consistency_loss(weak[part], strong[part], chosen[part], shares)
        for part in (slice(0, 2), slice(2, 9))
    ]
    torch.testing.assert_close(sum(parts), whole)


def test_without_sampling_all_count_and_eta_weighs() -> None:
    z, y = tensors(6, 5)
    counts = [200, 75, 28, 10, 4]
    every, _ = update_of(z, y, counts, sampling=False, exponents=(0.0, 0.0, 0.0))
    torch.testing.assert_close(
        every.logs["loss/consistency"], divergences(z[:6], z[6:]).mean(0).sum(), **CLOSE
    )
    torch.testing.assert_close(
        every.loss, every.logs["loss/diversity"] + 0.6 * every.logs["loss/consistency"], **CLOSE
    )
    some, _ = update_of(z, y, counts, exponents=(0.0, 0.0, 0.0))
    assert (some.logs["loss/consistency"] - every.logs["loss/consistency"]).abs() > 1e-3


def test_the_weight_rises_over_the_share_of_the_epochs_that_is_the_published_20_of_400() -> None:
    method = MDCS()
    weights = [method.weight(Clock(0, 1, epoch, 400)) for epoch in (0, 9, 19, 20, 399)]
    assert weights == pytest.approx([0.03, 0.3, 0.6, 0.6, 0.6])
    assert MDCS(ramp=0.0).weight(Clock(0, 1, 0, 10)) == 0.6
    assert method.weight(Clock(0, 1, 0, 10)) == 0.6


def test_divergence_of_experts_and_variance_of_models() -> None:
    p, q = torch.tensor([0.7, 0.3]), torch.tensor([0.2, 0.8])
    logits = torch.stack([p.log(), q.log()])[None]
    both = (p * (p / q).log()).sum() + (q * (q / p).log()).sum()
    assert expert_divergence(logits) == pytest.approx(both.item() / 2)
    assert expert_divergence(logits[:, :1]) == 0
    assert expert_divergence(logits[:, [0, 0]]) == pytest.approx(0)
    assert prediction_variance(logits) == pytest.approx(0.125)  # (0.5 / 2)^2 * 2 of each class


# -- the method ---------------------------------------------------------------------------------------------------

SMALL = {"imbalance": 3.0, "largest": 18, "many_above": 14, "few_below": 8, "train_samples": 200}
SHORT = Engine(epochs=2, batch_size=64, evaluate_every=0)


def bound(**options: Any) -> tuple[MDCS, LongTailed]:
    task = LongTailed(**SMALL, student="resnet:4-8-8")
    method = MDCS(**options)
    method.bind(task, 0)
    return method, task


def test_both_views_share_the_statistics_of_one_forward_pass() -> None:
    method, task = bound()
    x, y = method.source(task).fetch(torch.arange(8), 3)
    assert y is not None
    seen: list[Tensor] = []
    stem = method.student.branches[0].conv
    handle = stem.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    updates_of(method, batch_of(x, y))
    handle.remove()
    assert len(seen) == 1  # once for both views and all three experts
    torch.testing.assert_close(seen[0], torch.cat([x[:, 0], x[:, 1]]))


def test_the_first_view_teaches_and_is_the_weak_one() -> None:
    method, task = bound()
    x, _ = method.source(task).fetch(torch.arange(60), 5)
    plain, _ = task.train().fetch(torch.arange(60), None)
    away = [(x[:, which] - plain).square().mean().item() for which in (0, 1)]
    assert 0 < away[0] < away[1]


def test_the_product_answers_with_the_mean_of_logits_that_are_not_adjusted() -> None:
    method, task = bound()
    product = method.product().eval()
    x, _ = task.train().fetch(torch.arange(5), None)
    with torch.no_grad():
        apart = product(x, apart=True)
        torch.testing.assert_close(product(x), apart.mean(1))
        torch.testing.assert_close(method._adjusted(x) - apart, method.adjustment.expand_as(apart))
    assert apart.shape == (5, 3, 10)
    assert apart.abs().max() <= 16


def test_experts_have_three_quarters_of_the_width_and_weights_of_their_own() -> None:
    task = LongTailed(**SMALL, student="resnet:16-32-64")
    method = MDCS()
    method.bind(task, 0)
    widths = [[b.fc.in_features, b.stage2[0].conv1.out_channels] for b in method.student.branches]
    assert widths == [[48, 24]] * 3  # the published ResNet-32's
    kernels = [b.stage2[0].conv1.weight for b in method.student.branches]
    assert not torch.equal(kernels[0], kernels[1])
    torch.testing.assert_close(method.student.branches[0].conv.weight, task.make_student(0).conv.weight)
    LogitAdjustment().bind(task, 0)


def test_a_run_is_reloaded_and_says_each_experts_accuracy(tmp_path: Path) -> None:
    task = LongTailed(**SMALL, student="resnet:4-8-8", class_order="shuffled")
    run, product = execute(Job(MDCS(), task, SHORT, 0), tmp_path / "run")
    x, _ = task.images.test.fetch(torch.arange(20), None)
    loaded = run.student()
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), product.eval()(x))
    assert isinstance(loaded, Branched)
    test = run.result["arms"]["mdcs"]["test"]
    names = {f"expert_{k}_{g}_accuracy" for k in (1, 2, 3) for g in ("balanced", "many", "medium", "few")}
    assert names | {"many_specialisation", "few_specialisation", "expert_divergence"} <= set(test)
    assert test["few_specialisation"] == pytest.approx(
        test["expert_3_few_accuracy"] - test["expert_1_few_accuracy"]
    )
    assert run.result["arms"]["logit-adjustment"]["test"]["expert_divergence"] == 0
    titles = [figure["title"] for figure in run.result["figures"]]
    assert titles == ["Accuracy by how common a class is", "Accuracy of each expert of mdcs"]
    page = (run.path / "report.html").read_text()
    assert "classes: many 2, medium 5, few 3." in page
    assert "expert 3" in page


def test_the_score_weighs_classes_alike() -> None:
    """A network that always says the class that half of the test samples have is right in one class of three."""

    class Says(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.one_hot(torch.zeros(len(x), dtype=torch.long), 3).float()

    x = torch.rand(60, 1, 8, 8)
    y = torch.tensor([0] * 30 + [1] * 20 + [2] * 10)
    task = LongTailed().using(data={"train": (x, y), "validation": (x, y), "test": (x, y)})
    found = task.but(many_above=25, few_below=15).score(Says(), "test", Runtime())
    assert found["balanced_accuracy"] == pytest.approx(1 / 3)
    assert found["accuracy"] == pytest.approx(0.5)
    assert sum(found["per_sample"]) / 60 == pytest.approx(1 / 3)
    assert (found["many_accuracy"], found["medium_accuracy"], found["few_accuracy"]) == (1, 0, 0)


def test_validation_and_test_are_left_as_they_are() -> None:
    short, full = LongTailed(), Classification()
    assert sorted(short.counts.tolist(), reverse=True) == [75, 52, 36, 25, 17, 12, 8, 6, 4, 3]
    for split in ("validation", "test"):
        assert len(getattr(short.images, split)) == len(getattr(full.images, split))
    shuffled = [LongTailed(class_order="shuffled").paired(seed).counts.tolist() for seed in (0, 1)]
    assert shuffled[0] != shuffled[1]
    assert sorted(shuffled[0]) == sorted(short.counts.tolist())


def test_repeated_training_says_the_variance(tmp_path: Path) -> None:
    task = LongTailed(**SMALL, student="cnn:4-8-8")
    run, product = execute(Job(RepeatedMDCS(models=2), task, SHORT, 0), tmp_path / "run")
    x, _ = task.images.test.fetch(torch.arange(900), None)
    with torch.no_grad():
        apart = product.eval()(x, apart=True)
    assert apart.shape[1] == 2
    test = run.result["arms"]["mdcs-repeated"]["test"]
    assert 0 < test["variance"] == pytest.approx(apart.double().softmax(-1).var(1).mean().item(), rel=1e-4)


# -- users' own networks and data ---------------------------------------------------------------------------------


class Own(nn.Module):
    """A network of somebody who does not know Stillroom."""

    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.back = nn.Sequential(nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.ReLU(inplace=True))
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.back(self.front(x)).mean((2, 3)))


def own_data(samples: int = 90) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    y = torch.tensor([0] * 60 + [1] * 20 + [2] * 10)[:samples]
    return torch.rand(samples, 1, 8, 8, generator=generator), y


def test_a_users_own_network_and_unequal_classes(tmp_path: Path) -> None:
    network = Own()
    with pytest.warns(UserWarning, match="Own cannot be made narrower after its stem alone"):
        product, run = distill(
            None, network, own_data(), "mdcs", cut="front", epochs=2, batch_size=32, out=tmp_path / "run"
        )
    counts = run.result["data"]["class counts"]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > 4 * counts[2]  # the user's own, not cut again
    x = own_data()[0]
    loaded = Run(run.path).student(Own())
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), product(x))
    with pytest.raises(UserError, match=r"of a network of your own: pass load\(folder, module=network\)"):
        run.student()


def test_plain_training_on_the_same_task_is_scored_and_reloaded(tmp_path: Path) -> None:
    run, _ = execute(Job(Plain(), LongTailed(**SMALL, student="cnn:4-8"), SHORT, 0), tmp_path / "run")
    assert run.result["arms"]["plain"]["test"]["few_specialisation"] == 0
    assert not isinstance(run.student(), Branched)


# -- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"exponents": ()}, r"--method.exponents is empty"),
        ({"eta": -1.0}, r"--method.eta is -1"),
        ({"ramp": 1.5}, r"--method.ramp is 1.5"),
        ({"temperature": 0.0}, r"--method.temperature is 0"),
        ({"width": 0.0}, r"--method.width is 0"),
        ({"scale": 0.0}, r"--method.scale is 0"),
    ],
)
def test_hyper_parameters_out_of_range(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        MDCS(**options).check()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"imbalance": 0.5}, r"--task.imbalance is 0.5"),
        ({"imbalance": 200.0}, r"--task.imbalance is 200: of 75 samples .* none is left in class '9'"),
        ({"largest": 500}, r"--task.largest is 500: class '0' has 79 training samples and would need 500"),
        ({"largest": 0}, r"--task.largest is 0"),
        ({"few_below": 50, "many_above": 20}, r"--task.many-above is 20"),
        ({"mixup": 0.2}, r"mixed ones have no class"),
        ({"student": "cnn:8"}, r"where to cut CNN is not known"),
    ],
)
def test_problems_that_do_not_fit(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        Job(MDCS(), LongTailed(**options), SHORT, 0).check()


def test_other_data_and_tasks_that_do_not_fit() -> None:
    x, y = own_data()
    whole = {"train": (x, y * 2), "validation": (x, y), "test": (x, y * 2)}
    with pytest.raises(UserError, match="class '1' of data '.*' has no training image"):
        Job(MDCS(), LongTailed(student="cnn:4-4").using(data=whole), SHORT, 0).check()
    with pytest.raises(UserError, match="branches classifiers of images, not a TextClassification: pass"):
        MDCS().bind(TextClassification(), 0)
    own = Classification(teacher="none").using(student=lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    with pytest.raises(UserError, match="cannot keep branches of a network of your own for a Classification"):
        LogitAdjustment().bind(own, 0)
    with pytest.raises(UserError, match="has no labels"):
        Job(MDCS(), LongTailed(student="cnn:4-4").using(data=x), SHORT, 0).check()
    tiny = LongTailed(student="cnn:4-4").using(data=(x[..., :3, :3], y))
    with pytest.raises(UserError, match="3 x 3 pixels, too small to be cropped"):
        Job(MDCS(), tiny, SHORT, 0).check()


def test_a_plain_task_has_its_own_counts_and_keeps_the_branches(tmp_path: Path) -> None:
    """And the product is an architecture like others: a teacher of the next student."""
    task = Classification(teacher="none", student="cnn:4-8-8", train_samples=120, student_samples=100)
    run, product = execute(Job(MDCS(), task, SHORT, 0), tmp_path / "run")
    x = task.images.test.fetch(torch.arange(8), None)[0]
    with torch.no_grad():
        assert torch.equal(run.student()(x), product.eval()(x))
    taught = task.but(teacher="mlp:4", teacher_weights=str(run.path / "student"))
    with torch.no_grad():
        assert torch.equal(taught.make_teacher().module(x), product(x))
    method = MDCS()
    method.bind(task, 0)
    counts = task.train().labels.bincount(minlength=10)
    torch.testing.assert_close(method.adjustment[1], counts.double().log().float())


def test_mirrored_characters_are_warned_of() -> None:
    with pytest.warns(UserWarning, match="a mirrored character of 'digits' has another meaning"):
        MDCS(augmentation="auto").source(LongTailed())

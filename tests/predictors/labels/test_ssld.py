"""SSLD: the loss, what is taken from a pool, the stages, and whole runs."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from stillroom import distill
from stillroom.cli import main
from stillroom.data import TensorSource
from stillroom.engine import Engine, Watcher
from stillroom.errors import UserError
from stillroom.fitter import Fitter
from stillroom.models import build
from stillroom.optim import Recipe
from stillroom.predictors.classification import Classification
from stillroom.predictors.labels.ssld import SSLD, HeadStage, PooledClassification, Stage, agreement_loss
from stillroom.predictors.labels.ssld.made import disturbed, shuffled
from stillroom.predictors.parts.language.divergences import Divergence
from stillroom.predictors.parts.layer_rates import (
    MOBILENET_V3_LARGE,
    RESNET_CLASSIFICATION,
    parameter_groups,
)
from stillroom.predictors.parts.losses import forward_kl, mixture_js, soft_cross_entropy, symmetric_kl
from stillroom.predictors.parts.pool import (
    Union,
    likeness,
    pattern,
    random_choice,
    score_pool,
    top_k_per_class,
)
from stillroom.runtime import Runtime
from stillroom.teacher import Teacher
from stillroom.workflow import Job, execute
from toys import batch_of, same, updates_of, weights_of

SHAPE = (1, 6, 6)
QUICK = Engine(epochs=2, batch_size=20, evaluate_every=0)


def logits(scale: float = 1.0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """A student's and a teacher's logits [4, 6], as in the comparison with the authors' code."""
    i = np.arange(24).reshape(4, 6)
    z, v = scale * np.sin(0.7 * i + 0.3), 1.5 * scale * np.cos(1.1 * i * i * 0.05 + 0.2)
    return torch.tensor(z, dtype=dtype), torch.tensor(v, dtype=dtype)


def blobs(count: int = 60, classes: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images [n, 1, 6, 6] in [0, 1] with a bright band where their class says, and the classes."""
    draw = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % classes
    x = 0.3 * torch.rand(count, *SHAPE, generator=draw)
    for image, label in zip(x, y.tolist(), strict=True):
        image[:, 2 * label : 2 * label + 2] += 0.6
    return x, y


def splits(seed: int = 0) -> dict[str, tuple[Tensor, Tensor]]:
    return {name: blobs(seed=seed + i) for i, name in enumerate(("train", "validation", "test"))}


def problem(**options: Any) -> PooledClassification:
    """The blobs as a task, with a given teacher and a pool of 90 more of them."""
    teacher = build("mlp:8", shape=SHAPE, classes=3, seed=5)
    task = PooledClassification(student="mlp:6", **options)
    return task.using(data=splits(), teacher=teacher, pool=blobs(90, seed=50)[0])


def fitted(method: SSLD, task: PooledClassification, seed: int = 0, **engine: Any) -> dict[str, Tensor]:
    return weights_of(method.run(task, Fitter(replace(QUICK, **engine), task, seed)).product)


# -- the loss ---------------------------------------------------------------------------------------------------


def test_the_spec_s_example_tells_half_jeffreys_from_jensen_shannon() -> None:
    p, q = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.5, 0.5]]).log()
    assert symmetric_kl(q, p).item() == pytest.approx(0.2 * math.log(9), abs=1e-6)
    assert symmetric_kl(q, p).item() == pytest.approx(0.4394, abs=5e-5)
    assert mixture_js(q, p).item() == pytest.approx(0.1017, abs=5e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 12), st.floats(0.1, 8))
def test_it_is_symmetric_positive_and_zero_up_to_a_constant_alone(
    seed: int, classes: int, scale: float
) -> None:
    draw = torch.Generator().manual_seed(seed)
    z, v = (scale * torch.randn(3, classes, generator=draw, dtype=torch.float64) for _ in range(2))
    for loss in (symmetric_kl, mixture_js):
        torch.testing.assert_close(loss(z, v), loss(v, z))
        assert loss(z, v) > 0
        assert loss(z, z + torch.randn(3, 1, generator=draw)).abs() < 1e-12
    assert mixture_js(z, v) < math.log(2)
    # near agreement the two are quadratic, and Jensen-Shannon is a quarter of half Jeffreys
    near = z + 1e-3 * v
    torch.testing.assert_close(
        mixture_js(near, z) / symmetric_kl(near, z), torch.tensor(0.25).double(), rtol=0.05, atol=0
    )


def test_it_is_half_of_both_kl_divergences() -> None:
    z, v = logits(2.0)
    torch.testing.assert_close(symmetric_kl(z, v), (forward_kl(z, v) + forward_kl(v, z)) / 2)
    value, _ = Divergence(0.5, normalised=False)(z, v)
    torch.testing.assert_close(mixture_js(z, v), value.mean())


@pytest.mark.parametrize("far", [0.0, -40.0, -200.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gradient_is_the_closed_form_and_finite(far: float, dtype: torch.dtype) -> None:
    z, v = logits(1.0, dtype)
    v[:, 1] += far
    z.requires_grad_()
    found = torch.autograd.grad(symmetric_kl(z, v), z)[0]
    log_p, log_q = v.log_softmax(-1), z.detach().log_softmax(-1)
    p, q = log_p.exp(), log_q.exp()
    reverse = (q * (log_q - log_p)).sum(-1, keepdim=True)
    wanted = 0.5 * ((q - p) + q * (log_q - log_p - reverse)) / len(z)
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found, wanted)
    if far:  # nothing is clamped: the pull on that class is as large as it is unlikely
        assert found[0].abs().max() > 0.02 * abs(far) * q[0, 1] / 4


def test_losses_and_gradients_are_those_of_the_authors_code() -> None:
    # PaddleClas, ppcls/loss/dmlloss.py, DMLLoss() on paddle 3.3.1, in float64; that code adds 1e-12 to probabilities
    known = {1.0: 0.38352690009851753, 2.0: 1.1757172193506615, 6.0: 4.50210714701426}
    for scale, value in known.items():
        z, v = logits(scale)
        assert symmetric_kl(z, v).item() == pytest.approx(value, rel=1e-7 if scale < 6 else 1e-6)
    z, v = logits(2.0)
    z.requires_grad_()
    slope = torch.autograd.grad(symmetric_kl(z, v), z)[0][0]
    theirs = [
        -0.037699205666193794, -0.003379243260849, 0.033707051045798166,
        0.009765178400749345, -0.0022421408694273132, -0.00015163964985,
    ]  # fmt: skip
    torch.testing.assert_close(slope, torch.tensor(theirs, dtype=torch.float64), rtol=0, atol=1e-9)
    # where a probability is below that 1e-12 the two part: 5.1215 there
    ours = symmetric_kl(torch.tensor([[0.5, 0.0]]), torch.tensor([[0.0, -200.0]])).item()
    q = 1 / (1 + math.exp(0.5))
    assert ours == pytest.approx(0.5 * (-math.log(1 - q) * q + q * (200 + math.log(q))), rel=0.01)
    assert ours > 37


def test_each_loss_is_the_one_that_it_is_called() -> None:
    z, v = logits()
    wanted = {
        "symmetric-kl": symmetric_kl(z, v),
        "kl": forward_kl(z, v),
        "ce": soft_cross_entropy(z, v.softmax(-1)),
        "js-mixture": mixture_js(z, v),
    }
    assert len({round(value.item(), 6) for value in wanted.values()}) == 4
    for name, value in wanted.items():
        torch.testing.assert_close(agreement_loss(z, v, name), value)  # type: ignore[arg-type]
    torch.testing.assert_close(agreement_loss(z, v), wanted["symmetric-kl"])
    # plain KL and soft cross-entropy differ by the teacher's entropy alone
    slopes = []
    for name in ("kl", "ce"):
        z.requires_grad_()
        slopes.append(torch.autograd.grad(agreement_loss(z, v, name), z)[0])  # type: ignore[arg-type]
    torch.testing.assert_close(*slopes)


# -- the pool ---------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 60), st.integers(1, 6), st.integers(1, 9))
def test_of_each_class_the_k_best_are_taken_and_nobody_twice(
    seed: int, count: int, classes: int, k: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    scores = torch.randint(7, (count,), generator=draw).double() / 7  # with ties
    labels = torch.randint(classes, (count,), generator=draw)
    among = torch.rand(count, generator=draw) < 0.7
    chosen = top_k_per_class(scores, labels, k, among)
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    wanted: set[int] = set()
    for label in range(classes):
        own = [i for i in range(count) if labels[i] == label and among[i]]
        wanted |= set(sorted(own, key=lambda i: (-float(scores[i]), i))[:k])
    assert set(chosen.tolist()) == wanted


def test_a_class_is_the_argmax_and_its_score_tells_apart_what_float32_calls_certain() -> None:
    network = nn.Flatten()
    x = torch.tensor([[30.0, 0, 0], [40.0, 0, 0], [0, 1, 2], [0, 0, 0]]).view(4, 3, 1, 1)
    scores, classes = score_pool(Teacher(network), TensorSource(x), Runtime())
    assert classes.tolist() == [0, 0, 2, 0]
    assert scores[3].item() == pytest.approx(1 / 3)
    assert scores[2].item() == pytest.approx(math.exp(2) / (1 + math.e + math.exp(2)))
    assert scores[1] > scores[0]
    assert scores[1].float() == scores[0].float()


def test_a_random_choice_is_of_those_allowed_and_of_the_seed() -> None:
    among = torch.arange(50) % 2 == 0
    first = random_choice(10, among, 3)
    assert len(first.unique()) == 10
    assert among[first].all()
    assert torch.equal(first, random_choice(10, among, 3))
    assert not torch.equal(first, random_choice(10, among, 4))
    assert len(random_choice(99, among, 3)) == 25


def test_the_likeness_is_the_correlation_with_the_nearest() -> None:
    one, other = blobs(30)[0], blobs(40, seed=1)[0]
    found = likeness(TensorSource(one), [TensorSource(other[:15]), TensorSource(other[15:])], Runtime())
    both = np.corrcoef(one.flatten(1).numpy(), other.flatten(1).numpy())[:30, 30:]
    torch.testing.assert_close(found, torch.tensor(both.max(1)), rtol=0, atol=1e-5, check_dtype=False)


def test_copies_are_found_whatever_their_brightness_size_and_coding_and_others_are_not() -> None:
    draw = torch.Generator().manual_seed(0)
    large = torch.nn.functional.interpolate(
        torch.rand(20, 3, 12, 12, generator=draw), size=64, mode="bicubic"
    ).clamp(0, 1)
    halved = torch.nn.functional.interpolate(large, size=40, mode="area")
    faint = 0.2 + 0.5 * large + 0.02 * torch.randn(large.shape, generator=draw)
    for copies in (large, halved, faint):
        assert likeness(TensorSource(copies), [TensorSource(large)], Runtime()).min() > 0.99
    assert likeness(TensorSource(large[:10]), [TensorSource(large[10:])], Runtime()).max() < 0.9
    assert likeness(TensorSource(torch.ones(2, 3, 64, 64)), [TensorSource(large)], Runtime()).abs().max() == 0
    assert pattern(large, (32, 32)).shape == (20, 1024)


def test_a_union_is_its_parts_in_order_without_labels() -> None:
    x, y = blobs(10)
    union = Union(TensorSource(x[:4], y[:4]), TensorSource(x[4:]))
    ids = torch.tensor([7, 0, 3, 4, 9, 0])
    got, labels = union.fetch(ids, None)
    assert torch.equal(got, x[ids])
    assert labels is None and union.labels is None and union.fixed and len(union) == 10
    assert torch.equal(union.subset(ids).fetch(torch.tensor([5, 0]), None)[0], x[[0, 7]])
    moving = Union(TensorSource(x[:4]), TensorSource(x[4:], augment=lambda image: image + torch.rand(())))
    assert not moving.fixed
    assert torch.equal(moving.fetch(ids, 3)[0][1:3], x[ids[1:3]])
    assert torch.equal(moving.fetch(ids, 3)[0], moving.fetch(ids, 3)[0])


def test_junk_is_the_same_pixels_elsewhere_and_a_copy_is_near() -> None:
    x = blobs(12)[0].repeat(1, 1, 2, 2)
    draw = torch.Generator().manual_seed(0)
    junk = shuffled(x, draw)
    assert torch.equal(junk.flatten(1).sort().values, x.flatten(1).sort().values)
    assert not torch.equal(junk, x)
    copies = disturbed(x, draw)
    assert torch.equal(copies[:6], x[::2])
    assert not torch.equal(copies[6:], x[1::2])
    assert likeness(TensorSource(copies), [TensorSource(x)], Runtime()).min() > 0.99


# -- the built-in pool --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits() -> PooledClassification:
    return PooledClassification().using(teacher=build("mlp:16", shape=(1, 8, 8), classes=10, seed=0))


def test_the_digits_pool_is_what_the_student_does_not_see(digits: PooledClassification) -> None:
    pool = digits.unlabelled
    assert [pool.kinds.count(kind) for kind in ("image", "junk", "planted")] == [700, 300, 20]
    seen, rest = digits.train(), pool.source.fetch(torch.arange(700), None)[0]
    x, _ = seen.fetch(torch.arange(len(seen)), None)
    assert len(seen) == 100
    whole = torch.cat([x, rest]).flatten(1)
    train = digits.images.train.fetch(torch.arange(800), None)[0].flatten(1)
    assert torch.equal(whole.unique(dim=0), train.unique(dim=0))
    one, two = (digits.paired(seed).unlabelled for seed in (1, 2))
    assert [one.where(i) for i in range(700)] != [two.where(i) for i in range(700)]


def test_mining_the_digits_drops_every_planted_copy_and_hardly_another_image(
    digits: PooledClassification,
) -> None:
    mined = SSLD(top_k=7)._mine(digits, 0)
    assert mined is not None
    found = mined.numbers()
    others = found["other images removed as near-duplicates"]
    assert others <= 10  # of 700 digits some are nearly like one of the 997 that are scored on
    assert 20 <= found["near-duplicates removed"] - others <= 40
    assert found["planted_kept_out"] == 1
    assert mined.classes[mined.selected].bincount().max() <= 7
    strict = SSLD(top_k=7, duplicate_similarity=0.995)._mine(digits, 0)
    assert strict is not None and strict.numbers()["other images removed as near-duplicates"] == 0
    assert strict.numbers()["planted_kept_out"] == 1
    random = SSLD(top_k=7, selection="random")._mine(digits, 0)
    assert random is not None
    assert len(random.selected) == len(mined.selected)
    assert not random.duplicates[random.selected].any()
    assert not torch.equal(random.selected, mined.selected)


def test_a_pool_of_nothing_but_copies_is_refused() -> None:
    task = problem()
    task = task.using(pool=splits()["test"][0])
    with pytest.raises(
        UserError, match="all 60 images of the pool are near-duplicates of validation or test images"
    ):
        SSLD()._mine(task, 0)


def test_who_saw_the_pool_is_told_how_much_junk_was_kept_out(digits: PooledClassification) -> None:
    task = digits.but(pool_junk=60, pool_planted=4)
    assert "junk_kept_out" not in task.score(task.make_student(0), "test", Runtime())
    engine = Engine(steps=4, batch_size=50, evaluate_every=0)
    product = SSLD(top_k=1000).run(task, Fitter(engine, task, 0)).product
    score = task.score(product, "test", Runtime())
    assert score["junk_kept_out"] < 0.1
    assert score["planted_kept_out"] == 1
    assert "junk_kept_out" not in task.score(product, "validation", Runtime())


def test_the_teacher_learns_what_the_student_sees_and_no_more(digits: PooledClassification) -> None:
    task = PooledClassification(student_samples=50, pool_junk=7).paired(3)
    job = task.teacher_job(Engine(steps=9000))
    assert job is not None
    assert torch.equal(job.task.seen_ids(), task.seen_ids())
    assert job.engine.steps == 0
    same_teacher = task.but(pool_junk=0, pool="elsewhere").teacher_job(Engine(steps=9000))
    assert same_teacher is not None
    assert vars(same_teacher.task)["pool"] == vars(job.task)["pool"] == "rest"


# -- stages -------------------------------------------------------------------------------------------------------


class Noted(Fitter):
    """Writes down what each stage was trained on and how."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.noted: list[tuple[str, int, int, Recipe, Any]] = []

    def __call__(self, method: Any, stage: str = "", **changes: Any) -> Any:
        engine = replace(self.engine, **changes)
        self.noted.append((stage, len(method.source(self.task)), engine.steps, engine.recipe, method))
        return super().__call__(method, stage, **changes)


def test_stage_two_is_on_the_labelled_images_at_a_low_rate_within_the_same_steps() -> None:
    task = problem()
    engine = Engine(steps=40, batch_size=20, evaluate_every=0, recipe=Recipe(lr=0.2, weight_decay=1e-3))
    fit = Noted(engine, task, 0)
    result = SSLD(top_k=10, stage2_share=0.25, stage2_rate=0.05).run(task, fit)
    (first, union, long, high, _), (second, own, short, low, _) = fit.noted
    assert (first, second) == ("pool", "target")
    assert union == 60 + result.extra["images selected"]
    assert own == 60
    assert (long, short) == (30, 10) and result.steps == 40
    assert high.lr == 0.2 and low.lr == pytest.approx(0.01)
    assert high.weight_decay == low.weight_decay == pytest.approx(2.5e-4)
    keys = ["start", "pool", "target"]
    assert all(0 <= result.extra[f"accuracy, {key}, validation"] <= 1 for key in keys)


def test_one_stage_alone_and_no_pool() -> None:
    task = problem()
    fit = Noted(QUICK, task, 0)
    SSLD(selection="none", stage2_share=0.0).run(task, fit)
    assert [(name, count, steps) for name, count, steps, *_ in fit.noted] == [("", 60, 6)]
    near, nearer = (
        fitted(SSLD(selection="none", stage2_share=0.5, stage2_rate=rate), task) for rate in (1e-6, 1e-9)
    )
    assert max((near[k] - nearer[k]).abs().max().item() for k in near) < 1e-5


def test_no_stage_reads_a_label_unless_asked() -> None:
    data = splits()
    x, y = data["train"]
    data["train"] = x, y[torch.randperm(len(y), generator=torch.Generator().manual_seed(1))]
    assert not torch.equal(data["train"][1], y)
    task = problem(normalise="none")
    destroyed = task.using(data=data)
    for method in (SSLD(top_k=5), SSLD(top_k=5, loss="kl", selection="random")):
        assert same(fitted(method, task), fitted(method, destroyed))
    asked = SSLD(top_k=5, stage2_labels=True, stage2_share=0.5)
    assert not same(fitted(asked, task), fitted(asked, destroyed))


def test_a_stage_s_update_is_the_loss_at_the_teacher_s_answer() -> None:
    task = problem()
    x, _ = task.train().fetch(torch.arange(8), None)
    student, teacher = task.make_student(0), task.make_teacher()
    for loss in ("symmetric-kl", "js-mixture"):
        stage = Stage(student, task.train(), loss)  # type: ignore[arg-type]
        stage.bind(task, 0)
        (update,) = updates_of(stage, batch_of(x))
        torch.testing.assert_close(update.loss, agreement_loss(student(x), teacher.answer(x), loss))  # type: ignore[arg-type]
        assert update.items == 8
    stage.start = nn.Identity()
    assert stage.student is not student


def test_the_student_starts_as_that_of_the_plain_arm() -> None:
    task = problem()
    product = SSLD(selection="none", stage2_share=0.0)
    engine = replace(QUICK, recipe=Recipe(lr=1e-12))
    found = weights_of(product.run(task, Fitter(engine, task, 7)).product)
    assert all(torch.allclose(found[k], v) for k, v in weights_of(task.make_student(7)).items())


def test_stage_three_trains_the_last_layer_alone_at_the_size_of_testing() -> None:
    task = replace_networks(problem(test_size=9))
    fit = Noted(QUICK, task, 0)
    product = SSLD(top_k=5, stage2_share=0.2, stage3_share=0.4).run(task, fit).product
    assert [name for name, *_ in fit.noted] == ["pool", "target", "resolution"]
    stage = fit.noted[-1][-1]
    assert isinstance(stage, HeadStage)
    before, after = weights_of(stage.start), weights_of(product)
    moved = {key for key in after if not torch.equal(before[key], after[key])}
    assert moved == {"fc.weight", "fc.bias"}
    assert fit.noted[-1][3].lr == pytest.approx(fit.noted[1][3].lr)
    x, _ = stage.data.fetch(torch.arange(3), None)
    assert x.shape[-2:] == (9, 9)
    assert task.images.test.fetch(torch.arange(3), None)[0].shape[-2:] == (9, 9)
    assert all(p.requires_grad for p in product.parameters())
    # scaled as the student has learnt it
    own = task.seen().fetch(torch.arange(60), None)[0]
    large = stage.data.fetch(torch.arange(60), None)[0]
    assert abs(own.mean() - large.mean()) < 0.05


def test_what_the_user_froze_stays_frozen_in_every_stage() -> None:
    student = nn.Sequential(nn.Flatten(), nn.Linear(36, 5), nn.ReLU(), nn.Linear(5, 3))
    student[1].requires_grad_(False)
    product = (
        SSLD(top_k=5, stage2_share=0.3)
        .run(task := problem().using(student=student), Fitter(QUICK, task, 0))
        .product
    )
    assert torch.equal(product[1].weight, student[1].weight)
    assert not torch.equal(product[3].weight, student[3].weight)
    assert not product[1].weight.requires_grad


def replace_networks(task: PooledClassification) -> PooledClassification:
    """The same problem with networks that take any size and have statistics that could move."""
    teacher = build("resnet:4", shape=SHAPE, classes=3, seed=5)
    return task.but(student="resnet:4").using(teacher=teacher)


# -- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"top_k": 0}, "--method.top-k is 0"),
        ({"duplicate_similarity": 0.0}, "--method.duplicate-similarity is 0.0"),
        ({"duplicate_similarity": 1.01}, "--method.duplicate-similarity is 1.01"),
        ({"stage2_rate": 1.0}, "--method.stage2-rate is 1.0"),
        ({"stage2_share": 1.0}, "--method.stage2-share is 1.0"),
        ({"stage2_share": 0.6, "stage3_share": 0.4}, "leave nothing for stage one"),
        ({"decay_factor": -0.1}, "--method.decay-factor is -0.1"),
    ],
)
def test_options_out_of_range(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        SSLD(**changes).check()


@pytest.mark.parametrize(
    ("task", "method", "says"),
    [
        (problem(mixup=0.2), SSLD(), "mixing needs labels and the pool has none"),
        (problem(), SSLD(stage3_share=0.1), "pass --task.test-size"),
        (problem(pool_junk=5), SSLD(), "are for --task.pool rest"),
        (problem(test_size=9), SSLD(), "student 'mlp:6' fails on data"),
        (problem().using(pool=torch.zeros(0, *SHAPE)), SSLD(), "is empty"),
        (problem().using(pool=torch.zeros(3, 1, 5, 5)), SSLD(), "5 x 5 pixels"),
        (problem().using(scorer=build("mlp:4", shape=SHAPE, classes=5, seed=0)), SSLD(), "gives 5 classes"),
        (PooledClassification(student_samples=800), SSLD(), "the student sees all 800 training images"),
        (PooledClassification(pool="./nowhere"), SSLD(), "data folder './nowhere' does not exist"),
        (PooledClassification(pool_planted=98), SSLD(), "--task.pool-planted is 98"),
        (Classification(), SSLD(), "ssld works on a PooledClassification"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_said_before_training(task: Any, method: SSLD, says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says) as caught:
        execute(Job(method, task, QUICK, 0), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_too_few_steps_for_the_stages() -> None:
    task = problem()
    with pytest.raises(UserError, match="too few for the stages"):
        SSLD(stage2_share=0.1).run(task, Fitter(replace(QUICK, steps=1), task, 0))


# -- whole runs ---------------------------------------------------------------------------------------------------


def test_a_user_s_own_networks_and_pool_from_python(tmp_path: Path) -> None:
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    student = nn.Sequential(nn.Flatten(), nn.Linear(36, 4), nn.ReLU(), nn.Linear(4, 3))
    planted = splits()["test"][0][:5]
    task = PooledClassification().using(pool=torch.cat([blobs(40, seed=9)[0], planted]))
    product, run = distill(
        teacher, student, splits(), "ssld", task=task, out=tmp_path / "run", epochs=2, batch_size=20, top_k=4,
        keep_teacher="disk",
    )  # fmt: skip
    assert isinstance(product, nn.Sequential)
    extra = run.result["arms"]["ssld"]["extra"]
    assert extra["near-duplicates removed"] >= 5
    with open(run.path / "student" / "selected.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == extra["images selected"] <= 12
    assert all(int(row["id"]) < 40 and 1 / 3 <= float(row["score"]) <= 1 for row in rows)
    with open(run.path / "student" / "near-duplicates.csv", newline="") as file:
        removed = [int(row["id"]) for row in csv.DictReader(file)]
    assert set(range(40, 45)) <= set(removed)
    assert (run.path / "stages" / "02-target").is_dir()
    assert {"Stages", "Scores of the pool", "Images of the pool"} <= {
        f["title"] for f in run.result["figures"]
    }


def test_folders_of_images_from_the_command_line(tmp_path: Path) -> None:
    x, y = blobs(120)
    for i, (image, label) in enumerate(zip(x, y.tolist(), strict=True)):
        folder = tmp_path / ("labelled" if i < 90 else "pool") / (f"class{label}" if i < 90 else "any")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((255 * image[0]).byte().clamp(0, 255).numpy()).save(folder / f"{i}.png")
    out = tmp_path / "run"
    code = main(
        ["run", "ssld", "--task.data", str(tmp_path / "labelled"), "--task.pool", str(tmp_path / "pool"),
         "--task.student", "mlp:4", "--task.teacher", "mlp:6", "--task.teacher-epochs", "2", "--engine.epochs", "2",
         "--engine.batch-size", "20", "--method.top-k", "3", "--out", str(out)]
    )  # fmt: skip
    assert code == 0
    with open(out / "student" / "selected.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows
    assert all(Path(row["image"]).is_file() and row["class"].startswith("class") for row in rows)


def test_killed_in_stage_three_and_resumed_ends_with_the_same_bits(tmp_path: Path) -> None:
    task = replace_networks(problem(test_size=9))
    method = SSLD(top_k=5, stage2_share=0.3, stage3_share=0.4)
    engine = replace(QUICK, steps=10, checkpoint_every=1)

    class Crash(Watcher):
        def stepped(self, step: int, row: Any) -> None:
            if step == 2:
                raise ConnectionAbortedError

    def watch(stage: str) -> Watcher:
        return Crash() if stage == "resolution" else Watcher()

    with pytest.raises(ConnectionAbortedError):
        method.run(task, Fitter(engine, task, 0, tmp_path / "a", watch))
    again = weights_of(method.run(task, Fitter(engine, task, 0, tmp_path / "a")).product)
    assert same(again, weights_of(method.run(task, Fitter(engine, task, 0)).product))


# -- for later use ------------------------------------------------------------------------------------------------


def test_layer_rates_give_every_parameter_once_at_its_stage_s_rate() -> None:
    network = nn.ModuleDict(
        {name: nn.Linear(2, 2) for name in ("conv1", "layer1", "layer2", "layer3", "layer4", "fc")}
    )
    groups = parameter_groups(network, "resnet", RESNET_CLASSIFICATION, 0.1)
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(rates) == 12
    for name, by in zip(
        ("conv1", "layer1", "layer2", "layer3", "layer4", "fc"), (*RESNET_CLASSIFICATION, 1.0), strict=True
    ):
        assert rates[id(network[name].weight)] == pytest.approx(0.1 * by)
    torch.optim.SGD(groups, lr=0.1)
    with pytest.raises(UserError, match="no parameter of Linear begins with"):
        parameter_groups(nn.Linear(2, 2), "resnet", RESNET_CLASSIFICATION, 0.1)
    with pytest.raises(UserError, match="pass one >= 0 for each"):
        parameter_groups(network, "resnet", (0.1, 0.1), 0.1)
    with pytest.raises(UserError, match="are not known"):
        parameter_groups(network, "vgg", (0.1,), 0.1)


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_the_fifteen_blocks_of_mobilenet_v3_are_five_groups_of_three(library: str) -> None:
    pytest.importorskip(library)
    if library == "timm":
        import timm

        network = timm.create_model("mobilenetv3_large_100")
        blocks = [block for stage in list(network.blocks)[:6] for block in stage]
        groups = parameter_groups(network, "mobilenet-v3-large", MOBILENET_V3_LARGE, 1.0)
    else:
        from torchvision.models import mobilenet_v3_large

        network = mobilenet_v3_large()
        blocks = list(network.features)[1:16]
        groups = parameter_groups(network, "mobilenet-v3-large, torchvision", MOBILENET_V3_LARGE, 1.0)
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert len(rates) == len(list(network.parameters()))
    for number, block in enumerate(blocks):
        assert {rates[id(p)] for p in block.parameters()} == {MOBILENET_V3_LARGE[number // 3]}
    assert {rates[id(p)] for p in network.classifier.parameters()} == {1.0}

"""FGSM, C&W and defensive distillation: closed forms, another library's numbers, the diagnosis, the defence, runs."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import stillroom
from stillroom import cli
from stillroom.audits.fgsm_cw_defensive_distillation import (
    DefensiveDistillation,
    Pixels,
    Plan,
    Robustness,
    RobustnessAudit,
    Search,
    at_temperature,
    carlini_wagner_l0,
    carlini_wagner_l2,
    carlini_wagner_linf,
    cross_entropy,
    fgsm,
    input_gradient,
    judge,
    lead,
    pgd,
    soft_labels,
)
from stillroom.audits.fgsm_cw_defensive_distillation import diagnosis as seen
from stillroom.audits.fgsm_cw_defensive_distillation.attacks import predict
from stillroom.audits.fgsm_cw_defensive_distillation.carlini_wagner import from_tanh, to_tanh
from stillroom.audits.fgsm_cw_defensive_distillation.distilling import TeacherAtTemperature
from stillroom.errors import UserError
from stillroom.fitter import Fitter
from stillroom.models import build
from stillroom.optim import Recipe
from stillroom.runtime import Runtime
from stillroom.teacher import Teacher
from toys import batch_of, same, updates_of, weights_of


class Binary(nn.Module):
    """Z = (0, s (w x + b))."""

    def __init__(self, w: Tensor, b: float, scale: float = 1.0) -> None:
        super().__init__()
        self.w, self.b, self.scale = nn.Parameter(w), b, scale

    def forward(self, x: Tensor) -> Tensor:
        z = self.gap(x)
        return torch.stack([torch.zeros_like(z), z], 1)

    def gap(self, x: Tensor) -> Tensor:
        return self.scale * (x.flatten(1) @ self.w + self.b)

    def distance(self, x: Tensor) -> Tensor:
        return self.gap(x).detach() / self.scale


class Symmetric(Binary):
    """Z = (-s (w x + b) / 2, s (w x + b) / 2): both logits depend on x, as they do in a network."""

    def forward(self, x: Tensor) -> Tensor:
        half = self.gap(x) / 2
        return torch.stack([-half, half], 1)


def interior(dtype: torch.dtype = torch.float64, n: int = 6) -> tuple[Binary, Tensor, Tensor]:
    """A linear model and points inside the cube, 0.1 to 0.25 from its boundary in L2, with the model's own classes."""
    generator = torch.Generator().manual_seed(3)
    w = torch.randn(16, generator=generator, dtype=torch.float64)
    x = 0.5 + 0.06 * torch.randn(n, 16, generator=generator, dtype=torch.float64)
    model = Binary(w, -0.5 * w.sum().item())
    away = torch.linspace(0.1, 0.25, n) * torch.tensor([1, -1]).repeat(n // 2)
    x = x + ((away - model.distance(x) / w.norm()) / w.norm())[:, None] * w
    model = Binary(w.to(dtype), model.b)
    x = x.view(n, 1, 4, 4).to(dtype)
    return model, x, (model.distance(x) > 0).long()


def formula_network() -> tuple[Pixels, Tensor, Tensor]:
    """A convolutional network, images and labels by formula, float32: what another library was given as well."""

    def wave(*shape: int, a: float, b: float) -> Tensor:
        ids = torch.arange(math.prod(shape), dtype=torch.float64)
        return (a * torch.sin(b * ids + 0.5)).float().view(*shape)

    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    )
    values = [
        wave(4, 1, 3, 3, a=0.6, b=1.7),
        wave(4, a=0.1, b=2.3),
        wave(3, 64, a=0.8, b=2.9),
        wave(3, a=0.2, b=1.1),
    ]
    with torch.no_grad():
        for parameter, value in zip(network.parameters(), values, strict=True):
            parameter.copy_(value)
    ids = torch.arange(6 * 64, dtype=torch.float64)
    x = (0.5 + 0.4 * torch.sin(1.3 * ids**1.1)).float().view(6, 1, 8, 8)
    model = Pixels(network, [0.3], [0.4]).eval()
    return model, x, predict(model, x).argmax(1)


# -- FGSM and PGD -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", [cross_entropy, lead])
def test_fgsm_moves_a_linear_margin_by_epsilon_times_the_l1_norm(objective: Any) -> None:
    model, x, y = interior()
    made = fgsm(model, x, y, 0.05, objective)
    before, after = (-lead(model(images), y) for images in (x, made))
    torch.testing.assert_close(after - before, -0.05 * model.w.abs().sum().expand(len(x)))
    toward = fgsm(model, x, y, 0.05, objective, targeted=True)
    torch.testing.assert_close(-lead(model(toward), y) - before, 0.05 * model.w.abs().sum().expand(len(x)))


def test_epsilon_is_in_pixels_before_the_normalisation_and_pixels_stay_in_range() -> None:
    network, x = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), torch.rand(5, 1, 2, 2)
    model = Pixels(network, [0.5], [0.1])
    torch.testing.assert_close(model(x), network((x - 0.5) / 0.1))
    y = predict(model, x).argmax(1)
    change = (fgsm(model, 0.5 * x + 0.25, y, 0.1) - (0.5 * x + 0.25)).abs()
    torch.testing.assert_close(change, torch.full_like(change, 0.1))
    for made in (fgsm(model, x, y, 1.0), pgd(model, x, y, 1.0, 3)):
        assert made.min() >= 0
        assert made.max() <= 1


def test_where_the_gradient_is_zero_nothing_moves() -> None:
    model, x, y = interior()
    with torch.no_grad():
        model.w[:3] = 0
    assert (fgsm(model, x, y, 0.1).flatten(1)[:, :3] == x.flatten(1)[:, :3]).all()


def test_pgd_ends_at_the_corner_of_a_linear_model_and_keeps_its_budget() -> None:
    model, x, y = interior()
    start = 2 * torch.rand(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype) - 1
    found = pgd(model, x, y, 0.05, 40, start=start)
    torch.testing.assert_close(found, fgsm(model, x, y, 0.05, lead))
    one = pgd(model, x, y, 0.05, 1, step_size=0.05)
    torch.testing.assert_close(one, fgsm(model, x, y, 0.05, lead))
    little = pgd(model, x, y, 0.05, 1, step_size=1e-9, start=start)
    torch.testing.assert_close(little, x + 0.05 * start, rtol=0, atol=1e-8)


def test_an_image_is_attacked_alone_as_in_its_batch() -> None:
    model, x, y = formula_network()
    search = Search(steps=40, searches=3)
    whole = carlini_wagner_l2(model, x, y, search)
    for i in range(2):
        one = slice(i, i + 1)
        torch.testing.assert_close(fgsm(model, x[one], y[one], 0.05), fgsm(model, x, y, 0.05)[one])
        alone = carlini_wagner_l2(model, x[one], y[one], search)
        torch.testing.assert_close(alone.distance, whole.distance[one], rtol=1e-4, atol=1e-6)


class Fickle(nn.Module):
    """Random and dependent on the batch, but only in training."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Dropout(0.5), nn.Linear(64, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def test_networks_are_attacked_in_evaluation_mode_and_left_as_they_were() -> None:
    torch.manual_seed(0)
    model, x = Fickle().train(), torch.rand(8, 1, 8, 8)
    model.body[2].eval()
    state, y = weights_of(model), predict(model, x).argmax(1)
    attacks = (
        lambda z, c: fgsm(model, z, c, 0.1),
        lambda z, c: pgd(model, z, c, 0.1, 3),
        lambda z, c: carlini_wagner_l2(model, z, c, Search(steps=20, searches=2)).images,
    )
    for attack in attacks:
        torch.testing.assert_close(attack(x[:1], y[:1]), attack(x, y)[:1])
    assert same(state, weights_of(model))
    assert model.training
    assert not model.body[2].training
    assert all(p.grad is None for p in model.parameters())


# -- C&W --------------------------------------------------------------------------------------------------------


def test_carlini_wagner_finds_the_projection_on_a_linear_boundary() -> None:
    model, x, y = interior()
    fine = Search(lr=3e-3, steps=500, searches=6, start=0.1, abort=False)
    found = carlini_wagner_l2(model, x, y, fine)
    wanted = model.distance(x).abs() / model.w.norm()
    torch.testing.assert_close(found.distance, wanted, rtol=0.02, atol=0)
    assert (found.distance >= wanted * (1 - 1e-9)).all()  # nothing is nearer than the boundary
    change = (found.images - x).flatten(1)
    cosine = -(change @ model.w) * model.distance(x).sign() / change.norm(dim=1) / model.w.norm()
    assert cosine.min() > math.cos(math.radians(1))
    toward = carlini_wagner_l2(model, x, 1 - y, Search(steps=150, searches=4, start=0.1), targeted=True)
    torch.testing.assert_close(toward.distance, wanted, rtol=0.05, atol=0)


def test_a_margin_kappa_is_respected_and_costs_its_distance() -> None:
    model, x, y = interior()
    kappa = 0.3
    found = carlini_wagner_l2(model, x, y, Search(kappa=kappa, steps=300, searches=5, start=0.2, abort=False))
    assert (lead(model(found.images), y) >= kappa).all()
    wanted = (model.distance(x).abs() + kappa) / model.w.norm()
    torch.testing.assert_close(found.distance, wanted, rtol=0.02, atol=0)


def test_scaling_the_logits_changes_the_constant_and_not_what_is_found() -> None:
    model, x, y = interior()
    large = Binary(model.w.detach(), model.b, 100.0)
    found = carlini_wagner_l2(large, x, y, Search(steps=300, searches=5, start=1e-3, abort=False))
    wanted = model.distance(x).abs() / model.w.norm()
    torch.testing.assert_close(found.distance, wanted, rtol=0.05, atol=0)


def test_the_tanh_map_is_its_inverse_and_stays_in_range() -> None:
    x = torch.linspace(0, 1, 101)
    torch.testing.assert_close(from_tanh(to_tanh(x)), x, rtol=0, atol=1e-5)
    w = torch.tensor([-100.0, -7.0, 0.0, 7.0, 100.0])
    assert from_tanh(w).min() >= 0
    assert from_tanh(w).max() <= 1


class Watched(nn.Module):
    """Remembers what it was asked about."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.asked = model, []

    def forward(self, x: Tensor) -> Tensor:
        self.asked.append(x.detach().clone())
        return self.model(x)


def test_every_iterate_is_an_image_and_the_best_of_all_is_returned() -> None:
    model, x, y = formula_network()
    watched = Watched(model)
    found = carlini_wagner_l2(watched, x, y, Search(steps=30, searches=4, start=0.1, abort=False))
    iterates = torch.stack([asked for asked in watched.asked if len(asked) == len(x)])
    assert len(iterates) == 4 * 31
    assert iterates.min() >= 0
    assert iterates.max() <= 1
    answers = torch.stack([predict(model, images).argmax(1) for images in iterates])
    away = (iterates - x).flatten(2).norm(dim=2).masked_fill(answers == y, torch.inf)
    torch.testing.assert_close(found.distance, away.amin(0))
    assert found.success.all()
    for image, label in zip(found.images, y, strict=True):
        assert predict(model, image[None]).argmax() != label


def test_each_constant_starts_afresh_and_is_searched_by_each_image_alone() -> None:
    """A class that never changes raises c tenfold; Adam's first step from the same w is the same for each c."""
    stubborn = Binary(torch.zeros(16), 1.0)
    x, y = torch.full((2, 1, 4, 4), 0.5), torch.tensor([1, 1])
    watched = Watched(stubborn)
    found = carlini_wagner_l2(watched, x, y, Search(steps=4, searches=3, abort=False))
    assert not found.success.any()
    assert torch.equal(found.images, x)
    starts = watched.asked[::5]
    assert all(torch.equal(start, starts[0]) for start in starts)


def test_constants_follow_the_bisection_of_each_image() -> None:
    seen_constants: list[Tensor] = []

    model, x, y = interior(n=2)
    from stillroom.audits.fgsm_cw_defensive_distillation import carlini_wagner as module

    run = module._Problem.run

    def spying(self: Any, c: Tensor, *rest: Any, **more: Any) -> Tensor:
        seen_constants.append(c.clone())
        answers = torch.tensor([[True, False], [False, False], [True, True]])[len(seen_constants) - 1]
        run(self, c, *rest, **more)
        return answers

    module._Problem.run = spying  # type: ignore[method-assign]
    try:
        carlini_wagner_l2(model, x, y, Search(steps=1, searches=3, start=0.1))
    finally:
        module._Problem.run = run  # type: ignore[method-assign]
    first, second = (torch.stack(seen_constants)[:, i].tolist() for i in (0, 1))
    assert first == pytest.approx([0.1, 0.05, 0.075])  # found: halved, not found: between
    assert second == pytest.approx([0.1, 1.0, 10.0])  # never found: tenfold


def test_an_image_that_makes_no_progress_is_given_up_and_the_others_go_on() -> None:
    model, x, y = interior(n=2)
    with torch.no_grad():
        flat = Watched(Binary(torch.zeros(16, dtype=torch.float64), 1.0))
    carlini_wagner_l2(flat, x, torch.tensor([1, 1]), Search(steps=100, searches=1))
    assert len(flat.asked) < 30  # the loss is at rest: given up at the first comparison
    watched = Watched(model)
    carlini_wagner_l2(watched, x, y, Search(steps=100, searches=1, abort=False))
    assert len(watched.asked) == 101


def test_the_other_distances_of_carlini_and_wagner() -> None:
    model, x, y = interior()
    distance = model.distance(x).abs()
    largest = carlini_wagner_linf(model, x, y, Search(steps=60, start=1.0))
    wanted = distance / model.w.abs().sum()
    assert (largest.distance >= wanted * (1 - 1e-6)).all()
    assert (largest.distance <= 1.35 * wanted).all()
    few = carlini_wagner_l0(model, x, y, Search(steps=60, searches=3, start=1.0))
    room = torch.where((y == 1)[:, None] == (model.w > 0), x.flatten(1), 1 - x.flatten(1)) * model.w.abs()
    needed = (room.sort(1, descending=True).values.cumsum(1) < distance[:, None]).sum(1) + 1
    assert (few.distance >= needed).all()
    assert (few.distance <= needed + 2).all()
    for found in (largest, few):
        assert (predict(model, found.images).argmax(1) != y).all()
    assert torch.equal(((few.images - x).abs() > 1e-4).flatten(1).sum(1).double(), few.distance)


# -- against adversarial-robustness-toolbox 1.20.1 -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("epsilon", "broken", "total"), [(0.05, 5, 191.9441300779581), (0.1, 6, 191.74413059651852)]
)
def test_fgsm_makes_the_images_of_another_library(epsilon: float, broken: int, total: float) -> None:
    """FastGradientMethod(eps) on the same network gives the very same pixels; so does ours, by their sum."""
    model, x, y = formula_network()
    made = fgsm(model, x, y, epsilon)
    assert made.double().sum().item() == pytest.approx(total, abs=1e-4)
    assert (predict(model, made).argmax(1) != y).sum() == broken


def test_targeted_fgsm_and_pgd_make_the_images_of_another_library() -> None:
    """FastGradientMethod(0.1, targeted) and ProjectedGradientDescent(0.05, eps_step 0.01, 10 steps): equal pixels."""
    model, x, y = formula_network()
    target = (y + 1) % 3
    made = fgsm(model, x, target, 0.1, targeted=True)
    assert made.double().sum().item() == pytest.approx(190.54413055628538, abs=1e-4)
    assert (predict(model, made).argmax(1) == target).sum() == 5
    made = pgd(model, x, y, 0.05, 10, 0.01, cross_entropy)
    assert made.double().sum().item() == pytest.approx(191.92413000017405, abs=1e-4)
    made = pgd(model, x, target, 0.05, 10, 0.01, cross_entropy, targeted=True)
    assert made.double().sum().item() == pytest.approx(191.64413014799356, abs=1e-4)


@pytest.mark.parametrize(
    ("kappa", "targeted", "theirs"),
    [
        (0.0, False, [0.640518, 0.069370, 0.217427, 0.096798]),
        (2.0, False, [1.205777, 0.552726, 0.707210, 0.247981]),
        (0.0, True, [0.640518, 0.069370, 0.217427, 0.204326]),
    ],
)
def test_carlini_wagner_finds_nothing_farther_than_another_library(
    kappa: float, targeted: bool, theirs: list[float]
) -> None:
    """CarliniL2Method with the same 6 constants from 0.1, 200 steps and rate 0.01: it also breaks all four images.

    Its distances are 3 to 27 % longer: it searches each step's length, ours are Adam's as published.
    """
    model, x, y = formula_network()
    x, y = x[:4], y[:4]
    label = (y + 1) % 3 if targeted else y
    found = carlini_wagner_l2(
        model, x, label, Search(kappa=kappa, steps=200, searches=6, start=0.1), targeted=targeted
    )
    assert ((predict(model, found.images).argmax(1) == label) == targeted).all()
    assert (found.distance <= torch.tensor(theirs)).all()
    assert (found.distance >= 0.75 * torch.tensor(theirs)).all()


# -- the defence --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 10.0, 100.0])
def test_the_gradient_at_a_temperature_is_its_closed_form(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    z, v = (5 * torch.randn(4, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    z.requires_grad_()
    q = soft_labels(v, temperature)
    gradient = torch.autograd.grad(at_temperature(z, q, temperature), z)[0]
    wanted = ((z / temperature).softmax(-1) - q) / temperature / 4
    torch.testing.assert_close(gradient, wanted.detach(), rtol=0, atol=1e-12)
    y = torch.tensor([0, 3, 6, 2])
    hard = torch.autograd.grad(at_temperature(z, y, temperature), z)[0]
    torch.testing.assert_close(
        hard, ((z / temperature).softmax(-1) - F.one_hot(y, 7)).detach() / temperature / 4
    )


def test_at_a_large_temperature_the_gradient_matches_centred_logits() -> None:
    generator = torch.Generator().manual_seed(1)
    z, v = (torch.randn(1, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    z.requires_grad_()
    loss = 1e4**2 * at_temperature(z, soft_labels(v, 1e4), 1e4)
    gradient = torch.autograd.grad(loss, z)[0]
    wanted = (z - z.mean() - v + v.mean()).detach() / 7
    torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("optimizer", "factor"), [("sgd", 20.0), ("adam", 1.0)])
def test_both_stages_divide_their_logits_and_only_sgd_is_told_the_temperature(
    optimizer: Any, factor: float
) -> None:
    generator = torch.Generator().manual_seed(2)
    x, y = torch.randn(5, 4, generator=generator), torch.tensor([0, 1, 2, 0, 1])
    student, teacher = nn.Linear(4, 3), nn.Linear(4, 3)
    first, second = TeacherAtTemperature(20.0), DefensiveDistillation(20.0)
    for method in (first, second):
        method.student = student
        method.recipes(Recipe(optimizer))
    second.teacher = Teacher(nn.Sequential(teacher, nn.Dropout(0.9)))
    (one,) = updates_of(first, batch_of(x, y))
    torch.testing.assert_close(one.loss, factor * F.cross_entropy(student(x) / 20, y))
    (two,) = updates_of(second, batch_of(x, y))
    target = (teacher(x) / 20).softmax(-1)
    torch.testing.assert_close(two.loss, factor * F.cross_entropy(student(x) / 20, target))
    assert not torch.equal(updates_of(second, batch_of(x, y.flip(0)))[0].loss, one.loss)  # no labels in it
    torch.testing.assert_close(updates_of(second, batch_of(x, y.flip(0)))[0].loss, two.loss)


def tiny(**changes: Any) -> Robustness:
    return Robustness(**changes).quick()


def run(
    method: DefensiveDistillation, task: Robustness, **changes: Any
) -> tuple[DefensiveDistillation, nn.Module]:
    engine = replace(method.default_engine(), epochs=2, evaluate_every=0, **changes)
    product = method.run(task, Fitter(engine, task, 0)).product
    return method, product


def test_the_teacher_has_the_student_s_architecture_unless_the_task_names_another() -> None:
    method, student = run(DefensiveDistillation(), tiny())
    assert str(method.teacher.module) == str(student)
    assert not same(weights_of(method.teacher.module), weights_of(student))
    method, student = run(DefensiveDistillation(), tiny(teacher="mlp:5"))
    assert method.teacher.module[1].out_features == 5
    assert str(method.teacher.module) != str(student)


def test_a_teacher_with_weights_is_taken_as_it_is() -> None:
    given = build("cnn:4-8", shape=(1, 8, 8), classes=10, seed=5)
    before = weights_of(given)
    task = tiny().using(teacher=given)
    method, _ = run(DefensiveDistillation(), task)
    assert same(before, weights_of(method.teacher.module))


def test_the_student_starts_as_a_plain_one_does_and_steps_are_shared() -> None:
    task, method = tiny(), DefensiveDistillation()
    fitter = Fitter(replace(method.default_engine(), steps=7, evaluate_every=0), task, 3)
    result = method.run(task, fitter)
    assert (fitter.steps, result.steps) == (8, 4)
    method.bind(task, 3)
    assert same(weights_of(method.student), weights_of(task.make_student(3)))


def test_mixed_labels_and_a_temperature_of_zero_are_refused() -> None:
    with pytest.raises(UserError, match="mixup"):
        DefensiveDistillation().bind(tiny(mixup=0.2), 0)
    with pytest.raises(UserError, match="--method.temperature is 0"):
        DefensiveDistillation(0.0).check()


# -- the diagnosis --------------------------------------------------------------------------------------------------


def steep(scale: float, dtype: torch.dtype = torch.float32) -> tuple[Binary, Tensor, Tensor]:
    """A linear model with logit gaps of 0.2 to 0.5, times `scale`: underflow in float32 at 1000, not in float64."""
    model, x, y = interior(dtype)
    gap = torch.linspace(0.2, 0.5, len(x)).to(dtype) * (2 * y - 1)
    x = x + ((gap - model.distance(x)) / model.w.square().sum())[:, None, None, None] * model.w.view(
        1, 1, 4, 4
    )
    return Symmetric(model.w.detach(), model.b, scale), x, y


def test_the_gradient_of_the_label_s_logit_is_lost_first() -> None:
    """softmax_y - 1 is 0 in float32 from a gap of about 17 on, softmax_i of the others from about 104."""
    for gap, label, other in ((10.0, True, True), (25.0, False, True), (120.0, False, False)):
        z = torch.tensor([[gap, 0.0]], requires_grad=True)
        gradient = torch.autograd.grad(cross_entropy(z, torch.tensor([0])).sum(), z)[0]
        assert (gradient != 0).tolist() == [[label, other]]


def test_scaled_logits_keep_the_margin_s_signs_and_lose_the_gradient_in_float32_alone() -> None:
    model, x, y = steep(1.0)
    large = steep(1000.0)[0]
    assert torch.equal(fgsm(large, x, y, 0.05, lead), fgsm(model, x, y, 0.05, lead))
    assert input_gradient(model, x, y).abs().sum() > 0
    assert (input_gradient(large, x, y) == 0).all()
    assert torch.equal(fgsm(large, x, y, 0.05), x)
    wide, x64, _ = steep(1000.0, torch.float64)
    assert (input_gradient(wide, x64, y) != 0).all()


def audit(scale: float, source: bool = True, epsilon: float = 0.06) -> seen.Audit:
    model, x, y = steep(scale)
    plan = Plan((0.01, epsilon), epsilon, 10, search=Search(steps=40, searches=4, start=0.1))
    rows = seen.bounded(model, x, y, plan, torch.zeros_like(x), steep(1.0)[0] if source else None)
    return seen.Audit(plan, x, rows, torch.arange(len(x)), seen.minimal(model, x, y, plan))


def test_the_detector_fires_on_scaled_logits_and_not_on_the_same_network() -> None:
    plain, masked = audit(1.0), audit(1000.0)
    assert plain.success[seen.FGSM] == 1.0
    assert (plain.zero, masked.zero) == (0.0, 1.0)
    assert masked.success[seen.FGSM] == 0.0
    for name in (seen.DOUBLE, seen.ADAPTIVE, seen.MARGIN, seen.PGD, seen.TRANSFER):
        assert masked.success[name] == plain.success[name] == 1.0, name
    assert masked.verdict.kind == "masked, not robust"
    assert plain.verdict.kind == "not robust"
    assert masked.numbers()["carlini_wagner_gain"] == 1.0
    assert plain.numbers()["carlini_wagner_gain"] == 0.0
    assert masked.numbers()["robust_accuracy"] == 0.0
    assert masked.numbers()["fgsm_accuracy"] == 1.0
    assert masked.numbers()["fgsm_at_0.01_accuracy"] == 1.0


def test_without_an_undistilled_network_transfer_is_left_out() -> None:
    assert seen.TRANSFER not in audit(1000.0, source=False).success


def test_the_verdict_s_thresholds() -> None:
    names = {seen.DOUBLE: 0.0, seen.ADAPTIVE: 0.0, seen.MARGIN: 0.0, seen.PGD: 0.0, seen.CARLINI: 0.0}
    for name in names:
        assert judge({**names, seen.FGSM: 0.2, name: 0.4}, 0.0, 0.9, 0.2).kind == "masked, not robust"
        assert judge({**names, seen.FGSM: 0.2, name: 0.39}, 0.0, 0.9, 0.2).kind.startswith("mostly")
    assert judge({**names, seen.FGSM: 0.0, seen.PGD: 0.04}, 0.0, 0.0, 0.2).kind.startswith("mostly")
    assert judge({**names, seen.FGSM: 0.2}, 0.6, 0.95, 0.2).kind == "masked, not robust"
    assert judge({**names, seen.FGSM: 0.2}, 0.6, 0.94, 0.2).kind.startswith("mostly")
    assert judge({**names, seen.FGSM: 0.2}, 0.4, 1.0, 0.2).kind.startswith("mostly")
    assert judge({**names, seen.FGSM: 0.5, seen.PGD: 0.9}, 0.0, 1.0, 0.2).kind == "not robust"


def test_images_that_were_wrong_before_are_no_successes_and_never_count_as_right() -> None:
    model, x, y = steep(1.0)
    y = y.clone()
    y[:2] = 1 - y[:2]
    plan = Plan((), 0.001, 2, search=Search(steps=40, searches=3, start=0.1))
    rows = seen.bounded(model, x, y, plan, torch.zeros_like(x))
    found = seen.Audit(plan, x, rows, torch.arange(len(x)), seen.minimal(model, x, y, plan))
    assert found.success[seen.FGSM] == 0.0
    assert found.numbers()["fgsm_accuracy"] == pytest.approx(4 / 6)
    assert len(found.distances) == 4
    assert (found.near["l2"][:2] == 0).all()


def test_carlini_wagner_counts_within_epsilon_only_where_no_pixel_moved_further() -> None:
    found = audit(1.0)
    found.near["largest"][:3] = 0.05
    found.near["largest"][3:] = 0.07
    assert found.success[seen.CARLINI] == 0.5


# -- the task, and what a user does ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("epsilon", 0.0),
        ("epsilon", 1.1),
        ("epsilons", (0.1, -0.1)),
        ("pgd_steps", 0),
        ("kappa", -0.1),
        ("carlini_steps", 0),
        ("carlini_searches", 0),
        ("carlini_constant", 0.0),
        ("carlini_lr", 0.0),
        ("attack_samples", 0),
        ("carlini_samples", 0),
        ("adaptive_temperature", 0.0),
    ],
)
def test_a_budget_out_of_range_is_one_line(option: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"--task.{option.replace('_', '-')} is") as error:
        tiny().but(**{option: value}).check(0, False)
    assert "\n" not in str(error.value)


def test_pixels_come_back_from_behind_the_normalisation_and_must_lie_in_range() -> None:
    task = tiny()
    x, y = task.pixels("test", 40)
    assert (len(x), x.min().item(), x.max().item()) == (40, 0.0, 1.0)
    assert torch.allclose(x * 16, (x * 16).round(), atol=1e-4)
    assert y.bincount(minlength=10).min() >= 3
    again, _ = task.pixels("test", 40)
    assert torch.equal(x, again)
    wild = 3 * torch.randn(80, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(80) % 4
    mine = Robustness(student="cnn:4-8").using(data=(wild, labels))
    with pytest.raises(UserError, match="attacks need"):
        mine.check(0, False)


def test_the_score_is_the_same_twice_and_its_parts_fit_together() -> None:
    task = tiny()
    network = task.make_student(0)
    first, again = (task.score(network, "test", Runtime()) for _ in range(2))
    assert first == again
    assert first["robust_accuracy"] <= min(first["fgsm_accuracy"], first["pgd_accuracy"])
    assert first["fgsm_accuracy"] == first["fgsm_at_0.2_accuracy"]
    assert sum(first["per_sample"]) / 40 == pytest.approx(first["robust_accuracy"])
    assert network.training
    gain = task.but(decides="carlini_wagner_gain").score(network, "test", Runtime())
    assert "per_sample" not in gain
    looked = task.score(network, "validation", Runtime())
    assert next(iter(looked)) == "robust_accuracy"


def test_the_transferred_network_is_no_arm_and_is_trained_for_each_seed() -> None:
    task = tiny()
    job, other = task.undistilled_job(), task.paired(1).undistilled_job()
    assert job is not None
    assert other is not None
    assert job.seed not in (0, other.seed)
    assert job.method.name == "plain"
    assert type(job.task) is not Robustness
    module = build("cnn:4-8", shape=(1, 8, 8), classes=10, seed=0)
    assert task.using(student=module).undistilled() is None
    assert task.using(student=module, teacher=module).undistilled() is not None


def test_a_user_s_classifier_and_teacher_are_attacked_as_they_are(tmp_path: Path) -> None:
    teacher, student = (build(name, shape=(1, 8, 8), classes=10, seed=1) for name in ("cnn:4", "mlp:6"))
    x, y = torch.rand(200, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(200) % 10
    task = Robustness().quick().but(train_samples=None, student_samples=None, normalise="none")
    product, found = stillroom.distill(
        teacher, student, (x, y), RobustnessAudit(), task=task, out=tmp_path / "run"
    )
    assert same(weights_of(product), weights_of(student))
    arms = found.result["arms"]
    assert set(arms) == {"teacher-as-it-is", "robustness-audit"}
    page = (found.path / "report.html").read_text()
    assert "What each attack turns" in page
    assert "Broken within a distance" in page
    assert arms["robustness-audit"]["test"]["robustness"].partition(":")[0] in page
    alone, found = stillroom.distill(
        None, student, (x, y), "robustness-audit", task=task, out=tmp_path / "alone"
    )
    assert same(weights_of(alone), weights_of(student))
    assert "success of FGSM transferred" not in found.result["arms"]["robustness-audit"]["test"]


def test_from_the_command_line_a_run_is_audited_by_its_folder(tmp_path: Path) -> None:
    quick = (
        "--task.train-samples 120 --task.attack-samples 20 --task.carlini-samples 5 --task.carlini-steps 5"
    )
    quick += " --task.carlini-searches 2 --task.pgd-steps 2 --task.teacher-epochs 1"
    first, second = tmp_path / "one", tmp_path / "two"
    made = f"run defensive-distillation --task.student mlp:7 --engine.epochs 1 --out {first} {quick}"
    assert cli.main(made.split()) == 0
    asked = f"run robustness-audit --task.audited {first} --out {second} {quick} --task.carlini-also linf l0"
    assert cli.main(asked.split()) == 0
    a, b = (stillroom.Run.open(folder).student() for folder in (first, second))
    assert same(weights_of(a), weights_of(b))
    result = stillroom.Run.open(second).result["arms"]["robustness-audit"]["test"]
    assert "mean L0 of C&W" in result or result["carlini_wagner_success"] == 0
    assert (
        cli.main(f"run robustness-audit --task.audited {tmp_path / 'no'} --out {tmp_path / 'x'}".split()) == 2
    )

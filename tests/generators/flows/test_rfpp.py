"""2-Rectified Flow++: its law of times, its losses and their weights, its flows, its pairs, and what it refuses."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from laws import gaussian_map, mixture
from stillroom import catalogue
from stillroom.engine import Engine, Watcher
from stillroom.errors import UserError
from stillroom.fitter import Fitter
from stillroom.generators.flows.rfpp import (
    FewEvaluations,
    Lpips,
    NetworkDistance,
    RectifiedFlowPlusPlus,
    as_flow,
    configuration,
    crossing_noise,
    feature_distance,
    feature_metric,
    field_sampler,
    invert,
    loss_by_time,
    pseudo_huber,
    round_trip,
    row_noise,
    sampled_pairs,
    start_of,
    straightness,
    training_times,
)
from stillroom.generators.flows.rfpp.features import averaging
from stillroom.generators.flows.rfpp.pairs import HELD_OUT, inverted_pairs
from stillroom.generators.generation import Generation
from stillroom.generators.parts import times
from stillroom.generators.parts.building import fresh_copy
from stillroom.generators.parts.denoiser import Denoiser
from stillroom.generators.parts.process import NAMED
from stillroom.generators.parts.sampler import Plan, Sampler
from stillroom.generators.parts.saving import load_sampler
from stillroom.generators.undistilled import FewSteps
from stillroom.method import Batch, Clock, Noise
from stillroom.models.denoisers import build_denoiser_network
from stillroom.models.denoisers.library import wrap
from stillroom.optim import Recipe
from stillroom.run import Run
from stillroom.runtime import Runtime
from stillroom.seeds import seeded
from stillroom.teaching import teach
from stillroom.workflow import Job, distill, execute
from toys import same, weights_of

ENGINE = Engine(steps=6, batch_size=16, recipe=Recipe("adam", lr=1e-3, ema=0.9), evaluate_every=0)
M, TAU = 0.4, 0.5
"""Mean and deviation of the Gaussian law of the exact checks."""


def gaussian_flow() -> Denoiser:
    """The exact EDM denoiser of N(.4, .5^2 I), as a flow."""
    return as_flow(mixture(NAMED["edm"], torch.full((1, 3), M, dtype=torch.float64), TAU))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# -- the law of times -----------------------------------------------------------------------------------------------


def test_the_density_is_u_shaped() -> None:
    t = torch.linspace(0, 1, 200_001, dtype=torch.float64)
    p = times.u_shaped_density(t, 4.0)
    assert torch.trapezoid(p, t).item() == pytest.approx(1, abs=1e-8)
    assert (p - p.flip(0)).abs().max() < 1e-12
    assert p[[0, 100_000]].tolist() == pytest.approx([2.0746, 0.5514], abs=5e-5)
    outer = 2 * torch.trapezoid(p[:20_001], t[:20_001]).item()
    assert outer == pytest.approx(0.345, abs=5e-4)


def test_drawn_times_follow_the_density_and_the_authors() -> None:
    n = 200_000
    u = torch.rand(n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    t = training_times(u, "u-shaped", 4.0)
    assert float(t.min()) > 1e-5
    assert float(t.max()) < 1 - 1e-5
    edges = torch.linspace(0, 1, 21, dtype=torch.float64)
    share = torch.histogram(t, edges).hist / n
    fine = torch.linspace(0, 1, 20_001, dtype=torch.float64)
    mass = torch.cat([torch.zeros(1), torch.cumulative_trapezoid(times.u_shaped_density(fine), fine)])
    wanted = mass[::1000].diff()
    assert ((share - wanted).abs() < 3.2 * (wanted * (1 - wanted) / n).sqrt()).all()
    # the share of 20,000 of the authors' `sample_t` (a = 4) below these times; three of its standard errors
    theirs = {0.05: 0.0927, 0.1: 0.1701, 0.25: 0.3358, 0.5: 0.4979, 0.75: 0.6592, 0.9: 0.8302, 0.95: 0.9057}
    for q, said in theirs.items():
        assert float((t <= q).double().mean()) == pytest.approx(
            said, abs=3 * (said * (1 - said) / 2e4) ** 0.5
        )


def test_a_law_is_scaled_and_named() -> None:
    u = torch.tensor([0.0, 0.5, 1 - 1e-7], dtype=torch.float64)
    assert training_times(u, "uniform", 4.0).tolist() == pytest.approx([1e-5, 0.5, 1 - 1e-5], abs=1e-6)
    assert training_times(u, "u-shaped", 4.0).tolist() == pytest.approx([1e-5, 0.5, 1 - 1e-5], abs=1e-6)
    assert training_times(u[1:2], "u-shaped", 4.0, end=0.9).item() == pytest.approx(0.45, abs=1e-5)
    spread = torch.rand(10_000, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    middle = {
        law: _inner(training_times(spread, law, 4.0)) for law in ("u-shaped", "uniform", "logit-normal")
    }  # type: ignore[arg-type]
    assert middle["u-shaped"] < 0.35 < 0.49 < middle["uniform"] < 0.51 < 0.7 < middle["logit-normal"]
    assert _inner(training_times(spread, "u-shaped", 1e-4)) == pytest.approx(middle["uniform"], abs=1e-3)
    with pytest.raises(UserError, match="--method.times 'cosine' is unknown: pass one of u-shaped, uniform"):
        training_times(u, "cosine", 4.0)  # type: ignore[arg-type]


def _inner(t: Tensor) -> float:
    return float(((t > 0.25) & (t < 0.75)).double().mean())


# -- any denoiser is a flow -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("t", [1e-5, 0.1, 0.5, 0.9, 1 - 1e-5])
@pytest.mark.parametrize("process", ["edm", "cosine", "flow"])
def test_a_denoiser_as_a_flow_is_the_exact_one(process: str, t: float) -> None:
    denoiser = mixture(NAMED[process], torch.full((1, 3), M, dtype=torch.float64), TAU)
    flow, x, at = as_flow(denoiser), normal(8, 3), torch.full((8,), t, dtype=torch.float64)
    shrink = (1 - t) * TAU**2 / ((1 - t) ** 2 * TAU**2 + t**2)
    wanted = shrink * (x - (1 - t) * M) + M
    assert (flow(x, at) - wanted).abs().max() < 1e-12 * (1 if process != "cosine" else 1e3)
    u = flow.estimate(x, at).velocity
    assert torch.isfinite(u).all()
    assert torch.allclose(u, (x - wanted) / t, atol=1e-6 if t < 1e-4 else 1e-11)
    assert torch.isfinite(as_flow(denoiser).estimate(x.float(), at.float()).velocity).all()


@pytest.mark.parametrize(
    ("process", "prediction"), [("linear", "v"), ("scaled-linear", "x0"), ("linear", "eps")]
)
def test_past_its_own_last_noise_level_a_network_still_sees_inputs_of_its_size(
    process: str, prediction: str
) -> None:
    """A variance preserving table ends at a finite noise level, a flow does not."""
    seen = []

    class Watching(nn.Module):
        def forward(self, x: Tensor, *rest: Any) -> Tensor:
            seen.append(x.square().mean().sqrt().item())
            return torch.zeros_like(x)

    flow = as_flow(Denoiser(Watching(), process, prediction))
    x = normal(500, 8).float()
    for t in (0.3, start_of(flow)):
        flow.estimate(t * x, torch.full((500,), t)).velocity  # noqa: B018
    # unit noise alone, of which the process has sigma
    assert seen == pytest.approx([0.3 / math.hypot(0.3, 0.7), 1.0], abs=0.02)


def test_sampling_starts_just_below_one() -> None:
    network = build_denoiser_network("mlp:8x1", shape=(2,), classes=0, seed=0)
    for process, prediction in (("edm", "edm"), ("cosine", "v"), ("flow", "velocity")):
        sampler = field_sampler(as_flow(Denoiser(network, process, prediction)))
        assert sampler.start == pytest.approx(1 - 1e-5, abs=1e-12)
        assert sampler.scaled(torch.ones(1, 2, dtype=torch.float64)).tolist() == [
            [pytest.approx(1 - 1e-5)] * 2
        ]
    assert start_of(as_flow(Denoiser(network, "linear", "eps"))) == pytest.approx(200 / 201)


# -- the losses -------------------------------------------------------------------------------------------------------


def test_the_huber_norm_is_of_the_whole_sample() -> None:
    a, b = normal(4, 3, 5).requires_grad_(), normal(4, 3, 5, seed=1)
    c, d = 0.00054 * 15, 15
    (got,) = torch.autograd.grad(pseudo_huber(a, b).sum(), a)
    norm = ((a - b).square().flatten(1).sum(1) + c * c).sqrt().view(-1, 1, 1)
    assert torch.allclose(got, (a - b) / (d * norm), atol=1e-14)
    small = 1e-6 * normal(4, 3, 5, seed=2)
    assert torch.allclose(
        pseudo_huber(b + small, b), small.square().flatten(1).sum(1) / (2 * c * d), rtol=1e-6, atol=0
    )
    large = pseudo_huber(b + 1e6, b)
    assert torch.allclose(large, torch.full_like(large, 1e6 * d**0.5 / d), rtol=1e-6)
    assert not pseudo_huber(b, b).any()
    at_zero = b.clone().requires_grad_()
    (flat,) = torch.autograd.grad(pseudo_huber(at_zero, b).sum(), at_zero)
    assert not flat.any()


Z = torch.tensor([[0.3, -1.2, 0.8, 1.9], [-0.5, 0.1, 2.2, -0.7]]).view(2, 1, 2, 2)


def test_the_huber_norm_is_the_authors() -> None:
    said = pseudo_huber(Z, Z.flip(0) * 0.7 + 0.1)
    assert said.tolist() == pytest.approx([0.71224964, 0.71840906], abs=1e-6)
    # theirs cancels in single precision: 2.3103e-06 and 2.3087e-06
    assert pseudo_huber(Z, Z + 1e-4).tolist() == pytest.approx([2.310e-6, 2.309e-6], rel=4e-3)


class Features(nn.Sequential):
    def __init__(self) -> None:
        with seeded(0):
            layers = nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 3, stride=2), nn.ReLU()
        super().__init__(*layers)


def images(n: int = 5, seed: int = 3) -> Tensor:
    return normal(n, 1, 8, 8, seed=seed).float().clamp(-1, 1)


def test_the_perceptual_metric_is_zero_for_equals_alone_and_blind_to_a_layers_scale() -> None:
    metric, x, y = NetworkDistance(Features()), images(), images(seed=4)
    assert not metric(x, x).any()
    assert (metric(x, y) > 0.01).all()
    assert torch.allclose(metric(x, y), metric(y, x))
    maps, others = metric.layers(x), metric.layers(y)
    assert [m.shape[1:] for m in maps] == [(4, 8, 8), (6, 3, 3)]
    assert torch.allclose(
        feature_distance([3 * m for m in maps], others), feature_distance(maps, others), atol=1e-2
    )
    first, second = maps[1] + 0.1, others[1] + 0.1
    unit = [m / m.norm(dim=1, keepdim=True) for m in (first, second)]
    by_hand = (unit[0] - unit[1]).square().sum(1).mean((1, 2))
    assert torch.allclose(feature_distance([first], [second]), by_hand, atol=1e-5)
    apart = sum(feature_distance([a], [b]) for a, b in zip(maps, others, strict=True))
    pixels = (x - y).square().mean((1, 2, 3))
    assert torch.allclose(metric(x, y), pixels + apart)
    moved = x.clone().requires_grad_()
    (pull,) = torch.autograd.grad(metric(moved, y).sum(), moved)
    assert pull.any()
    assert not any(p.requires_grad for p in metric.network.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(metric(x, y), metric(x, y).float())
        assert metric(x, y).tolist() == pytest.approx(
            NetworkDistance(metric.network)(x, y).tolist(), abs=1e-6
        )


def test_lpips_sees_images_from_0_to_1_in_three_colours_and_large() -> None:
    seen = []

    class Watching(nn.Module):
        def forward(self, a: Tensor, b: Tensor, normalize: bool) -> Tensor:
            seen.append((a, b, normalize))
            return (a - b).square().mean((1, 2, 3), keepdim=True)

    x, y = images(), images(seed=4).requires_grad_()
    found = Lpips(Watching())(y, x)
    assert found.shape == (5,)
    (a, b, normalize) = seen[0]
    assert normalize
    assert a.shape == b.shape == (5, 3, 224, 224)
    assert 0 <= float(b.min()) < float(b.max()) <= 1
    assert b[0, 0, 0, 0].item() == pytest.approx(0.5 * x[0, 0, 0, 0].item() + 0.5)
    assert torch.autograd.grad(found.sum(), y)[0].any()
    changed = averaging(nn.Sequential(nn.Conv2d(1, 1, 1), nn.Sequential(nn.MaxPool2d(2, 2), nn.ReLU())))
    assert not any(isinstance(layer, nn.MaxPool2d) for layer in changed.modules())
    assert torch.equal(changed[1](torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]])), torch.tensor([[[[3.0]]]]))


def test_lpips_without_its_weights_says_where_they_belong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"^--method.features lpips: VGG-16's weights are not at .*vgg16"):
        feature_metric("lpips", Generation(), 0)


# -- one step of training ---------------------------------------------------------------------------------------------


def task(kind: type[Generation] = Generation, **changes: Any) -> Any:
    made = kind().quick().but(**changes)
    teach(made, ENGINE, None, Watcher)
    return made


def update(method: RectifiedFlowPlusPlus, on: Generation, t: float, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What `method` yields for eight pairs, all at time t, and the pairs; from the untrained start."""
    method.bind(on, 0)
    x, y = sampled_pairs(on, on.make_teacher().module, 8).fetch(torch.arange(8), None)  # type: ignore[arg-type]
    noise = Noise(lambda draw: draw, slice(0, 8), 8, torch.device("cpu"))
    monkeypatch.setattr(Noise, "uniform", lambda self: torch.full((8,), (t - 1e-5) / (1 - 2e-5)))
    batch = Batch(x, y, torch.arange(8), Clock(0, 6, 0, 1), noise)
    return next(method.updates(batch)), x, y


@pytest.mark.parametrize("t", [0.02, 0.5, 0.97])
@pytest.mark.parametrize(("letter", "divide"), [("F", True), ("E", False), ("D", None), ("C", None)])
def test_the_gradient_is_that_of_the_weighted_losses(
    letter: str, divide: bool | None, t: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(1 - t) on the Huber norm of the velocity and 1/t on the features of x_t - t u against x_0, written out."""
    on, method = task(), configuration(letter, times="uniform", feature_weight=0.7)
    asked, x, y = update(method, on, t, monkeypatch)
    parameters = [p for p in method.student.parameters() if p.requires_grad]
    got = torch.autograd.grad(asked.loss, parameters, allow_unused=True)
    eps, x0 = x[:, 0], x[:, 1]
    x_t = (1 - t) * x0 + t * eps
    edm = method.student.on("edm")
    u = (x_t - edm(x_t / (1 - t), torch.tensor(t / (1 - t)), y)) / t
    error = (u - (eps - x0)).square().flatten(1).sum(1)
    c = 0.00054 * 64
    loss = error / 64 if letter == "C" else ((error + c * c).sqrt() - c) / 64
    if divide is not None:
        assert method.metric is not None
        loss = (1 - t) * loss + 0.7 * method.metric(x_t - t * u, x0) / (t if divide else 1)
    want = torch.autograd.grad(loss.mean(), parameters, allow_unused=True)
    assert asked.loss.item() == pytest.approx(loss.mean().item(), rel=1e-4)
    for one, other in zip(got, want, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert (one - other).abs().max() < 1e-4 * other.abs().max() + 1e-7


def test_the_parts_are_weighted_to_their_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Near t = 1 the velocity has no say; without a perceptual metric it has all of it."""
    on = task()
    late, _, _ = update(configuration("F", times="uniform"), on, 1 - 1e-5, monkeypatch)
    assert late.loss.item() == pytest.approx(late.logs["loss/features"].item(), rel=2e-5)
    alone, _, _ = update(configuration("D", times="uniform"), on, 1 - 1e-5, monkeypatch)
    assert alone.loss.item() == pytest.approx(alone.logs["loss/velocity"].item())
    assert "loss/features" not in alone.logs


def test_configurations_are_the_papers() -> None:
    kinds = {letter: configuration(letter) for letter in "ABCDEFG"}
    assert [kinds[k].from_teacher for k in "AB"] == [False, True]
    assert [kinds[k].times for k in "ABCDEF"] == ["uniform"] * 2 + ["u-shaped"] * 4
    assert [kinds[k].loss for k in "ABCDEF"] == ["squared"] * 3 + ["huber"] * 3
    assert [kinds[k].features for k in "ABCDEF"] == ["none"] * 4 + ["auto"] * 2
    assert [kinds[k].divide for k in "EF"] == [False, True]
    assert (kinds["G"].real_share, kinds["F"].a, kinds["F"].huber) == (0.1, 4.0, 0.00054)
    assert kinds["F"].feature_weight == 1


# -- exact flows ------------------------------------------------------------------------------------------------------


class Reflowed(nn.Module):
    """The exact 2-flow of x_0 = m + tau eps, as a velocity."""

    def forward(self, x: Tensor, t: Tensor, *rest: Any) -> Tensor:
        t = t.view(-1, 1)
        return (1 - TAU) * (x - (1 - t) * M) / ((1 - t) * TAU + t) - M


def test_the_reflow_of_a_linear_map_is_straight_and_exact_in_one_step() -> None:
    flow, eps = Denoiser(Reflowed(), "flow", "velocity"), normal(50, 3)
    x0 = M + TAU * eps
    for solver in ("euler", "anchored", "heun", "anchored-heun", "ddim"):
        for steps in (1, 2, 5):
            made = field_sampler(flow, steps, solver)(eps)
            assert (made - x0).abs().max() < 2e-5, (solver, steps)  # the noise is eps (1 - 1e-5)
    sampler = field_sampler(flow, 32)
    assert straightness(sampler.trajectory(eps), sampler.times()).max() < 1e-12
    _, loss = loss_by_time(flow, eps, x0, None)
    assert loss.max() < 1e-20
    noise = normal(50, 3, seed=1)
    # the start is off the path by what the mixed-in noise is off the true one
    assert (invert(sampler, x0, None, noise, 4) - eps).abs().max() < 0.02
    exact = invert(sampler, x0, None, eps, 4)
    assert (exact - eps).abs().max() < 1e-12
    assert round_trip(sampler, x0, None, eps, 3).max() < 2e-5


def test_a_trained_reflow_of_a_linear_map_is_straight() -> None:
    """The method itself on a Gaussian teacher: the velocity of a 2-flow, unlike the teacher's, is one of the pair."""
    torch.manual_seed(0)
    points = M + TAU * torch.randn(400, 2)
    teacher = mixture(NAMED["edm"], torch.full((1, 2), M), TAU)
    network = build_denoiser_network("mlp:32x2", shape=(2,), classes=0, seed=0)
    student = Denoiser(network, "edm", "edm")
    sampler = Sampler(teacher, Plan("heun", 18, "karras"))
    on = Generation(conditional=False).quick().using(data=points, teacher=sampler, student=student)
    method = configuration("D", pairs=2000)
    engine = replace(ENGINE, steps=300, batch_size=64, recipe=Recipe("adam", lr=3e-3, ema=0.98))
    result = method.run(on, Fitter(engine, on, 0))
    eps = normal(500, 2).float()
    one_step = result.product(eps)
    assert (one_step - (M + TAU * eps)).square().mean().sqrt() < 0.2  # of a first flow it is .5
    assert result.extra["straightness of the student"] < 0.02
    # S of a 1-flow is .2146 a dimension at tau = .5, less in 32 steps of Euler's rule
    assert result.extra["straightness of the teacher's flow"] == pytest.approx(0.2146, abs=0.03)


def test_the_straightness_of_a_first_flow_is_known() -> None:
    """d times the integral of (f' - (1 - tau))^2, f = sqrt((1 - t)^2 tau^2 + t^2): .2146 d at tau = .5."""
    sampler, eps = field_sampler(gaussian_flow(), 500), normal(50, 3, seed=5)
    each = straightness(sampler.trajectory(eps), sampler.times()) / eps.square().sum(1)  # its mean is d
    assert each.tolist() == pytest.approx([0.2146] * 50, rel=5e-3)
    one = field_sampler(gaussian_flow())(eps)
    assert (one - M).abs().max() < 1e-3  # one step of a first flow gives the mean


def test_one_step_of_both_rules_is_one_and_so_are_two() -> None:
    """From t = 1 Euler's first step is a mixture with the starting noise: the rules part at the third."""
    flow, eps = gaussian_flow(), normal(20, 3)
    made = {(s, n): field_sampler(flow, n, s)(eps) for s in ("euler", "anchored") for n in (1, 2, 3)}
    assert (made["euler", 1] - made["anchored", 1]).abs().max() < 1e-7
    assert (made["euler", 2] - made["anchored", 2]).abs().max() < 1e-4
    assert (made["euler", 3] - made["anchored", 3]).abs().max() > 1e-2
    heun = [field_sampler(flow, 1, s)(eps) for s in ("heun", "anchored-heun")]
    assert (heun[0] - made["euler", 1]).abs().max() < 1e-7
    assert (heun[1] - made["euler", 1]).abs().max() < 1e-7
    assert field_sampler(flow, 3, "anchored-heun").evaluations == 5


@pytest.mark.parametrize("t", [0.2, 0.5, 0.9])
def test_lines_cross_where_the_noise_is_no_sample(t: float) -> None:
    eps, x0, other = normal(30, 64), normal(30, 64, seed=1), normal(30, 64, seed=2)
    at = torch.full((30,), t, dtype=torch.float64)
    meeting = crossing_noise(eps, x0, other, at)
    here, there = (1 - t) * x0 + t * eps, (1 - t) * other + t * meeting
    assert (here - there).abs().max() < 1e-12
    if t < 0.6:  # off the shell of Gaussian noise, sqrt(64) +- 1/sqrt(2), by many deviations
        assert ((meeting.norm(dim=1) - 8).abs() > 5 / math.sqrt(2)).double().mean() > (
            0.99 if t < 0.3 else 0.5
        )


def test_inversion_and_sampling_converge_to_the_exact_map() -> None:
    flow, x, t = gaussian_flow(), M + TAU * normal(10, 3), torch.tensor(1e-3, dtype=torch.float64)
    noise = normal(10, 3, seed=1)
    x_t = (1 - 1e-3) * x + 1e-3 * noise
    wanted = gaussian_map(NAMED["flow"], M, TAU, x_t, t, torch.ones((), dtype=torch.float64))
    sampler = field_sampler(flow)
    errors = [(invert(sampler, x, None, noise, n) - wanted).abs().max().item() for n in (32, 128)]
    assert errors[1] < errors[0] / 3 < 0.04
    assert round_trip(sampler, x, None, noise, 128).max() < round_trip(sampler, x, None, noise, 8).min()


def test_the_loss_by_time_of_a_flow_that_knows_nothing() -> None:
    """A velocity of 0 errs by ||eps - x0||^2 / d at all times; the middle times are as said."""

    class Nothing(nn.Module):
        def forward(self, x: Tensor, *rest: Any) -> Tensor:
            return torch.zeros_like(x)

    eps, x0 = normal(40, 3), normal(40, 3, seed=1)
    middles, loss = loss_by_time(Denoiser(Nothing(), "flow", "velocity"), eps, x0, None, 4)
    assert middles.tolist() == [0.125, 0.375, 0.625, 0.875]
    assert loss.tolist() == pytest.approx([(eps - x0).square().mean().item()] * 4)


# -- the authors' code on the same tensors ----------------------------------------------------------------------------


class Sine(nn.Module):
    def forward(self, x: Tensor, c: Tensor, *rest: Any) -> Tensor:
        return torch.sin(1.3 * x + c.view(-1, 1, 1, 1))


def sine() -> Denoiser:
    return as_flow(Denoiser(Sine(), "edm", "edm", sigma_data=0.5))


@pytest.mark.parametrize(
    ("t", "wanted"),
    [
        (1e-3, [0.512779, 0.204682, -1.145899, -1.817465, 0.611961, 0.895858, -1.436472, 0.301659]),
        (0.05, [-0.330684, 0.192487, -1.695621, -0.554719, 1.316183, 0.386237, -0.910039, 1.077429]),
        (0.3, [-0.466226, -1.18191, -0.49475, 2.101757, 0.78912, -0.01724, 1.605107, 0.474091]),
        (0.7, [-0.113586, -0.819165, 0.280247, 2.664398, -0.161883, -0.145789, 3.293992, -0.244612]),
        (0.95, [-0.168061, -0.831771, 0.321955, 2.073551, -0.546449, -0.299317, 2.58255, -0.61108]),
        (1 - 1e-5, [0.362986, -1.684106, 1.150334, 2.302398, -0.895895, 0.033348, 2.459342, -1.161106]),
    ],
)
def test_velocities_are_those_of_the_authors_wrapper(t: float, wanted: list[float]) -> None:
    """Their EDMPrecondVel around sin(1.3 x + c_noise)."""
    got = sine().estimate(Z, torch.full((2,), t)).velocity.flatten().tolist()
    assert got == pytest.approx(wanted, abs=2e-4 if t == 1e-3 else 2e-5)


@pytest.mark.parametrize(
    ("solver", "steps", "wanted", "straight"),
    [
        (
            "euler",
            1,
            [-0.06298, 0.484092, -0.350319, -0.402382, 0.395884, 0.066653, -0.25933, 0.461093],
            [0, 0],
        ),
        (
            "euler",
            4,
            [0.417418, -0.856791, 0.791831, 1.021857, -0.491084, 0.201509, 1.03481, -0.657775],
            [0.6149051, 0.5647763],
        ),
        (
            "heun",
            3,
            [0.520634, -0.843237, 0.879658, 0.912158, -0.669121, 0.224924, 0.892347, -0.787565],
            [0.1499485, 0.1839626],
        ),
        (
            "anchored",
            2,
            [0.169098, -0.473919, 0.313255, 0.740245, -0.074828, 0.119448, 0.734262, -0.170417],
            [0.6793935, 0.4025963],
        ),
        (
            "anchored",
            4,
            [0.56376, -0.8989, 0.942435, 1.05521, -0.685538, 0.255259, 1.067027, -0.814801],
            [0.5735829, 0.5010892],
        ),
        (
            "anchored-heun",
            3,
            [0.592458, -0.837431, 0.914647, 0.891506, -0.746839, 0.250756, 0.871673, -0.82606],
            [0.1804588, 0.2228108],
        ),
    ],
)
def test_samplers_are_the_authors(
    solver: str, steps: int, wanted: list[float], straight: list[float]
) -> None:
    """Their sample_ode_generative ('default' and 'new') and straightness, from z (1 - 1e-5); theirs is a mean over d.

    Their grids are uniform but for the first time, ours between the ends: they differ by 1e-5.
    """
    sampler = field_sampler(sine(), steps, solver)
    states = sampler.trajectory(Z)
    assert states[-1].flatten().tolist() == pytest.approx(wanted, abs=6e-5)
    found = straightness(states, sampler.times()) / 4
    assert found.tolist() == pytest.approx(straight, abs=1e-4)


def test_the_inversion_is_the_authors() -> None:
    wanted = [0.107844, -0.113117, 0.156101, 0.204946, 0.026882, 0.086685, 0.219952, 0.002926]
    got = invert(field_sampler(sine()), Z * 0.4, None, Z.flip(0), 4)
    assert got.flatten().tolist() == pytest.approx(wanted, abs=2e-4)


# -- pairs ------------------------------------------------------------------------------------------------------------


def test_pairs_are_unit_noise_and_what_the_teacher_makes_of_it() -> None:
    on = task(guidance=2.0)
    sampler = on.make_teacher().module
    source = sampled_pairs(on, sampler, 30)
    x, y = source.fetch(torch.arange(30), None)
    eps, x0 = x.unbind(1)
    assert y is not None
    assert sampler.plan.guidance == 2.0
    assert torch.allclose(sampler(eps, y), x0, rtol=1e-3, atol=1e-3)
    assert 0.9 < float(row_noise(range(200), (64,), 0, 0).std()) < 1.1
    assert torch.equal(eps, row_noise(range(30), on.space.shape, 0, 0))
    assert torch.equal(row_noise(range(7, 9), (3,), 0, 0), row_noise(range(20), (3,), 0, 0)[7:9])
    held = sampled_pairs(on, sampler, 30, HELD_OUT).fetch(torch.arange(30), None)[0]
    assert not torch.equal(held[:, 0], eps)
    assert len(sampled_pairs(task(conditional=False), task(conditional=False).make_teacher().module, 8)) == 8


def test_inverted_pairs_are_real_samples_and_the_noise_of_the_first_flow() -> None:
    on = task()
    first = field_sampler(as_flow(on.make_teacher().module.denoiser))
    source = inverted_pairs(on, first, 4)
    x, y = source.fetch(torch.arange(10), None)
    real, labels = on.train().fetch(torch.arange(10), None)
    assert len(source) == len(on.train())
    assert torch.allclose(x[:, 1], real, atol=1e-3)
    assert torch.equal(y, labels)  # type: ignore[arg-type]
    noise = row_noise(range(10), on.space.shape, 0, 2)
    assert torch.allclose(x[:, 0], invert(first, real, labels, noise, 4), atol=5e-3)


# -- the method -------------------------------------------------------------------------------------------------------


def trained(method: RectifiedFlowPlusPlus, on: Generation, **changes: Any) -> Any:
    fitter = Fitter(replace(ENGINE, **changes), on, 0)
    return method.run(on, fitter), fitter


def test_stages_share_the_updates_and_start_where_the_last_one_ended() -> None:
    on, method = task(), RectifiedFlowPlusPlus(rounds=2, real_share=0.25, features="none").quick()
    assert method._counts(Engine(steps=9, batch_size=16)) == {"reflow": 4, "reflow-2": 3, "real": 2}
    assert method._counts(Engine(epochs=2, batch_size=16)) == {"reflow": 3, "reflow-2": 3, "real": 2}
    result, fitter = trained(method, on, steps=9)
    assert (result.steps, fitter.stages) == (9, 3)
    alone, other = trained(replace(method, rounds=1, real_share=0.0), on, steps=9)
    assert (alone.steps, other.stages) == (9, 0)
    still = replace(ENGINE.recipe, lr=1e-12)
    result, _ = trained(method, on, steps=9, recipe=still)
    teacher = on.make_teacher().module.denoiser
    assert all(torch.allclose(a, b, atol=1e-8) for a, b in _paired(result.product.denoiser, teacher))
    with pytest.raises(UserError, match="2 reflows and 1 updates on real samples do not fit into 2 updates"):
        method._counts(Engine(steps=2))


def _paired(one: nn.Module, other: nn.Module) -> list[tuple[Tensor, Tensor]]:
    return list(zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_a_second_reflow_learns_the_first_ones_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    on, seen = task(), []
    own = RectifiedFlowPlusPlus.updates

    def watched(self: RectifiedFlowPlusPlus, batch: Batch) -> Any:
        if batch.clock.step == 0:
            source = self.source(on)
            seen.append((source, copy.deepcopy(self.student)))
        return own(self, batch)

    monkeypatch.setattr(RectifiedFlowPlusPlus, "updates", watched)
    trained(RectifiedFlowPlusPlus(rounds=2, real_share=0.25, features="none").quick(), on)
    (first, _), (second, flow), (real, _) = seen
    x, y = second.fetch(torch.arange(20), None)
    made = field_sampler(flow, on.steps, "heun")(x[:, 0], y)
    assert torch.allclose(made, x[:, 1], atol=5e-3)
    assert torch.equal(first.fetch(torch.arange(20), None)[0][:, 0], x[:, 0])
    assert len(real) == len(on.train())


def test_stages_that_were_killed_go_on(tmp_path: Path) -> None:
    class Crash(Watcher):
        steps = 0

        def stepped(self, step: int, row: Any) -> None:
            self.steps += 1
            if self.steps == 3:
                raise ConnectionAbortedError

    on, method = task(), RectifiedFlowPlusPlus(rounds=2, real_share=0.25, features="none").quick()
    engine = replace(ENGINE, steps=8, checkpoint_every=1)
    whole = method.run(on, Fitter(engine, on, 0, tmp_path / "whole")).product
    for stop in ("", "-2"):  # inside the first stage, then inside the second
        watch = lambda stage, stop=stop: Crash() if stage == f"reflow{stop}" else Watcher()  # noqa: E731
        with pytest.raises(ConnectionAbortedError):
            method.run(on, Fitter(engine, on, 0, tmp_path / "broken", watch))
    again = method.run(on, Fitter(engine, on, 0, tmp_path / "broken")).product
    assert same(weights_of(whole), weights_of(again))


def test_random_weights_are_random_and_the_seeds() -> None:
    on = task()
    weights = []
    for letter, seed in (("B", 0), ("A", 0), ("A", 0), ("A", 1)):
        method = configuration(letter)
        method.bind(on, seed)
        weights.append(weights_of(method.student))
    teacher = weights_of(on.make_teacher().module.denoiser)
    assert same(weights[0], teacher)
    assert same(weights[1], weights[2])
    assert not same(weights[1], weights[3])
    assert not same(weights[1], teacher)
    mine = Denoiser(Sine(), "edm", "edm")
    with pytest.raises(UserError, match="^Sine cannot be made anew with random weights: pass --task.student"):
        fresh_copy(mine, 0)


@pytest.mark.parametrize(
    "changes",
    [
        {"data": "checkerboard", "conditional": False},
        {"data": "eight-gaussians"},
        {"process": "cosine"},
        {"process": "flow"},
        {"process": "linear", "prediction": "eps"},
        {"process": "scaled-linear", "prediction": "v"},
        {"conditional": False},
        {"guidance": 2.0},
    ],
)
def test_it_runs_on_points_on_every_process_and_guided(changes: dict) -> None:
    on = task(FewEvaluations, **changes)
    result, _ = trained(RectifiedFlowPlusPlus(steps=2).quick(), on)
    product = result.product
    assert (product.evaluations, product.plan.guidance) == (2, 1.0)
    assert product.denoiser.process.name == "flow"
    score = on.score(product, "test", Runtime())
    wanted = {
        f"{on.metric} in two steps",
        f"{on.metric} in four steps, Euler",
        f"{on.metric} in four steps, new rule",
    }
    assert wanted | {"straightness"} <= score.keys()
    assert all(math.isfinite(v) for v in score.values() if isinstance(v, float))
    assert on.score(on.make_teacher().module, "test", Runtime())["straightness"] > 0
    assert all(math.isfinite(value) for value in result.extra.values())


def test_it_runs_on_diffusers_teachers_and_on_a_users_own() -> None:
    library = pytest.importorskip("diffusers")
    model = library.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8,),
        norm_num_groups=8,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        num_class_embeds=11,
    )
    mine = build_denoiser_network("mlp:16x2", shape=(1, 8, 8), classes=0, seed=3)
    holder = nn.Module()
    holder.inner, holder.forward = mine, mine.forward  # type: ignore[assignment]
    for teacher in (
        Denoiser(wrap(copy.deepcopy(model)), "linear", "eps", classes=10, clock="index"),
        Denoiser(wrap(copy.deepcopy(model)), "edm", "edm", classes=10),
        Denoiser(holder, "edm", "edm"),
    ):
        on = Generation(conditional=teacher.conditional).quick().using(teacher=teacher)
        on.check(0, True)
        before = copy.deepcopy(teacher.state_dict())
        method = RectifiedFlowPlusPlus(pairs=8, features="classifier")
        result, _ = trained(method, on, steps=2, batch_size=8)
        assert all(torch.equal(before[key], value) for key, value in teacher.state_dict().items())
        labels = torch.arange(3) if teacher.conditional else None
        assert torch.isfinite(result.product(torch.randn(3, 1, 8, 8), labels)).all()


def test_a_whole_run_is_drawn_measured_and_loaded_again(tmp_path: Path) -> None:
    on, method = task(), RectifiedFlowPlusPlus().quick()
    run, product = execute(Job(method, on, ENGINE, 0), tmp_path / "run")
    assert [figure["title"] for figure in method.figures()] == ["Loss by time", "Inversion"]
    extra = Run.open(tmp_path / "run").result["arms"]["rfpp"]["extra"]
    assert extra["bytes of pairs"] == 64 * (2 * 64 * 2 + 8)
    assert len([name for name in extra if name.startswith("loss of the student")]) == 20
    page = (run.path / "report.html").read_text()
    assert "Loss by time" in page
    noise, labels = torch.randn(4, 1, 8, 8), torch.arange(4)
    again = load_sampler(run.path / "student")
    with torch.no_grad():
        assert torch.allclose(again(noise, labels), product.eval()(noise, labels), atol=1e-6)
    assert again.plan == product.plan
    opponent = RectifiedFlowPlusPlus(steps=2).baseline(on)
    assert isinstance(opponent, FewSteps)
    assert opponent.steps == 2


def test_a_users_points_and_model_in_one_call(tmp_path: Path) -> None:
    points = torch.cat([torch.randn(60, 2) * 0.1 - 1, torch.randn(60, 2) * 0.1 + 1])
    teacher = mixture(NAMED["edm"], torch.tensor([[-1.0, -1.0], [1.0, 1.0]]), 0.1)
    student = Denoiser(build_denoiser_network("mlp:16x1", shape=(2,), classes=0, seed=0), "edm", "edm")
    chosen = RectifiedFlowPlusPlus(pairs=60)
    on = Generation(conditional=False, score_samples=50)
    product, _ = distill(teacher, student, points, chosen, task=on, engine=ENGINE, out=tmp_path / "run")
    assert product(torch.randn(5, 2)).shape == (5, 2)


def test_claims_hold_their_arms_and_rules() -> None:
    digits, board = RectifiedFlowPlusPlus.claims()
    assert (digits.name, board.name) == ("rfpp-digits", "rfpp-checkerboard")
    for claim in (digits, board):
        letters = [arm[0] for arm in claim.arms]
        assert letters[:4] == ["A", "B", "L", "C"]
        assert {rule.better[0] + rule.worse[0] for rule in claim.rules if rule.headline} == {
            "CB",
            f"{letters[4]}B",
            f"{letters[4]}A",
        }
        assert [m.rounds for m in claim.arms.values()][-2:] == [2, 2]  # type: ignore[attr-defined]
    assert catalogue.find("rfpp").load() is RectifiedFlowPlusPlus


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"pairs": 1}, "--method.pairs is 1: pass 2 or more"),
        ({"a": 0.0}, "--method.a is 0.0: pass a number from 0 (itself excluded) to 40"),
        ({"huber": 0.0}, "--method.huber is 0.0: pass a number above 0"),
        ({"feature_weight": -1.0}, "--method.feature-weight is -1.0: pass 0 or more"),
        ({"rounds": 0}, "--method.rounds is 0: pass 1 or more"),
        ({"real_share": 1.0}, "--method.real-share is 1.0: pass a number from 0 to 1 (itself excluded)"),
        ({"steps": 0}, "--method.steps is 0: pass 1 or more"),
    ],
)
def test_mistakes_are_one_line(changes: dict, line: str) -> None:
    with pytest.raises(UserError) as told:
        RectifiedFlowPlusPlus(**changes).check()
    assert str(told.value) == line


def test_a_feature_metric_is_for_images() -> None:
    points = task(data="checkerboard")
    assert feature_metric("auto", points, 0) is None
    for kind in ("classifier", "lpips"):
        with pytest.raises(
            UserError, match=rf"^--method.features {kind} compares images, and flows on 'checkerb"
        ):
            feature_metric(kind, points, 0)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="^--method.features 'vgg' is unknown"):
        feature_metric("vgg", points, 0)  # type: ignore[arg-type]
    assert isinstance(feature_metric("auto", Generation(), 0), NetworkDistance)

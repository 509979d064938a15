"""Guided distillation: its targets in closed form, both samplers, what it does with w, and what it refuses."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from laws import gaussian_map, mixture
from stillroom.engine import Engine, Watcher
from stillroom.errors import UserError
from stillroom.fitter import Fitter
from stillroom.generators.generation import Generation
from stillroom.generators.parts.denoiser import Denoiser
from stillroom.generators.parts.estimate import Estimate
from stillroom.generators.parts.guidance import GuidanceRegression, clean_error
from stillroom.generators.parts.process import NAMED, Process
from stillroom.generators.parts.sampler import FixedGuidance, Plan, Sampler
from stillroom.generators.parts.saving import load_sampler, save_sampler
from stillroom.generators.parts.solvers import SOLVERS, Way, ddim_step, forward_step, row_noise
from stillroom.generators.sweep import GuidanceSweep
from stillroom.generators.trajectories.guided_distillation import (
    GuidedDistillation,
    Halving,
    StageOne,
    budget,
    edit,
    encode,
    grid_times,
    halvings,
    inpaint,
    largest_time,
    least_time,
    transfer,
    two_steps,
    well_conditioned,
)
from stillroom.generators.undistilled import FewSteps
from stillroom.method import Batch, Clock, Noise, Update
from stillroom.models.denoisers import build_denoiser_network
from stillroom.models.denoisers.library import scale_features, wrap
from stillroom.optim import Recipe
from stillroom.runtime import Runtime
from stillroom.teaching import teach
from stillroom.workflow import Job
from toys import same, weights_of

ENGINE = Engine(steps=6, batch_size=16, recipe=Recipe("adam", lr=1e-3, ema=0.5), evaluate_every=0)
CENTRES = torch.tensor([[1.0, 0.0], [-1.0, 0.5]], dtype=torch.float64)
PROCESSES = ["cosine", "edm", "flow", "linear"]


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


class GuidedLaw(nn.Module):
    """D^w of a mixture in closed form, a network that takes w."""

    def __init__(self, process: Process) -> None:
        super().__init__()
        self.law = mixture(process, CENTRES, 0.3, conditional=True)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor, guidance: Tensor) -> Tensor:
        return self.law.guided(x, t, condition, guidance).x0


def law(process: Process) -> Denoiser:
    return Denoiser(GuidedLaw(process), process, "x0", classes=2, takes_guidance=True)


class Halved(nn.Module):
    """Exactly the target of a halving to `steps` steps."""

    def __init__(self, model: Denoiser, steps: int, last: float, sampling: Any) -> None:
        super().__init__()
        self.model, self.steps, self.last, self.sampling = model, steps, last, sampling

    def forward(self, x: Tensor, t: Tensor, condition: Tensor, guidance: Tensor) -> Tensor:
        i = (t * self.steps / self.last).round()
        process = self.model.process
        high, middle, low = grid_times(i, self.steps, process, self.last, self.sampling, "decode")
        assert torch.allclose(high, t)
        return two_steps(self.model, x, high, middle, low, condition, guidance)


# -- the targets ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("scale", [1.0, 2.5, 4.0])
def test_the_target_in_n_steps_is_the_model_in_twice_as_many(name: str, scale: float) -> None:
    """Exact check 2, at several scales, from the noisiest time to data."""
    process = NAMED[name]
    last = 3.0 if name == "edm" else 1.0
    model, c = law(process), torch.tensor([0, 1, 0])
    student = Denoiser(Halved(model, 4, last, "deterministic"), process, "x0", classes=2, takes_guidance=True)
    noise = normal(3, 2)
    ours = Sampler(student, Plan("ddim", 4, guidance=scale, start=last))(noise, c)
    theirs = Sampler(model, Plan("ddim", 8, guidance=scale, start=last))(noise, c)
    assert (ours - theirs).abs().max() < 1e-10
    other = Sampler(model, Plan("ddim", 8, guidance=scale + 1, start=last))(noise, c)
    assert (ours - other).abs().max() > 1e-3


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("direction", ["decode", "encode"])
def test_one_step_with_the_target_lands_where_two_do(name: str, direction: Any) -> None:
    """Exact check 1 with this method's own times: each sample its own step, w and class."""
    process, model = NAMED[name], law(NAMED[name])
    last = 3.0 if name == "edm" else 1.0
    i, c = torch.arange(1, 9, dtype=torch.float64), torch.arange(8) % 2
    w = torch.linspace(1, 4, 8, dtype=torch.float64)
    t, middle, end = grid_times(i, 8, process, last, "deterministic", direction)
    x = normal(8, 2)
    half = ddim_step(model.estimate(x, t, c, w), middle)
    whole = ddim_step(model.estimate(half, middle, c, w), end)
    solved = two_steps(model, x, t, middle, end, c, w)
    landed = ddim_step(Estimate(process, x, t, "x0", solved), end)
    assert (landed - whole).abs().max() < 1e-11
    if direction == "decode":
        assert (solved - model(x, t, c, w)).abs().max() > 1e-4
        assert torch.allclose(solved[0], whole[0])  # where t'' is 0


def test_times_of_a_step() -> None:
    i = torch.tensor([1.0, 2.0, 4.0])
    process = NAMED["cosine"]
    t, middle, end = grid_times(i, 4, process, 1.0, "deterministic", "decode")
    assert torch.equal(t, torch.tensor([0.25, 0.5, 1.0]))
    assert torch.equal(middle, torch.tensor([0.125, 0.375, 0.875]))
    assert torch.equal(end, torch.tensor([0.0, 0.25, 0.75]))
    t, middle, end = grid_times(i, 4, process, 0.8, "stochastic", "decode")
    assert torch.allclose(t, torch.tensor([0.2, 0.4, 0.8]))
    assert torch.allclose(middle, torch.tensor([0.1, 0.2, 0.6]))
    assert torch.allclose(end, torch.tensor([0.0, 0.0, 0.4]))
    low = least_time(process)
    t, middle, end = grid_times(i, 4, process, 1.0, "deterministic", "encode")
    assert torch.allclose(t, torch.tensor([low, 0.25, 0.75]))
    assert torch.allclose(middle, torch.tensor([(low + 0.25) / 2, 0.375, 0.875]))
    assert torch.equal(end, torch.tensor([0.25, 0.5, 1.0]))
    assert float(process.ratio(torch.tensor(low))) == pytest.approx(0.002)
    assert least_time(NAMED["linear"]) == 1e-3


def test_the_weight_is_the_larger_of_two_errors() -> None:
    """max(SNR, 1) ||dD||^2 is the larger of the errors of x0 and of eps (Salimans and Ho, 2022, section 4)."""
    process, t = NAMED["cosine"], torch.tensor([0.1, 0.5, 0.9, 1.0], dtype=torch.float64)
    x, a, b = normal(3, 4, 5)
    found = clean_error(process, t, a, b)
    one, other = Estimate(process, x, t, "x0", a), Estimate(process, x, t, "x0", b)
    clean, noise = (a - b).square().sum(1), (one.eps - other.eps).square().sum(1)
    assert torch.allclose(found, torch.maximum(clean, noise))
    assert found[0] == pytest.approx(noise[0].item())
    assert found[3] == pytest.approx(clean[3].item())


def test_rounds_and_their_updates() -> None:
    assert halvings(64, 4) == [32, 16, 8, 4]
    assert halvings(24, 3) == [12, 6, 3]
    assert [halvings(a, b) for a, b in ((48, 4), (4, 4), (2, 4), (0, 1))] == [[], [], [], []]
    assert budget(7000, 2 / 7, [32, 16, 8, 4]) == [2000, 1000, 1000, 1000, 2000]
    assert budget(3500, 0.0, [4, 2]) == [0, 1750, 1750]
    assert budget(3, 0.3, [8, 4, 2, 1]) == [1, 1, 1, 1, 1]
    assert sum(budget(1001, 0.37, [64, 32, 16, 8, 4, 2, 1])) == 1001


# -- the stochastic sampler -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROCESSES)
def test_the_way_back_up_has_one_variance(name: str) -> None:
    """Exact check 4: (1 - e^(lambda_s - lambda_k)) sigma_s^2, and the marginal law that it keeps."""
    process = NAMED[name]
    for k, s in ((0.1, 0.2), (0.4, 0.9), (0.0, 0.3)):
        k, s = torch.tensor(k, dtype=torch.float64), torch.tensor(s, dtype=torch.float64)
        one, none = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
        share = forward_step(process, one, k, s, none).square()
        fresh = forward_step(process, none, k, s, one).square()
        ratio = (process.ratio(k) / process.ratio(s)).square()  # e^(lambda_s - lambda_k)
        assert abs((1 - ratio) * process.sigma(s).square() - fresh) < 1e-12
        assert abs(share - (process.alpha(s) / process.alpha(k)).square()) < 1e-12
        kept = share * ((process.alpha(k) * 0.4).square() + process.sigma(k).square()) + fresh
        assert abs(kept - ((process.alpha(s) * 0.4).square() + process.sigma(s).square())) < 1e-12


@pytest.mark.parametrize("name", ["cosine", "flow"])
def test_the_stochastic_sampler_keeps_the_law_at_every_time(name: str) -> None:
    """Exact check 4: with the exact map of N(.3, .4^2) as the jump, from N(alpha m, alpha^2 tau^2 + sigma^2)."""
    process, mean, spread = NAMED[name], 0.3, 0.4
    times = torch.linspace(0.9, 0, 7, dtype=torch.float64)

    def jump(x: Tensor, t: Tensor) -> Estimate:
        at = int((times - t[0]).abs().argmin())
        k = times[min(at + 2, 6)]
        there = gaussian_map(process, mean, spread, x, times[at], k)
        share = process.sigma(k) / process.sigma(times[at])
        x0 = (there - share * x) / (process.alpha(k) - share * process.alpha(times[at]))
        return Estimate(process, x, t, "x0", x0)

    states: list[Tensor] = []
    start = process.alpha(times[0]) * mean + normal(20, 10_000) * math.sqrt(
        float((process.alpha(times[0]) * spread) ** 2 + process.sigma(times[0]) ** 2)
    )
    SOLVERS["renoised"](Way(process, jump, states.append), start, times)
    assert len(states) == 6
    for state, t in zip(states, times[1:], strict=True):
        variance = float((process.alpha(t) * spread) ** 2 + process.sigma(t) ** 2)
        assert state.mean().item() == pytest.approx(float(process.alpha(t)) * mean, abs=5e-3)
        assert state.var().item() == pytest.approx(variance, rel=0.015)
    # fresh noise came in: a state on the way is not a function of the start alone, as the exact ODE's is
    exact = gaussian_map(process, mean, spread, start, times[0], times[3])
    assert (states[2] - exact).std() > 0.1


def test_fresh_noise_is_a_function_of_the_row_and_the_step() -> None:
    x = normal(5, 3, 4, dtype=torch.float32)
    whole = row_noise(x, 1)
    assert torch.equal(whole, torch.cat([row_noise(x[:2], 1), row_noise(x[2:], 1)]))
    assert not torch.equal(whole, row_noise(x, 2))
    assert not torch.equal(whole[0], whole[1])
    many = row_noise(normal(50, 2000, dtype=torch.float32), 0)
    assert many.mean().abs() < 0.01
    assert many.std().item() == pytest.approx(1, abs=0.01)
    assert (many * normal(50, 2000, dtype=torch.float32)).mean().abs() < 0.01


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_stochastic_sampler_asks_once_a_step_and_does_not_see_the_batch(steps: int) -> None:
    asked = []
    model = law(NAMED["cosine"])
    model.network.register_forward_hook(lambda *_: asked.append(1))
    sampler = Sampler(model, Plan("renoised", steps, guidance=2.0))
    noise, c = normal(6, 2), torch.arange(6) % 2
    made = sampler(noise, c)
    assert len(asked) == sampler.evaluations == steps
    parts = [sampler(noise[i : i + 1], c[i : i + 1]) for i in range(6)]
    assert torch.allclose(made, torch.cat(parts), atol=1e-12)
    assert torch.equal(made, sampler(noise, c))
    assert sampler.trajectory(noise, c).shape == (steps + 1, 6, 2)


def test_the_target_of_a_double_jump_is_two_of_the_models_own() -> None:
    """In N steps, t'' is 2/N below: two jumps of the 2N-step student, whose own are as long."""
    process, model = NAMED["cosine"], law(NAMED["cosine"])
    student = Denoiser(Halved(model, 4, 1.0, "stochastic"), process, "x0", classes=2, takes_guidance=True)
    x, c = normal(3, 2), torch.tensor([0, 1, 1])
    t, k = torch.tensor(1.0, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)
    w = torch.full((3,), 3.0, dtype=torch.float64)
    ours = ddim_step(student.estimate(x, t, c, w), k)
    half = ddim_step(model.estimate(x, t, c, w), torch.tensor(0.75, dtype=torch.float64))
    theirs = ddim_step(model.estimate(half, torch.tensor(0.75, dtype=torch.float64), c, w), k)
    assert (ours - theirs).abs().max() < 1e-12


# -- up to noise, and what else a student does ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cosine", "flow", "linear"])
def test_what_is_encoded_comes_back(name: str) -> None:
    """Up and down in many steps; with a halved encoder as with the model in twice its steps."""
    process, c = NAMED[name], torch.tensor([0, 1, 0, 1])
    model = law(process)
    x = CENTRES[c] + 0.3 * normal(4, 2)
    many = Sampler(model, Plan("ddim", 300))
    z = encode(many, x, c)
    assert (many(z, c) - x).abs().max() < 0.05

    class Up(nn.Module):
        def forward(self, x: Tensor, t: Tensor, condition: Tensor, guidance: Tensor) -> Tensor:
            i = (t * 8).round() + 1
            low, middle, high = grid_times(i, 8, process, 1.0, "deterministic", "encode")
            return two_steps(model, x, low, middle, high, condition, guidance)

    student = Denoiser(Up(), process, "x0", classes=2, takes_guidance=True)
    times = Sampler(model, Plan("ddim", 16)).times().flip(0)
    times[0], times[1] = least_time(process), (least_time(process) + 1 / 8) / 2
    theirs = SOLVERS["ddim"](Way(process, Sampler(model, Plan()).field(c)), x, times)
    ours = encode(Sampler(student, Plan("ddim", 8)), x, c)
    assert (ours * process.sigma(times[-1]) - theirs).abs().max() < 1e-9


def test_style_is_transferred_between_classes() -> None:
    many = Sampler(law(NAMED["cosine"]), Plan("ddim", 200))
    one, two = torch.zeros(50, dtype=torch.int64), torch.ones(50, dtype=torch.int64)
    x = CENTRES[0] + 0.3 * normal(50, 2)
    made = transfer(many, many, x, one, two)
    assert (made - x - (CENTRES[1] - CENTRES[0])).abs().max() < 0.05  # the same place in the other class


@pytest.mark.parametrize("solver", ["ddim", "renoised"])
def test_editing_takes_the_last_steps_and_fewer_of_them_stay_nearer(solver: Any) -> None:
    sampler = Sampler(law(NAMED["cosine"]), Plan(solver, 8, guidance=1.0))
    c, noise = torch.zeros(200, dtype=torch.int64), normal(200, 2)
    x = CENTRES[1].expand(200, 2)
    away = [(edit(sampler, x, noise, c, steps) - x).square().mean().item() for steps in (1, 4, 8)]
    assert away == sorted(away)
    assert away[0] < 0.5 < 2 < away[2]
    assert torch.allclose(edit(sampler, x, noise, c, 8), sampler(noise, c), atol=1e-3)
    with pytest.raises(UserError, match="steps is 9: pass a number from 1 to 8"):
        edit(sampler, x, noise, c, 9)


@pytest.mark.parametrize("solver", ["ddim", "renoised"])
def test_inpainting_keeps_what_is_known(solver: Any) -> None:
    """Of two correlated numbers one is known: the other follows it."""

    class Line(nn.Module):
        """Data (a, a), a from N(0, 1): x0 is the mean of both coordinates, scaled."""

        def forward(self, x: Tensor, t: Tensor, condition: Any, guidance: Any) -> Tensor:
            process = NAMED["cosine"]
            alpha, sigma = process.alpha(t), process.sigma(t)
            a = alpha * x.sum(1) / (2 * alpha.square() + sigma.square())
            return torch.stack([a, a], 1)

    sampler = Sampler(Denoiser(Line(), "cosine", "x0"), Plan(solver, 16))
    x, known = torch.full((300, 2), 1.5, dtype=torch.float64), torch.tensor([True, False])
    made = inpaint(sampler, x, known, normal(300, 2))
    assert torch.equal(made[:, 0], x[:, 0])
    assert made[:, 1].mean().item() == pytest.approx(1.5, abs=0.4)
    assert sampler(normal(300, 2))[:, 1].mean().abs() < 0.2
    with pytest.raises(UserError, match=r"known is torch.float64: pass booleans"):
        inpaint(sampler, x, x, x)


# -- the student's own form -------------------------------------------------------------------------------------------


def plain(process: str, prediction: str, guided: bool = False) -> Denoiser:
    network = build_denoiser_network("mlp:16x1", shape=(2,), classes=3, seed=0)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    made = Denoiser(network, process, prediction, classes=3)
    if guided:
        made.accept_guidance()
    return made


@pytest.mark.parametrize(
    ("process", "prediction", "wanted"),
    [
        ("cosine", "eps", "v"),
        ("linear", "eps", "v"),
        ("scaled-linear", "score", "v"),
        ("flow", "eps", "velocity"),
        ("edm", "eps", "x0"),
        ("cosine", "v", "v"),
        ("cosine", "x0", "x0"),
        ("flow", "velocity", "velocity"),
        ("edm", "edm", "edm"),
    ],
)
def test_an_error_of_the_network_is_not_blown_up_at_the_largest_time(
    process: str, prediction: str, wanted: str
) -> None:
    """D moves by no more than the output does; from eps it would move 14 to 200 times as far."""
    teacher = plain(process, prediction)
    student = well_conditioned(teacher)
    assert student.prediction == wanted
    assert (student is teacher) == (prediction == wanted)
    last = largest_time(student.process, student, teacher)
    x, t = 0.5 * normal(4, 2, dtype=torch.float32), torch.tensor(last)

    def moved(denoiser: Denoiser) -> float:
        before = denoiser(x, t)
        hook = denoiser.network.register_forward_hook(lambda module, args, output: output + 1e-2)
        after = denoiser(x, t)
        hook.remove()
        return (after - before).abs().max().item() / 1e-2

    assert moved(student) < 1.01
    assert torch.isfinite(student(x, t)).all()
    if student is not teacher:
        assert moved(teacher) > 10


def test_the_largest_time_is_one_that_the_teacher_knows() -> None:
    cosine, edm = NAMED["cosine"], plain("edm", "edm")
    assert largest_time(cosine, plain("cosine", "v")) == 1.0
    level = cosine.ratio(torch.tensor(largest_time(cosine, plain("cosine", "eps")), dtype=torch.float64))
    assert level == pytest.approx(200)
    level = cosine.ratio(torch.tensor(largest_time(cosine, edm.on("cosine")), dtype=torch.float64))
    assert level == pytest.approx(80)
    assert largest_time(NAMED["flow"], plain("flow", "velocity")) == 1.0


# -- stage one --------------------------------------------------------------------------------------------------------


def task(**changes: Any) -> GuidanceSweep:
    made = GuidedDistillation.default_task().quick().but(**changes)
    teach(made, ENGINE, None, Watcher)
    return made


def trained(method: GuidedDistillation, on: Generation, **changes: Any) -> Sampler:
    return method.quick().run(on, Fitter(replace(ENGINE, **changes), on, 0)).product


def listening() -> GuidanceSweep:
    """The task with a teacher whose answer depends on the class: nearly untrained ones have nothing to guide."""
    network = build_denoiser_network("mlp:16x1", shape=(1, 8, 8), classes=10, seed=0)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return (
        GuidedDistillation.default_task().quick().using(teacher=Denoiser(network, "cosine", "v", classes=10))
    )  # type: ignore[return-value]


def batch_of(x: Tensor, y: Tensor | None) -> Batch:
    noise = Noise(lambda draw: draw, slice(0, len(x)), len(x), torch.device("cpu"))
    return Batch(x, y, torch.arange(len(x)), Clock(0, 6, 0, 1), noise)  # type: ignore[arg-type]


def yielded(method: Any, x: Tensor, y: Tensor | None) -> Update:
    return next(method.updates(batch_of(x, y)))


def test_at_first_the_loss_at_scale_one_is_zero_and_the_teacher_gets_no_gradient() -> None:
    """Exact check 3; at other scales the loss is not zero, and the conditional answer does not depend on w."""
    on = listening()
    x, y = on.train().fetch(torch.arange(8), None)
    method = StageOne(1.0, 1.0 + 1e-9)
    method.bind(on, 0)
    assert yielded(method, x, y).loss.item() < 1e-9
    teacher = method.reference.denoiser
    method.guidance_high = 4.0
    loss = yielded(method, x, y).loss
    assert loss.item() > 1e-3
    loss.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert any(p.grad is not None and p.grad.any() for p in method.student.parameters())
    t = torch.tensor(0.6)
    assert y is not None
    for w in (1.0, 3.0):
        assert torch.equal(method.student(x, t, y, torch.tensor(w)), teacher(x, t, y))


def test_the_target_of_stage_one_is_the_guided_teacher() -> None:
    """The loss by hand: D(none) + w (D(c) - D(none)) against the conditional answer, max(SNR, 1)."""
    on = listening()
    x, y = on.train().fetch(torch.arange(8), None)
    method = StageOne(1.0, 4.0)
    method.bind(on, 0)
    own = batch_of(x, y).noise
    t, w = 1e-3 + (1 - 1e-3) * own.uniform(), 1 + 3 * own.uniform()
    noise = own.normal(*x.shape[1:])
    alpha, sigma = (math.pi / 2 * t).cos().view(-1, 1, 1, 1), (math.pi / 2 * t).sin().view(-1, 1, 1, 1)
    noised, teacher = alpha * x + sigma * noise, method.reference.denoiser
    given, none = teacher(noised, t, y), teacher(noised, t, torch.full_like(y, 10))  # type: ignore[arg-type]
    gap = (w.view(-1, 1, 1, 1) - 1) * (given - none)
    by_hand = ((alpha / sigma).square().clamp_min(1) * gap.square()).sum((1, 2, 3)).mean()
    assert yielded(method, x, y).loss.item() == pytest.approx(by_hand.item(), rel=1e-3)


def test_guidance_distilled_at_scale_one_is_the_conditional_model() -> None:
    """Trained at w = 1 alone, there is nothing to learn."""
    on = listening()
    recipe = Recipe("adam", lr=1e-4)
    product = Fitter(replace(ENGINE, recipe=recipe), on, 0)(StageOne(1.0, 1.0 + 1e-9)).product
    teacher = on.make_teacher().module
    noise, c = normal(5, 1, 8, 8, dtype=torch.float32), torch.arange(5)
    with torch.no_grad():
        assert torch.allclose(
            product.at(1.0)(noise, c), teacher.but(guidance=1.0, steps=64)(noise, c), atol=0.02
        )


@pytest.mark.parametrize("process", ["cosine", "edm", "flow", "linear"])
def test_stage_one_stays_within_the_teachers_times(process: str) -> None:
    on = task(process=process, prediction="eps" if process == "linear" else "auto")
    method = StageOne()
    method.bind(on, 0)
    student, last = method.student, method.last
    assert student.process == NAMED["cosine" if process == "edm" else process]
    assert method.sampling.start == last
    teacher = method.reference.denoiser.on(student.process)
    top = student.process.ratio(torch.tensor(last, dtype=torch.float64))
    wanted = {"cosine": math.inf, "edm": 80, "flow": math.inf, "linear": 157.4}[process]
    assert float(top) == pytest.approx(wanted, rel=1e-2) or math.isinf(wanted)
    assert torch.isfinite(teacher(torch.randn(2, 1, 8, 8), torch.tensor(last))).all()
    assert student.prediction == {"edm": "edm", "flow": "velocity"}.get(process, "v")


# -- stage two --------------------------------------------------------------------------------------------------------


def test_a_halving_starts_as_its_model_and_asks_no_teacher() -> None:
    on = task()
    model = Fitter(ENGINE, on, 0)(StageOne(steps=8)).product
    before = weights_of(model)
    stage = Halving(model, 4)
    stage.bind(on, 0)
    assert same(weights_of(stage.student), weights_of(model.denoiser))
    assert not {id(p) for p in stage.student.parameters()} & {id(p) for p in model.parameters()}
    assert set(stage.players()) == {"student"}
    assert not hasattr(stage, "teacher")
    product = Fitter(ENGINE, on, 0)(Halving(model, 4)).product
    assert same(before, weights_of(model))
    assert not same(before, weights_of(product))
    assert product.plan == replace(model.plan, steps=4)


def test_the_loss_of_a_halving_by_hand() -> None:
    on = listening()
    x, y = on.train().fetch(torch.arange(8), None)
    model = Fitter(ENGINE, on, 0)(StageOne(steps=8)).product
    stage = Halving(model, 4)
    stage.bind(on, 0)
    own, d = batch_of(x, y).noise, model.denoiser
    t = (own.integers(4).float() + 1) / 4
    w, noise = 1 + 3 * own.uniform(), own.normal(*x.shape[1:])

    def scales(t: Tensor) -> tuple[Tensor, Tensor]:
        return tuple(f(math.pi / 2 * t).view(-1, 1, 1, 1) for f in (torch.cos, torch.sin))  # type: ignore[return-value]

    def step(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        (a, b), (c, e) = scales(t), scales(s)
        clean = d(x, t, y, w)
        return c * clean + e * (x - a * clean) / b

    (a, b), (c, e) = scales(t), scales(t - 0.25)
    noised = a * x + b * noise
    with torch.no_grad():
        landed = step(step(noised, t, t - 0.125), t - 0.125, t - 0.25)
        wanted = (landed - e / b * noised) / (c - e / b * a)
        error = (stage.student(noised, t, y, w) - wanted).square().sum((1, 2, 3))
    by_hand = ((a / b).square().clamp_min(1).flatten() * error).mean()
    assert yielded(stage, x, y).loss.item() == pytest.approx(by_hand.item(), rel=1e-3)


def test_stages_come_in_order_with_their_own_rates_and_averages() -> None:
    on = task()
    seen: list[tuple[Any, str, dict]] = []

    class Watched(Fitter):
        def __call__(self, method: Any, stage: str = "", **changes: Any) -> Any:
            result = super().__call__(method, stage, **changes)
            seen.append((method, stage, {**changes, "kept": weights_of(result.product.denoiser)}))
            return result

    method = GuidedDistillation(start_steps=16, end_steps=2, stage_one_share=0.25, halving_rate=0.1)
    engine = replace(ENGINE, steps=24)
    result = method.run(on, Watched(engine, on, 0))
    assert [stage for _, stage, _ in seen] == ["guidance", "8-steps", "4-steps", "2-steps"]
    assert [changes["steps"] for _, _, changes in seen] == [6, 4, 7, 7]
    assert "recipe" not in seen[0][2]
    for _, _, changes in seen[1:]:
        assert changes["recipe"] == replace(ENGINE.recipe, lr=1e-4, schedule="linear")
    for (_, _, before), (stage, _, _) in pairwise(seen):
        assert same(before["kept"], weights_of(stage.model.denoiser))  # the averaged weights
    assert result.steps == 24
    assert result.product.evaluations == 2
    assert [steps for steps, _ in method.seen] == [16, 8, 4, 2]
    assert "<svg" in method.figures()[0]["svg"]
    assert GuidedDistillation().figures() == []


def test_epochs_are_counted_where_steps_are_not_given() -> None:
    on = task()
    result = (
        GuidedDistillation()
        .quick()
        .run(on, Fitter(replace(ENGINE, steps=0, epochs=1, batch_size=100), on, 0))
    )
    assert result.steps == len(on.train()) // 100 == 8


# -- the product ------------------------------------------------------------------------------------------------------


def test_one_pass_a_step_and_the_answer_changes_with_the_scale(tmp_path: Path) -> None:
    on = task(data="eight-gaussians").but(teacher="mlp:32x2", teacher_steps=300, teacher_batch_size=128)
    teach(on, ENGINE, None, Watcher)
    recipe = Recipe("adam", lr=5e-3, ema=0.98)
    method = GuidedDistillation(start_steps=8, end_steps=4, stage_one_share=0.6, halving_rate=0.5)
    product = method.run(on, Fitter(replace(ENGINE, steps=500, batch_size=64, recipe=recipe), on, 0)).product
    noise, c = normal(80, 2, dtype=torch.float32), torch.arange(80) % 8
    asked = []
    hook = product.denoiser.network.register_forward_hook(lambda _, args, __: asked.append(len(args[0])))
    many = on.make_teacher().module.but(steps=64)
    with torch.no_grad():
        made = {w: product.at(w)(noise, c) for w in (1.0, 4.0)}
        hook.remove()
        wanted = {w: many.at(w)(noise, c) for w in (1.0, 4.0)}
    assert asked == [80] * 8
    assert product.evaluations == product.at(4.0).evaluations == 4
    gap = wanted[4.0] - wanted[1.0]
    listened = ((made[4.0] - made[1.0]) * gap).sum() / gap.square().sum()
    assert 0.3 < listened < 1.3  # a student that is deaf to w has 0, one that is right 1
    save_sampler(tmp_path, product.at(4.0), {})
    with torch.no_grad():
        assert torch.equal(load_sampler(tmp_path)(noise, c), made[4.0])


def test_a_stochastic_product_comes_back_as_it_was(tmp_path: Path) -> None:
    on = task()
    product = trained(GuidedDistillation(sampling="stochastic"), on)
    assert product.plan.solver == "renoised"
    save_sampler(tmp_path, product, {})
    noise, c = normal(3, 1, 8, 8, dtype=torch.float32), torch.arange(3)
    with torch.no_grad():
        assert torch.equal(load_sampler(tmp_path)(noise, c), product(noise, c))


def test_without_stage_one_guidance_is_ignored() -> None:
    on = task()
    product = trained(GuidedDistillation(stage_one=False), on)
    assert isinstance(product, FixedGuidance)
    assert not product.denoiser.takes_guidance
    assert product.at(4.0) is product
    assert product.evaluations == 2
    opponent = GuidedDistillation().baseline(on)
    assert isinstance(opponent, FewSteps)
    assert opponent.steps == 2
    assert GuidedDistillation(end_steps=1).baseline(on).steps == 1  # type: ignore[attr-defined]


def test_an_encoder_is_scored_by_the_way_there_and_back() -> None:
    on = task()
    method = GuidedDistillation(direction="encode", start_steps=8, end_steps=2)
    result = method.run(on, Fitter(ENGINE, on, 0))
    assert list(result.extra) == [f"round trip, {n} steps, validation" for n in (8, 4, 2)]
    x, c = on.train().fetch(torch.arange(4), None)
    with torch.no_grad():
        z = encode(result.product, x, c)
    assert z.shape == x.shape
    assert torch.isfinite(z).all()


@pytest.mark.parametrize(
    "changes",
    [
        {"data": "eight-gaussians"},
        {"process": "edm"},
        {"process": "flow"},
        {"process": "linear", "prediction": "eps"},
        {"process": "cosine", "prediction": "x0"},
        {"teacher": "dit:16x1@2"},
        {"teacher": "unet:8-16"},
    ],
)
@pytest.mark.parametrize("direction", ["decode", "encode"])
def test_it_runs_on_points_on_every_process_and_on_diffusers_networks(changes: dict, direction: Any) -> None:
    if "teacher" in changes:
        pytest.importorskip("diffusers")
        if direction == "encode":
            pytest.skip("shown by the others")
    on = task(**changes)
    product = trained(GuidedDistillation(direction=direction), on, steps=3)
    assert product.evaluations == 2
    found = on.score(product, "validation", Runtime())
    assert math.isfinite(found[on.metric])


def test_it_runs_on_a_users_own_network() -> None:
    class Mine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.w = nn.Linear(2 + 1 + 9, 2), None

        def forward(self, x: Tensor, time: Tensor, condition: Tensor, guidance: Tensor | None) -> Tensor:
            seen = torch.cat([x, time.unsqueeze(1), nn.functional.one_hot(condition, 9).float()], 1)
            said = self.body(seen)
            return said if self.w is None or guidance is None else said + self.w(guidance.unsqueeze(1))

        def add_guidance(self) -> None:
            self.w = nn.Linear(1, 2)
            nn.init.zeros_(self.w.weight)
            nn.init.zeros_(self.w.bias)

    teacher = Denoiser(Mine(), "flow", "velocity", classes=8)
    before = copy.deepcopy(teacher.state_dict())
    on = task(data="eight-gaussians").using(teacher=teacher)
    Job(GuidedDistillation().quick(), on, ENGINE, 0).check()
    product = trained(GuidedDistillation(), on)
    assert all(torch.equal(before[key], value) for key, value in teacher.state_dict().items())
    assert product.denoiser.network.w.weight.any()  # type: ignore[union-attr]
    bare = Mine()
    bare.add_guidance = None  # type: ignore[assignment,method-assign]
    on = task(data="eight-gaussians").using(teacher=Denoiser(bare, "flow", "velocity", classes=8))
    with pytest.raises(UserError, match="Mine cannot take a guidance scale"):
        Job(GuidedDistillation().quick(), on, ENGINE, 0).check()


def test_a_pipelines_folder_is_a_teacher(tmp_path: Path) -> None:
    library = pytest.importorskip("diffusers")
    model = build_denoiser_network("unet:8-16", shape=(1, 8, 8), classes=10, seed=0).model  # type: ignore[union-attr]
    model.save_pretrained(tmp_path / "unet")
    library.DDIMScheduler(beta_schedule="linear", prediction_type="epsilon").save_pretrained(
        tmp_path / "scheduler"
    )
    on = GuidedDistillation.default_task().quick().but(teacher_weights=str(tmp_path))
    on.check(0, True)
    product = trained(GuidedDistillation(), on, steps=3)
    assert (product.denoiser.prediction, product.denoiser.process) == ("v", NAMED["linear"])
    assert torch.isfinite(product(normal(2, 1, 8, 8, dtype=torch.float32), torch.arange(2))).all()


def test_a_text_conditioned_unet_takes_the_scale_as_diffusers_gives_it(tmp_path: Path) -> None:
    """Trained a step each, saved and read by diffusers alone, w as `timestep_cond`: the same answers."""
    library = pytest.importorskip("diffusers")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = library.UNet2DConditionModel(
            sample_size=8,
            in_channels=1,
            out_channels=1,
            layers_per_block=1,
            block_out_channels=(8, 16),
            norm_num_groups=8,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=12,
            attention_head_dim=2,
        )
    tokens = normal(4, 5, 12, dtype=torch.float32)
    teacher = Denoiser(wrap(model), "scaled-linear", "eps", clock="index", null=torch.zeros(5, 12))
    on = GuidedDistillation.default_task().quick().using(teacher=teacher)
    x, _ = on.train().fetch(torch.arange(4), None)

    def stepped(stage: Any) -> Sampler:
        stage.bind(on, 0)
        optimizer = torch.optim.Adam(stage.student.parameters(), lr=1e-2)
        yielded(stage, x, tokens).loss.backward()
        optimizer.step()
        return stage.product()

    student = stepped(Halving(stepped(StageOne(steps=4)), 2)).denoiser
    student.network.model.save_pretrained(tmp_path)
    again = library.UNet2DConditionModel.from_pretrained(tmp_path, use_safetensors=True)
    t, w = torch.full((4,), 0.7), torch.tensor([1.0, 2.0, 3.0, 4.0])
    with torch.no_grad():
        ours = student.estimate(x, t, tokens, w)
        theirs = again(x, 1000 * t - 1, tokens, timestep_cond=scale_features(w, 256)).sample
        assert ours.kind == "v"
        assert torch.allclose(ours.value, theirs, atol=1e-5)
        assert not torch.allclose(ours.value, student.estimate(x, t, tokens, 5 - w).value, atol=1e-6)


# -- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"guidance_low": 0.5}, "--method.guidance-low is 0.5: pass 1 or more"),
        ({"guidance_high": 1.0}, "--method.guidance-high is 1, not above guidance-low 1: pass a larger one"),
        ({"end_steps": 0}, "--method.end-steps is 0: pass 1 or more"),
        (
            {"start_steps": 48},
            "--method.start-steps is 48 and end-steps 4: pass start-steps that are end-steps times 2, 4, 8, ..., as 64",
        ),
        (
            {"stage_one_share": 1.0},
            "--method.stage-one-share is 1.0: pass a number from 0 (itself excluded) to 1 (itself excluded)",
        ),
        ({"halving_rate": 0.0}, "--method.halving-rate is 0.0: pass a number above 0"),
        (
            {"direction": "encode", "sampling": "stochastic"},
            "--method.direction encode goes a deterministic way: pass --method.sampling deterministic",
        ),
    ],
)
def test_mistakes_are_one_line(changes: dict, line: str) -> None:
    with pytest.raises(UserError) as told:
        GuidedDistillation(**changes).check()
    assert str(told.value) == line


def test_mistakes_that_show_at_the_task_are_one_line() -> None:
    method = GuidedDistillation()
    with pytest.raises(
        UserError, match="guidance is distilled and the teacher is unconditional: pass data with"
    ):
        Job(method, Generation(conditional=False).quick(), ENGINE, 0).check()
    with pytest.raises(
        UserError, match=r"^--method.no-stage-one starts from the teacher's own network: drop"
    ):
        replace(method, stage_one=False).bind(task(student="mlp:16x1"), 0)


def test_stage_one_is_the_familys_own() -> None:
    assert issubclass(StageOne, GuidanceRegression)
    assert not StageOne.listed
    assert not Halving.listed

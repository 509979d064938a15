"""Solvers: orders of convergence against exact maps, inverses, and two steps as one."""

from __future__ import annotations

import math

import pytest
import torch

from laws import gaussian_map, mixture
from stillroom.errors import UserError
from stillroom.generators.parts.estimate import Estimate
from stillroom.generators.parts.process import NAMED
from stillroom.generators.parts.solvers import (
    SOLVERS,
    Way,
    ancestral_step,
    ddim_step,
    evaluations,
    grid,
    two_steps_as_one,
)

MEAN, SPREAD = 0.3, 0.4
ORDERS = {"ddim": 1, "euler": 1, "heun": 2, "dpm++2m": 2}


def error(name: str, solver: str, steps: int) -> float:
    """Distance to the exact map from 0.9 T to 0.3 T, over a few points."""
    process = NAMED[name]
    start, end = (1.5, 0.2) if name == "edm" else (0.9, 0.3)
    denoiser = mixture(process, torch.full((1, 2), MEAN, dtype=torch.float64), SPREAD)
    x = torch.linspace(-2, 2, 10, dtype=torch.float64).view(5, 2)
    times = torch.linspace(start, end, steps + 1, dtype=torch.float64)
    got = SOLVERS[solver](Way(process, denoiser.estimate), x, times)
    return (got - gaussian_map(process, MEAN, SPREAD, x, times[0], times[-1])).abs().max().item()


@pytest.mark.parametrize("name", ["cosine", "edm", "flow", "linear"])
@pytest.mark.parametrize("solver", ORDERS)
def test_error_falls_as_the_order_says(name: str, solver: str) -> None:
    coarse, fine = error(name, solver, 64), error(name, solver, 256)
    slope = math.log(coarse / fine) / math.log(4)
    if name == "linear" and solver in ("euler", "heun"):
        assert slope > 0.8  # the table's kinks are left to it
    else:
        assert abs(slope - ORDERS[solver]) < 0.2, (slope, coarse, fine)


@pytest.mark.parametrize("name", ["cosine", "edm", "flow"])
def test_the_adaptive_solver_is_the_reference(name: str) -> None:
    assert error(name, "adaptive", 1) < 1e-4


@pytest.mark.parametrize("name", ["cosine", "edm", "flow"])
def test_up_and_down_again_is_where_it_was(name: str) -> None:
    process = NAMED[name]
    denoiser = mixture(process, torch.tensor([[1.0, 0.0], [-1.0, 0.5]], dtype=torch.float64), 0.3)
    times = torch.linspace(0.05, 0.8, 401, dtype=torch.float64)
    x = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    way = Way(process, denoiser.estimate)
    back = SOLVERS["ddim"](way, SOLVERS["ddim"](way, x, times), times.flip(0))
    assert (back - x).abs().max() < 0.02


@pytest.mark.parametrize("name", ["cosine", "edm", "flow", "scaled-linear"])
def test_one_step_with_the_solved_x0_is_two_steps(name: str) -> None:
    """Whatever the two denoised samples are; at s = 0 it is the sample itself."""
    process, generator = NAMED[name], torch.Generator().manual_seed(1)
    x, first, second = torch.randn(3, 5, 4, dtype=torch.float64, generator=generator)
    for t, middle, s in [(0.9, 0.5, 0.2), (0.31, 0.3, 0.0)]:
        t, middle, s = (torch.tensor(v * min(process.T, 3.0), dtype=torch.float64) for v in (t, middle, s))
        half = ddim_step(Estimate(process, x, t, "x0", first), middle)
        whole = ddim_step(Estimate(process, half, middle, "x0", second), s)
        solved = two_steps_as_one(process, x, whole, t, s)
        assert (ddim_step(Estimate(process, x, t, "x0", solved), s) - whole).abs().max() < 1e-12
        if s == 0:
            assert torch.allclose(solved, whole, atol=1e-12)


@pytest.mark.parametrize("name", ["cosine", "flow", "edm"])
def test_every_letter_takes_the_same_ddim_step(name: str) -> None:
    process, generator = NAMED[name], torch.Generator().manual_seed(2)
    x, x0 = torch.randn(2, 5, 4, dtype=torch.float64, generator=generator)
    t, s = torch.tensor(0.7, dtype=torch.float64), torch.tensor(0.4, dtype=torch.float64)
    at = Estimate(process, x, t, "x0", x0)
    for kind in ("eps", "v", "score", "velocity"):
        assert torch.allclose(
            ddim_step(Estimate(process, x, t, kind, at.read(kind)), s), ddim_step(at, s), atol=1e-12
        )


def test_a_mixture_is_sampled_with_its_weights() -> None:
    process = NAMED["edm"]
    denoiser = mixture(process, torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), 0.05)
    denoiser.network.weights.copy_(torch.tensor([0.8, 0.2]))
    noise = 80 * torch.randn(2000, 2, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        made = SOLVERS["heun"](
            Way(process, denoiser.estimate), noise, grid(process, 30, 80.0, spacing="karras")
        )
    assert (made[:, 0] > 0).double().mean().item() == pytest.approx(0.8, abs=0.03)
    assert made[made[:, 0] > 0].std(0).mean().item() == pytest.approx(0.05, abs=0.01)


def test_grids_go_from_start_to_data() -> None:
    levels = grid(NAMED["edm"], 18, 80.0, spacing="karras")
    wanted = (80 ** (1 / 7) + torch.arange(18) / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    assert torch.allclose(levels[:-1].float(), wanted.float(), rtol=1e-5)
    for spacing in ("uniform", "karras", "log-snr"):
        times = grid(NAMED["linear"], 7, 1.0, spacing=spacing)
        assert len(times) == 8
        assert times[0] == 1
        assert times[-1] == 0
        assert (times.diff() < 0).all()
    with pytest.raises(UserError, match="steps is 0: pass 1 or more"):
        grid(NAMED["edm"], 0, 80.0)


def test_evaluations_are_counted() -> None:
    assert [evaluations(s, 18) for s in ("ddim", "euler", "dpm++2m", "heun")] == [18, 18, 18, 35]


@pytest.mark.parametrize("name", ["cosine", "flow"])
@pytest.mark.parametrize("solver", ORDERS)
def test_the_fitted_order_is_the_solvers_own(name: str, solver: str) -> None:
    steps = torch.tensor([16.0, 32.0, 64.0, 128.0], dtype=torch.float64)
    errors = torch.tensor([error(name, solver, int(n)) for n in steps], dtype=torch.float64).log()
    away = steps.log() - steps.log().mean()
    slope = -float((away * errors).sum() / away.square().sum())
    assert slope == pytest.approx(ORDERS[solver], abs=0.15)


@pytest.mark.parametrize("name", ["cosine", "edm", "flow", "scaled-linear"])
def test_an_ancestral_step_is_the_posterior_of_the_forward_process(name: str) -> None:
    """q(x_s | x_t, x_0) of Gaussian transitions (Ho et al., 2020, eq. 7, for any alpha and sigma), by Bayes' rule."""
    process, generator = NAMED[name], torch.Generator().manual_seed(4)
    x0, x, z = torch.randn(3, 5, 4, dtype=torch.float64, generator=generator)
    t, s = (torch.tensor(v * min(process.T, 3.0), dtype=torch.float64) for v in (0.8, 0.5))
    (a_t, s_t), (a_s, s_s) = ((process.alpha(v), process.sigma(v)) for v in (t, s))
    step = s_t**2 - (a_t / a_s * s_s) ** 2  # variance of x_t given x_s
    variance = 1 / (1 / s_s**2 + (a_t / a_s) ** 2 / step)
    mean = variance * (a_s * x0 / s_s**2 + a_t / a_s * x / step)
    at = Estimate(process, x, t, "x0", x0)
    assert torch.allclose(ancestral_step(at, s, z), mean + variance.sqrt() * z, atol=1e-12)
    assert torch.allclose(ancestral_step(at, s, z, eta=0.0), ddim_step(at, s), atol=1e-12)
    assert torch.allclose(ancestral_step(at, torch.zeros_like(s), z), x0, atol=1e-12)


@pytest.mark.parametrize("name", ["cosine", "edm", "flow"])
def test_anchored_is_ddim_for_one_step_and_wherever_the_noise_is_known(name: str) -> None:
    """Of a law that is one point, every x_t holds the starting noise itself; elsewhere the two part."""
    process = NAMED[name]
    x = (
        process.sigma(torch.tensor(0.9))
        * torch.randn(5, 2, generator=torch.Generator().manual_seed(5)).double()
    )
    times = torch.linspace(0.9, 0, 6, dtype=torch.float64)

    def both(spread: float, grid: torch.Tensor) -> float:
        denoiser = mixture(process, torch.full((1, 2), 0.3, dtype=torch.float64), spread)
        way = Way(process, denoiser.estimate)
        start = process.alpha(grid[0]) * 0.3 + x if spread == 0 else x
        made = [SOLVERS[solver](way, start, grid) for solver in ("anchored", "ddim")]
        return (made[0] - made[1]).abs().max().item()

    assert both(0.4, torch.tensor([0.9, 0.0], dtype=torch.float64)) < 1e-12
    assert both(0.4, times) > 1e-3
    assert both(0.0, times) < 1e-12

"""A Denoiser: preconditioning, other processes, guidance, conditions, samplers, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from laws import mixture
from stillroom.errors import UserError
from stillroom.generators.parts.denoiser import Denoiser, denoiser_from
from stillroom.generators.parts.process import NAMED
from stillroom.generators.parts.sampler import Plan, Sampler

CENTRES = torch.tensor([[1.0, 0.0], [-1.0, 0.5]], dtype=torch.float64)


class Raw(nn.Module):
    """A fixed function of all that it is given."""

    def forward(self, x: Tensor, time: Tensor, condition: Tensor | None, guidance: Tensor | None) -> Tensor:
        return 0.3 * x + 0.2 * time.unsqueeze(-1) - 0.1


def points(n: int = 6) -> Tensor:
    return torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_edm_preconditioning_is_the_textbook_form() -> None:
    x, s, d = points(), torch.linspace(0.01, 60, 6, dtype=torch.float64), 0.5
    got = Denoiser(Raw(), "edm", "edm", sigma_data=d)(x, s)
    sigma = s.unsqueeze(-1)
    total = (sigma**2 + d**2).sqrt()
    raw = 0.3 * x / total + 0.2 * sigma.log() / 4 - 0.1
    assert torch.allclose(got, d**2 / total**2 * x + sigma * d / total * raw, atol=1e-13)


@pytest.mark.parametrize("there", NAMED)
@pytest.mark.parametrize("own", NAMED)
def test_an_exact_denoiser_is_exact_on_every_process(own: str, there: str) -> None:
    t = torch.full((6,), 0.4, dtype=torch.float64)
    moved = mixture(NAMED[own], CENTRES, 0.3).on(there)
    assert torch.allclose(moved(points(), t), mixture(NAMED[there], CENTRES, 0.3)(points(), t), atol=1e-12)


def test_a_gaussian_on_flow_has_its_closed_form() -> None:
    """(1 - t) s^2 / ((1 - t)^2 s^2 + t^2) (x - (1 - t) m) + m, up to t = 1 - 1e-5."""
    moved = mixture(NAMED["edm"], torch.full((1, 2), 0.3, dtype=torch.float64), 0.5).on("flow")
    t = torch.tensor([1e-5, 0.1, 0.5, 0.9, 0.999, 1 - 1e-5], dtype=torch.float64).unsqueeze(-1)
    wanted = (1 - t) * 0.25 / ((1 - t) ** 2 * 0.25 + t**2) * (points() - (1 - t) * 0.3) + 0.3
    at = moved.estimate(points(), t.squeeze(-1))
    assert torch.allclose(at.x0, wanted, rtol=0, atol=1e-12)
    assert torch.isfinite(at.velocity).all()


def test_guidance_goes_from_none_to_beyond() -> None:
    denoiser, c = mixture(NAMED["edm"], CENTRES, 0.3, conditional=True), torch.tensor([0, 1, 0, 1, 0, 1])
    t = torch.full((6,), 0.9, dtype=torch.float64)
    with_it, without = denoiser(points(), t, c), denoiser(points(), t)
    assert torch.allclose(denoiser.guided(points(), t, c, 1.0).x0, with_it, atol=1e-12)
    assert torch.allclose(denoiser.guided(points(), t, c, 0.0).x0, without, atol=1e-12)
    scale = torch.arange(6.0, dtype=torch.float64)
    wanted = without + scale.unsqueeze(-1) * (with_it - without)
    assert torch.allclose(denoiser.guided(points(), t, c, scale).x0, wanted, atol=1e-12)
    outside = denoiser.guided(points(), t, c, 5.0, interval=(1.0, 2.0)).x0
    assert torch.allclose(outside, with_it, atol=1e-12)


def test_conditions_are_dropped_row_by_row() -> None:
    denoiser = mixture(NAMED["edm"], CENTRES, 0.3, conditional=True)
    dropped = denoiser.drop(torch.tensor([0, 1, 0]), torch.tensor([0.05, 0.5, 0.09]), 0.1)
    assert dropped is not None
    assert dropped.tolist() == [2, 1, 2]


def test_a_config_makes_the_denoiser_again() -> None:
    denoiser = Denoiser(Raw(), "edm", "edm", sigma_data=0.7).on("flow")
    again = denoiser_from(denoiser.network, denoiser.config())
    t = torch.full((6,), 0.4, dtype=torch.float64)
    assert torch.equal(again(points(), t), denoiser(points(), t))


def test_a_sampler_counts_its_evaluations_and_shows_its_way() -> None:
    denoiser = mixture(NAMED["edm"], CENTRES.float(), 0.3, conditional=True)
    sampler = Sampler(denoiser, Plan("heun", 5, "karras", guidance=2.0))
    assert sampler.evaluations == 18
    noise, c = points().float(), torch.tensor([0, 1] * 3)
    way = sampler.trajectory(noise, c)
    assert way.shape == (6, 6, 2)
    assert torch.equal(way[-1], sampler(noise, c))
    assert torch.equal(way[0], 80 * noise)
    assert sampler.but(steps=1, solver="ddim", guidance=1.0).evaluations == 1


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: Denoiser(Raw(), "edm", "noise"), "prediction 'noise' is unknown"),
        (
            lambda: Denoiser(Raw(), "edm", "v"),
            "prediction 'v' needs a variance preserving process, not 'edm'",
        ),
        (
            lambda: Denoiser(Raw(), "flow", "v"),
            "prediction 'v' needs a variance preserving process, not 'flow'",
        ),
        (
            lambda: Denoiser(Raw(), "edm", "x0").guided(points(), torch.tensor(0.5), None, 3.0),
            "guidance 3 on an uncon",
        ),
        (lambda: Denoiser(Raw(), "edm", "x0").accept_guidance(), "Raw cannot take a guidance scale"),
        (lambda: Plan(steps=0).check(), "--task.steps is 0: pass 1 or more"),
        (lambda: Plan(interval=(3.0, 1.0)).check(), "--task.interval is 3 1: pass two noise levels"),
    ],
)
def test_mistakes_are_one_line(make: object, line: str) -> None:
    with pytest.raises(UserError, match=line):
        make()  # type: ignore[operator]


def test_edm_preconditioning_scales_its_input_on_a_preserving_process() -> None:
    """D_ve(x / alpha, sigma / alpha) with the textbook factors."""
    x, d, process = points(), 0.5, NAMED["cosine"]
    t = torch.linspace(0.01, 0.95, 6, dtype=torch.float64)
    got = Denoiser(Raw(), process, "edm", sigma_data=d)(x, t)
    level, scaled = process.ratio(t).unsqueeze(-1), x / process.alpha(t).unsqueeze(-1)
    total = (level**2 + d**2).sqrt()
    raw = 0.3 * scaled / total + 0.2 * level.log() / 4 - 0.1
    assert torch.allclose(got, d**2 / total**2 * scaled + level * d / total * raw, rtol=0, atol=1e-12)

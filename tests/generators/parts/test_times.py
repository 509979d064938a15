"""Laws of the time, and weights."""

from __future__ import annotations

import math

import pytest
import torch

from stillroom.generators.parts import times
from stillroom.generators.parts.process import NAMED

U = torch.linspace(0, 1, 2001, dtype=torch.float64)


def test_the_u_shape_is_a_density_with_the_published_values() -> None:
    """Lee et al., 2024: p(0) = 2.0746, p(1/2) = .5514 at a = 4, and 34.5 % in the outer tenths."""
    density = times.u_shaped_density(U)
    assert torch.trapezoid(density, U).item() == pytest.approx(1, abs=2e-6)
    assert torch.allclose(density, density.flip(0))
    assert density[0].item() == pytest.approx(2.0746, abs=1e-4)
    assert density[1000].item() == pytest.approx(0.5514, abs=1e-4)
    drawn = times.u_shaped(U)
    outer = ((drawn < 0.1) | (drawn > 0.9)).double().mean().item()
    assert outer == pytest.approx(0.345, abs=2e-3)


@pytest.mark.parametrize("a", [0.5, 4.0, 30.0])
def test_u_shaped_inverts_its_distribution_function(a: float) -> None:
    y = (a * times.u_shaped(U, a)).exp()
    assert torch.allclose((y - math.exp(a) / y + math.expm1(a)) / (2 * math.expm1(a)), U, atol=1e-10)


def test_normal_laws_have_their_quantiles() -> None:
    u = torch.tensor([0.5, 0.8413447460685429], dtype=torch.float64)
    assert torch.allclose(
        times.log_normal(u).log(), torch.tensor([-1.2, 0.0], dtype=torch.float64), atol=1e-9
    )
    assert torch.allclose(
        times.logit_normal(u, 1.0, 2.0).logit(), torch.tensor([1.0, 3.0], dtype=torch.float64)
    )
    assert torch.isfinite(times.log_normal(torch.tensor([0.0, 1 - 2**-24]))).all()


def test_karras_law_goes_from_high_to_low() -> None:
    levels = times.karras(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64), 0.002, 80.0)
    assert levels[0].item() == pytest.approx(80)
    assert levels[2].item() == pytest.approx(0.002)
    assert levels[1].item() == pytest.approx(((80 ** (1 / 7) + 0.002 ** (1 / 7)) / 2) ** 7)


def test_weights() -> None:
    process, t = NAMED["cosine"], torch.tensor([0.1, 0.9], dtype=torch.float64)
    snr = process.snr(t)
    assert torch.equal(times.truncated_snr_weight(process, t), torch.stack([snr[0], torch.ones_like(snr[1])]))
    assert torch.equal(times.min_snr_weight(process, t), torch.stack([torch.full_like(snr[0], 5.0), snr[1]]))
    assert torch.allclose(times.v_weight(process, t) - 1, times.snr_weight(process, t))
    assert times.edm_weight(torch.tensor(0.5)).item() == pytest.approx(8)


def test_the_u_shape_holds_a_mass_of_one() -> None:
    """Simpson's rule, whose error at 2000 cells is far below 1e-8."""
    density = times.u_shaped_density(U)
    mass = (density[0] + density[-1] + 4 * density[1:-1:2].sum() + 2 * density[2:-1:2].sum()) / 6000
    assert mass.item() == pytest.approx(1, abs=1e-8)

"""Five letters for one estimate: every way from one to another and back, at extreme times too."""

from __future__ import annotations

import pytest
import torch

from stillroom.errors import UserError
from stillroom.generators.parts.estimate import KINDS, Estimate, check_kind, true_value
from stillroom.generators.parts.process import NAMED, along

TIMES = {"first": 1e-5, "middle": 0.5, "last": 1 - 1e-5}


def drawn(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(7, 1, 3, 3, dtype=torch.float64, generator=generator) for _ in range(2))


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("share", TIMES.values(), ids=TIMES.keys())
def test_every_letter_says_the_same(name: str, share: float) -> None:
    process, (x0, eps) = NAMED[name], drawn(0)
    t = torch.full((7,), share * process.T, dtype=torch.float64)
    x = process.add_noise(x0, t, eps)
    alpha, sigma = along(process.alpha(t), x), along(process.sigma(t), x)
    truth = {
        "x0": x0,
        "eps": eps,
        "v": alpha * eps - sigma * x0,
        "score": -eps / sigma,
        "velocity": along(process.dalpha(t), x) * x0 + along(process.dsigma(t), x) * eps,
    }
    for kind in KINDS:
        at = Estimate(process, x, t, kind, truth[kind])
        assert torch.equal(true_value(at, x0, eps), truth[kind])
        for letter in KINDS:
            scale = truth[letter].abs().max()
            # what is divided by alpha or sigma keeps as many digits fewer
            lost = 1 / min(float(alpha.min()), float(sigma.min()), 1.0)
            assert (at.read(letter) - truth[letter]).abs().max() <= 1e-13 * lost**2 * max(scale, 1.0), (
                kind,
                letter,
            )


@pytest.mark.parametrize("name", ["cosine", "flow"])
def test_v_and_velocity_hold_where_no_signal_is_left(name: str) -> None:
    process, (x0, eps) = NAMED[name], drawn(1)
    t = torch.ones(7, dtype=torch.float64)
    kind = "v" if name == "cosine" else "velocity"
    value = -x0 if name == "cosine" else eps - x0
    at = Estimate(process, eps, t, kind, value)
    assert torch.allclose(at.x0, x0, atol=1e-12)
    assert torch.allclose(at.eps, eps, atol=1e-12)


def test_an_unknown_letter_is_one_line() -> None:
    with pytest.raises(
        UserError, match="prediction 'noise' is unknown: pass one of x0, eps, v, score, velocity"
    ):
        check_kind("noise")


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("share", [1e-5, 0.5, 1 - 1e-5])
def test_single_precision_stays_finite(name: str, share: float) -> None:
    process = NAMED[name]
    x0, eps = (part.float() for part in drawn(2))
    t = torch.full((7,), share * process.T)
    x = process.add_noise(x0, t, eps)
    first = Estimate(process, x, t, "eps", eps)
    for kind in KINDS:
        at = Estimate(process, x, t, kind, first.read(kind))
        assert all(torch.isfinite(at.read(letter)).all() for letter in KINDS), kind


@pytest.mark.parametrize("name", ["edm", "linear", "scaled-linear"])
def test_all_letters_hold_at_the_end_where_signal_is_left(name: str) -> None:
    process, (x0, eps) = NAMED[name], drawn(3)
    t = torch.full((7,), process.T, dtype=torch.float64)
    x = process.add_noise(x0, t, eps)
    first = Estimate(process, x, t, "x0", x0)
    for kind in KINDS:
        at = Estimate(process, x, t, kind, first.read(kind))
        assert torch.allclose(at.x0, x0, rtol=1e-9, atol=1e-9)
        assert torch.allclose(at.eps, eps, rtol=1e-9, atol=1e-9)

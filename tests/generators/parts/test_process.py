"""Forward processes: schedules, derivatives, inverses, and what diffusers makes of the same numbers."""

from __future__ import annotations

import pytest
import torch

from stillroom.errors import UserError
from stillroom.generators.parts.process import NAMED, Cosine, Discrete, Process, along, make_process

EVERY = {
    **NAMED,
    "shifted": Cosine(0.008),
    "zero": Discrete("scaled-linear", 0.00085, 0.012, zero_terminal=True),
}
SCALED = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}

every = pytest.mark.parametrize("process", EVERY.values(), ids=EVERY.keys())
preserving = [p for p in EVERY.values() if p.name in ("cosine", "discrete")]


def inside(process: Process) -> torch.Tensor:
    share = torch.tensor([1e-5, 0.013, 0.2501, 0.5003, 0.77, 0.9994], dtype=torch.float64)
    return share * process.T


@pytest.mark.parametrize("process", preserving, ids=repr)
def test_variance_is_preserved(process: Process) -> None:
    t = inside(process)
    assert torch.allclose(
        process.alpha(t) ** 2 + process.sigma(t) ** 2, torch.ones_like(t), rtol=0, atol=1e-12
    )


@every
def test_slopes_are_those_of_the_curves(process: Process) -> None:
    t = inside(process).requires_grad_()
    for curve, slope in ((process.alpha, process.dalpha), (process.sigma, process.dsigma)):
        value = curve(t)
        found = torch.autograd.grad(value.sum(), t)[0] if value.requires_grad else torch.zeros_like(t)
        assert torch.allclose(slope(t).detach(), found, rtol=1e-9, atol=1e-12)


@every
def test_data_at_zero_and_noise_at_the_end(process: Process) -> None:
    ends = torch.tensor([0.0, process.T], dtype=torch.float64)
    assert process.alpha(ends)[0] == 1
    assert process.sigma(ends)[0] == 0
    assert process.ratio(ends)[1] > 14


@every
def test_time_at_is_the_inverse_of_the_noise_level(process: Process) -> None:
    t = inside(process)
    assert torch.allclose(process.time_at(process.ratio(t)), t, rtol=1e-7, atol=1e-12)


def test_no_signal_is_left_at_the_end_of_cosine_and_flow() -> None:
    for name in ("cosine", "flow"):
        assert float(NAMED[name].alpha(torch.tensor(1.0))) == 0
        assert float(NAMED[name].time_at(torch.tensor(torch.inf))) == 1


@every
def test_a_config_makes_the_process_again(process: Process) -> None:
    assert make_process(process.config()) == process


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (NAMED["linear"], {"beta_schedule": "linear"}),
        (NAMED["scaled-linear"], SCALED),
        (Discrete("cosine"), {"beta_schedule": "squaredcos_cap_v2"}),
        (EVERY["zero"], {**SCALED, "rescale_betas_zero_snr": True}),
    ],
)
def test_tables_equal_those_of_diffusers(ours: Process, theirs: dict) -> None:
    """alphas_cumprod of diffusers' DDPMScheduler at index n is alpha^2 at t = (n + 1) / N, to float32's digits."""
    scheduler = pytest.importorskip("diffusers").DDPMScheduler(**theirs)
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    assert torch.allclose(ours.alpha(t) ** 2, scheduler.alphas_cumprod.double(), rtol=2e-4, atol=2e-7)
    assert (ours.alpha(t) ** 2 - scheduler.alphas_cumprod.double()).abs().max() < 1e-6


def test_noise_is_added_row_by_row() -> None:
    x, eps, t = torch.ones(2, 1, 3, 3), torch.full((2, 1, 3, 3), 2.0), torch.tensor([0.25, 1.0])
    made = NAMED["flow"].add_noise(x, t, eps)
    assert torch.equal(made[0], torch.full((1, 3, 3), 1.25))
    assert torch.equal(made[1], eps[1])
    assert along(t, x).shape == (2, 1, 1, 1)


@pytest.mark.parametrize("about", ["cosines", {"name": "foo"}, {"name": "cosine", "speed": 3}])
def test_an_unknown_process_is_one_line(about: str | dict) -> None:
    with pytest.raises(UserError, match=r"^process '.*"):
        make_process(about)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_time_at_keeps_its_digits_at_tiny_and_huge_levels(process: Process, dtype: torch.dtype) -> None:
    tiny = torch.tensor([1e-9, 1e-6, 1e-3, 1.0], dtype=dtype)
    assert torch.allclose(process.ratio(process.time_at(tiny)) / tiny, torch.ones_like(tiny), atol=1e-4)
    if dtype == torch.float64:
        assert torch.allclose(process.ratio(process.time_at(tiny)), tiny, rtol=1e-12, atol=0)
    huge = process.time_at(torch.tensor([1e3, 1e9, torch.inf], dtype=dtype))
    assert (huge.diff() >= 0).all()
    assert process.name == "edm" or (huge <= 1).all()


def test_noise_grows_from_zero() -> None:
    """The slope of sigma at t = 0 is infinite where sigma is a square root of t, and never negative."""
    zero = torch.zeros(1, dtype=torch.float64)
    for process in EVERY.values():
        assert process.dsigma(zero) > 0

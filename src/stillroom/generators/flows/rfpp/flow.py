"""The mathematics of 2-Rectified Flow++: times, losses, straightness, inversion (Lee et al., 2024, arXiv:2405.20320).

x_t = (1 - t) x_0 + t eps, velocity u = eps - x_0, denoised sample D = x_t - t u; t = 0 is data, t = 1 noise.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from stillroom.errors import UserError
from stillroom.generators.parts import times
from stillroom.generators.parts.denoiser import Denoiser
from stillroom.generators.parts.process import along
from stillroom.generators.parts.sampler import Plan, Sampler
from stillroom.generators.parts.solvers import Way, euler
from stillroom.models.probing import quietly

EDGE = 1e-5
"""Times stay so far from 0 and 1, where a denoiser's velocity and its noise level have no value."""
INVERTED_FROM = 1e-3
"""The time at which an inversion starts, and the share of noise that is put on its sample."""

Law = Literal["u-shaped", "uniform", "logit-normal"]


# -- the flow ---------------------------------------------------------------------------------------------------------


def as_flow(denoiser: Denoiser) -> Denoiser:
    """Any denoiser as a 1-rectified flow with the same weights, D(x / (1 - t), t / (1 - t)); section 3 and appendix."""
    return denoiser.on("flow")


def start_of(flow: Denoiser) -> float:
    """The time at which sampling starts, and at which times of training end: 1 - 1e-5, or the denoiser's own end."""
    return min(flow.start, 1 - EDGE)


def field_sampler(flow: Denoiser, steps: int = 1, solver: str = "euler", guidance: float = 1.0) -> Sampler:
    """A flow, sampled along a uniform grid from `start_of` to 0; noise is multiplied by that time."""
    return Sampler(flow, Plan(solver, steps, "uniform", guidance, start=start_of(flow)))  # type: ignore[arg-type]


def training_times(u: Tensor, law: Law, a: float, end: float = 1 - EDGE) -> Tensor:
    """Times in [1e-5, end] for uniform numbers u in [0, 1) of any shape.

    `law` on [0, 1] before it is scaled: 'u-shaped' (section 4.1, with its `a` > 0), 'uniform', or 'logit-normal', that
    of 1-flows (sigmoid of a standard normal number). Raises UserError for another.
    """
    if law not in get_args(Law):
        raise UserError(f"--method.times '{law}' is unknown: pass one of {', '.join(get_args(Law))}")
    drawn = {"u-shaped": lambda: times.u_shaped(u, a), "logit-normal": lambda: times.logit_normal(u)}
    return EDGE + (end - EDGE) * drawn.get(law, lambda: u)()


# -- losses -----------------------------------------------------------------------------------------------------------


def pseudo_huber(first: Tensor, second: Tensor, share: float = 0.00054) -> Tensor:
    """(sqrt(||a - b||^2 + c^2) - c) / d with c = share d, [n]: the norm is over the whole sample (section 4.2).

    `first`, `second` [n, ...] of d numbers a sample. About ||a - b||^2 / (2 c d) for small errors, ||a - b|| / d for
    large ones. Written so that a small error keeps its digits.
    """
    squared = (first - second).square().flatten(1).sum(1)
    d = first[0].numel()
    c = share * d
    return squared / ((squared + c * c).sqrt() + c) / d


def squared_error(first: Tensor, second: Tensor) -> Tensor:
    """The mean squared error over a sample's numbers, [n]."""
    return (first - second).square().flatten(1).mean(1)


# -- what is measured of a flow --------------------------------------------------------------------------------------


def straightness(states: Tensor, grid: Tensor) -> Tensor:
    """S = sum over steps of dt ||(x_1 - x_0) - u(x_t, t)||^2, [n], 0 for straight paths at constant speed.

    `states` [steps + 1, n, ...] of Euler's rule along falling times `grid` [steps + 1]; x_1 - x_0 is over a unit of
    time. The sum over a sample's numbers; the authors' code takes their mean.
    """
    length = (grid[0] - grid[-1]).to(states)
    steps = (grid[:-1] - grid[1:]).to(states)
    chord = (states[0] - states[-1]) / length
    velocity = (states[:-1] - states[1:]) / along(steps, states[1:])
    off = (velocity - chord).square().flatten(2).sum(2)
    return (off * (steps / length).unsqueeze(1)).sum(0)


def loss_by_time(
    flow: Denoiser, eps: Tensor, x0: Tensor, condition: Tensor | None, bins: int = 20
) -> tuple[Tensor, Tensor]:
    """The mean squared error of the velocity in `bins` parts of [0, 1]: middles and errors, [bins] each.

    In each part every pair [n, ...] is asked at one time, all of them spread evenly over the part. Where a pair's
    x_t meets no other's, the best flow has 0 everywhere: (1 / t^2) E ||x_0 - E[x_0 | x_t]||^2 (section 3).
    """
    place = (torch.arange(len(x0), device=x0.device, dtype=x0.dtype) + 0.5) / len(x0)
    found = []
    with quietly(flow):
        for part in range(bins):
            t = ((part + place) / bins).clamp(EDGE, start_of(flow))
            at = flow.estimate(flow.process.add_noise(x0, t, eps), t, condition)
            found.append(squared_error(at.velocity, eps - x0).mean())
    return (torch.arange(bins) + 0.5) / bins, torch.stack(found).cpu()


def invert(sampler: Sampler, x: Tensor, condition: Tensor | None, noise: Tensor, steps: int) -> Tensor:
    """The noise [n, ...] that a flow's sampler makes `x` of: Euler's rule upwards in `steps` evaluations.

    From (1 - 1e-3) x + 1e-3 noise at t = 1e-3 to t = 1, which is never asked about (their `inversion`). `noise` is
    unit noise shaped as `x`; the sampler's guidance counts, its own solver does not.
    """
    grid = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    grid[0] = INVERTED_FROM
    way = Way(sampler.denoiser.process, sampler.field(condition))
    with quietly(sampler):
        return euler(way, (1 - INVERTED_FROM) * x + INVERTED_FROM * noise, grid)


def round_trip(sampler: Sampler, x: Tensor, condition: Tensor | None, noise: Tensor, steps: int) -> Tensor:
    """Root of the mean squared error [n] of `x` against what is sampled of its inverse, `steps` steps each way."""
    back = invert(sampler, x, condition, noise, steps)
    with quietly(sampler):
        return squared_error(sampler.but(steps=steps, solver="euler")(back, condition), x).sqrt()


def crossing_noise(eps: Tensor, x0: Tensor, other: Tensor, t: Tensor) -> Tensor:
    """The noise [n, ...] whose line to `other` meets at time t [n] the line from `eps` to `x0`.

    eps'' = eps' + ((1 - t) / t) (x' - x''), in (0, 1] (section 3). It is no typical Gaussian sample: its norm is far
    off sqrt(d), so that practically no pair of a teacher has it.
    """
    return eps + along((1 - t) / t, x0) * (x0 - other)

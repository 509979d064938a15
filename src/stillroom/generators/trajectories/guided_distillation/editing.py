"""What a guided student does beside sampling: encoding, style transfer, editing and inpainting, in few steps.

Meng et al., 2023, arXiv:2210.03142, section 5 (latent models) and the appendix on encoding. Every function asks the
network once a step; guidance is the sampler's own, set by `sampler.at(w)`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stillroom.errors import UserError, require
from stillroom.generators.parts.sampler import Sampler
from stillroom.generators.parts.solvers import SOLVERS, Way
from stillroom.generators.trajectories.guided_distillation.stages import least_time


def encode(encoder: Sampler, x: Tensor, condition: Tensor | None = None) -> Tensor:
    """Unit noise [n, ...] that samples `x` [n, ...] come from, up the deterministic way.

    `encoder` is a student of the reversed way (`direction="encode"`) in its own number of steps, or any denoiser in
    many. Clean samples count as x_t at the least time.
    """
    process, times = encoder.denoiser.process, encoder.times().flip(0)
    times[0] = least_time(process)
    x = SOLVERS["ddim"](Way(process, encoder.field(condition)), x, times)
    return x / process.sigma(times[-1]).to(x)


def transfer(
    encoder: Sampler, decoder: Sampler, x: Tensor, source: Tensor | None, target: Tensor | None
) -> Tensor:
    """`x` [n, ...] of the conditions `source` [n, ...] in the style of the conditions `target`: encoded, decoded."""
    return decoder(encode(encoder, x, source), target)


def edit(sampler: Sampler, x: Tensor, noise: Tensor, condition: Tensor | None, steps: int) -> Tensor:
    """`x` [n, ...] with unit noise up to the time of the last `steps` steps, and these taken: the fewer, the nearer.

    Raises UserError unless 1 <= steps <= the sampler's.
    """
    require("steps", steps, 1, sampler.plan.steps)
    times = sampler.times()[-1 - steps :]
    noised = sampler.denoiser.process.add_noise(x, times[0], noise)
    way = Way(sampler.denoiser.process, sampler.field(condition))
    return SOLVERS[sampler.plan.solver](way, noised, times)


@dataclass(frozen=True)
class _Kept(Way):
    """A way on which each state is changed before it goes on."""

    keep: Callable[[Tensor], Tensor] = field(kw_only=True)

    def show(self, x: Tensor) -> Tensor:
        """`x` as it is kept."""
        return super().show(self.keep(x))


def inpaint(
    sampler: Sampler, x: Tensor, known: Tensor, noise: Tensor, condition: Tensor | None = None
) -> Tensor:
    """Samples [n, ...] that are `x` where `known` (booleans that broadcast to x): noised there after each step.

    `noise` [n, ...] is the unit noise both of the start and of the known region. Raises UserError for another type
    of `known`.
    """
    if known.dtype != torch.bool:
        raise UserError(f"known is {known.dtype}: pass booleans, True where x is known")
    process, times = sampler.denoiser.process, sampler.times()
    left = iter(times[1:])

    def keep(state: Tensor) -> Tensor:
        return torch.where(known, process.add_noise(x, next(left), noise), state)

    start = torch.where(known, process.add_noise(x, times[0], noise), sampler.scaled(noise))
    way = _Kept(process, sampler.field(condition), keep=keep)
    return SOLVERS[sampler.plan.solver](way, start, times)

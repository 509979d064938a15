"""A Sampler: a denoiser and the way to sample from it, as one module. What methods of this family deliver."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Self, get_args

import torch
from torch import Tensor, nn

from stillroom.errors import UserError, require
from stillroom.generators.parts.denoiser import Denoiser
from stillroom.generators.parts.estimate import Estimate
from stillroom.generators.parts.solvers import SOLVERS, Solver, Spacing, Way, evaluations, grid


@dataclass(frozen=True)
class Plan:
    """How to sample."""

    solver: Solver = "ddim"
    """Solver of the probability-flow ODE."""
    steps: int = 50
    """Steps from noise to data, >= 1."""
    spacing: Spacing = "uniform"
    """How the steps' times are spread."""
    guidance: float = 1.0
    """Guidance scale w; 1 is none."""
    interval: tuple[float, float] | None = None
    """Noise levels sigma/alpha between which the guidance acts; None: all."""
    start: float | None = None
    """Time to start at; None: the largest that the denoiser may be asked at."""

    def check(self, flag: str = "--task") -> None:
        """Raise UserError for a value out of its range."""
        require(f"{flag}.steps", self.steps, 1)
        if self.solver not in SOLVERS:
            raise UserError(f"{flag}.solver '{self.solver}' is unknown: pass one of {', '.join(SOLVERS)}")
        if self.spacing not in get_args(Spacing):
            raise UserError(f"{flag}.spacing '{self.spacing}' is unknown: pass uniform, karras or log-snr")
        if self.interval is not None and not 0 <= self.interval[0] <= self.interval[1]:
            low, high = self.interval
            raise UserError(
                f"{flag}.interval is {low:g} {high:g}: pass two noise levels, the lower one first"
            )


class Sampler(nn.Module):
    """`sampler(noise, condition)` is a batch of samples [n, ...]: unit noise in, data out."""

    def __init__(self, denoiser: Denoiser, plan: Plan) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.plan = plan

    @property
    def start(self) -> float:
        """The time of the first step."""
        return self.denoiser.start if self.plan.start is None else self.plan.start

    @property
    def passes(self) -> int:
        """Network evaluations that one step's estimate takes: 2 where guidance is composed, else 1."""
        return 2 if self.plan.guidance != 1 and not self.denoiser.takes_guidance else 1

    @property
    def evaluations(self) -> int:
        """Network evaluations a sample (NFE); of the adaptive solver the number is not known before."""
        return evaluations(self.plan.solver, self.plan.steps) * self.passes

    def times(self) -> Tensor:
        """The grid [steps + 1] from `start` to 0, float64."""
        return grid(self.denoiser.process, self.plan.steps, self.start, spacing=self.plan.spacing)

    def forward(self, noise: Tensor, condition: Tensor | None = None) -> Tensor:
        """Samples for unit noise [n, ...] and conditions [n, ...] or None."""
        return self._go(noise, condition, None)

    def trajectory(self, noise: Tensor, condition: Tensor | None = None) -> Tensor:
        """The states on the way [steps + 1, n, ...], from the scaled noise to the sample."""
        states = [self.scaled(noise)]
        self._go(noise, condition, states)
        return torch.stack(states)

    def scaled(self, noise: Tensor) -> Tensor:
        """x at the first time, of unit noise: sigma z."""
        sigma = self.denoiser.process.sigma(torch.tensor(self.start, dtype=torch.float64))
        return noise * sigma.to(noise)

    def field(self, condition: Tensor | None) -> Any:
        """What the solver asks: estimates under this plan's guidance."""

        def ask(x: Tensor, t: Tensor) -> Estimate:
            return self.ask(x, t, condition)

        return ask

    def ask(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Estimate:
        """The estimate at (x_t, t) under this plan's guidance; one or two passes."""
        plan = self.plan
        if self.denoiser.takes_guidance:
            scale = torch.full((len(x),), plan.guidance, device=x.device)
            return self.denoiser.estimate(x, t, condition, scale)
        if plan.guidance == 1:
            return self.denoiser.estimate(x, t, condition)
        return self.denoiser.guided(x, t, condition, plan.guidance, plan.interval)

    def _go(self, noise: Tensor, condition: Tensor | None, states: list[Tensor] | None) -> Tensor:
        see = None if states is None else states.append
        way = Way(self.denoiser.process, self.field(condition), see)
        return SOLVERS[self.plan.solver](way, self.scaled(noise), self.times())

    def but(self, **changes: Any) -> Self:
        """The same denoiser with another plan."""
        return type(self)(self.denoiser, replace(self.plan, **changes))

    def at(self, scale: float) -> Sampler:
        """The same sampler under another guidance scale."""
        return self.but(guidance=scale)

    def config(self) -> dict[str, Any]:
        """The plan and the denoiser's conventions."""
        return {"plan": asdict(self.plan), "denoiser": self.denoiser.config()}


class FixedGuidance(Sampler):
    """A sampler whose guidance scale is what it is: asked for another one, it stays the same."""

    def at(self, scale: float) -> Sampler:
        """Itself."""
        return self

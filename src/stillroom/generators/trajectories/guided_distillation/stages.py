"""The two stages of guided distillation: guidance into one network, and a number of steps into half of it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor

from stillroom.generators.parts import times
from stillroom.generators.parts.base import GeneratorMethod
from stillroom.generators.parts.denoiser import Denoiser
from stillroom.generators.parts.guidance import GuidanceRegression, clean_error
from stillroom.generators.parts.process import Process
from stillroom.generators.parts.sampler import Plan, Sampler
from stillroom.generators.parts.solvers import Solver, ddim_step, two_steps_as_one
from stillroom.method import Batch, Update, Updates
from stillroom.task import Task

Sampling = Literal["deterministic", "stochastic"]
Direction = Literal["decode", "encode"]
FEW = 4
"""Halvings to as many steps or fewer take twice the updates of others."""


# -- where a student lives and what it puts out -----------------------------------------------------------------------


def working(denoiser: Denoiser) -> Denoiser:
    """`denoiser` where a grid uniform in t makes sense: an EDM process's behind the cosine process, others as is."""
    return denoiser.on("cosine") if denoiser.process.name == "edm" else denoiser


def well_conditioned(denoiser: Denoiser) -> Denoiser:
    """`denoiser` itself, or where its output says nothing of x0 without signal the same network read otherwise.

    From eps or score, x0 divides by alpha: an error at the noisiest time grows by sigma / alpha, and one or two
    steps start there. The weights are then read as v where the process is variance preserving (x0 = alpha x - sigma
    v), as the velocity on flow, as x0 on the EDM process: a network that has to be taught, with the old features.
    """
    if denoiser.prediction not in ("eps", "score"):
        return denoiser
    made = copy.copy(denoiser)
    made.prediction = {"edm": "x0", "flow": "velocity"}.get(denoiser.own.name, "v")
    return made


def largest_time(process: Process, *denoisers: Denoiser) -> float:
    """The largest time of `process` whose noise level all of the denoisers may be asked at, and were trained at."""
    return min(_largest(process, denoiser) for denoiser in denoisers)


def _largest(process: Process, denoiser: Denoiser) -> float:
    start = denoiser.on(denoiser.own).start
    if process == denoiser.own:
        return start
    level = denoiser.own.ratio(torch.tensor(start, dtype=torch.float64))
    moved = denoiser.on(process).start
    return moved if bool(level.isinf()) else min(moved, float(process.time_at(level)))


def least_time(process: Process) -> float:
    """Where encoding starts: noise level 0.002, or the first time of a discrete process if that is later."""
    level = float(process.time_at(torch.tensor(0.002, dtype=torch.float64)))
    return max(level, 1 / getattr(process, "steps", torch.inf))


# -- stage one ----------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class StageOne(GuidanceRegression):
    """Stage one: the guided teacher in one pass (Meng et al., 2023, arXiv:2210.03142, section 3.1, eq. 3)."""

    name: ClassVar[str] = "guided-distillation-one"

    steps: int = 64
    """Steps that the product samples with, >= 1."""

    def bind(self, task: Task, seed: int) -> None:
        """See the base; and put the student where stage two can halve its steps."""
        super().bind(task, seed)
        self.student = working(well_conditioned(self.student))
        self.last = largest_time(self.student.process, self.student, self.reference.denoiser)
        plan = Plan("ddim", self.steps, guidance=self.sampling.plan.guidance, start=self.last)
        self.sampling = Sampler(self.student, plan)


# -- stage two ----------------------------------------------------------------------------------------------------


def halvings(start: int, end: int) -> list[int]:
    """The numbers of steps start/2, start/4, ..., end; [] unless `start` is `end` times 2, 4, 8, ..."""
    found = []
    while start > end and start % 2 == 0:
        start //= 2
        found.append(start)
    return found if start == end else []


def budget(total: int, share: float, rounds: Sequence[int]) -> list[int]:
    """Updates of stage one and of each halving, at least 1 each: `share` of the total, and the rest.

    Halvings to `FEW` steps or fewer count double. With share 0 there is no stage one, and its number is 0.
    """
    first = max(1, round(share * total)) if share else 0
    weights = [2 if steps <= FEW else 1 for steps in rounds]
    edges = [round((total - first) * sum(weights[:i]) / sum(weights)) for i in range(len(rounds) + 1)]
    return [first, *(max(1, b - a) for a, b in pairwise(edges))]


def grid_times(
    i: Tensor, steps: int, process: Process, last: float, sampling: Sampling, direction: Direction
) -> tuple[Tensor, Tensor, Tensor]:
    """Times t, t', t'' [n] of the student's step number `i` in 1 .. steps ([n], whole numbers in any float type).

    Decoding: t = i/N of the way to `last`, t'' one step below it, or two for the stochastic sampler (not below 0).
    Encoding: t'' = i/N, t one step below. t' is the middle.
    """
    high, low = i / steps * last, (i - 1) / steps * last
    if sampling == "stochastic":
        low = (i - 2).clamp_min(0) / steps * last
    if direction == "encode":
        low, high = high, low.clamp_min(least_time(process))
    return high, (high + low) / 2, low


def two_steps(
    model: Denoiser,
    x: Tensor,
    t: Tensor,
    middle: Tensor,
    end: Tensor,
    condition: Tensor | None,
    w: Tensor | None,
) -> Tensor:
    """The x0 [n, ...] for which one DDIM step from (x_t, t) to `end` is the model's two over `middle`, all at one w.

    Salimans and Ho, 2022, arXiv:2202.00512, algorithm 2; Meng et al., 2023, section 3.2.
    """
    half = ddim_step(model.estimate(x, t, condition, w), middle)
    whole = ddim_step(model.estimate(half, middle, condition, w), end)
    return two_steps_as_one(model.process, x, whole, t, end)


@dataclass(eq=False)
class Halving(GeneratorMethod):
    """One round of stage two: half the steps, w an input (Meng et al., 2023, arXiv:2210.03142, section 3.2).

    min E max(SNR_t, 1) ||D(x_t, t, c, w) - D'||^2 over data, the student's grid of times and w, D' the denoised sample
    for which one DDIM step lands where two of `model` do. The student starts as `model`.
    """

    name: ClassVar[str] = "halving"
    listed: ClassVar[bool] = False
    uses_teacher: ClassVar[bool] = False

    model: Sampler
    """What is halved: a sampler of twice the steps, frozen from here on."""
    steps: int
    """Steps of the student, >= 1."""
    guidance_low: float = 1.0
    """Least guidance scale w."""
    guidance_high: float = 4.0
    """Largest guidance scale w."""
    sampling: Sampling = "deterministic"
    """The sampler that the student is made for."""
    direction: Direction = "decode"
    """Down to data, or up to noise."""

    def bind(self, task: Task, seed: int) -> None:
        """Start the student as the model."""
        model = self.model.requires_grad_(False).eval().denoiser
        self.student = well_conditioned(model.copy())
        solver: Solver = "ddim" if self.sampling == "deterministic" else "renoised"
        self.made = type(self.model)(self.student, replace(self.model.plan, solver=solver, steps=self.steps))

    def updates(self, batch: Batch) -> Updates:
        """One step towards two of the model's."""
        noise, model = batch.noise, self.model.denoiser
        i = noise.integers(self.steps).to(batch.x.dtype) + 1
        last = self.model.start
        t, middle, end = grid_times(i, self.steps, model.process, last, self.sampling, self.direction)
        w = times.uniform(noise.uniform(), self.guidance_low, self.guidance_high)
        w = w if model.takes_guidance else None
        x = model.process.add_noise(batch.x, t, noise.normal(*batch.x.shape[1:]))
        with torch.no_grad():
            wanted = two_steps(model, x, t, middle, end, batch.y, w)
        errors = clean_error(model.process, t, self.student(x, t, batch.y, w), wanted)
        yield Update("student", errors.mean(), items=len(batch))

    def product(self) -> Sampler:
        """The student, sampled in its own number of steps."""
        return self.made

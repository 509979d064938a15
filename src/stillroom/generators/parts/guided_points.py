"""What a guided teacher's network is asked on its way, and what it should say there in one pass, kept.

A point is the network's input and its guided output in its own letter, in half precision, with its time, the guidance
scale and the condition. A trajectory has one scale and one condition. Points may instead lie where data are noised.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stillroom.data import Source
from stillroom.errors import UserError
from stillroom.generators.parts.building import sampler_digest
from stillroom.generators.parts.estimate import Estimate
from stillroom.generators.parts.process import along
from stillroom.generators.parts.sampler import Sampler
from stillroom.generators.parts.solvers import ancestral_step, ddim_step
from stillroom.runtime import Runtime
from stillroom.seeds import seed_of
from stillroom.store import Store, kept_store

POINT = 23
"""Keeps the seeds of points apart from all others."""
BLOCK = 100
"""Trajectories that are made at once."""


@dataclass(frozen=True)
class GuidedPoints:
    """How points are made: `count` trajectories of `teacher`, one point at each step of its plan."""

    teacher: Sampler
    shape: tuple[int, ...]
    """A sample's."""
    count: int
    solver: Literal["ddim", "ddpm"]
    low: float
    """Least guidance scale."""
    high: float
    """Largest."""
    embeddings: Tensor | None = None
    """The conditions, taken in turn, of a teacher that has no classes."""
    data: Source | None = None
    """Where the inputs are data of the trajectory's class, noised to its times, in place of its states."""

    def keep(self, key: dict[str, Any]) -> Store:
        """All points [count x steps], trajectory by trajectory, from the cache or made now.

        Arrays: input and output [..., *shape] (float16), time and t (the network's and the process's), scale, and
        condition: a label, or the number of an embedding.
        """
        steps = self.teacher.plan.steps
        about = {
            "teacher": sampler_digest(self.teacher),
            "solver": self.solver,
            "range": [self.low, self.high],
            "noised": self.data is not None,
            **key,
        }
        return kept_store("guided-points", about, self.count * steps, self.make, block=BLOCK * steps)

    @torch.no_grad()
    def make(self, rows: range) -> dict[str, Tensor]:
        """The points `rows`, whole trajectories; each draws from a generator of its own."""
        steps, device = self.teacher.plan.steps, Runtime().device
        ids = range(rows.start // steps, rows.stop // steps)
        draws = [torch.Generator().manual_seed(seed_of(POINT, i)) for i in ids]
        self.teacher.to(device).eval()
        span = torch.tensor([float(torch.rand((), generator=draw)) for draw in draws])
        w = (self.low + (self.high - self.low) * span).to(device)
        whose, condition = self._conditions(torch.tensor(ids), device)
        x, points = self.teacher.scaled(self._noise(draws, device)), []
        for t, s in pairwise(self.teacher.times().to(device)):
            each = t.to(torch.float32).expand(len(x))
            if self.data is not None:
                x0, noise = self._data(self.data, draws, whose), self._noise(draws, device)
                x = self.teacher.denoiser.process.add_noise(x0.to(device), each, noise)
            at, point = guided_point(self.teacher, x, each, condition, w)
            points.append(point | {"t": each, "scale": w, "condition": whose})
            x = ddim_step(at, s) if self.solver == "ddim" else self._ancestral(at, s, draws)
        return {name: torch.stack([p[name] for p in points], 1).flatten(0, 1) for name in points[0]}

    def _ancestral(self, at: Estimate, s: Tensor, draws: list[torch.Generator]) -> Tensor:
        return ancestral_step(at, s, self._noise(draws, at.x.device))

    def _conditions(self, ids: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Numbers of classes or embeddings, in turn, and the conditions that they stand for."""
        if self.embeddings is None:
            whose = ids % self.teacher.denoiser.classes
            return whose, whose.to(device)
        whose = ids % len(self.embeddings)
        return whose, self.embeddings[whose].to(device)

    def _noise(self, draws: list[torch.Generator], device: torch.device) -> Tensor:
        return torch.stack([torch.randn(self.shape, generator=draw) for draw in draws]).to(device)

    @staticmethod
    def _data(data: Source, draws: list[torch.Generator], whose: Tensor) -> Tensor:
        """A sample of each trajectory's class."""
        labels = data.labels
        assert labels is not None
        pools = [(labels == int(label)).nonzero().flatten() for label in whose]
        if not all(len(pool) for pool in pools):
            raise UserError("a class has no training sample to noise: pass --method.inputs trajectories")
        pairs = zip(pools, draws, strict=True)
        ids = torch.stack([pool[torch.randint(len(pool), (), generator=draw)] for pool, draw in pairs])
        return data.fetch(ids, view=None)[0]


@contextmanager
def heard(network: nn.Module) -> Iterator[list[tuple[Tensor, Tensor, Tensor]]]:
    """Inside, what the network is given and says: input, time and output of every call."""
    calls: list[tuple[Tensor, Tensor, Tensor]] = []
    hook = network.register_forward_hook(lambda _, args, said: calls.append((args[0], args[1], said)))
    try:
        yield calls
    finally:
        hook.remove()


def guided_point(
    teacher: Sampler, x: Tensor, t: Tensor, condition: Tensor, w: Tensor
) -> tuple[Estimate, dict[str, Tensor]]:
    """The guided estimate at x_t [n, ...], times [n], scales [n]; and it as the network would say it.

    output = F(none) + w (F(c) - F(none)) of what the network itself says, F, whatever its letter and preconditioning
    (Ho and Salimans, 2022, arXiv:2207.12598, eq. 6, with w = 1 + their w), in half precision.
    """
    with heard(teacher.denoiser.network) as calls:
        at = teacher.denoiser.guided(x, t, condition, w, teacher.plan.interval)
    seen, time, said = calls[0]
    w = teacher.denoiser.scale_within(w, t, teacher.plan.interval)
    without, with_it = said.chunk(2)
    guided = without + along(w, said) * (with_it - without)
    return at, {"input": seen[len(x) :].half(), "output": guided.half(), "time": time[len(x) :].float()}

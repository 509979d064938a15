"""Which samples each step sees, on which process, in which micro-batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch

from stillroom.data.source import Source
from stillroom.method import Batch, Clock, Noise
from stillroom.seeds import seed_of

# What a run's seed is used for, so that no two uses of it draw the same numbers.
ORDER, NOISE, GLOBAL, VIEW, BIND = 1, 2, 3, 4, 5


@dataclass(frozen=True)
class Plan:
    """Which samples each step sees: a permutation an epoch, a function of (seed, epoch), every sample once."""

    samples: int
    size: int
    epochs: int
    seed: int
    limit: int = 0
    """Steps of the whole run; 0: as many as `epochs` make."""

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one epoch; the last one may be smaller than the others."""
        return -(-self.samples // self.size)

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.limit or self.steps_per_epoch * self.epochs

    def clock(self, step: int) -> Clock:
        """What a method is told of the time."""
        return Clock(step, self.steps, step // self.steps_per_epoch, -(-self.steps // self.steps_per_epoch))

    def order(self, epoch: int) -> torch.Tensor:
        """The ids of all samples [samples] in the order of that epoch."""
        generator = torch.Generator().manual_seed(seed_of(self.seed, ORDER, epoch))
        return torch.randperm(self.samples, generator=generator)

    def cut(self, step: int, rank: int, ranks: int, parts: int) -> list[slice]:
        """The rows of the step's batch that process `rank` of `ranks` sees, in up to `parts` micro-batches.

        A process that gets no row (a last batch smaller than the number of processes) has no slice.
        """
        start, end = self.rows(step)
        first, last = _share(end - start, rank, ranks)
        cuts = [_share(last - first, part, parts) for part in range(parts)]
        return [slice(first + a, first + b) for a, b in cuts if a < b]

    def rows(self, step: int) -> tuple[int, int]:
        """Where the step's samples stand in its epoch's order: first, one past the last."""
        start = step % self.steps_per_epoch * self.size
        return start, min(start + self.size, self.samples)


def _share(rows: int, which: int, ways: int) -> tuple[int, int]:
    """First and one past the last of the rows that fall to `which` when `rows` are cut into `ways` even parts."""
    size, more = divmod(rows, ways)
    first = which * size + min(which, more)
    return first, first + size + (which < more)


class Feeder:
    """Makes the micro-batches of a step for one process out of a plan and a source."""

    def __init__(
        self, plan: Plan, source: Source, rank: int, ranks: int, parts: int, device: torch.device
    ) -> None:
        self.plan, self.source, self.device = plan, source, device
        self.rank, self.ranks, self.parts = rank, ranks, parts
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def batches(self, step: int) -> tuple[list[Batch], bool]:
        """The micro-batches of `step`, and whether they count.

        A process without rows gets one sample all the same, so that it takes part in what all processes do
        together; it does not count.
        """
        clock = self.plan.clock(step)
        if clock.epoch != self._epoch:
            self._epoch, self._order = clock.epoch, self.plan.order(clock.epoch)
        start, end = self.plan.rows(step)
        ids = self._order[start:end]
        cuts = self.plan.cut(step, self.rank, self.ranks, self.parts)
        return [self._batch(ids, rows, clock) for rows in cuts or [slice(0, 1)]], bool(cuts)

    def fillers(self, step: int, there: int) -> list[Batch]:
        """What a process with `there` micro-batches lacks to have as many as the others; they do not count.

        Processes must ask a network equally often where they hold shards of it, and log as many losses.
        """
        most = len(self.plan.cut(step, 0, self.ranks, self.parts))
        clock, (start, end) = self.plan.clock(step), self.plan.rows(step)
        return [self._batch(self._order[start:end], slice(0, 1), clock) for _ in range(most - there)]

    def _batch(self, ids: torch.Tensor, rows: slice, clock: Clock) -> Batch:
        view = None if self.source.fixed else seed_of(self.plan.seed, VIEW, clock.epoch)
        index = ids[rows]
        x, y = self.source.fetch(index, view)
        noise = Noise(
            lambda draw: seed_of(self.plan.seed, NOISE, clock.step, draw), rows, len(ids), self.device
        )
        return Batch(x, cast(torch.Tensor, y), index, clock, noise, view)

"""Which samples each step sees, on which process, in which micro-batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from stillroom.data.ahead import Ahead, Ask
from stillroom.data.source import Source, TensorSource
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
    views: int = 0
    """Augmented views that come round: epoch e has that of epoch e mod `views`; 0: one of its own."""

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

    def view(self, epoch: int) -> int:
        """The augmentation of that epoch."""
        return view_of(self.seed, epoch % self.views if self.views else epoch)

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


def view_of(seed: int, epoch: int) -> int:
    """The view of epoch `epoch` of a run with seed `seed`: `source.fetch(ids, view_of(seed, epoch))` replays it.

    What a sample then looks like is a function of (seed, epoch, id), whatever else is fetched beside it. A source
    that is fixed looks the same in every view, and its batches carry none.
    """
    return seed_of(seed, VIEW, epoch)


def _share(rows: int, which: int, ways: int) -> tuple[int, int]:
    """First and one past the last of the rows that fall to `which` when `rows` are cut into `ways` even parts."""
    size, more = divmod(rows, ways)
    first = which * size + min(which, more)
    return first, first + size + (which < more)


class Feeder:
    """Makes the micro-batches of a step for one process out of a plan and a source.

    With `workers`, that many processes fetch ahead, unless fetching is no more than picking rows in memory. The
    batches are the same.
    """

    def __init__(
        self,
        plan: Plan,
        source: Source,
        rank: int,
        ranks: int,
        parts: int,
        device: torch.device,
        workers: int = 0,
    ) -> None:
        self.plan, self.source, self.device = plan, source, device
        self.rank, self.ranks, self.parts = rank, ranks, parts
        self.fixed = source.fixed
        self._orders: dict[int, torch.Tensor] = {}
        picked = isinstance(source, TensorSource) and source.fixed
        self._ahead = Ahead(source, workers, self._asks, plan.steps) if workers and not picked else None

    def batches(self, step: int) -> tuple[list[Batch], bool]:
        """The micro-batches of `step`, and whether they count.

        A process without rows gets one sample all the same, so that it takes part in what all processes do
        together; it does not count.
        """
        clock = self.plan.clock(step)
        ids, rows, view, counts = self._cut(step, clock.epoch)
        found = None if self._ahead is None else self._ahead.take(step, len(rows))
        pairs = found or [self.source.fetch(ids[part], view) for part in rows]
        return [self._batch(*p, ids, part, clock, view) for p, part in zip(pairs, rows, strict=True)], counts

    def fillers(self, step: int, there: int) -> list[Batch]:
        """What a process with `there` micro-batches lacks to have as many as the others; they do not count.

        Processes must ask a network equally often where they hold shards of it, and log as many losses.
        """
        most = len(self.plan.cut(step, 0, self.ranks, self.parts))
        if there >= most:
            return []
        clock, part = self.plan.clock(step), slice(0, 1)
        ids, _, view, _ = self._cut(step, clock.epoch)
        x, y = self.source.fetch(ids[part], view)
        return [self._batch(x, y, ids, part, clock, view) for _ in range(most - there)]

    def _batch(
        self, x: torch.Tensor, y: Any, ids: torch.Tensor, part: slice, clock: Clock, view: int | None
    ) -> Batch:
        noise = Noise(
            lambda draw: seed_of(self.plan.seed, NOISE, clock.step, draw), part, len(ids), self.device
        )
        return Batch(x, y, ids[part], clock, noise, view)

    def close(self) -> None:
        """Stop the processes that fetch ahead."""
        if self._ahead is not None:
            self._ahead.close()

    def _cut(self, step: int, epoch: int) -> tuple[torch.Tensor, list[slice], int | None, bool]:
        """Ids of the whole step, which of them fall to each micro-batch, their view, and whether these count."""
        if epoch not in self._orders:
            # two are held: fetching ahead comes to the next epoch before this one is over
            self._orders = dict(list(self._orders.items())[-1:]) | {epoch: self.plan.order(epoch)}
        start, end = self.plan.rows(step)
        cuts = self.plan.cut(step, self.rank, self.ranks, self.parts)
        view = None if self.fixed else self.plan.view(epoch)
        return self._orders[epoch][start:end], cuts or [slice(0, 1)], view, bool(cuts)

    def _asks(self, step: int) -> list[Ask]:
        """Ids and view of each micro-batch of `step`."""
        ids, rows, view, _ = self._cut(step, step // self.plan.steps_per_epoch)
        return [(ids[part], view) for part in rows]

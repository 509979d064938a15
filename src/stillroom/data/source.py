"""Samples by id: what the Engine trains from, in memory or decoded as they are asked for."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, Self

import numpy as np
import torch
from torch import Tensor

from stillroom.errors import UserError
from stillroom.seeds import seed_of

Augment = Callable[[Tensor], Tensor]
"""One sample [C, H, W], uint8 or float in [0, 1], to its augmented view."""

Read = Callable[[Sequence[int]], Iterator[Tensor]]
"""Rows to their samples, one at a time and only when asked for the next: [C, H, W], uint8 or float."""


class Source(Protocol):
    """Samples by id. Fetching is a pure function of (ids, view)."""

    @property
    def fixed(self) -> bool:
        """Whether a sample is the same in every view: nothing is augmented."""
        ...

    @property
    def labels(self) -> Tensor | None:
        """All labels, int64 [N], without reading a sample; None where unlabelled."""
        ...

    def __len__(self) -> int: ...

    def subset(self, ids: Tensor) -> Source:
        """The samples `ids` (int64 [n]) alone, renumbered 0 .. n - 1."""
        ...

    def fetch(self, ids: Tensor, view: int | None) -> tuple[Tensor, Tensor | None]:
        """Samples `ids` (int64 [B]) as x [B, ...] float32 and y [B] int64 (None where unlabelled).

        `view` is the seed of the epoch's augmentation: a sample's augmentation depends on (view, id) only,
        whatever else is in the batch. None: not augmented.
        """
        ...


@contextmanager
def borrowed_generators() -> Iterator[Callable[[int], None]]:
    """Lend the process-wide generators (torch, random, numpy) to code that can draw from nothing else.

    Yields `reseed(seed)`; on leaving, all three are as they were. Not for use beside threads that draw from
    the same generators.
    """
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield _reseed
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def _reseed(seed: int) -> None:
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)


def standardise(x: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None) -> Tensor:
    """(x - mean) / std per channel, float32, of x [B, C, ...], uint8 scaled to [0, 1] first. x is kept."""
    finished = x.to(torch.float32, copy=mean is not None or std is not None)
    if x.dtype == torch.uint8:
        finished.div_(255)
    shape = (1, -1) + (1,) * (x.ndim - 2)
    if mean is not None:
        finished.sub_(torch.tensor(mean, dtype=torch.float32).view(shape))
    if std is not None:
        finished.div_(torch.tensor(std, dtype=torch.float32).view(shape))
    return finished


class WrappedSource:
    """A source made of another one: as many samples, and their labels, unless a subclass says otherwise."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    @property
    def fixed(self) -> bool:
        """See `Source.fixed`."""
        return self.source.fixed

    @property
    def labels(self) -> Tensor | None:
        """See `Source.labels`."""
        return self.source.labels

    def subset(self, ids: Tensor) -> Self:
        """The samples `ids` (int64 [n]) alone, renumbered 0 .. n - 1."""
        part = copy.copy(self)
        part.source = self.source.subset(ids)
        return part


class TensorSource:
    """Samples in memory.

    x is [N, C, ...], uint8 or float; y is [N] integers or None; mean and std are a number a channel. Without
    `augment`, x is finished to float32 once and a fetch is a single index_select. With it, x stays as it came
    and each fetched sample is transformed on its own under a seed made from (view, id), then normalised.
    Raises UserError where x and y differ in length.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor | None = None,
        augment: Augment | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        if y is not None and len(y) != len(x):
            raise UserError(f"x has {len(x)} samples and y has {len(y)} labels: pass one label a sample")
        self.augment, self.mean, self.std = augment, mean, std
        self.x = x if augment else standardise(x, mean, std)
        self.y = None if y is None else y.to(torch.int64)

    def __len__(self) -> int:
        return len(self.x)

    @property
    def fixed(self) -> bool:
        """See `Source.fixed`."""
        return self.augment is None

    @property
    def labels(self) -> Tensor | None:
        """See `Source.labels`."""
        return self.y

    def fetch(self, ids: Tensor, view: int | None) -> tuple[Tensor, Tensor | None]:
        """See `Source.fetch`."""
        x = self.x.index_select(0, ids)
        y = None if self.y is None else self.y.index_select(0, ids)
        if self.augment is None:
            return x, y
        if view is not None:
            with borrowed_generators() as reseed:
                x = torch.stack(list(_views(iter(x), ids.tolist(), view, self.augment, reseed)))
        return standardise(x, self.mean, self.std), y

    def subset(self, ids: Tensor) -> TensorSource:
        """The samples `ids` (int64 [n]) alone, renumbered 0 .. n - 1."""
        part = copy.copy(self)
        part.x = self.x.index_select(0, ids)
        part.y = None if self.y is None else self.y.index_select(0, ids)
        return part


class LazySource:
    """Samples too many for memory: `read` decodes those of a batch when they are fetched.

    `rows` (int64 [N]) are the rows of `read` that make up this source, in the order of their ids; `labels` is
    int64 [N] or None. `random` says that reading itself draws from process-wide generators (a data set with
    random transforms of its own): it is then seeded by (view, id) too, and without a view by the id alone.
    """

    def __init__(
        self,
        read: Read,
        rows: Tensor,
        labels: Tensor | None = None,
        augment: Augment | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        *,
        random: bool = False,
    ) -> None:
        self.read, self.rows, self.labels = read, rows, labels
        self.augment, self.mean, self.std, self.random = augment, mean, std, random

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def fixed(self) -> bool:
        """See `Source.fixed`."""
        return self.augment is None and not self.random

    def fetch(self, ids: Tensor, view: int | None) -> tuple[Tensor, Tensor | None]:
        """See `Source.fetch`."""
        y = None if self.labels is None else self.labels.index_select(0, ids)
        samples = self.read(self.rows.index_select(0, ids).tolist())
        augment = None if view is None else self.augment
        if augment or self.random:
            with borrowed_generators() as reseed:
                x = torch.stack(list(_views(samples, ids.tolist(), view, augment, reseed)))
        else:
            x = torch.stack(list(samples))
        return standardise(x, self.mean, self.std), y

    def subset(self, ids: Tensor) -> LazySource:
        """The samples `ids` (int64 [n]) alone, renumbered 0 .. n - 1."""
        part = copy.copy(self)
        part.rows = self.rows.index_select(0, ids)
        part.labels = None if self.labels is None else self.labels.index_select(0, ids)
        return part


def _views(
    samples: Iterator[Tensor],
    ids: list[int],
    view: int | None,
    augment: Augment | None,
    reseed: Callable[[int], None],
) -> Iterator[Tensor]:
    for i in ids:
        # before the sample is taken: taking it may decode it, and decoding may draw
        reseed(seed_of(i) if view is None else seed_of(view, i))
        sample = next(samples)
        yield augment(sample) if augment else sample

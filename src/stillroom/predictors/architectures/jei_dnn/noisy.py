"""Images under noise that belongs to them: some samples are then hard, which exits have to notice."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from stillroom.data import Source
from stillroom.seeds import seed_of


class NoisySource:
    """The samples of `source` with Gaussian noise of a deviation, the same for a sample in every view or `fresh`."""

    def __init__(self, source: Source, deviation: float, seed: int, fresh: bool = False) -> None:
        self.source, self.deviation, self.fresh = source, deviation, fresh
        self.seeds = torch.tensor([seed_of(seed, index) for index in range(len(source))])

    def __len__(self) -> int:
        return len(self.source)

    @property
    def fixed(self) -> bool:
        """See `Source.fixed`."""
        return self.source.fixed and not self.fresh

    @property
    def labels(self) -> Tensor | None:
        """See `Source.labels`."""
        return self.source.labels

    def fetch(self, ids: Tensor, view: int | None) -> tuple[Tensor, Tensor | None]:
        """See `Source.fetch`."""
        x, y = self.source.fetch(ids, view)
        seeds = self.seeds[ids].tolist()
        if self.fresh and view is not None:
            seeds = [seed_of(seed, view) for seed in seeds]
        draws = [torch.randn(x.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return x + self.deviation * torch.stack(draws), y

    def subset(self, ids: Tensor) -> NoisySource:
        """The samples `ids` alone, with the noise that they had."""
        part = copy.copy(self)
        part.source, part.seeds = self.source.subset(ids), self.seeds[ids]
        return part

"""Images under noise that belongs to them: some samples are then hard, which exits have to notice."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from stillroom.data import Source
from stillroom.data.source import WrappedSource
from stillroom.seeds import seed_of


class NoisySource(WrappedSource):
    """The samples of `source` with Gaussian noise of a deviation, the same for a sample in every view or `fresh`."""

    def __init__(self, source: Source, deviation: float, seed: int, fresh: bool = False) -> None:
        super().__init__(source)
        self.deviation, self.fresh = deviation, fresh
        self.seeds = torch.tensor([seed_of(seed, index) for index in range(len(source))])

    @property
    def fixed(self) -> bool:
        """See `Source.fixed`."""
        return self.source.fixed and not self.fresh

    def fetch(self, ids: Tensor, view: int | None) -> tuple[Tensor, Tensor | None]:
        """See `Source.fetch`."""
        x, y = self.source.fetch(ids, view)
        seeds = self.seeds[ids].tolist()
        if self.fresh and view is not None:
            seeds = [seed_of(seed, view) for seed in seeds]
        draws = [torch.randn(x.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return x + self.deviation * torch.stack(draws), y

    def subset(self, ids: Tensor) -> Self:
        """The samples `ids` alone, with the noise that they had."""
        part = super().subset(ids)
        part.seeds = self.seeds[ids]
        return part

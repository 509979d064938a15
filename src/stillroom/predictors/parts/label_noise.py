"""Wrong training labels: what makes some samples harmful, which a choice of samples or a teacher has to cope with."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from stillroom.data import Source
from stillroom.data.source import WrappedSource


class Relabelled(WrappedSource):
    """The samples of `source` with other labels [N], int64; see `stillroom.data.Source`."""

    def __init__(self, source: Source, labels: Tensor) -> None:
        super().__init__(source)
        self._labels = labels

    @property
    def labels(self) -> Tensor:
        """The other labels."""
        return self._labels

    def subset(self, ids: Tensor) -> Self:
        """The samples `ids` alone, with the labels that they had here."""
        part = super().subset(ids)
        part._labels = self._labels.index_select(0, ids)
        return part

    def fetch(self, ids: Tensor, view: int | None) -> tuple[Tensor, Tensor]:
        """See `Source.fetch`."""
        return self.source.fetch(ids, view)[0], self.labels.index_select(0, ids)


def flipped(labels: Tensor, classes: int, share: float, seed: int) -> Tensor:
    """Labels [n] of which each is, with probability `share`, another class, all others being as likely."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.rand(len(labels), generator=generator) < share
    step = torch.randint(1, classes, (len(labels),), generator=generator)
    return torch.where(chosen, (labels + step) % classes, labels)

"""Wrong training labels: what makes some samples harmful, which a choice of samples or a teacher has to cope with."""

from __future__ import annotations

import torch
from torch import Tensor

from stillroom.data import Source


class Relabelled:
    """The samples of `source` with other labels [N], int64; see `stillroom.data.Source`."""

    def __init__(self, source: Source, labels: Tensor) -> None:
        self.source, self.labels = source, labels

    def __len__(self) -> int:
        return len(self.source)

    @property
    def fixed(self) -> bool:
        """See `Source.fixed`."""
        return self.source.fixed

    def subset(self, ids: Tensor) -> Relabelled:
        """The samples `ids` alone, with the labels that they had here."""
        return Relabelled(self.source.subset(ids), self.labels.index_select(0, ids))

    def fetch(self, ids: Tensor, view: int | None) -> tuple[Tensor, Tensor]:
        """See `Source.fetch`."""
        return self.source.fetch(ids, view)[0], self.labels.index_select(0, ids)


def flipped(labels: Tensor, classes: int, share: float, seed: int) -> Tensor:
    """Labels [n] of which each is, with probability `share`, another class, all others being as likely."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.rand(len(labels), generator=generator) < share
    step = torch.randint(1, classes, (len(labels),), generator=generator)
    return torch.where(chosen, (labels + step) % classes, labels)

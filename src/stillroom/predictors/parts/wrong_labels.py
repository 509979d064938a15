"""Images some of whose training labels are wrong: a problem that leaves something to repair on easy data."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stillroom.data import Source
from stillroom.errors import UserError, require
from stillroom.predictors.classification import Classification
from stillroom.seeds import seed_of

WRONG = 22
"""Keeps the choice of wrong labels apart from all other seeds."""


class Relabelled:
    """`source` with other labels [N], int64."""

    def __init__(self, source: Source, labels: Tensor) -> None:
        self.source, self.labels = source, labels

    @property
    def fixed(self) -> bool:
        """See `Source.fixed`."""
        return self.source.fixed

    def __len__(self) -> int:
        return len(self.source)

    def subset(self, ids: Tensor) -> Relabelled:
        """The samples `ids` alone, renumbered."""
        return Relabelled(self.source.subset(ids), self.labels.index_select(0, ids))

    def fetch(self, ids: Tensor, view: int | None) -> tuple[Tensor, Tensor]:
        """See `Source.fetch`."""
        return self.source.fetch(ids, view)[0], self.labels.index_select(0, ids)


def wronged(labels: Tensor, classes: int, share: float, seed: int) -> Tensor:
    """Labels [n] of which each is, with probability `share`, another class, all others being as likely."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.rand(len(labels), generator=generator) < share
    step = torch.randint(1, classes, (len(labels),), generator=generator)
    return torch.where(chosen, (labels + step) % classes, labels)


@dataclass(eq=False)
class WrongLabels(Classification):
    """Classify images some of whose training labels are wrong; validation and test labels are right."""

    wrong_labels: float = 0.2
    """Share of the student's training labels that are another class, in [0, 1)."""

    def seen(self) -> Source:
        """The student's images, with their wrong labels, another choice for each `subset_seed`."""
        source = super().seen()
        if source.labels is None:
            raise UserError(f"data '{self.images.name}' has no labels to make wrong: pass labelled data")
        seed = seed_of(self.subset_seed, WRONG)
        return Relabelled(source, wronged(source.labels, self.classes, self.wrong_labels, seed))

    def check(self, seed: int, teacher: bool) -> None:
        """See the base; and the share of wrong labels."""
        require("--task.wrong-labels", self.wrong_labels, 0, 1, ends="[)")
        super().check(seed, teacher)

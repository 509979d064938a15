"""Training images class by class: where the samples of a step are classes, each with a fresh draw of its images."""

from __future__ import annotations

import torch
from torch import Tensor

from stillroom.data import Source
from stillroom.seeds import seed_of


def members(labels: Tensor, classes: int) -> list[Tensor]:
    """The ids of each class's samples, ascending."""
    return [(labels == number).nonzero()[:, 0] for number in range(classes)]


class ClassBatches:
    """A source whose samples are classes: x [n, images, C, H, W] and y [n], the classes themselves.

    A class's images are drawn anew in every view, from (view, class) alone: without repetition where it has enough of
    them, else all of them as often as needed. One pass over the classes is an epoch, so a batch that holds all classes
    makes every step an epoch, and however the step is cut a part of it holds whole classes.
    """

    fixed = False

    def __init__(
        self, source: Source, groups: list[Tensor], images: int, numbers: Tensor | None = None
    ) -> None:
        self.source, self.groups, self.images = source, groups, images
        self.labels = torch.arange(len(groups)) if numbers is None else numbers

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, ids: Tensor) -> ClassBatches:
        """The classes `ids` alone, under their own numbers."""
        return ClassBatches(self.source, self.groups, self.images, self.labels[ids])

    def fetch(self, ids: Tensor, view: int | None) -> tuple[Tensor, Tensor]:
        """See `stillroom.data.Source.fetch`; without a view the first images of each class."""
        numbers = self.labels[ids]
        chosen = torch.cat([self._chosen(number, view) for number in numbers.tolist()])
        x, _ = self.source.fetch(chosen, None)
        return x.view(len(ids), self.images, *x.shape[1:]), numbers

    def _chosen(self, number: int, view: int | None) -> Tensor:
        group = self.groups[number]
        rounds = -(-self.images // len(group))
        if view is None:
            return group.repeat(rounds)[: self.images]
        generator = torch.Generator().manual_seed(seed_of(view, number))
        orders = [torch.randperm(len(group), generator=generator) for _ in range(rounds)]
        return group[torch.cat(orders)[: self.images]]

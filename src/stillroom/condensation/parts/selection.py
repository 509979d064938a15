"""Real images in place of synthetic ones: where condensing starts from, and what it is held against."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from stillroom.condensation.parts.classes import members
from stillroom.condensation.parts.synthetic import SyntheticSet, chunks
from stillroom.data import Source
from stillroom.method import Fit, Method, Result
from stillroom.seeds import seed_of
from stillroom.task import Task

if TYPE_CHECKING:
    from stillroom.condensation.image_condensation import ImageCondensation

Start = Literal["real", "smart", "noise"]
INITIAL = 8
"""Keeps the seeds of first images apart from all others."""


def random_ids(groups: list[Tensor], each: int, seed: int) -> Tensor:
    """Ids [classes * each], class by class, of different random members of each group."""
    chosen = []
    for number, group in enumerate(groups):
        generator = torch.Generator().manual_seed(seed_of(seed, INITIAL, number))
        chosen.append(group[torch.randperm(len(group), generator=generator)[:each]])
    return torch.cat(chosen)


def k_centres(x: Tensor, count: int) -> Tensor:
    """Rows [count] of x [n, d] that cover it: first the nearest to the mean, then always the farthest from all so far.

    The greedy solution of the k-centre problem (Gonzalez, Theoretical Computer Science 38, 1985), within twice the
    best radius; count <= n. Of equally far rows the first is taken, and none twice.
    """
    flat = x.flatten(1)
    chosen = [int((flat - flat.mean(0)).square().sum(1).argmin())]
    distance = (flat - flat[chosen[0]]).square().sum(1)
    while len(chosen) < count:
        distance[chosen[-1]] = -1.0
        chosen.append(int(distance.argmax()))
        distance = distance.minimum((flat - flat[chosen[-1]]).square().sum(1))
    return torch.tensor(chosen)


def first_images(source: Source, classes: int, each: int, start: Start, seed: int) -> Tensor:
    """Images [classes * each, C, H, W], class by class: random real ones, k-centres of the pixels, or normal noise."""
    assert source.labels is not None
    groups = members(source.labels, classes)
    if start == "smart":
        ids = torch.cat([group[k_centres(source.fetch(group, None)[0], each)] for group in groups])
    else:
        ids = random_ids(groups, each, seed)
    x, _ = source.fetch(ids, None)
    if start != "noise":
        return x
    generator = torch.Generator().manual_seed(seed_of(seed, INITIAL))
    return torch.randn(x.shape, generator=generator)


@dataclass(eq=False)
class Selection(Method):
    """What keeps real images as they are."""

    listed: ClassVar[bool] = False
    uses_teacher: ClassVar[bool] = False
    uses_engine: ClassVar[bool] = False

    def select(self, task: ImageCondensation, seed: int) -> SyntheticSet:
        """The images that are kept."""
        raise NotImplementedError

    def run(self, task: Task, fit: Fit) -> Result:
        """Select; there is nothing to train."""
        from stillroom.condensation.image_condensation import ImageCondensation

        assert isinstance(task, ImageCondensation)
        began = time.perf_counter()
        kept = self.select(task, fit.seed).eval()
        return Result(kept, time.perf_counter() - began)

    @classmethod
    def default_task(cls) -> ImageCondensation:
        """The 8x8 digits."""
        from stillroom.condensation.image_condensation import ImageCondensation

        return ImageCondensation()


@dataclass(eq=False)
class RandomImages(Selection):
    """Random real images, as many a class: what condensing starts from (Sajedi et al., 2023, section 4.2)."""

    name: ClassVar[str] = "random-images"
    role: ClassVar[str] = "as many random real images"

    def select(self, task: ImageCondensation, seed: int) -> SyntheticSet:
        """The same that a condensing method with this seed starts from."""
        return task.synthetic(first_images(task.train(), task.classes, task.ipc, "real", seed))


@dataclass(eq=False)
class AllImages(Selection):
    """All training images: the ceiling (Sajedi et al., 2023, section 4.2)."""

    name: ClassVar[str] = "all-images"
    role: ClassVar[str] = "all training images"

    def select(self, task: ImageCondensation, seed: int) -> SyntheticSet:
        """Everything."""
        parts = list(chunks(task.train()))
        return task.synthetic(torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts]))

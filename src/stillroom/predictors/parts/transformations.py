"""Finite groups of input transformations that act on batches of images: turns, and orders of the colour channels.

A batch becomes its transformed copies, image by image: row b M + j is the j-th transformation of image b, and the
first transformation is the identity (Lee et al., ICML 2020, arXiv:1910.05872, section 3). Nothing is resampled.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Literal, get_args

import torch
from torch import Tensor

from stillroom.data.augment import of_characters
from stillroom.errors import UserError

Named = Literal[
    "none",
    "half-turns",
    "rotations",
    "colours-3",
    "colours-6",
    "half-turns-colours-3",
    "rotations-colours-3",
    "rotations-colours-6",
]
"""The sets by name: of 1, 2, 4, 3, 6, 6, 12 and 24 transformations."""


@dataclass(frozen=True)
class Transformation:
    """Quarter turns against the clock, and the channel that each of the output's three is taken from."""

    turns: int = 0
    """0 to 3, of 90 degrees."""
    channels: tuple[int, ...] = (0, 1, 2)
    """A permutation of 0, 1, 2."""

    def __call__(self, x: Tensor) -> Tensor:
        """Images [n, C, H, W] -> [n, C, H', W'], height and width exchanged where the number of turns is odd."""
        if self.turns:
            x = torch.rot90(x, self.turns, (2, 3))
        if self.channels != (0, 1, 2):
            x = x[:, list(self.channels)]
        return x

    def after(self, first: Transformation) -> Transformation:
        """The transformation that does `first` and then this one."""
        channels = tuple(first.channels[channel] for channel in self.channels)
        return Transformation((self.turns + first.turns) % 4, channels)

    @property
    def name(self) -> str:
        """In words: `identity`, `90° GBR`."""
        words = [f"{90 * self.turns}°"] if self.turns else []
        if self.channels != (0, 1, 2):
            words.append("".join("RGB"[channel] for channel in self.channels))
        return " ".join(words) or "identity"


ALL = tuple(permutations(range(3)))
CYCLIC = ((0, 1, 2), (1, 2, 0), (2, 0, 1))
SETS: dict[str, tuple[Transformation, ...]] = {
    name: tuple(Transformation(turns, order) for turns in several for order in orders)
    for name, several, orders in (
        ("none", (0,), ALL[:1]),
        ("half-turns", (0, 2), ALL[:1]),
        ("rotations", range(4), ALL[:1]),
        ("colours-3", (0,), CYCLIC),
        ("colours-6", (0,), ALL),
        ("half-turns-colours-3", (0, 2), CYCLIC),
        ("rotations-colours-3", range(4), CYCLIC),
        ("rotations-colours-6", range(4), ALL),
    )
}
"""The sets, each a group; turns come before orders of channels, and the identity is first."""
assert tuple(SETS) == get_args(Named)


def transformed(x: Tensor, transformations: Sequence[Transformation]) -> Tensor:
    """All copies of images [B, C, H, W] -> [B M, C, H, W], row b M + j the j-th transformation of image b."""
    if len(transformations) == 1:
        return transformations[0](x)
    return torch.stack([transformation(x) for transformation in transformations], 1).flatten(0, 1)


def check_fit(name: str, shape: Sequence[int], data: str, flag: str = "--method.transformations") -> None:
    """Raise UserError where images of `shape` (C, H, W) of `data` have no such copies.

    Warns where turns change what the images mean, as told by the data's name.
    """
    group = SETS[name]
    if any(one.channels != (0, 1, 2) for one in group) and shape[0] != 3:
        raise UserError(
            f"{flag} is {name}, which exchanges the channels of colour images, and data '{data}' has {shape[0]}: "
            "pass rotations"
        )
    if any(one.turns % 2 for one in group) and shape[1] != shape[2]:
        raise UserError(
            f"{flag} is {name}, and images of data '{data}' are {shape[1]} x {shape[2]}: pass --task.image-size, or "
            "half-turns"
        )
    if any(one.turns for one in group) and of_characters(data):
        warnings.warn(
            f"transformations '{name}' turn images, and a turned character of '{data}' may be another one (6 and 9) "
            "or itself (0, 1, 8): copies then have labels that nobody can tell; 'none' turns nothing",
            stacklevel=3,
        )

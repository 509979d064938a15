"""What is made for a pool and for tests at another size: junk, copies of images, images scaled anew."""

from __future__ import annotations

import torch
from torch import Tensor

from stillroom.data import Source
from stillroom.data.source import WrappedSource, standardise

PATCHES = 4
"""Junk is cut into so many patches a side, which are then shuffled."""


def shuffled(x: Tensor, generator: torch.Generator) -> Tensor:
    """Images x [n, C, H, W] with their 4 x 4 patches in another order; what is left over at the edges stays."""
    high, wide = x.shape[-2] // PATCHES, x.shape[-1] // PATCHES
    made = x.clone()
    for image, mixed in zip(x, made, strict=True):
        for to, start in enumerate(torch.randperm(PATCHES**2, generator=generator).tolist()):
            a, b = to // PATCHES * high, to % PATCHES * wide
            c, d = start // PATCHES * high, start % PATCHES * wide
            mixed[:, a : a + high, b : b + wide] = image[:, c : c + high, d : d + wide]
    return made


def disturbed(x: Tensor, generator: torch.Generator) -> Tensor:
    """Copies of images x [n, C, H, W] in [0, 1]: half as they are, half of less contrast and with faint noise."""
    noise = torch.randn(x.shape, generator=generator)
    return torch.cat([x[::2], (0.1 + 0.7 * x[1::2] + 0.01 * noise[1::2]).clamp(0, 1)])


class Scaled(WrappedSource):
    """A source of pixels, scaled by mean and deviation a channel."""

    def __init__(self, source: Source, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__(source)
        self.mean, self.std = mean, std

    def fetch(self, ids: Tensor, view: int | None) -> tuple[Tensor, Tensor | None]:
        """See `Source.fetch`."""
        x, y = self.source.fetch(ids, view)
        return standardise(x, self.mean, self.std), y

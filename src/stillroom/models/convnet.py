"""The network of data-set distillation (Gidaris and Komodakis, CVPR 2018; Zhao et al., ICLR 2021, arXiv:2006.05929)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn

from stillroom.errors import UserError


class ConvNet(nn.Sequential):
    """A plain chain of equal blocks that knows where its last-but-one block's activation is."""

    @property
    def middle(self) -> str:
        """Module path of the last-but-one block's ReLU (of the only block's where there is one)."""
        # Four layers a block, then Flatten and Linear.
        return str(max(len(self) - 8, 2))


def convnet(shape: Sequence[int], classes: int, width: int, depth: int) -> nn.Sequential:
    """`depth` blocks of 3x3 convolution to `width` channels, instance norm, ReLU and 2x2 average pool; Linear.

    Instance norm is a group norm with one channel a group and weights of its own, so nothing depends on the rest of
    the batch. Layers start as torch's own do. Takes `[N, channels, height, width]`, gives logits `[N, classes]`.
    Raises UserError where the sides are less than 2^depth: the last block would see single pixels.
    """
    channels, height, width_of_image = shape
    if min(height, width_of_image) < 2**depth:
        raise UserError(
            f"architecture 'convnet:{width}x{depth}' halves the sides {depth} times, images of {height} x "
            f"{width_of_image} allow {int(math.log2(min(height, width_of_image)))}: pass a smaller depth"
        )
    layers: list[nn.Module] = []
    for number in range(depth):
        before = width if number else channels
        layers += [
            nn.Conv2d(before, width, 3, padding=1),
            nn.GroupNorm(width, width),
            nn.ReLU(),
            nn.AvgPool2d(2),
        ]
    features = width * (height >> depth) * (width_of_image >> depth)
    return ConvNet(*layers, nn.Flatten(), nn.Linear(features, classes))

"""SelfMix: crops of one image pasted into each other; and the box of CutMix (Yun et al., ICCV 2019, eq. 1 and 2)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Box:
    """Where the partner's pixels go, and what share of its own pixels a crop keeps."""

    rows: slice
    columns: slice
    share: float
    """1 - area of the box / area of the crop: exactly the share of the pixels, and so the label's."""


def cut_box(random: np.random.Generator, alpha: float, height: int, width: int) -> Box:
    """A box of 1 - lambda of the area before the crop's edges clip it; lambda ~ Beta(alpha, alpha), centre uniform."""
    side = math.sqrt(1 - random.beta(alpha, alpha))
    spans = []
    for length in (height, width):
        centre, reach = int(random.integers(length)), int(length * side) // 2
        spans.append(slice(max(centre - reach, 0), min(centre + reach, length)))
    area = math.prod(span.stop - span.start for span in spans)
    return Box(spans[0], spans[1], 1 - area / (height * width))


def pasted(x: Tensor, labels: Tensor, x2: Tensor, labels2: Tensor, box: Box) -> tuple[Tensor, Tensor]:
    """Crops `x` [..., C, H, W] with the box from their partners `x2`, and labels share * a + (1 - share) * a2."""
    mixed = x.clone()
    mixed[..., box.rows, box.columns] = x2[..., box.rows, box.columns]
    return mixed, box.share * labels + (1 - box.share) * labels2


def within_images(x: Tensor, labels: Tensor, order: Tensor, box: Box) -> tuple[Tensor, Tensor]:
    """SelfMix: the crops of an image x [B, n, C, H, W], labels [B, n, classes], and partners `order` [B, n] among them.

    With n = 1 every crop is its own partner, and nothing changes.
    """
    rows = torch.arange(len(x), device=x.device).unsqueeze(1)
    return pasted(x, labels, x[rows, order], labels[rows, order], box)

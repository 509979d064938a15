"""FerKD's rule: which crops are dropped, get a softened label, or keep their teacher's (Shen, ICCV 2023, section 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from stillroom.seeds import seed_of

HARDEST, HARD, IMPORTANT, EASIEST = range(4)
"""Regions: below T_L and above T_T, both uninformative and dropped; softened; kept."""
REGIONS = ("dropped as too hard", "softened", "kept", "dropped as too easy")
"""What pages call them, in the order of their numbers."""
CONTROL = 44
"""Keeps the choice of the random control apart from all other seeds."""

Scale = Literal["quantiles", "confidence"]


@dataclass(frozen=True)
class Thresholds:
    """T_L <= T_M <= T_T, in units of confidence."""

    low: float
    middle: float
    top: float


def thresholds(confidence: Tensor, low: float, middle: float, top: float, scale: Scale) -> Thresholds:
    """The thresholds, once for the whole table: as they are, or as quantiles of all its confidences."""
    if scale == "confidence":
        return Thresholds(low, middle, top)
    ranked = confidence.float().reshape(-1).sort().values
    ends = [float(ranked[round(share * (len(ranked) - 1))]) for share in (low, middle, top)]
    return Thresholds(*ends)


def regions_of(confidence: Tensor, at: Thresholds) -> Tensor:
    """The region of each crop, uint8 like `confidence` [N, K]: each has one, and only one."""
    regions = torch.full_like(confidence, IMPORTANT, dtype=torch.uint8)
    regions[confidence < at.middle] = HARD
    regions[confidence < at.low] = HARDEST
    regions[confidence > at.top] = EASIEST
    return regions


def shuffled(regions: Tensor, seed: int) -> Tensor:
    """The control: as many crops of each region as in `regions` [N, K], but which is left to chance."""
    generator = torch.Generator().manual_seed(seed_of(CONTROL, seed))
    return regions.reshape(-1)[torch.randperm(regions.numel(), generator=generator)].view_as(regions)


def rescued(regions: Tensor, confidence: Tensor, at: Thresholds) -> Tensor:
    """`regions` [N, K] where an image of which every crop would go keeps its most confident one.

    That one is softened below T_M, and keeps its label otherwise.
    """
    lost = ((regions == HARDEST) | (regions == EASIEST)).all(-1)
    best = confidence.argmax(-1, keepdim=True)
    as_what = torch.where(confidence.gather(-1, best) < at.middle, HARD, IMPORTANT).to(regions.dtype)
    return torch.where(lost.unsqueeze(-1), regions.scatter(-1, best, as_what), regions)


def softened(y: Tensor, classes: int, smoothing: float) -> Tensor:
    """h = 1 - smoothing on the true class y (int64 [...]), smoothing / (C - 1) elsewhere: [..., C], sums to 1."""
    even = torch.full((*y.shape, classes), smoothing / (classes - 1), device=y.device)
    return even.scatter(-1, y.unsqueeze(-1), 1 - smoothing)


def adapted(stored: Tensor, y: Tensor, regions: Tensor, smoothing: float) -> Tensor:
    """The labels [n, C] to train on: softened true labels in hard regions, stored ones [n, C] elsewhere."""
    hard = softened(y, stored.shape[-1], smoothing)
    return torch.where((regions == HARD).unsqueeze(-1), hard, stored)

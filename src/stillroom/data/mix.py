"""MixUp and CutMix as a source: what a sample is mixed with is a function of (seed, epoch, sample)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from stillroom.data.source import Source, WrappedSource
from stillroom.errors import UserError
from stillroom.seeds import seed_of


class MixedSource(WrappedSource):
    """Each sample mixed with another of `source`, a subset within itself; labels become soft, float32 [B, classes].

    `mixup` and `cutmix` are the parameters of Beta(a, a), >= 0; where both are above 0 a fair coin chooses for
    each sample. Partner, share and box are drawn from (view, id), so neither the batch nor the number of
    processes matters; without a view samples are not mixed. mixup: Zhang et al., ICLR 2018, arXiv:1710.09412,
    eq. 1; cutmix: Yun et al., ICCV 2019, arXiv:1905.04899, eq. 1, the share corrected to the pasted area.
    """

    fixed = False

    def __init__(self, source: Source, classes: int, mixup: float, cutmix: float) -> None:
        super().__init__(source)
        self.classes, self.mixup, self.cutmix = classes, mixup, cutmix

    def fetch(self, ids: Tensor, view: int | None) -> tuple[Tensor, Tensor]:
        """See `Source.fetch`; y is float32 [B, classes]."""
        x, y = self.source.fetch(ids, view)
        if y is None:
            raise UserError("mixing needs labels and the data have none: pass --task.mixup 0 --task.cutmix 0")
        soft = F.one_hot(y, self.classes).float()
        if view is None:
            return x, soft
        height, width = x.shape[-2:]
        plans = [self._plan(seed_of(view, int(i)), height, width) for i in ids]
        other_x, other_y = self.source.fetch(torch.tensor([p["partner"] for p in plans]), view)
        assert other_y is not None
        other = F.one_hot(other_y, self.classes).float()
        share = torch.tensor([p["share"] for p in plans])
        mixed = torch.stack([_mixed(a, b, p) for a, b, p in zip(x, other_x, plans, strict=True)])
        return mixed, share[:, None] * soft + (1 - share[:, None]) * other

    def _plan(self, seed: int, height: int, width: int) -> dict[str, Any]:
        rng = np.random.default_rng(seed)
        cut = self.cutmix > 0 and (self.mixup == 0 or rng.random() < 0.5)
        partner = int(rng.integers(len(self.source)))
        beta = self.cutmix if cut else self.mixup
        share = float(rng.beta(beta, beta))
        if not cut:
            return {"partner": partner, "share": share, "box": None}
        side = math.sqrt(1 - share)
        row, column = int(rng.integers(height)), int(rng.integers(width))
        top, bottom = (_clip(row + s * int(height * side) // 2, height) for s in (-1, 1))
        left, right = (_clip(column + s * int(width * side) // 2, width) for s in (-1, 1))
        kept = 1 - (bottom - top) * (right - left) / (height * width)
        return {"partner": partner, "share": kept, "box": (slice(top, bottom), slice(left, right))}


def _clip(value: int, size: int) -> int:
    return min(max(value, 0), size)


def _mixed(a: Tensor, b: Tensor, plan: dict[str, Any]) -> Tensor:
    if plan["box"] is None:
        return torch.lerp(b, a, plan["share"])
    out = a.clone()
    out[(..., *plan["box"])] = b[(..., *plan["box"])]
    return out

"""The spatial attention map of a feature: where in an image a network's channels are active."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def attention_map(features: Tensor, power: float = 2.0, normalise: bool = True) -> Tensor:
    """sum_c |f_c|^power of features [n, C, H, W] as rows [n, H * W], each divided by its L2 norm or as it is.

    Zagoruyko and Komodakis, ICLR 2017, arXiv:1612.03928, section 3.1 (F_sum^p); `power` >= 1. A normalised map has
    norm 1, does not change when the features are scaled, and is 0 where they all are: an image's features are divided
    by their largest before the power is taken, so that none is too high. Half precision is computed in float32.
    """
    size = features.to(torch.promote_types(features.dtype, torch.float32)).abs()
    if not normalise:
        return size.pow(power).sum(1).flatten(1)
    largest = size.detach().amax((1, 2, 3), keepdim=True)
    size = size / torch.where(largest > 0, largest, 1.0)
    return F.normalize(size.pow(power).sum(1).flatten(1), dim=1)

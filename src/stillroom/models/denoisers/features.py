"""What denoising networks read numbers with: Fourier features, and the embedding of a guidance scale."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


class Fourier(nn.Module):
    """sin and cos of a number [n] at `count` frequencies between `low` and `high` in geometric steps: [n, 2 count]."""

    def __init__(self, count: int, low: float, high: float) -> None:
        super().__init__()
        steps = torch.linspace(math.log(low), math.log(high), count)
        self.register_buffer("frequencies", steps.exp(), persistent=False)

    def forward(self, value: Tensor) -> Tensor:
        """Features of `value` [n]."""
        angles = value.unsqueeze(-1) * self.frequencies
        return torch.cat([angles.sin(), angles.cos()], -1)


COUNT, LOW, HIGH = 32, 0.1, 60.0
"""Frequencies of a guidance scale: scales run from 1 to about 15, periods from a tenth to several times the range."""


class GuidanceEmbedding(nn.Module):
    """A guidance scale w [n] as a vector [n, width] to be added to a time embedding.

    Meng et al., 2023, arXiv:2210.03142, section 3.1: w enters as the time does. The last layer starts at zero, so
    that a network with the new input says at first what it said without.
    """

    def __init__(self, width: int, hidden: int = 0) -> None:
        super().__init__()
        self.features = Fourier(COUNT, LOW, HIGH)
        self.width = width
        self.first = nn.Linear(2 * COUNT, hidden or width)
        self.last = nn.Linear(hidden or width, width)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, scale: Tensor) -> Tensor:
        """The vector [n, width] for scales [n]."""
        return self.last(nn.functional.silu(self.first(self.features(scale).to(self.first.weight.dtype))))

    def config(self) -> dict[str, Any]:
        """What makes the same embedding again."""
        hidden = self.first.out_features
        return {"width": self.width, "hidden": hidden, "count": COUNT, "low": LOW, "high": HIGH}

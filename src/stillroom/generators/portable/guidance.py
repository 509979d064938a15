"""The embedding of a guidance scale that is added to a network's embedding of the time, as a component of a pipeline.

Source: Meng et al., 2023, arXiv:2210.03142, section 3.1.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn


class GuidanceScale(ModelMixin, ConfigMixin):  # type: ignore[invalid-inheritance]
    """A guidance scale w [n] as a vector [n, width]."""

    @register_to_config
    def __init__(self, width: int, hidden: int, count: int, low: float, high: float) -> None:
        super().__init__()
        self.first = nn.Linear(2 * count, hidden)
        self.last = nn.Linear(hidden, width)

    def forward(self, scale: Tensor) -> Tensor:
        """The vector for scales [n]."""
        given: Any = self.config
        ends = (math.log(given.low), math.log(given.high))
        frequencies = torch.linspace(*ends, given.count, device=scale.device).exp()
        angles = scale.float().unsqueeze(-1) * frequencies
        features = torch.cat([angles.sin(), angles.cos()], -1).to(self.first.weight.dtype)
        return self.last(nn.functional.silu(self.first(features)))

"""Several models trained apart, to see how far their predictions vary (Zhao et al., ICCV 2023, arXiv:2308.09922)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Members(nn.Module):
    """R models that were trained apart: x [n, ...] to the mean of their logits [n, C]."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor, apart: bool = False) -> Tensor:
        """The mean of the logits; `apart`: those of every model [n, R, C]."""
        answers = torch.stack([member(x) for member in self.members], 1)
        return answers if apart else answers.mean(1)

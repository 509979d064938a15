"""The exact denoiser of a mixture of Gaussians: a teacher that has nothing to learn, and what solvers are tested on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class MixtureNetwork(nn.Module):
    """E[x_0 | x_t] at x_t = alpha x_0 + sigma eps for data sum_k w_k N(m_k, s^2 I), without weights to train.

    Takes x [n, ...], the noise level sigma / alpha as its time [n] (x is x_t / alpha: the variance exploding form),
    labels [n] that choose a component (one past the last, or None: all) and gives [n, ...]. `centres` m_k [K, ...],
    `spread` s > 0, `weights` w_k [K] > 0, equal unless given.
    """

    def __init__(self, centres: Tensor, spread: float, weights: Tensor | None = None) -> None:
        super().__init__()
        self.spread = spread
        self.register_buffer("centres", centres)
        self.register_buffer("weights", torch.ones(len(centres)) if weights is None else weights)

    def forward(self, x: Tensor, time: Tensor, condition: Tensor | None, guidance: Tensor | None) -> Tensor:
        """See the class."""
        flat, centres = x.flatten(1), self.centres.flatten(1).to(x)
        variance = self.spread**2 + time.to(x).square().unsqueeze(1)
        away = (flat.unsqueeze(1) - centres).square().sum(-1)
        logits = -away / (2 * variance) + self.weights.to(x).log()
        if condition is not None:
            every = condition.unsqueeze(1) == len(centres)
            mine = condition.unsqueeze(1) == torch.arange(len(centres), device=x.device)
            logits = logits.masked_fill(~(mine | every), -torch.inf)
        mean = logits.softmax(-1) @ centres
        return (mean + self.spread**2 / variance * (flat - mean)).view_as(x)

    def config(self) -> dict[str, Any]:
        """What makes the same law again."""
        return {
            "kind": "mixture",
            "centres": self.centres.tolist(),
            "spread": self.spread,
            "weights": self.weights.tolist(),
        }


def mixture_from(config: dict[str, Any]) -> MixtureNetwork:
    """The network that `MixtureNetwork.config` described."""
    centres: Sequence[Any] = config["centres"]
    return MixtureNetwork(torch.tensor(centres), config["spread"], torch.tensor(config["weights"]))

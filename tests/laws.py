"""Laws whose diffusion is known in closed form, for the tests of generators."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stillroom.generators.parts.denoiser import Denoiser
from stillroom.generators.parts.process import Process, along


class MixtureNetwork(nn.Module):
    """E[x_0 | x_t] for data sum_k w_k N(m_k, s^2 I); labels, where given, choose a component."""

    def __init__(
        self, process: Process, centres: Tensor, spread: float, weights: Tensor | None = None
    ) -> None:
        super().__init__()
        self.process, self.spread = process, spread
        self.register_buffer("centres", centres)
        self.register_buffer("weights", torch.ones(len(centres)) if weights is None else weights)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None, guidance: Tensor | None) -> Tensor:
        flat = x.flatten(1)
        alpha, sigma = along(self.process.alpha(t), flat), along(self.process.sigma(t), flat)
        variance = alpha.square() * self.spread**2 + sigma.square()
        away = flat.unsqueeze(1) - alpha.unsqueeze(1) * self.centres.to(flat)
        logits = -away.square().sum(-1) / (2 * variance) + self.weights.to(flat).log()
        if condition is not None:
            every = condition.unsqueeze(1) == len(self.centres)
            mine = condition.unsqueeze(1) == torch.arange(len(self.centres), device=x.device)
            logits = logits.masked_fill(~(mine | every), -torch.inf)
        share = logits.softmax(-1)
        mean = share @ self.centres.to(flat)
        return (mean + alpha * self.spread**2 / variance * (flat - alpha * mean)).view_as(x)


def mixture(process: Process, centres: Tensor, spread: float, conditional: bool = False) -> Denoiser:
    """The exact denoiser of a mixture of Gaussians; conditional on the component where asked."""
    network = MixtureNetwork(process, centres, spread)
    return Denoiser(network, process, "x0", classes=len(centres) if conditional else 0)


def gaussian_map(process: Process, mean: float, spread: float, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """Where the exact ODE takes x_t to at s, for data N(mean, spread^2 I)."""
    start = (process.alpha(t) * spread).square() + process.sigma(t).square()
    end = (process.alpha(s) * spread).square() + process.sigma(s).square()
    return process.alpha(s) * mean + (end / start).sqrt() * (x - process.alpha(t) * mean)

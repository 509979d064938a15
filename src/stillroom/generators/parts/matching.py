"""What papers that match distributions share: the surrogate loss, its normaliser, the GAN's losses and heads.

Yin et al., "One-step Diffusion with Distribution Matching Distillation", CVPR 2024, arXiv:2311.18828 (DMD);
Yin et al., "Improved Distribution Matching Distillation", NeurIPS 2024, arXiv:2405.14867 (DMD2).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stillroom.errors import UserError
from stillroom.generators.parts.denoiser import Denoiser
from stillroom.generators.parts.estimate import Estimate
from stillroom.generators.parts.process import along
from stillroom.models.denoisers.library import DiT, Wrapped
from stillroom.models.denoisers.residual import ResidualMLP
from stillroom.taps import Tap


def surrogate(x: Tensor, direction: Tensor) -> Tensor:
    """1/2 mean (x - sg[x - g])^2 over all numbers: its gradient on x [n, ...] is g / numel, g not differentiated."""
    return 0.5 * (x - (x - direction).detach()).square().mean()


def matching_direction(x: Tensor, real: Tensor, fake: Tensor, weight: Tensor | float = 1.0) -> Tensor:
    """w (D_fake - D_real) / (mean |x - D_real| + 1e-6), the mean over a sample's numbers (DMD, eq. 8).

    Samples and both denoised samples [n, ...]; weights [n] or a number. Without gradient.
    """
    with torch.no_grad():
        scale = (x - real).abs().flatten(1).mean(1) + 1e-6
        return along(torch.as_tensor(weight, device=x.device) / scale, x) * (fake - real)


def denoising_error(at: Estimate, x0: Tensor, eps: Tensor) -> Tensor:
    """Mean squared error, over all numbers, of what the network puts out: of the fake network's training."""
    truth = Estimate(at.process, at.x, at.t, "x0", x0)
    target = eps if at.kind == "eps" else truth.read(at.kind)
    return (at.value - target).square().mean()


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """E softplus(-d(real)) + E softplus(d(fake)), logits [n, heads]; large means real."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def generator_loss(fake: Tensor) -> Tensor:
    """E softplus(-d(fake)), the non-saturating loss; logits [n, heads]."""
    return F.softplus(-fake).mean()


class Heads(nn.Module):
    """A small network on each of several features, one logit each: [n, heads]."""

    def __init__(self, features: list[Tensor], width: int = 64) -> None:
        super().__init__()
        self.heads = nn.ModuleList(_head(feature, width) for feature in features)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Logits [n, heads] of features [n, ...] in the order they were given in."""
        return torch.cat([head(x.float()) for head, x in zip(self.heads, features, strict=True)], 1)


def _head(feature: Tensor, width: int) -> nn.Module:
    if feature.ndim == 4:
        convolution = nn.Conv2d(feature.shape[1], width, 3, padding=1)
        return nn.Sequential(
            convolution, nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 1)
        )
    if feature.ndim == 3:
        return nn.Sequential(_Tokens(), nn.Linear(feature.shape[2], width), nn.SiLU(), nn.Linear(width, 1))
    return nn.Sequential(nn.Flatten(), nn.Linear(feature[0].numel(), width), nn.SiLU(), nn.Linear(width, 1))


class _Tokens(nn.Module):
    """The mean over tokens [n, tokens, width]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def default_taps(network: nn.Module) -> tuple[str, ...]:
    """Module paths whose outputs a discriminator reads: the middle of the networks that Stillroom knows."""
    if isinstance(network, ResidualMLP):
        return (f"blocks.{network.depth // 2}",)
    if isinstance(network, DiT):
        return (f"model.transformer_blocks.{len(network.model.transformer_blocks) // 2}",)  # type: ignore[arg-type]
    if isinstance(network, Wrapped):
        return ("model.mid_block",)
    raise UserError(
        f"the middle of {type(network).__name__} is not known: pass --method.taps with module paths of it"
    )


class Tapped:
    """A frozen denoiser asked for its estimate and its inner features in one pass."""

    def __init__(self, denoiser: Denoiser, paths: tuple[str, ...], guidance: float = 1.0) -> None:
        self.denoiser, self.guidance = denoiser, guidance
        paths = paths or default_taps(denoiser.network)
        self.taps = [Tap(denoiser.network, path, "--method.taps") for path in paths]

    def __call__(self, x: Tensor, t: Tensor, condition: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """D(x_t, t, c) [n, ...], guided, and the features of the conditional pass; differentiable in x."""
        if self.guidance == 1:
            real = self.denoiser(x, t, condition)
        else:
            real = self.denoiser.guided(x, t, condition, self.guidance).x0
        return real, [tap.take()[-len(x) :] for tap in self.taps]

    def remove(self) -> None:
        """Take the taps off."""
        for tap in self.taps:
            tap.remove()

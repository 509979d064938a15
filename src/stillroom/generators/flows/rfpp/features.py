"""Perceptual metrics on denoised samples: 0 for equal images, in the layers of a frozen network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stillroom.errors import UserError
from stillroom.generators.generation import Generation

FeatureKind = Literal["auto", "none", "classifier", "lpips"]
Distance = Callable[[Tensor, Tensor], Tensor]
"""Two batches of images [n, C, H, W] in [-1, 1] to a distance [n] >= 0."""

VGG = "vgg16-397923af.pth"
"""The file of torchvision's VGG-16, on which LPIPS is built, in the hub's folder."""
SIZE = 224
"""Height and width, pixels, at which LPIPS sees images."""


def feature_distance(first: list[Tensor], second: list[Tensor]) -> Tensor:
    """The sum over layers of the squared distance of unit vectors, mean over places: [n], in [0, 4 layers].

    Layers [n, C, H, W]; a place's vector of C channels is divided by its norm (Zhang et al., 2018, arXiv:1801.03924,
    eq. 1, all learned weights 1).
    """
    return sum(
        (
            (_unit(a) - _unit(b)).square().sum(1).flatten(1).mean(1)
            for a, b in zip(first, second, strict=True)
        ),
        first[0].new_zeros(len(first[0])),
    )


def _unit(x: Tensor) -> Tensor:
    return x / (x.square().sum(1, keepdim=True) + 1e-8).sqrt()


class NetworkDistance:
    """Mean squared error of the images, plus `feature_distance` in the outputs of every ReLU of a chain of layers.

    The images count because two unlike ones may agree in all features of a small network: a premetric must not.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network.requires_grad_(False).eval()

    def layers(self, x: Tensor) -> list[Tensor]:
        """The maps [n, C, H, W] behind each ReLU."""
        found = []
        for layer in self.network.to(x.device).children():
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                found.append(x)
        return found

    def __call__(self, made: Tensor, truth: Tensor) -> Tensor:
        """The distance [n], with a gradient in `made`; in full precision, since it is divided by small times."""
        with torch.autocast(made.device.type, enabled=False):
            with torch.no_grad():
                wanted = self.layers(truth.float())
            pixels = (made.float() - truth.float()).square().flatten(1).mean(1)
            return pixels + feature_distance(self.layers(made.float()), wanted)


class Lpips:
    """LPIPS of images, mapped to [0, 1] and scaled up to 224 pixels by bilinear interpolation (section 4.2)."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def __call__(self, made: Tensor, truth: Tensor) -> Tensor:
        """The distance [n] of images [n, C, H, W], C 1 or 3, with a gradient in `made`."""
        with torch.autocast(made.device.type, enabled=False):
            shown = [_shown(x) for x in (made, truth)]
            return self.network.to(made.device)(*shown, normalize=True).flatten()


def _shown(x: Tensor) -> Tensor:
    larger = F.interpolate(x.float() * 0.5 + 0.5, size=SIZE, mode="bilinear")
    return larger.expand(-1, 3, -1, -1)


def lpips() -> Lpips:
    """LPIPS on VGG-16 with average pooling, as the authors have it; UserError where library or weights are not here.

    Nothing is fetched: the weights must lie in torch's hub folder.
    """
    place = Path(torch.hub.get_dir()) / "checkpoints" / VGG
    if not place.is_file():
        raise UserError(
            f"--method.features lpips: VGG-16's weights are not at '{place}': put torchvision's {VGG} there, or pass "
            "--method.features classifier"
        )
    try:
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
    except ImportError:
        raise UserError(
            '--method.features lpips needs torchmetrics: pip install "torchmetrics[image]", or pass --method.features '
            "classifier"
        ) from None
    network: nn.Module = LearnedPerceptualImagePatchSimilarity("vgg").net
    return Lpips(averaging(network).requires_grad_(False).eval())


def averaging(network: nn.Module) -> nn.Module:
    """`network` with average pooling of 2x2 in place of every maximal pooling."""
    for parent in list(network.modules()):
        for name, layer in parent.named_children():
            if isinstance(layer, nn.MaxPool2d):
                setattr(parent, name, nn.AvgPool2d(2, 2))
    return network


def feature_metric(kind: FeatureKind, task: Generation, seed: int) -> Distance | None:
    """The metric that `kind` names on this task; None for none.

    'auto' is 'classifier' for labelled images and 'none' else. The classifier is trained from `seed` and shares
    nothing with what scores the task. Raises UserError for points and latents, which have no such metric.
    """
    if kind not in ("auto", "none", "classifier", "lpips"):
        raise UserError(f"--method.features '{kind}' is unknown: pass one of auto, none, classifier, lpips")
    images = task.samples.images and not task.autoencoder
    if kind == "auto":
        kind = "classifier" if images and task.samples.classes else "none"
    if kind == "none":
        return None
    if not images:
        what = "latents" if task.samples.images else "points"
        raise UserError(
            f"--method.features {kind} compares images, and flows on '{task.samples.name}' are of {what}: pass "
            "--method.features none"
        )
    return lpips() if kind == "lpips" else NetworkDistance(task.classifier(seed))

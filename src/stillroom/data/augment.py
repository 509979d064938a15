"""Augmentation presets for images, from torchvision's second transforms."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from stillroom.data.source import Augment
from stillroom.errors import UserError

PRESETS = {
    "none": "no augmentation",
    "crop": "a random crop of the image reflected outwards by an eighth of its size",
    "crop-flip": "crop, then a mirror image with a chance of one half",
    "trivial": "TrivialAugmentWide (Mueller and Hutter, ICCV 2021, arXiv:2103.10158), then crop-flip",
}
"""The names that `augmentation` knows, and what they do."""

_CHARACTERS = ("digits", "mnist", "svhn")


def augmentation(name: str | Augment, shape: tuple[int, int, int]) -> Augment | None:
    """The preset `name` for images of `shape` (C, H, W); None for 'none'; a callable is returned as it is.

    The result maps one image [C, H, W], uint8 or float in [0, 1], to its augmented view of the same shape,
    and draws from torch's process-wide generator ('trivial' returns uint8). Raises UserError for an unknown
    name and where torchvision is missing.
    """
    if callable(name):
        return name
    if name not in PRESETS:
        raise UserError(f"augmentation '{name}' is unknown: pass --task.augment with {', '.join(PRESETS)}")
    if name == "none":
        return None
    transforms = _transforms()
    _, height, width = shape
    # torchvision's order: left and right first, then top and bottom
    crop = transforms.RandomCrop((height, width), padding=(width // 8, height // 8), padding_mode="reflect")
    if name == "crop":
        return crop
    steps: list[Callable[..., Any]] = [crop, transforms.RandomHorizontalFlip()]
    if name == "trivial":
        steps = [_to_bytes, transforms.TrivialAugmentWide(), *steps]
    return transforms.Compose(steps)


def shows_characters(data: str) -> bool:
    """Whether the data of this name show characters, whose mirror images mean something else."""
    return any(word in data.lower() for word in _CHARACTERS) and "fashion" not in data.lower()


def warn_if_mirrored(augment: str | Augment, data: str) -> None:
    """Warn where a preset mirrors or turns images of characters, as told by the data's name."""
    if shows_characters(data) and augment in ("crop-flip", "trivial"):
        warnings.warn(
            f"augmentation '{augment}' mirrors images, and a mirrored or turned character of '{data}' has "
            "another meaning (2 and 5, 6 and 9): 'crop' keeps it",
            stacklevel=4,
        )


def _transforms() -> Any:
    try:
        from torchvision.transforms import v2
    except ImportError as error:
        raise UserError('augmentation needs torchvision: pip install "stillroom[vision]"') from error
    return v2


def _to_bytes(image: Tensor) -> Tensor:
    if image.dtype == torch.uint8:
        return image
    low, high = float(image.min()), float(image.max())
    if low < 0 or high > 1:
        raise UserError(
            f"augmentation 'trivial' needs pixels in [0, 1], these span {low:.3g} to {high:.3g}: "
            "pass images that are not normalised yet, with --task.normalise data"
        )
    return (image * 255).round().to(torch.uint8)

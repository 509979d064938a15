"""Several augmented views of a sample in one fetch: weak and strong ones, for consistency between them.

A view is made of pixels, before normalisation, and is a pure function of (view seed, id, which of the views).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from stillroom.data.augment import of_characters
from stillroom.data.source import Source, WrappedSource, borrowed_generators, standardise
from stillroom.errors import UserError
from stillroom.seeds import seed_of

View = Callable[[Tensor, Sequence[int]], Tensor]
"""Images [n, C, H, W], as pixels, and a seed for each of them, to their views [n, C, H, W]."""

Kind = Literal["small", "small-flip", "auto", "rand"]
SMALLEST = 4


class Views(WrappedSource):
    """Each sample of `source` as several views, x [n, views, C, H, W]; labels and ids are those of `source`.

    What `source` does to an image itself comes first, drawn anew for each view. `mean` and `std`, a number a
    channel, are those by which `source` has normalised: views are made of pixels and normalised afterwards. Without
    a view seed all views are the image as it is.
    """

    fixed = False

    def __init__(
        self, source: Source, views: Sequence[View], mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__(source)
        self.views, self.mean, self.std = list(views), list(mean), list(std)

    def fetch(self, ids: Tensor, view: int | None) -> tuple[Tensor, Tensor | None]:
        """See `Source.fetch`; x is [B, views, C, H, W]."""
        plain = self.source.fetch(ids, None) if view is None or self.source.fixed else None
        if view is None:
            assert plain is not None
            return torch.stack([plain[0]] * len(self.views), 1), plain[1]
        made, y = [], None
        for which, make in enumerate(self.views):
            x, y = plain or self.source.fetch(ids, seed_of(view, which))
            seeds = [seed_of(view, i, which) for i in ids.tolist()]
            made.append(standardise(make(self._pixels(x), seeds), self.mean, self.std))
        return torch.stack(made, 1), y

    def _pixels(self, x: Tensor) -> Tensor:
        mean, std = (torch.tensor(values, dtype=x.dtype).view(-1, 1, 1) for values in (self.mean, self.std))
        return x * std + mean


# -- what makes a view --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Jitter:
    """Shift, rotation, mirror, an erased square and noise, for small images: a batch at a time.

    Pixels that come in from outside, and erased ones, are 0.
    """

    shift: int = 1
    """Largest shift in each direction, whole pixels."""
    angle: float = 0.0
    """Largest rotation either way, degrees."""
    erase: int = 0
    """Side of the erased square, pixels; its centre is anywhere in the image, so that its part outside is cut off."""
    noise: float = 0.0
    """Deviation of Gaussian noise, in units of pixels in [0, 1]."""
    flip: bool = False
    """Mirror left and right with a chance of one half."""

    def __call__(self, x: Tensor, seeds: Sequence[int]) -> Tensor:
        """See `View`."""
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        u = torch.stack([torch.rand(6, generator=generator) for generator in generators]).to(x.device)
        x = _shifted(x, (u[:, :2] * (2 * self.shift + 1)).long() - self.shift, self.shift)
        if self.flip:
            x = torch.where(u[:, 2, None, None, None] < 0.5, x.flip(-1), x)
        if self.angle:
            x = _rotated(x, (2 * u[:, 3] - 1) * math.radians(self.angle))
        if self.erase:
            x = _erased(x, u[:, 4:], self.erase)
        if self.noise:
            drawn = torch.stack([torch.randn(x.shape[1:], generator=generator) for generator in generators])
            x = x + self.noise * drawn.to(x.device)
        return x


def _shifted(x: Tensor, by: Tensor, most: int) -> Tensor:
    """Images [n, C, H, W] moved by whole pixels `by` [n, 2] (down, right), at most `most`."""
    height, width = x.shape[-2:]
    padded = F.pad(x, (most,) * 4)
    rows = torch.arange(height, device=x.device) + most - by[:, :1]
    columns = torch.arange(width, device=x.device) + most - by[:, 1:]
    which = torch.arange(len(x), device=x.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[which, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _rotated(x: Tensor, angle: Tensor) -> Tensor:
    """Images [n, C, H, W] turned about their centres by `angle` [n], radians, bilinear."""
    height, width = x.shape[-2:]
    down = (torch.arange(height, device=x.device) - (height - 1) / 2)[None, :, None]
    right = (torch.arange(width, device=x.device) - (width - 1) / 2)[None, None, :]
    cosine, sine = angle.cos()[:, None, None], angle.sin()[:, None, None]
    across = (cosine * right + sine * down) * (2 / (width - 1))
    along = (cosine * down - sine * right) * (2 / (height - 1))
    return F.grid_sample(x, torch.stack([across, along], -1).to(x.dtype), align_corners=True)


def _erased(x: Tensor, u: Tensor, side: int) -> Tensor:
    """Images [n, C, H, W] with a square of 0 around a centre, u [n, 2] in [0, 1) of height and width."""
    inside = []
    for axis, size in enumerate(x.shape[-2:]):
        first = (u[:, axis] * size).long()[:, None] - side // 2
        at = torch.arange(size, device=x.device)
        inside.append((at >= first) & (at < first + side))
    return x.masked_fill((inside[0][:, :, None] & inside[1][:, None, :])[:, None], 0.0)


@dataclass(frozen=True)
class Each:
    """A transform that takes one image [C, H, W] and draws from the process's generators, as a `View`."""

    transform: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor, seeds: Sequence[int]) -> Tensor:
        """See `View`."""
        made = []
        with borrowed_generators() as reseed:
            for image, seed in zip(x, seeds, strict=True):
                reseed(seed)
                made.append(self.transform(image))
        return torch.stack(made).to(x.dtype)


@dataclass(frozen=True)
class Cutout:
    """A square of 0 with a centre anywhere in the image (DeVries and Taylor, 2017, arXiv:1708.04552)."""

    side: int

    def __call__(self, image: Tensor) -> Tensor:
        """One image [C, H, W]."""
        return _erased(image[None], torch.rand(1, 2), self.side)[0]


def to_bytes(image: Tensor) -> Tensor:
    """Pixels in [0, 1] as uint8, which policies of augmentation are made for; UserError for others."""
    if image.dtype == torch.uint8:
        return image
    low, high = float(image.min()), float(image.max())
    if low < -1e-3 or high > 1 + 1e-3:
        raise UserError(
            f"policies of augmentation need pixels in [0, 1], these span {low:.3g} to {high:.3g}: pass images that "
            "are not normalised yet, with --task.normalise data, or --method.augmentation small"
        )
    return (image.clamp(0, 1) * 255).round().to(torch.uint8)


def to_floats(image: Tensor) -> Tensor:
    """uint8 as pixels in [0, 1]."""
    return image.float() / 255


# -- pairs of them ------------------------------------------------------------------------------------------------


def weak_and_strong(kind: Kind, shape: Sequence[int], data: str = "") -> tuple[View, View]:
    """A weak and a strong view of images of `shape` (C, H, W) of the set called `data`.

    small: shift by a fourteenth of the size; twice that, rotation up to 25 degrees, an erased square of 2 / 7 of the
    size, noise of 0.1 (`small-flip`: mirrored as well). auto: crop, mirror, rotation up to 15 degrees; crop, mirror,
    AutoAugment for CIFAR-10 (Cubuk et al., CVPR 2019), Cutout of half the size. rand: resized crop, mirror, colour
    jitter; the same with RandAugment (Cubuk et al., 2020). Warns where characters are mirrored. Raises UserError for
    an unknown kind, images too small, and a missing torchvision.
    """
    if kind not in get_args(Kind):
        raise UserError(f"--method.augmentation is '{kind}': pass {', '.join(get_args(Kind))}")
    size = min(shape[1:])
    if size < SMALLEST:
        raise UserError(
            f"images of data '{data}' are {shape[1]} x {shape[2]} pixels, too small to be cropped: pass images of "
            f"{SMALLEST} x {SMALLEST} or more, or --task.image-size"
        )
    if kind != "small" and of_characters(data):
        warnings.warn(
            f"--method.augmentation {kind} mirrors images, and a mirrored character of '{data}' has another meaning "
            "(2 and 5): 'small' does not mirror",
            stacklevel=3,
        )
    if kind in ("small", "small-flip"):
        step, flip = max(1, round(size / 14)), kind == "small-flip"
        strong = Jitter(2 * step, angle=25.0, erase=round(2 * size / 7), noise=0.1, flip=flip)
        return Jitter(step, flip=flip), strong
    return _policy(kind, shape)


def _policy(kind: Kind, shape: Sequence[int]) -> tuple[View, View]:
    """The published pipelines on CIFAR (`auto`) and on ImageNet (`rand`), of torchvision's second transforms."""
    v2 = _transforms()
    height, width = shape[1:]
    mirror = v2.RandomHorizontalFlip()
    if kind == "auto":
        crop = v2.RandomCrop((height, width), padding=(width // 8, height // 8))
        policy = v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10, fill=128)
        weak = [crop, mirror, v2.RandomRotation(15)]
        strong = [crop, mirror, to_bytes, policy, to_floats, Cutout(min(height, width) // 2)]
    else:
        crop, colours = v2.RandomResizedCrop((height, width)), v2.ColorJitter(0.4, 0.4, 0.4)
        policy = v2.RandAugment(num_ops=2, magnitude=10, fill=128)
        weak = [crop, mirror, colours]
        strong = [crop, mirror, colours, to_bytes, policy, to_floats]
    return Each(v2.Compose(weak)), Each(v2.Compose(strong))


def _transforms() -> Any:
    try:
        from torchvision.transforms import v2
    except ImportError as error:
        raise UserError('augmentation needs torchvision: pip install "stillroom[vision]"') from error
    return v2

"""Differentiable Siamese augmentation: one transform, drawn at random, that real and synthetic images share.

Zhao and Bilen, "Dataset Condensation with Differentiable Siamese Augmentation", ICML 2021, arXiv:2102.08259, with
the ranges of the published code. Every transform is a function of an image and of up to three numbers in [0, 1), so
whoever draws the numbers decides who shares them. All are differentiable in the image.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from stillroom.errors import UserError

STRATEGY = "color_crop_cutout_flip_scale_rotate"
"""All transforms, as the published code writes them."""
NUMBERS = 3
"""Numbers in [0, 1) that a transform uses, at most."""

SHIFT, HOLE, ZOOM, TURN = 0.125, 0.5, 1.2, 15.0
"""Largest shift as a share of the side, side of the hole likewise, largest zoom, and largest turn in degrees."""


def color(x: Tensor, u: Tensor) -> Tensor:
    """Brightness + (u - 1/2), then saturation times 2 u' about the pixel's mean, then contrast times u'' + 1/2."""
    brightness, saturation, contrast = u.view(len(u), NUMBERS, 1, 1, 1).unbind(1)
    x = x + (brightness - 0.5)
    grey = x.mean(1, keepdim=True)
    x = (x - grey) * (2 * saturation) + grey
    mean = x.mean((1, 2, 3), keepdim=True)
    return (x - mean) * (contrast + 0.5) + mean


def crop(x: Tensor, u: Tensor) -> Tensor:
    """Shift down and right by up to an eighth of the side either way, filled with zeros."""
    height, width = x.shape[2:]
    rows = _moved(height, _whole(u[:, 0], 2 * _part(height, SHIFT) + 1) - _part(height, SHIFT))
    columns = _moved(width, _whole(u[:, 1], 2 * _part(width, SHIFT) + 1) - _part(width, SHIFT))
    padded = F.pad(x, [1, 1, 1, 1])
    each = torch.arange(len(x), device=x.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[each, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def cutout(x: Tensor, u: Tensor) -> Tensor:
    """A hole of zeros of half the side around a random pixel, less where it reaches over the edge."""
    inside = [_hole(side, u[:, axis]) for axis, side in enumerate(x.shape[2:])]
    return x * ~(inside[0][:, None, :, None] & inside[1][:, None, None, :])


def flip(x: Tensor, u: Tensor) -> Tensor:
    """Mirror left and right with probability 1/2."""
    return torch.where(u[:, 0].view(-1, 1, 1, 1) < 0.5, x.flip(3), x)


def scale(x: Tensor, u: Tensor) -> Tensor:
    """Stretch each axis on its own: the grid is scaled by a uniform number in [1/1.2, 1.2]."""
    across, down = (u[:, axis, None, None] * (ZOOM - 1 / ZOOM) + 1 / ZOOM for axis in (0, 1))
    columns, rows = _grid(x)
    return _sample(x, across * columns, down * rows)


def rotate(x: Tensor, u: Tensor) -> Tensor:
    """Turn by up to 15 degrees either way, about the middle."""
    angle = (u[:, 0, None, None] - 0.5) * (2 * TURN * math.pi / 180)
    columns, rows = _grid(x)
    cos, sin = angle.cos(), angle.sin()
    return _sample(x, cos * columns - sin * rows, sin * columns + cos * rows)


TRANSFORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "color": color,
    "crop": crop,
    "cutout": cutout,
    "flip": flip,
    "scale": scale,
    "rotate": rotate,
}
"""Images [n, C, H, W] and numbers [n, 3] in [0, 1) to images."""


def transforms_of(strategy: str, flag: str = "--method.strategy") -> tuple[str, ...]:
    """The transforms that `strategy` names, with _ between; none for 'none'. UserError for one unknown."""
    names = () if strategy == "none" else tuple(strategy.split("_"))
    for name in names:
        if name not in TRANSFORMS:
            known = ", ".join(TRANSFORMS)
            raise UserError(
                f"{flag} '{strategy}' names '{name}': join some of {known} with _, or pass 'none'"
            )
    return names


def augment(x: Tensor, kinds: Tensor, numbers: Tensor, transforms: tuple[str, ...]) -> Tensor:
    """Each image through its own transform.

    x [n, C, H, W]; kinds int64 [n], the place of an image's transform in `transforms`; numbers [n, 3] in [0, 1).
    """
    if not transforms:
        return x
    places, made = [], []
    for place, name in enumerate(transforms):
        rows = (kinds == place).nonzero()[:, 0]
        if len(rows):
            places.append(rows)
            made.append(TRANSFORMS[name](x[rows], numbers[rows]))
    return torch.cat(made)[torch.cat(places).argsort()]


def siamese(groups: Tensor, drawn: Tensor, transforms: tuple[str, ...]) -> Tensor:
    """All images of a group through one transform with the same numbers.

    groups [g, n, C, H, W]; drawn [g, 1 + 3] in [0, 1): the first chooses the transform. Called with the same `drawn`
    for real and for synthetic images, it does the same to both.
    """
    each = groups.shape[1]
    kinds = _whole(drawn[:, 0], max(1, len(transforms))).repeat_interleave(each)
    numbers = drawn[:, 1:].repeat_interleave(each, 0)
    return augment(groups.flatten(0, 1), kinds, numbers, transforms).view_as(groups)


def _whole(u: Tensor, count: int) -> Tensor:
    """Integers in 0 .. count - 1 of numbers in [0, 1)."""
    return (u * count).long().clamp(max=count - 1)


def _part(side: int, share: float) -> int:
    return int(side * share + 0.5)


def _moved(side: int, by: Tensor) -> Tensor:
    """[n, side]: where in a side padded by one zero at both ends each pixel comes from."""
    return (torch.arange(side, device=by.device) + by[:, None] + 1).clamp(0, side + 1)


def _hole(side: int, u: Tensor) -> Tensor:
    """[n, side]: whether a pixel is in the hole along this axis."""
    size = _part(side, HOLE)
    first = _whole(u, side + 1 - size % 2)[:, None] - size // 2
    at = torch.arange(side, device=u.device)
    return (at >= first) & (at < first + size)


def _grid(x: Tensor) -> tuple[Tensor, Tensor]:
    """Columns [1, 1, W] and rows [1, H, 1] of the pixels' middles, in [-1, 1]."""
    height, width = x.shape[2:]
    columns, rows = (
        ((2 * torch.arange(n, device=x.device) + 1) / n - 1).to(x.dtype) for n in (width, height)
    )
    return columns[None, None], rows[None, :, None]


def _sample(x: Tensor, columns: Tensor, rows: Tensor) -> Tensor:
    shape = len(x), *x.shape[2:]
    grid = torch.stack([columns.expand(shape), rows.expand(shape)], -1).to(x.dtype)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)

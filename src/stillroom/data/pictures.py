"""From a picture, as PIL or a tensor, to the one shape that all images of a data set share."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from stillroom.errors import UserError, reason

Picture = Image.Image | Tensor
"""An opened image (of which PIL has read no more than the header), or a tensor [H, W] or [C, H, W]."""

Cell = bytes | Picture
"""A picture, or the encoded bytes of one."""

_GREY = ("L", "1")


def open_picture(file: bytes | str | Path, where: str) -> Image.Image:
    """Open an encoded image, or an image file; raises UserError naming `where`."""
    try:
        return Image.open(io.BytesIO(file) if isinstance(file, bytes) else file)
    except OSError as error:
        raise undecodable(where, error) from error


def opened(cell: Cell, where: str) -> Picture:
    """The picture in `cell`; raises UserError naming `where`."""
    return open_picture(cell, where) if isinstance(cell, bytes) else cell


def undecodable(where: str, error: Exception) -> UserError:
    """The error for an image that PIL cannot read."""
    return UserError(f"{where} cannot be read as an image ({reason(error)}): remove or repair it")


def as_picture(value: Any, where: str) -> Picture:
    """What a user's data set gave as an image; numpy arrays are read as PIL would, channels last."""
    if isinstance(value, np.ndarray):
        channels_last = value.ndim == 3 and value.shape[-1] in (1, 3) and value.shape[0] not in (1, 3)
        value = torch.from_numpy(np.ascontiguousarray(value.transpose(2, 0, 1) if channels_last else value))
    if isinstance(value, Image.Image):
        return value
    if not isinstance(value, Tensor):
        kind = type(value).__name__
        raise UserError(f"{where} has a {kind} for an image: give a PIL image, an array or a tensor")
    if value.ndim not in (2, 3):
        raise UserError(f"{where} has an image of shape {list(value.shape)}: give [C, H, W] or [H, W]")
    return value


@dataclass(frozen=True)
class Look:
    """What every image of a data set is made to be: channels x height x width."""

    channels: int
    height: int
    width: int
    image_size: int | None = None
    """Where given: the largest square around the centre, resized to this side (bilinear, antialiased)."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.channels, self.height, self.width

    @classmethod
    def of(cls, pictures: Iterable[tuple[str, Picture]], image_size: int | None) -> Look:
        """The look that fits `pictures`, at least one, given with what to call them.

        One channel if all are grey (PIL's modes L and 1), otherwise RGB; a tensor has the channels that it
        has. The size is `image_size` squared or that of the first.
        """
        shapes = [(channels_of(picture, where), *size_of(picture)) for where, picture in pictures]
        channels = max(shape[0] for shape in shapes)
        return cls(channels, *((image_size, image_size) if image_size else shapes[0][1:]), image_size)

    def tensor(self, picture: Picture, where: str) -> Tensor:
        """One picture as [C, H, W], uint8 or float32. Raises UserError where it does not fit the look."""
        if self.image_size and size_of(picture) != (self.height, self.width):
            picture = resized(picture, self.image_size, where)
        if size_of(picture) != (self.height, self.width):
            raise UserError(
                f"{where} is {_by(size_of(picture))} pixels (height x width) and others are "
                f"{_by((self.height, self.width))}: pass --task.image-size N"
            )
        if isinstance(picture, Tensor):
            return self._checked(picture, where)
        if self.channels < channels_of(picture, where):
            raise ColourError(
                f"{where} is in colour and the images looked at before are grey: make them equal"
            )
        pixels = torch.from_numpy(np.array(decoded(picture, "L" if self.channels == 1 else "RGB", where)))
        return pixels[None] if self.channels == 1 else pixels.permute(2, 0, 1)

    def _checked(self, image: Tensor, where: str) -> Tensor:
        if channels_of(image, where) != self.channels:
            count = channels_of(image, where)
            raise UserError(f"{where} has {count} channels and others have {self.channels}: make them equal")
        image = image if image.ndim == 3 else image[None]
        if image.dtype == torch.uint8:
            return image
        if not image.is_floating_point():
            kind = str(image.dtype).removeprefix("torch.")
            raise UserError(f"{where} has {kind} pixels: give uint8 in 0 .. 255, or floats")
        if not torch.isfinite(image).all():
            raise UserError(f"{where} has NaN or infinite pixels: remove or repair it")
        return image.to(torch.float32)


class ColourError(UserError):
    """A colour image among images that were taken for grey."""


def size_of(picture: Picture) -> tuple[int, int]:
    """(height, width) in pixels."""
    if isinstance(picture, Tensor):
        return picture.shape[-2], picture.shape[-1]
    return picture.height, picture.width


def channels_of(picture: Picture, where: str) -> int:
    """1 for grey, 3 for any other PIL image; a tensor's own. Raises UserError beyond 8 bits a channel."""
    if isinstance(picture, Tensor):
        return 1 if picture.ndim == 2 else picture.shape[0]
    if picture.mode.startswith(("I", "F")):
        mode = picture.mode
        raise UserError(f"{where} has mode {mode}, more than 8 bits a channel: convert it to L or RGB")
    return 1 if picture.mode in _GREY else 3


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def decoded(picture: Image.Image, mode: str, where: str) -> Image.Image:
    """Read the pixels, in PIL's `mode`; raises UserError naming `where` for a damaged file."""
    try:
        picture.load()
        return picture if picture.mode == mode else picture.convert(mode)
    except OSError as error:
        raise undecodable(where, error) from error


def resized(picture: Picture, size: int, where: str) -> Picture:
    """The largest square around the centre as size x size pixels; PIL's are made L or RGB."""
    height, width = size_of(picture)
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    if isinstance(picture, Image.Image):
        plain = decoded(picture, "L" if channels_of(picture, where) == 1 else "RGB", where)
        # cropped first: resize(box=...) would blend in pixels from outside the box
        square = plain.crop((left, top, left + side, top + side))
        return square.resize((size, size), Image.Resampling.BILINEAR)
    image = picture if picture.ndim == 3 else picture[None]
    inside = image[None, :, top : top + side, left : left + side].to(torch.float32)
    made = functional.interpolate(inside, size=(size, size), mode="bilinear", antialias=True)[0]
    return made.round().clamp(0, 255).to(torch.uint8) if image.dtype == torch.uint8 else made

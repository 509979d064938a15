"""What a network's folder, or its library, says of the images that it was trained on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillroom.errors import UserError, reason


@dataclass(frozen=True)
class Inputs:
    """The inputs that a network takes: (pixel - mean) / std of pixels in [0, 1], and their height and width."""

    mean: tuple[float, ...] | None = None
    """A number a channel, or one for all; None where nothing is said."""
    std: tuple[float, ...] | None = None
    size: tuple[int, int] | None = None
    """Height and width; None where nothing is said, or any will do."""
    where: str = ""
    """What says so."""

    @property
    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """(mean, std); None where nothing is said."""
        return None if self.mean is None or self.std is None else (self.mean, self.std)


def of_timm(config: Mapping[str, Any], options: Mapping[str, Any], where: str) -> Inputs:
    """What timm's pretrained config says; the size that the model was made for (`img_size`) goes before it."""
    size = options.get("img_size") or _last_two(config.get("input_size"))
    return Inputs(_numbers(config.get("mean")), _numbers(config.get("std")), _pair(size), where)


def of_processor(config: Mapping[str, Any], where: str) -> Inputs:
    """What transformers' image processor says: rescaling (255 p r, p in [0, 1]), then (x - image_mean) / image_std.

    The size is that of the centre crop where there is one, else that of the resizing where it fixes both sides.
    """
    factor = 255 * float(config.get("rescale_factor", 1 / 255)) if config.get("do_rescale", True) else 255.0
    mean, std = (0.0,), (1.0,)
    if config.get("do_normalize", True):
        mean, std = _numbers(config.get("image_mean")) or mean, _numbers(config.get("image_std")) or std
    size = config.get("size") if config.get("do_resize", True) else None
    if config.get("do_center_crop"):
        size = config.get("crop_size", size)
    return Inputs(tuple(m / factor for m in mean), tuple(s / factor for s in std), _pair(size), where)


def of_student(config: Mapping[str, Any], where: str) -> Inputs:
    """What the config of a student's folder says."""
    said = config.get("normalisation")
    said = said if isinstance(said, dict) else {}
    return Inputs(
        _numbers(said.get("mean")), _numbers(said.get("std")), _last_two(config.get("shape")), where
    )


def of_torchvision(preset: Any, where: str) -> Inputs:
    """What the transforms of torchvision's published weights say."""
    size = getattr(preset, "crop_size", None)
    pair = size if isinstance(size, Sequence) and len(size) == 2 else (size or [None])[0]
    return Inputs(
        _numbers(getattr(preset, "mean", None)), _numbers(getattr(preset, "std", None)), _pair(pair), where
    )


def check_size(inputs: Inputs, shape: Sequence[int], who: str, data: str) -> None:
    """Raise UserError unless images of `shape` (C, H, W) have the size that the network was trained on."""
    if inputs.size is None or tuple(shape[1:]) == inputs.size:
        return
    height, width = inputs.size
    way = f"pass --task.image-size {height}" if height == width else "pass images of that size"
    raise UserError(
        f"{who} was trained on {height}x{width} images ({inputs.where}), data '{data}' have "
        f"{shape[1]}x{shape[2]}: {way}, or correct what is said there"
    )


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; UserError where it is missing or anything else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"'{path}' cannot be read ({reason(error)}): save the model again") from None
    if not isinstance(found, dict):
        raise UserError(f"'{path}' is no JSON object: save the model again")
    return found


def _numbers(value: Any) -> tuple[float, ...] | None:
    if isinstance(value, (int, float)):
        return (float(value),)
    if isinstance(value, (list, tuple)) and value and all(isinstance(v, (int, float)) for v in value):
        return tuple(float(v) for v in value)
    return None


def _last_two(value: Any) -> Any:
    return tuple(value[-2:]) if isinstance(value, (list, tuple)) and len(value) == 3 else None


def _pair(value: Any) -> tuple[int, int] | None:
    if isinstance(value, dict):
        value = (value.get("height"), value.get("width"))
    if isinstance(value, int):
        value = (value, value)
    if isinstance(value, (list, tuple)) and len(value) == 2 and all(isinstance(v, int) for v in value):
        return int(value[0]), int(value[1])
    return None

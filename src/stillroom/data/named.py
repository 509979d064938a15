"""Samples and batches that are mappings of names, as hub data and processors give them: which is image, which label."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from stillroom.errors import UserError

IMAGE_COLUMNS = ("image", "img", "images", "pixel_values", "x")
"""Names under which an image is looked for, in this order."""

LABEL_COLUMNS = ("label", "labels", "fine_label", "target", "class", "y")
"""Names under which a label is looked for, in this order."""


@dataclass(frozen=True)
class Columns:
    """The names that were asked for; None finds them, the label 'none' is for unlabelled data."""

    image: str | None = None
    label: str | None = None

    def image_of(self, item: Mapping[str, Any], where: str) -> str:
        """The name of the image in `item`."""
        if self.image is not None:
            return _there(self.image, item, "image", where)
        usual = [name for name in IMAGE_COLUMNS if name in item]
        kinds = [name for name, value in item.items() if _is_picture(value)]
        if usual or len(kinds) == 1:
            return (usual or kinds)[0]
        raise UserError(f"{where} has no image among {list(item)}: pass --task.image-column NAME")

    def label_of(self, item: Mapping[str, Any], where: str) -> str | None:
        """The name of the label in `item`; None for unlabelled data."""
        if self.label == "none":
            return None
        if self.label is not None:
            return _there(self.label, item, "label", where)
        usual = [name for name in LABEL_COLUMNS if name in item]
        if usual:
            return usual[0]
        raise UserError(
            f"{where} has no label among {list(item)}: pass --task.label-column NAME ('none' for unlabelled data)"
        )

    def pair(self, item: Any, where: str) -> Any:
        """(image, label) of a mapping; anything else as it is."""
        if not isinstance(item, Mapping):
            return item
        image, label = self.image_of(item, where), self.label_of(item, where)
        return item[image], None if label is None else item[label]


class Named:
    """A map-style data set whose samples are mappings, as one of pairs."""

    def __init__(self, dataset: Any, columns: Columns) -> None:
        self.dataset, self.columns = dataset, columns
        self.name = type(dataset).__name__

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> Any:
        return self.columns.pair(self.dataset[row], f"sample {row} of data '{self.name}'")


def columns_of(data: Mapping[str, Any], columns: Columns) -> tuple[Any, Any] | None:
    """Images and labels of a mapping of columns; None where it does not look like one."""
    if columns.image not in data and not any(name in data for name in IMAGE_COLUMNS):
        return None
    images, labels = columns.pair(data, "the mapping of columns")
    if not isinstance(images, Iterable):
        return None
    return images, labels


def _is_picture(value: Any) -> bool:
    return isinstance(value, Image.Image) or (isinstance(value, Tensor | np.ndarray) and value.ndim >= 2)


def _there(name: str, item: Mapping[str, Any], kind: str, where: str) -> str:
    if name not in item:
        raise UserError(f"{where} has no '{name}' among {list(item)}: pass --task.{kind}-column NAME")
    return name

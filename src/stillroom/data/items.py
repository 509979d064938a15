"""One split as the user gave it: its labels, and its pictures by row."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from stillroom.data.pictures import (
    Cell,
    Picture,
    as_picture,
    channels_of,
    decoded,
    opened,
    resized,
    size_of,
)
from stillroom.data.source import borrowed_generators
from stillroom.errors import UserError
from stillroom.seeds import seed_of

Pair = tuple[Any, Any]
"""An image, and its label or None."""


class Items(Protocol):
    """One split, before its pixels are decoded."""

    name: str
    """Which split of which data, for messages."""
    labels: np.ndarray | None
    """Integers or strings [N] as the user has them; None where unlabelled."""
    random: bool
    """Whether reading draws from process-wide generators."""

    def __len__(self) -> int: ...

    def read(self, rows: Sequence[int]) -> Iterator[Picture]:
        """The pictures of `rows`, one at a time and only when asked for the next."""
        ...

    def where(self, row: int) -> str:
        """What to call the picture of `row` in a message."""
        ...

    def describe(self) -> Iterator[str]:
        """What tells this split from a changed one without decoding it: names, sizes, types."""
        ...


class Listed:
    """Pictures held in a list, encoded or not, or in one tensor [N, H, W] or [N, C, H, W]."""

    random = False

    def __init__(self, images: Sequence[Cell] | Tensor, labels: np.ndarray | None, name: str) -> None:
        self.images, self.labels, self.name = images, labels, name

    def __len__(self) -> int:
        return len(self.images)

    def read(self, rows: Sequence[int]) -> Iterator[Picture]:
        """See `Items.read`."""
        return (opened(self.images[row], self.where(row)) for row in rows)

    def where(self, row: int) -> str:
        """See `Items.where`."""
        return f"sample {row} of {self.name}"

    def describe(self) -> Iterator[str]:
        """See `Items.describe`."""
        return iter(())


class Mapped:
    """A map-style data set too large for memory, or one whose items are random."""

    def __init__(self, dataset: Any, labels: np.ndarray | None, name: str, *, random: bool) -> None:
        self.dataset, self.labels, self.name, self.random = dataset, labels, name, random

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, rows: Sequence[int]) -> Iterator[Picture]:
        """See `Items.read`."""
        return (as_picture(pair(self.dataset[row], self.where(row))[0], self.where(row)) for row in rows)

    def where(self, row: int) -> str:
        """See `Items.where`."""
        return f"sample {row} of {self.name}"

    def describe(self) -> Iterator[str]:
        """See `Items.describe`."""
        yield type(self.dataset).__qualname__


def pair(item: Any, where: str) -> Pair:
    """The image and the label of what a user's data set gave for one sample."""
    if isinstance(item, (tuple, list)) and len(item) == 2:
        return item[0], item[1]
    if isinstance(item, (Image.Image, Tensor, np.ndarray)):
        return item, None
    raise UserError(f"{where} is a {type(item).__name__}: a data set gives (image, label) or an image alone")


def map_items(dataset: Any, image_size: int | None, memory_limit: int, name: str) -> Items:
    """A map-style data set: read into memory once if it fits there and its items are not random."""
    count = len(dataset)
    if count == 0:
        return Listed([], None, name)
    with borrowed_generators() as reseed:
        drawn = _is_random(dataset, sorted({0, count // 2, count - 1}), name, reseed)
        first = f"sample 0 of {name}"
        each = finished_bytes(as_picture(pair(dataset[0], first)[0], first), image_size, first)
        if not drawn and count * each <= memory_limit:
            pairs = (pair(dataset[i], f"sample {i} of {name}") for i in range(count))
            held, whole = collect(pairs, image_size, memory_limit, name)
            if whole:
                return listed(held, name)
        labels = _declared_labels(dataset, name, reseed)
        if labels is None:
            labels = label_array((pair(dataset[i], f"sample {i} of {name}")[1] for i in range(count)), name)
    return Mapped(dataset, labels, name, random=drawn)


def collect(
    cells: Iterator[tuple[Any, Any]], image_size: int | None, memory_limit: int, name: str
) -> tuple[deque[tuple[Cell, Any]], bool]:
    """Samples of unknown number, as they are held, and whether that is all of them.

    If not, as many were taken from `cells` as just exceed `memory_limit` bytes once they are finished float32.
    """
    held: deque[tuple[Cell, Any]] = deque()
    used = 0
    for cell, label in tidied(cells, image_size, name):
        where = f"sample {len(held)} of {name}"
        used += finished_bytes(opened(cell, where), image_size, where)
        held.append((cell, label))
        if used > memory_limit:
            return held, False
    return held, True


def listed(held: Iterable[tuple[Cell, Any]], name: str) -> Listed:
    """Samples in hand as one split."""
    pairs = list(held)
    return Listed([cell for cell, _ in pairs], label_array((label for _, label in pairs), name), name)


def tidied(
    cells: Iterable[tuple[Any, Any]], image_size: int | None, name: str, first: int = 0
) -> Iterator[tuple[Cell, Any]]:
    """Samples of a user's as they are held: encoded bytes, or pictures read and resized; labels as plain values."""
    for i, (image, label) in enumerate(cells, first):
        where = f"sample {i} of {name}"
        cell = image if isinstance(image, bytes) else as_picture(image, where)
        if not isinstance(cell, bytes) and image_size:
            cell = resized(cell, image_size, where)
        elif isinstance(cell, Image.Image):
            cell = decoded(cell, cell.mode, where)
        yield cell, _plain(label, i, name)


def finished_bytes(picture: Picture, image_size: int | None, name: str) -> int:
    """Bytes that an image like `picture` takes once it is finished float32."""
    height, width = (image_size, image_size) if image_size else size_of(picture)
    return 4 * channels_of(picture, name) * height * width


def label_array(labels: Iterable[Any], name: str) -> np.ndarray | None:
    """Labels one by one as an array of integers or strings; None where no sample has one."""
    plain = [_plain(label, i, name) for i, label in enumerate(labels)]
    if all(label is None for label in plain):
        return None
    return np.array(plain, dtype=object if None in plain else None)


def _plain(label: Any, i: int, name: str) -> Any:
    if not isinstance(label, (Tensor, np.ndarray, np.generic)):
        return label
    if math.prod(label.shape) != 1:
        shape = list(label.shape)
        raise UserError(f"sample {i} of {name} has a label of shape {shape}: give one integer a sample")
    return label.item()


def _is_random(dataset: Any, rows: Sequence[int], name: str, reseed: Callable[[int], None]) -> bool:
    """Whether reading draws from a process-wide generator; UserError if it draws from one of its own."""
    drawn = False
    for row in rows:
        readings = []
        for _ in range(2):
            reseed(seed_of(row))
            before = _states()
            readings.append(_pixels(dataset[row], f"sample {row} of {name}"))
            drawn = drawn or _states() != before
        if not np.array_equal(*readings, equal_nan=readings[0].dtype.kind == "f"):
            raise UserError(
                f"sample {row} of {name} differs between two readings under one seed: let its transforms "
                "draw from torch's, random's or numpy's process-wide generator"
            )
    return drawn


def _states() -> tuple[Any, ...]:
    numpy: Any = np.random.get_state(legacy=False)
    keys = numpy["state"]["key"].tobytes(), numpy["state"]["pos"], numpy["has_gauss"]
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), keys


def _pixels(item: Any, where: str) -> np.ndarray:
    picture = as_picture(pair(item, where)[0], where)
    return picture.numpy().astype(np.float64) if isinstance(picture, Tensor) else np.asarray(picture)


def _declared_labels(dataset: Any, name: str, reseed: Callable[[int], None]) -> np.ndarray | None:
    """Labels from torchvision's `targets` or `labels`, where these agree with eight samples read."""
    count = len(dataset)
    for attribute in ("targets", "labels"):
        declared = getattr(dataset, attribute, None)
        if not isinstance(declared, (list, tuple, Tensor, np.ndarray)) or len(declared) != count:
            continue
        for row in np.linspace(0, count - 1, min(8, count)).astype(int).tolist():
            reseed(seed_of(row))
            where = f"sample {row} of {name}"
            if _plain(declared[row], row, name) != _plain(pair(dataset[row], where)[1], row, name):
                break
        else:
            return label_array(list(declared), name)
    return None

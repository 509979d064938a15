"""The three splits that are trained and scored on, as rows of the splits that the user gave."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from stillroom.data.items import Items
from stillroom.data.labels import encode
from stillroom.data.opening import Opened
from stillroom.data.pictures import ColourError, Look, Picture
from stillroom.data.source import Augment, LazySource
from stillroom.data.splits import TEST_SHARE, VALIDATION_MOST, VALIDATION_SHARE, choose, hold_out
from stillroom.errors import UserError
from stillroom.seeds import seed_of

_LOOKS = 256  # images of each split that are looked at before any is decoded


@dataclass
class Part:
    """One split of ours: rows (int64 [n]) of a split of the user's, and their class numbers."""

    items: Items
    rows: Tensor
    labels: Tensor | None

    def pictures(self, most: int) -> Iterator[tuple[str, Picture]]:
        """Its pictures, or `most` of them evenly spread, with what to call them."""
        rows = self.rows[spread(len(self.rows), most)].tolist()
        return zip(map(self.items.where, rows), self.items.read(rows), strict=True)

    def decode(self, look: Look) -> Tensor:
        """All of it: [n, C, H, W], uint8 or float32."""
        rows = self.rows.tolist()
        images = _tensors(self.items, look, rows)
        first = next(images)
        x = torch.empty((len(rows), *look.shape), dtype=first.dtype)
        for i, image in enumerate(itertools.chain([first], images)):
            if image.dtype != x.dtype:
                raise UserError(
                    f"{self.items.where(rows[i])} has {image.dtype} pixels, the first of its split "
                    f"{x.dtype}: make them equal"
                )
            x[i] = image
        return x

    def lazy(
        self,
        look: Look,
        augment: Augment | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> LazySource:
        """A source that decodes what is fetched."""

        read = partial(_tensors, self.items, look)  # no closure: it is sent to worker processes
        return LazySource(read, self.rows, self.labels, augment, mean, std, random=self.items.random)


def spread(count: int, most: int) -> Tensor:
    """At most `most` of 0 .. count - 1, evenly spread, ascending, int64."""
    return torch.arange(min(count, most)) * count // max(1, min(count, most))


def _tensors(items: Items, look: Look, rows: Sequence[int]) -> Iterator[Tensor]:
    for row, picture in zip(rows, items.read(rows), strict=True):
        yield look.tensor(picture, items.where(row))


def divide(
    opened: Opened, seed: int, train_samples: int | None
) -> tuple[dict[str, Part], list[str], dict[str, object]]:
    """The parts 'train', 'validation' and 'test', the names of the classes, and how the parts were made."""
    for items in opened.parts.values():
        if len(items) == 0:
            raise UserError(f"{items.name} is empty: pass data with images")
    given = {split: items.labels for split, items in opened.parts.items()}
    labels, classes = encode(given, opened.classes, opened.name)
    parts = {
        split: Part(items, torch.arange(len(items)), labels[split]) for split, items in opened.parts.items()
    }
    record: dict[str, object] = {"seed": seed}
    notes = {split: f"{items.name}, as given" for split, items in opened.parts.items()}
    held = _held_out_sizes(opened)
    if held:
        parts |= _cut(parts["train"], held, seed, opened.name)
        whole = opened.parts["train"].name
        notes |= dict.fromkeys(held, f"cut from {whole}, stratified")
        notes["train"] = f"the rest of {whole}"
    if train_samples is not None:
        parts["train"] = _subset(parts["train"], train_samples, len(classes), seed, opened.name)
        notes["train"] += f"; of it {train_samples} samples, stratified"
    for split, part in parts.items():
        record[split] = {"samples": len(part.rows), "origin": notes[split]}
    return {split: parts[split] for split in ("train", "validation", "test")}, classes, record


def _held_out_sizes(opened: Opened) -> dict[str, int]:
    count = len(opened.parts["train"])
    sizes = opened.held_out or {
        "test": max(1, round(TEST_SHARE * count)),
        "validation": min(VALIDATION_MOST, max(1, round(VALIDATION_SHARE * count))),
    }
    return {split: size for split, size in sizes.items() if split not in opened.parts}


def _cut(train: Part, sizes: Mapping[str, int], seed: int, data: str) -> dict[str, Part]:
    if train.items.random:
        warnings.warn(
            f"data '{data}' has random transforms of its own, and {' and '.join(sizes)} are cut from it: "
            "their images are one random view each, the same in every run; to avoid it, pass these splits",
            stacklevel=5,
        )
    rows = hold_out(train.labels, len(train.rows), sizes, seed)
    for split, picked in rows.items():
        if len(picked) == 0:
            raise UserError(
                f"data '{data}' has {len(train.rows)} training samples, too few for a {split} split: "
                "pass data that have one"
            )
    return {
        split: Part(train.items, picked, None if train.labels is None else train.labels[picked])
        for split, picked in rows.items()
    }


def _subset(train: Part, samples: int, classes: int, seed: int, data: str) -> Part:
    available = len(train.rows)
    if samples > available:
        raise UserError(
            f"data '{data}' has {available} training samples, {samples} were asked for: "
            f"pass --task.train-samples of at most {available}"
        )
    if samples < classes:
        raise UserError(
            f"data '{data}' has {classes} classes, {samples} training samples were asked for: "
            f"pass --task.train-samples of at least {classes}"
        )
    picked = choose(train.labels, available, samples, seed_of(seed, 2), least=1)
    return Part(train.items, train.rows[picked], None if train.labels is None else train.labels[picked])


def decode(
    parts: Mapping[str, Part], image_size: int | None, memory_limit: int
) -> tuple[Look, dict[str, Tensor]]:
    """The look that all parts share, and the pixels [n, C, H, W] of those to hold in memory.

    These are all that are not random, if together they take at most `memory_limit` bytes as float32.
    """
    look = Look.of(
        itertools.chain.from_iterable(part.pictures(_LOOKS) for part in parts.values()), image_size
    )
    held = {split: part for split, part in parts.items() if not part.items.random}
    if 4 * math.prod(look.shape) * sum(len(part.rows) for part in held.values()) > memory_limit:
        held = {}
    try:
        return look, {split: part.decode(look) for split, part in held.items()}
    except ColourError:  # the few looked at were grey
        look = replace(look, channels=3)
        return look, {split: part.decode(look) for split, part in held.items()}

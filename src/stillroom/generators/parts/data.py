"""Samples to learn from and to be measured against: points of a known law, or images in [-1, 1]."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stillroom.data import Source, TensorSource, load_images
from stillroom.data.points import POINTS, draw_points, modes_of
from stillroom.errors import UserError
from stillroom.seeds import seed_of

HELD_OUT = 4000
"""Points of the test split, and a quarter of them in the validation split."""


@dataclass(frozen=True)
class Samples:
    """Three splits of samples [n, *shape], float32, and what is known of them."""

    train: Source
    validation: Source
    test: Source
    shape: tuple[int, ...]
    """(2,) for points, (C, H, W) for images in [-1, 1]."""
    classes: list[str]
    """Names of the classes; [] where samples have no labels."""
    name: str
    splits: dict[str, Any]
    fingerprint: str
    modes: tuple[Tensor, Tensor] | None = None
    """Centres [K, 2] and shares [K] of the law's modes, where it has modes."""

    @property
    def images(self) -> bool:
        """Whether samples are images."""
        return len(self.shape) == 3

    def deviation(self) -> float:
        """Standard deviation of the training samples' numbers around 0, to three digits: EDM's sigma_data."""
        ids = torch.arange(min(len(self.train), 10_000))
        x, _ = self.train.fetch(ids, view=None)
        return round(float(x.double().square().mean().sqrt()), 3)


def load_samples(data: Any, points: int, split_seed: int, **options: Any) -> Samples:
    """A law of points by name (`points` of them to train on), or whatever `load_images` takes.

    `options` are those of `load_images`. A tensor [n, d] in hand, alone or with labels, is taken for points.
    """
    if isinstance(data, str) and data in POINTS:
        return _points(data, points, split_seed)
    tensors = data if isinstance(data, tuple) else (data,)
    if isinstance(tensors[0], Tensor) and tensors[0].ndim == 2:
        return _points_in_hand(tensors, split_seed)
    images = load_images(data, normalise="centred", split_seed=split_seed, **options)
    return Samples(
        images.train,
        images.validation,
        images.test,
        images.shape,
        images.classes,
        images.name,
        images.splits,
        images.fingerprint,
    )


def _points(name: str, count: int, seed: int) -> Samples:
    parts = {"train": count, "validation": HELD_OUT // 4, "test": HELD_OUT}
    drawn = [draw_points(name, n, seed_of(seed, i)) for i, n in enumerate(parts.values())]
    train, validation, test = (TensorSource(x, y) for x, y in drawn)
    classes = [str(c) for c in range(int(drawn[0][1].max()) + 1)]
    digest = hashlib.sha256(b"".join(x.numpy().tobytes() for x, _ in drawn)).hexdigest()
    splits: dict[str, Any] = {"seed": seed, **{part: {"samples": n} for part, n in parts.items()}}
    return Samples(train, validation, test, (2,), classes, name, splits, digest, modes_of(name))


def _points_in_hand(tensors: tuple[Tensor, ...], seed: int) -> Samples:
    x, y = tensors[0].float(), tensors[1].long() if len(tensors) > 1 else None
    if len(x) < 30:
        raise UserError(f"data have {len(x)} points: pass 30 or more")
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed_of(seed, 3)))
    cut = order.split([len(x) - len(x) // 5 - len(x) // 10, len(x) // 10, len(x) // 5])
    train, validation, test = (TensorSource(x[i], None if y is None else y[i]) for i in cut)
    classes = [] if y is None else [str(c) for c in range(int(y.max()) + 1)]
    digest = hashlib.sha256(x.numpy().tobytes() + (b"" if y is None else y.numpy().tobytes())).hexdigest()
    splits: dict[str, Any] = {"seed": seed, "train": {"samples": len(train)}, "test": {"samples": len(test)}}
    return Samples(train, validation, test, tuple(x.shape[1:]), classes, "points", splits, digest)

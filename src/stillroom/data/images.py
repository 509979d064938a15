"""Image data of any origin as three sources: train, validation, test."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stillroom.data.augment import augmentation, warn_if_mirrored
from stillroom.data.opening import Opened, Reading, open_data
from stillroom.data.parts import Part, decode, divide, spread
from stillroom.data.pictures import Look
from stillroom.data.source import Augment, Source, TensorSource, borrowed_generators, standardise
from stillroom.errors import UserError
from stillroom.seeds import seed_of

NORMALISE = ("data", "imagenet", "centred", "none")
"""By the training split's own mean and deviation, by ImageNet's, to [-1, 1], or not at all (only to [0, 1])."""

_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # as in torchvision's pretrained weights
_CHUNK, _CHUNK_VALUES = 512, 2**23  # images, and pixel values, gone through at a time
_MOMENTS, _DIGESTED = 10_000, 64  # samples read of data that are too large to read them all


@dataclass
class ImageData:
    """Images and labels in three splits; x [B, C, H, W] is float32, (pixel / 255 - mean) / std."""

    train: Source
    validation: Source
    test: Source
    classes: list[str]
    """Names of the classes; [] where the data are unlabelled."""
    shape: tuple[int, int, int]
    """(C, H, W)."""
    mean: tuple[float, ...]
    """Per channel, of the training split before augmentation; zeros where not normalised."""
    std: tuple[float, ...]
    """Per channel; ones where not normalised."""
    name: str
    splits: dict[str, object]
    """The seed, and of each split its samples and its origin: recorded in the run."""
    fingerprint: str
    """SHA-256 of samples, labels and normalisation, not of the augmentation. Of data that are not in memory:
    of rows, labels, file names, sizes, types, and 64 samples a split."""
    rows: Tensor | None = None
    """Of each training sample the row of the given training split that it is, int64 [n]."""


def load_images(
    data: Any,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    image_size: int | None = None,
    augment: str | Augment = "none",
    normalise: str | None = None,
    split_seed: int = 0,
    train_samples: int | None = None,
    memory_limit: int = 4 * 2**30,
    disk_limit: int = 16 * 2**30,
    stream: bool = False,
    stream_samples: int | None = None,
) -> ImageData:
    """Load `data`: a name, a path, or data in hand.

    `data` is 'digits' (scikit-learn's 8 x 8 digits: 800 train, 97 validation, 900 test), 'objects' (16 x 16
    pictures of ten kinds, drawn here: 2,000, 500, 1,500), a folder of parquet files or of images
    ([split/][class/]file), the hub's name of a data set, a `datasets.Dataset`, `DatasetDict` or their iterable
    kin, a DataLoader, a map-style or iterable data set of (image, label) or of mappings, tensors (x, y), a
    mapping of columns, or a mapping of split names to these. Absent splits are cut from the training split,
    stratified by `split_seed`: 20 % test, 10 % validation (at most 5,000). `train_samples` then keeps a
    stratified subset of what is left.

    Images are grey (one channel) if all are, RGB otherwise; `image_size` makes them square (the largest
    square around the centre, bilinear); EXIF orientation is ignored. `augment` is a preset or a callable,
    applied to the training split alone. `normalise` is one of `NORMALISE`; None stands for 'data' where the
    pixels are images', and for 'none' where they are tensors, which the user may have normalised.
    `label_column` 'none' reads a table as unlabelled.

    Images that together take more than `memory_limit` bytes as float32 are decoded as they are fetched (mean
    and standard deviation are then those of 10,000 of them), and so are those of a data set that has random
    transforms of its own. A stream that takes more is kept on disk, up to `disk_limit` bytes, and read from there;
    `stream` reads a name as one where it can be (the hub, parquet), and `stream_samples` takes the first so many
    of each of its splits. Raises UserError, one line, for what cannot be read.
    """
    _check(normalise, image_size=image_size, train_samples=train_samples, stream_samples=stream_samples)
    how = Reading(image_column, label_column, image_size, memory_limit, disk_limit, stream, stream_samples)
    with borrowed_generators() as reseed:
        reseed(seed_of(split_seed))  # the user's data may draw from the process's generators
        return _load(open_data(data, how), how, augment, normalise, split_seed, train_samples)


def _load(
    opened: Opened,
    how: Reading,
    augment: str | Augment,
    normalise: str | None,
    split_seed: int,
    train_samples: int | None,
) -> ImageData:
    warn_if_mirrored(augment, opened.name)
    parts, classes, splits = divide(opened, split_seed, train_samples)
    look, pixels = decode(parts, how.image_size, how.memory_limit)
    transform = augmentation(augment, look.shape)
    chosen = normalise or ("data" if opened.raw else "none")
    sample = _sample(parts["train"], pixels.get("train"), look)
    mean, std = _normalisation(chosen, look, opened.name, sample)
    fingerprint = _fingerprint(parts, pixels, look, [classes, mean, std])
    a, b, c = _sources(parts, pixels, look, transform, mean, std)
    rows = parts["train"].rows
    return ImageData(a, b, c, classes, look.shape, mean, std, opened.name, splits, fingerprint, rows)


def _check(normalise: str | None, **counts: int | None) -> None:
    for option, value in counts.items():
        if value is not None and value < 1:
            raise UserError(f"--task.{option.replace('_', '-')} is {value}: pass a number of at least 1")
    if normalise not in (None, *NORMALISE):
        raise UserError(
            f"normalisation '{normalise}' is unknown: pass --task.normalise with {', '.join(NORMALISE)}"
        )


def _sources(
    parts: Mapping[str, Part],
    pixels: dict[str, Tensor],
    look: Look,
    transform: Augment | None,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Iterator[Source]:
    for split, part in parts.items():
        change = transform if split == "train" else None
        if split in pixels:
            # popped, so that the bytes are freed before the next split's floats are made
            yield TensorSource(pixels.pop(split), part.labels, change, mean, std)
        else:
            yield part.lazy(look, change, mean, std)


def _sample(train: Part, pixels: Tensor | None, look: Look) -> Iterator[Tensor]:
    """The training images as float32 in chunks [b, C, H, W]: all that are in memory, or 10,000 of them."""
    size = max(1, min(_CHUNK, _CHUNK_VALUES // math.prod(look.shape)))
    if pixels is not None:
        return (standardise(chunk, None, None) for chunk in pixels.split(_CHUNK))
    source = train.lazy(look)
    return (source.fetch(ids, None)[0] for ids in spread(len(source), _MOMENTS).split(size))


def _normalisation(
    kind: str, look: Look, data: str, chunks: Iterable[Tensor]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if kind == "none":
        return (0.0,) * look.channels, (1.0,) * look.channels
    if kind == "centred":
        return (0.5,) * look.channels, (0.5,) * look.channels
    if kind == "data":
        return moments(chunks)
    if look.channels != 3:
        raise UserError(
            f"normalisation 'imagenet' is for 3 channels, data '{data}' has {look.channels}: "
            "pass --task.normalise data"
        )
    return _IMAGENET


def moments(chunks: Iterable[Tensor]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation (of the population, 1 where it is 0) per channel of chunks [b, C, H, W]."""
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for chunk in chunks:
        exact = chunk.to(torch.float64)
        count += exact.numel() // exact.shape[1]
        total = total + exact.sum((0, 2, 3))
        squares = squares + exact.square().sum((0, 2, 3))
    mean = total / count
    deviation = (squares / count - mean.square()).clamp_min(0).sqrt()
    # of a constant channel rounding leaves about 1e-8, which must not be divided by
    deviation = torch.where(deviation > 1e-6, deviation, 1.0)
    return tuple(mean.tolist()), tuple(deviation.tolist())


def _fingerprint(
    parts: Mapping[str, Part], pixels: Mapping[str, Tensor], look: Look, about: list[Any]
) -> str:
    digest = hashlib.sha256(json.dumps([look.shape, look.image_size, *about]).encode())
    for split, part in parts.items():
        digest.update(f"{split} {len(part.rows)} {part.labels is not None}".encode())
        if part.labels is not None:
            digest.update(part.labels.numpy().tobytes())
        if split in pixels:
            digest.update(pixels[split].numpy().data)
            continue
        digest.update(part.rows.numpy().tobytes())
        for line in part.items.describe():
            digest.update(line.encode())
        source = part.lazy(look)
        digest.update(source.fetch(spread(len(source), _DIGESTED), None)[0].numpy().tobytes())
    return digest.hexdigest()

"""Scenes: an image on a larger textured canvas beside fragments of others, so that what a crop shows is known."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from stillroom.data import ImageData, Source, TensorSource
from stillroom.data.images import moments
from stillroom.errors import UserError
from stillroom.seeds import seed_of

SCENE = 45
"""Keeps the scenes apart from all other seeds."""
TRIES = 20
"""Places that are tried for a fragment before it may touch the object."""
INK = 0.1
"""Share of an image's range above which a pixel belongs to its object."""
HELD = 3
"""Sets of scenes that are held at once."""

_made: dict[tuple[Any, ...], tuple[ImageData, dict[str, Tensor]]] = {}


@dataclass(frozen=True)
class Composition:
    """How a scene is made; sizes in pixels."""

    canvas: int = 48
    item: int = 20
    fragments: int = 2
    fragment: int = 8
    texture: float = 0.12
    """Deviation of the background's grey about its mean, in units of the range of pixels."""


def trimmed(image: Tensor, size: int) -> Tensor:
    """The square around what an image [1, H, W] in [0, 1] shows, scaled to [size, size]."""
    ink = image[0] > INK * image.max()
    if not ink.any():
        ink = torch.ones_like(ink)
    rows, columns = (ink.any(axis).nonzero().squeeze(1) for axis in (1, 0))
    tall, wide = int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1
    side = max(tall, wide)
    square = image.new_zeros(1, 1, side, side)
    top, left = (side - tall) // 2, (side - wide) // 2
    square[0, 0, top : top + tall, left : left + wide] = image[
        0, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1
    ]
    return F.interpolate(square, (size, size), mode="bilinear", antialias=True)[0, 0]


def texture(side: int, deviation: float, generator: torch.Generator) -> Tensor:
    """Grey noise [side, side] about 0.35, coarse and fine in equal parts, in [0, 1]."""
    coarse = F.interpolate(
        torch.randn(1, 1, 6, 6, generator=generator), (side, side), mode="bicubic", align_corners=False
    )
    fine = torch.randn(side, side, generator=generator)
    return (0.35 + deviation * (coarse[0, 0] + fine) / 2).clamp(0, 1)


def compose(
    images: Tensor, y: Tensor, each: int, seed: int, how: Composition
) -> tuple[Tensor, Tensor, Tensor]:
    """`each` scenes of every image [N, 1, H, W] in [0, 1] with labels y [N].

    Returns scenes [N * each, 1, canvas, canvas] in [0, 1], their labels, and where their objects are [N * each, 4], as
    fractions (top, left, height, width). A scene is a function of (seed, its number).
    """
    items = torch.stack([trimmed(image, how.item) for image in images])
    others = {int(c): (y != c).nonzero().squeeze(1) for c in y.unique()}
    scenes, places = [], []
    for number in range(len(y) * each):
        generator = torch.Generator().manual_seed(seed_of(SCENE, seed, number))
        which = number // each
        scene, place = _scene(items, which, others[int(y[which])], generator, how)
        scenes.append(scene)
        places.append(place)
    sides = torch.tensor([[how.item, how.item]] * len(places))
    boxes = torch.cat([torch.tensor(places), sides], 1) / how.canvas
    return torch.stack(scenes).unsqueeze(1), y.repeat_interleave(each), boxes


def _scene(
    items: Tensor, which: int, others: Tensor, generator: torch.Generator, how: Composition
) -> tuple[Tensor, list[int]]:
    """One scene and the top left corner of its object; fragments come from images of other classes."""
    scene = texture(how.canvas, how.texture, generator)
    free = how.canvas - how.item + 1
    top, left = torch.randint(free, (2,), generator=generator).tolist()
    for _ in range(how.fragments if len(others) else 0):
        donor = items[others[torch.randint(len(others), (1,), generator=generator)]][0]
        cut = torch.randint(how.item - how.fragment + 1, (2,), generator=generator).tolist()
        corners = torch.randint(how.canvas - how.fragment + 1, (TRIES, 2), generator=generator).tolist()
        clear = [c for c in corners if _apart(c, (top, left), how)]
        _paste(
            scene,
            donor[cut[0] : cut[0] + how.fragment, cut[1] : cut[1] + how.fragment],
            (clear or corners)[0],
        )
    _paste(scene, items[which], [top, left])
    return scene, [top, left]


def _apart(corner: list[int], other: tuple[int, int], how: Composition) -> bool:
    """Whether a fragment at `corner` touches no object at `other`."""
    return any(a + how.fragment <= b or b + how.item <= a for a, b in zip(corner, other, strict=True))


def _paste(scene: Tensor, part: Tensor, corner: list[int]) -> None:
    """Lay a part over the scene: bright where either is."""
    top, left = corner
    window = scene[top : top + part.shape[0], left : left + part.shape[1]]
    torch.maximum(window, part, out=window)


# -- data sets --------------------------------------------------------------------------------------------------------


def scenes_of(
    base: ImageData, how: Composition, counts: tuple[int, int], seed: int, normalise: str
) -> tuple[ImageData, dict[str, Tensor]]:
    """Scenes of the images `base`, in [0, 1], and where their objects are, by split; the last few sets are held.

    `counts` are the scenes of each training and validation image (of test images one), and the most images of the
    validation and of the test split.
    """
    key = (base.fingerprint, how, counts, seed, normalise)
    if key not in _made:
        for old in list(_made)[: max(0, len(_made) - HELD + 1)]:
            del _made[old]
        _made[key] = _composed(base, how, counts, seed, normalise)
    return _made[key]


def _composed(
    base: ImageData, how: Composition, counts: tuple[int, int], seed: int, normalise: str
) -> tuple[ImageData, dict[str, Tensor]]:
    if base.shape[0] != 1 or base.train.labels is None:
        raise UserError(
            f"scenes are made of labelled grey images, and data '{base.name}' are not: pass --task.scenes False"
        )
    made, objects, splits = {}, {}, dict(base.splits)
    for number, split in enumerate(("train", "validation", "test")):
        source: Source = getattr(base, split)
        most = len(source) if split == "train" else min(len(source), counts[1])
        x, y = source.fetch(torch.arange(most) * len(source) // most, None)
        assert y is not None
        each = 1 if split == "test" else counts[0]
        x, y, objects[split] = compose(x, y, each, 3 * seed + number, how)
        made[split], splits[f"scenes of {split}"] = (x, y), len(y)
    fixed = {"none": ((0.0,), (1.0,)), "centred": ((0.5,), (0.5,))}
    mean, std = fixed.get(normalise) or moments([made["train"][0]])
    train, validation, test = (TensorSource(x, y, None, mean, std) for x, y in made.values())
    scenes = replace(
        base,
        train=train,
        validation=validation,
        test=test,
        shape=(1, how.canvas, how.canvas),
        mean=mean,
        std=std,
        name=f"scenes of {base.name}",
        splits=splits,
        fingerprint=f"{base.fingerprint}-{how}-{counts}-{seed}-{mean}-{std}",
    )
    return scenes, objects

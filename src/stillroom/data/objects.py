"""Generated colour pictures of ten kinds of upright objects, for what needs more of an image than digits have.

Every object has a way up, as things in photographs do, and is the same object when it is turned or mirrored: no
kind is another kind turned. Colours, textures, ground and clutter are drawn without regard to the kind, so that only
the shape tells. A digit would not do: a turned 6 is a 9.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stillroom.seeds import seed_of

Grid = NDArray[np.floating]
Mask = NDArray[np.bool_]
Shape = Callable[[Grid, Grid], list[Mask]]

OBJECTS = 41
"""Keeps the seeds of pictures apart from all others."""
FINER = 2
"""Pixels are the means of so many by so many points."""


def _box(u: Grid, v: Grid, left: float, right: float, low: float, high: float) -> Mask:
    return (u > left) & (u < right) & (v > low) & (v < high)


def _disc(u: Grid, v: Grid, x: float, y: float, wide: float, high: float) -> Mask:
    return ((u - x) / wide) ** 2 + ((v - y) / high) ** 2 < 1


def _wedge(u: Grid, v: Grid, low: float, high: float, bottom: float, top: float) -> Mask:
    """Between two heights, with half the width `bottom` at the lower and `top` at the upper one."""
    half = bottom + (top - bottom) * (v - low) / (high - low)
    return (v > low) & (v < high) & (np.abs(u) < half)


KINDS: dict[str, Shape] = {
    "house": lambda u, v: [_box(u, v, -0.6, 0.6, -0.8, 0.1), _wedge(u, v, 0.1, 0.8, 0.8, 0.0)],
    "tree": lambda u, v: [_box(u, v, -0.14, 0.14, -0.9, 0.0), _disc(u, v, 0, 0.3, 0.6, 0.55)],
    "fir": lambda u, v: [_box(u, v, -0.14, 0.14, -0.9, -0.4), _wedge(u, v, -0.4, 0.9, 0.65, 0.0)],
    "boat": lambda u, v: [_wedge(u, v, -0.8, -0.35, 0.45, 0.9), _wedge(u, v, -0.3, 0.85, 0.5, 0.0)],
    "car": lambda u, v: [
        _box(u, v, -0.9, 0.9, -0.4, 0.05) | _wedge(u, v, 0.0, 0.45, 0.6, 0.35),
        _disc(u, v, -0.5, -0.45, 0.22, 0.22) | _disc(u, v, 0.5, -0.45, 0.22, 0.22),
    ],
    "mug": lambda u, v: [
        _disc(u, v, 0.5, 0.0, 0.4, 0.45) & ~_disc(u, v, 0.5, 0.0, 0.2, 0.25),
        _wedge(u + 0.08, v, -0.65, 0.65, 0.3, 0.65),
    ],
    "fish": lambda u, v: [
        _wedge(v, u, 0.35, 0.9, 0.05, 0.55) | _wedge(u + 0.1, v, 0.3, 0.85, 0.4, 0.1),
        _disc(u, v, -0.2, 0.0, 0.68, 0.42),
    ],
    "mushroom": lambda u, v: [
        _box(u, v, -0.2, 0.2, -0.8, 0.1),
        _disc(u, v, 0, 0.0, 0.8, 0.75) & (v > 0.0),
    ],
    "lamp": lambda u, v: [
        _box(u, v, -0.08, 0.08, -0.75, 0.1) | _box(u, v, -0.5, 0.5, -0.85, -0.65),
        _wedge(u, v, 0.0, 0.75, 0.65, 0.3),
    ],
    "bottle": lambda u, v: [_box(u, v, -0.12, 0.12, 0.2, 0.9), _box(u, v, -0.38, 0.38, -0.85, 0.3)],
}
"""The parts of each kind, those in front last, as masks over u (to the right) and v (upwards), both in [-1, 1]."""


def draw_objects(samples: int, seed: int, size: int = 16) -> tuple[Tensor, Tensor]:
    """Pictures uint8 [samples, 3, size, size] and kinds int64 [samples], all kinds equally often, in random order.

    A picture is a function of (seed, its number, size) and of `samples`, through its kind alone.
    """
    order = np.random.default_rng(seed_of(OBJECTS, seed)).permutation(samples)
    kinds = order % len(KINDS)
    shapes = list(KINDS.values())
    pictures = [
        _picture(shapes[kind], np.random.default_rng(seed_of(OBJECTS, seed, number)), size)
        for number, kind in enumerate(kinds)
    ]
    return torch.from_numpy(np.stack(pictures)), torch.from_numpy(kinds.astype(np.int64))


def _picture(shape: Shape, rng: np.random.Generator, size: int) -> NDArray[np.uint8]:
    """One picture [3, size, size]: ground, clutter, the object, something in front of it, noise."""
    ends = np.linspace(-1, 1, 2 * size * FINER + 1)[1::2]
    x, y = np.meshgrid(ends, ends[::-1])
    canvas = _ground(rng, y)
    spot = _disc(x, y, *rng.uniform(-1, 1, 2), *rng.uniform(0.1, 0.35, 2))
    canvas = np.where(spot, _colour(rng), canvas)
    angle, scale, slim = rng.uniform(-0.25, 0.25), rng.uniform(0.65, 0.95), rng.uniform(0.85, 1.18)
    right, up = rng.uniform(-0.2, 0.2, 2)
    cosine, sine = np.cos(angle), np.sin(angle)
    u = ((x - right) * cosine + (y - up) * sine) / (scale * slim)
    v = ((y - up) * cosine - (x - right) * sine) * slim / scale
    if rng.random() < 0.5:
        u = -u
    for part in shape(u, v):
        canvas = np.where(part, _textured(rng, x, y), canvas)
    left, low = rng.uniform(-1, 0.8, 2)
    wide, high = rng.uniform(0.1, 0.4, 2)
    canvas = np.where(_box(x, y, left, left + wide, low, low + high), _colour(rng), canvas)
    canvas = canvas.reshape(3, size, FINER, size, FINER).mean((2, 4))
    canvas = canvas + rng.normal(0, 0.04, canvas.shape)
    return (255 * canvas.clip(0, 1)).round().astype(np.uint8)


def _colour(rng: np.random.Generator) -> Grid:
    """A colour [3, 1, 1]."""
    return rng.uniform(0, 1, (3, 1, 1))


def _ground(rng: np.random.Generator, y: Grid) -> Grid:
    """Sky over ground, pale, lighter above than below as under daylight."""
    sky, ground = 0.7 + 0.3 * _colour(rng), 0.5 + 0.4 * _colour(rng)
    share = (0.5 + 0.5 * y).clip(0, 1)
    return share * sky + (1 - share) * ground


def _textured(rng: np.random.Generator, x: Grid, y: Grid) -> Grid:
    """A colour, darker than the ground mostly, with stripes of some direction, width and strength in it."""
    angle, width, phase = rng.uniform(0, np.pi), rng.uniform(4, 12), rng.uniform(0, 2 * np.pi)
    waves = np.sin(width * (x * np.cos(angle) + y * np.sin(angle)) + phase)
    return 0.7 * _colour(rng) + rng.uniform(0, 0.2) * waves

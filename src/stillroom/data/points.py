"""Points in the plane whose law is known: what generators are tried on before images."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from stillroom.errors import UserError

SPREAD = 0.05
"""Standard deviation of the noise around a mode or a curve; the points lie within about [-1.2, 1.2]."""


def eight_centres() -> Tensor:
    """The centres [8, 2] of the eight Gaussians, on the unit circle."""
    angles = torch.arange(8) * (math.pi / 4)
    return torch.stack([angles.cos(), angles.sin()], -1)


def _noise(n: int, generator: torch.Generator) -> Tensor:
    return SPREAD * torch.randn(n, 2, generator=generator)


def eight_gaussians(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Points [n, 2] around eight centres, and which of them each belongs to, int64 [n]."""
    which = torch.randint(8, (n,), generator=generator)
    return eight_centres()[which] + _noise(n, generator), which


def uneven_shares() -> Tensor:
    """The shares [8] of the uneven Gaussians, in geometric steps: the first mode has 30 times as much as the last."""
    shares = 30.0 ** (-torch.arange(8) / 7)
    return shares / shares.sum()


def uneven_gaussians(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """As `eight_gaussians`, with `uneven_shares`: what is rare is what a student drops first."""
    which = torch.multinomial(uneven_shares(), n, replacement=True, generator=generator)
    return eight_centres()[which] + _noise(n, generator), which


def checkerboard(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Points [n, 2] uniform on the eight dark squares of a 4 x 4 board over [-1, 1]^2, and their square."""
    which = torch.randint(8, (n,), generator=generator)
    row = which // 2
    column = 2 * (which % 2) + row % 2
    corner = torch.stack([column, row], -1)
    return (corner + torch.rand(n, 2, generator=generator)) / 2 - 1, which


def two_moons(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Points [n, 2] along two half circles that reach into each other, and which of them."""
    which = torch.randint(2, (n,), generator=generator)
    angle = math.pi * torch.rand(n, generator=generator)
    upper = torch.stack([angle.cos(), angle.sin()], -1)
    lower = torch.stack([1 - angle.cos(), 0.5 - angle.sin()], -1)
    points = torch.where(which.unsqueeze(-1) == 0, upper, lower)
    return (points - torch.tensor([0.5, 0.25])) / 1.5 + _noise(n, generator), which


def swiss_roll(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Points [n, 2] along a spiral of one and a half turns, and the quarter of it, from the inside."""
    place = torch.rand(n, generator=generator)
    angle = 1.5 * math.pi * (1 + 2 * place)
    points = torch.stack([angle.cos(), angle.sin()], -1) * angle.unsqueeze(-1) / (4.5 * math.pi)
    return points + 0.5 * _noise(n, generator), (4 * place).long().clamp_max(3)


POINTS: dict[str, Callable[[int, torch.Generator], tuple[Tensor, Tensor]]] = {
    "eight-gaussians": eight_gaussians,
    "uneven-gaussians": uneven_gaussians,
    "checkerboard": checkerboard,
    "two-moons": two_moons,
    "swiss-roll": swiss_roll,
}


def draw_points(name: str, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """`n` points [n, 2] float32 of the law called `name`, and the part of it that each belongs to, int64 [n].

    The parts (centre, square, moon, quarter) serve as classes. Raises UserError for an unknown name.
    """
    if name not in POINTS:
        raise UserError(f"there are no points called '{name}': pass one of {', '.join(POINTS)}")
    return POINTS[name](n, torch.Generator().manual_seed(seed))


def modes_of(name: str) -> tuple[Tensor, Tensor] | None:
    """Centres [K, 2] and shares [K] of the modes of the law called `name`; None where it has none."""
    shares = {"eight-gaussians": torch.full((8,), 1 / 8), "uneven-gaussians": uneven_shares()}
    return (eight_centres(), shares[name]) if name in shares else None

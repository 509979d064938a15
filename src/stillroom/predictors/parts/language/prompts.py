"""Prompts out of rows of text, and rows out of prompts and what was written after them.

A row is int64 [L], padded on the right; its targets are the token after each position, -100 where none counts.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from stillroom.data import Source
from stillroom.data.source import WrappedSource
from stillroom.data.texts import IGNORED, PAD


def prompt_sizes(x: Tensor, y: Tensor, tokens: int) -> Tensor:
    """How many tokens of each row are its prompt [n], at least 1, for x and y [n, L].

    The tokens before the first that counts, where the data have prompts; elsewhere the first `tokens`.
    """
    counts = y != IGNORED
    first = counts.long().argmax(-1)
    plain = (first == 0) | ~counts.any(-1)
    filled = (x != PAD).sum(-1)
    return torch.where(plain, filled.clamp_max(tokens), first + 1).clamp_min(1)


def prompts_of(x: Tensor, sizes: Tensor) -> Tensor:
    """The first `sizes` [n] tokens of rows [n, L], padded on the right to the longest."""
    width = int(sizes.max())
    return x[:, :width].masked_fill(torch.arange(width, device=x.device) >= sizes.unsqueeze(-1), PAD)


def targets_of(rows: Tensor, sizes: Tensor) -> Tensor:
    """The token after each position [n, L], -100 within the prompts and where the row ends."""
    following = torch.full_like(rows, IGNORED)
    following[:, :-1] = rows[:, 1:].masked_fill(rows[:, 1:] == PAD, IGNORED)
    place = torch.arange(rows.shape[-1], device=rows.device)
    return following.masked_fill(place < sizes.unsqueeze(-1) - 1, IGNORED)


def replaced(x: Tensor, y: Tensor, rows: Tensor, targets: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
    """x and y with `rows` and `targets` [m, M] in place of the m rows that `which` [n] marks, as wide as need be."""
    width = max(x.shape[-1], rows.shape[-1])
    return _put(x, rows, which, width, PAD), _put(y, targets, which, width, IGNORED)


def _put(old: Tensor, new: Tensor, which: Tensor, width: int, filling: int) -> Tensor:
    made = old.new_full((len(old), width), filling)
    made[:, : old.shape[-1]] = old
    made[which] = filling
    made[which.nonzero().squeeze(-1), : new.shape[-1]] = new
    return made


class EvenSource(WrappedSource):
    """The rows of `source`, all padded to `length`: so that a teacher's answers to them have one shape."""

    def __init__(self, source: Source, length: int) -> None:
        super().__init__(source)
        self.length = length

    def fetch(self, ids: Tensor, view: int | None) -> tuple[Tensor, Tensor]:
        """See `Source.fetch`."""
        x, y = self.source.fetch(ids, view)
        assert y is not None
        missing = (0, max(0, self.length - y.shape[-1]))
        return F.pad(x, missing, value=PAD), F.pad(y, missing, value=IGNORED)

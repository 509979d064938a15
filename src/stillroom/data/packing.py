"""Token ids as samples: rows padded on the right, blocks of a stream, or documents packed into rows."""

from __future__ import annotations

import bisect
import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from stillroom.data.tokens import Tokens

PAD = -1
"""What stands in the place of a token id where a row is padded."""
IGNORED = -100
"""What stands in the place of a target where nothing is to be predicted."""
MULTIPLE = 8
"""Rows are padded to the longest of their batch, rounded up to a multiple of this, at most the longest allowed."""


class TextSource:
    """Documents to classify, one a row, padded on the right; see `Source`.

    x is int64 [B, L] with `PAD` behind each text; y is int64 [B], None where unlabelled.
    """

    fixed = True

    def __init__(self, tokens: Tokens, rows: Tensor, labels: Tensor | None, length: int) -> None:
        self.tokens, self.rows, self.labels, self.length = tokens, rows, labels, length

    def __len__(self) -> int:
        return len(self.rows)

    def fetch(self, ids: Tensor, view: int | None) -> tuple[Tensor, Tensor | None]:
        """See `Source.fetch`."""
        rows = self.rows.index_select(0, ids).numpy()
        starts, ends = self.tokens.offsets[rows], self.tokens.offsets[rows + 1]
        x = _filled(self.tokens.flat, starts, ends, self.length)
        return torch.from_numpy(x), None if self.labels is None else self.labels.index_select(0, ids)

    def subset(self, ids: Tensor) -> TextSource:
        """The samples `ids` (int64 [n]) alone, renumbered 0 .. n - 1."""
        part = copy.copy(self)
        part.rows = self.rows.index_select(0, ids)
        part.labels = None if self.labels is None else self.labels.index_select(0, ids)
        return part


class StreamSource:
    """Pieces of documents for language modelling, one piece or several a row; see `Source`.

    Row r is made of the pieces `pieces[firsts[r]:firsts[r + 1]]`, each a start and an end in the flat array. x is
    int64 [B, L], or with `numbered` [B, 2, L]: ids, and the number of the piece in its row, -1 behind the last.
    y [B, L] is the token after each position, `IGNORED` at padding, in prompts and at the ends of documents.
    """

    fixed = True
    labels = None

    def __init__(
        self, tokens: Tokens, pieces: np.ndarray, firsts: np.ndarray, length: int, numbered: bool
    ) -> None:
        self.tokens, self.pieces, self.firsts = tokens, pieces, firsts
        self.length, self.numbered = length, numbered
        self.rows = torch.arange(len(firsts) - 1)

    def __len__(self) -> int:
        return len(self.rows)

    def fetch(self, ids: Tensor, view: int | None) -> tuple[Tensor, Tensor]:
        """See `Source.fetch`."""
        rows = self.rows.index_select(0, ids).tolist()
        held = [self.pieces[self.firsts[row] : self.firsts[row + 1]] for row in rows]
        size = _rounded(max(int((piece[:, 1] - piece[:, 0]).sum()) for piece in held), self.length)
        x = np.full((len(rows), 2, size), PAD, np.int64)
        y = np.full((len(rows), size), IGNORED, np.int64)
        for row, pieces in enumerate(held):
            self._put(x[row], y[row], pieces)
        return torch.from_numpy(x if self.numbered else x[:, 0].copy()), torch.from_numpy(y)

    def _put(self, x: np.ndarray, y: np.ndarray, pieces: np.ndarray) -> None:
        """Write a row's pieces into x [2, L] and y [L]."""
        assert self.tokens.counts is not None
        at = 0
        for number, (start, end) in enumerate(pieces.tolist()):
            here = slice(at, at + end - start)
            x[0, here], x[1, here] = self.tokens.flat[start:end], number
            following = self.tokens.flat[start + 1 : end + 1]  # of the very last token there is none
            y[at : at + len(following)] = following
            y[here][~self.tokens.counts[start:end]] = IGNORED
            at = here.stop

    def subset(self, ids: Tensor) -> StreamSource:
        """The samples `ids` (int64 [n]) alone, renumbered 0 .. n - 1."""
        part = copy.copy(self)
        part.rows = self.rows.index_select(0, ids)
        return part


def rows_of(tokens: Tokens, length: int) -> StreamSource:
    """A document a row, cut to `length`."""
    ends = np.minimum(tokens.offsets[1:], tokens.offsets[:-1] + length)
    pieces = np.stack([tokens.offsets[:-1], ends], 1)
    return StreamSource(tokens, pieces, np.arange(len(tokens) + 1), length, numbered=False)


def blocks_of(tokens: Tokens, length: int) -> StreamSource:
    """The documents as one stream, cut every `length` tokens; the last block may be shorter."""
    starts = np.arange(0, len(tokens.flat), length, dtype=np.int64)
    pieces = np.stack([starts, np.minimum(starts + length, len(tokens.flat))], 1)
    return StreamSource(tokens, pieces, np.arange(len(pieces) + 1), length, numbered=False)


def packed(tokens: Tokens, length: int) -> StreamSource:
    """Documents packed into rows of at most `length`, best fit; longer ones are cut into pieces, none is lost.

    The last token of a piece still has the first of the next one as its target.
    """
    starts = [np.arange(a, b, length) for a, b in zip(tokens.offsets[:-1], tokens.offsets[1:], strict=True)]
    ends = [np.minimum(s + length, b) for s, b in zip(starts, tokens.offsets[1:], strict=True)]
    pieces = np.stack([np.concatenate(starts), np.concatenate(ends)], 1)
    rows = best_fit((pieces[:, 1] - pieces[:, 0]).tolist(), length)
    order = np.array([piece for row in rows for piece in row], dtype=np.int64)
    firsts = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    return StreamSource(tokens, pieces[order], firsts, length, numbered=True)


def best_fit(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices of `sizes` in rows of at most `capacity`: the largest first, each to the row with the least room left.

    Best-fit decreasing (Ding et al., ICML 2024, arXiv:2404.10830, section 3.2). Each size is at most `capacity`.
    """
    rows: list[list[int]] = []
    open_by_room: dict[int, list[int]] = {}
    rooms: list[int] = []  # rooms that some row has, ascending; never more than `capacity` of them
    for index in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        size = sizes[index]
        place = bisect.bisect_left(rooms, size)
        if place == len(rooms):
            row, room = len(rows), capacity
            rows.append([])
        else:
            room = rooms[place]
            row = open_by_room[room].pop()
            if not open_by_room[room]:
                rooms.pop(place)
        rows[row].append(index)
        left = room - size
        if left:
            if not open_by_room.setdefault(left, []):
                bisect.insort(rooms, left)
            open_by_room[left].append(row)
    return rows


def _rounded(size: int, most: int) -> int:
    return min(-(-size // MULTIPLE) * MULTIPLE, max(most, size))


def _filled(flat: np.ndarray, starts: np.ndarray, ends: np.ndarray, length: int) -> np.ndarray:
    """flat[start:end] as rows of one int64 array, `PAD` behind each."""
    sizes = ends - starts
    x = np.full((len(starts), _rounded(int(sizes.max()), length)), PAD, np.int64)
    for row, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        x[row, : end - start] = flat[start:end]
    return x

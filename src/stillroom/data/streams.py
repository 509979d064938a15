"""Streams: samples that come one after another, and may be more than memory holds.

Training needs them by number: in another order in every epoch, from the middle after a stop, cut among processes,
and split by class. So a stream that fits in memory is held there, and a longer one is read once and kept on disk
(`stillroom.data.spool`). A buffer of shuffled samples would take no disk, and give none of these.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from stillroom.caching import cache
from stillroom.data.items import Items, collect, listed, tidied
from stillroom.data.pictures import Cell
from stillroom.data.source import borrowed_generators
from stillroom.data.spool import Room, keep, kept
from stillroom.seeds import seed_of

_DRAWN = 0x57E4  # seeds what a named stream draws while it is read, so that all who keep it keep the same


@dataclass(frozen=True)
class Limits:
    """How much of a stream is taken, and where it may go."""

    image_size: int | None
    memory: int
    """Bytes of finished float32 up to which it is held in memory."""
    disk: int
    """Bytes up to which it is kept on disk."""
    samples: int | None = None
    """The first so many; None takes all."""
    expected: int | None = None
    """How many there are, where that is known."""


def read_stream(
    pairs: Callable[[], Iterator[tuple[Any, Any]]], name: str, limits: Limits, key: str | None = None
) -> Items:
    """The samples of a stream as one split: in memory where they fit, on disk otherwise.

    `pairs` begins the stream and gives (image or encoded bytes, label or None). `key` names the stream by all that
    it is made of: what is kept under it is used again; without one the stream is read anew in each process. Raises
    UserError where the disk limit is too small, or the disk.
    """

    def begun() -> Iterator[tuple[Any, Any]]:
        return itertools.islice(pairs(), limits.samples)

    if key is None:
        return _read(begun, name, limits, None)
    with borrowed_generators() as reseed:

        def again() -> Iterator[tuple[Any, Any]]:
            reseed(seed_of(_DRAWN))
            return begun()

        return _read(again, name, limits, key)


def _read(
    begun: Callable[[], Iterator[tuple[Any, Any]]], name: str, limits: Limits, key: str | None
) -> Items:
    root, size = cache() / "streams", limits.image_size
    coming: list[Iterator[tuple[Cell, Any]]] = []
    if not kept(root, key):
        raw = begun()
        held, whole = collect(raw, size, limits.memory, name)
        if whole:
            return listed(held, name)
        coming.append(itertools.chain(_drained(held), tidied(raw, size, name, first=len(held))))

    def cells() -> Iterator[tuple[Cell, Any]]:
        return coming.pop() if coming else tidied(begun(), size, name)

    expected = limits.expected
    if expected is not None and limits.samples is not None:
        expected = min(expected, limits.samples)
    return keep(root, key, cells, Room(name, limits.disk, expected))


def _drained(held: deque[tuple[Cell, Any]]) -> Iterator[tuple[Cell, Any]]:
    """What is held, each let go of as it is given."""
    while held:
        yield held.popleft()

"""Samples that a teacher makes to train a student on, made once and kept on disk: pairs, trajectories.

A store is a folder of arrays `NAME.npy` with one row a sample, in the cache under a name made of all that
determines them. It is written in blocks; a killed making goes on after its last block. Nothing in it can run code.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stillroom.checkpoint import read_json, write_json
from stillroom.config import digest
from stillroom.errors import UserError
from stillroom.runtime import Runtime
from stillroom.teaching import cache

IN_MEMORY = 2**30
"""Arrays up to this size are read into memory whole; larger ones stay on disk."""

Make = Callable[[range], dict[str, Tensor]]
"""The rows of a block: tensors [rows, ...] by name. What it draws must depend on the rows' numbers alone."""


class Store:
    """Arrays of equal length, by name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            about = read_json(folder / "about.json")
            self.arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in about["arrays"]}
        except (UserError, OSError, ValueError, KeyError, TypeError) as error:
            raise _damaged(folder, error) from None
        self._held: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return min(len(array) for array in self.arrays.values())

    @property
    def bytes(self) -> int:
        """What all arrays take on disk."""
        return sum(array.nbytes for array in self.arrays.values())

    def rows(self, name: str, ids: Tensor | None = None) -> Tensor:
        """Rows `ids` of an array, or all of them; half precision comes back as float32."""
        array = self.arrays[name]
        if array.nbytes <= IN_MEMORY:
            if name not in self._held:
                self._held[name] = torch.from_numpy(np.array(array))
            found = self._held[name] if ids is None else self._held[name].index_select(0, ids)
        else:
            found = torch.from_numpy(np.array(array if ids is None else array[ids.numpy()]))
        return found.float() if found.dtype == torch.float16 else found


class StoreSource:
    """A store as a source of training samples: x [n, k, ...] holds the arrays `names` side by side, y the labels.

    Where the array `label` numbers `embeddings` [m, ...], y holds those, and there are no labels.
    """

    def __init__(
        self,
        store: Store,
        names: Sequence[str],
        label: str = "",
        embeddings: Tensor | None = None,
        ids: Tensor | None = None,
    ) -> None:
        self.store, self.names, self.label, self.embeddings = store, tuple(names), label, embeddings
        self.ids = torch.arange(len(store)) if ids is None else ids

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def fixed(self) -> bool:
        """See `Source.fixed`."""
        return True

    @property
    def labels(self) -> Tensor | None:
        """See `Source.labels`."""
        return self._numbers(self.ids) if self.embeddings is None else None

    def _numbers(self, rows: Tensor) -> Tensor | None:
        return self.store.rows(self.label, rows) if self.label in self.store.arrays else None

    def fetch(self, ids: Tensor, view: int | None) -> tuple[Tensor, Tensor | None]:
        """See `Source.fetch`."""
        rows = self.ids.index_select(0, ids)
        x = torch.stack([self.store.rows(name, rows) for name in self.names], 1)
        numbers = self._numbers(rows)
        return x, numbers if self.embeddings is None else self.embeddings[numbers]

    def subset(self, ids: Tensor) -> StoreSource:
        """See `Source.subset`."""
        return StoreSource(self.store, self.names, self.label, self.embeddings, self.ids.index_select(0, ids))


def kept_store(kind: str, key: Mapping[str, Any], count: int, make: Make, block: int = 500) -> Store:
    """The store of `count` rows that `key` determines: from the cache, or made now by the main process.

    Raises UserError, before much is written, where the disk has no room for it.
    """
    place = cache() / "stores" / f"{kind}-{digest({'kind': kind, 'count': count, 'block': block, **key})}"
    runtime = Runtime()
    if runtime.main and not _finished(place):
        _fill(place, kind, count, make, block)
    runtime.barrier()
    return Store(place)


def _damaged(place: Path, error: Exception) -> UserError:
    return UserError(
        f"the kept samples '{place}' are damaged ({error}): remove that folder, they are then made anew"
    )


def _finished(place: Path) -> bool:
    if not (place / "about.json").is_file():
        return False
    about = read_json(place / "about.json")
    return isinstance(about, dict) and about.get("done") == about.get("count")


def _fill(place: Path, kind: str, count: int, make: Make, block: int) -> None:
    """Go on where an earlier making was stopped, a block at a time."""
    place.mkdir(parents=True, exist_ok=True)
    done = 0
    if (place / "about.json").is_file():
        done = int(read_json(place / "about.json").get("done", 0))
    arrays: dict[str, np.ndarray] = {}
    while done < count:
        rows = range(done, min(done + block, count))
        made = {name: value.detach().cpu().contiguous().numpy() for name, value in make(rows).items()}
        if not arrays:
            try:
                arrays = _open(place, kind, count, made, fresh=done == 0)
            except (FileNotFoundError, ValueError) as error:
                raise _damaged(place, error) from None
        for name, value in made.items():
            arrays[name][rows.start : rows.stop] = value
            arrays[name].flush()  # type: ignore[attr-defined]
        done = rows.stop
        write_json(place / "about.json", {"count": count, "done": done, "arrays": list(arrays)})


def _open(
    place: Path, kind: str, count: int, first: Mapping[str, np.ndarray], fresh: bool
) -> dict[str, np.ndarray]:
    shapes = {name: (count, *value.shape[1:]) for name, value in first.items()}
    size = sum(int(np.prod(shapes[name])) * value.itemsize for name, value in first.items())
    free = shutil.disk_usage(place).free
    if fresh and size > 0.95 * free:
        shutil.rmtree(place, ignore_errors=True)
        raise UserError(
            f"{count} {kind} take {size / 1e9:.1f} GB and '{place.parent}' has {free / 1e9:.1f} GB free: ask for "
            "fewer, or set STILLROOM_CACHE to a folder on another disk"
        )
    for name in () if fresh else first:
        np.load(
            place / f"{name}.npy", mmap_mode="r"
        )  # opened to be written, a file that is cut is filled with zeros
    mode = "w+" if fresh else "r+"
    arrays: dict[str, np.ndarray] = {
        name: np.lib.format.open_memmap(
            place / f"{name}.npy",
            mode=mode,
            dtype=value.dtype if fresh else None,
            shape=shapes[name] if fresh else None,
        )
        for name, value in first.items()
    }
    for name in arrays if fresh else ():
        # A mapped file has holes for its rows: a disk that is full when they are written would end the process.
        with open(place / f"{name}.npy", "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, os.path.getsize(file.name))
    return arrays

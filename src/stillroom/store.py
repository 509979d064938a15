"""Arrays with one row a sample, made once and kept on disk in blocks that several processes may share out.

A store is a folder: `NAME.npy` for each array, its whole size from the start; `_blocks.npy`, for each block 0 or
2^32 + the CRC-32 of its rows; `about.json`, written last of these. A process that makes a block holds a lock on it
that ends with the process, so that others make other blocks meanwhile, and a killed making goes on with the blocks
that are missing. A block whose checksum does not fit is made anew. Nothing in a store can run code.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from stillroom.caching import cache
from stillroom.checkpoint import read_json, write_json
from stillroom.config import digest
from stillroom.errors import UserError
from stillroom.runtime import Runtime

IN_MEMORY = 2**30
"""Arrays up to this size, bytes, are read into memory whole; larger ones stay on disk."""

ABOUT, BLOCKS, LOCK = "about.json", "_blocks", "lock"
FORMAT = 2
"""Of the files; a store of another format has another name."""
LAYING_OUT = 0
"""The byte of the lock file that guards the layout; block i has byte i + 1."""

Make = Callable[[range], dict[str, Tensor]]
"""The rows of a block: tensors [rows, ...] by name. What it makes must depend on the rows' numbers alone."""


class Store:
    """Arrays of equal length, by name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.about: dict[str, Any] = read_json(folder / ABOUT)
            self.count, self.block = int(self.about["count"]), int(self.about["block"])
            self.arrays = {name: _opened(folder, name) for name in self.about["arrays"]}
            self._blocks = _opened(folder, BLOCKS)
            short = [name for name, array in self.arrays.items() if len(array) != self.count]
            if short or len(self._blocks) != -(-self.count // self.block):
                raise ValueError(f"{[*short, BLOCKS][0]}.npy has the wrong length")
        except (UserError, OSError, EOFError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"the kept samples '{folder}' are damaged ({error}): remove that folder, they are then made anew"
            ) from None
        self._held: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return self.count

    @property
    def bytes(self) -> int:
        """What all arrays take on disk."""
        return sum(array.nbytes for array in self.arrays.values())

    def stored(self, name: str, ids: Tensor | None = None) -> Tensor:
        """Rows `ids` (int64 [n]) of an array, or all of them, in the type in which they are stored."""
        array = self.arrays[name]
        if array.nbytes > IN_MEMORY:
            return torch.from_numpy(np.array(array if ids is None else array[ids.numpy()]))
        if name not in self._held:
            self._held[name] = torch.from_numpy(np.array(array))
        return self._held[name] if ids is None else self._held[name].index_select(0, ids)

    def rows(self, name: str, ids: Tensor | None = None) -> Tensor:
        """As `stored`; half precision comes back as float32."""
        found = self.stored(name, ids)
        return found.float() if found.dtype == torch.float16 else found

    def forget(self) -> None:
        """Give back the memory that holds rows."""
        self._held.clear()

    # -- blocks -------------------------------------------------------------------------------------------------

    @property
    def blocks(self) -> list[range]:
        """The rows of each block."""
        return cut(self.count, self.block)

    def sound(self, number: int) -> bool:
        """Whether block `number` is there, as it was written."""
        return int(self._blocks[number]) == self._checksum(number)

    def put(self, number: int, made: Mapping[str, np.ndarray]) -> None:
        """Write block `number`, then its checksum."""
        first = self.blocks[number].start
        for name, value in made.items():
            _write(self.arrays[name], first, value)
        _write(self._blocks, number, np.array([self._checksum(number)], self._blocks.dtype))

    def _checksum(self, number: int) -> int:
        rows, found = self.blocks[number], 0
        for array in self.arrays.values():
            found = zlib.crc32(np.ascontiguousarray(array[rows.start : rows.stop]).data, found)
        return found + 2**32


def cut(count: int, block: int) -> list[range]:
    """0 .. count - 1 in ranges of `block`, the last of them maybe shorter."""
    return [range(start, min(start + block, count)) for start in range(0, count, block)]


def kept_store(kind: str, key: Mapping[str, Any], count: int, make: Make, block: int = 500) -> Store:
    """The store of `count` rows that `key` determines: from the cache, or made now by the main process.

    Raises UserError, before much is written, where the disk has no room for it.
    """
    whole = {"kind": kind, "count": count, "block": block, "format": FORMAT, **key}
    place = cache() / "stores" / f"{kind}-{digest(whole)}"
    runtime = Runtime()
    if runtime.main:
        filled(place, count, block, make, kind)
    runtime.barrier()
    return Store(place)


def filled(
    folder: Path, count: int, block: int, make: Make, what: str, about: Mapping[str, Any] | None = None
) -> Store:
    """The store at `folder` with all its `count` rows: those that are missing are made now.

    Processes that ask at once share the blocks out; all return when there is nothing left to make. `what` names
    the samples in messages, `about` goes into about.json for a human reader. Raises UserError where the disk has
    no room, before much is written, and for a store that is damaged beyond its blocks.
    """
    store = Store(folder) if (folder / ABOUT).is_file() else None
    if store is None or not all(store.sound(number) for number in range(len(store.blocks))):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / LOCK).open("a+b") as lock:
            with _alone(lock, LAYING_OUT):
                if not (folder / ABOUT).is_file():
                    _lay_out(folder, count, block, _numpy(make(cut(count, block)[0])), what, about or {})
            store = Store(folder)
            _fill(store, lock, make)
    return store


def _fill(store: Store, lock: IO[bytes], make: Make) -> None:
    """First what nobody else is making, then what others began and may have left."""
    missing = [number for number in range(len(store.blocks)) if not store.sound(number)]
    for wait in (False, True):
        left = []
        for number in missing:
            with _alone(lock, number + 1, wait) as mine:
                if not mine:
                    left.append(number)
                elif not store.sound(number):
                    store.put(number, _numpy(make(store.blocks[number])))
        missing = left


def _lay_out(
    folder: Path, count: int, block: int, first: Mapping[str, np.ndarray], what: str, about: Mapping[str, Any]
) -> None:
    """Files of the whole size, with the first block in them."""
    folder.mkdir(parents=True, exist_ok=True)  # another process may have given up on it meanwhile
    size = sum(count * value[:1].nbytes for value in first.values())
    free = shutil.disk_usage(folder).free
    if size > 0.95 * free:
        shutil.rmtree(folder, ignore_errors=True)
        raise UserError(
            f"{count} {what} take {size / 1e9:.1f} GB and '{folder.parent}' has {free / 1e9:.1f} GB free: ask for "
            "fewer, or set STILLROOM_CACHE to a folder on another disk"
        )
    try:
        for name, value in first.items():
            _reserve(folder / f"{name}.npy", value.dtype, (count, *value.shape[1:]))
        _reserve(folder / f"{BLOCKS}.npy", np.dtype("uint64"), (len(cut(count, block)),))
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise _unwritten(folder, error) from None
    write_json(
        folder / ABOUT, {"count": count, "block": block, "arrays": list(first), "made of": dict(about)}
    )
    Store(folder).put(0, first)


def _reserve(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    """An array of zeros whose room on disk is taken now: running out of it later would kill the process."""
    np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def _opened(folder: Path, name: str) -> np.memmap:
    array = np.load(folder / f"{name}.npy", mmap_mode="r")
    if not isinstance(array, np.memmap):
        raise ValueError(f"{name}.npy holds no array")
    return array


def _write(array: np.memmap, first: int, value: np.ndarray) -> None:
    """Put rows into the file behind `array`, from row `first` on."""
    if value.dtype != array.dtype or value.shape[1:] != array.shape[1:]:
        raise ValueError(f"rows of {value.dtype} {value.shape} for an array of {array.dtype} {array.shape}")
    data, offset = np.ascontiguousarray(value).data.cast("B"), array.offset + first * value[:1].nbytes
    try:
        with open(str(array.filename), "r+b") as file:
            while data:
                done = os.pwrite(file.fileno(), data, offset)
                data, offset = data[done:], offset + done
    except OSError as error:
        raise _unwritten(Path(str(array.filename)).parent, error) from None


def _unwritten(folder: Path, error: OSError) -> UserError:
    return UserError(
        f"'{folder}' cannot be written ({error.strerror}): make room and run again, it goes on where it stopped; or "
        "set STILLROOM_CACHE to a folder on another disk"
    )


@contextmanager
def _alone(lock: IO[bytes], byte: int, wait: bool = True) -> Iterator[bool]:
    """Hold one byte of the lock file; False where another process holds it and one does not `wait`."""
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, byte)
    except BlockingIOError:
        yield False
        return
    except OSError as error:
        raise UserError(
            f"'{lock.name}' cannot be locked ({error.strerror}): set STILLROOM_CACHE to a folder on another disk"
        ) from None
    try:
        yield True
    finally:
        fcntl.lockf(lock, fcntl.LOCK_UN, 1, byte)


def _numpy(made: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: value.detach().cpu().contiguous().numpy() for name, value in made.items()}

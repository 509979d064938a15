"""Streams kept on disk, so that what came one after another can be asked for by number.

A kept stream is a folder in the cache: `data.bin`, the samples one behind the other; `ends.bin`, where each ends;
`labels.jsonl`; `about.json`, written last. A folder appears whole, and what a killed process leaves is removed by
the next one that keeps a stream. Samples are read from the file, not mapped, so that they take no memory.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import itertools
import json
import os
import shutil
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import numpy as np
from safetensors.torch import load, save
from torch import Tensor

from stillroom.checkpoint import read_json, write_json
from stillroom.data.items import label_array
from stillroom.data.pictures import Cell, Picture, channels_of, decoded, opened
from stillroom.errors import UserError

FORMAT = 1
"""Of the folder; another one is not read."""

_FILE, _TENSOR = b"F", b"T"  # the first byte of a sample: an image file, or safetensors
_TOLD = 256  # samples after which the size of all is predicted
_SPARED = 0.05  # of the disk's free bytes
_CHECKED = 2**26  # bytes between two looks at what the disk has free

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}

_owned = itertools.count()


class Spooled:
    """One split of samples that are kept on disk; see `Items`."""

    random = False

    def __init__(self, place: Path, name: str, held: TextIO | None) -> None:
        self.place, self.name = place, name
        self._held = held  # the lock on the folder, for as long as this lives in the process that opened it
        self._ends = np.fromfile(place / "ends.bin", dtype=np.int64)
        with open(place / "labels.jsonl", encoding="utf-8") as lines:
            self.labels = label_array(map(json.loads, lines), name)
        self._digest: str = read_json(place / "about.json")["digest"]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_held": None}

    def __len__(self) -> int:
        return len(self._ends)

    def read(self, rows: Sequence[int]) -> Iterator[Picture]:
        """See `Items.read`."""
        with open(self.place / "data.bin", "rb", buffering=0) as file:
            for row in rows:
                start = int(self._ends[row - 1]) if row else 0
                blob = os.pread(file.fileno(), int(self._ends[row]) - start, start)
                yield _unpacked(blob, self.where(row))

    def where(self, row: int) -> str:
        """See `Items.where`."""
        return f"sample {row} of {self.name}"

    def describe(self) -> Iterator[str]:
        """See `Items.describe`: a digest of all samples."""
        yield self._digest


class Room:
    """How much a stream may take: `limit` bytes, and what the disk has; `expected` samples, None if unknown."""

    def __init__(self, name: str, limit: int, expected: int | None) -> None:
        self.name, self.limit, self.expected = name, limit, expected
        self._looked = -_CHECKED

    @property
    def words(self) -> str:
        """What can be said of the size in advance."""
        return f"at most {_gib(self.limit)}" + (f", {self.expected} samples" if self.expected else "")

    def check(self, place: Path, samples: int, used: int) -> None:
        """Raise UserError where what is written, or predicted from it, does not fit."""
        if used > self.limit:
            raise self._too_large(f"more than {_gib(self.limit)} of disk, reached at sample {samples}")
        predicted = used
        if self.expected is not None and samples == _TOLD:
            predicted = used * self.expected // samples
            if predicted > self.limit:
                raise self._too_large(f"about {_gib(predicted)} of disk for {self.expected} samples")
        if used - self._looked < _CHECKED and predicted == used:
            return
        self._looked = used
        free = shutil.disk_usage(place).free
        if predicted - used > free * (1 - _SPARED) or free < _CHECKED:
            raise UserError(
                f"{self.name} takes {_gib(predicted)} or more and '{place}' has {_gib(free)} free: pass "
                "--task.stream-samples N for the first N, or set STILLROOM_CACHE to a folder on another disk"
            )

    def _too_large(self, needs: str) -> UserError:
        return UserError(
            f"{self.name} needs {needs}: pass --task.stream-samples N for the first N, or a larger "
            "--task.disk-limit, in GiB"
        )


def kept(root: Path, key: str | None) -> bool:
    """Whether the stream of that key is on disk, whole."""
    return key is not None and _finished(root / key)


def keep(root: Path, key: str | None, cells: Callable[[], Iterator[tuple[Cell, Any]]], room: Room) -> Spooled:
    """The stream that `cells` gives, from disk: as `key` was kept before, or kept now.

    Without a key, or where the stream no longer begins as it did and the kept one is in use, the folder is this
    process's alone and is removed when it ends. Raises UserError where there is no room.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(root, room, error) from error
    lock = None if key is None else _shared(root, root / key, cells, room)
    if key is not None and lock is not None:
        return Spooled(root / key, room.name, lock)
    place = root / f"own-{os.getpid()}-{next(_owned)}"
    lock = _lock(place, fcntl.LOCK_EX)
    _write(root, place, cells(), room)
    spooled = Spooled(place, room.name, lock)
    weakref.finalize(spooled, _remove, place)
    return spooled


def _shared(
    root: Path, place: Path, cells: Callable[[], Iterator[tuple[Cell, Any]]], room: Room
) -> TextIO | None:
    """A shared lock on `place`, now holding the stream; None where it holds another one that is in use."""
    while True:
        lock = _lock(place, fcntl.LOCK_SH)  # waits for a process that is keeping it
        there = _finished(place)
        if there and _begins_alike(Spooled(place, room.name, None), cells()):
            os.utime(place / "about.json")
            return lock
        lock.close()
        taken = _try_lock(place) if there else _lock(place, fcntl.LOCK_EX)
        if taken is None:
            return None
        if there or not _finished(place):
            _write(root, place, cells(), room)
            fcntl.flock(taken, fcntl.LOCK_SH)
            if _finished(place):
                return taken
        taken.close()  # another process was there in between


def _remove(place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
    _lock_file(place).unlink(missing_ok=True)


def _begins_alike(spooled: Spooled, cells: Iterator[tuple[Cell, Any]]) -> bool:
    """Whether the first eight samples are those that were kept."""
    with open(spooled.place / "data.bin", "rb") as file:
        for row, (cell, _) in enumerate(itertools.islice(cells, min(8, len(spooled)))):
            blob = _packed(cell, spooled.where(row))
            if file.read(len(blob)) != blob or file.tell() != spooled._ends[row]:
                return False
    return True


# -- writing ----------------------------------------------------------------------------------------------------


def _write(root: Path, place: Path, cells: Iterable[tuple[Cell, Any]], room: Room) -> None:
    _sweep(root, room.limit)
    warnings.warn(
        f"{room.name} does not fit in memory: it is kept in '{place}' ({room.words}), a folder that is safe to remove",
        stacklevel=2,
    )
    part = _part_of(place)
    for folder in (part, place):
        shutil.rmtree(folder, ignore_errors=True)
    part.mkdir()
    try:
        with (
            open(part / "data.bin", "wb") as data,
            open(part / "ends.bin", "wb") as ends,
            open(part / "labels.jsonl", "w", encoding="utf-8") as labels,
        ):
            about = _pour(cells, data, ends, labels, room)
            data.flush()
            os.fsync(data.fileno())
        write_json(part / "about.json", about)
        part.rename(place)
    except BaseException as error:
        shutil.rmtree(part, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in _DISK:  # not one of the stream's own
            raise _unwritable(root, room, error) from error
        raise


def _unwritable(root: Path, room: Room, error: OSError) -> UserError:
    return UserError(
        f"{room.name} cannot be kept in '{root}' ({error.strerror}): pass --task.stream-samples N for the first N, "
        "or set STILLROOM_CACHE to another folder"
    )


def _pour(
    cells: Iterable[tuple[Cell, Any]], data: BinaryIO, ends: BinaryIO, labels: TextIO, room: Room
) -> dict[str, Any]:
    digest, used, samples = hashlib.sha256(), 0, 0
    for cell, label in cells:
        blob = _packed(cell, f"sample {samples} of {room.name}")
        digest.update(len(blob).to_bytes(8, "little") + blob)
        used, samples = used + len(blob), samples + 1
        room.check(Path(data.name).parent, samples, used)
        data.write(blob)
        ends.write(used.to_bytes(8, "little"))
        labels.write(json.dumps(label) + "\n")
    return {
        "format": FORMAT,
        "name": room.name,
        "samples": samples,
        "bytes": used,
        "digest": digest.hexdigest(),
    }


def _packed(cell: Cell, where: str) -> bytes:
    if isinstance(cell, bytes):
        return _FILE + cell
    if isinstance(cell, Tensor):
        return _TENSOR + save({"x": cell.contiguous()})
    file = io.BytesIO()
    # the two modes that pictures are used in; PNG has not all of PIL's
    decoded(cell, "L" if channels_of(cell, where) == 1 else "RGB", where).save(file, "PNG", compress_level=1)
    return _FILE + file.getvalue()


def _unpacked(blob: bytes, where: str) -> Picture:
    if blob[:1] == _TENSOR:
        return load(blob[1:])["x"]
    return opened(blob[1:], where)


def _finished(place: Path) -> bool:
    """Whether all of it is there."""
    try:
        about = read_json(place / "about.json")
        sizes = [os.path.getsize(place / name) for name in ("data.bin", "ends.bin")]
    except (OSError, UserError):
        return False
    return (
        isinstance(about, dict)
        and about.get("format") == FORMAT
        and sizes == [about.get("bytes"), 8 * about.get("samples", -1)]
    )


# -- what is kept at all ------------------------------------------------------------------------------------------


def _sweep(root: Path, limit: int) -> None:
    """Remove what killed processes left, and the streams unused for longest until the rest takes `limit` bytes.

    Streams that a process uses are left alone.
    """
    unused: list[tuple[float, int, Path]] = []
    total = 0
    for file in root.glob("*.lock"):
        place = file.with_suffix("")
        size, used_at = _size_and_time(place)
        total += size
        lock = _try_lock(place)
        if lock is None:
            continue
        shutil.rmtree(_part_of(place), ignore_errors=True)
        if place.name.startswith("own-"):
            _remove(place)
            total -= size
        elif size:
            unused.append((used_at, size, place))
        lock.close()
    for _, size, place in sorted(unused):
        if total <= limit:
            break
        lock = _try_lock(place)
        if lock is not None:
            shutil.rmtree(place, ignore_errors=True)
            total -= size
            lock.close()


def _size_and_time(place: Path) -> tuple[int, float]:
    """Bytes of the samples at `place`, 0 where there are none, and when they were last opened."""
    try:
        return (place / "data.bin").stat().st_size, (place / "about.json").stat().st_mtime
    except OSError:
        return 0, 0.0


def _part_of(place: Path) -> Path:
    """Where what is to be `place` is written."""
    return place.with_name(f".{place.name}")


def _lock_file(place: Path) -> Path:
    return place.with_name(f"{place.name}.lock")


def _lock(place: Path, kind: int) -> TextIO:
    """Wait for the lock on `place`; it is let go of when the file is closed."""
    file = open(_lock_file(place), "a")  # noqa: SIM115
    fcntl.flock(file, kind)
    return file


def _try_lock(place: Path) -> TextIO | None:
    file = open(_lock_file(place), "a")  # noqa: SIM115
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return file
    except OSError:
        file.close()
        return None


def _gib(size: int) -> str:
    return f"{size / 2**30:.3g} GiB"

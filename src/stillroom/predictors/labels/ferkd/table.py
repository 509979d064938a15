"""The table of crops and labels: made by asking the teacher once, kept in the cache, carried as a folder."""

from __future__ import annotations

import time
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from stillroom.caching import cache
from stillroom.checkpoint import load_tensors, read_json, save_tensors, write_json
from stillroom.config import digest
from stillroom.data import Source
from stillroom.errors import UserError
from stillroom.keeping import GIB
from stillroom.kept import look, teacher_digest
from stillroom.predictors.parts.compression import Compression, Precision, bytes_of, compress, recover
from stillroom.predictors.parts.crops import Cropping, draw_crops, replay, size_of
from stillroom.runtime import Runtime
from stillroom.store import Store, filled
from stillroom.teacher import Teacher

FORMAT, BLOCK = 1, 250
"""Of what is in a table, and images in a block of it."""
AT_ONCE = 256
"""Crops that the teacher is asked about at once, the same ones whoever asks."""
BESIDE = 4 * 4 + 1 + 4
"""Bytes of a crop's box, flip and confidence."""
ABOUT = "table.json"


@dataclass(frozen=True)
class Labelling:
    """How a table is made: what crops, and what is kept of the teacher's answers."""

    crops: int
    seed: int
    compression: Compression
    top_k: int
    precision: Precision
    temperature: float

    def bytes(self, images: int, classes: int) -> int:
        """What a table of so many images takes."""
        label = bytes_of(self.compression, classes, self.top_k, self.precision)
        return images * self.crops * (label + BESIDE)

    def see_room(self, images: int, classes: int, limit: float) -> None:
        """Raise UserError where that is above `limit` GiB."""
        size = self.bytes(images, classes) / GIB
        if size > limit:
            raise UserError(
                f"a table of {self.crops} crops of {images:,} images takes {size:.3g} GiB, above --method.table-limit "
                f"{limit:g}: raise it, or pass --method.stored or --method.compression marginal-smoothing"
            )


class Table:
    """Crops of N images, K of each, and what the teacher said of them; rows are read from disk where they are many."""

    def __init__(self, store: Store) -> None:
        self.store, self.about = store, store.about["made of"]
        self.compression, self.classes = self.about["compression"], int(self.about["classes"])

    def __len__(self) -> int:
        return len(self.store)

    @property
    def crops(self) -> int:
        """K."""
        return int(self.about["crops"])

    def places(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes [n, K, 4], as fractions (top, left, height, width), and flips [n, K] of the images `ids` [n]."""
        return self.store.stored("boxes", ids), self.store.stored("flips", ids)

    @property
    def confidence(self) -> Tensor:
        """The largest probability of each label as it was before it was made small, float32 [N, K]."""
        return self.store.rows("confidence")

    def labels(self, ids: Tensor, picks: Tensor) -> Tensor:
        """Labels [n, classes] of the crops `picks` [n] of the images `ids` [n]."""
        names = [name for name in ("values", "classes") if name in self.store.arrays]
        rows = torch.arange(len(ids))
        kept = {name: self.store.stored(name, ids)[rows, picks] for name in names}
        return recover(kept, self.compression, self.classes)

    def save(self, folder: Path) -> None:
        """Write the table to `folder`: safetensors of 250 images each, and table.json, written last."""
        folder.mkdir(parents=True, exist_ok=True)
        for number, rows in enumerate(self.store.blocks):
            ids = torch.tensor(rows)
            tensors = {name: self.store.stored(name, ids) for name in self.store.arrays}
            save_tensors(folder / _shard(number), tensors)
        write_json(
            folder / ABOUT, {"count": len(self), "block": self.store.block, "format": FORMAT, **self.about}
        )


def _shard(number: int) -> str:
    return f"crops-{number:05d}.safetensors"


def _labels_sum(source: Source) -> int:
    assert source.labels is not None
    return zlib.crc32(source.labels.contiguous().numpy().tobytes())


def made_table(
    source: Source,
    teacher: Teacher,
    cropping: Cropping,
    how: Labelling,
    classes: int,
    about: Mapping[str, Any],
) -> tuple[Table, float]:
    """The table of the images of `source`, and the seconds that asking `teacher` took; 0 where it was kept.

    It is kept under a name made of all that determines it, the student not among them. `cropping.size` is the size at
    which the teacher sees a crop, bicubic; `about` tells of the data. Processes that ask at once share the work.
    """
    seconds, device = 0.0, Runtime().device
    key = {
        "format": FORMAT,
        **asdict(how),
        "cropping": asdict(cropping),
        "classes": classes,
        "teacher": teacher_digest(teacher.module),
        "network": teacher.name,
        "samples": len(source),
        "look": look(source),
        "labels": _labels_sum(source),
        **about,
    }

    def make(rows: range) -> dict[str, Tensor]:
        nonlocal seconds
        began = time.perf_counter()
        made = _answered(source, teacher.to(device), cropping, how, rows, device)
        seconds += time.perf_counter() - began
        return made

    folder = cache() / "stores" / f"crops-{digest(key)}"
    store = filled(folder, len(source), BLOCK, make, "images' crop labels", key)
    return Table(store), seconds


def _answered(
    source: Source, teacher: Teacher, cropping: Cropping, how: Labelling, rows: range, device: torch.device
) -> dict[str, Tensor]:
    """What the table holds of some images: drawn boxes and flips, and q = softmax(v / T) made small."""
    whole, _ = source.fetch(torch.tensor(rows), None)
    boxes, flips = draw_crops(how.seed, rows, how.crops, size_of(whole), cropping)
    parts = []
    for some in torch.arange(len(rows)).split(max(1, AT_ONCE // how.crops)):
        crops = [
            replay(whole[i], box, bool(flip), cropping.size, "bicubic")
            for i in some.tolist()
            for box, flip in zip(boxes[i], flips[i], strict=True)
        ]
        logits = [teacher.answer(torch.stack(part).to(device)).float() for part in _parts(crops)]
        q = (torch.cat(logits).cpu() / how.temperature).softmax(-1).unflatten(0, (len(some), how.crops))
        kept = compress(q, how.compression, how.top_k, how.precision)
        parts.append({**kept, "confidence": q.amax(-1)})
    made = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return {"boxes": boxes, "flips": flips, **made}


def _parts(crops: list[Tensor]) -> list[list[Tensor]]:
    """At most so many crops as are asked about at once; an image may have more."""
    return [crops[start : start + AT_ONCE] for start in range(0, len(crops), AT_ONCE)]


def read_about(folder: Path) -> dict[str, Any]:
    """What a table's folder says of itself; UserError where it holds none."""
    place = folder / ABOUT
    if not place.is_file():
        raise UserError(
            f"--method.table '{folder}' holds no table (no {ABOUT}): pass the folder of --method.save-table"
        )
    about = read_json(place)
    known = {"count": int, "block": int, "crops": int, "classes": int, "labels": int, "compression": str}
    sound = isinstance(about, dict) and all(type(about.get(key)) is kind for key, kind in known.items())
    if not sound or about.get("format") != FORMAT or about["compression"] not in get_args(Compression):
        raise UserError(f"'{place}' is no table's: restore it, or make the table anew")
    return about


def see_fits(about: Mapping[str, Any], folder: Path, source: Source, classes: int) -> None:
    """Raise UserError where the table is of other images than those of `source`, by their number and labels."""
    there = f"{about['count']:,} images and {about['classes']} classes"
    if about["count"] != len(source) or about["classes"] != classes:
        raise UserError(
            f"the table '{folder}' is of {there}, the data have {len(source):,} and {classes}: pass the data that it "
            "was made of"
        )
    if about["labels"] != _labels_sum(source):
        raise UserError(
            f"the table '{folder}' is of images with other labels, or in another order: pass the data that it was made "
            "of"
        )


def carried_table(folder: Path) -> Table:
    """The table in `folder`, which needs no teacher; what is in its shards is laid out in the cache."""
    about = read_about(folder)
    count, block = about["count"], about["block"]
    more = {key: value for key, value in about.items() if key not in ("count", "block")}
    shards = [folder / _shard(number) for number in range(-(-count // block))]
    sums = [zlib.crc32(shard.read_bytes()) if shard.is_file() else 0 for shard in shards]
    place = cache() / "stores" / f"crops-{digest({'about': about, 'sums': sums})}"

    def make(rows: range) -> dict[str, Tensor]:
        return load_tensors(shards[rows.start // block])

    return Table(filled(place, count, block, make, "images' crop labels", more))

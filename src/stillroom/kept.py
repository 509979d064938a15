"""A teacher's answers to a source of samples, made once and read back in place of the teacher.

An answer is a function of (teacher, sample id, view): `view` is None for data that are not augmented, else the seed
of an epoch's augmentation, so that what is kept is the answer to the very image that the student sees. On disk, the
answers to a view are made in one go when its first batch asks: in the order of the ids, so many at once as the size
of an answer alone says. So they are the same bits whatever the run's batch size, processes and seed, and whoever
makes them; and a run that makes them reads them back, rounded as they are, like every later run.

A view on disk is a `stillroom.store` below the cache, under a name made of the teacher's structure and weights, the
data's fingerprint, samples and labels, what some samples look like (augmented by a view that is always the same, which
tells one augmentation from another), and the view. The inputs of the first batch of each view are held against those
that were answered; in the first view of a fit, some answers against the teacher's own.
"""

from __future__ import annotations

import hashlib
import re
import time
import warnings
import zlib
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from stillroom.answers import Answer, Dense, TopK, decode, encode
from stillroom.checkpoint import weights
from stillroom.config import digest
from stillroom.errors import UserError
from stillroom.keeping import GIB, Keep, home, see_room
from stillroom.store import ABOUT, IN_MEMORY, Store, filled

if TYPE_CHECKING:
    from stillroom.data.source import Source
    from stillroom.method import Batch
    from stillroom.teacher import Teacher

FORMAT = 1
"""Of what is in a store of answers."""
ROWS, NUMBERS = 64, 2**24
"""Samples that the teacher is asked about at once for the disk, and scores that it then gives at most."""
BLOCK, SHARES = 2**24, 16
"""A block on disk has about so many bytes, and at most this part of all samples."""
HELD = 4 * GIB
"""Bytes of answers that are kept in memory at most."""
PROBES, COMPARED = 32, 4
"""Inputs that tell what samples look like; answers that are held against the teacher's own."""
CLOSE = 0.02
"""Two answers are the same up to this share of their range: rounding is far below, another teacher far above."""

# -- what makes an answer ---------------------------------------------------------------------------------------


def teacher_digest(module: nn.Module) -> str:
    """A digest of a network's structure, as it prints, and of its weights."""
    found = hashlib.sha256(re.sub(r" at 0x[0-9a-f]+", "", repr(module)).encode())
    for name, value in sorted(weights(module).items()):
        if hasattr(value, "full_tensor"):
            raise UserError(
                "the teacher is sharded over processes, and only whole teachers' answers are kept: pass "
                "--engine.keep-teacher no"
            )
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def checksums(x: Tensor) -> Tensor:
    """The CRC-32 of each sample of x [n, ...], int64 [n]."""
    rows = x.detach().cpu().contiguous().reshape(len(x), -1).view(torch.uint8).numpy()
    return torch.tensor([zlib.crc32(row.data) for row in rows])


def look(source: Source) -> list[int]:
    """Checksums of some samples, spread over all: what tells one augmentation, or choice of samples, from another."""
    ids = (torch.arange(PROBES) * len(source) // PROBES).unique()
    return checksums(source.fetch(ids, None if source.fixed else 0)[0]).tolist()


def alike(one: Answer, other: Dense) -> bool:
    """Whether answers [n, ...] are the first of `other`'s, up to rounding."""
    theirs = other.logits[: len(one.logits)].float()
    if isinstance(one, TopK):
        theirs = theirs.log_softmax(-1)
        apart = (one.values - theirs.gather(-1, one.indices)).abs().amax(-1)
    else:
        apart = (one.logits.float() - theirs).abs().amax(-1)
    return bool((apart <= CLOSE * (theirs.amax(-1) - theirs.amin(-1)) + 1e-5).all())


# -- keeping ------------------------------------------------------------------------------------------------------


class Keeper:
    """The answers of one teacher to one source, by view."""

    def __init__(self, teacher: Teacher, source: Source, size: int, keep: Keep) -> None:
        self.teacher, self.source, self.size, self.keep = teacher, source, size, keep
        self.seconds = 0.0
        self._refused, self._classes, self._at_once, self._block = False, 0, 0, 0
        self._key: dict[str, Any] = {}
        self._held: dict[int | None, dict[str, Tensor]] = {}
        self._stores: dict[int | None, Store] = {}

    @property
    def bytes(self) -> int:
        """What the answers that were asked for so far take, on disk or in memory."""
        if self.keep.where == "disk":
            return sum(store.bytes for store in self._stores.values())
        return sum(v.numel() * v.element_size() for rows in self._held.values() for v in rows.values())

    def to(self, device: torch.device) -> None:
        """Move what is held in memory."""
        self._held = {view: {n: t.to(device) for n, t in rows.items()} for view, rows in self._held.items()}

    def answer(self, batch: Batch) -> Answer | None:
        """The answer to a batch; None where those to its view are not kept."""
        view = batch.view
        if self._refused or (view is not None and not self.keep.views):
            return None
        if view not in self._held and view not in self._stores:
            began = time.perf_counter()
            self._refused = not (self._store(batch) if self.keep.where == "disk" else self._remember(batch))
            self.seconds += time.perf_counter() - began
            if self._refused:
                return None
        return decode(self._picked(batch), self._classes, self.teacher.watched)

    def _picked(self, batch: Batch) -> dict[str, Tensor]:
        """The rows of a batch; a view that fits in memory is held there, so that no step waits for its ids."""
        view, device = batch.view, batch.x.device
        if view not in self._held:
            store = self._stores[view]
            names = [name for name in store.arrays if name != "input"]
            if store.bytes > IN_MEMORY:
                ids = batch.index.cpu()
                return {name: store.stored(name, ids).to(device) for name in names}
            self._held = {view: {name: store.stored(name).to(device) for name in names}}
            store.forget()
        return {name: value.index_select(0, batch.index) for name, value in self._held[view].items()}

    # -- in memory ----------------------------------------------------------------------------------------------

    def _remember(self, batch: Batch) -> bool:
        """Answer all samples in the batch's view; False where the answers are too many."""
        parts: list[dict[str, Tensor]] = []
        for ids in torch.arange(len(self.source)).split(self.size):
            x = self.source.fetch(ids, batch.view)[0].to(batch.x.device)
            parts.append(encode(self._answered(x), "float32"))
            if len(parts) == 1 and not self._fits(parts[0]):
                return False
        self._held[batch.view] = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return True

    def _answered(self, x: Tensor) -> Answer:
        answer = self.teacher.ask(x)
        self._classes = answer.logits.shape[-1]
        return self.keep.cut(answer)

    def _fits(self, first: dict[str, Tensor]) -> bool:
        row = sum(value[:1].numel() * value.element_size() for value in first.values())
        size = row * len(self.source) * max(1, self.keep.views)
        if size <= min(HELD, self.keep.limit * GIB):
            return True
        warnings.warn(
            f"the answers of teacher '{self.teacher.name}' to {len(self.source):,} samples take {size / GIB:.3g} GiB, "
            "more than is kept in memory, so it is asked at every step: --engine.keep-teacher disk or "
            "--engine.keep-top-k keeps them",
            stacklevel=5,
        )
        return False

    # -- on disk ------------------------------------------------------------------------------------------------

    def _store(self, batch: Batch) -> bool:
        """See that the answers to the batch's view are there; False where they are no function of a sample."""
        view, device, count = batch.view, batch.x.device, len(self.source)
        own = None if self._key else self._own(view, device)
        key = {**self._key, "view": view}
        folder = home() / digest(key)
        if own is not None and not (folder / ABOUT).is_file() and not self._settled(own, view, device):
            return False
        store = filled(
            folder, count, self._block, lambda rows: self._rows(rows, view, device), "answers", key
        )
        if own is not None:
            self._see_answers(store, own)
        self._see_inputs(store, batch)
        self._stores[view] = store
        return True

    def _own(self, view: int | None, device: torch.device) -> Dense:
        """Some answers of the teacher's own; settles what determines all of them, and how they are made."""
        teacher, count, labels = self.teacher, len(self.source), self.source.labels
        some = torch.arange(min(COMPARED, count))
        own = teacher.ask(self.source.fetch(some, view)[0].to(device))
        row = self.keep.bytes_a_sample(own)
        see_room(self.keep, row, count, teacher.name)
        self._classes = own.logits.shape[-1]
        self._at_once = max(1, min(ROWS, NUMBERS * len(own.logits) // own.logits.numel()))
        most = min(BLOCK // row, -(-count // SHARES))
        self._block = max(1, -(-most // self._at_once)) * self._at_once
        self._key = {
            "format": FORMAT,
            "teacher": teacher_digest(teacher.module),
            "network": teacher.name,
            "forward": self.keep.forward,
            "watched": [list(teacher.watched), teacher.whole],
            "top_k": self.keep.top_k,
            "precision": self.keep.precision,
            "data": self.keep.data,
            "samples": count,
            "look": look(self.source),
            "labels": None if labels is None else zlib.crc32(labels.contiguous().numpy().tobytes()),
        }
        return own

    def _settled(self, own: Dense, view: int | None, device: torch.device) -> bool:
        """Whether the teacher says the same of a sample alone and among others, and at another look."""
        more = torch.arange(min(ROWS, len(self.source)))
        if alike(own, self.teacher.ask(self.source.fetch(more, view)[0].to(device))):
            return True
        warnings.warn(
            f"what teacher '{self.teacher.name}' says of a sample changes with its batch or from look to look: it is "
            "asked at every step, and nothing is kept",
            stacklevel=5,
        )
        return False

    def _rows(self, rows: range, view: int | None, device: torch.device) -> dict[str, Tensor]:
        """What is kept of a block of samples."""
        parts = []
        for ids in torch.arange(rows.start, rows.stop).split(self._at_once):
            x = self.source.fetch(ids, view)[0]
            made = encode(self._answered(x.to(device)), self.keep.precision)
            parts.append({name: value.cpu() for name, value in made.items()} | {"input": checksums(x)})
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _see_answers(self, store: Store, own: Dense) -> None:
        ids = torch.arange(len(own.logits))
        rows = {
            name: store.stored(name, ids).to(own.logits.device) for name in store.arrays if name != "input"
        }
        if not alike(decode(rows, self._classes, self.teacher.watched), own):
            raise UserError(
                f"the kept answers '{store.folder}' are not what teacher '{self.teacher.name}' says now: remove that "
                "folder, they are then made anew"
            )

    def _see_inputs(self, store: Store, batch: Batch) -> None:
        ids = batch.index.cpu()
        odd = ids[store.stored("input", ids) != checksums(batch.x)]
        if len(odd):
            raise UserError(
                f"sample {int(odd[0])} is not the one that the kept answers '{store.folder}' are about: remove that "
                "folder, or pass --engine.keep-teacher no where the data are not the same at every look"
            )

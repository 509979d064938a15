"""What a run keeps of its teacher's answers, where, and whether there is room for it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from stillroom.answers import Answer, Dense, Kept, encode, top_k
from stillroom.caching import cache
from stillroom.errors import UserError, require

if TYPE_CHECKING:
    from stillroom.data.source import Source
    from stillroom.engine import Engine
    from stillroom.method import Method
    from stillroom.plan import Plan
    from stillroom.task import Task

Where = Literal["no", "memory", "disk"]
GIB = 2**30
INPUT_BYTES = 8
"""Bytes a sample of the checksum of its input."""


@dataclass(frozen=True)
class Keep:
    """What is kept of a teacher's answers, and where."""

    where: Literal["memory", "disk"] = "memory"
    views: int = 0
    """Augmented views that are kept, as many as the fit will see; 0 keeps the answers to data as they are, alone."""
    top_k: int = 0
    """Scores that are kept of each answer, the largest; 0 keeps all."""
    precision: Kept = "float16"
    """Of the answers on disk; in memory they are float32."""
    limit: float = 20.0
    """GiB that all views together may take."""
    data: str = ""
    """The fingerprint of the data."""
    forward: str = "float32"
    """Precision of the teacher's forward pass."""

    def cut(self, answer: Dense) -> Answer:
        """What is kept of an answer."""
        return top_k(answer, self.top_k) if self.top_k else answer

    def bytes_a_sample(self, answer: Dense) -> int:
        """What an answer like this one takes on disk, a sample."""
        rows = encode(self.cut(answer), self.precision).values()
        return sum(row[:1].numel() * row.element_size() for row in rows) + INPUT_BYTES


def check(engine: Engine) -> None:
    """Raise UserError for an option of keeping that is out of its range."""
    for name, known in (
        ("keep_teacher", ("no", "memory", "disk")),
        ("keep_precision", ("float16", "float32")),
    ):
        if getattr(engine, name) not in known:
            value = getattr(engine, name)
            raise UserError(f"--engine.{name.replace('_', '-')} is {value!r}: pass {' or '.join(known)}")
    require("--engine.keep-top-k", engine.keep_top_k, 0)
    require("--engine.keep-views", engine.keep_views, 0)
    require("--engine.keep-limit", engine.keep_limit, 0, ends="(]")


def chosen(engine: Engine, plan: Plan, source: Source, task: Task) -> Keep | None:
    """What the options of `engine` keep of the answers to `source`; None where that is nothing.

    Augmented data are kept on disk, or where their views come round.
    """
    if engine.keep_teacher == "no":
        return None
    disk, epochs = engine.keep_teacher == "disk", plan.clock(0).epochs
    views = 0 if source.fixed else min(plan.views or epochs, epochs)
    if views and not (disk or plan.views):
        return None
    return Keep(
        "disk" if disk else "memory",
        views,
        engine.keep_top_k,
        engine.keep_precision,
        engine.keep_limit,
        task.fingerprint() if disk else "",
        engine.precision,
    )


def foresee(engine: Engine, task: Task, method: Method) -> None:
    """Raise UserError, before anything is trained, where the answers to the task's data have no room on disk.

    A method that trains on data of its own is looked at when it does.
    """
    from stillroom.method import Method as Base
    from stillroom.plan import Plan

    if engine.keep_teacher != "disk" or not method.uses_teacher or type(method).source is not Base.source:
        return
    source, teacher = task.train(), task.make_teacher()
    plan = Plan(len(source), engine.batch_size, engine.epochs, 0, engine.steps, engine.keep_views)
    keep = chosen(engine, plan, source, task)
    try:
        answer = teacher.ask(task.example())
    except Exception:
        return  # A teacher that answers to more than a sample, a denoiser say, is not asked for what is kept.
    if keep is not None:
        see_room(keep, keep.bytes_a_sample(answer), len(source), teacher.name)


def see_room(keep: Keep, row: int, samples: int, teacher: str) -> None:
    """Raise UserError where answers of `row` bytes a sample are above the limit, or above what the disk has.

    What the cache holds of answers counts as room: these may be among them.
    """
    views = max(1, keep.views)
    size, folder = row * samples * views, home()
    room = shutil.disk_usage(_existing(folder)).free + sum(f.stat().st_size for f in folder.rglob("*.npy"))
    what = (
        f"the answers of teacher '{teacher}' to {samples:,} samples in {views} view{'s' * (views > 1)} take "
        f"{size / GIB:.3g} GiB"
    )
    way = "--engine.keep-top-k, --engine.keep-views or --engine.keep-teacher no"
    if size > keep.limit * GIB:
        raise UserError(f"{what}, above --engine.keep-limit {keep.limit:g}: raise it, or pass {way}")
    if size > 0.95 * room:
        raise UserError(
            f"{what}, and '{folder}' has room for {room / GIB:.3g}: set STILLROOM_CACHE to a folder on another "
            f"disk, or pass {way}"
        )


def home() -> Path:
    """The folder of all answers that are kept on disk."""
    return cache() / "answers"


def _existing(folder: Path) -> Path:
    """The folder, or the nearest above it that there is."""
    return folder if folder.is_dir() else _existing(folder.parent)

"""Teachers are trained once and kept, under a key made of everything that determines them."""

from __future__ import annotations

import os
import shutil
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor, nn

from stillroom import checkpoint
from stillroom.caching import cache
from stillroom.config import digest, to_plain
from stillroom.engine import Engine, Watcher
from stillroom.errors import UserError, reason
from stillroom.facts import versions
from stillroom.runtime import Runtime
from stillroom.task import Task, TeacherJob

TRACELESS = (
    "workers",
    "shard",
    "log_every",
    "evaluate_every",
    "checkpoint_every",
    "checkpoint_seconds",
    "keep_checkpoints",
    "keep_teacher",
    "keep_top_k",
    "keep_precision",
    "keep_limit",
    "keep_views",
)
"""Options of the Engine that leave no trace in a teacher's weights."""


@dataclass(frozen=True)
class Taught:
    """How the teacher came about."""

    seconds: float
    """Seconds that its training took, now or when it was kept; 0 for weights from outside."""
    kept: bool
    """Whether it was there already."""


def teach(task: Task, engine: Engine, folder: Path | None, watcher: Callable[[], Watcher]) -> Taught:
    """Give `task` its teacher: from outside, from the cache, or trained now in `folder` and then kept.

    A training that was killed goes on from its checkpoints in `folder`.
    """
    job = task.teacher_job(engine)
    if job is None:
        return Taught(0.0, kept=True)
    network, taught = train_once(job, folder, watcher)
    task.teach(network)
    return taught


def train_once(
    job: TeacherJob, folder: Path | None = None, watcher: Callable[[], Watcher] = Watcher
) -> tuple[nn.Module, Taught]:
    """The network that `job` trains: from the cache, or trained now and then kept."""
    # the student's views come round, not its own
    job = replace(job, engine=replace(job.engine, keep_views=0))
    place = place_of(job)
    job.method.bind(job.task, job.seed)
    network = job.method.product()
    if (place / "about.json").is_file():
        seconds, weights = _kept(place)
        checkpoint.load_weights(network, weights, place)
        return network, Taught(seconds, kept=True)
    result = job.engine.fit(job.method, job.task, job.seed, folder, watcher())
    runtime = Runtime()
    if runtime.main:
        try:
            _keep(place, job, result.product, result.seconds)
        except OSError as error:  # a teacher in hand is not given up for a cache that is full or not writable
            warnings.warn(
                f"the teacher is not kept, '{cache()}' refuses it ({reason(error)}): another run trains its own, "
                "unless STILLROOM_CACHE is a folder on another disk",
                stacklevel=2,
            )
    runtime.barrier()
    return result.product, Taught(result.seconds, kept=False)


def place_of(job: TeacherJob) -> Path:
    """The folder that the teacher is kept in once it is trained."""
    return cache() / "teachers" / digest(_key(job))


def _key(job: TeacherJob) -> dict[str, object]:
    engine = {k: v for k, v in to_plain(job.engine).items() if k not in TRACELESS}
    made_with = {k: v for k, v in versions().items() if k in ("stillroom", "torch")}
    return {
        "method": [job.method.name, to_plain(job.method)],
        "task": to_plain(job.task),
        "engine": engine,
        "seed": job.seed,
        "versions": made_with,
        **job.key,
    }


def _kept(place: Path) -> tuple[float, dict[str, Tensor]]:
    """Seconds of training and weights of the teacher that is kept at `place`."""
    weights = place / "weights.safetensors"
    try:
        about = checkpoint.read_json(place / "about.json")
        if about.get("sum", checkpoint.checksum(weights)) != checkpoint.checksum(weights):
            raise ValueError("the weights are not those that were written")
        return float(about["seconds"]), checkpoint.load_tensors(weights)
    except (UserError, AttributeError, KeyError, OSError, TypeError, ValueError):
        raise UserError(
            f"the kept teacher '{place}' is damaged: remove that folder, it is then trained anew"
        ) from None


def _keep(place: Path, job: TeacherJob, product: nn.Module, seconds: float) -> None:
    """Put the teacher in the cache by one rename; of two that do so at once, either may win: they are equal."""
    place.parent.mkdir(parents=True, exist_ok=True)
    part = place.with_name(f".{place.name}-{os.getpid()}")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir()
        checkpoint.save_tensors(part / "weights.safetensors", checkpoint.weights(product))
        about = {"seconds": seconds, "made": time.time(), "key": _key(job)}
        about["sum"] = checkpoint.checksum(part / "weights.safetensors")
        checkpoint.write_json(part / "about.json", about)
    except OSError:
        shutil.rmtree(part, ignore_errors=True)
        raise
    if place.is_dir() and not (place / "about.json").is_file():
        shutil.rmtree(place)  # what is left of a damaged one
    try:
        os.replace(part, place)
    except OSError:
        shutil.rmtree(part, ignore_errors=True)

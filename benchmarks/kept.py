"""Ten epochs with kept answers: first and second student, beside a loop with ready soft labels, and beside peers.

    python benchmarks/kept.py [fixed|augmented ...] [--repetitions 5] [--teacher resnet:16-32-64] [--samples 640]

Random images 3x32x32 in ten classes; the teacher is much larger than the student. What is timed is the first step to
the last, the making of answers and the log included; each fit begins with a teacher that has not been asked, and the
first student's with an empty cache. "soft labels ready" is what a student costs that has them in memory: a loop in
plain torch. torchdistill is measured where it is installed, mdistiller where MDISTILLER is a clone of it.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import peers
from harness import Arm, Stopwatch, interleave, ratio, rows, save, table
from problem import Problem, difference, fit, hinton, kd, noise, sgd
from stillroom import metrics
from stillroom.data import TensorSource
from stillroom.data.augment import augmentation
from stillroom.keeping import Keep
from stillroom.method import Batch, Clock, Noise
from stillroom.plan import Plan, view_of
from stillroom.teacher import Teacher

ALONE, READY = "no teacher, labels alone", "soft labels ready"
ONLINE, MEMORY = "online", "kept in memory, first student"
FIRST, SECOND = "kept on disk, first student", "kept on disk, second student"
TOP, ROUND = "the 3 largest kept, second student", "2 views that come round, first student"
STUDENT, EPOCHS, SHAPE = "cnn:8-16", 10, (3, 32, 32)


def plan(problem: Problem) -> Plan:
    """The order of the samples."""
    return Plan(len(problem.source), problem.batch, problem.epochs, problem.seed)


def view(problem: Problem, epoch: int) -> int | None:
    """The epoch's augmentation."""
    return None if problem.source.fixed else view_of(problem.seed, epoch)


def batches(problem: Problem) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """Epoch, ids, inputs and labels of all steps, those of the Engine."""
    order = plan(problem)
    for epoch in range(problem.epochs):
        for ids in order.order(epoch).split(problem.batch):
            x, y = problem.source.fetch(ids, view(problem, epoch))
            assert y is not None
            yield epoch, ids, x, y


def ready(problem: Problem, targets: Mapping[int | None, Tensor], watch: Stopwatch) -> nn.Module:
    """A loop in plain torch on soft labels that are in memory."""
    student = problem.student().train()
    optimizer = sgd(student, fused=True)
    watch.start()
    for epoch, ids, x, y in batches(problem):
        hinton(student(x), targets[view(problem, epoch)].index_select(0, ids), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    watch.stop()
    return student


def alone(problem: Problem, watch: Stopwatch) -> nn.Module:
    """A loop in plain torch that knows of no teacher."""
    student = problem.student().train()
    optimizer = sgd(student, fused=True)
    watch.start()
    for _, _, x, y in batches(problem):
        F.cross_entropy(student(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    watch.stop()
    return student


def ready_answers(problem: Problem) -> dict[int | None, Tensor]:
    """All answers as they are kept, by view."""
    teacher, ids = Teacher(problem.teacher()), torch.arange(len(problem.source))
    views = {view(problem, epoch) for epoch in range(problem.epochs)}
    teacher.keep(problem.source, problem.batch, Keep("disk", views=len(views)))
    found = {}
    for each in views:
        x, y = problem.source.fetch(ids, each)
        assert y is not None
        whole = Noise(lambda draw: draw, slice(0, len(ids)), len(ids), x.device)
        found[each] = teacher(Batch(x, y, ids, Clock(0, 1, 0, 1), whole, each)).logits
    return found


def stillroom(problem: Problem, cache: Path | None, watch: Stopwatch, **options: Any) -> nn.Module:
    """The Engine, with a cache of its own, or one that is empty."""
    with tempfile.TemporaryDirectory() as empty:
        os.environ["STILLROOM_CACHE"] = str(cache or empty)
        return fit(problem, kd(), watch, teacher=Teacher(problem.teacher()), **options)


@dataclass(frozen=True)
class Part:
    """A problem, its arms, and what the second students' caches hold."""

    problem: Problem
    arms: dict[str, Arm]
    bytes: dict[str, int]


def arms(problem: Problem, root: Path) -> Part:
    """The ways to the same weights, with the caches of the second students filled."""
    whole, top = root / "whole", root / "top"
    os.environ["STILLROOM_CACHE"] = str(whole)
    run = partial(stillroom, problem)
    found: dict[str, Arm] = {
        ALONE: partial(alone, problem),
        READY: partial(ready, problem, ready_answers(problem)),
        ONLINE: partial(run, None, keep="no"),
        FIRST: partial(run, None, keep="disk"),
        SECOND: partial(run, whole, keep="disk"),
        TOP: partial(run, top, keep="disk", keep_top_k=3),
    }
    for arm in (SECOND, TOP):
        found[arm](Stopwatch())
    sizes = {SECOND: written(whole), TOP: written(top)}
    if problem.source.fixed:
        found[MEMORY] = partial(run, None, keep="memory")
        theirs: dict[str, Callable[[Problem, Stopwatch], nn.Module]] = {}
        if find_spec("torchdistill"):
            theirs["torchdistill"] = peers.torchdistill
        if os.environ.get("MDISTILLER"):
            theirs["mdistiller"] = peers.mdistiller
        found |= {name: partial(peer, problem) for name, peer in theirs.items()}
    else:
        found[ROUND] = partial(run, None, keep="disk", keep_views=2)
    return Part(problem, found, sizes)


def written(cache: Path) -> int:
    """Bytes of all files of kept answers."""
    return sum(path.stat().st_size for path in (cache / "answers").rglob("*") if path.is_file())


def problem_of(part: str, teacher: str, samples: int) -> Problem:
    """Random images, augmented or as they are."""
    fixed = noise(SHAPE, samples, 10, (teacher, STUDENT), EPOCHS)
    if part == "fixed":
        return fixed
    x, y = fixed.source.x, fixed.source.labels
    return replace(fixed, source=TensorSource(x, y, augmentation("crop-flip", SHAPE)))


def measure(part: str, teacher: str, samples: int, repetitions: int, root: Path) -> list[dict[str, Any]]:
    """One table: CPU time to the end of ten epochs, and how far the weights are from the online ones."""
    made = arms(problem_of(part, teacher, samples), root)
    times, ends = interleave(made.arms, repetitions)
    found, online = rows(times, READY), rows(times, ONLINE)
    lines, kept = [], []
    networks = (made.problem.teacher(), made.problem.student())
    sizes = [metrics.multiply_adds(network, SHAPE) for network in networks]
    for arm, row in found.items():
        to_online, to_ready = difference(ends[arm], ends[ONLINE]), difference(ends[arm], ends[READY])
        size = made.bytes.get(arm, made.bytes[SECOND] if arm == FIRST else 0)
        lines.append(
            (arm, f"{row['cpu_ms']:.0f}", f"{row['wall_ms']:.0f}", f"{online[arm]['ratio']:.3f}", ratio(row),
             f"{size:,}" if size else "-", to_online, to_ready)
        )  # fmt: skip
        about = {"part": part, "arm": arm, "teacher": teacher, "student": STUDENT, "samples": samples}
        about |= {"epochs": EPOCHS, "repetitions": repetitions, "multiply_adds_ratio": sizes[0] / sizes[1]}
        about |= {"bytes": size, "to_online": to_online, "to_ready": to_ready}
        kept.append({**about, **row, "ratio_to_online": online[arm]["ratio"]})
    title = (
        f"Kept answers, {part}: {teacher} teaches {STUDENT} ({sizes[0] / sizes[1]:.0f} x the multiply-adds), {EPOCHS} "
        f"epochs of {samples} images"
    )
    columns = ("arm", "CPU ms", "wall ms", "to online", "to soft labels ready [quartiles]", "bytes on disk")
    table(title, (*columns, "weights - online", "weights - ready"), lines)
    goal(kept)
    return kept + close(made, part, 3 * repetitions)


def goal(kept: list[dict[str, Any]]) -> None:
    """What is asked of keeping: no more than the answers cost once, and nothing for a second student."""
    cpu = {row["arm"]: row["cpu_ms"] for row in kept}
    first, views = (FIRST, 1) if ROUND not in cpu else (ROUND, 2)
    once = views * cpu[ONLINE] / EPOCHS + cpu[READY]
    print(f"  {first} / ({views} online epochs + {READY}): {cpu[first] / once:.3f} (goal 1)")
    for peer in ("torchdistill", "mdistiller"):
        if peer in cpu:
            shares = (cpu[arm] / cpu[peer] for arm in (FIRST, SECOND))
            print("  first and second student to {}: {:.3f}, {:.3f} (goal 0.5)".format(peer, *shares))


def close(made: Part, part: str, repetitions: int) -> list[dict[str, Any]]:
    """The second student beside the loop with ready soft labels, those two alone and more often."""
    times, _ = interleave({arm: made.arms[arm] for arm in (READY, SECOND)}, repetitions)
    row = rows(times, READY)[SECOND]
    print(f"  {SECOND} / {READY}, {repetitions} times: {ratio(row)} (goal 1.05)")
    return [{"part": f"{part}, close", "arm": SECOND, "repetitions": repetitions, **row}]


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=["fixed", "augmented"])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--teacher", default="resnet:16-32-64")
    parser.add_argument("--samples", type=int, default=640)
    given = parser.parse_args()
    found = []
    for part in given.parts:
        with tempfile.TemporaryDirectory() as root:
            found += measure(part, given.teacher, given.samples, given.repetitions, Path(root))
    save("kept", found)


if __name__ == "__main__":
    main()

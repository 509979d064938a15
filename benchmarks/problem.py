"""The work that all arms do: distil a teacher into a student on tensors in memory, in the order of one Plan."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness import Stopwatch
from stillroom.data import TensorSource, load_images
from stillroom.engine import Engine, Watcher
from stillroom.keeping import Where
from stillroom.method import Method
from stillroom.models import build
from stillroom.optim import Recipe
from stillroom.plan import Plan
from stillroom.predictors.baselines import KD, Plain
from stillroom.runtime import Runtime
from stillroom.task import Task
from stillroom.teacher import Teacher

LR, MOMENTUM, DECAY = 0.05, 0.9, 5e-4
ALPHA, TEMPERATURE = 0.9, 4.0

torch.set_num_threads(1)


@dataclass(frozen=True)
class Problem:
    """Data, networks by name, epochs and batch size; networks start from the same weights in every arm."""

    source: TensorSource
    classes: int
    teacher_name: str
    student_name: str
    epochs: int
    batch: int = 64
    seed: int = 0
    taught: nn.Module | None = None

    def student(self) -> nn.Module:
        """A fresh student, always with the same weights."""
        return self._build(self.student_name, 0)

    def teacher(self) -> nn.Module:
        """A teacher of one's own, frozen."""
        network = copy.deepcopy(self.taught) if self.taught is not None else self._build(self.teacher_name, 1)
        return network.eval().requires_grad_(False)

    def _build(self, name: str, seed: int) -> nn.Module:
        return build(name, shape=tuple(self.source.x.shape[1:]), classes=self.classes, seed=seed)

    @property
    def plan(self) -> Plan:
        """The order of the samples."""
        return Plan(len(self.source), self.batch, self.epochs, self.seed)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and labels of all steps, indexed out of the same tensors as the Engine's."""
        plan, x, y = self.plan, self.source.x, self.source.labels
        for epoch in range(self.epochs):
            for ids in plan.order(epoch).split(self.batch):
                yield x.index_select(0, ids), y.index_select(0, ids)

    def with_taught_teacher(self, epochs: int) -> Problem:
        """The same with a trained teacher."""
        job = replace(self, student_name=self.teacher_name, epochs=epochs)
        return replace(self, taught=fit(job, Plain(), Stopwatch()))


def digits(teacher: str, student: str, epochs: int, teacher_epochs: int = 20) -> Problem:
    """The 8x8 digits (800 to train on)."""
    source: Any = load_images("digits").train
    return Problem(source, 10, teacher, student, epochs).with_taught_teacher(teacher_epochs)


def noise(
    shape: tuple[int, ...],
    samples: int,
    classes: int,
    networks: tuple[str, str],
    epochs: int,
    batch: int = 64,
) -> Problem:
    """Random inputs and labels, for sizes that the digits do not have."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(samples, *shape, generator=generator)
    y = torch.randint(classes, (samples,), generator=generator)
    return Problem(TensorSource(x, y), classes, *networks, epochs, batch)


def hinton(logits: Tensor, target: Tensor, y: Tensor) -> Tensor:
    """Hinton's loss as one writes it by hand."""
    log_student = (logits / TEMPERATURE).log_softmax(-1)
    log_teacher = (target / TEMPERATURE).log_softmax(-1)
    kl = F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True) * TEMPERATURE**2
    return (1 - ALPHA) * F.cross_entropy(logits, y) + ALPHA * kl


def sgd(module: nn.Module, fused: bool = False) -> torch.optim.SGD:
    """The optimizer of all arms."""
    return torch.optim.SGD(module.parameters(), LR, MOMENTUM, weight_decay=DECAY, fused=fused)


def bare(problem: Problem, watch: Stopwatch, fused: bool = False) -> nn.Module:
    """The loop that one writes by hand: no logging, no checks, no checkpoints."""
    student, teacher = problem.student().train(), problem.teacher()
    optimizer = sgd(student, fused)
    watch.start()
    for x, y in problem.batches():
        with torch.no_grad():
            target = teacher(x)
        hinton(student(x), target, y).backward()
        optimizer.step()
        optimizer.zero_grad()
    watch.stop()
    return student


@dataclass(eq=False)
class Fixed(Task):
    """A Problem as a Task; nothing is scored, so that what is measured is training."""

    metric: ClassVar[str] = "none"
    problem: Problem
    teacher: Teacher | None = None

    def train(self) -> TensorSource:
        """The problem's data."""
        return self.problem.source

    def make_student(self, seed: int) -> nn.Module:
        """The problem's student."""
        return self.problem.student()

    def make_teacher(self) -> Teacher:
        """The given teacher, or the problem's."""
        return self.teacher or Teacher(self.problem.teacher())

    def score(self, product: Any, split: str, runtime: Runtime) -> dict[str, Any]:
        """Nothing."""
        return {}


@dataclass
class Spectator(Watcher):
    """Stops the watch after the last step, before the last checkpoint."""

    watch: Stopwatch
    steps: int = 0

    def begins(self, steps: int, at: int) -> None:
        """Networks, optimizers and the teacher are ready."""
        self.steps = steps
        self.watch.start()

    def stepped(self, step: int, row: Any) -> None:
        """A step is done, and its row written."""
        if step == self.steps:
            self.watch.stop()


def fit(
    problem: Problem,
    method: Method,
    watch: Stopwatch,
    keep: Where = "no",
    whole: bool = False,
    teacher: Teacher | None = None,
    **options: Any,
) -> nn.Module:
    """Stillroom's Engine with its log and its checkpoint; `whole` times set-up and checkpoint as well."""
    recipe = Recipe(lr=LR, momentum=MOMENTUM, weight_decay=DECAY, schedule="constant")
    engine = Engine(
        epochs=problem.epochs, batch_size=problem.batch, recipe=recipe, keep_teacher=keep, **options
    )
    task = Fixed(problem=problem, teacher=teacher)
    with tempfile.TemporaryDirectory() as folder:
        if not whole:
            return engine.fit(method, task, problem.seed, Path(folder), Spectator(watch)).product
        watch.start()
        student = engine.fit(method, task, problem.seed, Path(folder)).product
        watch.stop()
        return student


def kd() -> KD:
    """The method of all arms."""
    return KD(alpha=ALPHA, temperature=TEMPERATURE)


def difference(one: nn.Module, other: nn.Module) -> str:
    """'same bytes', or the largest absolute difference of two networks' weights."""
    pairs = list(zip(one.parameters(), other.parameters(), strict=True))
    if all(torch.equal(a, b) for a, b in pairs):
        return "same bytes"
    return f"{max(float((a - b).abs().max()) for a, b in pairs):.1e}"

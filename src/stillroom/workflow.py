"""One run from beginning to end: the teacher, the plain student, the distilled student, and what it all cost.

The plain arm is always run, with the same initial weights, data order and number of steps, because whether
distilling helped can only be told beside it. The test split is read once, when training is over.
"""

from __future__ import annotations

import copy
import shutil
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom import catalogue, checkpoint, facts
from stillroom.checkpoint import write_json
from stillroom.config import differences, flag_of, to_plain
from stillroom.engine import Engine
from stillroom.errors import UserError, refused
from stillroom.fitter import Fitter, Watch, unwatched
from stillroom.keeping import foresee
from stillroom.method import Method, Result
from stillroom.reports.run_page import write_run_page
from stillroom.run import RESULT, Run
from stillroom.runtime import Runtime
from stillroom.stats import paired_interval
from stillroom.task import Task
from stillroom.teaching import teach
from stillroom.tracking import Tracking
from stillroom.words import verdict_words

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Job:
    """What is run: a method on a task."""

    method: Method
    task: Task
    engine: Engine
    seed: int

    def config(self) -> dict[str, Any]:
        """Everything that determines the outcome, as plain values."""
        given = {key: type(value).__name__ for key, value in self.task.given.items()}
        return {
            "method": self.method.name,
            "options": to_plain(self.method),
            "task": to_plain(self.task),
            "problem": f"{type(self.task).__module__}:{type(self.task).__qualname__}",
            "engine": to_plain(self.engine),
            "seed": self.seed,
            **({"from Python": given} if given else {}),
        }

    def check(self) -> None:
        """Raise UserError for anything that would make the run fail later."""
        if not 0 <= self.seed < 2**63:
            raise UserError(f"--seed is {self.seed}: pass a number from 0 to 2**63 - 1")
        self.engine.check()
        self.method.check()
        self.method.suits(self.task)
        self.task.check(self.seed, self.method.uses_teacher)
        if (
            type(self.method).bind is not Method.bind
        ):  # a trial, so that what it needs is not missed after an hour
            trial = copy.copy(self.method)
            trial.bind(self.task, self.seed)
            trial.unbind()
        foresee(self.engine, self.task, self.method)


def execute(
    job: Job,
    out: Path,
    resume: bool = False,
    command: str = "",
    watch: Watch = unwatched,
    track: Sequence[str] = (),
) -> tuple[Run, Any]:
    """Do `job` in the folder `out`, or go on with what is there; returns the run and the product.

    `track` are the trackers that are told of it, by name.

    Raises UserError before anything is written where the job cannot work, where `out` is in use, or where
    `resume` meets another job; Interrupted, NonFinite and the UserError of a disk that refuses a write leave a
    folder that can be resumed.
    """
    runtime = Runtime(job.engine.precision)
    if resume:
        _check_resumed(job, out)
    job.check()
    tracking = Tracking(track, out, job.config(), runtime.main)
    if runtime.main and not resume:
        Run.create(out, job.config())
    runtime.barrier()
    run = Run(out)
    way = f"make room or make it writable, then go on with --resume {out}"
    with refused(out, way), run.held() if runtime.main else nullcontext(), tracking:
        work = _Work(job, run, runtime, tracking.watch(watch))
        work.teacher()
        work.baseline()
        product = work.distil()
        figures = work.figures()
        if runtime.main:
            result = work.result(command) | {"figures": figures}
            _leave(job, run, result, product)
            tracking.result(result)
        runtime.barrier()
    return run, product


def _check_resumed(job: Job, out: Path) -> None:
    """See that `out` holds this job's run and that its checkpoints can be read, before any work."""
    changed = differences(Run.open(out).config, job.config())
    # A checkpoint is whole, however many processes wrote it, and whether they held shards.
    changed = [change for change in changed if change[0] != "engine.shard"]
    if changed:
        path, old, new = changed[0]
        raise UserError(
            f"run '{out}' was started with {flag_of(path)} {old!r}, not {new!r}: drop the option, or start a new "
            "run with another --out"
        )
    Run.open(out).check_links()
    before: set[tuple[str, str]] = set()
    for folder in (out, *sorted((out / "arms").glob("*"))):
        for newest in checkpoint.listing(folder / "checkpoints")[-1:]:
            before |= checkpoint.load(newest)[0].get("versions", {}).items()
    for name, number in sorted(before - checkpoint.made_with().items()):
        now = checkpoint.made_with().get(name, "not known")
        warnings.warn(
            f"run '{out}' was begun with {name} {number} and goes on with {now}: the end may differ in the last bits",
            stacklevel=3,
        )


class _Work:
    """The arms of one run, scored as they come."""

    def __init__(self, job: Job, run: Run, runtime: Runtime, watch: Watch) -> None:
        self.job, self.run, self.runtime, self.watch = job, run, runtime, watch
        self.arms: dict[str, dict[str, Any]] = {}
        self.per_sample: dict[str, list[float] | None] = {}
        self.costs: dict[str, float] = {}
        self.products: dict[str, Any] = {}
        self.role = ""

    def teacher(self) -> None:
        """Train the teacher, or fetch it, and score it."""
        if not (self.job.method.uses_teacher or self.job.task.derived):
            return
        folder = self.run.path / "arms" / "teacher"
        taught = teach(self.job.task, self.job.engine, folder, lambda: self.watch("teacher"))
        self.costs["teacher training"] = taught.seconds
        teacher = self.job.task.make_teacher()
        if teacher is not None:
            teacher.to(self.runtime.device)
            self._score("teacher", "teacher", "arms/teacher", Result(teacher.module, taught.seconds))

    def baseline(self) -> None:
        """Run the plain arm, unless the method is that arm."""
        baseline = self.job.method.baseline(self.job.task)
        if baseline is None or baseline.name == self.job.method.name:
            return
        folder = f"arms/{baseline.name}"
        result = self._fit(baseline, folder)
        self.costs[f"{baseline.name} student"] = result.seconds
        self.role = baseline.role
        self._score(baseline.name, "baseline", folder, result)

    def distil(self) -> Any:
        """Run the method; returns its product."""
        result = self._fit(self.job.method, ".")
        teacher = getattr(self.job.method, "teacher", None)  # a method of stages has none itself
        keeping = 0.0 if teacher is None else teacher.kept_seconds
        self.costs["distilled student"] = result.seconds - keeping
        if teacher is not None and teacher.kept_bytes:
            self.costs |= {"keeping the teacher's answers": keeping, "bytes kept": teacher.kept_bytes}
        self._score(self.job.method.name, "student", ".", result)
        return result.product

    def _fit(self, method: Method, folder: str) -> Result:
        path = self.run.path / folder
        path.mkdir(parents=True, exist_ok=True)
        fitter = Fitter(self.job.engine, self.job.task, self.job.seed, path, self.watch)
        return method.run(self.job.task, fitter)

    def _score(self, name: str, role: str, folder: str, result: Result) -> None:
        task = self.job.task
        self.products[name] = result.product
        test = task.score(result.product, "test", self.runtime)
        self.per_sample[name] = test.pop("per_sample", None)
        self.arms[name] = {
            "role": role,
            "folder": folder,
            "seconds": result.seconds,
            "test": test,
            "validation": task.score(result.product, "validation", self.runtime),
            "cost": task.cost(result.product),
            **({"extra": result.extra} if result.extra else {}),
        }

    def figures(self) -> list[dict[str, str]]:
        """The pictures of task and method; all processes must ask, since products may be sampled together."""
        newest_first = dict(reversed(self.products.items()))
        return [*self.job.task.figures(newest_first, self.runtime), *self.job.method.figures()]

    def result(self, command: str) -> dict[str, Any]:
        """All that result.json holds."""
        job = self.job
        card = catalogue.find_card(job.method.name) if job.method.listed else None
        return {
            "method": job.method.name,
            "system": card.slug if card else job.method.name,
            "title": card.title if card else job.method.name,
            "source": card.source if card else "",
            "gist": card.gist if card else "",
            "seed": job.seed,
            "metric": job.task.metric,
            "higher_is_better": job.task.higher_is_better,
            "verdict": self._verdict(),
            "arms": self.arms,
            "costs": self.costs,
            "data": job.task.summary(),
            "versions": facts.versions(),
            "machine": facts.machine() | {"processes": self.runtime.size, "device": self.runtime.device.type},
            "command": command,
            "finished": facts.now(),
        }

    def _verdict(self) -> dict[str, Any]:
        own = self.job.method.name
        other = next((name for name, arm in self.arms.items() if arm["role"] == "baseline"), None)
        scores = {name: arm["test"][self.job.task.metric] for name, arm in self.arms.items()}
        interval = None
        mine, theirs = self.per_sample[own], self.per_sample[other] if other else None
        if mine and theirs:
            interval = paired_interval([a - b for a, b in zip(mine, theirs, strict=True)], resamples=2000)
        samples = len(mine or [])
        return verdict_words(self.job.task, own, other, scores, interval, samples, self.role)


def _leave(job: Job, run: Run, result: dict[str, Any], product: Any) -> None:
    """Write student, result and report; the student's folder appears whole."""
    part, final = run.path / ".student.part", run.path / "student"
    shutil.rmtree(part, ignore_errors=True)
    job.task.export(product, part, result | {"options": to_plain(job.method)})
    shutil.rmtree(final, ignore_errors=True)
    part.rename(final)
    write_json(run.path / RESULT, result)
    write_run_page(run.path)


def free_folder(name: str, base: Path = Path("runs")) -> Path:
    """The first of runs/NAME-1, runs/NAME-2, ... that is not there."""
    number = 1
    while (base / f"{name}-{number}").exists():
        number += 1
    return base / f"{name}-{number}"


def distill(
    teacher: nn.Module | str | None,
    student: nn.Module | str | None,
    data: Any,
    method: Method | str = "nkd",
    *,
    task: Task | None = None,
    engine: Engine | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    track: Sequence[str] = (),
    **options: Any,
) -> tuple[Any, Run]:
    """Distil `teacher` into `student` on `data`; returns the student, in eval mode, and the run.

    Networks are modules of your own or architecture names; a teacher that is a module is taken as trained. A
    generator's are Denoisers, which say process and prediction, and its student may be None: a copy of the teacher.
    `data` is a name, a folder, a `datasets` object, a map-style torch data set, a DataLoader (its data set is
    used, in Stillroom's own order) or a pair of tensors (x, y). `method` is a name of the catalogue or a Method;
    `options` are the method's fields, or failing that the Engine's. The run is left in `out` (default:
    runs/METHOD-1, -2, ...); `track` names trackers that are told of it (tensorboard, wandb, mlflow). Raises UserError
    where the parts do not fit together.
    """
    chosen = catalogue.find(method).load()() if isinstance(method, str) else method
    engine = engine or (task.default_engine() if task else None) or type(chosen).default_engine()
    size = getattr(data, "batch_size", None)
    if isinstance(size, int):
        engine = replace(engine, batch_size=size)
    chosen, engine, _ = with_options(chosen, engine, options)
    task = task or type(chosen).default_task()
    options_of = {field.name for field in fields(task)}
    named = {"teacher": "none" if teacher is None else teacher, "student": "" if student is None else student}
    # A task without networks has no such options; one that is passed all the same is an error below.
    named = {key: value for key, value in named.items() if key in options_of or value not in ("none", "")}
    named["data"] = data
    task = task.but(**{key: value for key, value in named.items() if isinstance(value, str)})
    task = task.using(**{key: value for key, value in named.items() if not isinstance(value, str)})
    folder = Path(out) if out is not None else free_folder(chosen.name)
    job = Job(chosen, task, engine, seed)
    run, product = execute(job, folder, resume, command="stillroom.distill(...)", track=track)
    return product.eval() if hasattr(product, "eval") else product, run


def with_options(
    method: Method, engine: Engine, options: Mapping[str, Any], task: Task | None = None
) -> tuple[Method, Engine, dict[str, Any]]:
    """Method and Engine with their options, and the options that are the task's.

    A name is the method's where it has such a field, else the task's (where one is passed), else the Engine's.
    UserError for one that none of them has.
    """
    parts: tuple[Any, ...] = (method, *(() if task is None else (task,)), engine, engine.recipe)
    changes: dict[int, dict[str, Any]] = {id(part): {} for part in parts}
    for name, value in options.items():
        owner = next((part for part in parts if any(f.name == name for f in fields(part))), None)
        if owner is None:
            others = "nor" if task is None else "nor its task nor"
            raise UserError(
                f"neither method '{method.name}' {others} the engine has an option '{name}': "
                f"`stillroom run {method.name} --help` lists them"
            )
        changes[id(owner)][name] = value
    recipe = replace(engine.recipe, **changes[id(engine.recipe)])
    changed = replace(method, **changes[id(method)]), replace(engine, **changes[id(engine)], recipe=recipe)
    return *changed, changes.get(id(task), {})

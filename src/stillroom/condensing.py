"""Condensing data from Python: one call from a data set to the few samples that stand for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stillroom import catalogue
from stillroom.engine import Engine
from stillroom.method import Method
from stillroom.run import Run
from stillroom.task import Task
from stillroom.workflow import Job, execute, free_folder, with_options


def condense(
    data: Any,
    *,
    ipc: int | None = None,
    method: Method | str = "datadam",
    task: Task | None = None,
    engine: Engine | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    track: Sequence[str] = (),
    **options: Any,
) -> tuple[Any, Run]:
    """Condense `data` to a small set that trains networks in its place; returns the set and the run.

    `data` is what the method's task reads: for images a name, a folder, a `datasets` object, a map-style torch data
    set, a DataLoader (its data set is used) or a pair of tensors (x, y), for 'mirage' graphs. `ipc` is the number of
    images a class, where the task has it. `method` is a name of the catalogue or a Method; `options` are fields of the
    method, of its task or of the Engine, whichever has one of that name first; what is no plain value (networks of
    your own) goes to the task as it is. The run is left in `out` (default: runs/METHOD-1, -2, ...); `track` names
    trackers that are told of it (tensorboard, wandb, mlflow). Raises UserError where the parts do not fit together.
    """
    chosen = catalogue.find(method).load()() if isinstance(method, str) else method
    task = task or type(chosen).default_task()
    engine = engine or type(chosen).default_engine()
    if ipc is not None:
        options["ipc"] = ipc
    chosen, engine, own = with_options(chosen, engine, options, task)
    plain = {name: value for name, value in own.items() if _plain(value)}
    task = task.but(**plain).using(**{name: value for name, value in own.items() if name not in plain})
    task = task.but(data=data) if isinstance(data, str) else task.using(data=data)
    folder = Path(out) if out is not None else free_folder(chosen.name)
    job = Job(chosen, task, engine, seed)
    run, product = execute(job, folder, resume, command="stillroom.condense(...)", track=track)
    return product.eval() if hasattr(product, "eval") else product, run


def _plain(value: Any) -> bool:
    """Whether an option's value can stand in a run's config."""
    if isinstance(value, list | tuple):
        return all(map(_plain, value))
    return value is None or isinstance(value, str | int | float)

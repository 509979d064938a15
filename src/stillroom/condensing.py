"""Condensing data from Python: one call from a data set to the few samples that stand for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from stillroom import catalogue
from stillroom.engine import Engine
from stillroom.errors import UserError
from stillroom.method import Method
from stillroom.run import Run
from stillroom.task import Task
from stillroom.workflow import Job, execute, free_folder


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
    **options: Any,
) -> tuple[Any, Run]:
    """Condense `data` to a small set that trains networks in its place; returns the set and the run.

    `data` is what the method's task reads: for images a name, a folder, a `datasets` object, a map-style torch data
    set, a DataLoader (its data set is used) or a pair of tensors (x, y), for 'mirage' graphs. `ipc` is the number of
    images a class, where the task has it. `method` is a name of the catalogue or a Method; `options` are fields of the
    method, of its task or of the Engine, whichever has one of that name first; what is no plain value (networks of
    your own) goes to the task as it is. The run is left in `out` (default: runs/METHOD-1, -2, ...). Raises UserError
    where the parts do not fit together.
    """
    chosen = catalogue.find(method).load()() if isinstance(method, str) else method
    task = task or type(chosen).default_task()
    engine = engine or type(chosen).default_engine()
    if ipc is not None:
        options["ipc"] = ipc
    made, task, engine = _with_options(chosen, task, engine, options)
    task = task.but(data=data) if isinstance(data, str) else task.using(data=data)
    folder = Path(out) if out is not None else free_folder(made.name)
    run, product = execute(Job(made, task, engine, seed), folder, resume, command="stillroom.condense(...)")
    return product.eval() if hasattr(product, "eval") else product, run


def _with_options(
    method: Method, task: Task, engine: Engine, options: Mapping[str, Any]
) -> tuple[Method, Task, Engine]:
    """Each option put where a field has its name; UserError for one that nothing has."""
    parts: list[Any] = [method, task, engine, engine.recipe]
    changes: list[dict[str, Any]] = [{} for _ in parts]
    for name, value in options.items():
        place = next((i for i, p in enumerate(parts) if any(f.name == name for f in fields(p))), None)
        if place is None:
            raise UserError(
                f"neither method '{method.name}' nor its task nor the engine has an option '{name}': "
                f"`stillroom run {method.name} --help` lists them"
            )
        changes[place][name] = value
    plain = {name: value for name, value in changes[1].items() if _plain(value)}
    task = task.but(**plain).using(**{n: v for n, v in changes[1].items() if n not in plain})
    engine = replace(engine, **changes[2], recipe=replace(engine.recipe, **changes[3]))
    return replace(method, **changes[0]), task, engine


def _plain(value: Any) -> bool:
    """Whether an option's value can stand in a run's config."""
    if isinstance(value, list | tuple):
        return all(map(_plain, value))
    return value is None or isinstance(value, str | int | float)

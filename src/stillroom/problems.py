"""Problems that stand in for each other, by name: what --problem says, or a stored run."""

from __future__ import annotations

import difflib
import importlib
from typing import Any

from stillroom import catalogue
from stillroom.engine import Engine
from stillroom.errors import UserError
from stillroom.method import Method
from stillroom.parsing import value_of
from stillroom.task import Task

ALL = catalogue.PROBLEMS | catalogue.TOKEN_PROBLEMS
PROBLEM = (
    f"Another kind of data for the methods of classification: {', '.join(catalogue.PROBLEMS)}; for some also "
    f"{', '.join(catalogue.TOKEN_PROBLEMS)}."
)


def problem_of(method: type[Method], name: str) -> tuple[Task, Engine]:
    """The problem called `name`, or where that is empty the method's own, and the training options that go with it."""
    own = method.default_task()
    if not name:
        return own, method.default_engine()
    if f"{type(own).__module__}:{type(own).__qualname__}" not in catalogue.PROBLEMS.values():
        raise UserError(f"--problem is {name} and method '{method.name}' has one problem of its own: drop it")
    places = ALL if method.per_token else catalogue.PROBLEMS
    if name not in places:
        near = difflib.get_close_matches(name, places, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        of = f" for method '{method.name}'" if name in ALL else ""
        raise UserError(f"there is no problem '{name}'{of}: {hint}pass {' or '.join(places)}")
    home, _, kind = places[name].partition(":")
    task = getattr(importlib.import_module(home), kind)()
    return task, task.default_engine() or method.default_engine()


def named_problem(args: list[str], config: dict[str, Any] | None) -> str:
    """The name after --problem, or that of a stored run's problem."""
    stored = None if config is None else config.get("problem")
    known = {place: name for name, place in ALL.items()}
    return value_of("--problem", args) or known.get(str(stored), "")

"""Tuning alike: before a comparison every arm tries as many settings as it is given, on seeds and a split of their own.

Settings are chosen on the validation split, over seeds that the comparison does not use; the test split has no say.
"""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from stillroom.claim import Grid, measure, store_for
from stillroom.config import from_plain, to_plain
from stillroom.errors import UserError
from stillroom.optim import Recipe

if TYPE_CHECKING:
    from stillroom.engine import Engine
    from stillroom.method import Method
    from stillroom.task import Task

FIRST_SEED = 100
"""Of the seeds on which settings are tried."""


@dataclass(frozen=True, eq=False)
class Setting:
    """An arm with one choice of its options."""

    method: Method
    engine: Engine
    words: str = "as it comes"


@dataclass(frozen=True)
class Tuned:
    """What an arm is run with, and what led to it."""

    setting: Setting
    tried: dict[str, float]
    """The mean validation score of each setting, by its words, in the order in which they were tried."""


@dataclass(frozen=True)
class Choice:
    """An option and the values that are tried for it."""

    arm: str
    """Empty: every arm's."""
    option: str
    values: tuple[Any, ...]


def choices(texts: Sequence[str], arms: Iterable[str]) -> list[Choice]:
    """Choices from `lr=0.02,0.05` (an option of the recipe, for every arm) and `kd.alpha=0.5,0.9` (of one arm).

    Raises UserError for what is neither.
    """
    found, known = [], list(arms)
    for text in texts:
        name, equals, values = text.partition("=")
        arm, dot, option = name.rpartition(".")
        if not equals or not option or not all(values.split(",")):
            raise UserError(
                f"--tune '{text}' names no choice: pass OPTION=VALUE,VALUE or METHOD.OPTION=VALUE,VALUE"
            )
        if dot and arm not in known:
            raise UserError(
                f"--tune '{text}' is about '{arm}', which is not compared: pass one of {', '.join(known)}"
            )
        if not dot and option not in {field.name for field in fields(Recipe)}:
            names = ", ".join(field.name for field in fields(Recipe))
            raise UserError(
                f"--tune '{text}' names no option of the recipe: pass one of {names}, or METHOD.OPTION"
            )
        found.append(Choice(arm, option, tuple(map(_value, values.split(",")))))
    return found


def _value(text: str) -> Any:
    """A number or true and false as JSON writes them; anything else is a word."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def settings(arm: str, method: Method, engine: Engine, wanted: Sequence[Choice]) -> list[Setting]:
    """Every combination of the values that an arm tries; the arm as it comes where it tries none."""
    own = [choice for choice in wanted if choice.arm in ("", arm)]
    if not own:
        return [Setting(method, engine)]
    made = []
    for values in itertools.product(*(choice.values for choice in own)):
        pairs = list(zip(own, values, strict=True))
        recipe = {choice.option: value for choice, value in pairs if not choice.arm}
        options = {choice.option: value for choice, value in pairs if choice.arm}
        words = ", ".join(f"{choice.option} {value}" for choice, value in pairs)
        made.append(
            Setting(_with(method, options), replace(engine, recipe=_with(engine.recipe, recipe)), words)
        )
    return made


def _with(options: Any, changes: Mapping[str, Any]) -> Any:
    known = [field.name for field in fields(options)]
    odd = [name for name in changes if name not in known]
    if odd:
        raise UserError(
            f"--tune cannot set {odd[0]}, which {type(options).__name__} does not have: pass one of {', '.join(known)}"
        )
    for name, value in changes.items():
        try:
            options = from_plain(type(options), to_plain(options) | {name: value})
        except UserError:
            usual = getattr(options, name)
            raise UserError(f"--tune cannot set {name} to {value!r}: pass values such as {usual!r}") from None
    return options


def tune(
    arms: Mapping[str, Method],
    task: Task,
    engine: Engine,
    wanted: Sequence[Choice],
    seeds: Sequence[int],
    workers: int = 1,
    ray: str = "",
) -> dict[str, Tuned]:
    """The setting of each arm with the best mean validation score over `seeds`; of equal ones the first."""
    tries = {arm: settings(arm, method, engine, wanted) for arm, method in arms.items()}
    named = {
        f"{arm}: {one.words}": one for arm, several in tries.items() if len(several) > 1 for one in several
    }
    grid = grid_of(named, task, engine, seeds, split="validation")
    rows = dict(measure(grid, workers, ray)) if named else {}
    found = {}
    for arm, several in tries.items():
        if len(several) == 1:
            found[arm] = Tuned(several[0], {})
            continue
        means = {
            one.words: statistics.fmean(rows[seed][f"{arm}: {one.words}"]["score"] for seed in seeds)
            for one in several
        }
        best = (max if task.higher_is_better else min)(several, key=lambda one: means[one.words])
        found[arm] = Tuned(best, means)
    return found


def grid_of(
    arms: Mapping[str, Setting], task: Task, engine: Engine, seeds: Sequence[int], split: str = "test"
) -> Grid:
    """The arms in their settings, to be measured; `engine` is their teachers'."""
    methods = {arm: one.method for arm, one in arms.items()}
    engines = {arm: one.engine for arm, one in arms.items()}
    store = store_for(methods, task, engine, engines=engines, split=split)
    return Grid(methods, task, engine, seeds, store, engines, split)


def lines(tuned: Mapping[str, Tuned]) -> list[str]:
    """What was chosen, a line an arm that had a choice."""
    return [
        f"{arm}: {one.setting.words}, the best of {len(one.tried)} on the validation split"
        for arm, one in tuned.items()
        if one.tried
    ]


def described(tuned: Mapping[str, Tuned], seeds: Sequence[int]) -> dict[str, Any]:
    """What was tried and chosen, for a record; nothing where no arm had a choice."""
    found = {
        arm: {"chosen": one.setting.words, "tried": one.tried, "engine": to_plain(one.setting.engine)}
        for arm, one in tuned.items()
        if one.tried
    }
    return {"tuning": {"seeds": list(seeds), "split": "validation", "arms": found}} if found else {}

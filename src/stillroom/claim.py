"""A Claim is a paper's headline as an executable comparison: arms x seeds, paired intervals, a verdict.

All arms of a seed share data, samples, teacher, initial weights, data order and number of steps; only the method
differs. What is concluded comes from the interval of the paired differences and from nothing else.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom import facts
from stillroom.caching import cache
from stillroom.checkpoint import read_json, write_json
from stillroom.config import digest, to_plain
from stillroom.errors import UserError
from stillroom.stats import combined, paired_interval, verdict

if TYPE_CHECKING:
    from stillroom.engine import Engine
    from stillroom.method import Method
    from stillroom.task import Task, TeacherJob

Cell = dict[str, Any]
"""One arm at one seed: {"score": float, "test": {...}, "seconds": float}."""


@dataclass(frozen=True)
class Rule:
    """One comparison: the arm `better` scores better than the arm `worse`."""

    better: str
    worse: str
    headline: bool = True
    """False: shown beside the claim, without a say in its verdict."""
    metric: str = ""
    """Another number of the task's score to compare by; empty: the task's metric."""
    higher_is_better: bool = False
    """Of that other number."""
    margin: float = 0.0
    """What `better` may be worse by, >= 0, for a claim that something costs no more than that."""


@dataclass(frozen=True, eq=False)
class Claim:
    """What a paper claims, as a comparison that can come out either way."""

    name: str
    says: str
    """The claim in words, with the paper's own numbers."""
    task: Task
    engine: Engine
    arms: Mapping[str, Method]
    rules: Sequence[Rule]
    seeds: int = 10
    data: str = ""
    """Folder under the data root that the task needs; empty where built-in data do."""
    notes: str = ""
    """How the setting differs from the paper's."""
    draw: Callable[[Mapping[str, Any]], Sequence[dict[str, str]]] | None = None
    """Figures of what was measured, for its page, made of its entry of the evidence: title, caption and svg of each."""

    def __post_init__(self) -> None:
        for rule in self.rules:
            for arm in (rule.better, rule.worse):
                if arm not in self.arms:
                    raise ValueError(f"claim '{self.name}' has a rule about '{arm}', which is no arm of it")

    def at(self, root: Path | None) -> Claim:
        """The claim on the data under `root`; UserError where it needs data that are not there."""
        if not self.data:
            return self
        place = root / self.data if root else None
        if place is None or not place.is_dir():
            raise UserError(
                f"claim '{self.name}' needs the data set '{self.data}', not found at '{place or self.data}': pass "
                f"--data-root with the folder that holds '{self.data}'"
            )
        return replace(self, task=self.task.but(data=str(place)))

    def quick(self) -> Claim:
        """The same comparison on a problem of seconds: shows that it runs, proves nothing."""
        arms = {arm: method.quick() for arm, method in self.arms.items()}
        return replace(self, task=self.task.quick(), engine=self.engine.quick(), arms=arms, data="")


# -- measuring ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Grid:
    """Arms x seeds to be measured."""

    arms: Mapping[str, Method]
    task: Task
    engine: Engine
    seeds: Sequence[int]
    store: Path | None = None
    """Folder in which finished cells wait for the rest, so that a stopped measurement goes on where it was."""
    engines: Mapping[str, Engine] = field(default_factory=dict)
    """Of arms that have their own training options; teachers are trained with those of `engine` all the same."""
    split: str = "test"
    """On what products are scored; `validation` where options are chosen by it."""

    def cells(self, seed: int) -> dict[str, Cell]:
        """All arms at one seed."""
        return {arm: self.cell(arm, seed) for arm in self.arms}

    def cell(self, arm: str, seed: int) -> Cell:
        """One arm at one seed: from the store, or measured now and then stored."""
        cell = self.stored(arm, seed)
        if cell is None:
            cell = self._measured(arm, seed)
            self.keep(arm, seed, cell)
        return cell

    def _measured(self, arm: str, seed: int) -> Cell:
        from stillroom.engine import Watcher
        from stillroom.fitter import Fitter
        from stillroom.runtime import Runtime
        from stillroom.teaching import teach

        method, task = self.checked(arm, seed)
        if method.uses_teacher or task.derived:
            teach(task, self.engine, None, Watcher)
        engine = replace(self.engines.get(arm, self.engine), evaluate_every=0)
        result = method.run(task, Fitter(engine, task, seed))
        score = task.score(result.product, self.split, Runtime(engine.precision))
        scalars = {key: value for key, value in score.items() if isinstance(value, (int, float))}
        return {"score": score[task.metric], self.split: scalars, "seconds": result.seconds}

    def checked(self, arm: str, seed: int) -> tuple[Method, Task]:
        """The method and the task of a cell; UserError where they cannot work."""
        method, task = self.arms[arm].variant(), self.task.paired(seed)
        method.check()
        method.suits(task)
        task.check(seed, method.uses_teacher)
        return method, task

    def stored(self, arm: str, seed: int) -> Cell | None:
        """The cell, where it was measured before."""
        place = self._place(arm, seed)
        return read_json(place) if place and place.is_file() else None

    def keep(self, arm: str, seed: int, cell: Cell) -> None:
        """Store a cell, once and by one rename."""
        place = self._place(arm, seed)
        if place and not place.is_file():
            place.parent.mkdir(parents=True, exist_ok=True)
            write_json(place, cell)

    def _place(self, arm: str, seed: int) -> Path | None:
        return self.store / f"{arm}-{seed}.json" if self.store else None

    def teacher(self, arm: str, seed: int) -> TeacherJob | None:
        """The training of the teacher that a cell waits for; None where it needs none or finds it kept."""
        from stillroom.teaching import place_of

        method, task = self.arms[arm], self.task.paired(seed)
        job = task.teacher_job(self.engine) if method.uses_teacher or task.derived else None
        return None if job is None or (place_of(job) / "about.json").is_file() else job


@contextmanager
def _one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def measure(grid: Grid, workers: int = 1, ray: str = "") -> Iterator[tuple[int, dict[str, Cell]]]:
    """Measure all cells; yields (seed, cells) as seeds are finished, in any order.

    With several `workers`, or the address of a Ray cluster, cells are spread over processes (see
    `stillroom.spreading`). Every cell runs on one thread, so that its bits do not depend on where it runs. Raises
    what the first failing cell raises.
    """
    if workers == 1 and not ray:
        with _one_thread():
            for seed in grid.seeds:
                yield seed, grid.cells(seed)
        return
    from stillroom.spreading import Processes, spread

    if ray:
        from stillroom.cluster import Cluster

        yield from spread(grid, Cluster(ray, workers))
    else:
        yield from spread(grid, Processes(workers))


# -- concluding -----------------------------------------------------------------------------------------------


def compare(rule: Rule, scores: Mapping[str, Sequence[float]], higher_is_better: bool) -> dict[str, Any]:
    """The paired differences of one rule, positive where `better` is better, with interval and verdict.

    `scores` are those of the rule's metric; `higher_is_better` is the task's, for a rule without one of its own.
    """
    sign = 1 if (rule.higher_is_better if rule.metric else higher_is_better) else -1
    pairs = zip(scores[rule.better], scores[rule.worse], strict=True)
    differences = [sign * (a - b) for a, b in pairs]
    interval = paired_interval(differences)
    return {
        "better": rule.better,
        "worse": rule.worse,
        "headline": rule.headline,
        **({"metric": rule.metric} if rule.metric else {}),
        **({"margin": rule.margin} if rule.margin else {}),
        "differences": differences,
        "mean": sum(differences) / len(differences),
        "interval": list(interval) if interval else None,
        "wins": sum(d > 0 for d in differences),
        "ties": sum(d == 0 for d in differences),
        "verdict": verdict(interval and (interval[0] + rule.margin, interval[1] + rule.margin)),
    }


def conclude(
    grid: Grid, rules: Sequence[Rule], cells: Mapping[int, Mapping[str, Cell]], task: Task
) -> dict[str, Any]:
    """Scores of all arms, the comparisons, and the verdict over those that count."""
    scores = _scores("", grid.arms, grid, cells)
    others = {
        name: _scores(
            name, {arm for r in rules if r.metric == name for arm in (r.better, r.worse)}, grid, cells
        )
        for name in sorted({r.metric for r in rules} - {""})
    }
    comparisons = [
        compare(rule, others[rule.metric] if rule.metric else scores, task.higher_is_better) for rule in rules
    ]
    arms = {
        arm: {
            "method": method.name,
            "options": to_plain(method),
            "scores": scores[arm],
            "mean": statistics.fmean(scores[arm]),
            "std": statistics.stdev(scores[arm]) if len(grid.seeds) > 1 else 0.0,
            "seconds": statistics.fmean(cells[seed][arm]["seconds"] for seed in grid.seeds),
            **({"others": own} if (own := {name: o[arm] for name, o in others.items() if arm in o}) else {}),
        }
        for arm, method in grid.arms.items()
    }
    return {
        "metric": task.metric,
        "higher_is_better": task.higher_is_better,
        "seeds": list(grid.seeds),
        "arms": arms,
        "comparisons": comparisons,
        "verdict": combined([c["verdict"] for c in comparisons if c["headline"]]),
    }


def _scores(
    metric: str, arms: Iterable[str], grid: Grid, cells: Mapping[int, Mapping[str, Cell]]
) -> dict[str, list[float]]:
    """Numbers of `arms` over the seeds: their scores, or another of their tests' numbers."""
    found = {}
    for arm in arms:
        row = [cells[seed][arm] for seed in grid.seeds]
        lacking = [cell for cell in row if metric and metric not in cell["test"]]
        if lacking:
            known = ", ".join(sorted(lacking[0]["test"]))
            raise ValueError(f"a rule compares by '{metric}', which arm '{arm}' lacks; it has {known}")
        found[arm] = [cell["test"][metric] if metric else cell["score"] for cell in row]
    return found


def store_for(arms: Mapping[str, Method], task: Task, engine: Engine, **more: Any) -> Path:
    """Where unfinished cells of this comparison wait: a folder named after all that determines them.

    `more` is what else does: other fields of the grid.
    """
    key = {
        "arms": {arm: [method.name, to_plain(method)] for arm, method in arms.items()},
        "task": [to_plain(task), task.fingerprint()],
        "engine": to_plain(engine),
        "code": facts.source_digest(),
        "versions": facts.versions(),
        **to_plain(more),
    }
    return cache() / "cells" / digest(key)


def prove(
    claim: Claim,
    root: Path | None,
    workers: int,
    seeds: Sequence[int],
    seen: Callable[[int], None],
    ray: str = "",
) -> Cell:
    """Run a claim and return its entry of the evidence; `seen` is called with each finished seed."""
    there = claim.at(root)
    grid = Grid(there.arms, there.task, there.engine, seeds, store_for(there.arms, there.task, there.engine))
    cells: dict[int, dict[str, Cell]] = {}
    for seed, row in measure(grid, workers, ray):
        cells[seed] = row
        seen(seed)
    return {
        "name": claim.name,
        "says": claim.says,
        "notes": claim.notes,
        **conclude(grid, claim.rules, cells, there.task),
        "task": to_plain(claim.task),
        "engine": to_plain(claim.engine),
        "versions": facts.versions(),
        "machine": facts.machine(),
        "seconds": sum(cell["seconds"] for row in cells.values() for cell in row.values()),
        "date": facts.now()[:10],
    }

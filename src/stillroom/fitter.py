"""Training a method in one fit or in stages, each in a folder of its own: a killed run goes on in its stage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from stillroom.engine import Engine, Watcher
from stillroom.method import Method, Result
from stillroom.seeds import seed_of
from stillroom.task import Task

Watch = Callable[[str], Watcher]
"""Makes the watcher of one fit, by the name of its arm or stage."""

STAGE = 6
"""Keeps the seeds of stages apart from all else that is made from a run's seed."""


def unwatched(arm: str) -> Watcher:
    """Nobody watches."""
    return Watcher()


@dataclass
class Fitter:
    """Fits on one task. A stage that was finished before the run was killed comes back from its last checkpoint."""

    engine: Engine
    task: Task
    seed: int
    folder: Path | None = None
    watch: Watch = unwatched
    seconds: float = field(default=0.0, init=False)
    steps: int = field(default=0, init=False)
    stages: int = field(default=0, init=False)

    def __call__(self, method: Method, stage: str = "", **changes: Any) -> Result:
        """See `stillroom.method.Fit`; every stage has a seed of its own."""
        folder, seed = self.folder, self.seed
        if stage:
            self.stages += 1
            seed = seed_of(self.seed, STAGE, self.stages)
            folder = folder and folder / "stages" / f"{self.stages:02d}-{stage}"
        engine = replace(self.engine, **changes)
        result = engine.fit(method, self.task, seed, folder, self.watch(stage or method.name))
        self.seconds += result.seconds
        self.steps += result.steps
        return result

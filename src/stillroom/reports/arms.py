"""The arms of a run as its page shows them: in order, named in plain words, each with its look and its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stillroom.history import read_fit
from stillroom.reports.formats import known
from stillroom.reports.palette import LOOKS, Look
from stillroom.reports.series import Series

WORDS = {"teacher": "teacher", "student": "distilled student"}
ROLE_LOOKS = {"student": LOOKS[0], "baseline": LOOKS[1], "teacher": LOOKS[2]}
ORDER = {"teacher": 0, "baseline": 1, "student": 3}  # Arms of other roles stand between the two students.


@dataclass(frozen=True)
class Arm:
    """One arm of a run: what result.json says of it, and its rows of metrics."""

    name: str
    role: str
    label: str
    look: Look
    test: Mapping[str, Any]
    validation: Mapping[str, Any]
    cost: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]

    def validation_curve(self, metric: str) -> Series:
        """The metric on the validation split over epochs."""
        return self._series(
            [(row, row["validation"].get(metric)) for row in self.rows if "validation" in row]
        )

    def loss_curve(self) -> Series:
        """The loss of the first player over epochs, as it was logged in training."""
        key = next((key for row in self.rows for key in row if key.startswith("loss/")), "")
        return self._series([(row, row[key]) for row in self.rows if key in row])

    def level(self, metric: str) -> Series:
        """The metric on the validation split after training, as a series of one."""
        return Series(self.label, self.look, [self.validation.get(metric)])

    def _series(self, pairs: Sequence[tuple[Mapping[str, Any], Any]]) -> Series:
        return Series(self.label, self.look, [y for _, y in pairs], [row.get("epoch") for row, _ in pairs])


@dataclass(frozen=True)
class Arms:
    """All arms, and which of them the verdict is about; `baseline` is missing where the method is that arm."""

    all: Sequence[Arm]
    student: Arm
    baseline: Arm | None
    teacher: Arm | None


def read_arms(result: Mapping[str, Any], folder: Path) -> Arms:
    """The arms of `result`, with the rows of metrics below `folder`, the run's own."""
    spare = iter(LOOKS[3:] * len(result["arms"]))
    arms = []
    for name, arm in result["arms"].items():
        role = arm["role"]
        rows = read_fit(folder / arm["folder"]) if arm.get("folder") else []
        look = ROLE_LOOKS[role] if role in ROLE_LOOKS else next(spare)
        test, validation, cost = (arm.get(part) or {} for part in ("test", "validation", "cost"))
        arms.append(Arm(name, role, WORDS.get(role, name), look, test, validation, cost, rows))
    arms = _told_apart(sorted(arms, key=lambda arm: ORDER.get(arm.role, 2)))
    roles = {arm.role: arm for arm in arms}
    student = roles.get("student", arms[-1])
    baseline = roles.get("baseline")
    return Arms(arms, student, None if baseline is student else baseline, roles.get("teacher"))


def _told_apart(arms: Sequence[Arm]) -> list[Arm]:
    """The arms, named as they are called where a label would stand for two; a plain student is never 'distilled'."""
    labels = [arm.label for arm in arms]
    named = []
    for arm in arms:
        label = f"{arm.label} ({arm.name})" if labels.count(arm.label) > 1 else arm.label
        named.append(replace(arm, label="plain student" if arm.name == "plain" else label))
    return named


def scalars(values: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of `values` that are single numbers, or None for a number that is infinite."""
    return {key: value for key, value in values.items() if value is None or known(value)}

"""Figures of long-tailed training: accuracy by how common a class is, of arms and of experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

from stillroom.reports.figures import Series, per_class_bars
from stillroom.reports.generation_figures import histogram_bars
from stillroom.reports.palette import LOOKS

FEW = 30
"""Up to so many classes are drawn one by one."""
PARTS = 10


def tail_figures(
    arms: Mapping[str, Mapping[str, Any]],
    classes: Sequence[str],
    counts: Sequence[int],
    groups: Mapping[str, Sequence[int]],
) -> list[dict[str, str]]:
    """Bars of many, medium and few by arm, and the experts' accuracies, from common classes to rare ones.

    `arms` are scores by name, each with its `experts`; nothing where there are none.
    """
    if not arms:
        return []
    shown = [name for name in groups if all(f"{name}_accuracy" in row for row in arms.values())]
    sizes = ", ".join(f"{name} {len(groups[name])}" for name in shown)
    keys = ["balanced_accuracy", *(f"{name}_accuracy" for name in shown)]
    bars = [(name, [100 * row[key] for key in keys]) for name, row in arms.items()]
    found = [
        {
            "title": "Accuracy by how common a class is",
            "caption": f"Means over classes on the test split, by their number of training images; classes: {sizes}.",
            "svg": histogram_bars(["all", *shown], bars, "accuracy, %", "accuracy by how common a class is"),
        }
    ]
    for name, row in arms.items():
        if len(row["experts"]) > 1:
            found.append(_experts(name, row["experts"], classes, counts))
    return found


def _experts(
    arm: str, experts: Sequence[Mapping[str, Any]], classes: Sequence[str], counts: Sequence[int]
) -> dict[str, str]:
    ranked = sorted(range(len(counts)), key=lambda c: -counts[c])
    parts = [[c] for c in ranked]
    names = [f"{classes[c]} ({counts[c]})" for c in ranked]
    if len(ranked) > FEW:
        parts = [ranked[i * len(ranked) // PARTS : (i + 1) * len(ranked) // PARTS] for i in range(PARTS)]
        names = [f"{counts[part[0]]} to {counts[part[-1]]}" for part in parts]
    series = [
        Series(f"expert {number}", look, [_mean(row["per_class_accuracy"], part) for part in parts])
        for number, (row, look) in enumerate(zip(experts, cycle(LOOKS)), 1)
    ]
    many = "a tenth of the classes" if len(ranked) > FEW else "a class"
    marks = ", ".join(f"expert {number} {_word(one.look.marker)}" for number, one in enumerate(series, 1))
    return {
        "title": f"Accuracy of each expert of {arm}",
        "caption": f"A row {many}, the most common first, with its number of training images: {marks}.",
        "svg": per_class_bars(names, series),
    }


def _mean(per_class: Sequence[float | None], part: Sequence[int]) -> float | None:
    found = [value for value in (per_class[c] for c in part) if value is not None]
    return sum(found) / len(found) if found else None


def _word(marker: str) -> str:
    return {"o": "a circle", "s": "a square", "D": "a diamond", "^": "a triangle"}[marker]

"""Figures of settings: accuracy against cost, exits taken, reliability, conformal sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

from stillroom.reports.figures import Series, reliability_diagram
from stillroom.reports.generation_figures import histogram_bars, lines
from stillroom.reports.palette import LOOKS

Row = dict[str, Any]
"""One setting's numbers: name, cost (a share), accuracy and the like, histogram [L], reliability."""


def setting_figures(arms: Mapping[str, list[Row]], budgets: Sequence[float]) -> list[dict[str, str]]:
    """The pictures of all arms, by name; settings are rows, always leaving at the first or last exit among them."""
    middle = sorted(budgets)[len(budgets) // 2]
    near = {name: min(rows, key=lambda row: abs(row["cost"] - middle)) for name, rows in arms.items()}
    exits = range(1, 1 + max(len(row["histogram"]) for row in near.values()))
    told = ", ".join(f"{name} at {row['name']}, {row['cost']:.0%} of the cost" for name, row in near.items())
    bars = [(name, [100 * share for share in row["histogram"]]) for name, row in near.items()]
    diagrams = [
        Series(name, look, d["accuracy"], d["confidence"], d["count"])
        for (name, d), look in zip(((n, row["reliability"]) for n, row in near.items()), cycle(LOOKS))
    ]
    return [
        {
            "title": "Accuracy against cost",
            "caption": "A point a setting, on the test split; the ends are leaving at the first exit and never.",
            "svg": _curves(arms, "accuracy", "accuracy, %", 100),
        },
        {
            "title": "Where samples leave",
            "caption": f"Share of the test samples at each exit: {told}.",
            "svg": histogram_bars([str(exit_) for exit_ in exits], bars, "samples, %", "samples by exit"),
        },
        {
            "title": "Reliability",
            "caption": f"Of the answers at the exits taken: {told}.",
            "svg": reliability_diagram(diagrams),
        },
        {
            "title": "Calibration against cost",
            "caption": "Expected calibration error of the answers at the exits taken.",
            "svg": _curves(arms, "expected_calibration_error", "calibration error, %", 100),
        },
        {
            "title": "Conformal sets",
            "caption": "Mean number of classes in a set, at equal promised coverage; "
            + ", ".join(f"{name} covers {row['coverage']:.1%}" for name, row in near.items())
            + " at the setting shown above.",
            "svg": _curves(arms, "set_size", "classes in a set", 1, chosen=True),
        },
    ]


def _curves(arms: Mapping[str, list[Row]], key: str, label: str, scale: float, chosen: bool = False) -> str:
    curves = []
    for name, rows in arms.items():
        ranked = sorted((row for row in rows if row["chosen"] or not chosen), key=lambda row: row["cost"])
        curves.append((name, [100 * row["cost"] for row in ranked], [scale * row[key] for row in ranked]))
    return lines(curves, "cost, % of the full network", label, f"{label} against cost")

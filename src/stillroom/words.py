"""How numbers and outcomes are said."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stillroom.task import Task

SHARES = ("expected_calibration_error", "top_1", "top_5", "agreement")


def is_share(metric: str) -> bool:
    """Whether a metric is a share in [0, 1], said in percent: accuracies of any kind, and `SHARES`."""
    return metric in SHARES or metric.endswith("accuracy")


def amount(metric: str, value: float) -> str:
    """A value of a metric: `93.1 %` or `0.0182`."""
    return f"{100 * value:.1f} %" if is_share(metric) else f"{value:.4g}"


def change(metric: str, value: float) -> str:
    """A difference of a metric: `+2.6 points` or `-0.0021`."""
    points = round(100 * value, 1) + 0.0  # adding 0 turns -0.0 into 0.0
    return f"{points:+.1f} points" if is_share(metric) else f"{value:+.4g}"


def span(metric: str, interval: tuple[float, float]) -> str:
    """An interval of differences: `+1.1 to +4.0 points`."""
    low, high = interval
    if is_share(metric):
        return f"{100 * low:+.1f} to {100 * high:+.1f} points"
    return f"{low:+.3g} to {high:+.3g}"


def pair_words(row: Mapping[str, Any], joined: str = ">") -> str:
    """The two arms of a comparison, by what number where that is not the claim's own, and what it may be worse by."""
    told = f" by {row['metric'].replace('_', ' ')}" if row.get("metric") else ""
    told += f" or at most {row['margin']:g} worse" if row.get("margin") else ""
    return f"{row['better']} {joined} {row['worse']}{told}"


def verdict_words(
    task: Task,
    own: str,
    other: str | None,
    scores: Mapping[str, float],
    interval: tuple[float, float] | None,
    samples: int,
    role: str = "the same student trained without it",
) -> dict[str, Any]:
    """Whether the method `own` did better than the plain arm `other` in one run, with the interval over samples."""
    metric = task.metric
    here = f"{metric.replace('_', ' ')} {amount(metric, scores[own])}"
    if other is None:
        text = f"{own}: {here} on the test split. There is no other arm in this run to compare it with."
        return {"kind": "not compared", "text": text, "difference": None, "interval": None}
    difference = scores[own] - scores[other]
    better = 1 if task.higher_is_better else -1
    kind = "no clear difference"
    if interval is not None and interval[0] * interval[1] > 0:
        kind = "helped" if interval[0] * better > 0 else "hurt"
    opening = {
        "helped": f"{own} helped",
        "hurt": f"{own} hurt",
        "no clear difference": f"{own} made no clear difference",
    }[kind]
    spread = ""
    if interval is not None:
        spread = f" (95 % interval over the {samples} {task.per_sample_words}: {span(metric, interval)})"
    text = (
        f"{opening}: {here} against {amount(metric, scores[other])} for {role}, "
        f"{change(metric, difference)}{spread}. This is one seed; `stillroom compare` shows the spread over seeds."
    )
    return {
        "kind": kind,
        "text": text,
        "difference": difference,
        "interval": list(interval) if interval else None,
    }

"""What a run's page says of the price of distilling, and of when it is paid back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stillroom.reports.arms import Arms
from stillroom.reports.formats import SPACE, duration, engineering, known, ratio


def rows(costs: Mapping[str, float]) -> list[dict[str, Any]]:
    """The costs in words; times with their share of the longest, unless there is only one."""
    times = _times(costs)
    longest = max(times.values(), default=0) if len(times) > 1 else 0
    made = []
    for name, value in costs.items():
        text = engineering(value, "B") if name.startswith("bytes") else duration(value)
        made.append(
            {
                "name": name,
                "text": text,
                "share": times[name] / longest if longest and name in times else None,
            }
        )
    return made


def summary(costs: Mapping[str, float], arms: Arms) -> list[str]:
    """Sentences: distilling beside plain training, and what running the student wins back."""
    times = _times(costs)
    plain = times.get("plain student")
    if "distilled student" not in times:
        return []
    if not plain:
        return _won_back(times["distilled student"], arms)
    whole = sum(times.values()) - plain
    price = (
        f"From scratch, distilling took {duration(whole)}; the plain student took {duration(plain)}. "
        f"That is {ratio(whole, plain)}{SPACE}times as long."
    )
    return [price, *_won_back(whole - times.get("teacher training", 0), arms)]


def _won_back(price: float, arms: Arms) -> list[str]:
    """After how many predictions the student has saved `price` seconds over its teacher."""
    slow, fast = (_batch_seconds(arm.cost) if arm else None for arm in (arms.teacher, arms.student))
    if not known(slow) or not known(fast):
        return []
    if slow <= fast:
        return ["On this machine the student is no faster than its teacher, so the time is not won back."]
    uses = engineering(64 * price / (slow - fast))
    what = "predictions" if "latency_64" in arms.student.cost else "samples"
    return [
        f"Against keeping the teacher in use, distilling has paid for itself after {uses} {what} in "
        "batches of 64 on this machine."
    ]


def _batch_seconds(cost: Mapping[str, Any]) -> float | None:
    """Seconds of a batch of 64: of predictions, or of samples."""
    if "seconds_per_sample" in cost:
        return 64 * cost["seconds_per_sample"]
    return cost.get("latency_64")


def _times(costs: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in costs.items() if not name.startswith("bytes") and known(value)}

"""The figures of a run and of a claim, as SVG text for a page. Shares come in [0, 1] and are shown in percent.

All are drawn for a column of about 340 CSS pixels, the width of a phone, so that their text stays readable
there. Missing numbers (None, NaN) are gaps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from stillroom.reports.class_figures import WIDTH, class_spread, confusion_change, per_class_bars
from stillroom.reports.drawing import INK, MUTED, PAPER, draw
from stillroom.reports.formats import amount, known, spoken
from stillroom.reports.palette import SENTINELS
from stillroom.reports.series import Series, clip, line, marker, scaled
from stillroom.words import is_share

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "Difference",
    "Series",
    "class_spread",
    "confusion_change",
    "learning_curves",
    "paired_differences",
    "per_class_bars",
    "reliability_diagram",
]

Tone = Literal["better", "worse", "unclear"]

TONES: dict[Tone, str] = {"better": SENTINELS["arm-1"], "worse": SENTINELS["arm-2"], "unclear": MUTED}


@dataclass(frozen=True)
class Difference:
    """A paired comparison: a difference a seed, their mean and its interval; any of them may be missing."""

    label: str
    tone: Tone
    differences: Sequence[float] = ()
    mean: float | None = None
    interval: Sequence[float] | None = None


def learning_curves(
    arms: Sequence[Series], metric: str, levels: Sequence[Series] = (), small: bool = False
) -> str:
    """Lines of `metric` over epochs; `levels` are arms of which only the last number is known (`y` of one entry).

    The axis is chosen for the second half of training, where arms differ by little: a steep start is cut off.
    """
    share = is_share(metric)
    arms, levels = ([one for one in given if one.points()] for given in (arms, levels))

    def paint(axes: Axes) -> None:
        for level in levels:
            axes.axhline(scaled(level.y[-1], share), **line(level.look))
        for arm in arms:
            points = arm.points()
            axes.plot([x for x, _, _ in points], [scaled(y, share) for _, y, _ in points], **line(arm.look))
            axes.plot(points[-1][0], scaled(points[-1][1], share), **marker(arm.look, 5))
        low, high = _view(arms, levels)
        axes.set_ylim(scaled(low, share), scaled(high, share))
        axes.set(xlabel="epoch", ylabel=f"{spoken(metric)}{', %' if share else ''}")
        axes.grid(axis="y")
        axes.locator_params(nbins=4 if small else 6, min_n_ticks=2)

    ends = [f"{arm.label} ends at {amount(metric, arm.points()[-1][1])}" for arm in [*arms, *levels]]
    title = f"{spoken(metric)} by epoch: {', '.join(ends)}"
    return draw(WIDTH * (0.7 if small else 1), 215, title, paint)


def _view(arms: Sequence[Series], levels: Sequence[Series]) -> tuple[float, float]:
    """Ends of the axis: all values, but no further from those of the second half than three times their range."""
    curves = [[y for _, y, _ in one.points()] for one in [*arms, *levels]]
    late = [y for curve in curves for y in curve[len(curve) // 2 :]]
    values = [y for curve in curves for y in curve]
    reach = 3 * max(max(late) - min(late), 0.02 * max(map(abs, late)))
    low, high = max(min(values), min(late) - reach), min(max(values), max(late) + reach)
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1
    return low - margin, high + margin


def reliability_diagram(arms: Sequence[Series]) -> str:
    """Accuracy over confidence (Guo et al., ICML 2017, arXiv:1706.04599, fig. 1); areas grow with the samples."""

    def paint(axes: Axes) -> None:
        axes.plot([0, 100], [0, 100], color=MUTED, linewidth=0.8, dashes=(1, 2))
        for arm in arms:
            points = arm.points()
            x, y = ([100 * point[i] for point in points] for i in (0, 1))
            total = sum(weight for _, _, weight in points) or 1
            axes.plot(x, y, **line(arm.look) | {"alpha": 0.4, "linewidth": 1})
            sizes = [5 + 130 * weight / total for _, _, weight in points]
            axes.scatter(
                x, y, s=sizes, marker=arm.look.marker, color=arm.look.sentinel, edgecolor=PAPER, linewidth=0.7
            )
        axes.set(xlim=(-2, 103), ylim=(-2, 103), xticks=range(0, 101, 25), yticks=range(0, 101, 25))
        axes.set(xlabel="confidence, %", ylabel="accuracy, %", aspect="equal")
        axes.grid()

    names = ", ".join(arm.label for arm in arms)
    return draw(
        WIDTH, WIDTH - 10, f"accuracy over confidence of {names}; the diagonal is perfect calibration", paint
    )


def paired_differences(rows: Sequence[Difference], metric: str, axis: str) -> str:
    """One row a comparison: a dot a seed, the mean as a diamond, the interval as a line; zero is marked."""
    share = is_share(metric)
    height = 46 if any(row.label for row in rows) else 34

    def paint(axes: Axes) -> None:
        axes.axvline(0, color=INK, linewidth=0.9)
        for index, row in enumerate(rows):
            _comparison(axes, row, -index, share)
        axes.set(ylim=(0.55 - len(rows), 0.62), yticks=[], xlabel=f"{axis}{', points' if share else ''}")
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_formatter(lambda x, _: amount("", x, signed=True))
        axes.margins(x=0.08)
        axes.grid(axis="x")

    ends = [f"{row.label}: {amount(metric, row.mean, signed=True)}".removeprefix(": ") for row in rows]
    return draw(WIDTH, 44 + height * len(rows), f"{axis}, {'; '.join(ends)}", paint)


def _comparison(axes: Axes, row: Difference, y: float, share: bool) -> None:
    colour = TONES[row.tone]
    dots = [scaled(value, share) for value in row.differences if known(value)]
    axes.scatter(
        dots, [y + 0.16 + 0.1 * rise for rise in _heights(dots)], s=17, color="none", edgecolor=MUTED
    )
    if row.interval is not None and all(map(known, row.interval)):
        axes.plot([scaled(end, share) for end in row.interval], [y - 0.1] * 2, color=colour, linewidth=2.6)
    if known(row.mean):
        axes.plot(scaled(row.mean, share), y - 0.1, "D", color=colour, markersize=7, markeredgecolor=PAPER)
    if row.label:
        across, plate = axes.get_yaxis_transform(), {"facecolor": PAPER, "linewidth": 0, "pad": 1.5}
        axes.text(0, y + 0.36, clip(row.label, 50), transform=across, color=INK, va="bottom", bbox=plate)


def _heights(values: Sequence[float]) -> list[int]:
    """0 or 1 for each dot, so that neighbours closer than a fiftieth of the range do not hide each other."""
    reach = (max(values) - min(values)) / 50 if values else 0
    ranked, heights = sorted(range(len(values)), key=values.__getitem__), [0] * len(values)
    for before, after in pairwise(ranked):
        if values[after] - values[before] <= reach:
            heights[after] = 1 - heights[before]
    return heights

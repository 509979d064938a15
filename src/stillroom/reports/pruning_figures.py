"""Figures of what was kept of a data set and what it is worth: SVG with title and caption, for a page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stillroom.reports.class_figures import WIDTH
from stillroom.reports.drawing import draw
from stillroom.reports.formats import amount, significant, spoken
from stillroom.reports.generation_figures import histogram_bars, lines, sample_grid
from stillroom.reports.palette import LOOKS
from stillroom.reports.series import clip, line, marker

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch import Tensor

    from stillroom.data import Source

Figure = dict[str, str]
BINS = 20


def accuracy_by_fraction(
    series: Sequence[tuple[str, Sequence[float], Sequence[Sequence[float]]]], of: str
) -> Figure:
    """Accuracy against the fraction of training samples that is kept, on a logarithmic axis, a line a series.

    (label, fractions [n] in (0, 1], accuracies [n][seeds] in [0, 1]): the line goes through the means over seeds, and
    a stroke at each point from the smallest to the largest. `of` says what split it is.
    """

    def paint(axes: Axes) -> None:
        for index, (label, fractions, found) in enumerate(series):
            look = LOOKS[index % len(LOOKS)]
            x, means = [100 * f for f in fractions], [100 * sum(one) / len(one) for one in found]
            axes.plot(x, means, label=clip(label, 46), **(marker(look, 6) | line(look)))
            for at, one in zip(x, found, strict=True):
                if len(one) > 1:
                    axes.plot(
                        [at, at],
                        [100 * min(one), 100 * max(one)],
                        color=look.sentinel,
                        linewidth=1,
                        alpha=0.5,
                    )
        places = sorted({100 * f for _, fractions, _ in series for f in fractions})
        axes.set(xscale="log", xlabel="kept of the training samples, %", ylabel="accuracy, %")
        axes.set_xticks(places, [significant(place) for place in places])
        axes.set_xticks([], minor=True)
        axes.margins(x=0.08, y=0.12)
        axes.grid(axis="y")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.01), frameon=False, borderaxespad=0, fontsize=10)

    ends = [f"{label}: {amount('accuracy', sum(found[-1]) / len(found[-1]))}" for label, _, found in series]
    title = f"accuracy against the kept fraction, {', '.join(ends)}"
    spread = (
        " Strokes reach from the worst seed to the best." if any(len(f[0]) > 1 for _, _, f in series) else ""
    )
    return {
        "title": "Accuracy against the kept fraction",
        "caption": f"Accuracy on the {of} against the share of the training samples that was trained on.{spread}",
        "svg": draw(WIDTH, 225 + 16 * len(series), title, paint),
    }


def kept_by_class(labels: Any, mask: Any, names: Sequence[str] | None) -> Figure:
    """The classes' shares of all samples and of the kept ones. labels [N], mask [N] of those kept."""
    y, chosen = np.asarray(labels), np.asarray(mask)
    count = max(int(y.max()) + 1, len(names or ()))
    shares = [100 * np.bincount(part, minlength=count) / max(1, len(part)) for part in (y, y[chosen])]
    called = list(names) if names else [str(index) for index in range(count)]
    lost = int(((shares[0] > 0) & (shares[1] == 0)).sum())
    gone = f" No sample of {lost} {'class' if lost == 1 else 'classes'} is kept." if lost else ""
    return {
        "title": "What was kept, by class",
        "caption": f"Each class's share of the {len(y):,} samples and of the {int(chosen.sum()):,} kept.{gone}",
        "svg": histogram_bars(called, [("kept", shares[1]), ("all", shares[0])], "share, %", "classes"),
    }


def scores(values: Any, mask: Any, rule: str) -> Figure:
    """How the rule's scores are spread over all samples, and over those kept. values [N], may be infinite; mask [N]."""
    found, chosen = np.asarray(values, dtype=np.float64), np.asarray(mask)
    finite = np.isfinite(found)
    low, high = (found[finite].min(), found[finite].max()) if finite.any() else (0.0, 1.0)
    edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    counts = [np.histogram(found[finite & part], edges)[0] for part in (chosen, ~chosen)]
    middles = [significant(float(edge), 2) for edge in (edges[:-1] + edges[1:]) / 2]
    never = int((~finite).sum())
    note = f" {never:,} samples were never learned and have no number." if never else ""
    return {
        "title": f"Scores of the rule {rule}",
        "caption": f"Samples by their score, the harder the further right, kept and not kept.{note}",
        "svg": histogram_bars(middles, [("kept", counts[0]), ("not kept", counts[1])], "samples", "scores"),
    }


def extremes(hardest: Any, easiest: Any) -> Figure:
    """The images [n, C, H, W], C 1 or 3, of any range, with the largest and with the smallest scores."""
    both = [np.asarray(images, dtype=np.float64) for images in (hardest, easiest)]
    low, high = min(one.min() for one in both), max(one.max() for one in both)
    scaled = [2 * (one - low) / max(high - low, 1e-12) - 1 for one in both]
    return {
        "title": "The hardest and the easiest samples",
        "caption": "Training samples with the largest and with the smallest scores.",
        "svg": sample_grid(list(zip(("hardest", "easiest"), scaled, strict=True)), "samples by score"),
    }


def weight(values: Mapping[float, float], chosen: float | None, metric: str) -> Figure:
    """The validation metric by the teacher's weight alpha, and the weight that was chosen."""
    alphas = sorted(values)
    scale = 100 if metric == "accuracy" else 1
    series = [("tried", alphas, [scale * values[alpha] for alpha in alphas])]
    if chosen is not None and math.isfinite(values[chosen]):
        series.append((f"chosen: {chosen:g}", [chosen], [scale * values[chosen]]))
    unit = ", %" if metric == "accuracy" else ""
    return {
        "title": "Where the teacher's weight comes from",
        "caption": f"{spoken(metric).capitalize()} on the validation split against alpha, a training each.",
        "svg": lines(series, "alpha", f"{spoken(metric)}{unit}", "alpha"),
    }


def kept_figures(source: Source, ids: Tensor, values: Tensor | None, rule: str, names: Any) -> list[Figure]:
    """All that shows what was kept of the samples of `source`: `ids`, by scores [N] where the rule has any."""
    mask = np.zeros(len(source), dtype=bool)
    mask[ids.numpy()] = True
    found = [] if source.labels is None else [kept_by_class(source.labels, mask, names)]
    if values is None:
        return found
    found.append(scores(values, mask, rule))
    order = values.argsort(descending=True)
    hardest, easiest = (source.fetch(some, None)[0] for some in (order[:10], order.flip(0)[:10]))
    if hardest.ndim == 4 and hardest.shape[1] in (1, 3):
        found.append(extremes(hardest, easiest))
    return found

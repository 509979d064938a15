"""Figures of cultivation: what is paid for which error, the code and its circuit, the volume, the true check."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stillroom.reports.class_figures import WIDTH
from stillroom.reports.drawing import INK, MUTED, PAPER, draw
from stillroom.reports.formats import significant
from stillroom.reports.generation_figures import histogram_bars
from stillroom.reports.palette import LOOKS
from stillroom.reports.series import clip, line, marker
from stillroom.science.rp2_cultivation import codes
from stillroom.science.rp2_cultivation.growth import bell_pairs_surface, prepared, reach
from stillroom.science.rp2_cultivation.product import Cultivated
from stillroom.science.rp2_cultivation.sampling import Tally, interval
from stillroom.science.rp2_cultivation.state_vector import gauge_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from stillroom.science.rp2_cultivation.task import MagicState

Curve = tuple[str, Sequence[float], Sequence[float], Sequence[tuple[float, float]]]
"""Label, x, y, and the interval of each y."""


def pictures(task: MagicState, products: Mapping[str, Any]) -> list[dict[str, str]]:
    """All figures of a run, by arm."""
    made = [*_against_attempts(task, products), *_against_noise(task, products)]
    made += [_layout(product) for product in products.values() if product.made.get("checked")][:1]
    return [*made, _volumes(task, products), _true_check()]


# -- error against what it costs ----------------------------------------------------------------------------------


def curve_of_cuts(
    tally: Tally, points: int = 12
) -> tuple[list[float], list[float], list[tuple[float, float]]]:
    """Attempts a kept shot, logical error and its interval, at gap cuts from none to three quarters of the shots."""
    cuts = np.unique(np.quantile(tally.gaps, np.linspace(0, 0.75, points), method="lower"))
    rows = [
        (tally.shots / kept, errors / kept, interval(errors, kept))
        for kept, errors in map(tally.counts, cuts)
    ]
    x, y, bounds = zip(*rows, strict=True)
    return list(x), list(y), list(bounds)


def _against_attempts(task: MagicState, products: Mapping[str, Any]) -> list[dict[str, str]]:
    curves: list[Curve] = []
    for name, product in products.items():
        tally, _ = task.tally(product, "test")
        if np.isfinite(tally.gaps).all() and len(tally.gaps):
            curves.append((name, *curve_of_cuts(tally)))
    if not curves:
        return []
    caption = (
        "Logical error per kept shot over attempts per kept shot, at rising cuts of the cluster gap; bars are 95 % "
        "Clopper-Pearson intervals, a bar without a marker has no error among its shots."
    )
    svg = with_intervals(
        curves, "attempts a kept shot", "logical error", "Logical error over attempts", log_x=False
    )
    return [{"title": "Error against attempts", "caption": caption, "svg": svg}]


def sweep(task: MagicState, product: Cultivated) -> list[Tally] | None:
    """Shots of the cultivation without its growth, at each strength of the task's sweep."""
    tallies = []
    for i, p in enumerate(task.sweep):
        base = task.noise
        alone = product.alone(base.scaled(p / base.two)) if base.two else None
        if alone is None:
            return None
        tallies.append(alone.sampler().tally(task.sweep_shots, task.seed_for(2 + i)))
    return tallies


def slope(p: Sequence[float], tallies: Sequence[Tally]) -> float | None:
    """The power of p that the logical error goes with: least squares of the logarithms, weighted by the errors."""
    rows = [(x, *tally.counts()) for x, tally in zip(p, tallies, strict=True)]
    rows = [(x, kept, errors) for x, kept, errors in rows if errors]
    if len({x for x, _, _ in rows}) < 2:
        return None
    x, y = np.log([row[0] for row in rows]), np.log([row[2] / row[1] for row in rows])
    return float(np.polyfit(x, y, 1, w=np.sqrt([row[2] for row in rows]))[0])


def _against_noise(task: MagicState, products: Mapping[str, Any]) -> list[dict[str, str]]:
    errors: list[Curve] = []
    kept: list[Curve] = []
    slopes = []
    for name, product in products.items():
        tallies = sweep(task, product)
        if not tallies:
            continue
        counts = [tally.counts() for tally in tallies]
        shares = [k / t.shots for (k, _), t in zip(counts, tallies, strict=True)]
        bounds = [interval(k, t.shots) for (k, _), t in zip(counts, tallies, strict=True)]
        errors.append(
            (name, task.sweep, [e / max(k, 1) for k, e in counts], [interval(e, k) for k, e in counts])
        )
        kept.append((name, task.sweep, shares, bounds))
        found = slope(task.sweep, tallies)
        slopes += [f"{name} {found:.2f}"] if found is not None else []
    if not errors:
        return []
    words = f" Slopes: {', '.join(slopes)}." if slopes else ""
    what = f"without growth, {task.sweep_shots} attempts at each p; 95 % Clopper-Pearson intervals."
    return [
        {
            "title": "Error against noise",
            "caption": f"Logical error per kept shot of the cultivation {what}{words}",
            "svg": with_intervals(errors, "noise p", "logical error", "Logical error over noise"),
        },
        {
            "title": "Acceptance against noise",
            "caption": f"Share of attempts that are kept, of the cultivation {what}",
            "svg": with_intervals(kept, "noise p", "acceptance", "Acceptance over noise"),
        },
    ]


def with_intervals(curves: Sequence[Curve], xlabel: str, ylabel: str, title: str, log_x: bool = True) -> str:
    """Lines with bars from low to high on a logarithmic axis; a value of 0 has its bar's upper end alone."""
    floor = min((b[1] for curve in curves for b in curve[3]), default=1.0) / 30

    def paint(axes: Axes) -> None:
        from matplotlib.ticker import FixedLocator, NullLocator

        for i, (label, x, y, bounds) in enumerate(curves):
            look = LOOKS[i % len(LOOKS)]
            low, high = (np.maximum([b[side] for b in bounds], floor) for side in (0, 1))
            axes.vlines(x, low, high, color=look.sentinel, linewidth=1.2)
            shown = np.where(np.asarray(y, dtype=float) > 0, y, np.nan)
            axes.plot(x, shown, label=clip(label, 30), **(marker(look, 5.5) | line(look)))
        axes.set(xlabel=xlabel, ylabel=ylabel, yscale="log")
        if log_x:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(FixedLocator(sorted({v for curve in curves for v in curve[1]})))
            axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(lambda value, _: significant(value))
        axes.yaxis.set_major_formatter(lambda value, _: significant(value))
        axes.grid(axis="y")
        axes.legend(
            loc="lower left", bbox_to_anchor=(0, 1.01), ncols=2, frameon=False, labelcolor=INK, fontsize=10
        )

    return draw(WIDTH, 245, f"{title}: {', '.join(curve[0] for curve in curves)}", paint)


# -- layout, volume, check ----------------------------------------------------------------------------------------


def _layout(product: Cultivated) -> dict[str, str]:
    d, size = product.made["distance"], product.made["surface"]
    checks = codes.surface_checks(size) if size else codes.rp2_checks(d)
    words = (
        f"The RP^2 code of distance {d} (inner square; a plaquette at its rim is one check with its antipode) in the "
        f"rotated surface code of distance {size}. Data qubits: filled, the RP^2 code; ring, halves of antipodal Bell "
        "pairs; small, prepared in |0> (top and bottom) or |+> (left and right)."
        if size
        else f"The RP^2 code of distance {d}: checks at the rim are one with their antipodes."
    )
    caption = f"{words} X checks are tinted one way, Z checks the other."
    svg = layout(checks, d, f"Layout of the code of distance {size or d}")
    return {"title": "Layout", "caption": caption, "svg": svg}


def layout(checks: Sequence[codes.Check], d: int, title: str) -> str:
    """Plaquettes of a code around the RP^2 code of distance d, data qubits by how they start."""
    data = sorted({site for check in checks for site in check.support})
    far = max(reach(site) for site in data) + 0.8
    ring = {site for pair in bell_pairs_surface(d) for site in pair}
    inner = set(codes.grid(d))

    def paint(axes: Axes) -> None:
        from matplotlib.patches import Polygon, Rectangle

        for check in checks:
            colour = LOOKS[0 if check.kind == "X" else 1].sentinel
            axes.add_patch(
                Polygon(_outline(check.at, data), facecolor=colour, alpha=0.3, edgecolor=INK, linewidth=0.6)
            )
        rim = d / 2
        axes.add_patch(
            Rectangle((-rim, -rim), d, d, fill=False, edgecolor=INK, linewidth=1.4, linestyle="--")
        )
        for x, y in data:
            small = (x, y) not in inner | ring
            face = INK if (x, y) in inner else PAPER if not small or prepared((x, y)) == "+" else MUTED
            axes.plot(
                x,
                y,
                "o",
                color=face,
                markeredgecolor=INK,
                markersize=4 if small else 6.5,
                markeredgewidth=0.9,
            )
        axes.set(xlim=(-far, far), ylim=(far, -far), aspect="equal")
        axes.axis("off")

    return draw(WIDTH, WIDTH, title, paint)


def _outline(at: codes.Site, data: Sequence[codes.Site]) -> NDArray[np.float64]:
    """Corners of a plaquette: a square of data qubits, or towards the middle of what has only some of them."""
    corners = [(at[0] + dx, at[1] + dy) for dx, dy in ((-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5))]
    there = [corner if corner in data else at for corner in corners]
    return np.array(there, dtype=np.float64)


def _volumes(task: MagicState, products: Mapping[str, Any]) -> dict[str, str]:
    """Active qubits x layers of a kept shot by stage, an attempt's discards with the stage that they happen in."""
    longest_first = sorted(products.values(), key=lambda product: -len(product.stages))
    names = dict.fromkeys(stage.name for product in longest_first for stage in product.stages)
    series, totals = [], []
    for arm, product in products.items():
        tally, _ = task.tally(product, "test")
        kept, _ = tally.counts(product.gap)
        shares = np.array(product.costs) * tally.reached() * tally.shots / max(kept, 1)
        by_name = dict(zip([stage.name for stage in product.stages], shares.tolist(), strict=True))
        series.append((arm, [by_name.get(name, np.nan) for name in names]))
        totals.append(f"{arm} {significant(float(shares.sum()))}")
    short = [name.replace("T-check", "T").replace(" round", "").replace(" and memory", "") for name in names]
    caption = (
        "Active qubits x layers of each stage, times the chance to reach it, per kept shot. Sums: "
        f"{', '.join(totals)}. Stages: {'; '.join(names)}."
    )
    svg = histogram_bars(short, series, "qubits x layers a kept shot", "Space-time volume by stage")
    return {"title": "Space-time volume", "caption": caption, "svg": svg}


def _true_check() -> dict[str, str]:
    table = gauge_table()
    caption = (
        "The T-check's expectation on a noiseless T state with true T gates, 15 qubits by state vector: 1 with the "
        "gauge rule, 0 where a fix that the syndrome asks for is left out. The S proxy, of which all rates are, reads "
        "+1 also without the first fix and without any: it is no test of the gauge."
    )
    svg = histogram_bars(
        list(table), [("expectation", list(table.values()))], "expectation", "The true T-check"
    )
    return {"title": "Why the gauge is fixed", "caption": caption, "svg": svg}

"""Figures of what a generator makes, how it gets there and how far it is off, as SVG text for a page.

Samples, points and paths may be NumPy arrays or tensors on the CPU without gradients. Where an argument is called
`title`, it is what a screen reader says; the labels are added to it. Arms take the looks of palette.py in order.
A label is cut where it is too long for its place. Every function raises UserError where an array has another shape
than it names. Pictures are kept small: what is left out is the same for each arm, and is said where it matters.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from stillroom.errors import UserError
from stillroom.reports.class_figures import WIDTH
from stillroom.reports.drawing import GRID, INK, MUTED, PAPER, draw
from stillroom.reports.formats import significant
from stillroom.reports.palette import LOOKS, Look
from stillroom.reports.series import clip, line, marker

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]

__all__ = ["histogram_bars", "lines", "point_clouds", "sample_grid", "trajectories", "trajectory_strip"]

SIZES = {"C": (1, 3), "2": (2,)}

GAP = 3  # Between images, in the figure's units.
LARGEST_CELL, LARGEST_SIDE = (
    64,
    64,
)  # Of an image on the page, in the figure's units, and of its PNG, in pixels.
IN_A_ROW, FRAMES, ROWS = 10, 8, 4

POINTS, ALL_POINTS = 1500, 9000  # Dots drawn in a panel, and in a figure: about 13 bytes each.
PATHS, STEPS, ALL_STEPS = 40, 33, 8000  # Paths in a panel, points of a path, and points in a figure.


def sample_grid(rows: Sequence[tuple[str, Any]], title: str) -> str:
    """A labelled row of images an arm: (label, images [n, C, H, W] in [-1, 1], C 1 or 3); the first ten are shown.

    Values outside the range are clipped, and what is not a number is black.
    """
    arms = [(label, _array(images, "n, C, H, W", title)[:IN_A_ROW]) for label, images in _some(rows, title)]
    pitch = _pitch(max(len(images) for _, images in arms))
    pictures = [_tiled(images, pitch) for _, images in arms]

    def paint(axes: Axes) -> None:
        top = 0.0
        for (label, _), picture in zip(arms, pictures, strict=True):
            axes.text(0, top + 11, clip(label, 52), color=INK, in_layout=False)
            top += 28 + _place(axes, *picture, top + 17)
        _canvas(axes, height)

    height = sum(28 + scale * len(pixels) for pixels, scale in pictures) - 10
    return draw(WIDTH, height, _told(title, [label for label, _ in arms]), paint)


def trajectory_strip(frames: Any, times: Sequence[float], title: str) -> str:
    """Images [steps + 1, n, C, H, W] in [-1, 1] along the paths of the first four samples, a row each.

    `times` are the steps + 1 times of the frames; of many frames eight are shown, the first and last among them.
    Raises UserError where there are not as many times as frames.
    """
    array = _array(frames, "steps + 1, n, C, H, W", title)
    if len(times) != len(array):
        raise UserError(
            f"figure '{title}' has {len(times)} times: pass one for each of the {len(array)} frames"
        )
    chosen = _spread(len(array), FRAMES)
    pitch = _pitch(len(chosen))
    pictures = [_tiled(images, pitch) for images in array[chosen, :ROWS].swapaxes(0, 1)]

    def paint(axes: Axes) -> None:
        for column, index in enumerate(chosen):
            text = ("" if column else "t = ") + significant(float(times[index]), 2)
            middle = column * pitch + (pitch - GAP) / 2
            axes.text(middle, 11, text, ha="center", color=MUTED, fontsize=9.5, in_layout=False)
        top = 17.0
        for picture in pictures:
            top += GAP + _place(axes, *picture, top)
        _canvas(axes, height)

    height = 18 + sum(GAP + scale * len(pixels) for pixels, scale in pictures)
    ends = [significant(float(times[index]), 2) for index in (0, -1)]
    return draw(WIDTH, height, f"{title}: {len(pictures)} samples from time {ends[0]} to {ends[1]}", paint)


def point_clouds(panels: Sequence[tuple[str, Any]], title: str) -> str:
    """Small multiples of points: (label, points [n, 2]), the first panel the real data, in grey.

    All panels have the first one's limits; what lies outside of them, or is no number, is counted in the panel. Of
    many points the first are drawn, as many in each panel.
    """
    clouds = [(label, _array(points, "n, 2", title)) for label, points in _some(panels, title)]
    limits = _limits(clouds[0][1])
    most = min(POINTS, ALL_POINTS // len(clouds))

    def paint(axes: Axes) -> None:
        for index, panel in enumerate(_panels(axes, len(clouds), limits)):
            label, points = clouds[index]
            colour = LOOKS[(index - 1) % len(LOOKS)].sentinel if index else MUTED
            inside = _inside(points, limits)
            seen = points[:most][inside[:most]]
            for layer in range(4):  # One path covers itself without getting darker: four show the density.
                _dots(panel, seen[layer::4], colour, 2.0, 0.5)
            _name(panel, label, int((~inside).sum()))

    return _small(
        draw(WIDTH, _panels_height(len(clouds)), _told(title, [label for label, _ in clouds]), paint)
    )


def trajectories(panels: Sequence[tuple[str, Any]], title: str) -> str:
    """Small multiples of paths: (label, points [steps + 1, n, 2]) from noise (hollow) to data (filled).

    Of the first forty samples, and of many steps a part, the first and last among them. All panels have the first
    one's limits; of the samples shown, those that end outside of them, or are no number there, are counted.
    """
    arms = [
        (label, _array(paths, "steps + 1, n, 2", title)[:, :PATHS]) for label, paths in _some(panels, title)
    ]
    limits = _limits(arms[0][1].reshape(-1, 2))
    most = max(2, min(STEPS, ALL_STEPS // sum(paths.shape[1] for _, paths in arms)))

    def paint(axes: Axes) -> None:
        for index, panel in enumerate(_panels(axes, len(arms), limits)):
            label, paths = arms[index]
            colour = LOOKS[index % len(LOOKS)].sentinel
            thinned = paths[_spread(len(paths), most)]
            panel.plot(thinned[..., 0], thinned[..., 1], color=colour, linewidth=0.8, alpha=0.5)
            starts, ends = (one[_inside(one, limits)] for one in (paths[0], paths[-1]))
            _dots(panel, starts, colour, 4.2)
            _dots(panel, starts, PAPER, 2.6)
            _dots(panel, ends, colour, 4.2)
            _name(panel, label, paths.shape[1] - len(ends))

    return _small(draw(WIDTH, _panels_height(len(arms)), _told(title, [label for label, _ in arms]), paint))


def lines(
    series: Sequence[tuple[str, Any, Any]],
    xlabel: str,
    ylabel: str,
    title: str,
    log_x: bool = False,
    log_y: bool = False,
) -> str:
    """Labelled lines with markers: (label, x [n], y [n]), such as a distance over the number of evaluations.

    What is not finite, or not positive on a logarithmic axis, is a gap.
    """
    curves = [
        (label, *(_array(values, "n", title) for values in (x, y))) for label, x, y in _some(series, title)
    ]
    for label, x, y in curves:
        if len(x) != len(y):
            raise UserError(
                f"figure '{title}': '{label}' has {len(x)} x and {len(y)} y: pass as many of each"
            )

    def paint(axes: Axes) -> None:
        for (label, x, y), look in zip(curves, _looks(len(curves)), strict=True):
            every = math.ceil(len(x) / 16)
            x, y = _positive(x, log_x), _positive(y, log_y)
            axes.plot(x, y, label=label, markevery=every, **(marker(look, 5.5) | line(look)))
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.grid(axis="y")
        axes.locator_params(nbins=6, min_n_ticks=2)
        places = np.unique(np.concatenate([x for _, x, _ in curves]))
        _scale(axes, "x", log_x, places)
        _scale(axes, "y", log_y)
        _legend(axes)

    ends = [f"{label} ends at {significant(float(y[-1]))}" for label, _, y in curves]
    return draw(WIDTH, 215 + 15 * len(curves), _told(title, ends), paint)


def histogram_bars(labels: Sequence[str], series: Sequence[tuple[str, Any]], ylabel: str, title: str) -> str:
    """Grouped bars: (label, values [bins]), and a name for each bin; of many names only some are written.

    A value that is not finite is a gap.
    """
    groups = [(label, _array(values, "bins", title)) for label, values in _some(series, title)]
    for label, values in groups:
        if len(values) != len(labels):
            raise UserError(
                f"figure '{title}': '{label}' has {len(values)} values: pass one for each of {len(labels)} bins"
            )
    names = [clip(name, 12) for name in labels]
    every = math.ceil(len(names) / 13)
    upright = 6 * max(map(len, names)) > 300 * every / len(names)

    def paint(axes: Axes) -> None:
        width = 0.8 / len(groups)
        for index, ((label, values), look) in enumerate(zip(groups, _looks(len(groups)), strict=True)):
            left = np.arange(len(values)) - 0.4 + index * width
            heights = np.where(np.isfinite(values), values, np.nan)
            axes.bar(left, heights, 0.92 * width, align="edge", color=look.sentinel, label=label, linewidth=0)
        axes.axhline(0, color=MUTED, linewidth=0.8)
        axes.set_xticks(range(0, len(names), every), names[::every], rotation=90 if upright else 0)
        axes.set(ylabel=ylabel, xlim=(-0.6, len(names) - 0.4))
        axes.spines[["left", "bottom"]].set_visible(False)
        axes.locator_params(axis="y", nbins=6, min_n_ticks=2)
        axes.yaxis.set_major_formatter(lambda value, _: significant(value))
        axes.grid(axis="y")
        _legend(axes, 1.0)

    return draw(WIDTH, 200 + 15 * len(groups), _told(title, [label for label, _ in groups]), paint)


def _some(given: Sequence[Any], title: str) -> Sequence[Any]:
    if not given:
        raise UserError(f"figure '{title}' has nothing to show: pass at least one labelled array")
    return given


def _array(values: Any, wanted: str, title: str) -> Numbers:
    """The numbers as an array whose axes `wanted` names."""
    array, names = np.asarray(values, dtype=np.float64), wanted.split(", ")
    sizes = [SIZES.get(name, range(1, sys.maxsize)) for name in names]
    if array.ndim != len(names) or any(
        have not in size for have, size in zip(array.shape, sizes, strict=True)
    ):
        colours = " with C 1 or 3" if "C" in names else ""
        raise UserError(
            f"figure '{title}' was given an array of shape {list(array.shape)}: pass [{wanted}]{colours}"
        )
    return array


def _told(title: str, facts: Sequence[str]) -> str:
    return f"{title}: {', '.join(facts)}"


def _looks(count: int) -> list[Look]:
    return [LOOKS[index % len(LOOKS)] for index in range(count)]


def _spread(count: int, most: int) -> NDArray[np.int64]:
    """At most `most` indices below `count`, evenly spread, the first and last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def _canvas(axes: Axes, height: float) -> None:
    """Make the axes the whole figure, in its own units, y downwards."""
    cast("Figure", axes.figure).set_layout_engine("none")
    axes.set_position((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(height, 0), aspect="auto")
    axes.axis("off")


def _pitch(columns: int) -> float:
    """From the left side of one image to that of the next, when so many share a row."""
    return min(LARGEST_CELL, (WIDTH + GAP) / columns)


def _tiled(images: Numbers, pitch: float) -> tuple[NDArray[np.uint8], float]:
    """Images [n, C, H, W] beside each other as [H, width, RGBA], gaps transparent; and a pixel's side in units."""
    values = np.clip(np.nan_to_num(images, nan=-1), -1, 1) / 2 + 0.5
    values = np.broadcast_to(values, (len(images), 3, *images.shape[2:])).transpose(0, 2, 3, 1)
    smaller = np.stack([_smaller((255 * image).round().astype(np.uint8)) for image in values])
    gap = math.ceil(GAP / pitch * smaller.shape[2])
    opaque = np.pad(smaller, ((0, 0), (0, 0), (0, 0), (0, 1)), constant_values=255)
    row = np.concatenate(np.pad(opaque, ((0, 0), (0, 0), (0, gap), (0, 0))), axis=1)
    return row[:, :-gap], pitch / (smaller.shape[2] + gap)


def _place(axes: Axes, pixels: NDArray[np.uint8], scale: float, top: float) -> float:
    """Draw pixels [H, width, RGBA] at the left, of `scale` units each; returns the height."""
    high, wide = scale * pixels.shape[0], scale * pixels.shape[1]
    axes.imshow(pixels, extent=(0, wide, top + high, top), interpolation="none", clip_on=False)
    return high


def _smaller(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The image with its pixels averaged in blocks, where it has more of them than the page shows."""
    from PIL import Image

    return np.asarray(Image.fromarray(image).reduce(math.ceil(max(image.shape) / LARGEST_SIDE)))


def _limits(points: Numbers) -> Numbers:
    """[2, 2]: low and high end of x and of y, of a square around the points [n, 2] that are finite."""
    finite = points[np.isfinite(points).all(axis=1)]
    low, high = (finite.min(axis=0), finite.max(axis=0)) if len(finite) else (np.zeros(2), np.ones(2))
    reach = 0.56 * (high - low).max() or 1.0
    middle = (low + high) / 2
    return np.stack([middle - reach, middle + reach], axis=1)


def _inside(points: Numbers, limits: Numbers) -> NDArray[np.bool_]:
    """[n]: whether a point lies within the limits; one that is not finite does not."""
    x, y = points[:, 0], points[:, 1]
    (left, right), (low, high) = limits
    return (x >= left) & (x <= right) & (y >= low) & (y <= high)


def _panels(axes: Axes, count: int, limits: Numbers) -> list[Axes]:
    """So many square panels in place of the axes, two in a line, with numbers at the outer ones only."""
    figure, columns = axes.figure, min(count, 2)
    axes.remove()
    grid = figure.subplots(math.ceil(count / columns), columns, squeeze=False).flatten()
    for index, panel in enumerate(grid):
        panel.set(xlim=limits[0], ylim=limits[1], aspect="equal")
        panel.locator_params(nbins=4)
        panel.tick_params(labelleft=index % columns == 0, labelbottom=index + columns >= count, labelsize=9)
        panel.spines[:].set(visible=True, color=GRID)
        panel.set_visible(index < count)
    return list(grid[:count])


def _panels_height(count: int) -> float:
    return 345.0 if count == 1 else 20 + 174.0 * math.ceil(count / 2)


def _name(panel: Axes, label: str, outside: int) -> None:
    """The panel's label above it, and inside it how many samples it does not show because of its limits."""
    panel.set_title(clip(label, 26), loc="left", fontsize=10.5, color=INK)
    if outside:
        plate = {"facecolor": PAPER, "linewidth": 0, "pad": 1.5, "alpha": 0.8}
        text = f"{outside} outside"
        panel.text(0.97, 0.03, text, transform=panel.transAxes, ha="right", color=INK, fontsize=9, bbox=plate)


def _dots(axes: Axes, points: Numbers, colour: str, size: float, alpha: float = 1.0) -> None:
    """Dots at points [n, 2] as one path, of strokes without length: a tenth of the bytes of so many markers."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    if not len(points):
        return
    path = Path(np.repeat(points, 2, axis=0), np.tile([Path.MOVETO, Path.LINETO], len(points)))
    path.should_simplify = False
    axes.add_patch(
        PathPatch(path, fill=False, edgecolor=colour, linewidth=size, alpha=alpha, capstyle="round")
    )


def _small(svg: str) -> str:
    """The SVG with its lines in tenths of a unit, and with its dots in the shortest words."""
    svg = re.sub(r"([ML]) (-?\d+(?:\.\d)?)\d* (-?\d+(?:\.\d)?)\d* \n", r"\1\2 \3", svg)
    return re.sub(r"M(-?[\d.]+ -?[\d.]+)L\1(?![\d.])", r"M\1h0", svg)


def _positive(values: Numbers, log: bool) -> Numbers:
    return np.where(np.isfinite(values) & ((values > 0) | (not log)), values, np.nan)


def _scale(axes: Axes, name: str, log: bool, places: Numbers | None = None) -> None:
    """Numbers as the page writes them; a logarithmic axis has them at `places` if those are few and far apart."""
    from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

    axis = axes.xaxis if name == "x" else axes.yaxis
    if log:
        axes.set(**{f"{name}scale": "log"})
        marks = np.array([]) if places is None else places[np.isfinite(places) & (places > 0)]
        fixed = 0 < len(marks) <= 8 and bool((marks[1:] / marks[:-1] > 1.4).all())
        axis.set_major_locator(FixedLocator(marks.tolist()) if fixed else LogLocator(subs=(1, 2, 5)))
        axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda value, _: significant(value))


def _legend(axes: Axes, length: float = 2.6) -> None:
    """Which arm is which, above the axes, with `length` the width of a sign in letters."""
    handles, labels = axes.get_legend_handles_labels()
    if not labels:  # One line alone may go without a label.
        return
    columns = 2 if max(map(len, labels)) <= 20 else 1
    order = [index for first in range(columns) for index in range(first, len(labels), columns)]  # Row by row.
    axes.legend(
        [handles[index] for index in order],
        [clip(labels[index], 46) for index in order],
        loc="lower left",
        bbox_to_anchor=(0, 1.01),
        ncols=columns,
        frameon=False,
        handlelength=length,
        borderaxespad=0,
        labelspacing=0.35,
        fontsize=10,
        labelcolor=INK,
    )

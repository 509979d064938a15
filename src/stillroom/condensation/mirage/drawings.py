"""Figures: the most frequent forests of each class, how skewed trees are, and scores by kind of network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stillroom.condensation.mirage.graphs import Graph, GraphSet
from stillroom.condensation.mirage.molecules import NUMBER
from stillroom.reports.class_figures import WIDTH
from stillroom.reports.drawing import INK, MUTED, PAPER, draw
from stillroom.reports.generation_figures import histogram_bars, lines
from stillroom.reports.palette import LOOKS
from stillroom.reports.series import clip

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN = 4
"""Forests of a class that are drawn."""

CLASSES = 4
"""Classes that are drawn."""


def pictures(
    products: Mapping[str, GraphSet],
    scores: Mapping[str, Mapping[str, Any]],
    networks: Sequence[str],
    classes: Sequence[str],
    names: str,
) -> list[dict[str, str]]:
    """All figures of a run: title, caption and svg of each. `names` says whether kinds of nodes are elements."""
    series = [(arm, [score[f"auc_{kind}"] for kind in networks]) for arm, score in scores.items()]
    title, measure = "Score by kind of network", "area under the ROC curve"
    kinds = [kind.upper() for kind in networks]
    made = [
        {
            "title": title,
            "caption": f"{measure.capitalize()} on the original test graphs; one set for all kinds of networks.",
            "svg": histogram_bars(kinds, series, measure, title),
        }
    ]
    for arm, product in products.items():
        if product.about["kind"] == "forests":
            made += [_forests(arm, product, classes, names), _skew(product)]
    return made


def _forests(arm: str, product: GraphSet, classes: Sequence[str], names: str) -> dict[str, str]:
    title = f"The most frequent forests of {arm}"
    caption = "Sets of computation trees, roots filled, and how many graphs of the class hold them."
    return {"title": title, "caption": caption, "svg": forests_by_class(product, classes, names, title)}


def _skew(product: GraphSet) -> dict[str, str]:
    title, coverage = "How few trees are most of the nodes", product.about["coverage"]
    x, y = zip(*coverage, strict=True)
    tenth = dict(map(tuple, coverage))[10]
    across, up = "% of distinct trees, most frequent first", "% of all nodes"
    return {
        "title": title,
        "caption": f"A tenth of the {product.about['distinct_trees']:,} distinct trees are those of {tenth:.0f} % of "
        "all nodes.",
        "svg": lines([("training graphs", x, y)], across, up, title, log_x=True),
    }


def forests_by_class(product: GraphSet, classes: Sequence[str], names: str, title: str) -> str:
    """A row of forests a class, the most frequent first."""
    rows = []
    for number, name in enumerate(classes[:CLASSES]):
        own = [graph for graph in product if int(graph.y) == number]
        rows.append((name, sorted(own, key=lambda graph: -float(graph.weight))[:SHOWN]))
    height = 112.0

    def paint(axes: Axes) -> None:
        for row, (name, graphs) in enumerate(rows):
            top = -row * height
            axes.text(0, top, f"class {clip(name, 30)}", color=INK, va="top")
            for column, graph in enumerate(graphs):
                left, wide = column * WIDTH / SHOWN, WIDTH / SHOWN - 14
                _forest(axes, graph, left, wide, top - 24, names)
                axes.text(
                    left, top - 92, f"{float(graph.weight):.0f} graphs", color=MUTED, fontsize=9, va="center"
                )
        axes.set(xlim=(-4, WIDTH), ylim=(-height * len(rows) + 6, 4))
        axes.axis("off")

    return draw(WIDTH, height * len(rows), title, paint)


def _forest(axes: Axes, graph: Graph, left: float, wide: float, top: float, names: str) -> None:
    """Trees side by side, a root above its children, leaves evenly spread over `wide`."""
    below: list[list[int]] = [[] for _ in range(len(graph.x))]
    for child, parent in graph.edge_index.T.tolist():
        below[parent].append(child)
    place: dict[int, tuple[float, int]] = {}
    leaves = 0

    def lay(node: int, depth: int) -> float:
        nonlocal leaves
        if below[node]:
            x = sum(lay(child, depth + 1) for child in below[node]) / len(below[node])
        else:
            x, leaves = float(leaves), leaves + 1
        place[node] = (x, depth)
        return x

    roots = graph.roots.nonzero().flatten().tolist()
    for root in roots:
        lay(root, 0)
    scale = wide / max(1, leaves)
    deepest = max(depth for _, depth in place.values())
    at = {n: (left + (x + 0.5) * scale, top - 54 * d / max(1, deepest)) for n, (x, d) in place.items()}
    for parent, children in enumerate(below):
        for child in children:
            axes.plot(*zip(at[parent], at[child], strict=True), color=MUTED, linewidth=0.8, zorder=1)
    size = min(11.0, max(3.0, scale))
    for node, (x, y) in at.items():
        root = node in roots
        colour = LOOKS[0].sentinel if root else PAPER
        axes.plot(
            x, y, "o", color=colour, markersize=size, markeredgecolor=LOOKS[0].sentinel, markeredgewidth=0.9
        )
        if size >= 6:
            ink = PAPER if root else INK
            axes.text(x, y, _name(graph, node, names), color=ink, fontsize=6.5, ha="center", va="center")


_ELEMENTS = {number: element for element, number in NUMBER.items()}


def _name(graph: Graph, node: int, names: str) -> str:
    first = graph.x[node, 0].item()
    if names == "elements":
        return _ELEMENTS.get(int(first), str(int(first)))
    return f"{first:g}"

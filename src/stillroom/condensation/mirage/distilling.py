"""From labelled graphs to forests: the whole of Mirage, and the plain choices that it is held against."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stillroom.condensation.mirage.graphs import (
    EXAMPLE_BYTES,
    Graph,
    GraphSet,
    example_of,
    forest_bytes,
    graph_bytes,
    make_data,
)
from stillroom.condensation.mirage.mining import Mined, Miner
from stillroom.condensation.mirage.trees import END, Tree, canonical_labels, parse
from stillroom.errors import UserError
from stillroom.seeds import seed_of

PLACES = (0.5, 1, 2, 5, 10, 20, 30, 50, 70, 100)
"""Percent of the distinct trees at which it is told what share of all trees they cover."""


@dataclass
class Kinds:
    """Distinct rows of features, numbered: the labels of trees."""

    rows: Tensor
    """The rows, [kinds, k]."""
    of: list[list[int]]
    """The kind of each row, by graph."""

    @classmethod
    def number(cls, features: Sequence[Tensor | None], lengths: Sequence[int]) -> Kinds:
        """Number the rows of all graphs; features that are missing make one kind of all rows."""
        there = [f for f in features if f is not None]
        if not there:
            return cls(torch.zeros(1, 0), [[0] * n for n in lengths])
        rows, numbers = torch.cat(there).unique(dim=0, return_inverse=True)
        return cls(rows, [part.tolist() for part in numbers.split(list(lengths))])


@dataclass
class TreeTable:
    """All distinct trees of the training graphs, numbered, and which graph holds which."""

    labels: list[str]
    """Canonical label of each tree, with the degrees that it has most often."""
    occurrences: list[int]
    """How many nodes have this tree."""
    of: list[list[int]]
    """The trees of the nodes of each graph, without those of a single node."""
    nodes: Kinds
    edges: Kinds

    @classmethod
    def grow(
        cls, graphs: Sequence[Graph], depth: int, most_children: int = 0, exact_degrees: bool = False
    ) -> TreeTable:
        """The trees of depth `depth` of all nodes; with `exact_degrees` other degrees make another tree."""
        nodes = Kinds.number([g.x for g in graphs], [len(g.x) for g in graphs])
        edges = Kinds.number([g.edge_attr for g in graphs], [g.edge_index.shape[1] for g in graphs])
        numbers: dict[str, int] = {}
        variants: list[Counter[str]] = []
        of = []
        for graph, kinds, edge_kinds in zip(graphs, nodes.of, edges.of, strict=True):
            arcs = list(zip(*graph.edge_index.tolist(), edge_kinds, strict=True))
            trees = []
            for plain, full in canonical_labels(kinds, arcs, depth, most_children):
                if plain.count(" ") == 1:
                    continue  # A node alone.
                number = numbers.setdefault(full if exact_degrees else plain, len(numbers))
                if number == len(variants):
                    variants.append(Counter())
                variants[number][full] += 1
                trees.append(number)
            of.append(trees)
        labels = [min(seen, key=lambda label, seen=seen: (-seen[label], label)) for seen in variants]
        return cls(labels, [seen.total() for seen in variants], of, nodes, edges)

    def tree(self, number: int) -> Tree:
        """A tree by its number."""
        return parse(self.labels[number])

    def coverage(self) -> list[list[float]]:
        """[percent of the distinct trees, the most frequent first; percent of all nodes that have one of them]."""
        counts = sorted(self.occurrences, reverse=True)
        total = sum(counts)
        tops = [(place, max(1, round(place / 100 * len(counts)))) for place in PLACES]
        return [[place, 100 * sum(counts[:top]) / total] for place, top in tops] if total else []


def forest(table: TreeTable, numbers: Sequence[int], label: int, weight: float) -> Graph:
    """The training example of these trees: their disjoint union, edges from child to parent, roots marked."""
    kinds: list[int] = []
    degrees: list[int] = []
    children: list[int] = []
    parents: list[int] = []
    edge_kinds: list[int] = []
    roots: list[bool] = []
    for tree in map(table.tree, numbers):
        start = len(kinds)
        kinds += tree.kinds
        degrees += tree.degrees
        children += range(start + 1, start + len(tree))
        parents += [start + parent for parent in tree.parents[1:]]
        edge_kinds += tree.edges[1:]
        roots += [True] + [False] * (len(tree) - 1)
    rows = table.edges.rows
    return make_data(
        x=table.nodes.rows[torch.tensor(kinds)],
        edge_index=torch.tensor([children, parents], dtype=torch.int64),
        edge_attr=rows[torch.tensor(edge_kinds, dtype=torch.int64)] if rows.shape[1] else None,
        y=torch.tensor([label]),
        roots=torch.tensor(roots),
        degree=torch.tensor(degrees, dtype=torch.float32),
        weight=torch.tensor([float(weight)]),
    )


def bytes_of(graphs: Sequence[Graph]) -> int:
    """Bytes of original graphs."""
    return sum(map(graph_bytes, graphs))


def budget_bytes(graphs: Sequence[Graph], budget: float) -> float:
    """The budget in bytes: below 1 a share of the graphs' bytes, else bytes. UserError unless it is above 0."""
    if not budget > 0:
        raise UserError(f"--task.budget is {budget}: pass a share of the bytes in (0, 1), or bytes")
    return budget * bytes_of(graphs) if budget < 1 else budget


def shares(graphs: Sequence[Graph], budget: float) -> list[float]:
    """The budget of each class in bytes: in proportion to its graphs."""
    counts = torch.bincount(torch.cat([graph.y for graph in graphs]))
    return (budget_bytes(graphs, budget) * counts / counts.sum()).tolist()


def distil_graphs(
    graphs: Sequence[Graph],
    labels: Sequence[int] | Tensor | None = None,
    depth: int = 2,
    budget: float = 0.01,
    *,
    prune: bool = False,
    largest: int = 0,
    most_children: int = 0,
    exact_degrees: bool = False,
    thresholds: Sequence[int] | None = None,
) -> GraphSet:
    """Mirage: the frequent sets of computation trees of each class, as forests with roots, weight and degree.

    `graphs` are Data in the form of `graphs.py`; `labels` take the place of their y where given. `depth` is the
    number of layers of the networks to come. `budget` below 1 is a share of the graphs' bytes, else bytes; the
    support thresholds are tuned to it unless `thresholds`, graphs a class, are given. For the rest see `Mirage`.
    Raises UserError where the budget affords no tree, or no tree is found twice.
    """
    began = time.perf_counter()
    if labels is not None:
        graphs = [_labelled(graph, int(label)) for graph, label in zip(graphs, labels, strict=True)]
    table = TreeTable.grow(graphs, depth, most_children, exact_degrees)
    _check_repeats(table)
    miner = miner_of(table, torch.cat([graph.y for graph in graphs]).tolist(), largest, prune)
    if thresholds is None:
        mined = miner.within(shares(graphs, budget))
    else:
        every = range(len(miner.transactions))
        mined = [found for label in every if (found := miner.mine(thresholds, label)) is not None]
    examples = [
        forest(table, numbers, label, support)
        for label, found in enumerate(mined)
        for numbers, support in found.sets
    ]
    about = {
        "kind": "forests",
        "depth": depth,
        "bytes_of_all": bytes_of(graphs),
        **_told(table, miner, mined),
    }
    return GraphSet(examples, about | {"seconds": time.perf_counter() - began})


def miner_of(table: TreeTable, labels: Sequence[int], largest: int = 0, prune: bool = False) -> Miner:
    """The miner of each class's transactions: the set of trees of each graph."""
    transactions = [
        [set(trees) for trees, label in zip(table.of, labels, strict=True) if label == c]
        for c in range(max(labels) + 1)
    ]
    features, edge_features = table.nodes.rows.shape[1], table.edges.rows.shape[1]
    cost = {
        number: forest_bytes(label.count(END), 1, features, edge_features)
        for number, label in enumerate(table.labels)
    }
    return Miner(transactions, cost, EXAMPLE_BYTES, largest, prune)


def _told(table: TreeTable, miner: Miner, mined: Sequence[Mined]) -> dict[str, Any]:
    return {
        "bytes": sum(miner.price(numbers) for found in mined for numbers, _ in found.sets),
        "thresholds": [found.threshold for found in mined],
        "graphs": [len(part) for part in miner.transactions],
        "examples": [len(found.sets) for found in mined],
        "dropped": [found.dropped for found in mined],
        "distinct_trees": len(table.labels),
        "coverage": table.coverage(),
    }


def _labelled(graph: Graph, label: int) -> Graph:
    made = graph.clone()
    made.y = torch.tensor([label])
    return made


def _check_repeats(table: TreeTable) -> None:
    if not table.labels:
        raise UserError("the graphs have no edges, so there are no computation trees: pass graphs with edges")
    if max(table.occurrences) < 2:
        raise UserError(
            f"all {len(table.labels)} computation trees are different (continuous node features?): round the "
            "features to kinds, or lower --task.depth"
        )


def random_graphs(graphs: Sequence[Graph], budget: float, seed: int) -> GraphSet:
    """Original graphs in random order, class by class, as long as they fit each class's share of the budget.

    Where not one of a class fits, its smallest is taken: a training set has all classes.
    """
    began = time.perf_counter()
    draw = torch.Generator().manual_seed(seed_of(seed, 41))
    order = torch.randperm(len(graphs), generator=draw).tolist()
    sizes = [graph_bytes(graph) for graph in graphs]
    chosen: list[int] = []
    for label, most in enumerate(shares(graphs, budget)):
        own, spent = [i for i in order if int(graphs[i].y) == label], 0
        taken = []
        for i in own:
            if spent + sizes[i] <= most:
                taken.append(i)
                spent += sizes[i]
        chosen += taken or [min(own, key=sizes.__getitem__)]
    return _as_set([graphs[i] for i in chosen], graphs, "random graphs", began)


def all_graphs(graphs: Sequence[Graph]) -> GraphSet:
    """All of them."""
    return _as_set(graphs, graphs, "all graphs", time.perf_counter())


def _as_set(chosen: Sequence[Graph], graphs: Sequence[Graph], kind: str, began: float) -> GraphSet:
    examples = [example_of(graph) for graph in chosen]
    counts = torch.bincount(torch.cat([graph.y for graph in chosen])).tolist()
    about: dict[str, Any] = {
        "kind": kind,
        "bytes": bytes_of(chosen),
        "bytes_of_all": bytes_of(graphs),
        "examples": counts,
        "seconds": time.perf_counter() - began,
    }
    return GraphSet(examples, about)

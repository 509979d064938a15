"""The cluster gap: how far a decoded shot was from being decoded to the other logical value.

Grow odd clusters of detection events at the same speed on the matching graph until each is even or touches the
boundary, take what was grown off the edges' weights, and find the shortest logically non-trivial cycle (one through
the boundary, a node of its own, included). Chen et al., arXiv:2503.18657, use two such gaps from a changed
PyMatching; this is the one with the antipodal identification, on stock PyMatching's graph.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

DECIBEL = 10 / math.log(10)
"""A natural logarithm of likelihoods in decibels."""
TINY = 1e-9
"""Weight of an edge that is grown over: a sparse graph has no edges of weight 0."""


class ClusterGap:
    """The gap on a graph of nodes 0 .. nodes - 1 and one boundary, the node `nodes`.

    Edges are (u, v, weight > 0, flips): the last is whether the edge flips the observable.
    """

    def __init__(self, nodes: int, edges: Sequence[tuple[int, int, float, bool]]) -> None:
        self.nodes = nodes
        self.u, self.v = (np.array([edge[i] for edge in edges], dtype=np.int64) for i in (0, 1))
        self.weight = np.array([edge[2] for edge in edges], dtype=np.float64)
        self.flips = np.array([edge[3] for edge in edges], dtype=bool)
        self.sources = self._cover()
        self._build()
        self.bare = self.shortest(self.weight)

    @classmethod
    def of(cls, matching: Any) -> ClusterGap:
        """The gap on the graph of a `pymatching.Matching`."""
        nodes, boundary = matching.num_detectors, matching.boundary
        edges = []
        for u, v, found in matching.edges():
            ends = [nodes if end is None or end in boundary else end for end in (u, v)]
            edges.append((*ends, found["weight"], bool(len(found["fault_ids"]) % 2)))
        return cls(nodes, edges)

    def _cover(self) -> NDArray[np.int64]:
        """Nodes that meet every edge that flips: a non-trivial cycle passes through one of them."""
        left = {i: (int(self.u[i]), int(self.v[i])) for i in np.flatnonzero(self.flips)}
        chosen = []
        while left:
            ends = np.bincount([end for pair in left.values() for end in pair])
            chosen.append(int(ends.argmax()))
            left = {i: pair for i, pair in left.items() if chosen[-1] not in pair}
        return np.array(chosen, dtype=np.int64)

    def _build(self) -> None:
        """The parity double cover: node (x, s) is x + s (nodes + 1), an edge that flips goes to the other sheet."""
        from scipy.sparse import csr_array

        sheet = self.nodes + 1
        rows, columns, which = [], [], []
        for s in (0, 1):
            start, end = self.u + s * sheet, self.v + np.where(self.flips, 1 - s, s) * sheet
            rows += [start, end]
            columns += [end, start]
            which += [np.arange(len(self.u))] * 2
        row, column, edge = (np.concatenate(parts) for parts in (rows, columns, which))
        # Of parallel edges the lightest counts, whichever that is for a shot: each has a place of its own.
        order = np.lexsort((column, row))
        counts = np.bincount(row, minlength=2 * sheet)
        pointers = np.concatenate([[0], np.cumsum(counts)])
        self._edge = edge[order]
        self._graph = csr_array((np.ones(len(order)), column[order], pointers), shape=(2 * sheet, 2 * sheet))

    def grown(self, events: Sequence[int] | NDArray[Any]) -> NDArray[np.float64]:
        """How much of each edge is grown over when every cluster of `events` is neutral, at most its weight."""
        label = np.arange(self.nodes + 1)
        odd = np.zeros(self.nodes + 1, dtype=bool)
        odd[np.asarray(events, dtype=np.int64)] = True
        grown = np.zeros_like(self.weight)
        while odd.any():
            at_u, at_v = label[self.u], label[self.v]
            speed = odd[at_u].astype(np.int64) + odd[at_v]
            moving = (speed > 0) & (grown < self.weight)
            if not moving.any():
                break  # An odd number of events in a part without a boundary: no shot of this circuit.
            left = (self.weight[moving] - grown[moving]) / speed[moving]
            step = left.min()
            full = np.flatnonzero(moving)[left <= step * (1 + 1e-12)]
            grown[moving] += step * speed[moving]
            grown[full] = self.weight[full]
            for i in full:
                self._join(label, odd, int(label[self.u[i]]), int(label[self.v[i]]))
        return np.minimum(grown, self.weight)

    def _join(self, label: NDArray[Any], odd: NDArray[Any], a: int, b: int) -> None:
        """Two clusters become one; with the boundary in it, it is neutral for good."""
        if a == b:
            return
        edge = label[self.nodes]
        label[label == b] = a
        odd[a] = False if edge in (a, b) else odd[a] ^ odd[b]
        odd[b] = False

    def shortest(self, weight: NDArray[np.float64]) -> float:
        """The weight of the lightest cycle that flips the observable, in dB; infinite where there is none."""
        from scipy.sparse.csgraph import dijkstra

        if not len(self.sources):
            return math.inf
        self._graph.data = np.maximum(weight, TINY)[self._edge]
        best, sheet = math.inf, self.nodes + 1
        for group in (
            self.sources[:1],
            self.sources[1:],
        ):  # What the first finds bounds how far the others look.
            lengths = dijkstra(self._graph, indices=group, limit=best)
            best = min(best, lengths[np.arange(len(group)), group + sheet].min(initial=math.inf))
        return float(DECIBEL * best)

    def __call__(self, events: Sequence[int] | NDArray[Any]) -> float:
        """The gap in dB of a shot with these detection events (indices of detectors)."""
        return self.shortest(self.weight - self.grown(events)) if len(events) else self.bare

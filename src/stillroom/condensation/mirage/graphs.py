"""Graphs as torch_geometric Data in one form, what they weigh, and as packed batches.

Form: x [n, k] int64 (kinds) or float32, edge_index [2, e] int64 without self-loops, edge_attr [e, m] int64 or
float32 or missing, y int64 [1]. Training examples have three more: roots [n] bool, the nodes that are pooled;
degree [n] float32, the in-degree of each node in the graph that it comes from; weight float32 [1].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from stillroom.errors import UserError


class Graph(Protocol):
    """What is read of a torch_geometric Data in this form."""

    x: Tensor
    edge_index: Tensor
    edge_attr: Tensor | None
    y: Tensor
    roots: Tensor
    degree: Tensor
    weight: Tensor

    def clone(self) -> Graph:
        """A copy."""
        ...


NUMBER = 4
"""Bytes of a number that is stored."""


def geometric() -> Any:
    """The library torch_geometric; UserError where it is not installed."""
    try:
        import torch_geometric.data
        import torch_geometric.nn
    except ImportError:
        raise UserError(
            'graphs need torch_geometric, which is not installed: pip install "stillroom[graphs]"'
        ) from None
    return torch_geometric


def make_data(**parts: Any) -> Graph:
    """A torch_geometric Data."""
    return geometric().data.Data(**parts)


def in_degrees(graph: Graph) -> Tensor:
    """In-degree of each node, float32 [n]."""
    return torch.bincount(graph.edge_index[1], minlength=len(graph.x)).float()


def example_of(graph: Graph) -> Graph:
    """An original graph as a training example: every node is pooled, weight 1."""
    parts = {"x": graph.x, "edge_index": graph.edge_index, "edge_attr": graph.edge_attr, "y": graph.y}
    everyone = torch.ones(len(graph.x), dtype=torch.bool)
    return make_data(**parts, roots=everyone, degree=in_degrees(graph), weight=torch.ones(1))


def graph_bytes(graph: Graph) -> int:
    """Bytes of an original graph: its label, node features, and each edge's two ends and features.

    An edge that is there in both directions is stored once; the paper's count has it twice.
    """
    low, high = graph.edge_index.min(0).values, graph.edge_index.max(0).values
    pairs = torch.stack([low, high]).unique(dim=1).shape[1] if len(low) else 0
    return NUMBER * (1 + graph.x.numel() + pairs * (2 + _width(graph.edge_attr)))


def forest_bytes(nodes: int, roots: int, features: int, edge_features: int) -> int:
    """Bytes of trees in an example: nodes x (features + degree) + edges x (2 + features) + their roots' numbers."""
    return NUMBER * (nodes * (features + 1) + (nodes - roots) * (2 + edge_features) + roots)


EXAMPLE_BYTES = 2 * NUMBER
"""Bytes of a forest's label and weight."""


def _width(attributes: Tensor | None) -> int:
    return 0 if attributes is None else attributes.shape[1]


@dataclass(eq=False)
class GraphSet:
    """A distilled set: training examples with roots, degree and weight, and how they came about."""

    graphs: list[Graph]
    """The examples."""
    about: dict[str, Any] = field(default_factory=dict)
    """Bytes, thresholds, depth and the like, as JSON has it."""

    def __len__(self) -> int:
        return len(self.graphs)

    def __getitem__(self, index: int) -> Graph:
        return self.graphs[index]

    def __iter__(self) -> Iterator[Graph]:
        return iter(self.graphs)

    @property
    def bytes(self) -> int:
        """What the examples take, as `graph_bytes` and `forest_bytes` count."""
        return self.about["bytes"]

    def eval(self) -> GraphSet:
        """The set itself: it has no mode."""
        return self


# -- for networks ---------------------------------------------------------------------------------------------


class Columns:
    """How features become a network's input: kinds as one-hot numbers a column, floats as they are.

    The kinds are those of the training graphs; another one is all zeros.
    """

    def __init__(self, graphs: Sequence[Graph], name: str) -> None:
        values = [getattr(graph, name) for graph in graphs]
        self.name, self.kinds, self.width = name, None, 0
        if values[0] is None:
            return
        rows = torch.cat(values)
        self.width = rows.shape[1]
        if not rows.is_floating_point():
            self.kinds = [column.unique() for column in rows.unbind(1)]
            self.width = sum(len(kinds) for kinds in self.kinds)

    def encode(self, rows: Tensor) -> Tensor:
        """Rows [n, k] as float32 [n, width]."""
        if self.kinds is None:
            return rows.float()
        parts = [column[:, None] == kinds for column, kinds in zip(rows.unbind(1), self.kinds, strict=True)]
        return torch.cat(parts, 1).float()


@dataclass
class Packed:
    """A batch of graphs, one after the other, as a network takes them."""

    x: Tensor
    """Node inputs [n, width]."""
    edge_index: Tensor
    """[2, e], numbered within the batch."""
    edge_attr: Tensor | None
    """Edge inputs [e, width]."""
    roots: Tensor
    """Numbers of the nodes that are pooled, [r]."""
    graph: Tensor
    """The graph of each of them, [r]."""
    degree: Tensor
    """In-degree in the original graph, [n]."""
    count: int
    """Graphs in the batch."""


class Packs:
    """Many graphs laid end to end, from which batches are cut without a loop over graphs."""

    def __init__(self, graphs: Sequence[Graph], nodes: Columns, edges: Columns) -> None:
        examples = [graph if hasattr(graph, "roots") else example_of(graph) for graph in graphs]
        self.y = torch.cat([graph.y for graph in examples])
        self.weight = torch.cat([graph.weight for graph in examples])
        self._nodes = torch.tensor([len(graph.x) for graph in examples])
        self._edges = torch.tensor([graph.edge_index.shape[1] for graph in examples])
        self._x = nodes.encode(torch.cat([graph.x for graph in examples]))
        self._edge_index = torch.cat([graph.edge_index for graph in examples], 1)
        attributes = [graph.edge_attr for graph in examples if graph.edge_attr is not None]
        self._edge_attr = edges.encode(torch.cat(attributes)) if edges.width else None
        self._roots = torch.cat([graph.roots for graph in examples])
        self._degree = torch.cat([graph.degree for graph in examples])

    def __len__(self) -> int:
        return len(self.y)

    def take(self, ids: Tensor) -> Packed:
        """The graphs `ids` (int64 [B], repeats allowed) as one batch, on the device of `ids`."""
        device, ids = ids.device, ids.cpu()
        nodes, edges = self._nodes[ids], self._edges[ids]
        rows = _ranges((self._nodes.cumsum(0) - self._nodes)[ids], nodes)
        columns = _ranges((self._edges.cumsum(0) - self._edges)[ids], edges)
        shift = (nodes.cumsum(0) - nodes).repeat_interleave(edges)
        graph = torch.arange(len(ids)).repeat_interleave(nodes)
        roots = self._roots[rows].nonzero().squeeze(1)
        return Packed(
            x=self._x[rows].to(device),
            edge_index=(self._edge_index[:, columns] + shift).to(device),
            edge_attr=None if self._edge_attr is None else self._edge_attr[columns].to(device),
            roots=roots.to(device),
            graph=graph[roots].to(device),
            degree=self._degree[rows].to(device),
            count=len(ids),
        )


def _ranges(starts: Tensor, lengths: Tensor) -> Tensor:
    """start, start + 1, ... of each range, one after the other."""
    within = torch.arange(int(lengths.sum())) - (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
    return starts.repeat_interleave(lengths) + within

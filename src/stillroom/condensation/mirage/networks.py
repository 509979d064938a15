"""Message-passing networks that read their graphs at the roots: GCN, GAT and GIN.

None of them normalises over the batch, so that a root in a forest has the embedding of its node in the graph.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from stillroom.condensation.mirage.graphs import Packed, geometric

Kind = Literal["gcn", "gat", "gin"]
Pool = Literal["sum", "mean"]


class GraphNetwork(nn.Module):
    """Layers of one kind, pooled over the roots, and a linear head.

    GCN (Kipf and Welling, ICLR 2017) is normalised by the original degrees; GAT (Velickovic et al., ICLR 2018) and
    GIN (Xu et al., ICLR 2019; with edges as Hu et al., ICLR 2020) take edge inputs where there are any.
    """

    def __init__(
        self,
        kind: Kind,
        inputs: int,
        edge_inputs: int,
        classes: int,
        layers: int = 2,
        hidden: int = 64,
        pool: Pool = "sum",
    ) -> None:
        super().__init__()
        self.kind, self.pool, self.edge_inputs = kind, pool, edge_inputs
        self.first = nn.Linear(inputs, hidden)
        self.layers = nn.ModuleList(self._layer(hidden) for _ in range(layers))
        self.head = nn.Linear(hidden, classes)

    def _layer(self, hidden: int) -> nn.Module:
        layers: Any = geometric().nn
        edges = self.edge_inputs or None
        if self.kind == "gcn":
            return layers.GCNConv(hidden, hidden, normalize=False)
        if self.kind == "gat":
            return layers.GATConv(hidden, hidden // 4, heads=4, edge_dim=edges)
        inner = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, hidden))
        if edges is None:
            return layers.GINConv(inner, train_eps=True)
        return layers.GINEConv(inner, train_eps=True, edge_dim=edges)

    def embed(self, batch: Packed) -> Tensor:
        """Embeddings [n, hidden] of all nodes after the last layer."""
        x = self.first(batch.x)
        edge_index, weight = _normalised(batch) if self.kind == "gcn" else (batch.edge_index, None)
        for layer in self.layers:
            if self.kind == "gcn":
                x = layer(x, edge_index, weight)
            elif batch.edge_attr is None:
                x = layer(x, edge_index)
            else:
                x = layer(x, edge_index, edge_attr=batch.edge_attr)
            x = x.relu()
        return x

    def forward(self, batch: Packed) -> Tensor:
        """Logits [B, classes]: roots pooled graph by graph."""
        x = self.embed(batch)[batch.roots]
        pooled = x.new_zeros(batch.count, x.shape[1]).index_add(0, batch.graph, x)
        if self.pool == "mean":
            pooled = pooled / torch.bincount(batch.graph, minlength=batch.count).clamp_min(1).unsqueeze(1)
        return self.head(pooled)


def _normalised(batch: Packed) -> tuple[Tensor, Tensor]:
    """Edges with self-loops and their weights ((d_i + 1)(d_j + 1))^-1/2, d the degrees in the original graph."""
    loops = torch.arange(len(batch.x), device=batch.x.device).expand(2, -1)
    edge_index = torch.cat([batch.edge_index, loops], 1)
    scale = (batch.degree + 1).rsqrt()
    return edge_index, scale[edge_index[0]] * scale[edge_index[1]]

"""A distilled set as a folder: three tables of parquet, about.json and a card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stillroom.checkpoint import read_json, write_json
from stillroom.condensation.mirage.graphs import GraphSet, make_data
from stillroom.errors import UserError, reason
from stillroom.exporting.card import Card, arm_rows


def save_graphs(folder: Path, graphs: GraphSet) -> None:
    """Write examples.parquet (label, weight), nodes.parquet (example, root, degree, x0 ...) and edges.parquet.

    edges.parquet has source and target, numbered within their example, and edge0 ...; rows stand in order.
    """
    import pyarrow as pa
    from pyarrow import parquet

    folder.mkdir(parents=True, exist_ok=True)
    nodes = torch.tensor([len(graph.x) for graph in graphs])
    edges = torch.tensor([graph.edge_index.shape[1] for graph in graphs])
    ids = torch.arange(len(graphs))

    def joined(name: str, dim: int = 0) -> Tensor:
        return torch.cat([getattr(graph, name) for graph in graphs], dim)

    def columns(name: str, prefix: str) -> dict[str, Any]:
        if not len(graphs) or getattr(graphs[0], name) is None:
            return {}
        return {f"{prefix}{k}": column.numpy() for k, column in enumerate(joined(name).unbind(1))}

    ends = joined("edge_index", 1)
    tables = {
        "examples": {"label": joined("y").numpy(), "weight": joined("weight").numpy()},
        "nodes": {
            "example": ids.repeat_interleave(nodes).numpy(),
            "root": joined("roots").numpy(),
            "degree": joined("degree").numpy(),
            **columns("x", "x"),
        },
        "edges": {
            "example": ids.repeat_interleave(edges).numpy(),
            "source": ends[0].numpy(),
            "target": ends[1].numpy(),
            **columns("edge_attr", "edge"),
        },
    }
    for name, table in tables.items():
        parquet.write_table(pa.table(table), folder / f"{name}.parquet")
    write_json(folder / "about.json", graphs.about)


def load_graphs_from(folder: Path) -> GraphSet:
    """What `save_graphs` wrote; UserError where a file is missing or damaged."""
    import pyarrow as pa
    from pyarrow import parquet

    about = read_json(folder / "about.json")
    try:
        tables = {
            name: parquet.read_table(folder / f"{name}.parquet") for name in ("examples", "nodes", "edges")
        }
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"'{folder}' holds no distilled set ({reason(error)}): export it again") from None

    def column(table: str, name: str) -> Tensor:
        return torch.from_numpy(tables[table][name].to_numpy(zero_copy_only=False).copy())

    def features(table: str, prefix: str) -> Tensor | None:
        names = [n for n in tables[table].column_names if n.startswith(prefix) and n[len(prefix) :].isdigit()]
        return torch.stack([column(table, name) for name in names], 1) if names else None

    def split(values: Tensor | None, table: str) -> list[Tensor | None]:
        counts = torch.bincount(column(table, "example"), minlength=count).tolist()
        return [None] * count if values is None else list(values.split(counts))

    count = tables["examples"].num_rows
    ends = torch.stack([column("edges", "source"), column("edges", "target")], 1)
    parts = {
        "x": split(features("nodes", "x"), "nodes"),
        "edge_index": [pairs.T.contiguous() for pairs in split(ends, "edges") if pairs is not None],
        "edge_attr": split(features("edges", "edge"), "edges"),
        "y": list(column("examples", "label").split(1)),
        "roots": split(column("nodes", "root"), "nodes"),
        "degree": split(column("nodes", "degree"), "nodes"),
        "weight": list(column("examples", "weight").split(1)),
    }
    return GraphSet([make_data(**{k: v[i] for k, v in parts.items()}) for i in range(count)], about)


def write_card(folder: Path, graphs: GraphSet, about: Mapping[str, Any]) -> None:
    """Write README.md: what the set is, how it was made, how well networks do that learn from it, how to use it."""
    card(graphs, about).write(folder, about)


def card(graphs: GraphSet, about: Mapping[str, Any]) -> Card:
    """The card of a set of graphs that the run `about` made."""
    own, metric = graphs.about, about["metric"]

    def cells(arm: Mapping[str, Any]) -> list[str]:
        size = f"{arm['cost'].get('file_bytes', 0):,.0f}"
        return [f"{arm['test'][metric]:.3f}", size, f"{arm['seconds']:.2f}"]

    return Card(
        title=f"Graphs distilled with {about['method']}",
        tags=("dataset-distillation", "graphs"),
        table=[("", f"{metric} of fresh networks", "bytes", "seconds to distil"), *arm_rows(about, cells)],
        facts=[
            f"the whole training set: {own['bytes_of_all']:,} bytes",
            f"{own['kind']}: {len(graphs)} examples, {own['bytes']:,} bytes ({own['bytes'] / own['bytes_of_all']:.2%})",
            f"examples by class {own['examples']}; support thresholds {own.get('thresholds', 'none')}",
        ],
        code=[
            "from pathlib import Path",
            "from stillroom.condensation.mirage import load_graphs_from",
            "graphs = load_graphs_from(Path('.'))  # a sequence of torch_geometric Data",
        ],
        ending=[
            "Edges go from child to parent. Pool the rows of `roots` only (`x[data.roots]`), draw examples in "
            "proportion to `weight` within a class, and let a GCN normalise by `degree`, the in-degree in the original "
            "graph. A network trained so is used on original graphs, all nodes pooled; it may have up to "
            f"{own.get('depth', 'any number of')} layers."
        ],
    )

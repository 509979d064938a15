"""From whatever a user gives to labelled graphs by split, in the form of `graphs.py`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from stillroom.condensation.mirage.forming import (
    Features,
    atoms_and_bonds,
    check_alike,
    form,
    number_classes,
    rows_of,
)
from stillroom.condensation.mirage.graphs import Graph, geometric, make_data
from stillroom.condensation.mirage.molecules import molecules
from stillroom.data.splits import SPLITS, TEST_SHARE, VALIDATION_SHARE, hold_out, known
from stillroom.data.tables import LABEL_COLUMNS
from stillroom.errors import UserError, reason

MOLECULES = "molecules"
"""Name of the built-in data."""

SHARES = {"test": TEST_SHARE, "validation": VALIDATION_SHARE}

NODE_COLUMNS = ("x", "node_feat", "node_features", "node_label", "node_labels")
EDGE_COLUMNS = ("edge_attr", "edge_feat", "edge_label", "edge_labels")
SMILES_COLUMNS = ("smiles", "SMILES", "mol", "canonical_smiles")


@dataclass(frozen=True)
class Reading:
    """How to read."""

    features: Features = "given"
    smiles_column: str | None = None
    label_column: str | None = None
    count: int = 4000
    """Molecules to make, where they are made."""
    seed: int = 0


@dataclass
class GraphData:
    """Labelled graphs by split."""

    name: str
    train: list[Graph]
    validation: list[Graph]
    test: list[Graph]
    classes: list[str]
    splits: str
    fingerprint: str = field(default="")


def load_graphs(data: Any, how: Reading) -> GraphData:
    """Graphs of a name, a folder or file of parquet or csv, Data, networkx graphs or SMILES.

    Objects from Python are a sequence of graphs with their labels, a pair (graphs or SMILES, labels), or a mapping
    of these by split. What has no test or validation split is cut by class. Raises UserError for anything else.
    """
    geometric()
    name, parts = _opened(data, how)
    graphs = {
        split: [form(one, how.features, f"graph {i} of '{split}'") for i, one in enumerate(part)]
        for split, part in parts.items()
    }
    check_alike([one for part in graphs.values() for one in part])
    classes = number_classes(graphs)
    splits = _cut(graphs, name, how.seed)
    for split, part in graphs.items():
        if len({int(one.y) for one in part}) < 2:
            raise UserError(
                f"the {split} split of data '{name}' has graphs of one class: pass more labelled graphs"
            )
    made = GraphData(name, graphs["train"], graphs["validation"], graphs["test"], classes, splits)
    made.fingerprint = _fingerprint(graphs)
    return made


def _cut(graphs: dict[str, list[Graph]], name: str, seed: int) -> str:
    """Cut the splits that are missing off the training graphs; returns how it was done."""
    missing = [split for split in ("test", "validation") if split not in graphs]
    if not missing:
        return "as given"
    train = graphs["train"]
    share = {"test": 1 / 8, "validation": 1 / 8} if name == MOLECULES else SHARES
    sizes = {split: max(2, round(share[split] * len(train))) for split in missing}
    rows = hold_out(torch.cat([one.y for one in train]), len(train), sizes, seed)
    graphs |= {split: [train[i] for i in ids] for split, ids in rows.items()}
    return f"{' and '.join(missing)} cut off the training graphs by class, seed {seed}"


def _fingerprint(graphs: Mapping[str, Sequence[Graph]]) -> str:
    seen = hashlib.sha256()
    for split, part in sorted(graphs.items()):
        seen.update(f"{split} {len(part)}".encode())
        for graph in part:
            for tensor in (graph.x, graph.edge_index, graph.edge_attr, graph.y):
                seen.update(
                    b"none" if tensor is None else f"{tensor.shape}".encode() + tensor.numpy().tobytes()
                )
    return seen.hexdigest()[:16]


# -- opening --------------------------------------------------------------------------------------------------


def _opened(data: Any, how: Reading) -> tuple[str, dict[str, list[Any]]]:
    """A name, and by split what is to be formed into graphs."""
    if isinstance(data, str) and data == MOLECULES:
        return MOLECULES, {"train": [atoms_and_bonds(*pair) for pair in molecules(how.count, how.seed)]}
    if isinstance(data, str | Path):
        return _from_disk(Path(data).expanduser(), how)
    if isinstance(data, Mapping):
        return "graphs", {ours: _listed(data[theirs]) for ours, theirs in known(data, "in hand").items()}
    return type(data).__name__, {"train": _listed(data)}


def _listed(data: Any) -> list[Any]:
    if isinstance(data, tuple) and len(data) == 2 and not hasattr(data[0], "edge_index"):
        graphs, labels = data
        if len(graphs) != len(labels):
            raise UserError(f"data has {len(graphs)} graphs and {len(labels)} labels: pass one label a graph")
        return list(zip(graphs, labels, strict=True))
    if hasattr(data, "__getitem__") and hasattr(data, "__len__") and len(data) and not isinstance(data, str):
        return [data[i] for i in range(len(data))]
    raise UserError(
        f"data of type {type(data).__name__} cannot be read as graphs: pass 'molecules', a folder of parquet, a list "
        "of torch_geometric Data or networkx graphs, or (graphs or SMILES, labels)"
    )


def _from_disk(path: Path, how: Reading) -> tuple[str, dict[str, list[Any]]]:
    files = (
        [path] if path.is_file() else sorted(p for p in path.glob("*") if p.suffix in (".parquet", ".csv"))
    )
    if not files:
        what = "holds no parquet or csv" if path.is_dir() else "does not exist"
        raise UserError(f"--task.data '{path}' {what}: pass 'molecules', or a folder of graphs or SMILES")
    splits: dict[str, list[Any]] = {}
    for file in files:
        split = SPLITS.get(file.stem.split("-")[0].split("_")[0].lower(), "train")
        splits.setdefault(split, []).extend(_rows(file, how))
    if "train" not in splits:
        raise UserError(f"--task.data '{path}' has no training split: name a file train.parquet")
    return path.stem, splits


def _rows(file: Path, how: Reading) -> list[Any]:
    import pyarrow as pa
    from pyarrow import csv, parquet

    try:
        table = parquet.read_table(file) if file.suffix == ".parquet" else csv.read_csv(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"file '{file}' cannot be read ({reason(error)}): pass parquet or csv") from None
    columns = table.column_names
    label = _column(columns, how.label_column, LABEL_COLUMNS, f"file '{file}'", "label")
    smiles = how.smiles_column or next((c for c in SMILES_COLUMNS if c in columns), None)
    if smiles is not None or "edge_index" not in columns:
        name = _column(columns, how.smiles_column, SMILES_COLUMNS, f"file '{file}'", "smiles")
        return list(zip(table[name].to_pylist(), table[label].to_pylist(), strict=True))
    return [_graph_row(row, label) for row in table.to_pylist()]


def _column(columns: Sequence[str], wanted: str | None, usual: Sequence[str], where: str, kind: str) -> str:
    found = wanted or next((c for c in usual if c in columns), None)
    if found is None or found not in columns:
        asked = f"no column '{wanted}'" if wanted else f"no {kind} column"
        raise UserError(f"{where} has {asked} among {list(columns)}: pass --task.{kind}-column NAME")
    return found


def _graph_row(row: Mapping[str, Any], label: str) -> tuple[Graph, Any]:
    x = next((row[c] for c in NODE_COLUMNS if row.get(c) is not None), None)
    attributes = next((row[c] for c in EDGE_COLUMNS if row.get(c) is not None), None)
    edges = torch.tensor(row["edge_index"] or [[], []], dtype=torch.int64).view(2, -1)
    made = make_data(
        x=None if x is None else rows_of(x),
        edge_index=edges,
        edge_attr=None if attributes is None else rows_of(attributes),
        num_nodes=row.get("num_nodes") or (len(x) if x is not None else int(edges.amax()) + 1),
    )
    return made, row[label]

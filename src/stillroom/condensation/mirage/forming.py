"""One graph of any library to torch_geometric Data in the form of `graphs.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from stillroom.condensation.mirage.graphs import Graph, in_degrees, make_data
from stillroom.condensation.mirage.molecules import NUMBER, Molecule
from stillroom.errors import UserError, reason

Features = Literal["given", "degree"]

MOST_DEGREE = 20
"""Degrees above are one kind, where degrees are the features."""

BONDS = {"SINGLE": 1, "DOUBLE": 2, "TRIPLE": 3, "AROMATIC": 4}
"""Kinds of bonds; 0 is any other."""


def rows_of(values: Any) -> Tensor:
    """Numbers [n] or [n, k] as a tensor [n, k], int64 or float32."""
    tensor = torch.as_tensor(values)
    tensor = tensor.float() if tensor.is_floating_point() else tensor.long()
    return tensor.view(len(tensor), -1)


def form(given: Any, features: Features, where: str) -> Graph:
    """A graph, or a pair (graph or SMILES, label), as Data whose y is the label as it is given.

    Self-loops are dropped: layers add their own. UserError, which names the graph as `where`, where the graph has
    no label, no node features, or is of no known kind.
    """
    graph, label = given if isinstance(given, tuple) else (given, None)
    if isinstance(graph, str):
        graph = _from_smiles(graph, where)
    elif hasattr(graph, "adj") and hasattr(graph, "nodes"):
        label = graph.graph.get("y", graph.graph.get("label")) if label is None else label
        graph = _from_networkx(graph)
    elif not hasattr(graph, "edge_index"):
        raise UserError(
            f"{where} is {type(graph).__name__}: pass torch_geometric Data, a networkx graph or SMILES"
        )
    x = graph.x
    edge_index = torch.as_tensor(graph.edge_index).long()
    keep = edge_index[0] != edge_index[1]
    attributes = None if graph.edge_attr is None else rows_of(graph.edge_attr)[keep]
    nodes = len(x) if x is not None else int(graph.num_nodes)
    made = make_data(
        x=rows_of(x) if x is not None else torch.zeros(nodes, 0),
        edge_index=edge_index[:, keep],
        edge_attr=attributes,
        y=_label(graph.y if label is None else label, where),
    )
    if features == "degree":
        made.x = in_degrees(made).long().clamp_max(MOST_DEGREE).unsqueeze(1)
    elif not made.x.shape[1]:
        raise UserError(f"{where} has no node features: pass --task.features degree, or graphs with x")
    _check_edges(made, where)
    return made


def _label(given: Any, where: str) -> Any:
    if given is None:
        raise UserError(f"{where} has no label: pass graphs with y, or (graphs, labels)")
    if isinstance(given, str):
        return given
    values = torch.as_tensor(given).flatten()
    if len(values) != 1 or not bool(torch.isfinite(values.float()).all()) or bool(values != values.round()):
        raise UserError(f"{where} has the label {values.tolist()}: pass one class a graph")
    return int(values)


def _check_edges(graph: Graph, where: str) -> None:
    edges = graph.edge_index
    if edges.numel() and (int(edges.min()) < 0 or int(edges.max()) >= len(graph.x)):
        raise UserError(
            f"{where} has {len(graph.x)} nodes and an edge to node {int(edges.max())}: correct it"
        )
    if not bool(torch.isfinite(graph.x.float()).all()):
        raise UserError(f"{where} has node features that are not finite: correct them")


def check_alike(graphs: Sequence[Graph]) -> None:
    """UserError unless all graphs have features of the same width and type."""

    def shape(features: Tensor | None) -> str:
        if features is None:
            return "no"
        return f"{features.shape[1]} {'float' if features.is_floating_point() else 'integer'}"

    for name, part in (("node", "x"), ("edge", "edge_attr")):
        found = sorted({shape(getattr(graph, part)) for graph in graphs})
        if len(found) > 1:
            raise UserError(
                f"some graphs have {found[0]} {name} features and others {found[1]}: make them alike"
            )


def number_classes(graphs: Mapping[str, Sequence[Graph]]) -> list[str]:
    """Turn labels into y [1], 0 to C - 1 in ascending order; returns their names. UserError for fewer than 2."""
    labels = {graph.y for part in graphs.values() for graph in part}
    order = sorted(labels, key=lambda label: (isinstance(label, str), label))
    if len(order) < 2:
        raise UserError(f"all graphs have the label {order[0]!r}: pass graphs of two classes or more")
    numbers = {label: number for number, label in enumerate(order)}
    for part in graphs.values():
        for graph in part:
            graph.y = torch.tensor([numbers[graph.y]])
    return [str(label) for label in order]


# -- from elsewhere -------------------------------------------------------------------------------------------


def _both_ways(pairs: Sequence[tuple[int, int]], kinds: Sequence[Any] | None) -> tuple[Tensor, Tensor | None]:
    """Undirected edges as edge_index [2, 2e], and their features [2e, m]."""
    ends = torch.tensor(pairs, dtype=torch.int64).view(-1, 2).T
    attributes = None if kinds is None else rows_of([*kinds, *kinds]) if kinds else torch.zeros(0, 1).long()
    return torch.cat([ends, ends.flip(0)], 1), attributes


def atoms_and_bonds(molecule: Molecule, label: int) -> tuple[Graph, int]:
    """x [n, 3]: atomic number, hydrogens, aromatic; edge_attr [e, 1]: kind of the bond."""
    numbers = [NUMBER[element] for element in molecule.elements]
    x = torch.tensor([numbers, molecule.hydrogens, [int(a) for a in molecule.aromatic]]).T.contiguous()
    edge_index, edge_attr = _both_ways(
        [(a, b) for a, b, _ in molecule.bonds], [kind for *_, kind in molecule.bonds]
    )
    return make_data(x=x, edge_index=edge_index, edge_attr=edge_attr), label


def _from_smiles(text: str, where: str) -> Graph:
    """The same of a molecule written as SMILES, read by RDKit."""
    try:
        from rdkit import Chem, rdBase  # type: ignore[missing-import]
    except ImportError:
        raise UserError(
            'SMILES need RDKit, which is not installed: pip install "stillroom[chemistry]"'
        ) from None
    with rdBase.BlockLogs():
        molecule = Chem.MolFromSmiles(text)
    if molecule is None or not molecule.GetNumAtoms():
        raise UserError(f"{where}: '{text}' is no SMILES that RDKit can read: correct or remove it")
    atoms = [[a.GetAtomicNum(), a.GetTotalNumHs(), int(a.GetIsAromatic())] for a in molecule.GetAtoms()]
    bonds = list(molecule.GetBonds())
    edge_index, edge_attr = _both_ways(
        [(b.GetBeginAtomIdx(), b.GetEndAtomIdx()) for b in bonds],
        [BONDS.get(str(b.GetBondType()), 0) for b in bonds],
    )
    return make_data(x=torch.tensor(atoms), edge_index=edge_index, edge_attr=edge_attr)


def _from_networkx(graph: Any) -> Graph:
    """Node attribute x or label, edge attribute edge_attr or label; an undirected edge goes both ways."""
    place = {node: number for number, node in enumerate(graph.nodes)}
    x = _attribute([data for _, data in graph.nodes(data=True)], ("x", "label"))
    edges = list(graph.edges(data=True))
    pairs = [(place[a], place[b]) for a, b, _ in edges]
    kinds = _attribute([data for *_, data in edges], ("edge_attr", "label"))
    if graph.is_directed():
        edge_index = torch.tensor(pairs, dtype=torch.int64).view(-1, 2).T
        edge_attr = None if kinds is None else rows_of(kinds)
    else:
        edge_index, edge_attr = _both_ways(pairs, kinds)
    x = None if x is None else rows_of(x)
    return make_data(x=x, edge_index=edge_index, edge_attr=edge_attr, num_nodes=len(place))


def _attribute(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[Any] | None:
    for name in names:
        if rows and all(name in row for row in rows):
            try:
                torch.as_tensor([row[name] for row in rows])
            except (TypeError, ValueError) as error:
                raise UserError(
                    f"networkx attribute '{name}' holds no numbers ({reason(error)}): number them"
                ) from None
            return [row[name] for row in rows]
    return None

"""Computation trees of a message-passing network and their canonical labels (Mirage, section 3.1).

The tree of depth L at a node: the node is the root, and the children of a tree node that stands for u are all
nodes with an edge to u, the one that we came from included. What hangs below u at depth d depends on u and d alone,
so all labels of a graph come from L rounds over its edges, and no tree is ever built to be labelled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

Edges = Sequence[tuple[int, int, int]]
"""(source, target, kind of the edge): what the source says, the target hears."""

END = "$"


@dataclass
class Tree:
    """A rooted tree with labels; node 0 is the root, and parents stand before their children."""

    kinds: list[int] = field(default_factory=list)
    """Kind of each node, [n]."""
    degrees: list[int] = field(default_factory=list)
    """In-degree in its graph of what each node stands for, [n]; -1 where it is not known."""
    parents: list[int] = field(default_factory=list)
    """Parent of each node, [n]; -1 for the root."""
    edges: list[int] = field(default_factory=list)
    """Kind of the edge to the parent, [n]; -1 for the root."""

    def __len__(self) -> int:
        return len(self.kinds)

    def add(self, kind: int, degree: int, parent: int, edge: int) -> int:
        """Append a node; returns its number."""
        self.kinds.append(kind)
        self.degrees.append(degree)
        self.parents.append(parent)
        self.edges.append(edge)
        return len(self) - 1


def canonical_labels(
    kinds: Sequence[int], edges: Edges, depth: int, most_children: int = 0
) -> list[tuple[str, str]]:
    """For each node, the canonical label of its tree without and with degrees; kinds [n], depth >= 0.

    can(u) = kind(u), then the sorted pairs (kind of edge, can(child)), then "$", parted by spaces: equal exactly
    where the trees are isomorphic. With degrees, every kind is followed by "/" and the in-degree. Of more than
    `most_children` children (0: no limit) those are kept that lie evenly spread in the sorted order, so that the
    choice depends on no numbering and keeps the children's proportions.
    """
    into: list[list[tuple[int, int]]] = [[] for _ in kinds]
    for source, target, edge in edges:
        into[target].append((source, edge))
    names = [(str(kind), f"{kind}/{len(heard)}") for kind, heard in zip(kinds, into, strict=True)]
    now = [(f"{plain} {END}", f"{full} {END}") for plain, full in names]
    for _ in range(depth):
        below = [
            _kept(
                sorted((f"{edge} {now[source][0]}", f"{edge} {now[source][1]}") for source, edge in heard),
                most_children,
            )
            for heard in into
        ]
        now = [
            (_joined(plain, [c[0] for c in children]), _joined(full, [c[1] for c in children]))
            for (plain, full), children in zip(names, below, strict=True)
        ]
    return now


def _joined(name: str, children: list[str]) -> str:
    return " ".join([name, *children, END])


def _kept(children: list[tuple[str, str]], most: int) -> list[tuple[str, str]]:
    count = len(children)
    return children if not 0 < most < count else [children[i * count // most] for i in range(most)]


def canonical(tree: Tree) -> str:
    """The canonical label of a tree, with degrees where it knows them."""
    below: list[list[str]] = [[] for _ in tree.kinds]
    label = ""
    for node in reversed(range(len(tree))):
        degree = tree.degrees[node]
        name = str(tree.kinds[node]) if degree < 0 else f"{tree.kinds[node]}/{degree}"
        label = _joined(name, sorted(below[node]))
        if node:
            below[tree.parents[node]].append(f"{tree.edges[node]} {label}")
    return label


def parse(label: str) -> Tree:
    """The tree with this canonical label; ValueError where the text is none."""
    tree, tokens, open_nodes = Tree(), iter(label.split(" ")), []
    edge = -1
    for token in tokens:
        if token == END:
            open_nodes.pop()
            if not open_nodes:
                break
            continue
        if open_nodes:
            edge, token = int(token), next(tokens, "")
        kind, _, degree = token.partition("/")
        parent = open_nodes[-1] if open_nodes else -1
        open_nodes.append(tree.add(int(kind), int(degree) if degree else -1, parent, edge))
    if open_nodes or next(tokens, None) is not None:
        raise ValueError(f"'{label}' is no canonical label of one tree")
    return tree

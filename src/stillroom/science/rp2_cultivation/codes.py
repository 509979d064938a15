"""The codes of Chen et al. (arXiv:2503.18657): RP^2 codes, rotated surface codes, self-dual companions; GF(2) algebra.

Data qubits are at integer points (x, y), y downwards, checks at half-integer ones. A Pauli string of one type is the
set of the sites it acts on; strings multiply by symmetric difference.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import combinations
from operator import xor
from typing import Literal

Site = tuple[float, float]
Pair = tuple[Site, Site]
Layers = tuple[tuple[Pair, ...], ...]
Kind = Literal["X", "Z"]
Support = frozenset[Site]

CORNERS: Mapping[str, Site] = {"nw": (-0.5, -0.5), "ne": (0.5, -0.5), "sw": (-0.5, 0.5), "se": (0.5, 0.5)}


@dataclass(frozen=True)
class Check:
    """One check and how it is measured: its ancilla sits at `at` and meets `order[layer]` in layers 1 to 5."""

    kind: Kind
    at: Site
    order: Mapping[int, Site]

    @property
    def support(self) -> Support:
        """The data qubits of the check."""
        return frozenset(self.order.values())


def kind_of(at: Site) -> Kind:
    """X where x - y is even, Z where it is odd."""
    return "X" if (at[0] - at[1]) % 2 == 0 else "Z"


def antipode(at: Site) -> Site:
    """The point across."""
    return (-at[0], -at[1])


def grid(d: int) -> list[Site]:
    """The d x d data qubits of a code of odd distance d, column by column."""
    h = (d - 1) // 2
    return [(x, y) for x in range(-h, h + 1) for y in range(-h, h + 1)]


def ring(d: int) -> list[Site]:
    """The data qubits of the d x d grid that are not of the one of d - 2."""
    return [site for site in grid(d) if max(map(abs, site)) == (d - 1) // 2]


def _folded(site: Site, h: int) -> Site:
    """The data qubit that a site is: outside of the grid, minus the nearest point of the grid."""
    x, y = (min(max(v, -h), h) for v in site)
    return site if (x, y) == site else (-x, -y)


# -- RP^2 codes -----------------------------------------------------------------------------------------------


def rp2_checks(d: int) -> list[Check]:
    """The d^2 + 1 checks of the RP^2 code [[d^2, 1, d]], each plaquette outside the grid one with its antipode."""
    h = (d - 1) / 2
    edge = -h - 0.5
    line = [edge + i for i in range(d)]
    places = [(x, y) for x in line for y in line] + [(h + 0.5, edge)]
    return [_rp2_check(at, int(h)) for at in places]


def _rp2_check(at: Site, h: int) -> Check:
    labels = _rp2_layers(at, h)
    sites = {name: (at[0] + dx, at[1] + dy) for name, (dx, dy) in CORNERS.items()}
    return Check(kind_of(at), at, {layer: _folded(sites[name], h) for name, layer in labels.items()})


def _rp2_layers(at: Site, h: int) -> dict[str, int]:
    """In which of five layers a check meets its corners: the schedule with all its exceptions."""
    x, y = at
    left, top, right = x == -h - 0.5, y == -h - 0.5, x == h + 0.5
    if left and top:
        return {"nw": 1, "se": 3}
    if right:
        return {"sw": 4, "ne": 5}
    column = int(x + h - 0.5)
    if kind_of(at) == "X":
        if left or top:
            return _named(2, 5, 1, 4) if left else _named(2, 1, 5, 3)
        if y == h - 0.5:
            return _named(1, 4, 3, 5)
        return _named(1, 3, 2, 5) if column % 2 == 0 and x == h - 1.5 else _named(1, 3, 2, 4)
    if left:
        return _named(2, 4 if y == -h + 0.5 else 5, 1, 3)
    if top:
        return _named(3 if x == -h + 0.5 else 2, 1, 5, 4)
    if column % 2 and x == h - 0.5:
        return _named(1, 2, 3, 5) if y == -h + 0.5 else _named(1, 3, 4, 5)
    return _named(1, 2, 3, 5) if column % 2 and y == h - 1.5 else _named(1, 2, 3, 4)


def _named(nw: int, ne: int, sw: int, se: int) -> dict[str, int]:
    return {"nw": nw, "ne": ne, "sw": sw, "se": se}


# -- the rotated surface code -----------------------------------------------------------------------------------


def surface_checks(d: int) -> list[Check]:
    """The d^2 - 1 checks of the rotated surface code; X half checks left and right, Z half checks top and bottom."""
    h = (d - 1) / 2
    inside = set(grid(d))
    line = [-h - 0.5 + i for i in range(d + 1)]
    found = []
    for at in ((x, y) for x in line for y in line):
        kind = kind_of(at)
        labels = _named(1, 3, 2, 4) if kind == "X" else _named(1, 2, 3, 4)
        sites = {labels[name]: (at[0] + dx, at[1] + dy) for name, (dx, dy) in CORNERS.items()}
        order = {layer: site for layer, site in sites.items() if site in inside}
        half = abs(at[0] if kind == "X" else at[1]) == h + 0.5
        if len(order) == 4 or (len(order) == 2 and half):
            found.append(Check(kind, at, order))
    return found


def logical(kind: Kind, d: int) -> Support:
    """The logical X along the row y = 0, or the logical Z along the column x = 0."""
    return frozenset(site for site in grid(d) if site[1 if kind == "X" else 0] == 0)


# -- self-dual companions ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pack:
    """Data qubits that a Bell pair (a, b) is entangled with, and the qubit m of the row y = 0 that gathers them."""

    m: Site
    qubits: tuple[Site, ...]
    """(lo, up) for d = 3, (q0, q1, q2, q3) for d = 5."""
    a: Site
    b: Site


_D5 = (
    ((-2, -2), (-2, 2), (-2, -1), (-2, 1)),
    ((-1, -1), (-1, 1), (0, -1), (0, 1)),
    ((-1, -2), (-1, 2), (0, -2), (0, 2)),
    ((1, -2), (1, 2), (1, -1), (1, 1)),
    ((2, -2), (2, 2), (2, -1), (2, 1)),
)


def packs(d: int) -> list[Pack]:
    """The packs of SRP-3 (three) or SRP-5 (five); the new qubits lie beyond the grid, a above and b below it.

    Their y is no multiple of a half: whatever grid the code grows into, they are no data qubits of it.
    """
    h, far = (d - 1) // 2, d + 1.25
    qubits: Sequence[tuple[Site, ...]] = [((x, -1), (x, 1)) for x in (-1, 0, 1)] if d == 3 else _D5
    return [Pack((i - h, 0), qubits[i], (i - h, -far), (i - h, far)) for i in range(d)]


def morph(d: int) -> Layers:
    """The three layers of CX (control, target) from the RP^2 code and Bell pairs to its self-dual companion."""
    rows = packs(d)
    if d == 3:
        (first, *_), layers = rows, [[(k.a, k.b) for k in rows]]
        assert len(first.qubits) == 2
        layers += [[(k.a, k.qubits[0]) for k in rows] + [(k.qubits[1], k.b) for k in rows]]
        layers += [[(k.qubits[0], k.qubits[1]) for k in rows]]
        return tuple(map(tuple, layers))
    q = [k.qubits for k in rows]
    layers = [
        [(k.a, k.b) for k in rows],
        [(k.a, k.qubits[0]) for k in rows] + [(k.b, k.qubits[2]) for k in rows],
        [(k.qubits[1], k.a) for k in rows] + [(k.qubits[3], k.b) for k in rows],
        [(a, b) for a, b, _, _ in q] + [(c, e) for _, _, c, e in q],
    ]
    return tuple(map(tuple, layers))


def tree(d: int) -> Layers:
    """The layers of CX that fold the X parity of all qubits of the companion onto the centre."""
    rows = packs(d)
    if d == 3:
        layers: list[list[Pair]] = [
            [(k.qubits[1], k.b) for k in rows],
            [(k.qubits[0], k.a) for k in rows] + [(k.m, k.qubits[1]) for k in rows],
            [(k.m, k.qubits[0]) for k in rows],
            [((0, 0), (-1, 0))],
            [((0, 0), (1, 0))],
        ]
        return tuple(map(tuple, layers))
    layers = [
        [p for k in rows for p in ((k.m, k.qubits[2]), (k.qubits[1], k.a), (k.qubits[3], k.b))],
        [p for k in rows for p in ((k.m, k.qubits[3]), (k.qubits[0], k.qubits[1]))],
        [(k.m, k.qubits[0]) for k in rows],
        [((0, 0), (2, 0))],
        [((0, 0), (1, 0)), ((-1, 0), (-2, 0))],
        [((0, 0), (-1, 0))],
    ]
    return tuple(map(tuple, layers))


def pushed(kind: Kind, support: Support, layers: Layers) -> Support:
    """The image of a string under layers of CX: X spreads from control to target, Z from target to control."""
    string = set(support)
    for control, target in (pair for layer in layers for pair in layer):
        source, goal = (control, target) if kind == "X" else (target, control)
        if source in string:
            string ^= {goal}
    return frozenset(string)


def companion(d: int) -> dict[Kind, list[Support]]:
    """The stabilizers of SRP-d by type, images of the checks and of the Bell pairs; check i is image i of its type."""
    new: dict[Kind, list[Support]] = {"X": [], "Z": []}
    layers = morph(d)
    for check in rp2_checks(d):
        new[check.kind].append(pushed(check.kind, check.support, layers))
    for pack in packs(d):  # Before the first layer a is stabilized by X, b by Z.
        new["X"].append(pushed("X", frozenset({pack.a}), layers))
        new["Z"].append(pushed("Z", frozenset({pack.b}), layers))
    return new


def gauge_sign(check: Check, d: int) -> int:
    """The eigenvalue that a check must have before morphing, +1 for X, (-1)^(w/2) for Z whose image has weight w.

    Only then does S on all qubits keep the companion's code space.
    """
    if check.kind == "X":
        return 1
    return (-1) ** (len(pushed("Z", check.support, morph(d))) // 2)


# -- GF(2) ------------------------------------------------------------------------------------------------------


def masks(strings: Iterable[Support], sites: Sequence[Site]) -> list[int]:
    """Strings as the bits of integers, bit i for sites[i]."""
    place = {site: 1 << i for i, site in enumerate(sites)}
    return [sum(place[site] for site in string) for string in strings]


def reduced(rows: Iterable[int]) -> list[int]:
    """A basis of the span, in reduced row echelon form, sorted: equal spans give equal lists."""
    basis: list[int] = []
    for row in rows:
        for b in basis:
            row = min(row, row ^ b)
        if row:
            basis = [min(b, b ^ row) if b & (1 << (row.bit_length() - 1)) else b for b in basis] + [row]
            basis.sort(reverse=True)
    return basis


def distance(checks: Sequence[Support], crossing: Support, sites: Sequence[Site]) -> int:
    """The smallest weight of a string that meets every check evenly and `crossing`, a logical string, oddly.

    Meets in the middle: a string of weight w is one of w // 2 sites times one of the rest.
    """
    columns = [sum(1 << i for i, check in enumerate([*checks, crossing]) if site in check) for site in sites]
    odd = 1 << len(checks)
    reached: list[set[int]] = [{0}]
    for weight in range(1, len(sites) + 1):
        half = (weight + 1) // 2
        if half == len(reached):
            reached.append({reduce(xor, chosen, 0) for chosen in combinations(columns, half)})
        if any(value ^ odd in reached[weight - half] for value in reached[half]):
            return weight
    raise ValueError("no logical string: the checks fix the crossing string")

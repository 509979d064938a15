"""The stages of cultivation: injection, syndrome rounds, T-check, growth (Chen et al., arXiv:2503.18657).

Names of stages and their order are those of the discards in reports. Coordinates are those of codes.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stillroom.science.rp2_cultivation import codes
from stillroom.science.rp2_cultivation.circuits import Builder, Rotation
from stillroom.science.rp2_cultivation.codes import Check, Kind, Pair, Site

Records = dict[Site, int]
"""The number of the last measurement of each check, by its place."""

ROTATIONS: Mapping[int, Rotation] = {3: "T", 5: "T_DAG"}
"""U of the T-check: the logical Y of SRP-5 has the other orientation."""
INVERSE: Mapping[Rotation, Rotation] = {"T": "T_DAG", "T_DAG": "T"}


# -- syndrome rounds --------------------------------------------------------------------------------------------


def ancillas(checks: Sequence[Check], kind: Kind) -> list[Site]:
    """The ancillas of the checks of one type."""
    return [check.at for check in checks if check.kind == kind]


def round_layers(checks: Sequence[Check]) -> list[list[Pair]]:
    """The CX of a syndrome round by layer: data to ancilla for Z, ancilla to data for X."""
    layers: list[list[Pair]] = [[] for _ in range(max(max(check.order) for check in checks))]
    for check in checks:
        for layer, site in check.order.items():
            layers[layer - 1].append((site, check.at) if check.kind == "Z" else (check.at, site))
    return layers


def read_out(b: Builder, checks: Sequence[Check]) -> Records:
    """Measure the ancillas; returns which measurement is whose."""
    return b.layer(measure={"Z": ancillas(checks, "Z"), "X": ancillas(checks, "X")})


def syndrome_round(b: Builder, checks: Sequence[Check]) -> Records:
    """One whole round."""
    b.layer(reset={"0": ancillas(checks, "Z"), "+": ancillas(checks, "X")})
    for layer in round_layers(checks):
        b.layer(layer)
    return read_out(b, checks)


def repeated(b: Builder, checks: Sequence[Check], old: Records, round_: int, signs_known: bool) -> Records:
    """A round compared with the last one; where the signs of Z checks were just fixed, these stand alone."""
    new = syndrome_round(b, checks)
    for check in checks:
        alone = signs_known and check.kind == "Z"
        b.detect(check.at, round_, *(() if alone else (old[check.at],)), new[check.at])
    return new


# -- distance 3 -------------------------------------------------------------------------------------------------

INJECTED: tuple[Pair, ...] = (((-1, -1), (1, 1)), ((0, -1), (0, 1)), ((1, -1), (-1, 1)), ((-1, 0), (1, 0)))
"""The CX of the injection: 0 to 8, 3 to 5, 6 to 2, 1 to 7."""
GAUGE_3: tuple[tuple[Site, Site | None, int], ...] = (
    ((-1, -1), None, 1),
    ((-1, 0), (-0.5, 0.5), 1),
    ((1, 0), (0.5, -0.5), 1),
)
"""X on a site: always, or where the check had the eigenvalue."""


def inject(
    b: Builder, rotation: Rotation = "T", gauge: Sequence[tuple[Site, Site | None, int]] = GAUGE_3
) -> Records:
    """A T state on the centre, encoded into the RP^2 code of distance 3; two rounds, the gauge fixed between them.

    The rotation and the gauge fix are arguments for the sake of the exact check of state_vector.py.
    """
    checks = codes.rp2_checks(3)
    b.stage("first round")
    plus, zero = [c for c, _ in INJECTED], [t for _, t in INJECTED]
    b.layer(reset={"+": [*plus, (0, 0)], "0": zero})
    b.layer(INJECTED, rotate=(rotation, [(0, 0)]))
    b.layer()  # The authors' circuits wait here for one layer.
    first = syndrome_round(b, checks)
    fix(b, gauge, first)
    products = [((-0.5, -0.5), (0.5, 0.5)), ((0.5, -0.5), (-0.5, 0.5))]
    alone = [(-1.5, 0.5), (-1.5, -1.5), (0.5, -1.5), (-0.5, -1.5), (1.5, -1.5), (-1.5, -0.5)]
    for at, other in products:
        b.detect(at, 0, first[at], first[other])
    for at in alone:
        b.detect(at, 0, first[at])
    b.stage("second round")
    return repeated(b, checks, first, 1, signs_known=True)


def fix(b: Builder, gauge: Sequence[tuple[Site, Site | None, int]], records: Records) -> None:
    """Apply the X of a gauge fix after the last layer."""
    for site, check, when in gauge:
        b.flip(site, None if check is None else records[check], when)


# -- the T-check ------------------------------------------------------------------------------------------------


def morph(b: Builder, d: int) -> None:
    """From the RP^2 code and new Bell pairs to the self-dual companion: what a T-check begins with."""
    packs = codes.packs(d)
    b.stage(f"T-check {d}, parity")
    b.layer(reset={"+": [k.a for k in packs], "0" if d == 3 else "1": [k.b for k in packs]})
    for layer in codes.morph(d):
        b.layer(layer)


def flags(d: int) -> list[Pair]:
    """(flag, data qubit): all nine for d = 3, those with y >= 0 for d = 5; a flag is the ancilla up left."""
    return [((x - 0.5, y - 0.5), (x, y)) for x, y in codes.grid(d) if d == 3 or y >= 0]


def t_check(b: Builder, d: int, round_: int, flagged: bool = True) -> None:
    """Measure the product of U^dagger X U over all qubits of the companion, and undo it; all is post-selected."""
    rotation, tree, pairs = ROTATIONS[d], codes.tree(d), flags(d) if flagged else []
    every = [*codes.grid(d), *(site for k in codes.packs(d) for site in (k.a, k.b))]
    b.layer(rotate=(rotation, every))
    if flagged:
        b.layer(reset={"+": [flag for flag, _ in pairs]})
        b.layer(pairs)
    for layer in tree:
        b.layer(layer)
    parity = b.layer(measure={"X": [(0, 0)]})
    b.detect((0, 0), round_, parity[(0, 0)])
    b.stage(f"T-check {d}, flags")
    b.layer(reset={"+": [(0, 0)]})
    for layer in tree[::-1]:
        b.layer(layer)
    seen: Records = {}
    if flagged:
        b.layer(pairs)
        seen = b.layer(measure={"X": [flag for flag, _ in pairs]})
    b.layer(rotate=(INVERSE[rotation], every))
    for flag, _ in pairs:
        b.detect(flag, round_, seen[flag])


def unmorph(b: Builder, d: int, round_: int) -> None:
    """Back to the RP^2 code, the pairs measured, with the authors' noise: none on what waits in the last two layers."""
    *first, second, last = codes.morph(d)[::-1]
    b.stage(f"T-check {d}, pairs")
    for layer in first:
        b.layer(layer)
    b.layer()  # In a circuit that grows, new qubits are reset here.
    b.layer(second)
    b.layer(last, quiet=True)
    measure_pairs(b, d, round_, quiet=True)


def measure_pairs(b: Builder, d: int, round_: int, quiet: bool = False) -> None:
    """Measure what was a Bell pair: a in X, b in Z."""
    packs = codes.packs(d)
    seen = b.layer(measure={"X": [k.a for k in packs], "Z": [k.b for k in packs]}, quiet=quiet)
    for site, record in seen.items():
        b.detect(site, round_, record)

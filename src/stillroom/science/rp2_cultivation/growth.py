"""Growth of an RP^2 code, into the RP^2 code of the next distance or a rotated surface code, and whole circuits.

Chen et al., arXiv:2503.18657. Growth takes one round: the first ring of new qubits are antipodal Bell pairs, what
lies beyond is a product state whose type goes with the surface code's boundary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stillroom.science.rp2_cultivation import codes, stages
from stillroom.science.rp2_cultivation.circuits import Builder, Program, State
from stillroom.science.rp2_cultivation.codes import Check, Pair, Site, antipode
from stillroom.science.rp2_cultivation.stages import Records

GAUGE_5: tuple[tuple[Site, Site | None, int], ...] = (
    ((-1, -1), None, 1),
    ((-2, 1), None, 1),
    ((-1, 2), None, 1),
    ((-2, 0), (-1.5, -0.5), -1),
    ((0, 2), (0.5, 1.5), -1),
    ((-2, 2), (-1.5, 1.5), -1),
    ((2, -2), (1.5, -1.5), -1),
    ((2, 0), (1.5, 0.5), 1),
    ((0, -2), (-0.5, -1.5), 1),
)
"""X on a site after the first round of RP^2-5: always, or where the check had the eigenvalue."""


def reach(at: Site) -> float:
    """How far out a place is: the larger of |x| and |y|."""
    return max(abs(at[0]), abs(at[1]))


def bell_pairs_rp2() -> list[Pair]:
    """(control, target) of the ring that RP^2-5 has around RP^2-3."""
    return [((i, -2), (-i, 2)) for i in range(-2, 3)] + [((2, j), (-2, -j)) for j in range(-1, 2)]


def bell_pairs_surface(d: int) -> list[Pair]:
    """(control, target) of the first ring around a grid of distance d, where a surface code is grown."""
    h = (d + 1) // 2
    top, left = [(i, -h) for i in range(-h, h)], [(-h, j) for j in range(1 - h, h + 1)]
    return [(site, antipode(site)) for site in top + left]


def prepared(site: Site) -> State:
    """The product state beyond the first ring: |0> towards top and bottom, |+> towards left and right."""
    x, y = site
    return "0" if abs(y) > abs(x) or x == y else "+"


def first_round(
    b: Builder, d: int, morphed: bool, checks: Sequence[Check], bell: Sequence[Pair], name: str, decoded: bool,
    round_: int,
) -> Records:  # fmt: skip
    """New qubits and the first round of the new code, overlapped with the un-morphing where there is one to undo."""
    *before, second, last = codes.morph(d)[::-1] if morphed else ((), ())
    b.stage(f"T-check {d}, pairs" if morphed else name, decoded and not morphed)
    for layer in before:
        b.layer(layer)
    beyond = [s for s in {s for c in checks for s in c.support} if reach(s) > (d + 1) / 2]
    fresh: dict[State, list[Site]] = {"0": [], "+": []}
    for site in sorted(beyond):
        fresh[prepared(site)].append(site)
    zero = [*stages.ancillas(checks, "Z"), *fresh["0"], *(target for _, target in bell)]
    plus = [*stages.ancillas(checks, "X"), *fresh["+"], *(control for control, _ in bell)]
    b.layer(reset={"0": zero, "+": plus})
    b.layer([*second, *bell])
    start, *rest = stages.round_layers(checks)
    b.layer([*last, *start])
    if morphed:
        stages.measure_pairs(b, d, round_)
        b.stage(name, decoded)
    for layer in rest:
        b.layer(layer)
    return stages.read_out(b, checks)


def meets(check: Check, d: int) -> bool:
    """Whether a check of the grown code is determined by what its sites beyond the first ring were prepared in."""
    basis = "0" if check.kind == "Z" else "+"
    return all(prepared(site) == basis for site in check.support if reach(site) > (d + 1) / 2)


def compare(
    b: Builder, d: int, old: Records, new: Records, checks: Sequence[Check], round_: int, closed: bool
) -> None:
    """Detectors of the first round after growth from distance d; `closed`: the new code is an RP^2 code."""
    ring = (d + 1) / 2  # Of the first new data qubits.
    for check in checks:
        at, far = check.at, reach(check.at)
        if far < ring - 1:
            b.detect(at, round_, old[at], new[at])
        elif far == ring - 0.5:
            if at in old:
                b.detect(at, round_, old[at], new[at], new[antipode(at)])
        elif closed or (far > ring + 1 and meets(check, d)):
            b.detect(at, round_, new[at])
        elif far == ring + 0.5 and meets(check, d) and min(at) == -far:
            b.detect(at, round_, new[at], new[antipode(at)])


def to_rp2_5(
    b: Builder, old: Records, morphed: bool, gauge: Sequence[tuple[Site, Site | None, int]]
) -> Records:
    """Grow RP^2-3 into RP^2-5, fix the gauge, and repeat the round."""
    checks = codes.rp2_checks(5)
    new = first_round(b, 3, morphed, checks, bell_pairs_rp2(), "growth to RP2-5", False, 2)
    stages.fix(b, gauge, new)
    compare(b, 3, old, new, checks, 2, closed=True)
    b.stage("second round of RP2-5")
    return stages.repeated(b, checks, new, 3, signs_known=True)


def to_surface(
    b: Builder, d: int, size: int, old: Records, morphed: bool, rounds: int, round_: int
) -> Records:
    """Grow RP^2-d into the rotated surface code of distance `size`, and repeat the round."""
    checks = codes.surface_checks(size)
    last = first_round(b, d, morphed, checks, bell_pairs_surface(d), "growth and memory", True, round_)
    compare(b, d, old, last, checks, round_, closed=False)
    for i in range(rounds):
        last = stages.repeated(b, checks, last, round_ + 1 + i, signs_known=False)
    return last


# -- whole circuits ---------------------------------------------------------------------------------------------


def logical_y(d: int) -> dict[Site, str]:
    """The logical Y of an RP^2 or surface code: Z on the column, X on the row, Y where they cross."""
    z, x = codes.logical("Z", d), codes.logical("X", d)
    named: Mapping[Site, str] = dict.fromkeys(z, "Z") | dict.fromkeys(x, "X") | dict.fromkeys(z & x, "Y")
    return {site: named[site] for site in sorted(named)}


def cultivation(distance: int, surface: int = 0, rounds: int = 0, checked: bool = True) -> Program:
    """The circuit of MSC-3 or MSC-5, alone or grown into a surface code and kept for `rounds` more rounds.

    `checked` False leaves out the T-checks: injection and rounds of syndromes alone.
    """
    b = Builder()
    old = stages.inject(b)
    round_ = 2
    if checked:
        stages.morph(b, 3)
        stages.t_check(b, 3, round_)
    if distance == 5:
        old, round_ = to_rp2_5(b, old, checked, GAUGE_5), 4
        if checked:
            stages.morph(b, 5)
            stages.t_check(b, 5, round_)
    if surface:
        old = to_surface(b, distance, surface, old, checked, rounds, round_)
        return _finished(b, codes.surface_checks(surface), old, surface, round_ + 1 + rounds)
    if checked:
        stages.unmorph(b, distance, round_)
    b.stage("projection")
    return _finished(b, codes.rp2_checks(distance), old, distance, round_)


def _finished(b: Builder, checks: Sequence[Check], old: Records, d: int, round_: int) -> Program:
    measured = [(check.at, check.kind, check.support, old[check.at]) for check in checks]
    return b.finish(measured, logical_y(d), round_)

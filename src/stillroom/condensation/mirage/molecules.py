"""Molecules put together from fragments, for trials and tests: no chemistry library and no download.

Fragments are written in a corner of SMILES: organic atoms, [NH+] and its like, bonds -, = and #, branches, ring
digits. Hydrogens are counted from usual valences; a join takes one from each side.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import torch

FRAGMENTS = """
c1ccccc1 c1ccncc1 c1ccoc1 c1ccsc1 c1cc[nH]c1 c1cnccn1 C1CCCCC1 C1CCCC1 C1CCNCC1 C1COCCN1 C1CCOC1 C1CC1 c1ccc2ccccc2c1
C CC CCC CC(C)C C=C C#C O N OC NC CN(C)C C=O CC(C)=O C(=O)O C(N)=O C(=O)OC C#N [NH+](=O)[O-]
F Cl Br S [SH](=O)(=O)C C(F)(F)F
"""
"""Rings, chains, groups and halogens; the first atom of a fragment without a ring is the one that joins."""

VALENCE = {"C": 4, "N": 3, "O": 2, "S": 2, "F": 1, "Cl": 1, "Br": 1}
NUMBER = {"C": 6, "N": 7, "O": 8, "F": 9, "S": 16, "Cl": 17, "Br": 35}
ORDER = {"-": 1, "=": 2, "#": 3}
AROMATIC = 4
"""Kind of an aromatic bond; single, double and triple ones are 1, 2 and 3."""

_TOKEN = re.compile(
    r"\[(?P<held>[A-Z][a-z]?|[a-z])H?(?P<h>\d?)[+-]?\]|(?P<atom>Cl|Br|[CNOSFcnos])|(?P<sign>[-=#()\d])"
)


@dataclass
class Molecule:
    """Atoms and bonds; hydrogens are numbers at their atoms."""

    elements: list[str] = field(default_factory=list)
    hydrogens: list[int] = field(default_factory=list)
    aromatic: list[bool] = field(default_factory=list)
    bonds: list[tuple[int, int, int]] = field(default_factory=list)
    """(atom, atom, kind)."""
    ring: bool = False

    def __len__(self) -> int:
        return len(self.elements)

    def joined(self, other: Molecule, here: int, there: int) -> Molecule:
        """Both, with a single bond in place of a hydrogen of atom `here` and one of the other's atom `there`."""
        first, second = list(self.hydrogens), list(other.hydrogens)
        first[here] -= 1
        second[there] -= 1
        n = len(self)
        moved = [(a + n, b + n, kind) for a, b, kind in other.bonds]
        return Molecule(
            self.elements + other.elements,
            first + second,
            self.aromatic + other.aromatic,
            [*self.bonds, *moved, (here, n + there, 1)],
        )


def fragment(text: str) -> Molecule:
    """The molecule that `text` writes down."""
    made, stack, rings = Molecule(ring=any(c.isdigit() for c in text)), [], {}
    given: dict[int, int] = {}
    last, order = -1, 0
    for token in _TOKEN.finditer(text):
        sign = token["sign"]
        if sign is None:
            symbol = token["held"] or token["atom"]
            atom = len(made)
            made.elements.append(symbol.capitalize())
            made.aromatic.append(symbol.islower())
            if token["held"]:
                given[atom] = int(token["h"] or "H" in token[0])
            if last >= 0:
                made.bonds.append((last, atom, order or _usual(made, last, atom)))
            last, order = atom, 0
        elif sign == "(":
            stack.append(last)
        elif sign == ")":
            last = stack.pop()
        elif sign in ORDER:
            order = ORDER[sign]
        elif sign in rings:
            made.bonds.append((rings[sign], last, order or _usual(made, rings.pop(sign), last)))
        else:
            rings[sign] = last
    made.hydrogens = [given.get(atom, _hydrogens(made, atom)) for atom in range(len(made))]
    return made


def _usual(made: Molecule, a: int, b: int) -> int:
    return AROMATIC if made.aromatic[a] and made.aromatic[b] else 1


def _hydrogens(made: Molecule, atom: int) -> int:
    orders = [kind for *ends, kind in made.bonds if atom in ends]
    element = made.elements[atom]
    used = sum(1 if kind == AROMATIC else kind for kind in orders)
    shared = made.aromatic[atom] and element in ("C", "N")  # An electron of the ring.
    return max(0, VALENCE[element] - used - shared)


def assembled(fragments: list[Molecule], draw: torch.Generator, least: int = 8, most: int = 20) -> Molecule:
    """A random molecule of `least` to `most` heavy atoms."""

    def one_of(count: int) -> int:
        return int(torch.randint(count, (1,), generator=draw))

    target = least + one_of(most - least + 1)
    rings = [part for part in fragments if part.ring]
    made = rings[one_of(len(rings))]
    while len(made) < target:
        part = fragments[one_of(len(fragments))]
        free = [atom for atom in range(len(made)) if made.hydrogens[atom] and made.elements[atom] in "CN"]
        if not free:
            break
        if len(made) + len(part) <= max(target, least):
            open_ = [atom for atom in range(len(part)) if part.hydrogens[atom]] if part.ring else [0]
            made = made.joined(part, free[one_of(len(free))], open_[one_of(len(open_))])
    return made


def donors(made: Molecule) -> int:
    """Hydrogen-bond donors: nitrogens and oxygens with a hydrogen."""
    return sum(e in "NO" and h > 0 for e, h in zip(made.elements, made.hydrogens, strict=True))


def nitro_and_nitrile(made: Molecule) -> int:
    """Nitrogens with a triple bond, or with bonds to two oxygens."""
    around: dict[int, list[tuple[str, int]]] = {}
    for a, b, kind in made.bonds:
        around.setdefault(a, []).append((made.elements[b], kind))
        around.setdefault(b, []).append((made.elements[a], kind))
    nitrogens = [around.get(atom, []) for atom, element in enumerate(made.elements) if element == "N"]
    return sum(
        any(kind == 3 for _, kind in near) or sum(element == "O" for element, _ in near) == 2
        for near in nitrogens
    )


def label_of(made: Molecule) -> int:
    """1 where donors + 2 x (nitro and nitrile groups) >= 2, else 0."""
    return int(donors(made) + 2 * nitro_and_nitrile(made) >= 2)


def molecules(count: int, seed: int, noise: float = 0.05) -> list[tuple[Molecule, int]]:
    """`count` random molecules with labels, a share `noise` of which is turned over."""
    draw = torch.Generator().manual_seed(seed)
    fragments = [fragment(text) for text in FRAGMENTS.split()]
    made = [assembled(fragments, draw) for _ in range(count)]
    wrong = torch.rand(count, generator=draw) < noise
    return [(one, label_of(one) ^ int(odd)) for one, odd in zip(made, wrong, strict=True)]

"""The true circuit with T, without noise, amplitude by amplitude: what the Clifford proxy cannot show.

With T, the product of T^dagger X T over the 15 qubits of SRP-3 is 1 on an injected T state if the gauge rule of Chen
et al. (arXiv:2503.18657) is kept, and 0 if a fix is left out that the syndrome asks for. The proxy's check also reads
+1 without the first fix, and without any.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stillroom.science.rp2_cultivation.circuits import Builder, Layer, Rotation
from stillroom.science.rp2_cultivation.codes import Kind, Site, Support, grid, packs
from stillroom.science.rp2_cultivation.stages import GAUGE_3, inject, morph, t_check

PHASE = {"T": np.exp(1j * np.pi / 4), "T_DAG": np.exp(-1j * np.pi / 4)}


class StateVector:
    """The amplitudes of the qubits in use, an axis of length 2 for each; measured qubits are dropped."""

    def __init__(self, seed: int = 0) -> None:
        self.sites: list[Site] = []
        self.amplitudes: NDArray[np.complex128] = np.ones((), dtype=np.complex128)
        self.outcomes: list[int] = []
        """0 or 1 for each measurement so far, drawn with its probability."""
        self.chances: list[float] = []
        """The probability that each outcome had."""
        self.random = np.random.default_rng(seed)

    def _axis(self, site: Site, value: int) -> tuple[slice | int, ...]:
        at = self.sites.index(site)
        return tuple(value if i == at else slice(None) for i in range(len(self.sites)))

    def add(self, site: Site, state: str) -> None:
        """A new qubit in |0>, |1> or |+>."""
        new = {"0": (1, 0), "1": (0, 1), "+": (0.5**0.5, 0.5**0.5)}[state]
        self.amplitudes = self.amplitudes[..., None] * np.array(new)
        self.sites.append(site)

    def flip(self, site: Site) -> None:
        """X."""
        self.amplitudes = np.flip(self.amplitudes, self.sites.index(site))

    def cx(self, control: Site, target: Site) -> None:
        """X on the target where the control is 1."""
        here = self._axis(control, 1)
        at = self.sites.index(target) - (self.sites.index(control) < self.sites.index(target))
        self.amplitudes = self.amplitudes.copy()
        self.amplitudes[here] = np.flip(self.amplitudes[here], at).copy()

    def rotate(self, site: Site, rotation: Rotation) -> None:
        """T or its inverse."""
        self.amplitudes = self.amplitudes.copy()
        self.amplitudes[self._axis(site, 1)] *= PHASE[rotation]

    def measure(self, site: Site, kind: Kind) -> None:
        """Draw an outcome, project on it, drop the qubit."""
        zero, one = (self.amplitudes[self._axis(site, value)] for value in (0, 1))
        parts = (zero, one) if kind == "Z" else ((zero + one) / 2**0.5, (zero - one) / 2**0.5)
        chance = [float(np.vdot(part, part).real) for part in parts]
        outcome = int(self.random.random() * sum(chance) >= chance[0])
        self.outcomes.append(outcome)
        self.chances.append(chance[outcome] / sum(chance))
        self.amplitudes = parts[outcome] / chance[outcome] ** 0.5
        self.sites.remove(site)

    def run(self, layers: Sequence[Layer]) -> StateVector:
        """Do the layers, with their flips."""
        for layer in layers:
            for state, sites in layer.reset.items():
                for site in sites:
                    self.add(site, state)
            for control, target in layer.cx:
                self.cx(control, target)
            for site in layer.rotated:
                assert layer.rotation
                self.rotate(site, layer.rotation)
            for site, kind in layer.measured:
                self.measure(site, kind)
            for flip in layer.flips:
                if flip.record is None or (1, -1)[self.outcomes[flip.record]] == flip.when:
                    self.flip(flip.site)
        return self

    def expectation(self, x: Support = frozenset(), z: Support = frozenset()) -> float:
        """<X on some sites times Z on others>, which must not share a site."""
        image = self.amplitudes
        for site in z:
            image = image.copy()
            image[self._axis(site, 1)] *= -1
        for site in x:
            image = np.flip(image, self.sites.index(site))
        return float(np.vdot(self.amplitudes, image).real)

    def conjugated_x(self, rotation: Rotation) -> float:
        """<product over all qubits of U^dagger X U> for U = T or its inverse."""
        turned = StateVector()
        turned.sites, turned.amplitudes = list(self.sites), self.amplitudes
        for site in self.sites:
            turned.rotate(site, rotation)
        return turned.expectation(x=frozenset(self.sites))


def companion_state(
    injected: Rotation = "T", gauge: Sequence[tuple[Site, Site | None, int]] = GAUGE_3, seed: int = 0
) -> StateVector:
    """SRP-3's 15 qubits after injection, two rounds and the morphing; the seed draws the syndromes."""
    b = Builder()
    inject(b, injected, gauge)
    morph(b, 3)
    state = StateVector(seed).run(b.layers)
    assert len(state.sites) == len(grid(3)) + 2 * len(packs(3))
    return state


def check_chance(seed: int = 0) -> float:
    """The probability that the T-check without flags reads +1 on a T state: 1."""
    b = Builder()
    inject(b)
    before = b.records
    morph(b, 3)
    t_check(b, 3, 2, flagged=False)
    state = StateVector(seed).run(b.layers)
    chance = state.chances[before]
    return chance if state.outcomes[before] == 0 else 1 - chance


def gauge_table(seed: int = 0) -> dict[str, float]:
    """<product of T^dagger X T> with the gauge rule, with each of its fixes left out, and with all.

    Qubits are numbered as in the paper, column by column. Seed 0 draws a syndrome at which all three fixes act;
    at half of the syndromes only the first does.
    """
    number = {site: round(3 * (site[0] + 1) + site[1] + 1) for site in grid(3)}
    without = {f"no X on {number[s]}": tuple(g for g in GAUGE_3 if g[0] != s) for s, _, _ in GAUGE_3}
    arms = {"gauge rule": GAUGE_3, **without, "no fix": ()}
    return {name: companion_state(gauge=gauge, seed=seed).conjugated_x("T") for name, gauge in arms.items()}

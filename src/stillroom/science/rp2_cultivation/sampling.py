"""Shots: post-selection by stage, decoding, gaps, intervals, and the volume of what is kept.

Chen et al., arXiv:2503.18657: detectors with four coordinates (x, y, round, stage) are post-selected, those with
three are decoded by matching. Everything is counted per kept shot unless it says otherwise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stillroom.errors import UserError
from stillroom.science.rp2_cultivation.circuits import Program, Stage
from stillroom.science.rp2_cultivation.gap import ClusterGap

if TYPE_CHECKING:
    import stim

BATCH = 1 << 17
"""Shots that are sampled at once, so that memory stays small."""


def interval(hits: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """The Clopper-Pearson interval of a probability; (0, 1) where there are no trials."""
    from scipy.stats import beta

    tail = (1 - level) / 2
    low = float(beta.ppf(tail, hits, trials - hits + 1)) if hits else 0.0
    high = float(beta.ppf(1 - tail, hits + 1, trials - hits)) if hits < trials else 1.0
    return low, high


# -- what a circuit says of itself --------------------------------------------------------------------------------


def stage_numbers(circuit: stim.Circuit) -> NDArray[np.int64]:
    """The stage of each detector [detectors], its fourth coordinate; -1 where it is decoded."""
    places = circuit.get_detector_coordinates()
    short = [i for i, place in places.items() if len(place) < 3]
    if short:
        raise UserError(
            f"detector {short[0]} has {len(places[short[0]])} coordinates: give it (x, y, round) to decode it or "
            "(x, y, round, stage) to post-select on it"
        )
    return np.array(
        [int(places[i][3]) if len(places[i]) > 3 else -1 for i in range(len(places))], dtype=np.int64
    )


def decoding_model(circuit: stim.Circuit) -> stim.DetectorErrorModel:
    """The error model of the kept shots: errors that a post-selected detector sees are left out, as in the paper."""
    import stim

    post = stage_numbers(circuit) >= 0
    pruned = stim.DetectorErrorModel()
    model = circuit.detector_error_model(decompose_errors=True, ignore_decomposition_failures=True)
    for line in model.flattened():
        assert isinstance(line, stim.DemInstruction)  # What is flattened has no repeated blocks.
        targets = line.targets_copy() if line.type == "error" else []
        seen = [t.val for t in targets if isinstance(t, stim.DemTarget) and t.is_relative_detector_id()]
        if not post[seen].any():
            pruned.append(line)
    return pruned


def make_matching(circuit: stim.Circuit) -> Any:
    """A `pymatching.Matching` for the decoded detectors; UserError where PyMatching is not installed."""
    try:
        import pymatching
    except ImportError:
        raise UserError('PyMatching is not installed: pip install "stillroom[quantum]"') from None
    return pymatching.Matching.from_detector_error_model(decoding_model(circuit))


def qubit_layers(program: Program) -> list[int]:
    """Active qubits times layers, by stage."""
    costs = [0] * len(program.stages)
    for layer in program.layers:
        costs[layer.stage] += layer.active
    return costs


def read_stages(circuit: stim.Circuit) -> tuple[list[Stage], list[int]]:
    """Stages of a circuit from elsewhere by the numbers of its detectors, and the active qubits x layers of each.

    A layer is what stands between two TICKs and touches a qubit; it belongs to the stage of the next detectors.
    """
    import stim

    numbers = stage_numbers(circuit)
    ids = sorted(set(numbers[numbers >= 0].tolist()))
    place = {number: i for i, number in enumerate(ids)} | ({-1: len(ids)} if (numbers < 0).any() else {})
    costs, waiting, seen = [0] * len(place), 0, 0
    active: set[int] = set()
    ended: set[int] = set()
    touched = False
    for line in circuit.flattened():
        assert isinstance(line, stim.CircuitInstruction)
        if line.name in ("DETECTOR", "TICK"):
            waiting += len(active) * touched
            active, ended, touched = active - ended, set(), False
        if line.name == "DETECTOR":
            costs[place[int(numbers[seen])]] += waiting
            waiting, seen = 0, seen + 1
        elif line.name not in ("QUBIT_COORDS", "SHIFT_COORDS", "OBSERVABLE_INCLUDE", "MPP"):
            qubits = {t.value for t in line.targets_copy() if t.is_qubit_target}
            touched = touched or bool(qubits)
            active |= qubits
            ended |= qubits if line.name in ("M", "MX", "MY") else set()
    names = {number: f"stage {number}" for number in ids} | {-1: "decoded"}
    return [Stage(names[number], number, number < 0) for number in place], costs


# -- shots ------------------------------------------------------------------------------------------------------


@dataclass
class Tally:
    """What came of some shots."""

    shots: int
    discards: NDArray[np.int64]
    """[stages]: shots whose first detection event in a post-selected detector is of this stage."""
    wrong: NDArray[np.bool_]
    """[kept by post-selection]: whether the logical value is wrong."""
    gaps: NDArray[np.float64]
    """[kept by post-selection]: the gap in dB; infinite where none was asked for."""
    part: NDArray[np.int64]
    """[kept by post-selection]: in which of the shots' parts it was."""

    def passes(self, cut: float) -> NDArray[np.bool_]:
        """[kept by post-selection]: whether the gap is at least `cut` dB."""
        return self.gaps >= cut

    def counts(self, cut: float = 0.0) -> tuple[int, int]:
        """(kept, errors among them) at a gap cut."""
        passes = self.passes(cut)
        return int(passes.sum()), int((self.wrong & passes).sum())

    def reached(self) -> NDArray[np.float64]:
        """[stages]: the share of shots in which no earlier stage saw anything."""
        before = np.concatenate([[0], np.cumsum(self.discards)[:-1]])
        return 1 - before / max(self.shots, 1)

    def custom_counts(self, stages: Sequence[Stage], cut: float) -> Counter[str]:
        """Discards as sinter keeps them: D0, D1, ... by the number of the stage, and Dgap."""
        lost = zip(stages, self.discards, strict=True)
        counts = Counter({f"D{stage.number}": int(count) for stage, count in lost if count})
        if cut:
            counts["Dgap"] = len(self.gaps) - self.counts(cut)[0]
        return counts

    def volume(self, costs: Sequence[int], cut: float = 0.0) -> float:
        """Active qubits x layers that a kept shot costs, with those of the shots that were discarded before it."""
        kept = self.counts(cut)[0]
        return float(np.dot(costs, self.reached()) * self.shots / kept) if kept else float("inf")


class Sampler:
    """Draws shots of a circuit, post-selects, decodes what is left where there is something to decode."""

    def __init__(self, circuit: stim.Circuit, stages: Sequence[Stage], gaps: bool) -> None:
        self.circuit = circuit
        found = stage_numbers(circuit)
        seen = [(found == stage.number) & (not stage.decoded) for stage in stages]
        self.masks = [np.packbits(mask, bitorder="little") for mask in seen]
        decoded = bool((found < 0).any())
        self.matching = make_matching(circuit) if decoded else None
        self.gap = ClusterGap.of(self.matching) if decoded and gaps else None

    def tally(self, shots: int, seed: int, parts: int = 1) -> Tally:
        """Count `shots` shots; their numbers are a function of the seed."""
        draw = self.circuit.compile_detector_sampler(seed=seed)
        return joined([self._batch(draw, size, part) for part, size in _batches(shots, parts)])

    def _batch(self, draw: Any, size: int, part: int) -> Tally:
        events, flips = draw.sample(size, separate_observables=True, bit_packed=True)
        alive = np.ones(size, dtype=bool)
        discards = np.zeros(len(self.masks), dtype=np.int64)
        for stage, mask in enumerate(self.masks):
            used = np.flatnonzero(mask)
            fired = alive & (events[:, used] & mask[used]).any(axis=1)
            discards[stage] = fired.sum()
            alive &= ~fired
        events, wrong = events[alive], (flips[alive] & 1).astype(bool).any(axis=1)
        gaps = np.full(len(events), np.inf)
        if self.matching is not None and len(events):
            wrong = wrong ^ self.matching.decode_batch(events, bit_packed_shots=True)[:, 0].astype(bool)
            gaps = self._gaps(events) if self.gap else gaps
        return Tally(size, discards, wrong, gaps, np.full(len(events), part))

    def _gaps(self, events: NDArray[np.uint8]) -> NDArray[np.float64]:
        assert self.gap is not None
        bits = np.unpackbits(events, axis=1, bitorder="little")
        return np.array([self.gap(np.flatnonzero(row)) for row in bits])


def joined(tallies: Sequence[Tally]) -> Tally:
    """All shots together."""
    columns = [(t.wrong, t.gaps, t.part) for t in tallies]
    wrong, gaps, part = (np.concatenate(c) for c in zip(*columns, strict=True))
    discards = np.sum([t.discards for t in tallies], axis=0)
    return Tally(sum(t.shots for t in tallies), discards, wrong, gaps, part)


def _batches(shots: int, parts: int) -> list[tuple[int, int]]:
    """(part, size) of the batches: equal parts, none larger than fits."""
    edges = np.linspace(0, shots, parts + 1).round().astype(int)
    found = []
    for part, whole in enumerate(np.diff(edges).tolist()):
        found += [(part, min(BATCH, whole - start)) for start in range(0, whole, BATCH)]
    return found

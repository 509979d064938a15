"""A circuit as layers that act at once, from which stim circuits, state vectors and volumes are made.

Noise and the stand-in of T by S are put in when a stim circuit is made, so that one description serves the noisy
proxy of Chen et al. (arXiv:2503.18657) and the exact check of the true circuit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from stillroom.errors import UserError
from stillroom.science.rp2_cultivation.codes import Kind, Pair, Site, Support
from stillroom.science.rp2_cultivation.noise import Noise

if TYPE_CHECKING:
    import stim

State = Literal["0", "1", "+"]
Rotation = Literal["T", "T_DAG"]

PROXY: Mapping[str, str] = {"T": "S", "T_DAG": "S_DAG"}
"""The Clifford gate that stands for a rotation in stim; the instruction carries the rotation's name as its tag."""


def stim_module() -> object:
    """The module stim; UserError where it is not installed."""
    try:
        import stim
    except ImportError:
        raise UserError('stim is not installed: pip install "stillroom[quantum]"') from None
    return stim


@dataclass(frozen=True)
class Flip:
    """X on a site without noise: always, or where a measurement had the eigenvalue `when`."""

    site: Site
    record: int | None = None
    when: int = -1


@dataclass(frozen=True)
class Detector:
    """Measurements whose parity does not depend on chance when there is no noise."""

    at: Site
    round: int
    records: tuple[int, ...]


@dataclass
class Layer:
    """What happens at once. Sites of one layer are all different; flips and detectors come after it."""

    stage: int
    reset: Mapping[State, Sequence[Site]]
    cx: Sequence[Pair]
    rotation: Rotation | None
    rotated: Sequence[Site]
    measured: Sequence[tuple[Site, Kind]]
    idle: Sequence[Site]
    active: int
    """Qubits in use, for the volume."""
    flips: list[Flip] = field(default_factory=list)
    detectors: list[Detector] = field(default_factory=list)

    def touched(self) -> list[Site]:
        """The sites that anything but idling happens to, one entry a gate."""
        sites = [site for chosen in self.reset.values() for site in chosen]
        sites += [site for pair in self.cx for site in pair]
        return sites + list(self.rotated) + [site for site, _ in self.measured]


@dataclass(frozen=True)
class Stage:
    """Layers that end in detectors: a shot in which one of them fires is discarded, or is left to the decoder."""

    name: str
    number: int
    """The fourth coordinate of its detectors, where shots are post-selected on them."""
    decoded: bool = False


@dataclass
class Program:
    """A whole circuit: layers, stages, and the noiseless projection at its end."""

    layers: list[Layer]
    stages: list[Stage]
    sites: list[Site]
    """All qubits, in the order of their first use; stim's indices."""
    projected: list[dict[Site, str]] = field(default_factory=list)
    """Pauli products that are measured without noise at the end, the logical Y last."""
    final: list[Detector] = field(default_factory=list)
    final_stage: int = 0


class Builder:
    """Collects layers, and keeps track of which qubits are in use and which measurement is which."""

    def __init__(self) -> None:
        self.layers: list[Layer] = []
        self.stages: list[Stage] = []
        self.active: dict[Site, None] = {}
        self.sites: dict[Site, None] = {}
        self.records = 0

    def stage(self, name: str, decoded: bool = False) -> None:
        """From here on, layers belong to a new stage."""
        self.stages.append(Stage(name, len(self.stages), decoded))

    def layer(
        self,
        cx: Iterable[Pair] = (),
        reset: Mapping[State, Sequence[Site]] | None = None,
        rotate: tuple[Rotation, Sequence[Site]] | None = None,
        measure: Mapping[Kind, Sequence[Site]] | None = None,
        quiet: bool = False,
    ) -> dict[Site, int]:
        """Add a layer and return the number of each measurement in it; `quiet`: waiting qubits have no noise."""
        reset = reset or {}
        rotation, rotated = rotate or (None, ())
        before = list(self.active)
        for site in (site for chosen in reset.values() for site in chosen):
            self.active[site] = self.sites[site] = None
        measured = [(site, kind) for kind, chosen in (measure or {}).items() for site in chosen]
        made = Layer(
            len(self.stages) - 1, reset, tuple(cx), rotation, tuple(rotated), measured, (), len(self.active)
        )
        touched = set(made.touched())
        made.idle = () if quiet else [site for site in before if site not in touched]
        for site, _ in measured:
            del self.active[site]
        self.layers.append(made)
        first, self.records = self.records, self.records + len(measured)
        return {site: first + i for i, (site, _) in enumerate(measured)}

    def flip(self, site: Site, record: int | None = None, when: int = -1) -> None:
        """X after the last layer, always or on a measurement's outcome."""
        self.layers[-1].flips.append(Flip(site, record, when))

    def detect(self, at: Site, round_: int, *records: int) -> None:
        """Declare a detector after the last layer, of its stage."""
        self.layers[-1].detectors.append(Detector(at, round_, records))

    def finish(
        self, checks: Sequence[tuple[Site, Kind, Support, int]], logical: Mapping[Site, str], round_: int
    ) -> Program:
        """End with a noiseless projection: of checks, each with its last measurement, and of the logical Y."""
        program = Program(self.layers, self.stages, list(self.sites))
        program.final_stage = len(self.stages) - 1
        for i, (at, kind, support, old) in enumerate(checks):
            program.projected.append(dict.fromkeys(sorted(support), kind))
            program.final.append(Detector(at, round_, (old, self.records + i)))
        program.projected.append(dict(logical))
        return program


# -- to stim ----------------------------------------------------------------------------------------------------


def to_stim(program: Program, noise: Noise) -> stim.Circuit:
    """The Clifford proxy with noise: S stands for T, and its tag says so.

    Detectors have coordinates (x, y, round, stage) where shots are post-selected on them and (x, y, round) where
    they are decoded. Observable 0 is the logical Y.
    """
    import stim

    stim_module()
    index = {site: i for i, site in enumerate(program.sites)}
    circuit = stim.Circuit()
    for site, i in index.items():
        circuit.append("QUBIT_COORDS", [i], site)
    done = 0
    for layer in program.layers:
        done += len(layer.measured)
        _append_gates(circuit, layer, index, noise)
        for flip in layer.flips:
            _append_flip(circuit, flip, index[flip.site], done)
        _append_detectors(circuit, layer.detectors, layer.stage, program.stages, done)
        circuit.append("TICK", [])
    for string in program.projected:
        circuit.append(
            "MPP", stim.target_combined_paulis([stim.target_pauli(index[s], p) for s, p in string.items()])
        )
    done += len(program.projected)
    _append_detectors(circuit, program.final, program.final_stage, program.stages, done)
    if program.projected:
        circuit.append("OBSERVABLE_INCLUDE", [stim.target_rec(-1)], 0)
    return circuit


RESETS: Mapping[str, tuple[str, str]] = {"0": ("R", "X_ERROR"), "1": ("R", "X_ERROR"), "+": ("RX", "Z_ERROR")}
MEASURES: Mapping[str, tuple[str, str]] = {"Z": ("M", "X_ERROR"), "X": ("MX", "Z_ERROR")}


def _append_gates(circuit: stim.Circuit, layer: Layer, index: Mapping[Site, int], noise: Noise) -> None:
    def add(name: str, sites: Iterable[Site], strength: float | None = None, tag: str = "") -> None:
        targets = [index[site] for site in sites]
        if targets and strength != 0:
            circuit.append(name, targets, strength, tag=tag)

    for state, sites in layer.reset.items():
        gate, error = RESETS[state]
        add(gate, sites)
        add("X", sites if state == "1" else ())
        add(error, sites, noise.reset)
    pairs = [site for pair in layer.cx for site in pair]
    add("CX", pairs)
    add("DEPOLARIZE2", pairs, noise.two)
    if layer.rotation:
        add(PROXY[layer.rotation], layer.rotated, tag=layer.rotation)
        add("DEPOLARIZE1", layer.rotated, noise.one)
    for site, kind in layer.measured:
        add(MEASURES[kind][1], [site], noise.measure)
    for site, kind in layer.measured:
        add(MEASURES[kind][0], [site])
    add("DEPOLARIZE1", layer.idle, noise.idle)


def _append_flip(circuit: stim.Circuit, flip: Flip, qubit: int, done: int) -> None:
    import stim

    if flip.record is None or flip.when == 1:
        circuit.append("X", [qubit])
    if flip.record is not None:
        circuit.append("CX", [stim.target_rec(flip.record - done), qubit])


def _append_detectors(
    circuit: stim.Circuit, detectors: Sequence[Detector], stage: int, stages: Sequence[Stage], done: int
) -> None:
    import stim

    for detector in detectors:
        place = (*detector.at, detector.round) + (() if stages[stage].decoded else (stage,))
        circuit.append("DETECTOR", [stim.target_rec(record - done) for record in detector.records], place)

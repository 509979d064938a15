"""What cultivation yields here: a circuit with its stages, ready to be sampled, exported and read back."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.checkpoint import read_json, write_json, write_text
from stillroom.errors import UserError, reason
from stillroom.science.rp2_cultivation.circuits import Stage, stim_module, to_stim
from stillroom.science.rp2_cultivation.growth import cultivation
from stillroom.science.rp2_cultivation.noise import Noise
from stillroom.science.rp2_cultivation.sampling import (
    Sampler,
    Tally,
    decoding_model,
    interval,
    qubit_layers,
    read_stages,
)

if TYPE_CHECKING:
    import stim

CIRCUIT, MODEL, ABOUT = "circuit.stim", "decoding.dem", "cultivation.json"


@dataclass(eq=False)
class Cultivated:
    """A noisy circuit that prepares a logical state, in stages, and the gap that a shot needs to be kept."""

    circuit: stim.Circuit
    stages: list[Stage]
    costs: list[int]
    """Active qubits times layers of each stage."""
    gap: float = 0.0
    """Least cluster gap of a kept shot, dB; 0 keeps all that were not discarded before."""
    made: dict[str, Any] = field(default_factory=dict)
    """What the circuit was built from: distance, surface, rounds, checked; or the file that it comes from."""

    training = False

    def eval(self) -> Cultivated:
        """Itself: nothing is trained."""
        return self

    @property
    def decoded(self) -> bool:
        """Whether a part of it is decoded."""
        return any(stage.decoded for stage in self.stages)

    def sampler(self, gaps: bool | None = None) -> Sampler:
        """What draws its shots; with their gaps where there is a cut, or as told."""
        return Sampler(self.circuit, self.stages, self.gap > 0 if gaps is None else gaps)

    def alone(self, noise: Noise) -> Cultivated | None:
        """The cultivation without its growth at another noise; None for a circuit from a file."""
        if "distance" not in self.made:
            return None
        return build(int(self.made["distance"]), 0, 0, bool(self.made["checked"]), 0.0, noise)

    def numbers(self, tally: Tally) -> dict[str, Any]:
        """Logical error per kept shot, acceptance, attempts and volume, with 95 % Clopper-Pearson intervals."""
        kept, errors = tally.counts(self.gap)
        if not kept:
            raise UserError(
                f"none of {tally.shots} shots was kept: pass more --task.shots, or a smaller --task.p or --method.gap"
            )
        error, acceptance = interval(errors, kept), interval(kept, tally.shots)
        return {
            "logical_error": errors / kept,
            "logical_error_low": error[0],
            "logical_error_high": error[1],
            "acceptance": kept / tally.shots,
            "acceptance_low": acceptance[0],
            "acceptance_high": acceptance[1],
            "attempts": tally.shots / kept,
            "volume": tally.volume(self.costs, self.gap),
            "shots": tally.shots,
            "kept": kept,
            "errors": errors,
        }

    # -- files ------------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Write the circuit, its error model without what is post-selected, and what is to be known of them."""
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / CIRCUIT, f"{self.circuit}\n")
        write_text(folder / MODEL, f"{decoding_model(self.circuit)}\n")
        stages = [
            asdict(stage) | {"qubit_layers": cost}
            for stage, cost in zip(self.stages, self.costs, strict=True)
        ]
        write_json(folder / ABOUT, {"gap": self.gap, "made": self.made, "stages": stages})

    @classmethod
    def load(cls, folder: Path) -> Cultivated:
        """What `save` wrote."""
        about = read_json(folder / ABOUT)
        stages = [Stage(row["name"], row["number"], row["decoded"]) for row in about["stages"]]
        costs = [row["qubit_layers"] for row in about["stages"]]
        return cls(read_circuit(folder / CIRCUIT), stages, costs, about["gap"], about["made"])


def build(distance: int, surface: int, rounds: int, checked: bool, gap: float, noise: Noise) -> Cultivated:
    """Cultivation from its options; see `growth.cultivation`."""
    program = cultivation(distance, surface, rounds, checked)
    made = {"distance": distance, "surface": surface, "rounds": rounds, "checked": checked}
    return Cultivated(to_stim(program, noise), program.stages, qubit_layers(program), gap, made)


def read_circuit(path: Path) -> Any:
    """A stim circuit; UserError where there is none."""
    stim: Any = stim_module()
    try:
        return stim.Circuit(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, UnicodeDecodeError) as error:
        raise UserError(f"'{path}' is no stim circuit ({reason(error)}): pass a .stim file") from None


def from_file(path: str, gap: float) -> Cultivated:
    """A circuit of your own, with its noise; detectors say by their coordinates whether they are decoded."""
    circuit = read_circuit(Path(path))
    if circuit.num_observables != 1:
        raise UserError(
            f"'{path}' has {circuit.num_observables} observables: pass a circuit with one, the logical state's"
        )
    stages, costs = read_stages(circuit)
    return Cultivated(circuit, stages, costs, gap, {"circuit": path})


# -- tables -----------------------------------------------------------------------------------------------------


def discards_csv(product: Cultivated, tally: Tally) -> str:
    """A row a stage: shots that reached it and were discarded in it, and what it costs; the gap cut last."""
    file = io.StringIO()
    table = csv.writer(file, lineterminator="\n")
    table.writerow(["stage", "treated", "shots", "reached", "discarded", "qubit_layers"])
    reached = (tally.reached() * tally.shots).round().astype(int)
    for stage, count, lost, cost in zip(product.stages, reached, tally.discards, product.costs, strict=True):
        table.writerow(
            [stage.name, "decoded" if stage.decoded else "post-selected", tally.shots, count, int(lost), cost]
        )
    if product.gap:
        left = len(tally.gaps)
        name = f"gap of at least {product.gap:g} dB"
        table.writerow([name, "cut", tally.shots, left, left - tally.counts(product.gap)[0], 0])
    return file.getvalue()


def sinter_csv(product: Cultivated, tally: Tally, seconds: float, about: Mapping[str, Any]) -> str:
    """The same shots as a row of a sinter file; discards by stage are custom counts D0, D1, ..., and Dgap."""
    try:
        import sinter
    except ImportError:
        raise UserError('sinter is not installed: pip install "stillroom[quantum]"') from None
    kept, errors = tally.counts(product.gap)
    task = sinter.Task(
        circuit=product.circuit,
        detector_error_model=product.circuit.detector_error_model(),
        decoder="cultivation",
        json_metadata=json.loads(json.dumps(about)),
    )
    row = sinter.TaskStats(
        strong_id=task.strong_id(),
        decoder="cultivation",
        json_metadata=task.json_metadata,
        shots=tally.shots,
        errors=errors,
        discards=tally.shots - kept,
        seconds=seconds,
        custom_counts=tally.custom_counts(product.stages, product.gap),
    )
    return f"{sinter.CSV_HEADER}\n{row.to_csv_line()}\n"

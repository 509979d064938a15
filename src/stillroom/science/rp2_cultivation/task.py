"""The task: how noisy the machine is, and how a circuit for a magic state is scored by shots."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from stillroom.checkpoint import read_json, write_text
from stillroom.errors import UserError, require
from stillroom.exporting.card import Card
from stillroom.exporting.forms import Portable
from stillroom.science.rp2_cultivation.circuits import stim_module
from stillroom.science.rp2_cultivation.noise import Noise
from stillroom.science.rp2_cultivation.product import Cultivated, discards_csv, from_file, sinter_csv
from stillroom.science.rp2_cultivation.sampling import Tally
from stillroom.seeds import seed_of
from stillroom.task import Task

if TYPE_CHECKING:
    from stillroom.method import Method
    from stillroom.runtime import Runtime

SHOTS, PARTS = 23, 20
"""Keeps the seeds of shots apart from all others; in how many parts the shots of a score are counted."""


@dataclass(eq=False)
class MagicState(Task):
    """A logical T state under circuit noise, scored by Monte Carlo on the S proxy (stim has no T gate)."""

    higher_is_better = False
    per_sample_words = "parts of the shots"

    data: str = "uniform"
    """Noise: uniform (one strength p for all operations), or a JSON file with two, one, idle, reset, measure."""
    p: float = 2e-3
    """Strength of the uniform noise, in [0, 0.05]."""
    shots: int = 20_000
    """Attempts that the test score is made of, >= 20; validation takes a quarter of them."""
    decides: Literal["logical_error", "volume"] = "logical_error"
    """What decides: the logical error per kept shot, or active qubits x layers that a kept shot costs."""
    against: str = ""
    """A .stim circuit of your own to compare with; empty: injection and two rounds without T-checks."""
    sweep: tuple[float, ...] = (3e-3, 4e-3, 6e-3, 8e-3)
    """Strengths at which the figures show the cultivation without its growth; noise of your own is scaled."""
    sweep_shots: int = 1_000_000
    """Attempts at each strength of the figures; 0 leaves the figures out."""
    shot_seed: int = 0
    """Seed of all shots."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._tallies: dict[tuple[int, str], tuple[Cultivated, Tally, float]] = {}

    @property
    def metric(self) -> str:  # type: ignore[override]
        """The number that decides."""
        return self.decides

    @property
    def noise(self) -> Noise:
        """The noise of every operation."""
        given = self.given.get("data")
        if isinstance(given, Noise):
            return given
        if given is not None:
            return Noise.read(given, "from Python")
        if self.data == "uniform":
            return Noise.uniform(self.p)
        if not Path(self.data).is_file():
            raise UserError(f"--task.data '{self.data}' is no file: pass uniform, or a JSON file of noise")
        return Noise.read(read_json(Path(self.data)), self.data)

    def check(self, seed: int, teacher: bool) -> None:
        """See the ranges of the options, and read the noise."""
        stim_module()
        require("--task.p", self.p, 0, 0.05)
        require("--task.shots", self.shots, PARTS)
        require("--task.sweep-shots", self.sweep_shots, 0)
        for p in self.sweep:
            require("--task.sweep", p, 0, 0.05, ends="(]")
        _ = self.noise
        if self.against:
            from_file(self.against, 0.0)

    def baseline(self) -> Method | None:
        """The circuit to compare with, or injection alone; see `RP2Cultivation.baseline`, which knows its sizes."""
        from stillroom.science.rp2_cultivation.method import Injection, OwnCircuit

        return OwnCircuit(circuit=self.against) if self.against else Injection()

    # -- shots ------------------------------------------------------------------------------------------------

    def tally(self, product: Cultivated, split: str) -> tuple[Tally, float]:
        """The shots of a split, and the seconds that they took; drawn once for a product."""
        key = (id(product), split)
        if key not in self._tallies:
            shots = self.shots if split == "test" else max(PARTS, self.shots // 4)
            began = time.perf_counter()
            drawn = product.sampler().tally(shots, self.seed_for(0 if split == "test" else 1), PARTS)
            # The product is held on to, so that no other one can get its id.
            self._tallies[key] = product, drawn, time.perf_counter() - began
        return self._tallies[key][1:]

    def seed_for(self, use: int) -> int:
        """The seed of one use of shots: 0 test, 1 validation, 2 and on the strengths of the figures."""
        return seed_of(SHOTS, self.shot_seed, use)

    def score(self, product: Cultivated, split: str, runtime: Runtime) -> dict[str, Any]:
        """Error, acceptance, attempts, volume with intervals; per part what the interval of a run is made of."""
        tally, _ = self.tally(product, split)
        numbers = product.numbers(tally)
        if split != "test" or self.decides != "logical_error":
            return numbers
        passes = tally.passes(product.gap)
        kept = np.bincount(tally.part[passes], minlength=PARTS)
        wrong = np.bincount(tally.part[passes & tally.wrong], minlength=PARTS)
        return numbers | {"per_sample": (wrong / kept).tolist() if kept.all() else None}

    def cost(self, product: Cultivated) -> dict[str, float]:
        """Qubits, layers' qubits and detectors of one attempt that is never discarded."""
        circuit = product.circuit
        return {
            "qubits": circuit.num_qubits,
            "qubit_layers": sum(product.costs),
            "detectors": circuit.num_detectors,
            "file_bytes": len(str(circuit).encode()),
        }

    def figures(self, products: Mapping[str, Any], runtime: Runtime) -> list[dict[str, str]]:
        """Error against attempts, error and acceptance against p, the layout, the volume, the true check."""
        from stillroom.science.rp2_cultivation.figures import pictures

        return pictures(self, products) if self.sweep_shots else []

    def summary(self) -> dict[str, Any]:
        """The noise, and what stands for T."""
        name = "from Python" if "data" in self.given else self.data
        return {
            "name": f"noise {name}",
            "noise": asdict(self.noise),
            "proxy": "S stands for T: rates count faults, they are not those of the T circuit",
            "shots": self.shots,
        }

    # -- files ------------------------------------------------------------------------------------------------

    def export(self, product: Cultivated, folder: Path, about: Mapping[str, Any]) -> None:
        """Write circuit.stim, decoding.dem, discards.csv, stats.csv (as sinter's) and a README to `folder`."""
        tally, seconds = self.tally(product, "test")
        product.save(folder)
        write_text(folder / "discards.csv", discards_csv(product, tally))
        tag = {
            "method": about["method"],
            "noise": asdict(self.noise),
            "gap": product.gap,
            "seed": self.shot_seed,
        }
        write_text(folder / "stats.csv", sinter_csv(product, tally, seconds, tag))
        card(product, about).write(folder, about)

    @classmethod
    def load(cls, folder: Path, module: Any = None) -> Cultivated:
        """The circuit in `folder`."""
        return Cultivated.load(folder)

    def portable(
        self, product: Cultivated, folder: Path, about: Mapping[str, Any], absent: Collection[str] = ()
    ) -> Portable:
        """The folder as it is."""
        return Portable(card=card(product, about))

    # -- copies -----------------------------------------------------------------------------------------------

    def paired(self, seed: int) -> MagicState:
        """The same noise, other shots."""
        return self.but(shot_seed=seed)

    def quick(self) -> MagicState:
        """Few shots, at a noise that discards few of them; no figures."""
        return self.but(shots=400, sweep_shots=0, p=min(self.p, 1e-3))


def card(product: Cultivated, about: Mapping[str, Any]) -> Card:
    """The card of a circuit that the run `about` made."""
    numbers = about["arms"][about["method"]]["test"]
    low, high = numbers["logical_error_low"], numbers["logical_error_high"]
    return Card(
        title=f"A circuit for a logical T state, made by {about['method']}",
        tags=("quantum-error-correction",),
        facts=[
            f"made of: {product.made}; kept at a cluster gap of at least {product.gap:g} dB",
            f"noise: {about['data'].get('noise')}",
            f"logical error per kept shot {numbers['logical_error']:.3g} (95 % {low:.3g} to {high:.3g}), "
            f"{numbers['errors']} of {numbers['kept']}; {numbers['attempts']:.4g} attempts a kept shot",
            f"active qubits x layers a kept shot, with what was discarded before it: {numbers['volume']:.4g}",
        ],
        code=[
            "from stillroom.science.rp2_cultivation import MagicState",
            "made = MagicState.load('.')  # made.sampler().tally(10_000, seed=1)",
        ],
        ending=[
            "The circuit is the Clifford proxy: `S[T]` stands for T, and the logical Y is read out. It counts faults "
            "as the T circuit does, its rates are not those of the T circuit, and it is no test of the gauge.",
            "- `circuit.stim`: detectors (x, y, round, stage) are post-selected, detectors (x, y, round) are decoded\n"
            "- `decoding.dem`: the error model without errors that a post-selected detector sees\n"
            "- `discards.csv`: shots and discards by stage; `stats.csv`: the same shots in sinter's columns\n"
            "- `cultivation.json`: stages, their active qubits x layers, the gap cut",
        ],
    )

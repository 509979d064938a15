"""The methods and the claims: cultivation on RP^2, injection without it, and a circuit of one's own."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, ClassVar

from stillroom.claim import Claim, Rule
from stillroom.engine import Engine
from stillroom.errors import UserError, require
from stillroom.method import Fit, Method, Result
from stillroom.science.rp2_cultivation.product import build, from_file
from stillroom.science.rp2_cultivation.task import MagicState
from stillroom.task import Task


@dataclass(eq=False)
class RP2Cultivation(Method):
    """Magic state cultivation on RP^2 (Chen et al., PRX Quantum 2026, arXiv:2503.18657, sections on MSC-3 and MSC-5).

    Inject T into the RP^2 code of distance 3, check it by the transversal T of its self-dual companion, grow and
    check again for distance 5, discard on any event; then grow into a rotated surface code, decode, and keep a shot if
    its cluster gap is large enough.
    """

    name: ClassVar[str] = "rp2-cultivation"
    uses_teacher: ClassVar[bool] = False
    uses_engine: ClassVar[bool] = False
    checked: ClassVar[bool] = True

    distance: int = 3
    """Distance of the cultivation, 3 or 5."""
    surface: int = 7
    """Distance of the surface code that the state is grown into, odd, at least the cultivation's + 4; 0: not grown."""
    rounds: int = 0
    """Further rounds after the one of the growth, >= 0; 0 for as many as the distance of the cultivation."""
    gap: float = 16.0
    """Least cluster gap of a kept shot, dB, >= 0; without growth nothing is decoded and it has no say."""

    def check(self) -> None:
        """See which sizes there are."""
        super().check()
        if self.distance not in (3, 5):
            raise UserError(
                f"code distance {self.distance} is not supported: pass --method.distance 3 or --method.distance 5, "
                "the ones with a self-dual companion"
            )
        least = self.distance + 4
        if self.surface and (self.surface < least or self.surface % 2 == 0):
            raise UserError(
                f"--method.surface is {self.surface}: pass an odd distance from {least}, or 0 for no growth"
            )
        require("--method.rounds", self.rounds, 0)
        require("--method.gap", self.gap, 0)

    def run(self, task: Task, fit: Fit) -> Result:
        """Build the circuit at the task's noise."""
        assert isinstance(task, MagicState)
        began = time.perf_counter()
        gap = self.gap if self.surface else 0.0
        rounds = (self.rounds or self.distance) if self.surface else 0
        made = build(self.distance, self.surface, rounds, self.checked, gap, task.noise)
        return Result(made, time.perf_counter() - began)

    def baseline(self, task: Task) -> Method | None:
        """The same without T-checks, at the same growth and gap cut; or the circuit that the task names."""
        assert isinstance(task, MagicState)
        if task.against:
            return OwnCircuit(circuit=task.against, gap=self.gap)
        return Injection(distance=self.distance, surface=self.surface, rounds=self.rounds, gap=self.gap)

    @classmethod
    def default_task(cls) -> MagicState:
        """Noise of 2e-3, at which a minute shows logical errors."""
        return MagicState()

    @classmethod
    def claims(cls) -> tuple[Claim, ...]:
        """What the T-check is worth, and what the gap cut is."""
        return (check_claim(), gap_claim())


@dataclass(eq=False)
class Injection(RP2Cultivation):
    """Injection and rounds of syndromes without T-checks (arm (b) of Chen et al., arXiv:2503.18657, section III)."""

    name: ClassVar[str] = "injection"
    listed: ClassVar[bool] = False
    role: ClassVar[str] = "injection without T-checks"
    checked: ClassVar[bool] = False

    def baseline(self, task: Task) -> Method | None:
        """None: this is what others are compared with."""
        return None


@dataclass(eq=False)
class OwnCircuit(Method):
    """A circuit from a file, sampled as it is: ordinary cultivation (Gidney et al., 2024, arXiv:2409.17595), say."""

    name: ClassVar[str] = "own-circuit"
    listed: ClassVar[bool] = False
    uses_teacher: ClassVar[bool] = False
    uses_engine: ClassVar[bool] = False
    role: ClassVar[str] = "your own circuit"

    circuit: str = ""
    """A .stim file with one observable; detectors (x, y, round, stage) are post-selected, (x, y, round) decoded."""
    gap: float = 0.0
    """Least cluster gap of a kept shot, dB; only where the circuit has decoded detectors."""

    def run(self, task: Task, fit: Fit) -> Result:
        """Read it; its noise is its own."""
        began = time.perf_counter()
        made = from_file(self.circuit, self.gap)
        made.gap = self.gap if made.decoded else 0.0
        return Result(made, time.perf_counter() - began)

    def baseline(self, task: Task) -> Method | None:
        """None: this is what others are compared with."""
        return None


# -- claims -----------------------------------------------------------------------------------------------------

NOTES = (
    "T is S in these shots (stim has Clifford gates only): faults are counted as in the T circuit, the rates are not "
    "those of the T circuit. The paper has p = 1e-3 and 2e9 shots or more; the noise here is stronger so that errors "
    "show. The seeds are independent shots."
)


def check_claim() -> Claim:
    """MSC-3 alone against injection and two rounds, at p = 3e-3."""
    arms: dict[str, Any] = {
        "injection and two rounds": Injection(surface=0),
        "MSC-3": RP2Cultivation(surface=0),
    }
    return Claim(
        name="rp2-t-check",
        says="The T-check on the RP^2 code makes the logical error of a kept state fall with the third power of the "
        "noise where injection alone falls with the first (MSC-3 at p = 1e-3: 8.3e-7 with 51.4 % accepted).",
        task=MagicState(p=3e-3, shots=2_000_000),
        engine=Engine(),
        arms=arms,
        rules=(Rule("MSC-3", "injection and two rounds"),),
        seeds=5,
        notes=NOTES,
    )


def gap_claim() -> Claim:
    """3 to 7 end to end with and without a gap cut, at p = 2e-3; injection with the cut beside it."""
    arms: dict[str, Any] = {
        "3 to 7, no cut": RP2Cultivation(gap=0.0),
        "3 to 7, gap cut": RP2Cultivation(),
        "injection to 7, gap cut": Injection(),
    }
    return Claim(
        name="rp2-gap-cut",
        says="After growth into a surface code of distance 7, keeping the shots with a large cluster gap buys orders "
        "of magnitude of logical error for few attempts (p = 1e-3: from 4e-3 at 1.78 attempts to 1.1e-6 at 2.85).",
        task=MagicState(p=2e-3, shots=20_000),
        engine=Engine(),
        arms=arms,
        rules=(
            Rule("3 to 7, gap cut", "3 to 7, no cut"),
            Rule("3 to 7, gap cut", "injection to 7, gap cut", headline=False),
        ),
        seeds=5,
        notes=f"{NOTES} A cut at 16 dB takes about a fifth of the shots here, seen at seeds 100 to 102.",
    )

"""Circuit-level noise with a strength for each kind of operation (Chen et al., arXiv:2503.18657: one p for all)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from stillroom.errors import UserError

LIMITS: Mapping[str, float] = {"two": 15 / 16, "one": 3 / 4, "idle": 3 / 4, "reset": 1 / 2, "measure": 1 / 2}
"""Where an operation leaves nothing of the state, by kind."""


@dataclass(frozen=True)
class Noise:
    """Probabilities of an error, by operation."""

    two: float
    """DEPOLARIZE2 after a CX."""
    one: float
    """DEPOLARIZE1 after a one-qubit gate."""
    idle: float
    """DEPOLARIZE1 on each active qubit that waits for a layer."""
    reset: float
    """The orthogonal state after a reset."""
    measure: float
    """The wrong outcome of a measurement."""

    @classmethod
    def uniform(cls, p: float) -> Noise:
        """The paper's: one p for everything."""
        return cls(p, p, p, p, p)

    @classmethod
    def read(cls, values: Mapping[str, Any], source: str) -> Noise:
        """From a mapping by field; UserError for a field that is missing, unknown or out of its range."""
        names = [f.name for f in fields(cls)]
        if not isinstance(values, Mapping) or sorted(values) != sorted(names):
            raise UserError(
                f"noise '{source}' has other fields than {', '.join(names)}: pass these five numbers"
            )
        for name in names:
            value = values[name]
            if (
                isinstance(value, bool)
                or not isinstance(value, (int, float))
                or not 0 <= value <= LIMITS[name]
            ):
                raise UserError(
                    f"noise '{source}' has {name} = {value!r}: pass a number from 0 to {LIMITS[name]:g}"
                )
        return cls(**{name: float(values[name]) for name in names})

    def scaled(self, factor: float) -> Noise:
        """All probabilities times a factor, at most what leaves nothing of the state."""
        return Noise(**{name: min(factor * value, LIMITS[name]) for name, value in asdict(self).items()})

"""What is remembered of each sample from one epoch to the next, by its id.

A sample may fall to any process in the next epoch, so all of them must write the rows of the whole step, which a
method asks the Engine for (`rows = yield Gather(values)`), and a checkpoint must hold `state()`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from stillroom.predictors.parts.compression import Compression, Precision, compress, recover

CHUNK = 8192
"""Rows that are widened at a time where all of them are gone through."""


class Rows:
    """A row of one shape and type for each sample, and whether it was written.

    Rows are kept in main memory, whatever the method's device, and come back to that of the ids.
    """

    def __init__(self, samples: int, *shape: int, dtype: torch.dtype = torch.float32) -> None:
        self.values = torch.zeros(samples, *shape, dtype=dtype)
        self.written = torch.zeros(samples, dtype=torch.bool)

    def write(self, index: Tensor, values: Tensor) -> None:
        """Put `values` [n, *shape], without their graph, under the ids `index` [n]; other rows stay as they are."""
        index = index.to(self.values.device)
        self.values[index] = values.detach().to(self.values)
        self.written[index] = True

    def read(self, index: Tensor) -> Tensor:
        """Rows [n, *shape] of the ids `index` [n]; zeros where nothing was written."""
        return self.values[index.to(self.values.device)].to(index.device)

    def known(self, index: Tensor) -> Tensor:
        """Whether a row was ever written, bool [n], for the ids `index` [n]."""
        return self.written[index.to(self.values.device)].to(index.device)

    def state(self, name: str = "rows") -> dict[str, Tensor]:
        """All of it, for a checkpoint, under names that begin with `name`."""
        return {name: self.values, f"{name}.written": self.written}

    def load_state(self, state: Mapping[str, Tensor], name: str = "rows") -> None:
        """Put back what `state` gave; ValueError for rows of other samples, another shape or another type."""
        for own, key in ((self.values, name), (self.written, f"{name}.written")):
            if state[key].shape != own.shape or state[key].dtype != own.dtype:
                raise ValueError(f"'{key}' is {state[key].dtype} {tuple(state[key].shape)}")
            own.copy_(state[key])


class Distributions:
    """A probability distribution over `classes` for each sample.

    Whole, or with `top_k` > 0 its largest probabilities alone, the rest of the mass then being spread evenly over
    the other classes. In float16 a probability has three digits, and those below 6e-8 become 0.
    """

    def __init__(self, samples: int, classes: int, precision: Precision = "float32", top_k: int = 0) -> None:
        self.classes, self.precision, self.top_k = classes, precision, top_k
        self.kind: Compression = "marginal-smoothing" if top_k else "full"
        one = self._compressed(torch.full((1, classes), 1 / classes))
        self.rows = {name: Rows(samples, *row.shape[1:], dtype=row.dtype) for name, row in one.items()}

    def _compressed(self, p: Tensor) -> dict[str, Tensor]:
        return compress(p, self.kind, self.top_k, self.precision)

    @staticmethod
    def size(samples: int, classes: int, precision: Precision = "float32", top_k: int = 0) -> int:
        """Bytes that it would take."""
        one = Distributions(1, classes, precision, top_k).state().values()
        return samples * sum(value.numel() * value.element_size() for value in one)

    def write(self, index: Tensor, p: Tensor) -> None:
        """Remember the distributions `p` [n, classes] under the ids `index` [n]."""
        for name, row in self._compressed(p).items():
            self.rows[name].write(index, row)

    def read(self, index: Tensor) -> Tensor:
        """Distributions float32 [n, classes] of the ids `index` [n]; of one that was never written, no matter what.

        Rows sum to 1; what was written whole in float32 comes back to the bit.
        """
        rows = {name: row.read(index) for name, row in self.rows.items()}
        whole = self.kind == "full" and self.precision == "float32"
        return rows["values"] if whole else recover(rows, self.kind, self.classes)

    def known(self, index: Tensor) -> Tensor:
        """Whether a distribution was ever written, bool [n], for the ids `index` [n]."""
        return self.rows["values"].known(index)

    def at(self, classes: Tensor) -> Tensor:
        """Probability float32 [N] of the class `classes` [N], one for each sample; NaN where none was written."""
        ids = torch.arange(len(classes), device=classes.device)
        parts = [self.read(some).gather(-1, classes[some, None]).squeeze(-1) for some in ids.split(CHUNK)]
        return torch.cat(parts).masked_fill(~self.known(ids), torch.nan)

    def state(self) -> dict[str, Tensor]:
        """All of it, for a checkpoint."""
        return {key: value for name, rows in self.rows.items() for key, value in rows.state(name).items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` gave; KeyError or ValueError for what another memory gave."""
        for name, rows in self.rows.items():
            rows.load_state(state, name)

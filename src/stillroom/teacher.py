"""A Teacher is frozen once, here, and answers batches; what it answers can be kept by sample id and view.

It is not a `nn.Module`: no student's `.train()` reaches it, no `state_dict` contains it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from stillroom.answers import Answer, Dense, TopK
from stillroom.data.source import Source
from stillroom.errors import UserError
from stillroom.keeping import Keep
from stillroom.kept import Keeper
from stillroom.method import Batch
from stillroom.taps import Tap
from stillroom.taps import paths as module_paths

__all__ = ["Answer", "Dense", "Mixture", "Teacher", "TopK"]


class Mixture(nn.Module):
    """Several classifiers as one, which answers with log-probabilities: log sum_m w_m softmax(z_m)."""

    def __init__(self, networks: Sequence[nn.Module], weights: Sequence[float]) -> None:
        super().__init__()
        if len(weights) != len(networks) or min(weights) <= 0:
            raise UserError(
                f"{len(networks)} teachers have the weights {list(weights)}: pass one weight > 0 for each"
            )
        self.networks = nn.ModuleList(networks)
        self.register_buffer("log_weights", (torch.tensor(weights) / sum(weights)).log())

    def forward(self, x: Tensor) -> Tensor:
        """Log-probabilities [n, classes] for inputs [n, ...]."""
        each = torch.stack([network(x).log_softmax(-1) for network in self.networks])
        return torch.logsumexp(each + self.log_weights.view(-1, *[1] * (each.ndim - 1)), 0)


class Teacher:
    """A frozen network, or several as a mixture, that answers batches."""

    def __init__(self, *networks: nn.Module, weights: Sequence[float] | None = None) -> None:
        if not networks:
            raise UserError("a teacher needs at least one network: pass a module")
        alone = len(networks) == 1 and weights is None
        self.module = networks[0] if alone else Mixture(networks, weights or [1.0] * len(networks))
        self.module.requires_grad_(False)
        self.module.eval()
        self.whole = False
        self._parts = list(self.module.modules())
        self._taps: list[Tap] = []
        self._keeper: Keeper | None = None

    @property
    def name(self) -> str:
        """What messages call it."""
        return type(self.module).__name__

    def to(self, device: torch.device) -> Teacher:
        """Move the network, and what is kept of its answers, to `device`."""
        self.module.to(device)
        if self._keeper is not None:
            self._keeper.to(device)
        return self

    # -- answers ------------------------------------------------------------------------------------------------

    def __call__(self, batch: Batch) -> Answer:
        """The answer to a batch: read back where it is kept, computed otherwise."""
        kept = None if self._keeper is None else self._keeper.answer(batch)
        return self.ask(batch.x) if kept is None else kept

    def ask(self, x: Tensor) -> Dense:
        """The network's answer to inputs [n, ...] now, with the features that are watched."""
        with torch.no_grad():
            logits = self._run(x)
            features = {tap.path: tap.take() if self.whole else tap.take_vector() for tap in self._taps}
        return Dense(logits, features)

    def answer(self, x: Tensor) -> Tensor:
        """Logits [n, classes] for inputs [n, ...], without gradient."""
        return self.ask(x).logits

    def differentiable(self, x: Tensor) -> Tensor:
        """As `answer`, with the gradient with respect to `x`; the weights stay frozen."""
        logits = self._run(x)
        for tap in self._taps:
            tap.forget()
        return logits

    def _run(self, x: Tensor) -> Tensor:
        if any(part.training for part in self._parts):
            self.module.eval()
        return self.module(x)

    # -- features -----------------------------------------------------------------------------------------------

    def watch(self, *paths: str, whole: bool = False) -> None:
        """From now on answer with `features` too: what the modules at `paths`, or patterns, put out, as [n, channels].

        `whole` leaves them as they are. For a method's `bind`, with `unwatch` for its `unbind`. UserError for a path
        that is none.
        """
        self.unwatch()
        self._taps = [
            Tap(self.module, path) for path in module_paths(self.module, paths, "teacher's module path")
        ]
        self.whole = whole
        if self._keeper is not None:
            self.keep(self._keeper.source, self._keeper.size, self._keeper.keep)

    def unwatch(self) -> None:
        """Answer with logits alone, and leave the network without hooks."""
        for tap in self._taps:
            tap.remove()
        self._taps = []

    @property
    def watched(self) -> tuple[str, ...]:
        """The module paths whose outputs go with an answer."""
        return tuple(tap.path for tap in self._taps)

    # -- keeping ------------------------------------------------------------------------------------------------

    def keep(
        self, source: Source, size: int = 512, keep: Keep | None = None, features: Sequence[str] = ()
    ) -> None:
        """Remember the answers to `source`: in memory, asked for `size` at a time, unless `keep` says otherwise.

        The first batch of a view has all of `source` answered in that view, in its own order: a resumed run then
        reads the very bits that it would have read. A method that never asks about a batch costs nothing.
        `features` are module paths to watch. What was kept before is forgotten, in memory, or left on disk.
        """
        if features:
            self.watch(*features)
        self._keeper = Keeper(self, source, size, keep or Keep())

    def forget(self) -> None:
        """Keep nothing any more; what is on disk stays there."""
        self._keeper = None

    @property
    def keeps(self) -> bool:
        """Whether answers are kept."""
        return self._keeper is not None

    @property
    def kept_bytes(self) -> int:
        """What the answers that are kept take, in memory or on disk."""
        return 0 if self._keeper is None else self._keeper.bytes

    @property
    def kept_seconds(self) -> float:
        """Seconds that making the answers that are kept took in this process; 0 where all were there."""
        return 0.0 if self._keeper is None else self._keeper.seconds

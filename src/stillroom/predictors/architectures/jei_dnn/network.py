"""A frozen backbone with exits: training sees all of them at once, use stops at the first that a gate opens.

Stopping inside any network is done by an exception out of the exit's forward hook: the backbone needs no method
of its own for it and no rewriting, and what comes after the exit is never called.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stillroom.errors import UserError
from stillroom.metrics import multiply_adds
from stillroom.models.probing import quietly
from stillroom.predictors.architectures.jei_dnn.heads import Gates, Heads, gate_operations
from stillroom.predictors.architectures.jei_dnn.losses import (
    conditional,
    conformal_sets,
    exit_probabilities,
    first_true,
    leaving,
    uncertainty,
)
from stillroom.taps import module_at, pool

Rule = Literal["gates", "threshold", "random"]


@dataclass(frozen=True)
class Prediction:
    """What `EarlyExit.predict` answers for n samples."""

    label: Tensor
    """Predicted classes [n], int64."""
    probabilities: Tensor
    """Of all classes, at the exit taken [n, C]."""
    exit: Tensor
    """The exit taken [n], from 1 (the earliest) to L (the backbone's own output)."""
    cost: Tensor
    """Multiply-adds up to and including that exit, as a share of those of all exits [n]."""
    sets: Tensor
    """Conformal sets: whether a class is in it, bool [n, C]."""
    stopped: bool
    """Whether nothing was computed for a sample after its exit; False: the batch was computed in full."""


@dataclass(frozen=True)
class Settings:
    """The points of operation of one network: what each is called, and by what rule it leaves."""

    names: tuple[str, ...]
    rule: Rule = "gates"
    sets: tuple[int, ...] = (0,)
    """The set of heads and gates that each setting uses."""


class _AllLeft(Exception):
    """No sample is left: ends the backbone's forward pass."""


class EarlyExit(nn.Module):
    """A frozen `backbone` that can be left at module paths `exits`, at one of several settings.

    Settings trade accuracy for cost; the first is the dearest. `forward` gives the logits at all exits, `predict`
    an answer that costs what it must. Training fills the buffers.
    """

    def __init__(
        self,
        backbone: nn.Module,
        exits: Sequence[str],
        heads: Heads,
        gates: Gates | None,
        settings: Settings,
        class_token: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False).eval()
        self.exits, self.heads, self.gates, self.settings = list(exits), heads, gates, settings
        self.class_token = class_token
        count, number = len(exits) + 1, len(settings.names)
        self.costs: Tensor
        self.register_buffer("costs", torch.ones(count, dtype=torch.float64))
        """Multiply-adds up to each exit, its head and gate included [L]."""
        self.full: Tensor
        self.register_buffer("full", torch.ones((), dtype=torch.float64))
        """Multiply-adds of the backbone with all heads and gates."""
        self.thresholds: Tensor
        self.register_buffer("thresholds", torch.ones(number))
        """Confidence above which the rule 'threshold' leaves [M]."""
        self.histogram: Tensor
        self.register_buffer("histogram", torch.full((number, count), 1 / count))
        """Shares of samples that leave at each exit by the rule 'random' [M, L]."""
        self.conformal: Tensor
        self.register_buffer("conformal", torch.ones(number, count))
        """Thresholds of the conformal scores at each exit [M, L]."""
        self._chain: bool | None = None

    @property
    def shares(self) -> Tensor:
        """Cost of each exit as a share of the full cost, float32 [L]."""
        return (self.costs / self.full).float()

    def train(self, mode: bool = True) -> EarlyExit:
        """The backbone stays in evaluation mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    # -- all exits --------------------------------------------------------------------------------------------------

    def pooled(self, output: Any, index: int) -> Tensor:
        """The feature [n, width] of an exit, by the backbone's own last LayerNorm where tokens go through one."""
        if not isinstance(output, Tensor):
            raise UserError(
                f"exit '{self.exits[index]}' puts out a {type(output).__name__}, not a tensor: name another module"
            )
        norm = getattr(self.backbone, "norm", None)
        if (
            output.ndim == 3
            and isinstance(norm, nn.LayerNorm)
            and norm.normalized_shape[-1:] == output.shape[-1:]
        ):
            output = norm(output)
        return pool(output, self.class_token).float()

    @contextmanager
    def _hooked(self, visit: Any) -> Iterator[None]:
        def hook(index: int) -> Any:
            return lambda module, args, output: visit(index, output)

        handles = [
            module_at(self.backbone, path, "exit").register_forward_hook(hook(index))
            for index, path in enumerate(self.exits)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def features(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Features [n, width] of all exits and the backbone's own logits [n, C], without gradient."""
        found: dict[int, Tensor] = {}

        def visit(index: int, output: Any) -> None:
            found[index] = self.pooled(output, index)

        with torch.no_grad(), self._hooked(visit):
            final = self.backbone(x)
        return [found[index] for index in range(len(self.exits))], final.float()

    def all_logits(self, features: Sequence[Tensor], final: Tensor) -> Tensor:
        """Logits [n, sets, L, C] at all exits, the last without gradient."""
        early = self.heads(features)
        last = final.detach()[:, None, None].expand(-1, early.shape[1], 1, -1)
        return torch.cat([early, last.to(early.dtype)], 2)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [n, sets, L, C] at all exits of inputs [n, ...]: the full pass."""
        return self.all_logits(*self.features(x))

    def gate_probabilities(self, logits: Tensor) -> Tensor:
        """P [n, sets, L] of the logits [n, sets, L, C] at all exits, without gradient."""
        assert self.gates is not None
        with torch.no_grad():
            return exit_probabilities(self.gates(uncertainty(logits[:, :, :-1])).float().sigmoid())

    def leave(self, logits: Tensor) -> Tensor:
        """The exit [n, M] (from 0) that each sample takes at each setting, of the logits at all exits."""
        if self.settings.rule == "gates":
            return leaving(self.gate_probabilities(logits))[:, list(self.settings.sets)]
        if self.settings.rule == "threshold":
            confidence = logits[:, list(self.settings.sets), :-1].float().softmax(-1).amax(-1)
            return first_true(confidence >= self.thresholds[:, None])
        generator = torch.Generator().manual_seed(0)
        drawn = torch.rand(len(logits), 1, 1, generator=generator).to(logits.device)
        reached = self.histogram.cumsum(-1)[..., :-1]
        return (drawn > reached).sum(-1)

    # -- use --------------------------------------------------------------------------------------------------------

    def predict(self, x: Tensor, setting: int = 0) -> Prediction:
        """Answer inputs [n, ...], each sample at the first exit that lets it go; nothing after it is computed.

        A single sample ends the forward pass where it leaves. Of a batch, samples that have left are dropped from
        what goes on, if the backbone computes the same without them (tried once on the first batch); if it does
        not, the batch is computed in full, with a warning. Raises UserError for a setting that there is not.
        """
        if not 0 <= setting < len(self.settings.names):
            raise UserError(
                f"setting {setting} is none of the network's: pass 0 to {len(self.settings.names) - 1}"
            )
        drops = len(x) > 1 and self.drops(x)
        with quietly(self):
            walk = Walk(self, len(x), setting, drops, x)
            walk.go(x)
        exits = walk.exit
        sets = conformal_sets(walk.probabilities, self.conformal[setting][exits])
        cost = self.shares[exits]
        stopped = drops or len(x) == 1
        return Prediction(walk.probabilities.argmax(-1), walk.probabilities, exits + 1, cost, sets, stopped)

    def drops(self, x: Tensor) -> bool:
        """Whether samples may be dropped at exits: the rest then comes out as in a full pass. Tried once, on `x`."""
        if self._chain is None:
            with quietly(self):
                self._chain = all(self._survives(x[:3], index) for index in range(len(self.exits)))
            if not self._chain:
                warnings.warn(
                    f"samples cannot be dropped inside {type(self.backbone).__name__}: batches are computed in full; "
                    "single samples still stop early",
                    stacklevel=3,
                )
        return self._chain

    def _survives(self, x: Tensor, at: int) -> bool:
        whole = self.backbone(x)
        try:
            with self._hooked(lambda index, output: output[1:] if index == at else None):
                rest = self.backbone(x)
        except (RuntimeError, IndexError, ValueError):
            return False
        return rest.shape == whole[1:].shape and torch.allclose(rest, whole[1:], rtol=1e-3, atol=1e-4)

    # -- cost -------------------------------------------------------------------------------------------------------

    def measure(self, shape: Sequence[int]) -> EarlyExit:
        """Count the multiply-adds of all exits for one input of `shape`, heads and gates included; returns itself.

        The full cost includes gates also where the rule does without, so that costs of all rules have one unit.
        """
        spent = [multiply_adds(_UpTo(self, index), shape) for index in range(len(self.exits) + 1)]
        gate = gate_operations(self.heads.classes)
        passed = [min(index + 1, len(self.exits)) * gate for index in range(len(spent))]
        own = [0] * len(spent) if self.settings.rule == "threshold" else passed
        self.costs.copy_(torch.tensor([float(a + b) for a, b in zip(spent, own, strict=True)]))
        self.full.fill_(float(spent[-1] + passed[-1]))
        return self


class Walk:
    """One sequential pass: who is still there, and how those answered who are not."""

    def __init__(
        self, network: EarlyExit, count: int, setting: int, drops: bool, x: Tensor, stop: int | None = None
    ) -> None:
        self.network, self.setting, self.drops, self.stop = network, setting, drops, stop
        self.set = network.settings.sets[setting]
        last = len(network.exits)
        self.rows = torch.arange(count, device=x.device)
        self.there = torch.ones(count, dtype=torch.bool, device=x.device)
        self.total = torch.zeros(count, device=x.device)
        self.stayed = torch.ones(count, device=x.device)
        self.exit = torch.full((count,), last, device=x.device)
        self.probabilities = torch.zeros(count, network.heads.classes, device=x.device)
        self.drawn = torch.rand(count, generator=torch.Generator().manual_seed(0)).to(x.device)

    def go(self, x: Tensor) -> None:
        """Run the backbone as far as it is needed."""
        try:
            with self.network._hooked(self._visit):
                final = self.network.backbone(x)
        except _AllLeft:
            return
        self._answer(self.there[self.rows], final.float())

    def _answer(self, leave: Tensor, logits: Tensor) -> None:
        self.probabilities[self.rows[leave]] = logits[leave].softmax(-1)
        self.there[self.rows[leave]] = False

    def _visit(self, index: int, output: Any) -> Any:
        """At an exit: answer those who leave; end the pass, or go on with the rest of the batch."""
        heads = self.network.heads
        feature = self.network.pooled(output, index)
        z = (feature - heads.get_buffer(f"mean{index}")) / heads.get_buffer(f"scale{index}")
        logits = F.linear(z, heads.weights[index][self.set], heads.bias[self.set, index])
        leave = self._opens(index, logits) & self.there[self.rows]
        self.exit[self.rows[leave]] = index
        self._answer(leave, logits)
        if not bool(self.there.any()):
            raise _AllLeft
        if not self.drops or not bool(leave.any()):
            return None
        self.rows = self.rows[~leave]
        return output[~leave]

    def _opens(self, index: int, logits: Tensor) -> Tensor:
        """Which of the rows an exit lets go, bool [r]."""
        network, rows = self.network, self.rows
        if self.stop is not None:
            return torch.full((len(rows),), index == self.stop, device=rows.device)
        if network.settings.rule == "threshold":
            return logits.softmax(-1).amax(-1) >= network.thresholds[self.setting]
        if network.settings.rule == "random":
            return self.drawn[rows] <= network.histogram[self.setting].cumsum(-1)[index]
        gates = network.gates
        assert gates is not None
        weight, bias = gates.weight[self.set, index], gates.bias[self.set, index]
        g = ((uncertainty(logits) * weight).sum(-1) + bias).sigmoid()
        p = torch.minimum(g, 1 - self.total[rows]).clamp_min(0)
        h = conditional(p, self.stayed[rows])
        self.total[rows] += g
        self.stayed[rows] = self.stayed[rows] * (1 - h)
        return h >= 0.5


class _UpTo(nn.Module):
    """The network as it runs for a sample that leaves at one exit, for the counter of multiply-adds."""

    def __init__(self, network: EarlyExit, exit_: int) -> None:
        super().__init__()
        self.network, self.exit = network, exit_

    def forward(self, x: Tensor) -> Tensor:
        walk = Walk(self.network, len(x), 0, False, x, stop=self.exit)
        walk.go(x)
        return walk.probabilities

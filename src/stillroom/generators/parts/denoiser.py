"""A Denoiser: any network, with the process it was trained on and the letter it speaks, answers in all of them.

Methods see x_t, t, a condition and a guidance scale, and never a network's own conventions.
"""

from __future__ import annotations

import copy
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from stillroom.errors import UserError
from stillroom.generators.parts.estimate import Estimate, Kind, check_kind
from stillroom.generators.parts.process import Process, along, make_process

Clock = Literal["unit", "index", "thousand", "log-sigma"]
CLOCKS = ("unit", "index", "thousand", "log-sigma")
PREDICTIONS = ("x0", "eps", "v", "score", "velocity", "edm")


class Denoiser(nn.Module):
    """`network(x, time, condition, guidance)` as an estimate of clean samples.

    `network` takes noisy samples x [n, ...], its own time [n], a condition [n, ...] or None and a guidance scale
    [n] or None, and returns a tensor shaped as x. `prediction` is what it returns: x0, eps, v, score, velocity,
    or 'edm' for the raw output F of EDM's preconditioning (Karras et al., 2022, arXiv:2206.00364, table 1), with
    the data's deviation `sigma_data`. `clock` is its own time: 'unit' (t), 'index' (N t - 1, as diffusers
    count), 'thousand' (1000 t) or 'log-sigma' (ln(sigma/alpha) / 4). `classes` > 0 makes it conditional: labels
    0 .. classes - 1, and `classes` itself for no condition. With `null` [...] conditions are embeddings [n, ...]
    instead, and `null` is the one that stands for none; with a `table` [classes + 1, ...] they are labels, and the
    network is given their rows, the last for none.

    Raises UserError where prediction or process is missing or unknown, or where they contradict each other.
    """

    def __init__(
        self,
        network: nn.Module,
        process: str | dict[str, Any] | Process,
        prediction: str,
        *,
        classes: int = 0,
        clock: Clock | None = None,
        sigma_data: float = 0.5,
        takes_guidance: bool = False,
        null: Tensor | None = None,
        table: Tensor | None = None,
    ) -> None:
        super().__init__()
        if prediction not in PREDICTIONS:
            raise UserError(f"prediction {prediction!r} is unknown: pass one of {', '.join(PREDICTIONS)}")
        if clock is not None and clock not in CLOCKS:
            raise UserError(f"clock {clock!r} is unknown: pass one of {', '.join(CLOCKS)}")
        self.network = network
        self.process = self.own = make_process(process)
        self.prediction = prediction
        self.classes = classes
        self.clock: Clock = clock or ("log-sigma" if prediction == "edm" else "unit")
        self.sigma_data = sigma_data
        self.takes_guidance = takes_guidance
        if prediction == "v" and self.process.name in ("edm", "flow"):
            raise UserError(
                f"prediction 'v' needs a variance preserving process, not '{self.process.name}': pass "
                "process 'cosine', 'linear' or 'scaled-linear', or prediction 'velocity'"
            )
        self.register_buffer("null", null)
        self.register_buffer("table", table)

    @property
    def conditional(self) -> bool:
        """Whether it takes a condition."""
        return self.classes > 0 or self.null is not None

    @property
    def learnt(self) -> bool:
        """Whether it has weights: an exact denoiser has none."""
        return next(self.network.parameters(), None) is not None

    @property
    def start(self) -> float:
        """The largest time it may be asked at: T, or just below where alpha_T is 0 and it has no answer there.

        Without signal, noise and score say nothing of x0: they end at a noise level of 200 times the signal. The
        logarithm of an infinite noise level, and the way to another process, end at 1e5.
        """
        last = torch.tensor(self.process.T, dtype=torch.float64)
        signal = float(self.process.alpha(last))
        level = 0.0
        if self.prediction in ("eps", "score") and signal < 1e-3:
            level = 200.0
        elif (self.clock == "log-sigma" or self.process != self.own) and signal < 1e-5:
            level = 1e5 - 1
        return float(self.process.time_at(last.new_tensor(level))) if level else float(last)

    def copy(self) -> Self:
        """A trainable copy with weights of its own."""
        return copy.deepcopy(self).requires_grad_(True).train()

    def accept_guidance(self) -> None:
        """Make the guidance scale an input of the network, which says the same as before until it is trained.

        Raises UserError for a network that has no way to take one.
        """
        add = getattr(self.network, "add_guidance", None)
        if self.takes_guidance:
            return
        if add is None:
            raise UserError(
                f"{type(self.network).__name__} cannot take a guidance scale: give it a method add_guidance() that "
                "makes forward's argument `guidance` count, or pass one of Stillroom's or diffusers' networks"
            )
        add()
        self.takes_guidance = True

    # -- what it says -------------------------------------------------------------------------------------------

    def forward(
        self, x: Tensor, t: Tensor, condition: Tensor | None = None, guidance: Tensor | None = None
    ) -> Tensor:
        """The denoised sample D(x_t, t, c, w) [n, ...]; see `estimate`."""
        return self.estimate(x, t, condition, guidance).x0

    def estimate(
        self, x: Tensor, t: Tensor, condition: Tensor | None = None, guidance: Tensor | None = None
    ) -> Estimate:
        """One pass at x_t [n, ...], times [n] or a scalar, conditions or None, guidance scales or None.

        Guidance here is an input of the network; `guided` composes it from two passes of one that has none.
        """
        n = x.shape[0]  # len(x) would fix the size of the batch where a graph is made of this
        t = t.expand(n) if t.ndim == 0 else t
        condition = self.embedded(self._condition(condition, n, x.device))
        if self.takes_guidance:
            guidance = torch.ones(n, device=x.device) if guidance is None else guidance.expand(n)
        if self.process != self.own:
            there = self.own.time_at(self.process.ratio(t))
            scaled = x * along(self.own.size(there) / self.process.size(t), x)
            return Estimate(self.process, x, t, "x0", self._own(scaled, there, condition, guidance).x0)
        return self._own(x, t, condition, guidance)

    def _own(self, x: Tensor, t: Tensor, condition: Tensor | None, guidance: Tensor | None) -> Estimate:
        """The answer on the process that the network was trained on."""
        if self.prediction == "edm":
            return Estimate(self.own, x, t, "x0", self._preconditioned(x, t, condition, guidance))
        value = self.network(x, self.time(t).to(x.dtype), condition, guidance)
        return Estimate(self.own, x, t, check_kind(self.prediction), value.to(x.dtype))

    def time(self, t: Tensor) -> Tensor:
        """The network's own time for times `t` of the process it was trained on."""
        if self.clock == "index":
            return t * getattr(self.own, "steps", 1000) - 1
        if self.clock == "thousand":
            return 1000 * t
        return self.own.ratio(t).log() / 4 if self.clock == "log-sigma" else t

    def _preconditioned(
        self, x: Tensor, t: Tensor, condition: Tensor | None, guidance: Tensor | None
    ) -> Tensor:
        """D = c_skip x/alpha + c_out F(c_in x/alpha, c_noise), written so that alpha may be small."""
        alpha, sigma = along(self.own.alpha(t), x), along(self.own.sigma(t), x)
        scale = (sigma.square() + (alpha * self.sigma_data).square()).sqrt()
        raw = self.network(x / scale, self.time(t).to(x.dtype), condition, guidance).to(x.dtype)
        skip = alpha * self.sigma_data**2 / scale.square()
        return skip * x + sigma * self.sigma_data / scale * raw

    # -- conditions -----------------------------------------------------------------------------------------------

    def no_condition(self, n: int, device: torch.device) -> Tensor:
        """The condition that stands for none, n times."""
        if self.null is not None:
            return self.null.expand(n, *self.null.shape)
        return torch.full((n,), self.classes, device=device)

    def _condition(self, condition: Tensor | None, n: int, device: torch.device) -> Tensor | None:
        if not self.conditional:
            return None
        return self.no_condition(n, device) if condition is None else condition

    def embedded(self, condition: Tensor | None) -> Tensor | None:
        """What the network is given for a condition: its row of the table, where there is one."""
        return condition if condition is None or self.table is None else self.table[condition]

    def drop(self, condition: Tensor | None, u: Tensor, share: float) -> Tensor | None:
        """`condition`, replaced by none where the uniform numbers `u` [n] are below `share`."""
        if not self.conditional or condition is None:
            return None
        gone = (u < share).reshape(-1, *[1] * (condition.ndim - 1))
        return torch.where(gone, self.no_condition(len(condition), condition.device), condition)

    def guided(
        self,
        x: Tensor,
        t: Tensor,
        condition: Tensor | None,
        scale: Tensor | float,
        interval: tuple[float, float] | None = None,
    ) -> Estimate:
        """Classifier-free guidance, D(none) + w (D(c) - D(none)), by one pass over twice the samples.

        `scale` w is a number or [n]; 1 is no guidance. `interval` is the range of noise levels sigma/alpha, both
        ends included, outside of which w is 1 (Kynkaanniemi et al., 2024, arXiv:2404.07724). Ho and Salimans,
        2022, arXiv:2207.12598, eq. 6, with w = 1 + their w. Raises UserError for an unconditional model.
        """
        if not self.conditional:
            raise UserError(
                f"guidance {float(torch.as_tensor(scale).max()):g} on an unconditional model: pass guidance 1, or "
                "a model that was trained with conditions"
            )
        t = t.expand(len(x)) if t.ndim == 0 else t
        w = torch.as_tensor(scale, dtype=x.dtype, device=x.device).expand(len(x))
        w = self.scale_within(w, t, interval)
        none = self.no_condition(len(x), x.device)
        given = none if condition is None else condition
        both = self.estimate(torch.cat([x, x]), torch.cat([t, t]), torch.cat([none, given]))
        kind: Kind = both.kind
        without, with_it = both.value.chunk(2)
        return Estimate(self.process, x, t, kind, without + along(w, x) * (with_it - without))

    def scale_within(self, w: Tensor, t: Tensor, interval: tuple[float, float] | None) -> Tensor:
        """Scales w [n] where the noise level at times [n] is within `interval`, both ends included; 1 elsewhere."""
        if interval is None:
            return w
        level = self.process.ratio(t)
        return torch.where((level >= interval[0]) & (level <= interval[1]), w, torch.ones_like(w))

    # -- other processes ------------------------------------------------------------------------------------------

    def on(self, process: str | Process) -> Self:
        """The same network, weights shared, behind another process: equal noise levels, inputs scaled.

        A denoiser of one process is one of every process, since E[x_0 | x_t] depends on x_t / alpha_t and
        sigma_t / alpha_t alone.
        """
        moved = copy.copy(self)
        moved.process = make_process(process)
        return moved

    def config(self) -> dict[str, Any]:
        """What is needed beside the network to make it again, by `denoiser_from`."""
        return {
            "process": self.process.config(),
            "own_process": self.own.config(),
            "prediction": self.prediction,
            "classes": self.classes,
            "clock": self.clock,
            "sigma_data": self.sigma_data,
            "takes_guidance": self.takes_guidance,
        }


def denoiser_from(
    network: nn.Module, config: dict[str, Any], null: Tensor | None = None, table: Tensor | None = None
) -> Denoiser:
    """The denoiser that `config` came from, around `network`, with the embeddings of conditions that it had."""
    own, moved = config["own_process"], make_process(config["process"])
    rest = {key: value for key, value in config.items() if key not in ("process", "own_process")}
    return Denoiser(network, own, null=null, table=table, **rest).on(moved)

"""Forward processes in one notation: x_t = alpha_t x_0 + sigma_t eps, with t = 0 data and t = T noise.

Everything else of the family asks a process and never its name. Times are tensors of any shape; numbers about a
time come back in its shape, and `along` stretches them over samples.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from stillroom.errors import UserError


def along(value: Tensor, x: Tensor) -> Tensor:
    """`value` ([n] or a scalar) with as many axes as `x` [n, ...], in its type, so that the two multiply."""
    return (
        value.to(x.dtype).reshape(value.shape + (1,) * (x.ndim - value.ndim)) if value.ndim else value.to(x)
    )


class Process:
    """A forward process on times in [0, T]."""

    name: ClassVar[str]
    T: float = 1.0

    def alpha(self, t: Tensor) -> Tensor:
        """Share of the data that is left, alpha_t in [0, 1]."""
        raise NotImplementedError

    def sigma(self, t: Tensor) -> Tensor:
        """Standard deviation of the noise, sigma_t >= 0."""
        raise NotImplementedError

    def dalpha(self, t: Tensor) -> Tensor:
        """d alpha_t / dt."""
        raise NotImplementedError

    def dsigma(self, t: Tensor) -> Tensor:
        """d sigma_t / dt; may be infinite at t = 0."""
        raise NotImplementedError

    def time_at(self, ratio: Tensor) -> Tensor:
        """The time at which sigma_t / alpha_t is `ratio` (0 or more, infinite where alpha_T is 0)."""
        raise NotImplementedError

    def ratio(self, t: Tensor) -> Tensor:
        """The effective noise level sigma_t / alpha_t."""
        return self.sigma(t) / self.alpha(t)

    def size(self, t: Tensor) -> Tensor:
        """(alpha_t^2 + sigma_t^2)^1/2: at equal noise levels two processes' x_t have the ratio of their sizes.

        As their alphas have, but finite where one of them goes beyond the last noise level of the other.
        """
        return torch.hypot(self.alpha(t), self.sigma(t))

    def snr(self, t: Tensor) -> Tensor:
        """Signal-to-noise ratio alpha_t^2 / sigma_t^2."""
        return (self.alpha(t) / self.sigma(t)).square()

    def add_noise(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """x_t for clean samples and unit noise [n, ...] and times [n]."""
        return along(self.alpha(t), x0) * x0 + along(self.sigma(t), x0) * eps

    def config(self) -> dict[str, Any]:
        """Name and numbers, from which `make_process` makes it again."""
        return {"name": self.name, **asdict(self)}  # type: ignore[call-overload]


@dataclass(frozen=True)
class Cosine(Process):
    """Variance preserving: alpha_t = cos(u pi/2) / cos(u_0 pi/2), u = (t + shift) / (1 + shift), on [0, 1].

    Shift 0 is alpha_t = cos(pi t / 2) (Salimans and Ho, 2022, arXiv:2202.00512); 0.008 is Nichol and Dhariwal's
    (2021, arXiv:2102.09672, eq. 17). Written so that alpha_1 is exactly 0 and sigma_t small keeps its digits.
    """

    name: ClassVar[str] = "cosine"
    shift: float = 0.0

    @property
    def _start(self) -> float:
        return self.shift / (1 + self.shift) * math.pi / 2

    @property
    def _slope(self) -> float:
        return math.pi / 2 / (1 + self.shift)

    def alpha(self, t: Tensor) -> Tensor:
        """See `Process.alpha`."""
        return (self._slope * (1 - t)).sin() / math.cos(self._start)

    def sigma(self, t: Tensor) -> Tensor:
        """See `Process.sigma`."""
        angle = self._slope * t
        if not self.shift:
            return angle.sin()
        # sin^2(b) - sin^2(a) = sin(b - a) sin(b + a)
        return (angle.sin() * (angle + 2 * self._start).sin()).clamp_min(0).sqrt() / math.cos(self._start)

    def dalpha(self, t: Tensor) -> Tensor:
        """See `Process.dalpha`."""
        return -self._slope * (self._slope * (1 - t)).cos() / math.cos(self._start)

    def dsigma(self, t: Tensor) -> Tensor:
        """See `Process.dsigma`."""
        if not self.shift:
            return self._slope * (self._slope * t).cos()
        return -self.alpha(t) * self.dalpha(t) / self.sigma(t)

    def time_at(self, ratio: Tensor) -> Tensor:
        """See `Process.time_at`."""
        alpha = 1 / (1 + ratio.square()).sqrt()
        sigma = torch.where(ratio.isinf(), torch.ones_like(ratio), ratio * alpha)
        if not self.shift:
            return torch.atan2(sigma, alpha) / self._slope
        # the angle b - a from its own sine and cosine: b and a apart would cancel at a small ratio
        low, level = math.sin(self._start), math.cos(self._start)
        sine, cosine = (low**2 + (sigma * level).square()).sqrt(), alpha * level
        apart = (sigma * level).square() / (sine * level + cosine * low)
        return (torch.atan2(apart, cosine * level + sine * low) / self._slope).clamp_max(1)


@dataclass(frozen=True)
class Discrete(Process):
    """Variance preserving, from a table of N betas as diffusers schedulers have it; t = (n + 1) / N for index n.

    Between the table's entries, and from t = 0 (clean) to its first, log alpha-bar is linear in t. `betas` names
    the table ('linear' between `start` and `end`, 'scaled-linear' in the square root of beta, 'cosine' of Nichol
    and Dhariwal), or is the table itself. `zero_terminal` rescales it so that alpha_T is 0 (Lin et al., 2024,
    arXiv:2305.08891, algorithm 1).
    """

    name: ClassVar[str] = "discrete"
    betas: Literal["linear", "scaled-linear", "cosine"] | tuple[float, ...] = "linear"
    start: float = 1e-4
    end: float = 0.02
    steps: int = 1000
    zero_terminal: bool = False

    def _table(self) -> Tensor:
        if not isinstance(self.betas, str):
            return torch.tensor(self.betas, dtype=torch.float64)
        if self.betas == "linear":
            return torch.linspace(self.start, self.end, self.steps, dtype=torch.float64)
        if self.betas == "scaled-linear":
            return torch.linspace(self.start**0.5, self.end**0.5, self.steps, dtype=torch.float64).square()
        place = torch.arange(self.steps + 1, dtype=torch.float64) / self.steps
        bar = ((place + 0.008) / 1.008 * math.pi / 2).cos().square()
        return (1 - bar[1:] / bar[:-1]).clamp_max(0.999)

    @cached_property
    def alphas(self) -> Tensor:
        """alpha [N + 1] at the times 0, 1/N, ..., 1, float64."""
        bar = torch.cat([torch.zeros(1, dtype=torch.float64), torch.log1p(-self._table())]).cumsum(0)
        alpha = (0.5 * bar).exp()
        if self.zero_terminal:
            first, last = alpha[1].clone(), alpha[-1].clone()
            alpha[1:] = (alpha[1:] - last) * first / (first - last)
        return alpha

    def _between(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """log alpha at `t`, and its slope, float64."""
        logs = self.alphas.to(t.device).clamp_min(1e-9).log()
        count = len(logs) - 1
        place = t.double().clamp(0, 1) * count
        low = place.floor().clamp_max(count - 1).long()
        slope = logs[low + 1] - logs[low]
        return logs[low] + (place - low) * slope, slope * count

    def alpha(self, t: Tensor) -> Tensor:
        """See `Process.alpha`."""
        found = self._between(t)[0].exp()
        return torch.where(found < 2e-9, torch.zeros_like(found), found).to(t.dtype)

    def sigma(self, t: Tensor) -> Tensor:
        """See `Process.sigma`."""
        return (-torch.expm1(2 * self._between(t)[0])).clamp_min(0).sqrt().to(t.dtype)

    def dalpha(self, t: Tensor) -> Tensor:
        """See `Process.dalpha`."""
        log, slope = self._between(t)
        return (slope * log.exp()).to(t.dtype)

    def dsigma(self, t: Tensor) -> Tensor:
        """See `Process.dsigma`."""
        log, slope = self._between(t)
        return (-slope * (2 * log).exp() / torch.expm1(2 * log).abs().sqrt()).to(t.dtype)

    def time_at(self, ratio: Tensor) -> Tensor:
        """See `Process.time_at`."""
        logs = self.alphas.to(ratio.device).clamp_min(1e-9).log()
        wanted = (-0.5 * torch.log1p(ratio.double().square())).clamp_max(0).maximum(logs[-1])
        high = torch.searchsorted(-logs, -wanted).clamp(1, len(logs) - 1)
        low = high - 1
        place = low + (wanted - logs[low]) / (logs[high] - logs[low])
        return (place / (len(logs) - 1)).to(ratio.dtype)


@dataclass(frozen=True)
class VarianceExploding(Process):
    """alpha_t = 1, sigma_t = t: the process of EDM (Karras et al., 2022, arXiv:2206.00364, table 1)."""

    name: ClassVar[str] = "edm"
    sigma_min: float = 0.002
    sigma_max: float = 80.0

    @property
    def T(self) -> float:  # type: ignore[override]
        """The largest noise level."""
        return self.sigma_max

    def alpha(self, t: Tensor) -> Tensor:
        """See `Process.alpha`."""
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        """See `Process.sigma`."""
        return t

    def dalpha(self, t: Tensor) -> Tensor:
        """See `Process.dalpha`."""
        return torch.zeros_like(t)

    def dsigma(self, t: Tensor) -> Tensor:
        """See `Process.dsigma`."""
        return torch.ones_like(t)

    def time_at(self, ratio: Tensor) -> Tensor:
        """See `Process.time_at`."""
        return ratio

    def ratio(self, t: Tensor) -> Tensor:
        """See `Process.ratio`."""
        return t

    def add_noise(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """See `Process.add_noise`."""
        return x0 + along(t, x0) * eps


@dataclass(frozen=True)
class Flow(Process):
    """alpha_t = 1 - t, sigma_t = t: rectified flow, noise at t = 1 (Liu et al., 2023, arXiv:2209.03003, flipped)."""

    name: ClassVar[str] = "flow"

    def alpha(self, t: Tensor) -> Tensor:
        """See `Process.alpha`."""
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        """See `Process.sigma`."""
        return t

    def dalpha(self, t: Tensor) -> Tensor:
        """See `Process.dalpha`."""
        return -torch.ones_like(t)

    def dsigma(self, t: Tensor) -> Tensor:
        """See `Process.dsigma`."""
        return torch.ones_like(t)

    def time_at(self, ratio: Tensor) -> Tensor:
        """See `Process.time_at`."""
        return torch.where(ratio.isinf(), torch.ones_like(ratio), ratio / (1 + ratio))


PROCESSES: dict[str, type[Process]] = {
    kind.name: kind for kind in (Cosine, Discrete, VarianceExploding, Flow)
}

NAMED: dict[str, Process] = {
    "cosine": Cosine(),
    "linear": Discrete(),
    "scaled-linear": Discrete("scaled-linear", 0.00085, 0.012),
    "edm": VarianceExploding(),
    "flow": Flow(),
}
"""The processes that have a name of their own on the command line."""


def make_process(about: str | dict[str, Any] | Process) -> Process:
    """A process from its name or from what `Process.config` gave; UserError for an unknown one."""
    if isinstance(about, Process):
        return about
    if isinstance(about, str):
        if about not in NAMED:
            raise UserError(f"process '{about}' is unknown: pass one of {', '.join(NAMED)}")
        return NAMED[about]
    numbers = {key: tuple(v) if isinstance(v, list) else v for key, v in about.items() if key != "name"}
    kind = PROCESSES.get(str(about.get("name")))
    if kind is None:
        raise UserError(f"process '{about.get('name')}' is unknown: pass one of {', '.join(PROCESSES)}")
    try:
        return kind(**numbers)
    except TypeError as error:
        raise UserError(
            f"process '{kind.name}' does not take these numbers ({error}): see its class"
        ) from None

"""What a network says of a noisy sample, in any of five letters, and exact conversions between them.

x0 = E[x_0 | x_t], eps = E[eps | x_t], v = alpha eps - sigma x0, score = grad log p_t(x_t), velocity = dx_t/dt.
Every one of them determines the others at x_t = alpha x0 + sigma eps. Which are safe where: from v and velocity
both x0 and eps come without a division by alpha or sigma; x0 from eps or score divides by alpha (not where alpha
is 0: t = T of a variance preserving process); eps from x0 divides by sigma (not at t = 0).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from torch import Tensor

from stillroom.errors import UserError
from stillroom.generators.parts.process import Process, along

Kind = Literal["x0", "eps", "v", "score", "velocity"]
KINDS: tuple[Kind, ...] = ("x0", "eps", "v", "score", "velocity")


@dataclass(frozen=True)
class Estimate:
    """An estimate at (x_t, t): `value` [n, ...] read as `kind`; ask for any other kind."""

    process: Process
    x: Tensor
    """x_t [n, ...]."""
    t: Tensor
    """Times, [n] or a scalar."""
    kind: Kind
    value: Tensor

    @cached_property
    def _scales(self) -> tuple[Tensor, Tensor]:
        return along(self.process.alpha(self.t), self.x), along(self.process.sigma(self.t), self.x)

    @cached_property
    def _slopes(self) -> tuple[Tensor, Tensor]:
        return along(self.process.dalpha(self.t), self.x), along(self.process.dsigma(self.t), self.x)

    @cached_property
    def x0(self) -> Tensor:
        """The denoised sample D(x_t, t) [n, ...]."""
        (alpha, sigma), value = self._scales, self.value
        if self.kind == "x0":
            return value
        if self.kind == "eps":
            return (self.x - sigma * value) / alpha
        if self.kind == "v":
            return (alpha * self.x - sigma * value) / (alpha * alpha + sigma * sigma)
        if self.kind == "score":
            return (self.x + sigma * sigma * value) / alpha
        dalpha, dsigma = self._slopes
        return (dsigma * self.x - sigma * value) / (alpha * dsigma - sigma * dalpha)

    @cached_property
    def eps(self) -> Tensor:
        """The noise eps [n, ...]."""
        (alpha, sigma), value = self._scales, self.value
        if self.kind == "eps":
            return value
        if self.kind == "x0":
            return (self.x - alpha * value) / sigma
        if self.kind == "v":
            return (sigma * self.x + alpha * value) / (alpha * alpha + sigma * sigma)
        if self.kind == "score":
            return -sigma * value
        dalpha, dsigma = self._slopes
        return (alpha * value - dalpha * self.x) / (alpha * dsigma - sigma * dalpha)

    @cached_property
    def v(self) -> Tensor:
        """alpha eps - sigma x0 (Salimans and Ho, 2022, arXiv:2202.00512, section 4)."""
        if self.kind == "v":
            return self.value
        alpha, sigma = self._scales
        return alpha * self.eps - sigma * self.x0

    @cached_property
    def score(self) -> Tensor:
        """The gradient of log p_t at x_t, -eps / sigma."""
        if self.kind == "score":
            return self.value
        alpha, sigma = self._scales
        if self.kind == "x0":
            return (alpha * self.value - self.x) / (sigma * sigma)
        return -self.eps / sigma

    @cached_property
    def velocity(self) -> Tensor:
        """dx_t/dt of the probability-flow ODE, alpha' x0 + sigma' eps."""
        if self.kind == "velocity":
            return self.value
        dalpha, dsigma = self._slopes
        return dalpha * self.x0 + dsigma * self.eps

    def read(self, kind: Kind) -> Tensor:
        """The estimate as `kind`."""
        return getattr(self, kind)


def true_value(at: Estimate, x0: Tensor, eps: Tensor) -> Tensor:
    """What `at.value` would be if the network knew: `at.kind` of the sample and the noise that x_t was made of."""
    process, t = at.process, at.t
    if at.kind == "x0":
        return x0
    if at.kind == "eps":
        return eps
    alpha, sigma = along(process.alpha(t), x0), along(process.sigma(t), x0)
    if at.kind == "v":
        return alpha * eps - sigma * x0
    if at.kind == "score":
        return -eps / sigma
    return along(process.dalpha(t), x0) * x0 + along(process.dsigma(t), x0) * eps


def check_kind(kind: str) -> Kind:
    """`kind` itself; UserError where it is none of the five."""
    if kind not in KINDS:
        raise UserError(f"prediction '{kind}' is unknown: pass one of {', '.join(KINDS)}")
    return kind

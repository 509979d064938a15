"""Losses on a block of tokens in closed form: the value of every token, and its gradient with respect to the logits.

Nothing here knows autograd: a vocabulary's logits are too many to be kept for a backward pass, so value and
gradient are made together, a block at a time (see `vocabulary`). All logits are float32 or float64 and finite.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FLOOR = -1e4
"""Logits are raised to this: a token of probability 0 then has a finite logarithm, and exp(FLOOR) is still 0."""


@dataclass(frozen=True)
class Divergence:
    """The generalised Jensen-Shannon divergence of teacher t and student s, and its ends (arXiv:2306.13649, eq. 1).

    JSD_beta = beta KL(t || m) + (1 - beta) KL(s || m) with m = beta t + (1 - beta) s. It vanishes at both ends:
    JSD_beta / beta tends to KL(t || s) as beta tends to 0, JSD_beta / (1 - beta) to KL(s || t) as it tends to 1.
    Normalised, it is JSD_beta / (beta (1 - beta)), which is continuous up to the ends: KL(t || s) at 0 and
    KL(s || t) at 1. Both softmaxes are at `temperature` T, and the value is T^2 times that of the scaled logits.
    """

    beta: float = 0.0
    """In [0, 1]: 0 forward KL, 1 reverse KL."""
    temperature: float = 1.0
    normalised: bool = True
    """False: the paper's own scale, 0 < beta < 1."""

    def __call__(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Values [n] in nats and gradients [n, V] for logits [n, V]; `student` and `teacher` are left alone."""
        t = self.temperature
        s, log_s = probabilities(student if t == 1 else student / t)
        value, slope = self.of(s, log_s, teacher if t == 1 else teacher / t)
        return (value, slope) if t == 1 else (value * t**2, slope.mul_(t))

    def of(self, s: Tensor, log_s: _Log, v: Tensor) -> tuple[Tensor, Tensor]:
        """As a call at temperature 1, from the student's probabilities."""
        t, log_t = probabilities(v)
        if self.beta == 0:
            value = _dot(t, v - log_s.logits) - log_t.total + log_s.total
            return value, torch.sub(s, t, out=t)
        if self.beta == 1:
            gap = (log_s.logits - v).add_((log_t.total - log_s.total).unsqueeze(-1))
            value = _dot(s, gap)
            return value, gap.sub_(value.unsqueeze(-1)).mul_(s)
        return self._between(s, t)

    def _between(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """0 < beta < 1, from probabilities.

        With r = (t - s) / m, log(t / m) = log(1 + (1 - beta) r) and log(s / m) = log(1 - beta r): no logarithm
        of a small number is taken, and nothing is lost where beta is small and both are nearly 0.
        """
        beta = self.beta
        ratio = (t - s).div_(torch.lerp(s, t, beta).clamp_min_(torch.finfo(s.dtype).tiny))
        edge = -1 + torch.finfo(s.dtype).eps
        above = _dot(t, (ratio * (1 - beta)).clamp_min_(edge).log1p_())
        gap = ratio.mul_(-beta).clamp_min_(edge).log1p_()
        below = _dot(s, gap)
        slope = gap.sub_(below.unsqueeze(-1)).mul_(s)
        if self.normalised:
            return above / (1 - beta) + below / beta, slope.div_(beta)
        return beta * above + (1 - beta) * below, slope.mul_(1 - beta)


@dataclass(frozen=True)
class _Log:
    """Logarithms of probabilities, not written out: log p = logits - total."""

    logits: Tensor
    total: Tensor


def probabilities(logits: Tensor) -> tuple[Tensor, _Log]:
    """softmax(logits) [n, V], and what its logarithm is made of."""
    p = logits.softmax(-1)
    top, at = logits.max(-1, keepdim=True)
    # log sum exp by the largest entry, whose probability is at least 1 / V: one pass less than logsumexp
    return p, _Log(logits, (top - p.gather(-1, at).log()).squeeze(-1))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.vecdot(a, b)


def cross_entropy(s: Tensor, log_s: _Log, y: Tensor) -> tuple[Tensor, Tensor]:
    """-log s_y [n] and its gradient [n, V], from the student's probabilities and y int64 [n]."""
    at = y.unsqueeze(-1)
    value = log_s.total - log_s.logits.gather(-1, at).squeeze(-1)
    return value, s.scatter_add(-1, at, s.new_full(at.shape, -1.0))


@dataclass(frozen=True)
class Sorted:
    """Universal logit distillation: the L1 distance of sorted probabilities (arXiv:2402.12030, eq. 6).

    sum_i |s_(i) - t_(i)|, where (i) is the i-th largest; the shorter vocabulary is filled up with zeros. In [0, 2].
    Which token is which plays no role. Temperature T divides both sides' logits; there is no factor T^2, since
    the distance does not shrink like 1 / T^2.
    """

    temperature: float = 1.0

    def __call__(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Values [n] and gradients [n, V]; student [n, V] and teacher [n, W] are logits of any two sizes."""
        s = (student / self.temperature).softmax(-1)
        ranked, order = s.sort(-1, descending=True)
        t = (teacher / self.temperature).softmax(-1).sort(-1, descending=True).values
        width = s.shape[-1]
        extra = t[:, width:].sum(-1)
        t = torch.nn.functional.pad(t[:, :width], (0, max(0, width - t.shape[-1])))
        gap = ranked - t
        sign = torch.empty_like(s).scatter_(-1, order, gap.sign())
        slope = sign.sub_(_dot(sign, s).unsqueeze(-1)).mul_(s).div_(self.temperature)
        return gap.abs().sum(-1) + extra, slope

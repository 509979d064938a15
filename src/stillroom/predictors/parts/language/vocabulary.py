"""Losses over a vocabulary, exact and a block of tokens at a time.

The logits [tokens, V] of student and teacher are the largest thing in a step on text. Here they exist a block at a
time: of every block value and gradient are made together (`divergences`), and the gradient goes on at once to the
hidden states and the head's weights, or to its rows where the student's logits are ready made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from stillroom.predictors.parts.language.alignment import Alignment
from stillroom.predictors.parts.language.divergences import (
    FLOOR,
    Divergence,
    Sorted,
    cross_entropy,
    probabilities,
)
from stillroom.teacher import Dense

IGNORED = -100
"""The label of a position that does not count."""
BLOCK = 2**21
"""Logits in a block, tokens x V: a few of that size are in memory at once."""


@dataclass(frozen=True)
class Head:
    """Logits that are not made yet: hidden states [..., H] and the last layer, weight [V, H] and bias [V] or None."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None

    def logits(self) -> Tensor:
        """All of them, [..., V]."""
        return F.linear(self.hidden, self.weight, self.bias)


class Kept(Protocol):
    """The largest k entries of a teacher's answer, with what is left of the mass."""

    @property
    def values(self) -> Tensor:
        """Logarithms of their probabilities [..., k]."""
        ...

    @property
    def indices(self) -> Tensor:
        """Their tokens [..., k], int64."""
        ...

    @property
    def rest(self) -> Tensor:
        """Logarithm of the sum of all other probabilities [...]; -inf where there are none."""
        ...


Scores = Tensor | Head
"""Logits [..., V], ready or to be made."""
Answer = Dense | Head | Kept
"""What a teacher says of every position."""


@dataclass(frozen=True)
class Mixing:
    """(1 - alpha) CE(s, y) + alpha D(t, s) for every token."""

    alpha: float = 1.0
    """Share of the teacher's term, in [0, 1]."""
    divergence: Divergence | Sorted = field(default_factory=Divergence)


@dataclass(frozen=True)
class Loss:
    """A loss over the counted tokens."""

    value: Tensor
    """The mean over `items`, a scalar with the gradient."""
    items: int
    """How many tokens count."""
    labels: Tensor
    """Mean of the labels' term, unweighted; 0 where alpha is 1."""
    teacher: Tensor
    """Mean of the teacher's term, unweighted; 0 where alpha is 0."""


@dataclass(frozen=True)
class Tokens:
    """Which tokens count, and for what."""

    y: Tensor
    """The token to be predicted at each position [n, L], -100 where none counts."""
    labelled: Tensor | None = None
    """Rows [n], bool: whose `y` is a label; the others (a model's own samples) are judged by the teacher alone."""
    partner: Tensor | None = None
    """Row of the teacher's answer for each position [n, L], int64, -1 for none; None: the same position."""


def distilled(
    student: Scores,
    tokens: Tokens,
    answer: Answer | None,
    mixing: Mixing,
    alignment: Alignment | None = None,
    block: int = BLOCK,
) -> Loss:
    """The mixed loss over the counted tokens, with its gradient for the student alone.

    Logits of the teacher are [n, L, W] (or [rows, W] with partners); without an `alignment` W is V. `answer` may
    be None where alpha is 0. A token without a partner, and one that is not labelled, adds 0 to the term that it
    has no part in, and counts all the same: the value is the sum over tokens, divided by `items`.
    """
    counted = (tokens.y.flatten() != IGNORED).nonzero().squeeze(-1)
    job = _Job(tokens, counted, answer, mixing, alignment, block)
    if isinstance(student, Head):
        parts = student.hidden.flatten(0, -2), student.weight, student.bias
    else:
        parts = student.flatten(0, -2), None, None
    value, labels, teacher = _Chunked.apply(*parts, job)  # type: ignore[misc]
    return Loss(value, len(counted), labels, teacher)


class _Chunked(torch.autograd.Function):
    """Value and gradient in one pass over the blocks; going backward only scales the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, job: _Job) -> Any:
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        with torch.autocast(kind, enabled=False):
            sums, ctx.slopes = job.run(x, weight, bias, dtype, ctx.needs_input_grad[:3])
        means = (sums / max(1, len(job.counted))).unbind()
        ctx.mark_non_differentiable(*means[1:])
        return means

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyrefly: ignore[bad-override]
        slopes, ctx.slopes = ctx.slopes, None
        if slopes is None:
            raise RuntimeError("the gradient of a vocabulary loss can be asked for once")
        return *(s if s is None else s.mul_(grad_outputs[0]) for s in slopes), None


@dataclass(frozen=True)
class _Job:
    """What `_Chunked` works through."""

    tokens: Tokens
    counted: Tensor
    answer: Answer | None
    mixing: Mixing
    alignment: Alignment | None
    block: int

    def run(
        self,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        dtype: torch.dtype,
        wanted: tuple[bool, ...],
    ) -> tuple[Tensor, list[Tensor | None]]:
        """The sums [3] of value and terms, and the gradients of the mean for x, weight and bias."""
        sums = x.new_zeros(3, dtype=torch.float64)
        slopes = [
            torch.zeros_like(part) if want and part is not None else None
            for part, want in zip((x, weight, bias), wanted, strict=True)
        ]
        head = None if weight is None else (weight.to(dtype), None if bias is None else bias.to(dtype))
        width = x.shape[-1] if weight is None else len(weight)
        share = 1 / max(1, len(self.counted))
        for at in self.counted.split(max(1, self.block // width)):
            rows = x.index_select(0, at)
            logits = rows.clamp_min(FLOOR) if head is None else F.linear(rows.to(dtype), *head)
            values, slope = self._of(_wide(logits), at)
            sums += values
            if any(wanted):
                self._hand_on(slope.mul_(share), rows, at, head, slopes)
        return sums.to(_wide(x.new_empty(0)).dtype), slopes

    def _hand_on(
        self, slope: Tensor, rows: Tensor, at: Tensor, head: Any, slopes: list[Tensor | None]
    ) -> None:
        """Add a block's gradient [tokens, V] to those of x, weight and bias."""
        of_x, of_weight, of_bias = slopes
        if head is None:
            if of_x is not None:
                of_x.index_copy_(0, at, slope.to(of_x.dtype))
            return
        if of_bias is not None:
            of_bias += slope.sum(0).to(of_bias.dtype)
        weight = head[0]
        slope = slope.to(weight.dtype)
        if of_x is not None:
            of_x.index_copy_(0, at, (slope @ weight).to(of_x.dtype))
        if of_weight is not None:
            rows = rows.to(weight.dtype)
            if of_weight.dtype == weight.dtype:
                of_weight.addmm_(slope.t(), rows)
            else:
                of_weight += slope.t() @ rows

    def _of(self, z: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        """Sums [3] of a block, and the gradient [tokens, V] of the first of them."""
        alpha, divergence = self.mixing.alpha, self.mixing.divergence
        labels = teacher = z.new_zeros(())
        slope = None
        plain = isinstance(divergence, Divergence) and divergence.temperature == 1
        simple = plain and self.alignment is None and isinstance(self.answer, (Dense, Head))
        s, log_s = probabilities(z) if alpha < 1 or simple else (z, None)
        if alpha > 0:
            if simple and self.tokens.partner is None:
                values, slope = divergence.of(s, log_s, self._teacher(at))  # type: ignore[union-attr]
            else:
                values, slope = self._apart(z, at)
            teacher = values.sum()
            slope.mul_(alpha)
        if alpha < 1:
            assert log_s is not None
            values, more = cross_entropy(s, log_s, self.tokens.y.flatten()[at])
            if self.tokens.labelled is not None:
                weight = self.tokens.labelled[at // self.tokens.y.shape[-1]].to(z.dtype)
                values = values * weight
                more.mul_(weight.unsqueeze(-1))
            labels = values.sum()
            slope = more.mul_(1 - alpha) if slope is None else slope.add_(more, alpha=1 - alpha)
        assert slope is not None
        return torch.stack([(1 - alpha) * labels + alpha * teacher, labels, teacher]), slope

    def _apart(self, z: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's term where it does not share the student's softmax: buckets, temperature, partners."""
        values, slope = z.new_zeros(len(z)), torch.zeros_like(z)
        there = torch.arange(len(at), device=at.device)
        if self.tokens.partner is not None:
            rows = self.tokens.partner.flatten()[at]
            there = (rows >= 0).nonzero().squeeze(-1)
            if not len(there):
                return values, slope
            z, at = z[there], rows[there]
        said = self._teacher(at)
        small, back = self._buckets(z, at)
        value, own = self.mixing.divergence(small, said)
        whole = back(own)
        if self.tokens.partner is None:
            return value, whole
        return values.index_copy(0, there, value), slope.index_copy(0, there, whole)

    def _teacher(self, at: Tensor) -> Tensor:
        """The teacher's logits of a block, over the same buckets as the student's."""
        answer = self.answer
        if isinstance(answer, Head):
            rows = answer.hidden.flatten(0, -2).index_select(0, at)
            logits = _wide(F.linear(rows.to(answer.weight.dtype), answer.weight, answer.bias))
        elif isinstance(answer, Dense):
            logits = _wide(answer.logits.flatten(0, -2).index_select(0, at)).clamp_min(FLOOR)
        else:
            assert answer is not None
            values = _wide(answer.values.flatten(0, -2).index_select(0, at))
            rest = _wide(answer.rest.flatten().index_select(0, at))
            return torch.cat([values, rest.unsqueeze(-1)], -1).clamp_min(FLOOR)
        return logits if self.alignment is None else self.alignment.teacher(logits)

    def _buckets(self, z: Tensor, at: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """The student's logits over what the teacher tells apart, and the way back of their gradient."""
        if self.alignment is not None:
            return self.alignment.student(z)
        if isinstance(self.answer, (Dense, Head)):
            return z, lambda slope: slope
        assert self.answer is not None
        return top_and_rest(z, self.answer.indices.flatten(0, -2).index_select(0, at).long())


def top_and_rest(z: Tensor, indices: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Logits [n, k + 1] of the tokens `indices` [n, k] and of all others together, log sum exp of theirs.

    Divergences of these are those of the distributions over k tokens and a rest. Also given: what takes a gradient
    with respect to them to one with respect to `z` [n, V]: the rest's goes to its tokens by their share of it.
    """
    others = z.scatter(-1, indices, float("-inf"))
    rest = others.logsumexp(-1, keepdim=True).clamp_min(FLOOR)

    def back(slope: Tensor) -> Tensor:
        whole = (others - rest).exp_().mul_(slope[:, -1:])
        return whole.scatter_(-1, indices, slope[:, :-1])

    return torch.cat([z.gather(-1, indices), rest], -1), back


def blocks(student: Scores, size: int = BLOCK) -> Iterator[tuple[slice, Tensor]]:
    """The logits of all positions, flattened, a block at a time: rows, and logits [rows, V] in float32 or wider."""
    if isinstance(student, Head):
        rows, width = student.hidden.flatten(0, -2), len(student.weight)
    else:
        rows, width = student.flatten(0, -2), student.shape[-1]
    step = max(1, size // width)
    for start in range(0, len(rows), step):
        part = slice(start, min(start + step, len(rows)))
        made = (
            rows[part] if isinstance(student, Tensor) else F.linear(rows[part], student.weight, student.bias)
        )
        yield part, _wide(made)


def _wide(x: Tensor) -> Tensor:
    """In float32, or wider where it is."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()

"""What a teacher says of a batch: all its scores, or the largest of them and the mass of the rest.

A method reads `answer.logits` and need not know which it holds. An answer is kept as tensors by name, one row a
sample, `encode` and `decode`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from stillroom.errors import UserError

Kept = Literal["float16", "float32"]
LEAST = -65504.0
"""The smallest number of half precision."""


@dataclass(frozen=True, slots=True)
class Dense:
    """A teacher's full answer."""

    logits: Tensor
    """Scores [n, classes], or [n, positions, classes], before the softmax, without gradient."""
    features: Mapping[str, Tensor] = field(default_factory=dict)
    """By module path, what the teacher was asked for beside its scores; see `Teacher.watch`."""


@dataclass(frozen=True, slots=True)
class TopK:
    """The k largest log-probabilities of each answer, and the log of the mass of all others; masses sum to 1.

    What is lost is how the rest mass r is spread. With q the distribution of `logits`, p the teacher's and C classes,
    KL(p || q) = r (log(C - k) - H), H being the entropy of p over the others, renormalised: at most r log(C - k),
    nothing where they are equal, and no more for a larger k (q of k is a mean of q of k + 1 over some classes). The
    gradient of a cross-entropy with respect to the student's logits is off by q - p, whose L1 norm is at most 2 r.
    At a temperature T > 1 the others weigh (C - k) (r / (C - k))^(1/T) before normalisation, which is at least the
    sum of their p^(1/T): they come out larger together, as well as more alike.
    """

    values: Tensor
    """Log-probabilities [..., k], float32, the largest first."""
    indices: Tensor
    """Their classes [..., k], int64."""
    rest: Tensor
    """Log of the probability of all other classes together [...], float32; -inf where there are none."""
    classes: int
    """Number of classes C >= k."""
    features: Mapping[str, Tensor] = field(default_factory=dict)
    """See `Dense.features`."""

    @property
    def logits(self) -> Tensor:
        """Log-probabilities [..., classes], the rest mass spread evenly over the classes that are not kept."""
        others = max(1, self.classes - self.values.shape[-1])
        even = (self.rest - math.log(others)).unsqueeze(-1)
        whole = even.expand(*self.rest.shape, self.classes).contiguous()
        return whole.scatter_(-1, self.indices, self.values)


Answer = Dense | TopK


def top_k(answer: Dense, k: int) -> TopK:
    """The `k` largest of each answer, 1 <= k; all of them where there are fewer classes."""
    log_p = answer.logits.float().log_softmax(-1)
    classes = log_p.shape[-1]
    values, indices = log_p.topk(min(k, classes), -1)
    rest = log_p.scatter(-1, indices, -math.inf).logsumexp(-1)
    return TopK(values, indices, rest, classes, answer.features)


def encode(answer: Answer, kept: Kept) -> dict[str, Tensor]:
    """Tensors [n, ...] by name. In half precision scores are kept by their distance from the largest.

    What is near the largest is then kept most exactly: p_i changes by a share of at most 2^-11 log(p_max / p_i), and
    the largest stays the largest unless two differ by less than 3e-8. Log-probabilities, in either precision, are
    kept so too, and normalised anew when they are read. Features are kept as they are.
    """
    half, rows = kept == "float16", {}
    if isinstance(answer, TopK):
        peak = answer.values[..., 0]
        rows["values"] = _narrowed(answer.values - peak.unsqueeze(-1), half)
        rows["rest"] = _narrowed(answer.rest - peak, half)
        rows["indices"] = answer.indices.to(torch.int16 if answer.classes <= 2**15 else torch.int32)
    elif half:
        logits = answer.logits.float()
        rows["peak"] = peak = logits.amax(-1)
        rows["logits"] = _narrowed(logits - peak.unsqueeze(-1), half)
    else:
        rows["logits"] = answer.logits.float()
    for i, (path, value) in enumerate(answer.features.items()):
        rows[f"feature-{i}"] = _halved(value, path) if half else value.float()
    return rows


def decode(rows: Mapping[str, Tensor], classes: int, paths: tuple[str, ...] = ()) -> Answer:
    """The answer that `encode` gave; `paths` are the module paths of its features, in their order."""
    features = {path: rows[f"feature-{i}"].float() for i, path in enumerate(paths)}
    if "values" not in rows:
        logits = rows["logits"].float()
        return Dense(logits + rows["peak"].unsqueeze(-1) if "peak" in rows else logits, features)
    values, rest = rows["values"].float(), rows["rest"].float()
    if values.shape[-1] == classes:
        rest = torch.full_like(rest, -math.inf)
    total = torch.cat([values, rest.unsqueeze(-1)], -1).logsumexp(-1)
    return TopK(values - total.unsqueeze(-1), rows["indices"].long(), rest - total, classes, features)


def _narrowed(distances: Tensor, half: bool) -> Tensor:
    return distances.clamp_min(LEAST).half() if half else distances


def _halved(value: Tensor, path: str) -> Tensor:
    half = value.half()
    if half.isfinite().sum() != value.isfinite().sum():
        raise UserError(
            f"the teacher's feature '{path}' reaches {value.abs().max():.3g}, more than half precision holds: pass "
            "--engine.keep-precision float32"
        )
    return half

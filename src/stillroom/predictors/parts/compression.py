"""Soft labels made small for storing, and made whole again: the kinds of Shen and Xing (ECCV 2022, arXiv:2112.01528).

A label is a distribution over C classes. What is kept of it is tensors by name, one row a label, `compress` and
`recover`; `bytes_of` says beforehand what they take.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

Compression = Literal["marginal-smoothing", "marginal-renormalised", "smoothing", "hard", "full"]
"""The k largest and the rest spread evenly; the k largest scaled to sum to 1; the largest and the rest spread evenly;
the largest class alone; all of it."""
Precision = Literal["float16", "float32"]


def kept_of(kind: Compression, classes: int, k: int) -> int:
    """How many (class, value) pairs are kept of a label; 0 where it is kept whole."""
    if kind == "full":
        return 0
    return min(k, classes) if kind.startswith("marginal") else 1


def compress(
    labels: Tensor, kind: Compression, k: int = 5, precision: Precision = "float16"
) -> dict[str, Tensor]:
    """What is kept of `labels` [..., C], each a distribution: "values" [..., C] or [..., k], and their "classes"."""
    kept = kept_of(kind, labels.shape[-1], k)
    number = torch.float16 if precision == "float16" else torch.float32
    if not kept:
        return {"values": labels.to(number)}
    values, classes = labels.topk(kept, -1)
    small = {"classes": classes.to(torch.int16 if labels.shape[-1] <= 2**15 else torch.int32)}
    return small if kind == "hard" else {"values": values.to(number), **small}


def recover(rows: Mapping[str, Tensor], kind: Compression, classes: int) -> Tensor:
    """The labels [..., `classes`] that `compress` made small, float32; each sums to 1.

    In half precision what is kept may sum to a little more than 1: it is then scaled down, and the others get 0.
    """
    if kind == "hard":
        at = rows["classes"].long()
        return torch.zeros(*at.shape[:-1], classes, device=at.device).scatter(-1, at, 1.0)
    values = rows["values"].float()
    total = values.sum(-1, keepdim=True)
    if kind == "full":
        return values / total
    at, others = rows["classes"].long(), classes - values.shape[-1]
    if kind == "marginal-renormalised" or not others:
        rest, values = torch.zeros_like(total), values / total
    else:
        rest, values = (1 - total).clamp_min(0) / others, values / total.clamp_min(1)
    return rest.expand(*rest.shape[:-1], classes).scatter(-1, at, values)


def bytes_of(kind: Compression, classes: int, k: int = 5, precision: Precision = "float16") -> int:
    """Bytes that a label of `classes` classes takes."""
    rows = compress(torch.full((1, classes), 1 / classes), kind, k, precision).values()
    return sum(row.numel() * row.element_size() for row in rows)

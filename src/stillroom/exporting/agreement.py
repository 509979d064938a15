"""Whether what was exported says what the network says: run on the run's own samples, in batches of several sizes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from stillroom.errors import UserError, reason
from stillroom.exporting.forms import Graph

TOLERANCE = 1e-4
"""Largest difference, as a share of the largest number that the network says."""
BATCHES = (1, 2, 7, 64)
"""Sizes of the batches that are compared."""

Call = Callable[[Mapping[str, Tensor]], Tensor]


def agreement(graph: Graph, call: Call, most: int | None = None) -> dict[str, Any]:
    """How far `call`, the exported thing, is from the network: the largest difference over all batches.

    Each size has samples of its own, and none is above `most`. Where an axis may have any length, every other batch is
    cut short on it.
    """
    worst, scale, sizes, start = 0.0, 0.0, [], 0
    drawn = graph.draw(sum(BATCHES))
    there = len(next(iter(drawn.values())))
    for number, wished in enumerate(BATCHES):
        size = min(wished, most or wished)
        if start + size > there:
            start = max(0, there - size)
        rows = {name: values[start : start + size] for name, values in drawn.items()}
        rows = shorter(graph, rows) if number % 2 else rows
        start += size
        wanted = answer(graph, rows)
        try:
            found = call(rows)
        except Exception as error:
            raise UserError(
                f"what was written does not run on a batch of {len(wanted)} ({reason(error)}): nothing is left, pass "
                "another --to"
            ) from error
        apart = _apart(wanted, found)
        worst = apart if math.isnan(apart) else max(worst, apart)  # max() would let a NaN pass
        if math.isnan(worst):
            break
        scale = max(scale, float(wanted.abs().max()))
        sizes.append(len(wanted))
    share = worst / max(scale, torch.finfo(torch.float32).tiny)
    return {
        "against": "the network in PyTorch, float32, evaluation mode",
        "inputs": graph.source,
        "batches": sizes,
        "largest_difference": worst,
        "largest_output": scale,
        "relative_difference": share,
        "tolerance": TOLERANCE,
    }


def answer(graph: Graph, rows: Mapping[str, Tensor]) -> Tensor:
    """What the network says."""
    with torch.no_grad():
        return graph.network(*rows.values())


def check(found: Mapping[str, Any], what: str) -> None:
    """Raise UserError where the difference is above the tolerance, or not a number."""
    if not found["relative_difference"] <= found["tolerance"]:
        raise UserError(
            f"{what} differs from the network by {found['relative_difference']:.2g} of its largest output, "
            f"{found['tolerance']:g} is allowed: nothing is written, pass another --to"
        )


def _apart(wanted: Tensor, found: Tensor) -> float:
    if wanted.shape != found.shape:
        return float("nan")
    return float((wanted.double() - found.double()).abs().max())


def shorter(graph: Graph, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The samples, cut to two thirds on the axes that may have any length."""
    cut = dict(rows)
    for name, axes in graph.axes.items():
        for axis in axes:
            cut[name] = cut[name].narrow(axis, 0, max(1, 2 * cut[name].shape[axis] // 3))
    return cut

"""The one check that a classifier fits its data, made before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from stillroom.errors import UserError, reason
from stillroom.models.probing import blank, quietly


def check(
    module: nn.Module,
    *,
    shape: Sequence[int],
    classes: int,
    role: str,
    name: str | None = None,
    data: str | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Run two blank samples `[2, *shape]` and see that logits `[2, classes]` come out.

    `role` is 'teacher' or 'student' and names the flag in the message; `name` is the architecture's (its
    class's if not given) and `data` the data set's; `dtype` is the samples' (None: the module's own).
    Training modes, batch-norm statistics and the default random state are left as they were.

    Raises UserError if the network fails on the shape or gives anything else.
    """
    who = f"{role} {(name or type(module).__name__)!r}"
    what = "the data" if data is None else f"data {data!r}"
    try:
        with quietly(module):
            logits = module(blank(module, shape, 2, dtype))
    except Exception as error:
        raise UserError(
            f"{who} fails on {what} of shape {tuple(shape)} ({reason(error)}): "
            f"pass --task.{role} with a network that takes this shape"
        ) from error
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or len(logits) != 2:
        given = f"shape {tuple(logits.shape)}" if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise UserError(
            f"{who} gives {given} for 2 samples, a classifier gives logits (2, {classes}): "
            f"pass --task.{role} with a classifier"
        )
    if logits.shape[1] != classes:
        raise UserError(
            f"{who} gives {logits.shape[1]} classes, {what} has {classes}: "
            f"pass --task.{role} with {classes} classes"
        )

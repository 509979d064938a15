"""Looking at a network without leaving a trace in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def quietly(module: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients within; afterwards every part is back in the mode that it was in.

    Modes are kept part by part, since a network in training may hold parts that are not. The
    default random state is restored too: some networks draw from it even in evaluation mode.
    """
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        for part, training in modes:
            part.training = training


def left_in_order(
    parts: Mapping[str, nn.Module], network: nn.Module, example: Tensor
) -> list[tuple[str, Any]]:
    """Name and output of each call of `parts`, in the order of a forward pass of `example` through `network`."""
    met: list[tuple[str, Any]] = []

    def note(name: str) -> Any:
        return lambda module, args, output: met.append((name, output))

    handles = [part.register_forward_hook(note(name)) for name, part in parts.items()]
    try:
        with quietly(network):
            network(example)
    finally:
        for handle in handles:
            handle.remove()
    return met


def blank(module: nn.Module, shape: Sequence[int], batch: int, dtype: torch.dtype | None = None) -> Tensor:
    """Zeros `[batch, *shape]` of type `dtype` (None: the module's floating-point type), where the module is."""
    for value in chain(module.parameters(), module.buffers()):
        if value.is_floating_point():
            return torch.zeros(batch, *shape, dtype=dtype or value.dtype, device=value.device)
    return torch.zeros(batch, *shape, dtype=dtype)

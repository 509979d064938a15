"""Copying weights from a network into a smaller one of the same kind."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from stillroom.models.cnn import CNN
from stillroom.models.convnet import ConvNet
from stillroom.models.cutting import evenly
from stillroom.models.mlp import MLP

FUSED = ("qkv", "in_proj_weight", "in_proj_bias", "c_attn")
"""Layers that make queries, keys and values at once: a third of their outputs for each."""

Pair = tuple[str, nn.Module, nn.Module]
"""The path in the smaller network, the module of the larger one, and that of the smaller one."""


def transplant(source: nn.Module, target: nn.Module) -> list[str]:
    """Copy the state of `source` into `target`; returns the names in `target` that are no whole copies.

    Modules are paired by name. Where a list of blocks is shorter in `target`, its blocks are those of `source` that
    `cutting.evenly` keeps. A tensor of the same shape is copied; of another one the leading part that both have in
    every dimension, for fused queries, keys and values in each of the three. What has no counterpart keeps its fresh
    weights.
    """
    touched: dict[int, bool] = {}
    with torch.no_grad():
        for path, old, new in paired(source, target):
            theirs = _own(old)
            for name, value in _own(new).items():
                if name in theirs:
                    touched[id(value)] = theirs[name].shape == value.shape
                    _copy(theirs[name], value, f"{path}.{name}", type(old).__name__ == "Conv1D")
    held = target.state_dict(keep_vars=True)
    return [name for name, value in held.items() if not touched.get(id(value), False)]


def paired(source: nn.Module, target: nn.Module, path: str = "") -> Iterator[Pair]:
    """The modules of `target`, each with its counterpart in `source`; `path` is where `target` is."""
    yield path, source, target
    if isinstance(target, MLP | CNN | ConvNet) and type(source) is type(target):
        yield from _of_chains(list(source), list(target))
        return
    old, new = dict(source.named_children()), dict(target.named_children())
    if isinstance(target, nn.ModuleList | nn.Sequential) and len(new) < len(old):
        left = evenly(len(old), len(new))
        old = dict(zip(new, (list(old.values())[i] for i in left), strict=True))
    for name, part in new.items():
        if name in old:
            yield from paired(old[name], part, f"{path}.{name}")


def _of_chains(source: list[nn.Module], target: list[nn.Module]) -> Iterator[Pair]:
    """Our plain chains: the head with the head, of all other layers those of a kind evenly."""
    yield "head", source.pop(), target.pop()
    for kind in (nn.Linear, nn.Conv2d, nn.GroupNorm):
        old, new = ([part for part in chain if isinstance(part, kind)] for chain in (source, target))
        if new:
            left = [old[i] for i in evenly(len(old), len(new))]
            yield from ((kind.__name__, a, b) for a, b in zip(left, new, strict=True))


def _own(module: nn.Module) -> dict[str, Tensor]:
    """The module's own tensors, those of its state alone, without its children's."""
    buffers = {k: v for k, v in module._buffers.items() if k not in module._non_persistent_buffers_set}
    return {key: value for key, value in {**module._parameters, **buffers}.items() if value is not None}


def _copy(source: Tensor, target: Tensor, name: str, inputs_first: bool) -> None:
    if source.shape == target.shape:
        target.copy_(source)
        return
    if source.ndim != target.ndim or not target.is_floating_point():
        return
    axis = target.ndim - 1 if inputs_first else 0
    thirds = source.shape[axis] % 3 == 0 == target.shape[axis] % 3
    parts = 3 if thirds and any(word in name for word in FUSED) else 1
    for old, new in zip(source.chunk(parts, axis), target.chunk(parts, axis), strict=True):
        common = tuple(slice(0, min(a, b)) for a, b in zip(old.shape, new.shape, strict=True))
        new[common] = old[common]

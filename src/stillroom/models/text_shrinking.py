"""A smaller copy of a network on text: fewer layers, narrower, the weights that fit taken over."""

from __future__ import annotations

import copy
import re
from typing import Any

import torch
from torch import nn

from stillroom.errors import UserError
from stillroom.models.text_names import seeded
from stillroom.models.texts import Causal, Encoder, MeanPooled

SHRUNK = "shrink:"
"""What the name of a student begins with that is cut out of its teacher: `shrink:depth=0.5,width=0.5`."""


def shares(name: str) -> tuple[float, float]:
    """Depth and width, each in (0, 1], of a name like `shrink:depth=0.5,width=0.5`; 1 where it is left out."""
    found = {"depth": 1.0, "width": 1.0}
    for part in name.removeprefix(SHRUNK).split(","):
        match = re.fullmatch(r"(depth|width)=(\d*\.?\d+)", part.strip())
        if match is None or not 0 < float(match[2]) <= 1:
            raise UserError(
                f"student '{name}' has the malformed part '{part}': write shrink:depth=0.5,width=0.5, shares in (0, 1]"
            )
        found[match[1]] = float(match[2])
    return found["depth"], found["width"]


def shrink(network: nn.Module, depth: float, width: float, seed: int) -> Encoder | Causal:
    """A copy of an `Encoder` or `Causal` with `depth` of its layers, evenly spread, and `width` of its heads.

    Hidden and inner sizes go with the heads, whose size stays. A tensor whose shape is as before is copied, of the
    layer that is kept; others are made from `seed`. UserError for a network whose layers are not known.
    """
    if not isinstance(network, Encoder | Causal):
        raise UserError(
            f"teacher {type(network).__name__} is no transformers model: name the student by its size"
        )
    whole: Any = network.network
    inner: Any = whole.backbone if isinstance(whole, MeanPooled) else whole
    config = copy.deepcopy(inner.config)
    kept = _kept(config.num_hidden_layers, depth)
    _narrow(config, width)
    config.num_hidden_layers = len(kept)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[layer] for layer in kept]
    with seeded(seed):
        made: Any = type(inner)(config)
        if isinstance(whole, MeanPooled):
            made = MeanPooled(made, whole.head.out_features, whole.first)
    _take_over(made, whole, kept)
    made.train()
    if isinstance(network, Causal):
        return Causal(made)
    return Encoder(made, network.padding, network.separator)


def _kept(layers: int, depth: float) -> list[int]:
    number = max(1, round(layers * depth))
    return [place * layers // number for place in range(number)]


def _narrow(config: Any, width: float) -> None:
    heads = config.num_attention_heads
    fewer = max(1, round(heads * width))
    if fewer == heads:
        return
    config.hidden_size = config.hidden_size // heads * fewer
    config.num_attention_heads = fewer
    groups = getattr(config, "num_key_value_heads", None)
    if groups:
        most = max(1, round(groups * width))
        config.num_key_value_heads = next(g for g in range(most, 0, -1) if fewer % g == 0)
    for name in ("intermediate_size", "hidden_dim", "n_inner"):
        size = getattr(config, name, None)
        if size:
            setattr(config, name, max(1, size * fewer // heads))


def _take_over(made: nn.Module, whole: nn.Module, kept: list[int]) -> None:
    """Copy every tensor of `whole` that has the shape of its counterpart in `made`."""
    column = _column(made, len(kept))
    old = whole.state_dict()
    with torch.no_grad():
        for key, value in made.state_dict(keep_vars=True).items():
            theirs = key
            if key.startswith(f"{column}."):
                number, rest = key.removeprefix(f"{column}.").split(".", 1)
                theirs = f"{column}.{kept[int(number)]}.{rest}"
            if theirs in old and old[theirs].shape == value.shape:
                value.copy_(old[theirs])


def _column(module: nn.Module, layers: int) -> str:
    """Path of the list of layers; UserError where there is none of that length."""
    for path, part in module.named_modules():
        if isinstance(part, nn.ModuleList) and len(part) == layers:
            return path
    raise UserError(f"the layers of {type(module).__name__} are not known: name the student by its size")

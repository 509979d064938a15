"""Smaller denoising networks: fewer blocks and channels, with the weights of a larger one where they fit."""

from __future__ import annotations

import copy
import math
from typing import Any

from torch import nn

from stillroom.errors import UserError, reason
from stillroom.models.cutting import count_left
from stillroom.models.denoisers.names import network_config, network_from_config
from stillroom.models.smaller import fewer_heads
from stillroom.models.transplanting import transplant
from stillroom.seeds import seeded

UNETS = ("UNet2DModel", "UNet2DConditionModel")


def shrunken_network(network: nn.Module, depth: float, width: float, seed: int) -> nn.Module:
    """A smaller denoising network with the weights of `network` where they fit, both as `models.shrinking.shrink`.

    Of a residual perceptron and a DiT depth is the number of blocks, of a U-Net the number of residual blocks a level;
    width is the perceptron's, the number of a DiT's heads, or a U-Net's channels, in multiples of groups and heads.
    Raises UserError for adapters, mixtures and networks of the user's own, and where nothing can be made smaller.
    """
    if depth == width == 1:
        return copy.deepcopy(network).requires_grad_(True).train()
    config = network_config(network)
    known = ("mlp", "DiTTransformer2DModel", *UNETS)
    if config is None or config["kind"] not in known:
        raise UserError(
            f"{type(network).__name__} cannot be made smaller by its config: pass --task.student with an architecture"
        )
    smaller = _smaller(copy.deepcopy(config), depth, width)
    with seeded(seed):
        try:
            made: Any = network_from_config(smaller)
        except (ValueError, TypeError) as error:
            raise UserError(
                f"no smaller {config['kind']} can be built ({reason(error)}): pass other shares"
            ) from None
        if getattr(network, "guidance", None) is not None:
            made.add_guidance()
    if smaller == config:
        raise UserError(
            f"shrink:depth={depth:g},width={width:g} leaves the {config['kind']} as it is: pass smaller shares, or "
            "--task.student with an architecture"
        )
    transplant(network, made)
    return made.requires_grad_(True).train()


def _smaller(config: dict[str, Any], depth: float, width: float) -> dict[str, Any]:
    if config["kind"] == "mlp":
        config["depth"] = count_left(config["depth"], depth)
        config["width"] = max(1, round(config["width"] * width))
        return config
    options = config["options"]
    if config["kind"] == "DiTTransformer2DModel":
        options["num_layers"] = count_left(options["num_layers"], depth)
        options["num_attention_heads"] = fewer_heads(options["num_attention_heads"], width)
        return config
    layers = options["layers_per_block"]
    many = isinstance(layers, (list, tuple))
    options["layers_per_block"] = (
        [count_left(n, depth) for n in layers] if many else count_left(layers, depth)
    )
    if width != 1:
        unit = math.lcm(*_units(options))
        options["block_out_channels"] = [
            min(size, unit * max(1, round(size * width / unit))) for size in options["block_out_channels"]
        ]
    return config


def _units(options: dict[str, Any]) -> list[int]:
    """Numbers that a U-Net's channels have to be multiples of."""
    found = [
        options.get("norm_num_groups"),
        options.get("attention_head_dim"),
        options.get("num_attention_heads"),
    ]
    flat = [one for each in found for one in (each if isinstance(each, (list, tuple)) else [each])]
    return [one for one in flat if isinstance(one, int) and one > 0]

"""From an architecture's name to a denoising network with reproducible initial weights."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from stillroom.errors import UserError
from stillroom.models.denoisers.adapters import AdaptedNetwork
from stillroom.models.denoisers.library import Wrapped, diffusers, wrap
from stillroom.models.denoisers.mixture import MixtureNetwork, mixture_from
from stillroom.models.denoisers.residual import ResidualMLP

EXAMPLES = "mlp:256x4, unet:32-64, dit:64x4@2"
HEAD = 16
"""Channels of an attention head in the small transformers."""


def build_denoiser_network(name: str, *, shape: Sequence[int], classes: int, seed: int) -> nn.Module:
    """The network called `name` for samples of `shape`, with initial weights that depend on `seed` alone.

    `mlp:WIDTHxDEPTH` is a residual perceptron, `unet:CHANNELS-CHANNELS` diffusers' UNet2DModel with one residual
    block a level (sides must divide by 2 for every level but one), `dit:WIDTHxDEPTH@PATCH` diffusers'
    DiTTransformer2DModel. `classes` > 0 makes it conditional on labels 0 .. classes. Raises UserError for a
    malformed name, and for samples that the network does not take.
    """
    made = None
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        if match := re.fullmatch(r"mlp:(\d+)x(\d+)", name):
            made = ResidualMLP(shape, classes, int(match[1]), int(match[2]))
        elif match := re.fullmatch(r"unet:(\d+(?:-\d+)*)", name):
            made = _unet([int(c) for c in match[1].split("-")], shape, classes, name)
        elif match := re.fullmatch(r"dit:(\d+)x(\d+)@(\d+)", name):
            made = _dit(int(match[1]), int(match[2]), int(match[3]), shape, classes, name)
    if made is None:
        raise UserError(f"architecture '{name}' is not of a known form: write one like {EXAMPLES}")
    return made


def _image(shape: Sequence[int], stride: int, name: str) -> tuple[int, int, int]:
    if len(shape) != 3:
        raise UserError(f"architecture '{name}' is for images, the data are {tuple(shape)}: pass mlp:128x3")
    channels, height, width = shape
    if height != width or height % stride:
        raise UserError(
            f"architecture '{name}' needs square images whose side divides by {stride}, the data are "
            f"{height}x{width}: pass --task.image-size {max(stride, round(height / stride) * stride)}, or fewer "
            "levels"
        )
    return channels, height, width


def _unet(widths: list[int], shape: Sequence[int], classes: int, name: str) -> Wrapped:
    channels, side, _ = _image(shape, 2 ** (len(widths) - 1), name)
    if any(width % 8 for width in widths):
        raise UserError(
            f"architecture '{name}' has channels that do not divide by 8: write one like {EXAMPLES}"
        )
    lowest = len(widths) - 1
    model = diffusers().UNet2DModel(
        sample_size=side,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=1,
        block_out_channels=widths,
        norm_num_groups=8,
        attention_head_dim=8,
        down_block_types=[
            "AttnDownBlock2D" if i == lowest and i else "DownBlock2D" for i in range(len(widths))
        ],
        up_block_types=["AttnUpBlock2D" if i == 0 and lowest else "UpBlock2D" for i in range(len(widths))],
        num_class_embeds=classes + 1 if classes else None,
    )
    return wrap(model)


def _dit(width: int, depth: int, patch: int, shape: Sequence[int], classes: int, name: str) -> Wrapped:
    channels, side, _ = _image(shape, patch, name)
    if width % HEAD:
        raise UserError(f"architecture '{name}' has a width that does not divide by {HEAD}: pass dit:64x4@2")
    model = diffusers().DiTTransformer2DModel(
        num_attention_heads=width // HEAD,
        attention_head_dim=HEAD,
        in_channels=channels,
        out_channels=channels,
        num_layers=depth,
        sample_size=side,
        patch_size=patch,
        num_embeds_ada_norm=max(classes, 1),
    )
    return wrap(model)


def network_from_config(config: dict[str, Any], own: nn.Module | None = None) -> nn.Module:
    """The untrained network that `network_config` described; `own` is the user's base of an adapted one."""
    if config["kind"] == "adapted":
        if isinstance(own, AdaptedNetwork):
            return own
        if own is None and config["base"] is None:
            raise UserError("the adapted network is the user's own: pass load_sampler(folder, network)")
        base = network_from_config(config["base"]) if own is None else own
        return AdaptedNetwork.from_config(base, config)
    if config["kind"] == "mlp":
        return ResidualMLP(config["shape"], config["classes"], config["width"], config["depth"])
    if config["kind"] == "mixture":
        return mixture_from(config)
    model = getattr(diffusers(), config["kind"])
    return wrap(model.from_config(config["options"]))


def network_config(network: nn.Module) -> dict[str, Any] | None:
    """What makes the architecture of `network` again; None for a module of the user's own."""
    if isinstance(network, (ResidualMLP, MixtureNetwork, AdaptedNetwork)):
        return network.config()
    if isinstance(network, Wrapped):
        options = {key: value for key, value in network.options.items() if not key.startswith("_")}
        return {"kind": type(network.model).__name__, "options": options}
    return None

"""Copies of a network that are narrower after its stem, and have fresh weights."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.errors import UserError
from stillroom.models import build, describe, shrink
from stillroom.models.names import sizes_of
from stillroom.models.probing import quietly
from stillroom.models.smaller import timm_changes
from stillroom.models.transplanting import transplant
from stillroom.models.wrapping import Description, core_of, rewrapped
from stillroom.seeds import seeded

Maker = Callable[[int], nn.Module]
"""A seed to a network with weights that depend on it."""
SIZES = ("channels", "dims")
"""timm's options that say the widths of stages, one after the other."""


def maker(
    network: nn.Module, stem: Sequence[str], width: float, example: Tensor, keep_weights: bool = False
) -> Maker:
    """Makes networks like `network` with `width` in (0, 1] of the channels after the modules at `stem`.

    Networks that Stillroom builds by name, and timm's whose options say the widths of stages (ResNet and ConvNeXt and
    their kin), are made anew; the narrowest one whose stem has the same sizes is taken. Others keep their width, with
    a warning. The weights are fresh or, with `keep_weights`, those of `network`, their leading part where less is
    left. Of a module of the user's own, layers with a `reset_parameters` are drawn anew and the rest is copied.
    """
    core = core_of(network)
    shape, classes = tuple(example.shape[1:]), _outputs(network, example)
    said: Description | None = describe(core)
    if width != 1:
        narrow = next(_narrower(network, core, said, stem, width, example, classes), None)
        said = said if narrow is None else narrow
        if narrow is None:
            warnings.warn(
                f"{type(core).__name__} cannot be made narrower after its stem alone: its branches have their full "
                "width; pass --method.width 1 to have it so",
                stacklevel=3,
            )

    def make(seed: int) -> nn.Module:
        if said is None:
            made = copy.deepcopy(network).requires_grad_(True)
            return made if keep_weights else _redrawn(made, seed)
        made = rewrapped(network, build(said, shape=shape, classes=classes, seed=seed))
        if keep_weights:
            transplant(network, made)
        return made.train()

    return make


def _narrower(
    network: nn.Module,
    core: nn.Module,
    said: Description | None,
    stem: Sequence[str],
    width: float,
    example: Tensor,
    classes: int,
) -> Iterator[Description]:
    """Descriptions of narrower networks whose stem is as large as that of `network`, the narrowest first."""
    if said is None:
        return
    try:
        least = describe(core_of(shrink(network, 1.0, width, example=example)))
    except UserError:
        return
    before = sum(value.numel() for value in core.parameters())
    for wanted in _between(core, said, least):
        try:
            inner = build(wanted, shape=tuple(example.shape[1:]), classes=classes, seed=0)
        except UserError:
            continue
        fits = _sizes(rewrapped(network, inner), stem) == _sizes(network, stem)
        if fits and sum(value.numel() for value in inner.parameters()) < before:
            yield wanted


def _between(core: nn.Module, said: Description, least: Description | None) -> Iterator[Description]:
    """From `least`, where all is narrow, to all but the last stage at full width."""
    if isinstance(said, str) and isinstance(least, str):
        family, full, blocks = sizes_of(said)
        if family not in ("cnn", "mlp", "resnet"):
            return
        narrow, tail = sizes_of(least)[1], f"@{blocks}" if blocks not in (None, 1) else ""
        for wide in range(len(full)):
            yield f"{family}:{'-'.join(map(str, [*full[:wide], *narrow[wide:]]))}{tail}"
    elif isinstance(least, dict) and least.get("library") == "timm":
        options = least["options"]
        for key in (key for key in SIZES if key in options):
            full = _full(core, key)
            for wide in range(len(full)):
                yield {**least, "options": {**options, key: (*full[:wide], *options[key][wide:])}}


def _full(core: nn.Module, key: str) -> Sequence[int]:
    """The option `key` of a timm network as it is: what a width next to 1 makes of it."""
    return next(
        (changes[key] for changes in islice(timm_changes(core, 1.0, 1 - 1e-9), 4) if key in changes), ()
    )


def _sizes(network: nn.Module, stem: Sequence[str]) -> list[Any]:
    modules = dict(network.named_modules())
    return [
        {key: tuple(value.shape) for key, value in modules[path].state_dict().items()}
        if path in modules
        else None
        for path in stem
    ]


def _outputs(network: nn.Module, example: Tensor) -> int:
    with quietly(network):
        return int(network(example).shape[-1])


def _redrawn(network: nn.Module, seed: int) -> nn.Module:
    with seeded(seed), torch.no_grad():
        for part in network.modules():
            reset = getattr(part, "reset_parameters", None)
            if callable(reset):
                reset()
    return network.train()

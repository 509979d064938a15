"""From an architecture's name to a network with reproducible initial weights."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

import torch
from torch import nn

from stillroom.errors import UserError
from stillroom.models.cnn import cnn
from stillroom.models.convnet import convnet
from stillroom.models.libraries import from_timm, from_torchvision
from stillroom.models.mlp import mlp
from stillroom.models.resnet import ResNet

OURS = ("mlp", "cnn", "resnet", "convnet")
FAMILIES = (*OURS, "timm", "torchvision")
EXAMPLES = "mlp:256-128, cnn:16-32, resnet:16-32-64@2, timm:resnet18, torchvision:resnet18"


def build(name: str, *, shape: Sequence[int], classes: int, seed: int, pretrained: bool = False) -> nn.Module:
    """The classifier called `name`, in training mode, with initial weights that depend on `seed` alone.

    `name` is a family and what it takes: `mlp:256-128` (hidden widths), `cnn:16-32` (channels),
    `resnet:16-32-64@2` (channels, blocks a stage), `convnet:32x3` (channels, blocks), `timm:NAME` or
    `torchvision:NAME`. `shape` is (channels, height, width). The network takes `[N, *shape]` and gives logits
    `[N, classes]`. With `pretrained` a library's published weights are loaded, and the head is new where its
    number of classes differs. The caller's random state is untouched.

    Raises UserError for an unknown name, malformed widths, a shape that the network does not take, and
    weights that cannot be had.
    """
    _check_sizes(shape, classes)
    family, detail = split(name)
    if pretrained and family in OURS:
        raise UserError(f"architecture {name!r} has no pretrained weights: drop 'pretrained' or use timm")
    # The generator itself is seeded: torch.manual_seed would also reseed every accelerator's for the caller.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        if family == "timm":
            return from_timm(detail, shape, classes, pretrained)
        if family == "torchvision":
            return from_torchvision(detail, shape, classes, pretrained)
        return _ours(name, family, detail, shape, classes)


def split(name: str) -> tuple[str, str]:
    """The family and the detail of an architecture's name; UserError, with the nearest family, for others."""
    family, colon, detail = name.partition(":")
    if family in FAMILIES and detail:
        return family, detail
    if family in FAMILIES or not colon:
        raise UserError(f"architecture {name!r} is not of the form FAMILY:DETAIL: write one like {EXAMPLES}")
    near = difflib.get_close_matches(family.lower(), FAMILIES, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}:{detail}'?" if near else f"write one like {EXAMPLES}"
    raise UserError(f"architecture {name!r} is of no known family ({', '.join(FAMILIES)}): {hint}")


def buildable(name: object) -> bool:
    """Whether `name` has the form of an architecture that `build` knows."""
    return isinstance(name, str) and name.partition(":")[0] in FAMILIES and ":" in name


def _check_sizes(shape: Sequence[int], classes: int) -> None:
    if len(shape) != 3 or min(shape) < 1:
        raise UserError(f"shape {tuple(shape)} is not three positive numbers: pass (channels, height, width)")
    if classes < 1:
        raise UserError(f"{classes} classes cannot be told apart: pass a positive number of classes")


def _ours(name: str, family: str, detail: str, shape: Sequence[int], classes: int) -> nn.Module:
    if family == "convnet":
        sizes = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", detail, flags=re.ASCII)
        if sizes is None:
            raise UserError(
                f"architecture {name!r} has malformed sizes {detail!r}: write them like 'convnet:32x3'"
            )
        return convnet(shape, classes, int(sizes[1]), int(sizes[2]))
    blocks = r"(?:@(\d+))?" if family == "resnet" else "()"
    match = re.fullmatch(rf"(\d+(?:-\d+)*){blocks}", detail, flags=re.ASCII)
    widths = [int(width) for width in match[1].split("-")] if match else []
    depth = int((match and match[2]) or 1)
    if not widths or min(widths) < 1 or depth < 1:
        example = {"mlp": "mlp:256-128", "cnn": "cnn:16-32", "resnet": "resnet:16-32-64@2"}[family]
        raise UserError(f"architecture {name!r} has malformed widths {detail!r}: write them like {example!r}")
    if family == "resnet":
        return ResNet(shape, classes, widths, depth)
    return (mlp if family == "mlp" else cnn)(shape, classes, widths)

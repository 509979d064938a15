"""From an architecture's name to a network with reproducible initial weights."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from stillroom.errors import UserError
from stillroom.models.cnn import cnn
from stillroom.models.convnet import convnet
from stillroom.models.described import from_description
from stillroom.models.libraries import from_timm, from_torchvision
from stillroom.models.mlp import mlp
from stillroom.models.resnet import ResNet
from stillroom.models.wrapping import told
from stillroom.seeds import seeded

OURS = ("mlp", "cnn", "resnet", "convnet")
VISION = ("timm", "torchvision")
FAMILIES = (*OURS, *VISION, "transformers")
EXAMPLES = "mlp:256-128, cnn:16-32, resnet:16-32-64@2, timm:resnet18, torchvision:resnet18, ./my-model"
FOLDERS = (".", "/", "~")
"""What the name of a folder begins with."""


def build(
    name: str | Mapping[str, object],
    *,
    shape: Sequence[int],
    classes: int,
    seed: int,
    pretrained: bool = False,
) -> nn.Module:
    """The classifier called `name`, in training mode, with initial weights that depend on `seed` alone.

    `name` is a family and what it takes: `mlp:256-128` (hidden widths), `cnn:16-32` (channels),
    `resnet:16-32-64@2` (channels, blocks a stage), `convnet:32x3` (channels, blocks), `timm:NAME`,
    `torchvision:NAME` or `transformers:NAME`; a folder, `./my-model`, with its weights (see `local`); or
    `config:./my-model`, its architecture alone. It may be a description, an object from a student's config, as well.
    `shape` is (channels, height, width). The network takes `[N, *shape]` and gives logits `[N, classes]`. With
    `pretrained` a library's published weights are loaded, and the head is new where its number of classes differs.
    The caller's random state is untouched.

    Raises UserError for an unknown name, malformed widths, a shape that the network does not take, and
    weights that cannot be had.
    """
    _check_sizes(shape, classes)
    with seeded(seed), torch.device("cpu"):
        if not isinstance(name, str):
            return from_description(name, shape, classes)
        folder = folder_in(name)
        if folder is not None:
            from stillroom.models.local import open_folder

            fresh = name.startswith("config:")
            return open_folder(folder, library_in(name), shape=shape, classes=classes, fresh=fresh).network
        return named(name, shape, classes, pretrained)


def named(name: str, shape: Sequence[int], classes: int, pretrained: bool = False) -> nn.Module:
    """As `build`, for the name of an architecture that is no folder, with weights from torch's global generator."""
    family, detail = split(name)
    if pretrained and family in OURS:
        raise UserError(f"architecture {name!r} has no pretrained weights: drop 'pretrained' or use timm")
    if family == "timm":
        return told(from_timm(detail, shape, classes, pretrained), name)
    if family == "torchvision":
        return told(from_torchvision(detail, shape, classes, pretrained), name)
    if family == "transformers":
        from stillroom.models.transformers_images import from_hub

        return from_hub(detail, shape, classes, pretrained)
    try:
        return told(_ours(name, shape, classes), name)
    except (MemoryError, OverflowError, RuntimeError, TypeError) as error:
        # which of them depends on how far it is too large
        raise UserError(
            f"architecture {name!r} is larger than this machine's memory: write smaller sizes"
        ) from error


def split(name: str) -> tuple[str, str]:
    """The family and the detail of an architecture's name; UserError, with the nearest family, for others."""
    family, colon, detail = name.partition(":")
    if family in FAMILIES and detail:
        return family, detail
    if not colon and name and Path(name).is_dir():
        raise UserError(f"architecture {name!r} is a folder: write ./{name}")
    if family in FAMILIES or not colon:
        raise UserError(f"architecture {name!r} is not of the form FAMILY:DETAIL: write one like {EXAMPLES}")
    near = difflib.get_close_matches(family.lower(), FAMILIES, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}:{detail}'?" if near else f"write one like {EXAMPLES}"
    raise UserError(f"architecture {name!r} is of no known family ({', '.join(FAMILIES)}): {hint}")


def folder_in(name: str) -> Path | None:
    """The folder that a name means, or None: one that begins with `./`, `/` or `~`, after a library or `config:`.

    `transformers:NAME` and `diffusers:NAME` are folders too where there is such a one.
    """
    prefix, _, rest = name.partition(":")
    if name.startswith(FOLDERS):
        return Path(name).expanduser()
    if prefix not in ("config", "timm", "transformers", "diffusers") or not rest:
        return None
    if prefix in ("config", "diffusers") or rest.startswith(FOLDERS):
        return Path(rest).expanduser()
    return Path(rest) if prefix == "transformers" and Path(rest).is_dir() else None


def weighty(name: str) -> Path | None:
    """The folder that a name means, where its weights are meant too."""
    return None if name.startswith("config:") else folder_in(name)


def library_in(name: str) -> str | None:
    """The library that a folder's name asks to be read by; None where the folder itself is to say it."""
    prefix = name.partition(":")[0]
    return prefix if prefix in ("timm", "transformers", "diffusers") else None


def buildable(name: object) -> bool:
    """Whether `name` is a description, or has the form of an architecture's name, that `build` needs no file for."""
    if isinstance(name, Mapping):
        return "library" in name
    return isinstance(name, str) and name.partition(":")[0] in (*OURS, *VISION) and ":" in name


def _check_sizes(shape: Sequence[int], classes: int) -> None:
    if len(shape) != 3 or min(shape) < 1:
        raise UserError(f"shape {tuple(shape)} is not three positive numbers: pass (channels, height, width)")
    if classes < 1:
        raise UserError(f"{classes} classes cannot be told apart: pass a positive number of classes")


def sizes_of(name: str) -> tuple[str, list[int], int | None]:
    """Family, widths and blocks (None where it has none) in the name of one of our own networks.

    Raises UserError for malformed sizes.
    """
    family, detail = split(name)
    if family == "convnet":
        sizes = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", detail, flags=re.ASCII)
        if sizes is None:
            raise UserError(
                f"architecture {name!r} has malformed sizes {detail!r}: write them like 'convnet:32x3'"
            )
        return family, [int(sizes[1])], int(sizes[2])
    blocks = r"(?:@(\d+))?" if family == "resnet" else "()"
    match = re.fullmatch(rf"(\d+(?:-\d+)*){blocks}", detail, flags=re.ASCII)
    widths = [int(width) for width in match[1].split("-")] if match else []
    depth = int((match and match[2]) or 1)
    if not widths or min(widths) < 1 or depth < 1:
        example = {"mlp": "mlp:256-128", "cnn": "cnn:16-32", "resnet": "resnet:16-32-64@2"}[family]
        raise UserError(f"architecture {name!r} has malformed widths {detail!r}: write them like {example!r}")
    return family, widths, depth if family == "resnet" else None


def _ours(name: str, shape: Sequence[int], classes: int) -> nn.Module:
    family, widths, depth = sizes_of(name)
    if family == "convnet":
        return convnet(shape, classes, widths[0], depth or 1)
    if family == "resnet":
        return ResNet(shape, classes, widths, depth or 1)
    return (mlp if family == "mlp" else cnn)(shape, classes, widths)

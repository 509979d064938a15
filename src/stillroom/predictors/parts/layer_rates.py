"""Learning rates by depth, for who fine-tunes a distilled backbone in a loop of their own.

A backbone that was distilled for long has fine features that a usual learning rate destroys; a lower one throughout
converges too slowly (arXiv:2103.05959, and the authors' documentation, "Adjust the learning rate of the middle
layer"). So its early stages are given small multiples of the rate, and the new head the rate itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from stillroom.errors import UserError

RESNET_CLASSIFICATION = (0.1, 0.1, 0.2, 0.2, 0.3)
"""Published for ResNet50-D: the stem and the four stages, to classify."""
RESNET_DETECTION = (0.05, 0.05, 0.05, 0.1, 0.15)
"""Published for ResNet50-D as a detector's backbone (a table beside it has 0.05, 0.05, 0.1, 0.1, 0.15)."""
MOBILENET_V3_LARGE = (0.25, 0.25, 0.5, 0.5, 0.75)
"""Published for MobileNetV3-large, 15 blocks in five groups of three; the stem goes with the first."""

_RESNET = [r"(conv1|bn1|maxpool|stem)\b", r"layer1\b", r"layer2\b", r"layer3\b", r"layer4\b"]
_MOBILENET_TIMM = [  # timm's stages of MobileNetV3-large hold 1, 2, 3, 4, 2 and 3 blocks
    r"conv_stem\b|bn1\b|blocks\.[01]\.",
    r"blocks\.2\.",
    r"blocks\.3\.[0-2]\.",
    r"blocks\.3\.3\.|blocks\.4\.",
    r"blocks\.5\.",
]
_MOBILENET_TORCHVISION = [r"features\.[0-3]\."] + [
    rf"features\.({i}|{i + 1}|{i + 2})\." for i in (4, 7, 10, 13)
]
STAGES: Mapping[str, Sequence[str]] = {
    "resnet": _RESNET,
    "mobilenet-v3-large": _MOBILENET_TIMM,
    "mobilenet-v3-large, torchvision": _MOBILENET_TORCHVISION,
}
"""Patterns that a parameter's name begins with, a pattern a stage: timm's and torchvision's names."""


def parameter_groups(
    network: nn.Module, stages: str | Sequence[str], multipliers: Sequence[float], lr: float
) -> list[dict[str, Any]]:
    """Groups for an optimizer of torch: parameters of stage i at multipliers[i] x `lr`, all others at `lr`.

    `stages` is a name of `STAGES`, or a pattern (a regular expression) for the names of each stage's parameters, in
    order; the first that matches a name's beginning has it. Each group has `params`, `lr` and a `name`. Raises
    UserError where a stage has no parameter, or stages and multipliers differ in number.
    """
    if isinstance(stages, str) and stages not in STAGES:
        raise UserError(f"stages {stages!r} are not known: pass one of {', '.join(STAGES)}, or patterns")
    patterns = STAGES[stages] if isinstance(stages, str) else list(stages)
    if len(patterns) != len(multipliers) or min(multipliers, default=0) < 0:
        raise UserError(
            f"{len(patterns)} stages have multipliers {list(multipliers)}: pass one >= 0 for each"
        )
    groups: list[dict[str, Any]] = [
        {"params": [], "lr": lr * by, "name": f"stage {i}"} for i, by in enumerate(multipliers)
    ]
    groups.append({"params": [], "lr": lr, "name": "rest"})
    for name, parameter in network.named_parameters():
        at = next((i for i, stage in enumerate(patterns) if re.match(stage, name)), -1)
        groups[at]["params"].append(parameter)
    for group, wanted in zip(groups, patterns, strict=False):
        if not group["params"]:
            raise UserError(
                f"no parameter of {type(network).__name__} begins with '{wanted}', which {group['name']} is made of: "
                "pass patterns that fit its names"
            )
    return groups

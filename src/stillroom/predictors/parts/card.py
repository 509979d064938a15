"""The model card beside an exported classifier."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stillroom.exporting.card import Card, arm_rows
from stillroom.models.libraries import timm_options


def write_card(folder: Path, config: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Write README.md: what the network is, how it was made, how good it is, how to load it."""
    card(config, about).write(folder, about)


def card(config: Mapping[str, Any], about: Mapping[str, Any]) -> Card:
    """The card of the classifier that `config` describes and the run `about` made."""
    return Card(
        title=f"{config['network']} distilled with {about['method']}",
        tags=("distillation", "image-classification"),
        front={"pipeline_tag": "image-classification"},
        table=[("", "accuracy", "calibration error", "parameters"), *arm_rows(about, cells)],
        facts=[
            f"inputs: {tuple(config['shape'])}, scaled to [0, 1], then (x - mean) / std with "
            f"mean {config['normalisation']['mean']}, std {config['normalisation']['std']}"
        ],
        code=_loading(config),
    )


def cells(arm: Mapping[str, Any]) -> list[str]:
    """One arm's row of the card's table: accuracy, calibration error, parameters."""
    test = arm["test"]
    shares = [f"{test[name]:.1%}" for name in ("accuracy", "expected_calibration_error")]
    return [*shares, f"{arm['cost']['parameters']:,}"]


def _loading(config: Mapping[str, Any]) -> list[str]:
    architecture = config["architecture"]
    if architecture is None:
        return [
            "from safetensors.torch import load_file",
            f"network.load_state_dict(load_file('model.safetensors'))  # network: your own {config['network']}",
        ]
    if architecture.startswith("timm:"):
        name = architecture.removeprefix("timm:")
        options = timm_options(name, config["shape"], config["classes"])
        words = ", ".join(f"{key}={value!r}" for key, value in options.items())
        return [
            "import timm",
            f"network = timm.create_model({name!r}, {words}, checkpoint_path='model.safetensors')",
        ]
    return ["from stillroom.models import load_student", "network = load_student('.')"]

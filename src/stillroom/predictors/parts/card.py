"""The model card beside an exported classifier."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stillroom.checkpoint import write_text
from stillroom.models.libraries import timm_options


def write_card(folder: Path, config: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Write README.md: what the network is, how it was made, how good it is, how to load it."""
    lines = [
        "---",
        "library_name: stillroom",
        "tags: [distillation, image-classification]",
        "---",
        f"# {config['network']} distilled with {about['method']}",
        "",
        about["verdict"]["text"],
        "",
        "| | accuracy | calibration error | parameters |",
        "|---|---|---|---|",
        *(row(name, arm) for name, arm in about["arms"].items()),
        "",
        f"- data: {about['data']['name']}, {about['data']['student sees']} training samples seen by the student",
        f"- method: {about['method']} ({about['source']}), options {dict(about['options'])}",
        f"- seed {about['seed']}; one run says nothing about the spread over seeds",
        f"- inputs: {tuple(config['shape'])}, scaled to [0, 1], then (x - mean) / std with "
        f"mean {config['normalisation']['mean']}, std {config['normalisation']['std']}",
        f"- made by: `{about['command']}`",
        "",
        "## Load it",
        "",
        "```python",
        *_loading(config),
        "```",
        "",
    ]
    write_text(folder / "README.md", "\n".join(lines))


def row(name: str, arm: Mapping[str, Any]) -> str:
    """One arm's line of the card's table: accuracy, calibration error, parameters."""
    test = arm["test"]
    numbers = (
        f"{test['accuracy']:.1%} | {test['expected_calibration_error']:.1%} | {arm['cost']['parameters']:,}"
    )
    return f"| {name} | {numbers} |"


def _loading(config: Mapping[str, Any]) -> list[str]:
    architecture = config["architecture"]
    if architecture is None:
        return [
            "from safetensors.torch import load_file",
            f"network.load_state_dict(load_file('model.safetensors'))  # network: your own {config['network']}",
        ]
    if isinstance(architecture, str) and architecture.startswith("timm:"):
        name = architecture.removeprefix("timm:")
        options = timm_options(name, config["shape"], config["classes"])
        architecture = {"library": "timm", "name": name, "options": options}
    if isinstance(architecture, dict) and architecture["library"] == "timm":
        name, options = architecture["name"], architecture["options"]
        words = ", ".join(f"{key}={value!r}" for key, value in options.items())
        return [
            "import timm",
            f"network = timm.create_model({name!r}, {words}, checkpoint_path='model.safetensors')",
        ]
    return ["from stillroom.models import load_student", "network = load_student('.')"]

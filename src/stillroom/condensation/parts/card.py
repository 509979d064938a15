"""The card of a condensed set: front matter that `datasets` and the hub read, and what it is and is worth."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stillroom.checkpoint import write_text

ENDING = (
    "The PNGs have 8 bits a channel and no value outside the range of pixels. The numbers as they were learnt,",
    "on which the accuracies were measured, are in `images.safetensors`: (pixel - mean) / std by `config.json`.",
    "",
    "## Load it",
    "",
    "```python",
    "from datasets import load_dataset",
    "images = load_dataset('.')['train']",
    "",
    "from pathlib import Path",
    "from stillroom.condensation.image_condensation import ImageCondensation",
    "learnt = ImageCondensation.load(Path('.'))  # learnt.images [n, C, H, W], learnt.labels [n]",
    "```",
    "",
)
"""What every card ends with."""


def write_card(
    folder: Path, about: Mapping[str, Any], rows: Mapping[str, int], networks: Sequence[str]
) -> None:
    """Write README.md: the splits with their `rows`, how the set was made, and accuracies by arm and network."""
    name, train = about["data"]["name"], rows["train"]
    lines = [
        "---",
        f"pretty_name: {json.dumps(f'{name}, condensed with ' + about['method'])}",
        "task_categories: [image-classification]",
        "tags: [dataset-distillation, stillroom]",
        "configs:",
        "- config_name: default",
        "  data_files:",
        *(f"  - {{split: {split}, path: data/{split}-*.parquet}}" for split in rows),
        "---",
        f"# {train} images that stand for {name}",
        "",
        about["verdict"]["text"],
        "",
        f"| accuracy on real test images of | {' | '.join(networks)} |",
        f"|---{'|---' * len(networks)}|",
        *(_row(arm, entry["test"], networks) for arm, entry in about["arms"].items()),
        "",
        f"- train: {train} condensed images, {about['data']['images per class']} a class, fixed labels",
        *(
            f"- {split}: {count} real images, as they came"
            for split, count in rows.items()
            if split != "train"
        ),
        f"- method: {about['method']} ({about['source']}), options {dict(about['options'])}",
        f"- seed {about['seed']}; one run says nothing about the spread over seeds",
        f"- made by: `{about['command']}`",
        "",
        *ENDING,
    ]
    write_text(folder / "README.md", "\n".join(lines))


def _row(arm: str, test: Mapping[str, Any], networks: Sequence[str]) -> str:
    return f"| {arm} | " + " | ".join(f"{test[f'{name}_accuracy']:.1%}" for name in networks) + " |"

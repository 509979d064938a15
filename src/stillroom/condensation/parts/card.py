"""The card of a condensed set: front matter that `datasets` and the hub read, and what it is and is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stillroom.exporting.card import Card, arm_rows

CODE = (
    "from datasets import load_dataset",
    "images = load_dataset('.')['train']",
    "",
    "from pathlib import Path",
    "from stillroom.condensation.image_condensation import ImageCondensation",
    "learnt = ImageCondensation.load(Path('.'))  # learnt.images [n, C, H, W], learnt.labels [n]",
)
PRECISION = (
    "The PNGs have 8 bits a channel and no value outside the range of pixels. The numbers as they were learnt, on "
    "which the accuracies were measured, are in `images.safetensors`: (pixel - mean) / std by `config.json`."
)


def write_card(
    folder: Path, about: Mapping[str, Any], rows: Mapping[str, int], networks: Sequence[str]
) -> None:
    """Write README.md: the splits with their `rows`, how the set was made, and accuracies by arm and network."""
    card(about, rows, networks).write(folder, about)


def card(about: Mapping[str, Any], rows: Mapping[str, int], networks: Sequence[str]) -> Card:
    """The card of a set whose splits have these `rows`, judged by these `networks`."""
    name, train = about["data"]["name"], rows["train"]
    splits = [{"split": split, "path": f"data/{split}-*.parquet"} for split in rows]
    real = [
        f"{split}: {count} real images, as they came" for split, count in rows.items() if split != "train"
    ]

    def cells(arm: Mapping[str, Any]) -> list[str]:
        return [f"{arm['test'][f'{network}_accuracy']:.1%}" for network in networks]

    return Card(
        title=f"{train} images that stand for {name}",
        tags=("dataset-distillation",),
        front={
            "pretty_name": f"{name}, condensed with {about['method']}",
            "task_categories": ["image-classification"],
            "configs": [{"config_name": "default", "data_files": splits}],
        },
        table=[("accuracy on real test images of", *networks), *arm_rows(about, cells)],
        facts=[
            f"train: {train} condensed images, {about['data']['images per class']} a class, fixed labels",
            *real,
        ],
        code=CODE,
        ending=[PRECISION],
    )

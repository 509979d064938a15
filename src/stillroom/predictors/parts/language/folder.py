"""The folder of a distilled language model: one that transformers reads, with its tokenizer and a card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from stillroom.errors import UserError
from stillroom.exporting.card import Card, arm_rows
from stillroom.models.text_files import save_text
from stillroom.models.texts import Causal


def export(product: nn.Module, tokenizer: Any, folder: Path, name: str, about: Mapping[str, Any]) -> None:
    """Write `product` and its tokenizer to `folder`: as transformers does, or bare weights for another network."""
    data = about["data"]
    told = {key: data[key] for key in ("length", "packing")} | {"network": name, "classes": []}
    made_by = {"method": about["method"], "data": data["name"], "seed": about["seed"]}
    save_text(folder, product, tokenizer, told | {"made_by": made_by})
    card(name, isinstance(product, Causal), about).write(folder, about)


def student_of(folder: Path) -> Path:
    """The folder of the weights: that of a run's student, or the folder itself; UserError where there is none."""
    place = folder / "student" if (folder / "student").is_dir() else folder
    if not (place / "config.json").is_file():
        raise UserError(
            f"--task.teacher-weights '{folder}' holds no model: pass a finished run, or a transformers folder"
        )
    return place


def card(name: str, ours: bool, about: Mapping[str, Any]) -> Card:
    """The card of the language model called `name`; `ours`: it is kept as transformers keeps it."""
    way = [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "model, tokenizer = AutoModelForCausalLM.from_pretrained('.'), AutoTokenizer.from_pretrained('.')",
    ]
    other = [
        "from safetensors.torch import load_file",
        "network.load_state_dict(load_file('model.safetensors'))",
    ]
    return Card(
        title=f"{name} distilled with {about['method']}",
        tags=("distillation",),
        front={"pipeline_tag": "text-generation", **({"library_name": "transformers"} if ours else {})},
        table=[("", "nats a token", "bits a byte", "parameters"), *arm_rows(about, _cells)],
        facts=[f"rows of {about['data']['length']} tokens"],
        code=way if ours else other,
    )


def _cells(arm: Mapping[str, Any]) -> list[str]:
    test = arm["test"]
    numbers = [f"{test[name]:.3f}" for name in ("nats_per_token", "bits_per_byte")]
    return [*numbers, f"{arm['cost'].get('parameters', 0):,}"]

"""The folder of a distilled language model: one that transformers reads, with its tokenizer and a card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from stillroom.checkpoint import write_text
from stillroom.errors import UserError
from stillroom.models.text_files import save_text
from stillroom.models.texts import Causal


def export(product: nn.Module, tokenizer: Any, folder: Path, name: str, about: Mapping[str, Any]) -> None:
    """Write `product` and its tokenizer to `folder`: as transformers does, or bare weights for another network."""
    data = about["data"]
    told = {key: data[key] for key in ("length", "packing")} | {"network": name, "classes": []}
    made_by = {"method": about["method"], "data": data["name"], "seed": about["seed"]}
    save_text(folder, product, tokenizer, told | {"made_by": made_by})
    write_text(folder / "README.md", "\n".join(_card(name, isinstance(product, Causal), about)))


def student_of(folder: Path) -> Path:
    """The folder of the weights: that of a run's student, or the folder itself; UserError where there is none."""
    place = folder / "student" if (folder / "student").is_dir() else folder
    if not (place / "config.json").is_file():
        raise UserError(
            f"--task.teacher-weights '{folder}' holds no model: pass a finished run, or a transformers folder"
        )
    return place


def _card(name: str, ours: bool, about: Mapping[str, Any]) -> list[str]:
    rows = [
        f"| {arm} | {row['test']['nats_per_token']:.3f} | {row['test']['bits_per_byte']:.3f} | "
        f"{row['cost'].get('parameters', 0):,} |"
        for arm, row in about["arms"].items()
    ]
    way = [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "model, tokenizer = AutoModelForCausalLM.from_pretrained('.'), AutoTokenizer.from_pretrained('.')",
    ]
    other = [
        "from safetensors.torch import load_file",
        "network.load_state_dict(load_file('model.safetensors'))",
    ]
    data = about["data"]
    return [
        "---",
        "library_name: transformers" if ours else "library_name: stillroom",
        "pipeline_tag: text-generation",
        "tags: [distillation]",
        "---",
        f"# {name} distilled with {about['method']}",
        "",
        about["verdict"]["text"],
        "",
        "| | nats a token | bits a byte | parameters |",
        "|---|---|---|---|",
        *rows,
        "",
        f"- data: {data['name']}, {data['student sees']} of {data['length']} tokens seen by the student",
        f"- method: {about['method']} ({about['source']}), options {dict(about['options'])}",
        f"- seed {about['seed']}; one run says nothing about the spread over seeds",
        f"- made by: `{about['command']}`",
        "",
        "## Load it",
        "",
        "```python",
        *(way if ours else other),
        "```",
        "",
    ]

"""The folder of a distilled language model: one that transformers reads, with its tokenizer and a card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from stillroom.checkpoint import write_text
from stillroom.errors import UserError, reason
from stillroom.models.files import load_student, save_student
from stillroom.models.texts import Causal


def export(product: nn.Module, tokenizer: Any, folder: Path, name: str, about: Mapping[str, Any]) -> None:
    """Write `product` and its tokenizer to `folder`: as transformers does, or bare weights for another network."""
    folder.mkdir(parents=True, exist_ok=True)
    ours = isinstance(product, Causal) and hasattr(product.network, "save_pretrained")
    if ours:
        network: Any = product.network  # type: ignore[union-attr]
        network.save_pretrained(folder)
    else:
        save_student(folder, product, {"architecture": None, "network": name})
    tokenizer.save_pretrained(folder)
    write_text(folder / "README.md", "\n".join(_card(name, ours, about)))


def load(folder: Path, module: nn.Module | None = None) -> nn.Module:
    """The language model in `folder`, in eval mode; `module` takes the weights of a user's own network."""
    if module is not None:
        return load_student(folder, module)
    from transformers import AutoModelForCausalLM

    try:
        return Causal(AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)).eval()
    except Exception as error:  # of several libraries, by file
        raise UserError(
            f"'{folder}' holds no language model ({reason(error)}): pass the student folder of a finished run, or "
            "load(folder, module=...) for a network of your own"
        ) from error


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

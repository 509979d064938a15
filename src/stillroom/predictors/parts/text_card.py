"""The model card beside an exported classifier of texts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stillroom.exporting.card import Card, arm_rows
from stillroom.predictors.parts.card import cells


def write_text_card(folder: Path, config: Mapping[str, Any], about: Mapping[str, Any], form: str) -> None:
    """Write README.md: what the network is, how it was made, how good it is, how to load it.

    `form` is 'transformers', 'sentence-transformers' or 'module', the kinds of folder that a student is kept in.
    """
    text_card(config, about, form).write(folder, about)


def text_card(config: Mapping[str, Any], about: Mapping[str, Any], form: str) -> Card:
    """The card of the classifier of texts that `config` describes; see `write_text_card`."""
    return Card(
        title=f"{config['network']} distilled with {about['method']}",
        tags=("distillation", "text-classification"),
        front={
            "library_name": "stillroom" if form == "module" else "transformers",
            "pipeline_tag": "text-classification",
        },
        table=[("", "accuracy", "calibration error", "parameters"), *arm_rows(about, cells)],
        facts=[
            f"classes: {', '.join(config['classes'])}",
            f"inputs: at most {config['length']} tokens of the tokenizer in this folder; longer texts were cut",
        ],
        code=LOADING[form],
    )


LOADING = {
    "transformers": [
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer",
        "network = AutoModelForSequenceClassification.from_pretrained('.')",
        "tokenizer = AutoTokenizer.from_pretrained('.')",
        "logits = network(**tokenizer(['a text'], return_tensors='pt')).logits",
    ],
    "sentence-transformers": [
        "from sentence_transformers import SentenceTransformer",
        "logits = SentenceTransformer('.').encode(['a text'])",
    ],
    "module": [
        "from stillroom.models.text_files import load_text",
        "network = load_text(Path('.'), module)  # module: your own network",
    ],
}
"""How each kind of folder is read."""

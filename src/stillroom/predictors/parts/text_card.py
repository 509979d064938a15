"""The model card beside an exported classifier of texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stillroom.exporting.card import Card, arm_rows
from stillroom.predictors.parts.card import HEADINGS, cells


def text_card(config: Mapping[str, Any], about: Mapping[str, Any], form: str) -> Card:
    """The card of the classifier of texts that `config` describes and the run `about` made.

    `form` is 'transformers', 'sentence-transformers' or 'module', the kinds of folder that a student is kept in.
    """
    return Card(
        title=f"{config['network']} distilled with {about['method']}",
        tags=("distillation", "text-classification"),
        front={"pipeline_tag": "text-classification", **LIBRARY.get(form, {})},
        table=[HEADINGS, *arm_rows(about, cells)],
        facts=[
            f"classes: {', '.join(config['classes'])}",
            f"inputs: at most {config['length']} tokens of the tokenizer in this folder; longer texts were cut",
        ],
        code=LOADING[form],
    )


LIBRARY = {form: {"library_name": form} for form in ("transformers", "sentence-transformers")}

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

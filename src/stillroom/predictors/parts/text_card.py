"""The model card beside an exported classifier of texts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stillroom.checkpoint import write_text
from stillroom.predictors.parts.card import row


def write_text_card(folder: Path, config: Mapping[str, Any], about: Mapping[str, Any], form: str) -> None:
    """Write README.md: what the network is, how it was made, how good it is, how to load it.

    `form` is 'transformers', 'sentence-transformers' or 'module', the kinds of folder that a student is kept in.
    """
    lines = [
        "---",
        "library_name: transformers" if form != "module" else "library_name: stillroom",
        "tags: [distillation, text-classification]",
        "---",
        f"# {config['network']} distilled with {about['method']}",
        "",
        about["verdict"]["text"],
        "",
        "| | accuracy | calibration error | parameters |",
        "|---|---|---|---|",
        *(row(name, arm) for name, arm in about["arms"].items()),
        "",
        f"- data: {about['data']['name']}, {about['data']['student sees']} training texts seen by the student",
        f"- classes: {', '.join(config['classes'])}",
        f"- method: {about['method']} ({about['source']}), options {dict(about['options'])}",
        f"- seed {about['seed']}; one run says nothing about the spread over seeds",
        f"- inputs: at most {config['length']} tokens of the tokenizer in this folder; longer texts were cut",
        f"- made by: `{about['command']}`",
        "",
        "## Load it",
        "",
        "```python",
        *LOADING[form],
        "```",
        "",
    ]
    write_text(folder / "README.md", "\n".join(lines))


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

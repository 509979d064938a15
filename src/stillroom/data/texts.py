"""Text data of any origin as three sources of token ids: train, validation, test."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch

from stillroom.data.documents import Columns, Document, cut_in_three, open_texts
from stillroom.data.opening import Opened
from stillroom.data.packing import IGNORED, PAD, StreamSource, TextSource, blocks_of, packed, rows_of
from stillroom.data.parts import Part, divide
from stillroom.data.source import Source
from stillroom.data.tokens import Tokens, open_tokenizer, plain_texts, tokenise, tokenise_stream
from stillroom.errors import UserError, require

__all__ = ["IGNORED", "PAD", "TextData", "load_texts"]

Packing = Literal["none", "blocks", "documents"]


@dataclass
class TextData:
    """Token ids in three splits; see `TextSource` (to classify) and `StreamSource` (to predict the next token)."""

    train: Source
    validation: Source
    test: Source
    classes: list[str]
    """Names of the classes; [] where the data are unlabelled or read for language modelling."""
    tokenizer: Any
    """The transformers tokenizer that made the ids."""
    length: int
    """Tokens a row has at most."""
    name: str
    splits: dict[str, object]
    """The seed, and of each split its samples, tokens, texts that were cut, and origin: recorded in the run."""
    fingerprint: str
    """SHA-256 of token ids, labels and packing."""


def load_texts(
    data: Any,
    tokenizer: Any,
    *,
    targets: Literal["auto", "labels", "next"] = "auto",
    text_column: str | None = None,
    label_column: str | None = None,
    length: int = 128,
    packing: Packing = "none",
    split_seed: int = 0,
    train_samples: int | None = None,
) -> TextData:
    """Load `data` and tokenise it once.

    `data` is 'pydoc' (the help topics of Python), 'reviews' (made-up opinions, see there), a folder of parquet,
    json or csv tables or of .txt files ([split/][class/]file), one .txt file, the hub's name of a data set, a
    `datasets` object, streaming ones included, a list of strings, (texts, labels), or a mapping of split names to
    these. `text_column` is a column or two, 'A,B', for sentence pairs, or prompts and completions. Absent splits
    are cut from the training split as for images, a single document at line ends; `train_samples` keeps some of
    what is left.

    `tokenizer` is a transformers tokenizer, a folder or hub name with one, `characters`, or `bpe:N`; the last two
    are made from the training split.

    `targets` 'labels' reads texts to classify: a row each, cut to `length` tokens, special tokens kept. 'next' is
    language modelling: every document gets an end-of-text, and y is the token after each; `packing` 'none' gives a
    document a row, 'blocks' cuts the concatenated documents every `length` tokens, 'documents' packs them into
    rows whole. 'auto' is 'labels' without packing and 'next' with. Raises UserError, one line.
    """
    labelled = _check(targets, length, packing, train_samples)
    opened = open_texts(data, Columns(text_column, label_column, labelled))
    if not labelled:
        opened = _without_labels(opened)
    parts, classes, splits = divide(opened, split_seed, train_samples)
    made = open_tokenizer(tokenizer, lambda: plain_texts(_read(parts["train"])))
    digest = hashlib.sha256(f"{labelled} {packing} {length} {classes}".encode())
    sources = {}
    for split, part in parts.items():
        read = _read(part)
        tokens = tokenise(read, made, length) if labelled else tokenise_stream(read, made)
        sources[split] = _labelled(tokens, part, length) if labelled else _streamed(tokens, packing, length)
        _digest(digest, split, tokens, part)
        cast(dict[str, object], splits[split]).update(tokens=len(tokens.flat), cut=tokens.cut)
    a, b, c = (cast(Source, sources[split]) for split in ("train", "validation", "test"))
    return TextData(a, b, c, classes, made, length, opened.name, splits, digest.hexdigest())


def _without_labels(opened: Opened) -> Opened:
    """The texts alone; a single document is cut at line ends into the first 70 %, the next 10 %, and the rest."""
    parts = opened.parts
    if set(parts) == {"train"} and len(parts["train"]) == 1:
        return Opened(opened.name, cut_in_three(parts["train"]))
    for items in parts.values():
        items.labels = None
    return Opened(opened.name, parts)


def _check(targets: str, length: int, packing: str, train_samples: int | None) -> bool:
    """Whether the data are read with labels; UserError for options that do not go together."""
    require("--task.length", length, 2)
    if train_samples is not None:
        require("--task.train-samples", train_samples, 1)
    labelled = targets == "labels" or (targets == "auto" and packing == "none")
    if labelled and packing != "none":
        raise UserError(f"--task.packing is '{packing}': texts to classify have a row each, pass 'none'")
    return labelled


def _read(part: Part) -> Iterable[Document]:
    return cast(Iterable[Document], part.items.read(part.rows.tolist()))


def _labelled(tokens: Tokens, part: Part, length: int) -> TextSource:
    return TextSource(tokens, torch.arange(len(tokens)), part.labels, length)


def _streamed(tokens: Tokens, packing: Packing, length: int) -> StreamSource:
    if packing == "documents":
        return packed(tokens, length)
    if packing == "blocks":
        return blocks_of(tokens, length)
    tokens.cut = int((tokens.lengths > length).sum())
    return rows_of(tokens, length)


def _digest(digest: Any, split: str, tokens: Tokens, part: Part) -> None:
    digest.update(f"{split} {len(tokens)}".encode())
    for array in (tokens.offsets, tokens.flat, tokens.counts):
        if array is not None:
            digest.update(array.data)
    if part.labels is not None:
        digest.update(part.labels.numpy().tobytes())

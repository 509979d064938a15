"""Tokenizers by name, and token ids of many documents as one flat array."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from stillroom.data.documents import Document
from stillroom.errors import UserError, reason
from stillroom.hub import asked, transformers

UNKNOWN, PADDING, START, END = "<unk>", "<pad>", "<s>", "</s>"
SPECIAL = (PADDING, UNKNOWN, START, END)
"""Of the tokenizers that are made here: padding, an unknown piece, the start of a text to classify, its end."""

_DOCUMENTS = 1000  # documents tokenised at a time
_IN_MEMORY = 2**28  # tokens of a split above which they are kept in a file


# -- tokenizers -------------------------------------------------------------------------------------------------


def open_tokenizer(name: Any, texts: Callable[[], Iterable[str]]) -> Any:
    """The transformers tokenizer called `name`; an object is returned as it is.

    `characters` (a token each), `words` or `bpe:N` are made from `texts`, the training split; anything else is a
    folder with a tokenizer in it, or a hub name. Raises UserError where there is none.
    """
    if not isinstance(name, str):
        return name
    if name == "characters":
        return characters(texts())
    size = re.fullmatch(r"bpe:([1-9]\d*)", name, flags=re.ASCII)
    if size:
        return byte_pairs(texts(), int(size[1]))
    if name.startswith("bpe"):
        raise UserError(f"tokenizer '{name}' has no size: write it like bpe:2000")
    return read_tokenizer(name)


def read_tokenizer(name: str) -> Any:
    """The tokenizer in a folder, or of a model on the hub; UserError in one line where there is none."""
    path = Path(name).expanduser()
    if not path.is_dir() and (name.startswith((".", "/", "~")) or name.count("/") != 1):
        raise UserError(
            f"tokenizer '{name}' is no folder here: pass --task.tokenizer with characters, bpe:N, a folder or a "
            "hub name"
        )
    try:
        place = str(path) if path.is_dir() else name
        with asked(place):
            return transformers().AutoTokenizer.from_pretrained(place)
    except Exception as error:  # of several libraries, by file type
        raise UserError(
            f"tokenizer '{name}' cannot be read ({reason(error)}): pass a folder with a tokenizer.json, or "
            "--task.tokenizer characters"
        ) from error


def characters(texts: Iterable[str]) -> Any:
    """A tokenizer that makes a token of each character of `texts`, in the order of their code points."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    found = sorted(set().union(*map(set, texts)))
    vocabulary = {piece: number for number, piece in enumerate([*SPECIAL, *found])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    made.decoder = decoders.Fuse()
    return _wrapped(made)


def byte_pairs(texts: Iterable[str], size: int) -> Any:
    """A byte-level BPE tokenizer of `size` tokens trained on `texts` (Sennrich et al., 2016, arXiv:1508.07909)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    least = 256 + len(SPECIAL)
    if size < least:
        raise UserError(f"tokenizer 'bpe:{size}' is smaller than its bytes: pass bpe:{least} or more")
    made = Tokenizer(models.BPE(unk_token=UNKNOWN))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(SPECIAL), initial_alphabet=sorted(alphabet), show_progress=False
    )
    made.train_from_iterator(texts, trainer)
    return _wrapped(made)


def _wrapped(made: Any) -> Any:
    """The tokenizer as transformers', with `<s> text </s>` as the form of a text to classify."""
    from tokenizers import processors

    start, end = made.token_to_id(START), made.token_to_id(END)
    made.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}",
        pair=f"{START} $A {END} $B {END}",
        special_tokens=[(START, start), (END, end)],
    )
    return transformers().PreTrainedTokenizerFast(
        tokenizer_object=made,
        unk_token=UNKNOWN,
        pad_token=PADDING,
        cls_token=START,
        sep_token=END,
        eos_token=END,
        clean_up_tokenization_spaces=False,
    )


def vocabulary_digest(tokenizer: Any) -> str:
    """A digest of token strings and their numbers: equal for two tokenizers whose token ids mean the same."""
    found = json.dumps(sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0])))
    return hashlib.sha256(found.encode()).hexdigest()


# -- token ids ---------------------------------------------------------------------------------------------------


@dataclass
class Tokens:
    """Token ids of N documents one after the other."""

    flat: np.ndarray
    """int32 [T], in memory or mapped from a file."""
    offsets: np.ndarray
    """int64 [N + 1]: document i is flat[offsets[i]:offsets[i + 1]]."""
    cut: int = 0
    """How many documents were longer than was allowed, and lost their ends."""
    counts: np.ndarray | None = None
    """Bool [T]: whether the token that follows is to be predicted; None where that was not asked."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each document, int64 [N]."""
        return np.diff(self.offsets)


class _Growing:
    """One flat array that grows, in memory until it is too large for that, then in a file without a name."""

    def __init__(self, dtype: Any) -> None:
        self.dtype, self.parts, self.size = np.dtype(dtype), [], 0
        self.file: Any = None

    def add(self, values: np.ndarray) -> None:
        self.parts.append(values.astype(self.dtype))
        self.size += len(values)
        if self.file is not None or self.size > _IN_MEMORY:
            self.file = self.file or tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as its map
            for part in self.parts:
                part.tofile(self.file)
            self.parts = []

    def array(self) -> np.ndarray:
        if self.file is None:
            return np.concatenate(self.parts) if self.parts else np.empty(0, self.dtype)
        self.file.flush()
        return np.memmap(self.file, self.dtype, mode="r", shape=(self.size,))


def tokenise(documents: Iterable[Document], tokenizer: Any, length: int) -> Tokens:
    """Each document in the tokenizer's own form for a text (or pair) to classify, at most `length` tokens."""
    flat, sizes, cut = _Growing(np.int32), [], 0
    for some in _batched(documents):
        found = _encoded(tokenizer, some, add_special_tokens=True)
        long = [row for row, ids in enumerate(found) if len(ids) > length]
        if long:
            again = _encoded(tokenizer, [some[row] for row in long], truncation=True, max_length=length)
            for row, ids in zip(long, again, strict=True):
                found[row] = ids
        cut += len(long)
        sizes += [len(ids) for ids in found]
        flat.add(np.concatenate([np.asarray(ids, np.int32) for ids in found]))
    return Tokens(flat.array(), _offsets(sizes), cut)


def tokenise_stream(documents: Iterable[Document], tokenizer: Any) -> Tokens:
    """Each document whole, with its end marked, for language modelling; of a pair only the second part counts."""
    start, end = _borders(tokenizer)
    flat, counts, sizes = _Growing(np.int32), _Growing(np.bool_), []
    for some in _batched(documents):
        pairs = [document if isinstance(document, tuple) else ("", document) for document in some]
        prompts = _encoded(tokenizer, [prompt for prompt, _ in pairs], add_special_tokens=False)
        bodies = _encoded(tokenizer, [body for _, body in pairs], add_special_tokens=False)
        for prompt, body in zip(prompts, bodies, strict=True):
            ids = [*start, *prompt, *body, end]
            told = np.ones(len(ids), np.bool_)
            told[: max(0, len(prompt) + len(start) - 1) if prompt else 0] = False
            told[-1] = False
            flat.add(np.asarray(ids, np.int32))
            counts.add(told)
            sizes.append(len(ids))
    return Tokens(flat.array(), _offsets(sizes), counts=counts.array())


def _batched(documents: Iterable[Document]) -> Iterator[list[Document]]:
    waiting = iter(documents)
    while some := list(islice(waiting, _DOCUMENTS)):
        yield some


def _offsets(sizes: Sequence[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])


def _borders(tokenizer: Any) -> tuple[list[int], int]:
    """The ids before a document, where the tokenizer itself puts its beginning-of-text there, and after it."""
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    if end is None:
        raise UserError(
            f"tokenizer '{tokenizer.name_or_path}' has no end-of-text token: set its eos_token, documents "
            "cannot be told apart without"
        )
    first = tokenizer("a").input_ids[:1]
    return (first if first == [tokenizer.bos_token_id] else []), end


def _encoded(tokenizer: Any, texts: Sequence[Document], **options: Any) -> list[list[int]]:
    firsts = [text[0] if isinstance(text, tuple) else text for text in texts]
    seconds = [text[1] for text in texts if isinstance(text, tuple)]
    return tokenizer(
        firsts,
        seconds or None,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
        **options,
    )["input_ids"]


def plain_texts(documents: Iterable[Document]) -> Iterator[str]:
    """The documents as single texts, the parts of a pair one after the other: what a tokenizer is made from."""
    for document in documents:
        if isinstance(document, tuple):
            yield from document
        else:
            yield document

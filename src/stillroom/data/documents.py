"""From whatever a user gives as text to splits of documents and labels."""

from __future__ import annotations

import atexit
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from stillroom.data import folders, tables
from stillroom.data.items import Items, label_array
from stillroom.data.opening import Opened
from stillroom.data.reviews import reviews
from stillroom.data.splits import known
from stillroom.errors import UserError

Document = str | tuple[str, str]
"""One text, or two that belong together: a sentence pair, a prompt and its completion."""

BUILT_IN = ("pydoc", "reviews")
"""Names of data that need no folder: the help topics of Python for language models, `reviews` for classifiers."""

TEXT_COLUMNS = ("text", "sentence", "content", "document", "review", "article", "body")
"""Names under which a text column is looked for, in this order."""

PROMPTED = ("prompt", "completion")
"""Names of the two columns of which a language model learns the second alone."""

PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("text_a", "text_b"),
)
"""Names under which a sentence pair to classify is looked for, before a single text."""

SPLIT_NAMES = ("train", "validation", "test")

_ROWS = 1024  # rows taken out of an Arrow table at a time
_TABLES = (".parquet", ".arrow", ".json", ".jsonl", ".csv")


@dataclass(frozen=True)
class Columns:
    """Which columns to read: names, or None to find them; `labelled` says whether labels are wanted."""

    text: str | None = None
    label: str | None = None
    labelled: bool = True


class Documents:
    """One split of texts, read by row: see `Items`, of which it is the counterpart."""

    random = False

    def __init__(
        self,
        read: Callable[[Sequence[int]], Iterator[Document]],
        count: int,
        labels: np.ndarray | None,
        name: str,
    ) -> None:
        self._read, self._count, self.labels, self.name = read, count, labels, name

    def __len__(self) -> int:
        return self._count

    def read(self, rows: Sequence[int]) -> Iterator[Document]:
        """The documents of `rows`, one at a time; UserError for one that is no text."""
        for row, document in zip(rows, self._read(rows), strict=True):
            parts = document if isinstance(document, tuple) else (document,)
            if not all(isinstance(part, str) for part in parts):
                odd = next(type(part).__name__ for part in parts if not isinstance(part, str))
                raise UserError(f"{self.where(row)} is a {odd}, not a text: remove it or make it one")
            yield document

    def where(self, row: int) -> str:
        """What to call the document of `row` in a message."""
        return f"text {row} of {self.name}"


def open_texts(data: Any, columns: Columns) -> Opened:
    """Open a built-in name, a path, a hub name, a `datasets` object, texts, (texts, labels), or these by split.

    Raises UserError for anything else.
    """
    if isinstance(data, str | Path):
        return _open_name(data, columns)
    library = sys.modules.get("datasets")  # unless it is imported nobody can hold one of its objects
    if library is not None and isinstance(data, library.Dataset | library.IterableDataset):
        return _open_tables({"train": data}, columns, getattr(data.info, "dataset_name", None) or "dataset")
    if isinstance(data, Mapping):
        return _open_mapping(data, columns, library)
    if isinstance(data, tuple) and len(data) == 2 and _is_list(data[0]) and _is_list(data[1]):
        return _listed(data[0], data[1])
    if _is_list(data):
        return _listed(data, None)
    raise UserError(
        f"data of type {type(data).__name__} cannot be read as text: pass {' or '.join(map(repr, BUILT_IN))}, a "
        "folder, a hub name, a datasets.Dataset, a list of strings or (texts, labels)"
    )


def _is_list(data: Any) -> bool:
    return isinstance(data, Sequence | np.ndarray) and not isinstance(data, str)


def _items(documents: Documents) -> Items:
    """Documents are divided into splits as pictures are; only what is read differs."""
    return cast(Items, documents)


def _listed(texts: Sequence[Any], labels: Any, name: str = "texts") -> Opened:
    held = [tuple(text) if isinstance(text, list) else text for text in texts]
    if labels is not None and len(labels) != len(held):
        raise UserError(f"data has {len(held)} texts and {len(labels)} labels: pass one label a text")
    found = None if labels is None else label_array(list(labels), f"data '{name}'")
    documents = Documents(lambda rows: (held[row] for row in rows), len(held), found, f"data '{name}'")
    return Opened(name, {"train": _items(documents)})


def cut_in_three(only: Items) -> dict[str, Items]:
    """A single document as three splits: its first 70 %, the next 10 %, and the last 20 %, cut at line ends."""
    text = next(cast(Documents, only).read([0]))
    whole = "".join(text) if isinstance(text, tuple) else text
    places = [0, *(_line_end(whole, share * len(whole) // 10) for share in (7, 8)), len(whole)]
    parts = {}
    for split, share, start, end in zip(
        SPLIT_NAMES, ("70 %", "10 %", "20 %"), places, places[1:], strict=False
    ):
        part = _listed([whole[start:end]], None).parts["train"]
        part.name = f"{share} of {only.name}, in its order"
        parts[split] = part
    return parts


def _line_end(text: str, place: int) -> int:
    """The first place after a line's end from `place` on; `place` itself where no line ends any more."""
    return text.find("\n", place) + 1 or place


def _open_name(data: str | Path, columns: Columns) -> Opened:
    if data == "pydoc":
        return _listed(_help_topics(), None, "pydoc")
    if data == "reviews":
        opened = _listed(*reviews(), name="reviews")
        opened.classes, opened.held_out = ["negative", "positive"], {"test": 1000, "validation": 500}
        return opened
    path = Path(data).expanduser()
    if path.is_file():
        return _open_file(path)
    if path.is_dir():
        return _open_folder(path, columns)
    if isinstance(data, Path) or data.startswith((".", "/", "~")) or data.count("/") > 1 or "\\" in data:
        names = " or ".join(map(repr, BUILT_IN))
        raise UserError(
            f"data folder '{data}' does not exist: pass --task.data with a folder, a hub name, {names}"
        )
    return _open_tables(tables.load_hub(data, " or ".join(map(repr, BUILT_IN))), columns, data)


def _help_topics(most: int = 4000) -> list[str]:
    """The help texts that come with Python: about 465,000 characters of English prose.

    A document is a topic; long ones are cut between paragraphs, so that documents have at most about `most`
    characters and random splits are near the sizes that were asked for.
    """
    from pydoc_data.topics import topics

    documents = []
    for name in sorted(topics):
        held = ""
        for paragraph in topics[name].strip().split("\n\n"):
            if held and len(held) + len(paragraph) > most:
                documents.append(held)
                held = ""
            held = f"{held}\n\n{paragraph}" if held else paragraph
        documents.append(held)
    return documents


def _open_file(path: Path) -> Opened:
    if path.suffix != ".txt":
        raise UserError(f"data '{path}' is a file: pass a .txt file, or the folder that it is in")
    return _listed([_text_of(path)], None, path.stem)


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"file '{path}' is not UTF-8 text: convert it or remove it") from None


def _open_folder(path: Path, columns: Columns) -> Opened:
    name, files = path.resolve().name, folders.files_below(path)
    texts = [file for file in files if file.suffix.lower() == ".txt"]
    if not texts and not any(file.suffix in _TABLES for file in files):
        raise UserError(
            f"data folder '{path}' has no texts: pass a folder with parquet, json, csv or txt files"
        )
    if any(file.suffix in _TABLES for file in files):
        return _open_tables(tables.load_folder(path), columns, name)
    splits = folders.read_folder(path, texts, name)
    return Opened(name, {split: _items(_files(folder)) for split, folder in splits.items()})


def _files(folder: folders.Folder) -> Documents:
    def read(rows: Sequence[int]) -> Iterator[Document]:
        return (_text_of(folder.root / folder.files[row]) for row in rows)

    return Documents(read, len(folder), folder.labels, folder.name)


def _open_mapping(data: Mapping[str, Any], columns: Columns, library: Any) -> Opened:
    kinds = () if library is None else (library.Dataset, library.IterableDataset)
    if kinds and all(isinstance(part, kinds) for part in data.values()):
        name = next((part.info.dataset_name for part in data.values()), None)
        return _open_tables(data, columns, name or "dataset")
    opened = {split: open_texts(data[theirs], columns) for split, theirs in known(data, "in hand").items()}
    for split, part in opened.items():
        if set(part.parts) != {"train"} or part.held_out:
            raise UserError(f"split '{split}' of the data has splits of its own: pass one under each name")
        part.parts["train"].name = f"split '{split}' of data '{part.name}'"
    train = opened["train"]
    return Opened(train.name, {split: part.parts["train"] for split, part in opened.items()}, train.classes)


def _open_tables(loaded: Any, columns: Columns, name: str) -> Opened:
    splits = loaded if isinstance(loaded, Mapping) else {"train": loaded}
    parts, classes = {}, None
    for ours, theirs in known(splits, name).items():
        where = f"split '{theirs}' of data '{name}'"
        table = _on_disk(splits[theirs])
        documents, names = _table(table, columns, where)
        parts[ours] = _items(documents)
        classes = names if ours == "train" else classes
    return Opened(name, parts, classes)


def _on_disk(dataset: Any) -> Any:
    """A stream written to disk once, at a flat memory cost; what is on disk already stays as it is."""
    import datasets

    if not isinstance(dataset, datasets.IterableDataset):
        return dataset
    columns = dataset.column_names  # None where a stream does not know them before it is read
    place = tempfile.mkdtemp(prefix="stillroom-texts-")
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    with tables.quiet():
        return datasets.Dataset.from_generator(
            lambda: iter(dataset), cache_dir=place, features=dataset.features if columns else None
        )


def _table(dataset: Any, columns: Columns, name: str) -> tuple[Documents, list[str] | None]:
    label = tables.label_column(dataset.features, columns.label, name) if columns.labelled else None
    chosen = text_columns(dataset.features, columns.text, label, name)
    held = dataset.select_columns(list(chosen)).with_format("arrow")

    def read(rows: Sequence[int]) -> Iterator[Document]:
        for start in range(0, len(rows), _ROWS):
            some = held[list(rows[start : start + _ROWS])]
            lists = [some.column(column).to_pylist() for column in chosen]
            yield from lists[0] if len(lists) == 1 else zip(*lists, strict=True)

    labels = None if label is None else tables.column(dataset, label)
    names = None if label is None else getattr(dataset.features[label], "names", None)
    return Documents(read, len(dataset), labels, name), names


def text_columns(features: Any, wanted: str | None, label: str | None, name: str) -> tuple[str, ...]:
    """The column of texts, or the two of pairs: those asked for ('A' or 'A,B'), usual names, the only one.

    Raises UserError where they cannot be told.
    """
    texts = [column for column, feature in features.items() if _is_text(feature) and column != label]
    if wanted is not None:
        asked = tuple(column.strip() for column in wanted.split(","))
        for column in asked:
            if column not in texts:
                raise UserError(
                    f"{name} has no text column '{column}' among {list(features)}: pass --task.text-column "
                    "with one of them that holds strings, or two as A,B"
                )
        if len(asked) > 2:
            raise UserError(f"--task.text-column is '{wanted}': pass one column, or two as A,B")
        return asked
    for pair in PAIRS if label is not None else (PROMPTED,):
        if set(pair) <= set(texts):
            return pair
    usual = [column for column in TEXT_COLUMNS if column in texts]
    if usual or len(texts) == 1:
        return ((usual or texts)[0],)
    raise UserError(
        f"{name} has {len(texts) or 'no'} columns of strings among {list(features)}: "
        "pass --task.text-column NAME"
    )


def _is_text(feature: Any) -> bool:
    return getattr(feature, "dtype", "") in ("string", "large_string")

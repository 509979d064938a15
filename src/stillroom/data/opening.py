"""From whatever a user gives as data to splits of pictures and labels."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import data as torch_data

from stillroom.data import folders, tables
from stillroom.data.items import Items, Listed, map_items, pair
from stillroom.data.named import Columns, Named, columns_of
from stillroom.data.splits import SPLITS, known
from stillroom.data.streams import Limits, read_stream
from stillroom.errors import UserError

BUILT_IN = ("digits", "objects")
"""Names of data that need no file: scikit-learn's 8x8 digits, and pictures that are drawn here, 16x16 in colour."""

_TABLES = (".parquet", ".arrow")
_METADATA = ("metadata.csv", "metadata.jsonl")  # beside images: their labels and more, which `datasets` reads


@dataclass(frozen=True)
class Reading:
    """How to read: columns by name, the side of the images, and the bytes that may be held in memory."""

    image_column: str | None = None
    label_column: str | None = None
    image_size: int | None = None
    memory_limit: int = 4 * 2**30
    disk_limit: int = 16 * 2**30
    """Bytes of a stream that may be kept on disk."""
    stream: bool = False
    """Whether what is named is read as a stream, where it can be."""
    stream_samples: int | None = None
    """Of each split of a stream, the first so many; what is named is then read as one."""

    @property
    def columns(self) -> Columns:
        """The names of image and label."""
        return Columns(self.image_column, self.label_column)

    @property
    def streams(self) -> bool:
        """Whether what is named is read as a stream."""
        return self.stream or self.stream_samples is not None

    def limits(self, expected: int | None = None) -> Limits:
        """What may be taken of a stream of `expected` samples, None if unknown."""
        return Limits(self.image_size, self.memory_limit, self.disk_limit, self.stream_samples, expected)

    def no_stream(self, name: str) -> None:
        """Raise UserError where only the first samples of a stream were asked for, and it is none."""
        if self.stream_samples is not None:
            raise UserError(
                f"{name} is no stream, its samples are read by number: pass --task.train-samples in place of "
                "--task.stream-samples"
            )


@dataclass
class Opened:
    """What a user gave, split as it came."""

    name: str
    parts: dict[str, Items]
    """'train', and 'validation' and 'test' where they were given."""
    classes: list[str] | None = None
    """Names of the classes, where the data have them."""
    held_out: dict[str, int] = field(default_factory=dict)
    """Sizes of the splits to be made of 'train', where they are customary."""
    raw: bool = True
    """Whether pixels are as a camera gives them; False for tensors that the user may have normalised."""


def open_data(data: Any, how: Reading) -> Opened:
    """Open a name, a path, a `datasets` object, a loader, a data set, tensors, or these by split.

    Raises UserError for anything else.
    """
    if isinstance(data, str | Path):
        return _open_name(data, how)
    library = sys.modules.get("datasets")  # unless it is imported nobody can hold one of its objects
    if isinstance(data, Mapping):
        return _open_mapping(data, how, library)
    if library is not None and isinstance(data, library.Dataset | library.IterableDataset):
        return _open_tables(data, how, data.info.dataset_name or "dataset")
    if isinstance(data, torch_data.DataLoader):
        return _open_loader(data, how)
    if isinstance(data, torch_data.TensorDataset):
        data = data.tensors
    if isinstance(data, Tensor):
        data = (data,)
    if isinstance(data, tuple) and data and isinstance(data[0], Tensor | np.ndarray):
        return _open_tensors(data, how)
    name = type(data).__name__
    if isinstance(data, torch_data.IterableDataset):
        return _open_stream(lambda: iter(data), how, name)
    if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        how.no_stream(f"data '{name}'")
        if len(data) and isinstance(data[0], Mapping):
            data = Named(data, how.columns)
        items = map_items(data, how.image_size, how.memory_limit, f"data '{name}'")
        return Opened(name, {"train": items}, raw=not _holds_tensors(items))
    raise UserError(
        f"data of type {name} cannot be read: pass {' or '.join(map(repr, BUILT_IN))}, a folder, a hub name, a "
        "datasets.Dataset, a DataLoader, a map-style data set or tensors (x, y)"
    )


def _open_name(data: str | Path, how: Reading) -> Opened:
    if data in BUILT_IN:
        how.no_stream(f"data '{data}'")
        return _digits() if data == "digits" else _objects()
    path = Path(data).expanduser()
    if path.is_file():
        raise UserError(f"data '{data}' is a file: pass the folder that it is in")
    if path.is_dir():
        return _open_folder(path, how)
    if isinstance(data, Path) or data.startswith((".", "/", "~")) or data.count("/") > 1 or "\\" in data:
        raise UserError(
            f"data folder '{data}' does not exist: pass --task.data with a folder, a hub name, "
            f"{' or '.join(map(repr, BUILT_IN))}"
        )
    return _open_tables(tables.load_hub(data, streaming=how.streams), how, data, counted=True)


def _digits() -> Opened:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(pixels).to(torch.float32).view(-1, 1, 8, 8) / 16
    items = Listed(x, np.asarray(labels), "data 'digits'")
    return Opened("digits", {"train": items}, [str(c) for c in range(10)], {"test": 900, "validation": 97})


def _objects() -> Opened:
    """4,000 pictures, always the same, in three splits."""
    from stillroom.data.objects import KINDS, draw_objects

    sizes = {"train": 2000, "validation": 500, "test": 1500}
    x, y = draw_objects(sum(sizes.values()), seed=0)
    parts = zip(sizes, x.split(list(sizes.values())), y.split(list(sizes.values())), strict=True)
    named = {split: Listed(a, b.numpy(), f"split '{split}' of data 'objects'") for split, a, b in parts}
    return Opened("objects", {**named}, list(KINDS))


def _open_folder(path: Path, how: Reading) -> Opened:
    name, files = path.resolve().name, folders.files_below(path)
    if not files:
        raise UserError(f"data folder '{path}' is empty: pass a folder with images or parquet files")
    images = [file for file in files if file.suffix.lower() in folders.IMAGES]
    if images and not any(file.suffix in _TABLES or file.name in _METADATA for file in files):
        how.no_stream(f"data folder '{path}', of image files,")
        return Opened(name, dict(folders.read_folder(path, images, name)))
    return _open_tables(tables.load_folder(path, streaming=how.streams), how, name, counted=True)


def _open_tables(loaded: Any, how: Reading, name: str, *, counted: bool = False) -> Opened:
    """Splits of `datasets`; `counted` says that they are whole, as their info has them."""
    splits = loaded if isinstance(loaded, Mapping) else {"train": loaded}
    chosen = known(splits, name)
    return _merge(
        {ours: _open_table(splits[theirs], how, name, theirs, counted) for ours, theirs in chosen.items()}
    )


def _open_table(dataset: Any, how: Reading, name: str, split: str, counted: bool) -> Opened:
    import datasets

    where = f"split '{split}' of data '{name}'"
    if isinstance(dataset, datasets.IterableDataset):
        splits = dataset.info.splits if counted else None
        expected = splits[split].num_examples if splits and split in splits else None
        stream = tables.TableStream(dataset, how.image_column, how.label_column, where)
        key = stream.key(how.image_size, how.stream_samples)
        items = read_stream(stream.pairs, where, how.limits(expected), key)
        return Opened(name, {"train": items}, tables.class_names(stream.features, how.label_column, where))
    how.no_stream(where)
    items = tables.read_table(dataset, how.image_column, how.label_column, where)
    return Opened(name, {"train": items}, tables.class_names(dataset.features, how.label_column, where))


def _open_mapping(data: Mapping[str, Any], how: Reading, library: Any) -> Opened:
    kinds = () if library is None else (library.Dataset, library.IterableDataset)
    if all(isinstance(part, kinds) for part in data.values()):
        name = next((part.info.dataset_name for part in data.values()), None)
        return _open_tables(data, how, name or "dataset")
    if len(data) > 1 and not any(str(name).lower() in SPLITS for name in data):
        columns = columns_of(data, how.columns)
        if columns is not None:
            return _open_columns(*columns, how)
    opened = {}
    for split, theirs in known(data, "in hand").items():
        opened[split] = part = open_data(data[theirs], how)
        if set(part.parts) != {"train"} or part.held_out:
            raise UserError(f"split '{theirs}' of the data has splits of its own: pass one under each name")
        part.parts["train"].name = f"split '{theirs}' of data '{part.name}'"
    return _merge(opened)


def _open_columns(images: Any, labels: Any, how: Reading) -> Opened:
    if isinstance(images, Tensor | np.ndarray):
        return open_data((images, labels), how)
    images, labels = list(images), itertools.repeat(None) if labels is None else list(labels)
    if isinstance(labels, list) and len(labels) != len(images):
        raise UserError(
            f"the columns of the data have {len(images)} images and {len(labels)} labels: pass one label an image"
        )
    return open_data(list(zip(images, labels, strict=False)), how)


def _merge(opened: Mapping[str, Opened]) -> Opened:
    train = opened["train"]
    for split, part in opened.items():
        if part.classes != train.classes:
            raise UserError(
                f"splits 'train' and '{split}' of data '{train.name}' name their classes differently: "
                "make them equal"
            )
    parts = {split: part.parts["train"] for split, part in opened.items()}
    return Opened(train.name, parts, train.classes, raw=all(part.raw for part in opened.values()))


def _open_loader(loader: torch_data.DataLoader, how: Reading) -> Opened:
    name = type(loader.dataset).__name__
    if isinstance(loader.dataset, torch_data.IterableDataset):
        return _open_stream(lambda: _samples(loader, how.columns), how, name)
    usual = (torch_data.SequentialSampler, torch_data.RandomSampler, torch_data.BatchSampler, type(None))
    for sampler in (loader.sampler, loader.batch_sampler):
        if type(sampler) not in usual:
            raise UserError(
                f"the DataLoader has a sampler of its own, {type(sampler).__name__}: "
                "Stillroom draws its own order, pass the dataset"
            )
    plain = (torch_data.default_collate, torch_data.default_convert)
    return open_data(loader.dataset if loader.collate_fn in plain else _Collated(loader, how.columns), how)


class _Collated:
    """The samples of a loader with a collate function of its own, asked for one at a time."""

    def __init__(self, loader: Any, columns: Columns) -> None:
        self.dataset, self.collate, self.columns = loader.dataset, loader.collate_fn, columns

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> tuple[Any, Any]:
        batch = self.collate([self.dataset[row]])
        return next(_unbatched(batch, self.columns, type(self.dataset).__name__))


def _samples(loader: torch_data.DataLoader, columns: Columns) -> Iterator[Any]:
    for batch in loader:
        if loader.batch_size is None:
            yield batch
        else:
            yield from _unbatched(batch, columns, type(loader.dataset).__name__)


def _unbatched(batch: Any, columns: Columns, name: str) -> Iterator[tuple[Any, Any]]:
    batch = columns.pair(batch, f"a batch of data '{name}'")
    x, y = batch if isinstance(batch, (tuple, list)) and len(batch) == 2 else (batch, None)
    if not isinstance(x, Tensor):
        raise UserError(
            f"batches of data '{name}' are {type(batch).__name__}: let them be (x, y), with x of [B, C, H, W]"
        )
    return zip(x, itertools.repeat(None) if y is None else y, strict=False)


def _open_stream(samples: Callable[[], Iterator[Any]], how: Reading, name: str) -> Opened:
    """A stream in hand. It has no key: nobody can tell whether it gives again what it gave before."""

    def pairs() -> Iterator[tuple[Any, Any]]:
        for i, item in enumerate(samples()):
            where = f"sample {i} of data '{name}'"
            yield pair(how.columns.pair(item, where), where)

    items = read_stream(pairs, f"data '{name}'", how.limits())
    return Opened(name, {"train": items}, raw=not _holds_tensors(items))


def _open_tensors(data: tuple[Any, ...], how: Reading) -> Opened:
    how.no_stream("a pair of tensors")
    if len(data) > 2:
        raise UserError(f"data is a tuple of {len(data)} tensors: pass images and labels, (x, y)")
    x = torch.as_tensor(data[0]).detach().cpu()
    y = None if data[-1] is None or len(data) == 1 else torch.as_tensor(data[1]).detach().cpu()
    if x.ndim not in (3, 4):
        raise UserError(f"x has shape {list(x.shape)}: pass images [N, C, H, W] or [N, H, W]")
    if x.ndim == 4 and x.shape[1] > 4 and x.shape[3] in (1, 3):
        raise UserError(f"x has shape {list(x.shape)}, channels last: pass x.permute(0, 3, 1, 2)")
    labels = None if y is None else y.numpy()
    if labels is not None and labels.shape != (len(x),):
        raise UserError(f"x has {len(x)} samples, y has shape {list(labels.shape)}: pass one label a sample")
    return Opened("tensors", {"train": Listed(x, labels, "data 'tensors'")}, raw=False)


def _holds_tensors(items: Items) -> bool:
    return len(items) > 0 and isinstance(next(items.read([0])), Tensor)

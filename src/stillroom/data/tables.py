"""Tables with an image column: the hub, folders of parquet files, and `datasets` objects in hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from stillroom.data.named import LABEL_COLUMNS
from stillroom.data.pictures import Picture, open_picture
from stillroom.errors import UserError, reason

if TYPE_CHECKING:
    import datasets

_ROWS = 1024  # encoded images taken out of the Arrow table at a time


class Table:
    """One split of a `datasets.Dataset`; see `Items`."""

    random = False

    def __init__(self, dataset: datasets.Dataset, image: str, label: str | None, name: str) -> None:
        import datasets

        self.name = name
        images = dataset.select_columns([image]).cast_column(image, datasets.Image(decode=False))
        self._images = images.with_format("arrow")
        self._about = [str(dataset.features), *map(_file_size, dataset.cache_files)]
        self.labels = None if label is None else column(dataset, label)

    def __len__(self) -> int:
        return len(self._images)

    def read(self, rows: Sequence[int]) -> Iterator[Picture]:
        """See `Items.read`."""
        for start in range(0, len(rows), _ROWS):
            some = list(rows[start : start + _ROWS])
            for row, cell in zip(some, cast(Any, self._images[some]).column(0).to_pylist(), strict=True):
                file = cell and (cell["bytes"] or cell["path"])
                if not file:
                    raise UserError(f"{self.where(row)} has no image: remove it")
                yield open_picture(file, self.where(row))

    def where(self, row: int) -> str:
        """See `Items.where`."""
        return f"row {row} of {self.name}"

    def describe(self) -> Iterator[str]:
        """See `Items.describe`."""
        yield from self._about


def read_table(dataset: datasets.Dataset, image: str | None, label: str | None, name: str) -> Table:
    """One split with its columns found: `image` and `label` where given, by type and name otherwise.

    The label column 'none' reads the data as unlabelled. Raises UserError where a column cannot be told.
    """
    if dataset.format["type"] == "custom":
        raise UserError(
            f"{name} has a transform of its own (set_transform), which would be passed over: "
            "pass dataset.with_format(None), and the transform as augment"
        )
    found = image_column(dataset.features, image, name)
    return Table(dataset, found, label_column(dataset.features, label, name), name)


def class_names(features: Any, label: str | None, name: str) -> list[str] | None:
    """The names of the classes, where the label column has them."""
    column = label_column(features, label, name)
    return None if column is None else getattr(features[column], "names", None)


class TableStream:
    """A `datasets.IterableDataset` as pairs (encoded image, label), its columns found as those of a table are."""

    def __init__(
        self, dataset: datasets.IterableDataset, image: str | None, label: str | None, name: str
    ) -> None:
        self.name, self._given = name, dataset
        plain = dataset.with_format(None)
        self.features: Any = dataset.features
        if self.features is None:  # of a generator, or after map: told from the first row
            self.features = self._first(plain)
            plain = plain.cast(self.features)
        self._image = image_column(self.features, image, name)
        self._label = label_column(self.features, label, name)
        self._rows = self._chosen(plain)

    def _first(self, plain: datasets.IterableDataset) -> Any:
        import datasets

        with self._read():
            rows = list(plain.take(1))
        if not rows:
            raise UserError(f"{self.name} is empty: pass data with images")
        return datasets.Dataset.from_list(rows).features

    def _chosen(self, plain: datasets.IterableDataset) -> datasets.IterableDataset:
        import datasets

        columns = [self._image, *([] if self._label is None else [self._label])]
        return plain.select_columns(columns).cast_column(self._image, datasets.Image(decode=False))

    def pairs(self) -> Iterator[tuple[Any, Any]]:
        """The stream from its beginning."""
        import datasets

        with self._read():
            for i, row in enumerate(self._rows):
                cell = row[self._image]
                if not cell or not (cell["bytes"] or cell["path"]):
                    raise UserError(f"sample {i} of {self.name} has no image: remove it")
                image = cell["bytes"] or datasets.Image().decode_example(cell)
                yield image, None if self._label is None else row[self._label]

    def key(self, *about: Any) -> str | None:
        """A name made of the stream's files, their times, and all that is done to them; None where it has none.

        Two streams of one key give the same samples, if what a function in them reads has not changed.
        """
        from datasets.fingerprint import Hasher

        made_of = getattr(self._given, "_ex_iterable", None)
        try:
            return None if made_of is None else Hasher.hash([made_of, self._image, self._label, *about])
        except Exception:  # whatever an object raises that cannot be hashed
            return None

    @contextmanager
    def _read(self) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # whatever a reader of a dozen file types, or the hub, raises
            raise UserError(
                f"{self.name} cannot be read ({reason(error)}): pass other data, or load them without streaming"
            ) from error


def image_column(features: Any, wanted: str | None, name: str) -> str:
    """The column of images: the one asked for, or the only one there is."""
    images = [column for column, feature in features.items() if _is_image(feature)]
    images = images or [column for column, feature in features.items() if _is_binary(feature)]
    if wanted is None:
        if len(images) == 1:
            return images[0]
        raise UserError(
            f"{name} has {len(images) or 'no'} image columns among {list(features)}: "
            "pass --task.image-column NAME"
        )
    _check_exists(features, wanted, "image", name)
    if wanted not in images:
        raise UserError(
            f"column '{wanted}' of {name} holds {_type_name(features[wanted])}, not images, which "
            f"{', '.join(images) or 'no column'} does: pass --task.image-column NAME"
        )
    return wanted


def label_column(features: Any, wanted: str | None, name: str) -> str | None:
    """The column of labels: the one asked for, a usual name, or the only ClassLabel. None for 'none'."""
    if wanted == "none":
        return None
    if wanted is not None:
        _check_exists(features, wanted, "label", name)
        if not _is_label(features[wanted]):
            raise UserError(
                f"column '{wanted}' of {name} holds {_type_name(features[wanted])}, not labels: pass "
                "--task.label-column with a column of integers or strings"
            )
        return wanted
    import datasets

    usual = [column for column in LABEL_COLUMNS if column in features and _is_label(features[column])]
    named = [column for column, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    if usual or len(named) == 1:
        return (usual or named)[0]
    raise UserError(
        f"{name} has no column that is known to hold labels among {list(features)}: "
        "pass --task.label-column NAME ('none' for unlabelled data)"
    )


def load_folder(path: Path, *, streaming: bool = False) -> Any:
    """A folder of parquet or other tables, or what `save_to_disk` wrote, as a Dataset or DatasetDict.

    `streaming` makes no copy of the files: an IterableDataset or a dictionary of these, but of what `save_to_disk`
    wrote, which is read where it is.
    """
    import datasets

    try:
        if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
            return datasets.load_from_disk(str(path))
        # a cache of its own: `datasets` offline serves a local folder 'x' to whoever asks the hub for 'x'
        cache = str(Path(datasets.config.HF_DATASETS_CACHE) / "local")
        with quiet():
            return datasets.load_dataset(str(path.resolve()), cache_dir=cache, streaming=streaming)
    except Exception as error:  # whatever a reader of a dozen file types raises
        why = reason(error)
        if "no data" in why or "EmptyDataset" in type(error).__name__:
            raise UserError(
                f"data folder '{path}' is empty: pass a folder with images or parquet files"
            ) from error
        raise UserError(f"data folder '{path}' cannot be read ({why}): pass images or parquet") from error


def load_hub(name: str, *, streaming: bool = False, built_in: str = "'digits' or 'objects'") -> Any:
    """A data set of the hub by name; asks once whether it is there, instead of waiting for retries.

    `streaming` downloads nothing yet, and gives an IterableDataset or a dictionary of these. `built_in` is what a
    message offers in its place.
    """
    import datasets
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError

    folder = f"data '{name}' is not a folder here and"
    try:
        HfApi().dataset_info(name, timeout=10)
    except OfflineModeIsEnabled:
        pass  # then it can be in the cache
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UserError(
            f"{folder} not on the hub: pass --task.data with a folder, a hub name, {built_in}"
        ) from error
    except Exception as error:  # of the http library, which changes between releases of huggingface_hub
        raise UserError(
            f"{folder} the hub cannot be reached ({reason(error)}): "
            f"pass --task.data with a folder, {built_in}, or set HF_HUB_OFFLINE=1 to use a copy in the cache"
        ) from error
    try:
        return datasets.load_dataset(name, streaming=streaming)
    except Exception as error:
        raise UserError(
            f"data '{name}' cannot be loaded from the hub ({reason(error)}): "
            "pass a folder or a datasets.Dataset"
        ) from error


class quiet:
    """No progress bars inside."""

    def __enter__(self) -> None:
        import datasets

        self._shown = not datasets.are_progress_bars_disabled()
        datasets.disable_progress_bars()

    def __exit__(self, *_: object) -> None:
        import datasets

        if self._shown:
            datasets.enable_progress_bars()


def _check_exists(features: Any, wanted: str, kind: str, name: str) -> None:
    if wanted not in features:
        raise UserError(
            f"{name} has no column '{wanted}' among {list(features)}: pass --task.{kind}-column NAME"
        )


def _is_image(feature: Any) -> bool:
    import datasets

    # parquet files not written by `datasets` have the same column as a plain structure
    plain = isinstance(feature, dict) and set(feature) == {"bytes", "path"}
    return isinstance(feature, datasets.Image) or plain


def _is_binary(feature: Any) -> bool:
    """Whether it holds bytes, which are taken for encoded images where nothing else is."""
    return getattr(feature, "dtype", None) in ("binary", "large_binary")


def _is_label(feature: Any) -> bool:
    import datasets

    kind = feature.dtype if isinstance(feature, datasets.Value | datasets.ClassLabel) else ""
    return kind in ("string", "large_string", "bool") or kind.startswith(("int", "uint"))


def _type_name(feature: Any) -> str:
    return getattr(feature, "dtype", None) or type(feature).__name__


def column(dataset: datasets.Dataset, column: str) -> np.ndarray:
    """All values of a column [N]; of type object where some are missing."""
    table = cast(Any, dataset.select_columns([column]).with_format("arrow")[:])
    values = table.column(0).to_pylist()
    return np.array(values, dtype=object if None in values else None)


def _file_size(file: dict[str, str]) -> str:
    path = Path(file["filename"])
    return f"{path.name} {path.stat().st_size}"

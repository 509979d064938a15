"""Inputs and targets from arrays, tensors and files: `.npz`, `.csv` and `.parquet`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from stillroom.errors import UserError, reason
from stillroom.estimators.guided_self_distillation.formulas import Numbers

USUAL = ("target", "y", "label")
"""Names under which a target column is looked for, in this order."""
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Table:
    """Inputs and targets of one problem."""

    name: str
    x: Numbers
    """Inputs [n, features]."""
    y: Numbers
    """Targets [n, outputs]; one-hot for classes."""
    classes: tuple[str, ...] = ()
    """Names of the classes; none for regression."""
    parts: Mapping[str, tuple[int, int]] | None = None
    """First and one past the last row of each split that the data came with."""


def read_table(data: Any, target: str) -> Table:
    """A Table from "digits", a path, (x, y), or a mapping of split names to (x, y).

    `target` is the target column of a file, several with commas between, or empty for the usual names. Targets that
    are strings become one-hot. UserError for what cannot be read, is not finite, or does not fit together.
    """
    if isinstance(data, str | Path):
        if str(data) == "digits":
            return _digits()
        return _table(*_from_file(Path(data), target))
    if isinstance(data, Mapping):
        odd = sorted(set(map(str, data)) - set(SPLITS))
        if odd or "train" not in data:
            raise UserError(
                f"the data have the splits {list(data)}: pass 'train', and 'validation' and 'test'"
            )
        return _joined({split: _pair(data[split]) for split in SPLITS if split in data})
    return _table("arrays", *_pair(data))


def _digits() -> Table:
    from sklearn.datasets import load_digits

    pixels, labels = (np.asarray(part) for part in load_digits(return_X_y=True))
    return Table("digits", pixels / 16, np.eye(10)[labels], tuple(str(c) for c in range(10)))


def _pair(data: Any) -> tuple[np.ndarray, np.ndarray]:
    if not isinstance(data, tuple | list) or len(data) != 2:
        raise UserError(
            f"data of type {type(data).__name__} cannot be read: pass arrays (x, y), these by split, or a path to "
            "a .npz, .csv or .parquet file"
        )
    x, y = (part.detach().cpu().numpy() if hasattr(part, "detach") else np.asarray(part) for part in data)
    return x, y


def _joined(parts: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Table:
    ends = np.cumsum([0, *(len(x) for x, _ in parts.values())]).tolist()
    shapes = {split: (x.shape[1:], y.shape[1:]) for split, (x, y) in parts.items()}
    if len(set(shapes.values())) > 1:
        raise UserError(f"the splits' samples have different shapes, {shapes}: make them equal")
    x, y = (np.concatenate([part[i] for part in parts.values()]) for i in (0, 1))
    made = _table("arrays", x, y)
    places = dict(zip(parts, pairwise(ends), strict=True))
    return Table(made.name, made.x, made.y, made.classes, places)


def _table(name: str, x: np.ndarray, y: np.ndarray) -> Table:
    if x.ndim == 1:
        x = x[:, None]
    if x.ndim < 2 or y.ndim not in (1, 2) or len(x) != len(y):
        shapes = f"inputs have shape {list(x.shape)} and targets {list(y.shape)}"
        raise UserError(f"data '{name}': {shapes}: pass inputs [n, features] and targets [n] or [n, outputs]")
    classes: tuple[str, ...] = ()
    if y.dtype.kind in "USO":
        found, places = np.unique(y.astype(str).reshape(len(y)), return_inverse=True)
        y, classes = np.eye(len(found))[places], tuple(map(str, found))
    y = y.reshape(len(y), -1)
    return Table(name, _finite(x.reshape(len(x), -1), "input", name), _finite(y, "target", name), classes)


def _finite(values: np.ndarray, what: str, name: str) -> Numbers:
    try:
        values = values.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"data '{name}': an {what} is no number ({reason(error)}): encode or drop it"
        ) from None
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        row, column = bad[0].tolist()
        raise UserError(
            f"data '{name}': {what} {column} of row {row} is missing or not finite: remove the row or fill it in"
        )
    return values


def _from_file(path: Path, target: str) -> tuple[str, np.ndarray, np.ndarray]:
    if not path.is_file():
        raise UserError(
            f"data '{path}' does not exist: pass --task.data 'digits' or a .npz, .csv or .parquet file"
        )
    try:
        columns = _columns(path)
    except UserError:
        raise
    except Exception as error:  # whatever a reader of three file types raises
        raise UserError(f"data '{path}' cannot be read ({reason(error)}): pass a whole file") from None
    if path.suffix == ".npz":
        lacking = [name for name in ("X", "y") if name not in columns]
        if lacking:
            raise UserError(f"data '{path}' has the arrays {sorted(columns)}: save them as X and y")
        return path.name, columns["X"], columns["y"]
    wanted = [name.strip() for name in target.split(",")] if target else _usual(columns, path)
    for name in wanted:
        if name not in columns:
            raise UserError(
                f"data '{path}' has no column '{name}' among {list(columns)}: pass --task.target NAME"
            )
    inputs = {name: column for name, column in columns.items() if name not in wanted}
    strings = [name for name, column in inputs.items() if column.dtype.kind not in "biuf"]
    if strings or not inputs:
        why = (
            f"column '{strings[0]}' of data '{path}' is no number"
            if strings
            else f"data '{path}' has no inputs"
        )
        raise UserError(f"{why}: encode it as numbers, or name it a target with --task.target")
    y = columns[wanted[0]] if len(wanted) == 1 else np.stack([columns[name] for name in wanted], 1)
    return path.name, np.stack(list(inputs.values()), 1), y


def _columns(path: Path) -> dict[str, np.ndarray]:
    if path.suffix == ".npz":
        with np.load(path) as file:
            return dict(file)
    if path.suffix == ".csv":
        from pyarrow import csv

        table = csv.read_csv(path)
    elif path.suffix == ".parquet":
        from pyarrow import parquet

        table = parquet.read_table(path)
    else:
        raise UserError(f"data '{path}' is of no known type: pass a .npz, .csv or .parquet file")
    return {name: table[name].to_numpy() for name in table.column_names}


def _usual(columns: Mapping[str, Any], path: Path) -> list[str]:
    found = [name for name in USUAL if name in columns][:1]
    if not found:
        raise UserError(
            f"data '{path}' has no column '{USUAL[0]}' among {list(columns)}: pass --task.target NAME"
        )
    return found

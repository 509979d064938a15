"""The rows of metrics of one fit: a JSON line each, in a file that can be cut back to a checkpoint."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stillroom.errors import UserError


class History:
    """Appends rows to `path`, or forgets them where there is no path.

    Rows hold nothing that depends on the clock on the wall, so a resumed run's file ends up the same.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row."""
        if self.path is not None:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    def mark(self) -> int:
        """The length in bytes, once it is safely on disk."""
        if self.path is None or not self.path.exists():
            return 0
        with open(self.path, "rb") as file:
            os.fsync(file.fileno())
        return self.path.stat().st_size

    def cut(self, mark: int) -> None:
        """Forget what was written after `mark`."""
        if self.path is None or not (mark or self.path.exists()):
            return
        if not self.path.exists() or self.path.stat().st_size < mark:
            raise UserError(
                f"'{self.path}' is missing or shorter than the checkpoint says: restore it, or start a new run with "
                "another --out"
            )
        os.truncate(self.path, mark)


def read_fit(folder: Path) -> list[dict[str, Any]]:
    """The rows of the fit in `folder`; where all was done in stages those of all of them, one behind the other."""
    rows = read_rows(folder / "metrics.jsonl")
    for stage in () if rows else sorted((folder / "stages").glob("*/metrics.jsonl")):
        before = rows[-1] if rows else {}
        rows += [
            row | {key: row[key] + before.get(key, 0) for key in ("step", "epoch") if key in row}
            for row in read_rows(stage)
        ]
    return rows


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All rows in a file; a last line that a killed writer cut short is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows

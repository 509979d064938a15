"""`stillroom export RUN --to FORM`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from stillroom.checkpoint import read_json
from stillroom.console import console
from stillroom.errors import UserError
from stillroom.exporting import latency
from stillroom.exporting.writing import EXPORT, export, said
from stillroom.parsing import leading, parse

USAGE = "stillroom export RUN --to FORM"
WIDE = 130
"""Characters that the table of times takes."""


@dataclass
class ExportOptions:
    """Write what a finished run made in a form that is used elsewhere, checked against the run's own product."""

    to: str = ""
    """onnx, torch-export, diffusers, transformers, timm or hub-folder; which fit depends on the product."""
    out: Path | None = None
    """New folder to write; None: RUN/exports/FORM."""
    force: bool = False
    """Replace an export that is there."""
    latency: bool = True
    """Time student, teacher and plain student on this machine, in each form."""
    batches: tuple[int, ...] = (1, 64)
    """Batch sizes that are timed, each >= 1."""


def run_export(args: list[str]) -> int:
    """The command; returns the exit status."""
    names = leading(args)
    if not names and not {"-h", "--help"} & set(args):
        raise UserError(f"the folder of a run is missing: {USAGE}")
    if len(names) > 1:
        raise UserError(f"'{names[1]}' is one name too many: {USAGE}")
    options = parse(ExportOptions, args[len(names) :], "stillroom export RUN", ExportOptions())
    if not options.to:
        raise UserError(f"--to is missing: {USAGE}")
    folder = export(
        names[0],
        options.to,
        options.out,
        force=options.force,
        latency=options.latency,
        batches=options.batches,
    )
    _show(folder)
    return 0


def _show(folder: Path) -> None:
    to, about = console(), read_json(folder / EXPORT)
    if about.get("agreement"):
        to.print(said(about["agreement"]), markup=False)
    found = about.get("latency")
    if found:
        machine = found["machine"]
        to.print(f"\non {machine['processor']}, {machine['cores']} cores, {found['threads']} thread(s):\n")
        for rows in (latency.time_rows(found), latency.size_rows(found)):
            to.print(_table(rows), width=max(to.width, WIDE))
            to.print()
        for line in found.get("left_out", ()):
            to.print(f"not timed: {line}", markup=False)
    to.print(f"written  {folder}", markup=False)


def _table(rows: Sequence[Sequence[str]]) -> Table:
    made = Table(box=None, pad_edge=False, padding=(0, 2))
    for number, heading in enumerate(rows[0]):
        made.add_column(heading, justify="left" if number < 2 else "right", no_wrap=True)
    for row in rows[1:]:
        made.add_row(*row)
    return made

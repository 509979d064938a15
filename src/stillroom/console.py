"""What the terminal shows: progress while a fit runs, tables when it is over."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO, TypeVar, cast

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from stillroom.engine import Watcher
from stillroom.words import amount, span

T = TypeVar("T")

QUANTITIES = (
    ("accuracy", "accuracy", "test"),
    ("calibration error", "expected_calibration_error", "test"),
    ("parameters", "parameters", "cost"),
    ("multiply-adds", "multiply_adds", "cost"),
    ("latency, batch 1", "latency_1", "cost"),
    ("evaluations a sample", "evaluations", "cost"),
    ("time a sample", "seconds_per_sample", "cost"),
    ("file", "file_bytes", "cost"),
)


class Outlived:
    """A stream whose reader may go (a pipe, a terminal that is hung up): then it takes all and says no more."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, if somebody is there."""
        return self._heard(lambda: self._stream.write(text)) or 0

    def flush(self) -> None:
        """Hand on what is written, if somebody is there."""
        self._heard(self._stream.flush)

    def _heard(self, call: Callable[[], T]) -> T | None:
        try:
            return call()
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            return None


def console() -> Console:
    """Where people read: standard output, as plain text where it is no terminal. A run goes on when they are gone."""
    stream = cast(TextIO, Outlived(sys.stdout))
    return Console(file=stream, highlight=False, soft_wrap=not sys.stdout.isatty())


class Bars(Watcher):
    """A progress bar with rate and time left for one fit."""

    def __init__(self, arm: str, to: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description:<10}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps  {task.fields[rate]} steps/s"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=to,
        )
        self._bar = self._progress.add_task(arm, total=1, rate="-", note="")
        self._began, self._from = 0.0, 0

    def begins(self, steps: int, at: int) -> None:
        """Show the bar."""
        self._began, self._from = time.perf_counter(), at
        self._progress.update(self._bar, total=steps, completed=at)
        self._progress.start()

    def stepped(self, step: int, row: Mapping[str, Any] | None) -> None:
        """Move it, once a row of metrics."""
        if row is None:
            return
        rate = (step - self._from) / max(1e-9, time.perf_counter() - self._began)
        fields: dict[str, Any] = {"rate": f"{rate:.0f}"}
        if "validation" in row:
            fields["note"] = _note(row).removeprefix(", ")
        self._progress.update(self._bar, completed=step, **fields)

    def ends(self) -> None:
        """Leave the bar as it stands."""
        self._progress.stop()


class Lines(Watcher):
    """A line every ten percent of one fit, for logs."""

    def __init__(self, arm: str, to: Console) -> None:
        self._arm, self._to = arm, to
        self._steps = self._tenth = 0
        self._evaluated = False
        self._began, self._from = 0.0, 0

    def begins(self, steps: int, at: int) -> None:
        """Say where the fit starts."""
        self._steps, self._from, self._tenth = steps, at, 10 * at // steps
        self._began = time.perf_counter()
        self._to.print(f"{self._arm}: {'going on from step ' + str(at) if at else 'starts'}, {steps} steps")

    def stepped(self, step: int, row: Mapping[str, Any] | None) -> None:
        """Say where it is at the first row of metrics after each tenth."""
        if row is None:
            return
        self._evaluated |= "validation" in row
        # Of a fit that is evaluated on the way, the line waits for the number.
        if 10 * step // self._steps == self._tenth or ("validation" in row) != self._evaluated:
            return
        self._tenth = 10 * step // self._steps
        seconds = time.perf_counter() - self._began
        rate = (step - self._from) / max(1e-9, seconds)
        left = (self._steps - step) / rate
        self._to.print(
            f"{self._arm}: step {step}/{self._steps}, {rate:.0f} steps/s, {left:.0f} s left{_note(row)}"
        )


def _note(row: Mapping[str, Any]) -> str:
    """The validation metric of a row, or a loss."""
    if "validation" in row:
        name, value = next(iter(row["validation"].items()))
        return f", validation {name} {amount(name, value)}"
    loss = next((key for key in row if key.startswith("loss")), None)
    return f", {loss} {row[loss]:.4g}" if loss else ""


def watcher(arm: str, to: Console) -> Watcher:
    """A bar on a terminal, lines elsewhere."""
    return Bars(arm, to) if to.is_terminal else Lines(arm, to)


def result_table(result: Mapping[str, Any]) -> Table:
    """Teacher, plain student and distilled student side by side."""
    table = Table(box=None, pad_edge=False, padding=(0, 2))
    table.add_column("")
    arms = result["arms"]
    for name, arm in arms.items():
        table.add_column(f"{name} ({arm['role']})", justify="right")
    shown = {key for _, key, _ in QUANTITIES}
    for title, key, part in QUANTITIES:
        if any(key in arm[part] for arm in arms.values()):
            table.add_row(title, *(_quantity(key, arm[part].get(key)) for arm in arms.values()))
    if result["metric"] not in shown:
        metric = result["metric"]
        table.add_row(metric, *(_quantity(metric, arm["test"].get(metric)) for arm in arms.values()))
    table.add_row("training", *(_seconds(arm["seconds"]) for arm in arms.values()))
    return table


def _quantity(key: str, value: float | None) -> str:
    if value is None:
        return "-"
    if key.startswith(("latency", "seconds")):
        return f"{1e6 * value:.0f} us"
    if key == "file_bytes":
        return f"{value / 1000:.1f} kB"
    return f"{value:,}" if isinstance(value, int) else amount(key, value)


def _seconds(value: float) -> str:
    return f"{value:.1f} s"


def comparison_tables(evidence: Mapping[str, Any]) -> list[Table]:
    """The arms with mean and spread over seeds, and the paired comparisons with their intervals."""
    metric, seeds = evidence["metric"], len(evidence["seeds"])
    arms = Table(box=None, pad_edge=False, padding=(0, 2))
    for title in ("arm", f"{metric}, mean of {seeds} seeds", "spread", "seconds"):
        arms.add_column(title, justify="left" if title == "arm" else "right")
    for name, arm in evidence["arms"].items():
        arms.add_row(name, amount(metric, arm["mean"]), amount(metric, arm["std"]), f"{arm['seconds']:.1f}")
    pairs = Table(box=None, pad_edge=False, padding=(0, 2))
    for title in ("comparison", "difference", "95 % interval", "wins", "verdict"):
        pairs.add_column(title, justify="left" if title in ("comparison", "verdict") else "right")
    for row in evidence["comparisons"]:
        pairs.add_row(*_comparison(metric, row, seeds))
    return [arms, pairs]


def _comparison(metric: str, row: Mapping[str, Any], seeds: int) -> Sequence[str]:
    from stillroom.words import change, pair_words

    metric = row.get("metric") or metric
    interval = span(metric, tuple(row["interval"])) if row["interval"] else "too few seeds"
    named = pair_words(row) + ("" if row["headline"] else "  (beside the claim)")
    return named, change(metric, row["mean"]), interval, f"{row['wins']}/{seeds}", row["verdict"]

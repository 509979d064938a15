"""How long the student, its teacher and the plain student take on this machine, in each form, and how large they are.

All are timed in turn, round by round, so that whatever else the machine does falls on all of them alike.
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stillroom import facts, metrics
from stillroom.errors import UserError
from stillroom.exporting.agreement import Call, answer
from stillroom.exporting.card import table
from stillroom.exporting.forms import Graph
from stillroom.exporting.graphs import WRITERS
from stillroom.reports.formats import duration, engineering, ratio

EAGER = "PyTorch"
NAMES = {"onnx": "ONNX Runtime", "torch-export": "torch.export"}
ROUNDS, SHARE, LEAST = 7, 0.02, 3
"""Rounds; seconds of each row in each round; and how often it is timed in one at least."""

Row = dict[str, Any]


def measure(graphs: Mapping[str, Graph], forms: Sequence[str], batches: Sequence[int]) -> dict[str, Any]:
    """Times and sizes of every network (the student is the first) in PyTorch and each of `forms`, by batch size.

    A network that has not one of the forms is left out of it, which `left_out` says.
    """
    threads = torch.get_num_threads()
    cells: list[tuple[Row, Callable[[], object]]] = []
    sizes: list[Row] = []
    left_out: list[str] = []
    with tempfile.TemporaryDirectory() as place:
        for arm, graph in graphs.items():
            most: dict[str, float] = {EAGER: math.inf}
            calls: dict[str, Call] = {EAGER: partial(answer, graph)}
            sizes.append({"arm": arm, "file": "model.safetensors", "bytes": metrics.file_size(graph.network)})
            for form in forms:
                file, write, run = WRITERS[form]
                folder = Path(place) / f"{len(sizes)}-{form}"
                folder.mkdir()
                try:
                    most[NAMES[form]] = write(folder, graph).get("largest", {}).get("batch", math.inf)
                    calls[NAMES[form]] = run(folder / file, graph, threads)
                except UserError as error:
                    left_out.append(f"{arm} in {NAMES[form]}: {error}")
                    continue
                size = sum(path.stat().st_size for path in folder.iterdir())
                sizes.append({"arm": arm, "file": file, "bytes": size})
            for batch in batches:
                rows = _rows(graph, batch)
                for form, call in calls.items():
                    if batch > most[form]:
                        left_out.append(f"{arm} in {form} at {batch}: it takes batches of up to {most[form]}")
                        continue
                    cells.append(
                        ({"arm": arm, "form": form, "batch": batch}, lambda c=call, rows=rows: c(rows))
                    )
        _time(cells)
    return {
        "machine": facts.machine(),
        "threads": threads,
        "rounds": ROUNDS,
        "times": [row for row, _ in cells],
        "sizes": sizes,
        **({"left_out": left_out} if left_out else {}),
    }


def beside(graph: Graph, others: Mapping[str, Any], own: str) -> dict[str, Graph]:
    """The student called `own`, and the others, as graphs of the same inputs."""
    return {own: graph, **{arm: replace(graph, network=other.eval()) for arm, other in others.items()}}


def _rows(graph: Graph, batch: int) -> dict[str, Tensor]:
    """That many samples; where there are fewer, the same ones again."""
    drawn = graph.draw(batch)
    return {name: values[torch.arange(batch) % len(values)].contiguous() for name, values in drawn.items()}


def _time(cells: Sequence[tuple[Row, Callable[[], object]]]) -> None:
    """Put median, tenth and ninetieth percentile of the seconds into each row."""
    seen: list[list[float]] = [[] for _ in cells]
    for _ in range(ROUNDS):
        for times, (_, call) in zip(seen, cells, strict=True):
            call()
            began, done = time.perf_counter(), 0
            while done < LEAST or time.perf_counter() - began < SHARE:
                start = time.perf_counter()
                call()
                times.append(time.perf_counter() - start)
                done += 1
    for times, (row, _) in zip(seen, cells, strict=True):
        cuts = statistics.quantiles(times, n=10)
        row |= {"median": statistics.median(times), "low": cuts[0], "high": cuts[-1], "repeats": len(times)}


def time_rows(found: Mapping[str, Any]) -> list[list[str]]:
    """The table of times, headings first; ratios are to the student in PyTorch at the same batch size."""
    times = found["times"]
    own = {
        row["batch"]: row["median"] for row in times if row["arm"] == times[0]["arm"] and row["form"] == EAGER
    }
    rows = [
        ["", "form", "batch", "median", "10 % to 90 %", "repeats", "a sample", "to the student in PyTorch"]
    ]
    for row in times:
        spread = f"{duration(row['low'])} to {duration(row['high'])}"
        numbers = [
            duration(row["median"]),
            spread,
            str(row["repeats"]),
            duration(row["median"] / row["batch"]),
        ]
        rows.append(
            [row["arm"], row["form"], str(row["batch"]), *numbers, ratio(row["median"], own[row["batch"]])]
        )
    return rows


def size_rows(found: Mapping[str, Any]) -> list[list[str]]:
    """The table of sizes, headings first; ratios are to the student's weights."""
    first = found["sizes"][0]["bytes"]
    rows = [["", "file", "size", "to the student's weights"]]
    for row in found["sizes"]:
        rows.append([row["arm"], row["file"], engineering(row["bytes"], "B"), ratio(row["bytes"], first)])
    return rows


def section(found: Mapping[str, Any]) -> list[str]:
    """What the card says of times and sizes."""
    machine = found["machine"]
    where = f"{machine['processor']}, {machine['system']}, {machine['cores']} core(s), {found['threads']} thread(s)"
    lines = [
        f"Measured on one machine ({where}) in {found['rounds']} rounds over all rows in turn. The teacher and the "
        "plain student are timed with their architecture; the plain student's is the student's own, so that its "
        "distance from the student shows how far to trust a ratio.",
        "",
        *table(time_rows(found)),
        *table(size_rows(found)),
    ]
    return [*lines, *(f"Not timed: {line}" for line in found.get("left_out", ()))]

"""Times and sizes: every row in turn, medians and spreads of what was measured, ratios to the student."""

from __future__ import annotations

import statistics
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stillroom.exporting import latency
from stillroom.exporting.forms import Graph


class Slow(nn.Module):
    """Tells a clock that it took `seconds`."""

    def __init__(self, clock: list[float], seconds: float) -> None:
        super().__init__()
        self.clock, self.seconds = clock, seconds

    def forward(self, x: Tensor) -> Tensor:
        self.clock[0] += self.seconds * len(x)
        return x


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A student that takes 1 ms a sample and a teacher that takes 4, by a clock that only they move."""
    clock = [0.0]
    monkeypatch.setattr(latency.time, "perf_counter", lambda: clock[0])
    few = torch.randn(3, 2)
    student = Graph(Slow(clock, 1e-3), lambda count: {"x": few[:count]}, "", "y")
    graphs = latency.beside(student, {"teacher": Slow(clock, 4e-3)}, "nkd")
    return latency.measure(graphs, (), (1, 8))


def test_medians_are_those_of_the_clock(found: dict[str, Any]) -> None:
    medians = {(row["arm"], row["batch"]): row["median"] for row in found["times"]}
    assert medians == {
        ("nkd", 1): pytest.approx(1e-3),
        ("nkd", 8): pytest.approx(8e-3),  # of three samples, which come again
        ("teacher", 1): pytest.approx(4e-3),
        ("teacher", 8): pytest.approx(32e-3),
    }
    for row in found["times"]:
        assert row["low"] == pytest.approx(row["median"]) == pytest.approx(row["high"])
        assert row["repeats"] >= latency.ROUNDS * latency.LEAST


def test_ratios_are_to_the_student_in_pytorch_at_the_same_batch(found: dict[str, Any]) -> None:
    rows = [[cell.replace("\u202f", " ") for cell in row] for row in latency.time_rows(found)]
    assert rows[0][-1] == "to the student in PyTorch"
    assert [(row[0], row[2], row[-1]) for row in rows[1:]] == [
        ("nkd", "1", "1.00"),
        ("nkd", "8", "1.00"),
        ("teacher", "1", "4.00"),
        ("teacher", "8", "4.00"),
    ]
    assert rows[2][6].replace("\xa0", " ") == "1 ms"


def test_rows_are_timed_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(latency, "SHARE", 0.0)
    cells = [({}, lambda name=name: order.append(name)) for name in "ab"]
    latency._time(cells)
    one = ["a"] * (1 + latency.LEAST) + ["b"] * (1 + latency.LEAST)
    assert order == one * latency.ROUNDS


def test_the_spread_is_the_tenth_and_ninetieth_percentile(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, takes = [0.0], iter(range(1, 1000))
    monkeypatch.setattr(latency.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(latency, "SHARE", 0.0)

    def call() -> None:
        clock[0] += next(takes)

    row: dict[str, Any] = {}
    latency._time([(row, call)])
    # of every round the first call is not timed
    timed = [n for n in range(1, latency.ROUNDS * (1 + latency.LEAST) + 1) if n % (1 + latency.LEAST) != 1]
    cuts = statistics.quantiles(timed, n=10)
    assert (row["median"], row["low"], row["high"]) == (statistics.median(timed), cuts[0], cuts[-1])


def test_a_network_that_has_not_a_form_is_left_out_and_said() -> None:
    class Counts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(len(x), -1)

    student = Graph(nn.Flatten().eval(), lambda count: {"x": torch.randn(count, 2, 2)}, "", "y")
    found = latency.measure(latency.beside(student, {"teacher": Counts()}, "nkd"), ("torch-export",), (2,))
    rows = [(row["arm"], row["form"]) for row in found["times"]]
    assert rows == [("nkd", "PyTorch"), ("nkd", "torch.export"), ("teacher", "PyTorch")]
    (line,) = found["left_out"]
    assert line.startswith("teacher in torch.export: Counts fixes the size of a batch")
    assert f"Not timed: {line}" in latency.section(found)

"""What the terminal shows."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from stillroom.claim import Rule, compare
from stillroom.console import Bars, Lines, comparison_tables, console, result_table, watcher
from stillroom.engine import Engine
from toys import Fit, Toy


def paper(terminal: bool = False) -> Console:
    """A console that writes to memory."""
    return Console(file=io.StringIO(), force_terminal=terminal, width=160, highlight=False, color_system=None)


def said(to: Console) -> str:
    assert isinstance(to.file, io.StringIO)
    return to.file.getvalue()


def rows(to: Console) -> list[list[str]]:
    """Lines of a table, cut into its cells."""
    return [
        [cell.strip() for cell in line.split("  ") if cell.strip()]
        for line in said(to).splitlines()
        if line.strip()
    ]


def row(step: int, value: float) -> dict[str, Any]:
    return {"step": step, "epoch": 1.0, "validation": {"accuracy": value, "loss": 0.5}}


# -- watching ---------------------------------------------------------------------------------------------------


def test_lines_come_once_a_tenth_and_at_the_end() -> None:
    to = paper()
    lines = Lines("nkd", to)
    lines.begins(200, 0)
    for step in range(1, 201):
        lines.stepped(step, row(step, 0.5) if step % 5 == 0 else None)
    lines.ends()
    found = said(to).splitlines()
    assert found[0] == "nkd: starts, 200 steps"
    assert [line.split()[2] for line in found[1:]] == [f"{20 * i}/200," for i in range(1, 11)]
    assert found[-1].endswith("0 s left, validation accuracy 50.0 %")


def test_lines_say_where_a_resumed_fit_goes_on() -> None:
    to = paper()
    lines = Lines("nkd", to)
    lines.begins(100, 42)
    lines.stepped(45, row(45, 0.25))
    lines.stepped(50, row(50, 0.25))
    found = said(to).splitlines()
    assert found[0] == "nkd: going on from step 42, 100 steps"
    assert len(found) == 2
    assert found[1].startswith("nkd: step 50/100, ")
    assert found[1].endswith("validation accuracy 25.0 %")


def test_the_rate_counts_the_steps_of_this_session_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([100.0, 102.0])
    monkeypatch.setattr("stillroom.console.time.perf_counter", lambda: next(times))
    to = paper()
    lines = Lines("nkd", to)
    lines.begins(100, 40)
    lines.stepped(60, row(60, 0.25))
    assert "step 60/100, 10 steps/s, 4 s left" in said(to)


def test_rows_of_losses_make_lines_until_there_is_a_validation_number() -> None:
    to = paper()
    lines = Lines("nkd", to)
    lines.begins(10, 0)
    lines.stepped(3, {"step": 3, "loss/student": 1.25})
    lines.stepped(5, {"step": 5, "validation": {"accuracy": 0.5}})
    lines.stepped(7, {"step": 7, "loss/student": 1.0})
    first, loss, number = said(to).splitlines()
    assert first == "nkd: starts, 10 steps"
    assert loss.endswith(", loss/student 1.25")
    assert number.endswith(", validation accuracy 50.0 %")


def test_a_bar_ends_full_with_its_last_validation() -> None:
    to = paper(terminal=True)
    Engine(epochs=2, batch_size=8, log_every=2).fit(Fit(), Toy(), 0, watcher=Bars("fit", to))
    last = said(to).split("fit")[-1]
    assert "10/10" in last
    assert "steps/s" in last
    assert "validation accuracy" in last


def test_a_terminal_gets_a_bar_and_a_log_gets_lines() -> None:
    assert isinstance(watcher("nkd", paper(terminal=True)), Bars)
    assert isinstance(watcher("nkd", paper()), Lines)


def test_where_no_terminal_is_lines_are_not_wrapped(capsys: pytest.CaptureFixture[str]) -> None:
    console().print("word " * 100)
    assert len(capsys.readouterr().out.splitlines()) == 1


# -- tables -----------------------------------------------------------------------------------------------------

RESULT: dict[str, Any] = {
    "metric": "accuracy",
    "arms": {
        "plain": {
            "role": "baseline",
            "seconds": 3.21,
            "test": {"accuracy": 0.9255, "expected_calibration_error": 0.031},
            "cost": {"parameters": 16810, "multiply_adds": 890, "latency_1": 3.4e-5, "file_bytes": 67400},
        },
        "nkd": {
            "role": "student",
            "seconds": 4.56,
            "test": {"accuracy": 0.951, "expected_calibration_error": 0.028},
            "cost": {"parameters": 1234567, "multiply_adds": 890},
        },
    },
}


def test_arms_stand_side_by_side_with_their_units() -> None:
    to = paper()
    to.print(result_table(RESULT))
    assert rows(to) == [
        ["plain (baseline)", "nkd (student)"],
        ["accuracy", "92.5 %", "95.1 %"],
        ["calibration error", "3.1 %", "2.8 %"],
        ["parameters", "16,810", "1,234,567"],
        ["multiply-adds", "890", "890"],
        ["latency, batch 1", "34 us", "-"],
        ["file", "67.4 kB", "-"],
        ["training", "3.2 s", "4.6 s"],
    ]


def test_a_metric_of_another_task_has_its_row_and_absent_ones_have_none() -> None:
    arm = {"role": "student", "seconds": 1.0, "test": {"distance": 0.01821}, "cost": {}}
    to = paper()
    to.print(result_table({"metric": "distance", "arms": {"matching": arm}}))
    assert rows(to) == [["matching (student)"], ["distance", "0.01821"], ["training", "1.0 s"]]


def evidence(metric: str, seeds: int) -> dict[str, Any]:
    scores = {"plain": [0.5, 0.6, 0.7, 0.8][:seeds], "nkd": [0.6, 0.72, 0.81, 0.905][:seeds]}
    rules = [Rule("nkd", "plain"), Rule("plain", "nkd", headline=False)]
    return {
        "metric": metric,
        "seeds": list(range(seeds)),
        "arms": {a: {"mean": sum(s) / seeds, "std": 0.0123, "seconds": 2.34} for a, s in scores.items()},
        "comparisons": [compare(rule, scores, higher_is_better=True) for rule in rules],
    }


def shown(metric: str, seeds: int) -> list[list[list[str]]]:
    found = []
    for table in comparison_tables(evidence(metric, seeds)):
        to = paper()
        to.print(table)
        found.append(rows(to))
    return found


def test_comparisons_have_interval_wins_and_verdict() -> None:
    arms, pairs = shown("accuracy", 4)
    assert arms == [
        ["arm", "accuracy, mean of 4 seeds", "spread", "seconds"],
        ["plain", "65.0 %", "1.2 %", "2.3"],
        ["nkd", "75.9 %", "1.2 %", "2.3"],
    ]
    assert pairs[0] == ["comparison", "difference", "95 % interval", "wins", "verdict"]
    assert pairs[1][:2] == ["nkd > plain", "+10.9 points"]
    assert pairs[1][3:] == ["4/4", "holds"]
    assert pairs[2][0] == "plain > nkd"
    assert pairs[2][1] == "(beside the claim)"
    assert pairs[2][2] == "-10.9 points"
    assert pairs[2][4:] == ["0/4", "refuted"]


def test_too_few_seeds_have_no_interval() -> None:
    _, pairs = shown("distance", 2)
    assert pairs[1] == ["nkd > plain", "+0.11", "too few seeds", "2/2", "inconclusive"]

"""Rows of metrics on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from stillroom.errors import UserError
from stillroom.history import History, read_fit, read_rows

ROWS = [{"step": 1, "loss/student": 0.1 + 0.2}, {"step": 2, "validation": {"accuracy": 1 / 3}}, {"step": 3}]


def filled(path: Path | None) -> History:
    history = History(path)
    for row in ROWS:
        history.write(row)
    return history


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    filled(tmp_path / "metrics.jsonl")
    assert read_rows(tmp_path / "metrics.jsonl") == ROWS
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_cutting_back_to_a_mark_forgets_what_came_after(tmp_path: Path) -> None:
    history = History(tmp_path / "metrics.jsonl")
    assert history.mark() == 0
    history.write(ROWS[0])
    mark = history.mark()
    history.write(ROWS[1])
    history.cut(mark)
    assert read_rows(history.path) == ROWS[:1]
    history.write(ROWS[2])
    assert read_rows(history.path) == [ROWS[0], ROWS[2]]
    history.cut(0)
    assert read_rows(history.path) == []


def test_a_last_line_that_was_cut_short_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    filled(path)
    whole = path.read_bytes()
    for left in range(len(whole) - 2, len(whole) - len(b'{"step": 3}\n'), -1):
        path.write_bytes(whole[:left])
        assert read_rows(path) == ROWS[:2]


def test_a_file_shorter_than_the_mark_is_not_filled_up(tmp_path: Path) -> None:
    history = filled(tmp_path / "metrics.jsonl")
    before = history.path.read_bytes()
    with pytest.raises(UserError, match="metrics.jsonl' is missing or shorter than the checkpoint says: "):
        history.cut(history.mark() + 1)
    assert history.path.read_bytes() == before


def test_words_of_any_language_are_one_line_each(tmp_path: Path) -> None:
    """U+2028 and U+0085 end a line for Python, not for JSON."""
    history = History(tmp_path / "metrics.jsonl")
    row = {"note": "Grüße\u2028und\x85mehr\nZeilen"}
    history.write(row)
    assert read_rows(history.path) == [row]


def test_no_path_no_rows(tmp_path: Path) -> None:
    history = filled(None)
    history.cut(history.mark())
    assert read_rows(tmp_path / "absent.jsonl") == []
    assert not list(tmp_path.iterdir())


def test_cutting_what_is_not_there_makes_nothing(tmp_path: Path) -> None:
    History(tmp_path / "metrics.jsonl").cut(0)
    with pytest.raises(UserError, match="metrics.jsonl' is missing or shorter"):
        History(tmp_path / "metrics.jsonl").cut(10)
    assert not list(tmp_path.iterdir())


def test_the_stages_of_a_fit_stand_one_behind_the_other(tmp_path: Path) -> None:
    for name, steps in (("01-first", (1, 2)), ("02-second", (1, 3))):
        stage = tmp_path / "stages" / name
        stage.mkdir(parents=True)
        history = History(stage / "metrics.jsonl")
        for step in steps:
            history.write({"step": step, "epoch": step / 2, "loss/student": 0.1 * step})
    rows = read_fit(tmp_path)
    assert [(row["step"], row["epoch"]) for row in rows] == [(1, 0.5), (2, 1.0), (3, 1.5), (5, 2.5)]
    assert [row["loss/student"] for row in rows] == [0.1, 0.2, 0.1, pytest.approx(0.3)]

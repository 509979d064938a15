"""Signals but SIGKILL: a run saves and says how to go on. Where nobody listens any more, it goes on."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from reliability.forks import QUICK, Forks
from reliability.outcomes import one_line, same
from stillroom import commands
from stillroom.cli import main
from stillroom.engine import Watcher
from stillroom.metrics import cost

LONG = [*QUICK, "--task.teacher-epochs", "40", "--engine.epochs", "40", "--engine.checkpoint-seconds", "1000"]


@pytest.fixture(scope="module")
def whole(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run."""
    folder = tmp_path_factory.mktemp("whole")
    assert forks.run("run", "nkd", *LONG, "--out", folder / "run", cache=folder / "cache") == (0, "")
    return folder / "run"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("where", ["arms/teacher", "arms/plain", "."])
def test_a_signal_saves_and_says_how_to_go_on(
    number: int, where: str, forks: Forks, whole: Path, tmp_path: Path
) -> None:
    """In the teacher's training and in the students'; with no checkpoint by the clock, so that it must be saved now."""
    run, cache = tmp_path / "run", tmp_path / "cache"
    child = forks.start("run", "nkd", *LONG, "--out", run, cache=cache)
    rows = run / where / "metrics.jsonl"
    end = time.monotonic() + 60
    while not rows.exists():
        assert time.monotonic() < end
        time.sleep(0.001)
    child.kill(number)
    status = child.wait()
    if status == 130:
        saved = f"stillroom: stopped, state saved: go on with stillroom run nkd --resume {run}"
        at_once = (
            f"stillroom: stopped at once: go on from the last checkpoint with {saved.rpartition('with ')[2]}"
        )
        assert one_line(child.said) in ([saved, at_once] if where == "." else [saved])
        assert len(list((run / where / "checkpoints").iterdir())) == 1
        assert forks.run("run", "nkd", "--resume", run, cache=cache) == (0, "")
    else:  # it came as the last stage had just ended, where only scores and page were left to do
        assert (where, status) in ((".", 0), (".", -number)), child.said
        assert status == 0 or forks.run("run", "nkd", "--resume", run, cache=cache) == (0, "")
    assert same(whole, run)


def test_a_hang_up_that_is_to_be_ignored_is(forks: Forks, whole: Path, tmp_path: Path) -> None:
    """Under nohup."""
    run = tmp_path / "run"
    child = forks.call("under_nohup", "run", "nkd", *LONG, "--out", str(run), cache=tmp_path / "cache")
    end = time.monotonic() + 60
    while not (run / "arms" / "teacher" / "metrics.jsonl").exists():
        assert time.monotonic() < end
        time.sleep(0.001)
    child.kill(signal.SIGHUP)
    assert child.wait() == 0, child.said
    assert same(whole, run)


class Impatient(Watcher):
    """Presses Ctrl-C twice in step 30: once to stop, once not to wait for it."""

    def stepped(self, step: int, row: Mapping[str, Any] | None) -> None:
        if step == 30:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(commands, "watcher", lambda *_: Impatient())
    monkeypatch.setattr(cost.latency, "__defaults__", (1, 0.0, None))
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_impatient")
def test_ctrl_c_twice_stops_at_once_and_names_the_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    words = ["--engine.epochs", "20", "--engine.checkpoint-every", "20"]
    assert main(["run", "plain", *words, "--out", str(run)]) == 130
    line = one_line(capsys.readouterr().err)
    assert line.endswith(f"go on from the last checkpoint with stillroom run plain --resume {run}")
    assert [c.name for c in (run / "checkpoints").iterdir()] == ["step-00000020"]


@pytest.mark.parametrize("end", ["pipe", "terminal"])
def test_a_run_outlives_who_listens(end: str, forks: Forks, whole: Path, tmp_path: Path) -> None:
    """A pipe whose reader has gone (`| head`), a terminal that is closed: nothing more is said, all is done."""
    run = tmp_path / "run"
    child = forks.call("unheard", end, "run", "nkd", *LONG, "--out", str(run), cache=tmp_path / "cache")
    assert child.wait() == 0, child.said
    assert same(whole, run)


def test_a_clock_that_goes_backwards(forks: Forks, whole: Path, tmp_path: Path) -> None:
    """An hour at every look: nothing but the date of the end goes by the clock on the wall."""
    run = tmp_path / "run"
    child = forks.call("back_in_time", "run", "nkd", *LONG, "--out", str(run), cache=tmp_path / "cache")
    assert child.wait() == 0, child.said
    assert same(whole, run)

"""Two runs in one folder: the second is refused in a line, the first is unharmed; a lock dies with its process."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from reliability.forks import QUICK, Forks, below
from reliability.outcomes import left, one_line, same

LONG = [*QUICK, "--engine.epochs", "60", "--engine.checkpoint-every", "20"]


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.002)


def wait_for(path: Path) -> None:
    wait_until(path.exists)


def test_the_second_is_refused_and_the_first_goes_on(forks: Forks, tmp_path: Path) -> None:
    whole, run, cache = tmp_path / "whole", tmp_path / "run", tmp_path / "cache"
    assert forks.run("run", "plain", *LONG, "--out", whole) == (0, "")
    first = forks.start("run", "plain", *LONG, "--out", run, cache=cache)
    wait_for(run / "checkpoints")
    first.kill(signal.SIGSTOP)  # it holds the folder for as long as the others ask
    held = (run / ".lock").read_text()
    for words in (["--resume", run], [*LONG, "--out", run]):
        status, said = forks.run("run", "plain", *words, cache=cache)
        assert status == 2
        assert "in use by another process" in one_line(said) or "is not empty" in one_line(said)
    assert (run / ".lock").read_text() == held == str(first.pid)
    first.kill(signal.SIGCONT)
    assert first.wait() == 0
    assert same(whole, run)


@pytest.mark.parametrize("at", [1, 2, 3])
def test_two_that_start_at_once_are_one_run(at: int, forks: Forks, tmp_path: Path) -> None:
    """One finds the folder empty and is stopped at its first writes there, while the other starts."""
    run = tmp_path / "run"
    stop = {"kind": "stop", "folders": below(run), "at": at}
    one = forks.start("run", "plain", *QUICK, "--seed", "1", "--out", run, fault=stop)
    wait_until(lambda: Path(f"/proc/{one.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
    other = forks.start("run", "plain", *QUICK, "--seed", "2", "--out", run)
    ended = [other.wait()]
    one.kill(signal.SIGCONT)
    ended.insert(0, one.wait())
    assert sorted(ended) == [0, 2], (one.said, other.said)
    one_line((one, other)[ended.index(2)].said)
    config, result = (json.loads((run / f"{name}.json").read_text()) for name in ("config", "result"))
    assert config["seed"] == result["seed"] == 1 + ended.index(0)
    assert left(run)


def test_the_lock_of_a_killed_run_is_no_obstacle(forks: Forks, tmp_path: Path) -> None:
    """The file stays, with the number of a process that is gone; the lock on it does not."""
    run = tmp_path / "run"
    child = forks.start("run", "plain", *LONG, "--out", run)
    wait_for(run / "checkpoints")
    child.kill()
    assert child.wait() == -9
    assert (run / ".lock").read_text() == str(child.pid)
    assert forks.run("run", "plain", "--resume", run) == (0, "")


def test_a_worker_that_outlives_its_run_does_not_hold_the_folder(forks: Forks, tmp_path: Path) -> None:
    """A forked process, such as one that loads data, has the lock's file open too, and may end seconds later."""
    (tmp_path / "config.json").write_text("{}")
    child = forks.call("holder_with_worker", str(tmp_path))
    wait_for(tmp_path / "worker")
    worker = int((tmp_path / "worker").read_text())
    try:
        child.kill()
        assert child.wait() == -9
        os.kill(worker, 0)  # it is there
        assert forks.call("hold", str(tmp_path)).wait() == 0
    finally:
        os.kill(worker, signal.SIGKILL)

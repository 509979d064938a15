"""What children do besides running the command line; each returns an exit status."""

from __future__ import annotations

import itertools
import os
import pty
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple


def said(job: Callable[[], None]) -> int:
    """Do `job` as the command line does a command."""
    from stillroom import cli

    def dispatch(_: list[str]) -> int:
        job()
        return 0

    cli._dispatch = dispatch
    return cli.main([])


class Usage(NamedTuple):
    free: int


def kept_samples(crowded: str = "") -> int:
    """Three arrays of 200 kB on a disk of a megabyte, which another program fills once there seems to be room."""
    import torch

    from stillroom import comparing, store
    from stillroom.caching import cache

    usage, filler = shutil.disk_usage, cache() / "filler"

    def and_then_full(place: Path) -> Any:
        free = usage(place).free
        filler.write_bytes(bytes(500_000))
        return Usage(free)

    shutil.disk_usage = and_then_full if crowded else usage

    def make(rows: range) -> dict[str, torch.Tensor]:
        return {name: torch.ones(len(rows), 50) for name in "abc"}

    def job() -> None:
        with comparing.stoppable():
            made = store.kept_store("pairs", {}, 1000, make)
        assert bool((made.rows("c") == 1).all())

    return said(job)


def evidence(folder: str, date: str) -> int:
    """`stillroom claims` of a claim that has been measured in no time."""
    from stillroom import comparing

    entry = {
        "name": "nkd-digits",
        "says": "s",
        "notes": "",
        "metric": "accuracy",
        "higher_is_better": True,
        "seeds": [0],
        "arms": {},
        "comparisons": [],
        "verdict": "inconclusive",
        "date": date,
        "versions": {},
        "machine": {},
        "task": {},
        "engine": {},
        "seconds": 1.0,
    }
    comparing.prove = lambda *_: dict(entry)
    from stillroom.cli import main

    os.environ["COLUMNS"] = "100"
    return main(["claims", "nkd-uskd", "--only", "nkd-digits", "--evidence", folder])


def hold(folder: str) -> int:
    """Take the lock of a run and let go of it."""
    from stillroom.run import Run

    def job() -> None:
        with Run(Path(folder)).held():
            pass

    return said(job)


def holder_with_worker(folder: str) -> int:
    """Hold a run, and fork a process that does nothing for a minute."""
    from stillroom.run import Run

    with Run(Path(folder)).held():
        worker = os.fork()
        if not worker:
            time.sleep(60)
            os._exit(0)
        part = Path(folder, "worker.part")
        part.write_text(str(worker))
        part.rename(Path(folder, "worker"))
        time.sleep(60)
    return 0


def under_nohup(*words: str) -> int:
    """The command line, where a hang-up is to be ignored."""
    from stillroom.cli import main

    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    return main(list(words))


def unheard(end: str, *words: str) -> int:
    """The command line, its output into a pipe that nobody reads or a terminal that is closed."""
    from stillroom.cli import main

    reader, writer = os.pipe() if end == "pipe" else pty.openpty()
    os.dup2(writer, 1)
    os.close(writer)
    os.close(reader)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    return main(list(words))


def back_in_time(*words: str) -> int:
    """The command line, with a clock that goes back an hour whenever it is looked at."""
    from stillroom.cli import main

    hours = itertools.count()
    time.time = lambda: 2e9 - 3600 * next(hours)
    return main(list(words))

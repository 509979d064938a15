"""Runs of the command line that start in a moment and can be killed or robbed of their disk at any write.

A parent process imports what a run needs and then forks a child a run, so that fifty starts cost seconds and not
minutes. A child is a process like any other: it has its own memory, locks and files, and SIGKILL ends it.

A `fault` strikes at the `at`-th write (from 1) below a folder: "kill" is SIGKILL just before the write, "stop"
SIGSTOP, "full" an OSError of a full disk in its place and in that of all later ones; "note" only lists the writes in
a file. "limit" is the kernel's own: no file may grow beyond `at` bytes.
"""

from __future__ import annotations

import errno
import io
import json
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

QUICK = ["--task.train-samples", "120", "--task.student-samples", "60", "--task.teacher-epochs", "2"]
QUICK = [*QUICK, "--engine.epochs", "3"]
"""Options of a run of a moment: six steps for the teacher, six for each student."""

FILLING = ("open", "os.mkdir", "os.rename", "os.link")
"""Events that a full disk can refuse; removing and cutting need no room."""
WRITING = (*FILLING, "os.truncate", "os.remove", "os.rmdir")


@dataclass
class Child:
    """A run that was started."""

    pid: int
    heard: Path
    """What it prints goes to this file with .out, its errors to .err."""
    forks: Forks

    def wait(self) -> int:
        """Its exit status, or minus the signal that ended it."""
        return os.waitstatus_to_exitcode(self.forks.ask({"wait": self.pid}))

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send it a signal; one that has ended but was not waited for does not mind."""
        os.kill(self.pid, number)

    @property
    def said(self) -> str:
        """Its errors so far."""
        return self.heard.with_suffix(".err").read_text(errors="backslashreplace")

    @property
    def printed(self) -> str:
        """What it printed so far."""
        return self.heard.with_suffix(".out").read_text(errors="backslashreplace")


class Forks:
    """The parent process; a context manager."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder, self.count = folder, 0
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "STILLROOM_CACHE": str(cache)}
        self._parent = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._parent.stdin
        self._parent.stdin.close()
        self._parent.wait(60)

    def ask(self, what: dict[str, Any]) -> int:
        """One request to the parent, and its answer."""
        assert self._parent.stdin and self._parent.stdout
        self._parent.stdin.write(json.dumps(what) + "\n")
        self._parent.stdin.flush()
        return int(self._parent.stdout.readline())

    def start(
        self, *words: str | Path, cache: Path | None = None, fault: dict[str, Any] | None = None
    ) -> Child:
        """`stillroom WORDS` in a child of its own."""
        self.count += 1
        heard = self.folder / f"heard-{self.count}"
        job = {"words": [str(word) for word in words], "heard": str(heard), "fault": fault}
        pid = self.ask(job | {"cache": cache and str(cache)})
        return Child(pid, heard, self)

    def call(
        self, name: str, *words: str, cache: Path | None = None, fault: dict[str, Any] | None = None
    ) -> Child:
        """A function of `reliability.jobs` in a child of its own."""
        return self.start(f"@{name}", *words, cache=cache, fault=fault)

    def run(
        self, *words: str | Path, cache: Path | None = None, fault: dict[str, Any] | None = None
    ) -> tuple[int, str]:
        """The same to its end: exit status and errors."""
        child = self.start(*words, cache=cache, fault=fault)
        return child.wait(), child.said


def below(*folders: Path) -> list[str]:
    """The folders of a fault."""
    return [str(folder) for folder in folders]


# -- in the parent and its children -----------------------------------------------------------------------------


def _serve() -> None:
    for line in sys.stdin:
        asked = json.loads(line)
        answer = os.waitpid(asked["wait"], 0)[1] if "wait" in asked else _fork(asked)
        print(answer, flush=True)


def _fork(job: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        for number, name, flags in ((0, os.devnull, os.O_RDONLY), (1, ".out", 0), (2, ".err", 0)):
            made = flags or os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            os.dup2(os.open(job["heard"] + name if number else name, made, 0o600), number)
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", closefd=False, errors="backslashreplace", buffering=1)  # noqa: SIM115
        status = _child(job)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def _child(job: dict[str, Any]) -> int:
    from stillroom.cli import main

    if job["cache"]:
        os.environ["STILLROOM_CACHE"] = job["cache"]
    fault = job["fault"]
    if fault and fault["kind"] == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (fault["at"], resource.RLIM_INFINITY))
    elif fault:
        sys.addaudithook(Fault(**fault))
    command, *words = job["words"]
    if not command.startswith("@"):
        return main([command, *words])
    from reliability import jobs

    return getattr(jobs, command[1:])(*words)


class Fault:
    """Counts the writes below `folders` and strikes at one of them."""

    def __init__(self, kind: str, folders: list[str], at: int = 0, log: str = "") -> None:
        self.kind, self.folders, self.at, self.seen = kind, folders, at, 0
        self.events = WRITING if kind == "kill" else FILLING
        self.log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600) if log else None

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if event not in self.events or not _writes(event, args):
            return
        path = os.fsdecode(args[1] if event == "os.rename" else args[0])
        if not any(path == folder or path.startswith(folder + "/") for folder in self.folders):
            return
        self.seen += 1
        if self.log is not None:
            os.write(self.log, f"{event} {path}\n".encode())
        if self.kind == "kill" and self.seen == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)
        if self.kind == "stop" and self.seen == self.at:
            os.kill(os.getpid(), signal.SIGSTOP)
        if self.kind == "full" and self.seen >= self.at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


def _writes(event: str, args: tuple[Any, ...]) -> bool:
    if not isinstance(args[0], (str, bytes)):
        return False
    if event != "open":
        return True
    mode, flags = args[1], args[2]
    return any(c in "wax+" for c in mode or "") or bool((flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def _prepare() -> None:
    """Do a run of a moment, so that all that a run imports is there; then leave out what only takes time.

    On processors alone torch starts no thread for its gradients, so forking after a run is sound.
    """
    import tempfile

    import torch

    torch.set_num_threads(1)
    from stillroom.cli import main
    from stillroom.metrics import cost
    from stillroom.reports import figures

    with tempfile.TemporaryDirectory() as folder:
        os.environ["STILLROOM_CACHE"], kept = folder, os.environ["STILLROOM_CACHE"]
        sys.stdout = io.StringIO()
        assert main(["run", "nkd", *QUICK, "--out", f"{folder}/run"]) == 0
        sys.stdout = sys.__stdout__
        os.environ["STILLROOM_CACHE"] = kept
    cost.latency.__defaults__, cost.seconds_of.__defaults__ = (1, 0.0, None), (0.0,)
    figures.draw = lambda *_: '<svg viewBox="0 0 1 1"><title id="title">a figure</title></svg>'


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    _prepare()
    _serve()

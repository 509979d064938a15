"""A Run is a folder: config, metrics, checkpoints, the student, a report. It knows how to be read back."""

from __future__ import annotations

import fcntl
import importlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from stillroom.checkpoint import read_json, write_json
from stillroom.errors import UserError
from stillroom.history import read_fit

if TYPE_CHECKING:
    from torch import nn

    from stillroom.task import Task

CONFIG, RESULT = "config.json", "result.json"
_FOLDERS = ("arms", "checkpoints", "stages", "student")
_BEGUN = (f".{CONFIG}.part", ".lock")
"""What a start leaves that was killed before there was a run."""


@dataclass(frozen=True)
class Run:
    """One run's folder."""

    path: Path

    @classmethod
    def create(cls, path: Path, config: Mapping[str, Any]) -> Run:
        """Start a run in a new or empty folder; UserError where it is in use or cannot be written."""
        _check_empty(path)
        try:
            str(path).encode()
        except UnicodeEncodeError:
            raise UserError(
                f"--out '{path}' is no UTF-8, and safetensors reads no such folder: pass another one"
            ) from None
        try:
            path.mkdir(parents=True, exist_ok=True)
            with cls(path).held():
                _check_empty(path)  # another may have started since
                write_json(path / CONFIG, config)
        except OSError as error:
            raise UserError(
                f"--out '{path}' cannot be written ({error.strerror}): pass another folder"
            ) from None
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> Run:
        """An existing run; UserError where the folder holds none."""
        if not (path / CONFIG).is_file():
            raise UserError(f"'{path}' holds no run (no {CONFIG}): pass the --out folder of an earlier run")
        return cls(path)

    @property
    def config(self) -> dict[str, Any]:
        """Method, options, task, engine and seed, as the run was started."""
        config = read_json(self.path / CONFIG)
        parts = {"method": str, "options": dict, "task": dict, "engine": dict, "seed": int}
        if not isinstance(config, dict) or any(type(config.get(k)) is not kind for k, kind in parts.items()):
            raise UserError(
                f"'{self.path / CONFIG}' is no run's config: pass the --out folder of an earlier run"
            )
        return config

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return (self.path / RESULT).is_file()

    @property
    def result(self) -> dict[str, Any]:
        """What came out; UserError where the run is not finished."""
        if not self.finished:
            raise UserError(f"run '{self.path}' is not finished: go on with --resume {self.path}")
        result = read_json(self.path / RESULT)
        if not isinstance(result, dict) or not {"verdict", "arms", "metric"} <= set(result):
            raise UserError(f"'{self.path / RESULT}' is no run's result: go on with --resume {self.path}")
        return result

    def metrics(self, arm: str = ".") -> list[dict[str, Any]]:
        """Rows of metrics of the method (".") or of another arm by its folder."""
        return read_fit(self.path / arm)

    def student(self, module: nn.Module | None = None) -> Any:
        """What was distilled (a network, a sampler, an estimator, a data set), on the CPU and ready for use.

        `module` takes the weights of your own network.
        """
        home, _, name = str(self.config.get("problem", "")).partition(":")
        if not home.startswith("stillroom."):
            raise UserError(
                f"run '{self.path}' is of a task from '{home}': read '{self.path / 'student'}' with that task's load"
            )
        return _task_class(home, name, self.path / CONFIG).load(self.path / "student", module)

    def check_links(self) -> None:
        """Raise UserError where a link stands among what a run writes: what it leads to would be written over."""
        for top in self.path.iterdir():
            for path in (top, *(top.rglob("*") if top.name in _FOLDERS else ())):
                if path.is_symlink():
                    raise UserError(
                        f"run '{self.path}' holds a link, '{path}', and would write to where it leads: "
                        "put the file itself there"
                    )

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from writing to this run; UserError where one does."""
        with open(self.path / ".lock", "a", opener=_no_link) as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(
                    f"run '{self.path}' is in use by another process: wait for it or pass another --out"
                ) from None
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
            _HELD.add(lock)
            try:
                yield
            finally:
                _HELD.discard(lock)


def _task_class(home: str, name: str, config: Path) -> type[Task]:
    """The task `name` of our own module `home`; UserError for anything else that a config can name."""
    from stillroom.task import Task

    try:
        found = None if "__main__" in home else getattr(importlib.import_module(home), name)
    except (AttributeError, ImportError):
        found = None
    if not isinstance(found, type) or not issubclass(found, Task):
        raise UserError(
            f"'{config}' names the task '{home}:{name}', which Stillroom has not: restore the config"
        )
    return found


def _check_empty(path: Path) -> None:
    if path.is_dir() and any(f.is_symlink() or f.name not in _BEGUN for f in path.iterdir()):
        way = "pass another folder"
        if (path / CONFIG).exists():
            way = f"go on with --resume {path}, or pass another --out"
        raise UserError(f"--out '{path}' is not empty: {way}")


def _no_link(path: str, flags: int) -> int:
    """For `open`: a link is not followed, since the file that it leads to would be written over."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def _let_go() -> None:
    """A forked process (one that loads data) would hold the lock for as long as it outlives the run."""
    for lock in _HELD:
        lock.close()


_HELD: set[IO[str]] = set()
os.register_at_fork(after_in_child=_let_go)

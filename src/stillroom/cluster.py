"""A Ray cluster as a pool of processes for a comparison's cells: `--ray local`, `--ray auto`, `--ray HOST:PORT`.

Every node needs the environment of this one (the same Stillroom, torch and data under the same paths: each piece of
work sees to that before it begins) and trains teachers in its own cache, unless $STILLROOM_CACHE is a folder that
all nodes share. Cells come back as numbers, and this process alone stores them.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from stillroom import facts
from stillroom.config import digest
from stillroom.errors import UserError, reason
from stillroom.spreading import Work, one_thread

if TYPE_CHECKING:
    from stillroom.claim import Cell, Grid

RETRIES = 2
"""How often Ray does a piece of work again whose process died."""
TIMEOUT = 5.0
"""Seconds within which a cluster must answer."""


@dataclass(frozen=True)
class Home:
    """What a node must have in common with this machine for its numbers to be the same."""

    code: str
    data: str
    cache: str | None

    @classmethod
    def of(cls, grid: Grid) -> Home:
        """This machine's, for the task of `grid`."""
        code = digest([facts.source_digest(), facts.versions()])
        return cls(code, grid.task.fingerprint(), os.environ.get("STILLROOM_CACHE"))

    def enter(self, grid: Grid) -> None:
        """Work on this node as at home; UserError where that cannot be."""
        one_thread()
        if self.cache:
            os.environ["STILLROOM_CACHE"] = self.cache
        node = f"node '{socket.gethostname()}' of the Ray cluster"
        try:
            here = Home.of(grid)
        except UserError as error:
            raise UserError(f"{node}: {error}") from None
        if here.code != self.code:
            raise UserError(
                f"{node} has another Stillroom or other versions of what it computes with: install the same on "
                "every node"
            )
        if here.data != self.data:
            raise UserError(f"{node} has other data under the same name: give every node the same data")


def _do(home: Home, work: Work, grid: Grid) -> Cell | None:
    home.enter(grid)
    return work.do(grid)


class Cluster:
    """A Ray cluster, joined for as long as one comparison takes; a `local` one of `workers` is started for it."""

    def __init__(self, address: str, workers: int = 1) -> None:
        if address not in ("local", "auto"):
            _reach(address)
        self._ray = _library()
        self._home: Home | None = None
        about: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
        if address == "local":
            about |= {"num_cpus": workers, "include_dashboard": False}
        elif address != "auto" and not address.startswith("ray://"):
            _see_healthy(address)
        try:
            self._ray.init(address=address, **about)
        except (OSError, RuntimeError, ValueError) as error:
            raise _unreachable(address, reason(error)) from None
        self._remote = self._ray.remote(num_cpus=1, max_retries=RETRIES)(_do)

    @property
    def size(self) -> int:
        """The processors of the cluster, as many as it has now."""
        return max(1, int(self._ray.cluster_resources().get("CPU", 1)))

    def submit(self, work: Work, grid: Grid) -> Future[Any]:
        """See `Pool.submit`; Ray does the work again where its process dies."""
        self._home = self._home or Home.of(grid)
        return self._remote.remote(self._home, work, replace(grid, store=None)).future()

    def result(self, future: Future[Any]) -> Any:
        """See `Pool.result`; UserError where Ray has given up."""
        try:
            return future.result()
        except self._ray.exceptions.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, Exception) else error) from None
        except self._ray.exceptions.RayError as error:
            raise UserError(
                f"the Ray cluster gave a piece of work up after {1 + RETRIES} tries ({reason(error)}): what is "
                "measured is kept, the same command goes on"
            ) from None

    def renew(self) -> None:
        """See `Pool.renew`: a cluster outlives its processes, and there is nothing to do."""

    def close(self) -> None:
        """See `Pool.close`."""
        self._ray.shutdown()


def _reach(address: str) -> None:
    """See that somebody answers at HOST:PORT or ray://HOST:PORT: Ray itself tries for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"--ray '{address}' is no address: pass HOST:PORT, ray://HOST:PORT, auto or local")
    try:
        socket.create_connection((host, int(port)), TIMEOUT).close()
    except (OSError, OverflowError) as error:
        raise _unreachable(address, getattr(error, "strerror", None) or reason(error)) from None


def _see_healthy(address: str) -> None:
    """See that it is a cluster, as `ray health-check` does."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        subprocess.run(command, capture_output=True, timeout=3 * TIMEOUT, check=True)
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError):
        raise _unreachable(address, "what answers there is no Ray") from None


def _unreachable(address: str, why: str) -> UserError:
    return UserError(
        f"--ray '{address}' cannot be joined ({why}): start a cluster with `ray start --head` and pass its address, "
        "or pass --ray local"
    )


def _library() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would call home
    try:
        import ray
    except ImportError:
        raise UserError('--ray needs Ray: pip install "stillroom[cluster]"') from None
    return ray

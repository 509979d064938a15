"""Samples fetched ahead by worker processes, in the very order in which they will be asked for.

Torch's DataLoader does the work. What is fetched is a list of (ids, view), a function of the plan, and a fetch is
a pure function of these: the bits are those of fetching here, whatever the number of workers.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from stillroom.data.source import Source
from stillroom.errors import UserError, reason

_SLOW = ("stillroom.data.ahead", "datasets", "torchvision.transforms.v2")

Ask = tuple[Tensor, int | None]
"""What one fetch is called with: ids [B] int64, and the view."""

Fetched = tuple[Tensor, Tensor | None]
"""What it gives: x [B, ...] and y [B, ...]."""


class Ahead:
    """The fetches of coming steps, made by `workers` processes of one thread each.

    `asks` tells the fetches of a step, the same whenever it is asked; `steps` is the number of steps. At most two
    fetches a worker are held ready. Processes are started at the first step that is taken, and once more when
    one of them dies; raises UserError where they die twice at one step or cannot be sent the source.
    """

    def __init__(self, source: Source, workers: int, asks: Callable[[int], list[Ask]], steps: int) -> None:
        self._fetcher, self._workers, self._asks, self._steps = _Fetcher(source), workers, asks, steps
        self._coming: Iterator[Any] | None = None
        self._next = self._died_at = -1

    def take(self, step: int, fetches: int) -> list[Fetched]:
        """What the `fetches` of `step` give. Steps come one after another; at any other one it starts anew."""
        while True:
            if self._coming is None or step != self._next:
                self._coming = None  # lets go of the processes that there were
                self._coming = self._started(step)
            try:
                found = [next(self._coming) for _ in range(fetches)]
                break
            except (RuntimeError, OSError, EOFError) as error:
                self._bury(step, reason(error))
        self._next = step + 1
        return [self._opened(each) for each in found]

    def close(self) -> None:
        """Stop the processes; they start again when a step is taken."""
        self._coming = None  # the iterator stops and joins its processes when it is let go of

    def _started(self, step: int) -> Iterator[Any]:
        loader = DataLoader(
            self._fetcher,  # type: ignore[arg-type]
            batch_size=None,
            sampler=self._order(step),
            num_workers=self._workers,
            collate_fn=_as_it_is,
            worker_init_fn=_begin,
            multiprocessing_context=_context(),
            generator=torch.Generator(),  # its own: the process's would be drawn from at every start
        )
        try:
            return iter(loader)
        except Exception as error:  # of three types where an object cannot be sent
            if "pickl" not in f"{type(error).__name__} {error}".lower():
                raise
            raise UserError(
                f"the data cannot be sent to worker processes ({reason(error)}): pass --engine.workers 0, or define "
                "what they hold (a transform, a data set) by name at the top of a module"
            ) from error

    def _order(self, step: int) -> Iterator[tuple[list[int], int | None]]:
        for coming in range(step, self._steps):
            for ids, view in self._asks(coming):
                yield ids.tolist(), view

    def _bury(self, step: int, why: str) -> None:
        self.close()
        if step == self._died_at:
            raise UserError(
                f"data workers died twice at step {step} ({why}), for want of memory, or of a module that the "
                "data need: pass a smaller --engine.workers, 0 to fetch in the training process"
            )
        self._died_at = step
        warnings.warn(
            f"a data worker died at step {step} ({why}): {self._workers} are started again, nothing is lost",
            stacklevel=4,
        )

    @staticmethod
    def _opened(found: Any) -> Fetched:
        if not isinstance(found, _Failure):
            return found
        if found.for_user:
            raise UserError(found.text)
        raise RuntimeError(f"a data worker failed:\n{found.text}")


@dataclass
class _Failure:
    """An error on its way back from a worker."""

    text: str
    for_user: bool


class _Fetcher:
    """What a worker does: the source's fetch. It is a data set whose items are fetches."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __getitem__(self, ask: tuple[list[int], int | None]) -> Fetched | _Failure:
        ids, view = ask
        try:
            return self.source.fetch(torch.tensor(ids, dtype=torch.int64), view)
        except UserError as error:
            return _Failure(str(error), for_user=True)
        except Exception:
            return _Failure(traceback.format_exc(), for_user=False)


def _as_it_is(found: Any) -> Any:
    return found


def _begin(worker: int) -> None:
    """Leave Ctrl-C to the training process, which saves and stops its workers; end when that process ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Torch's own watch looks at the process that forked this one: the server, which outlives a killed run."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _context() -> Any:
    """Processes that share no thread, lock or signal handler with this one.

    They are children of a server that imports once what is slow to import, where there is such a thing: a death
    among them then raises where their work is awaited, and not in the midst of a step, as torch's handler of SIGCHLD
    would.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([name for name in _SLOW if name in sys.modules])
    return context

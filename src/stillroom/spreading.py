"""A comparison's cells over many processes: each is measured once, and again only where its process died.

A cell is one arm at one seed, so that a few seeds fill many processes. The arms of a seed share its teacher: it is
trained first, as work of its own, and its cells follow when it is kept. Arms without a teacher wait for nothing.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from stillroom.errors import UserError
from stillroom.teaching import place_of, train_once

if TYPE_CHECKING:
    from stillroom.claim import Cell, Grid

LIVES = 3
"""Processes in a row that may die without one piece of work done in between."""


class Died(Exception):
    """A process ended before it had answered."""


@dataclass(frozen=True)
class Work:
    """A cell, or the training of the teacher that it waits for."""

    arm: str
    seed: int
    teaches: bool = False

    def do(self, grid: Grid) -> Cell | None:
        """The cell; nothing of a teacher, which is then kept."""
        if not self.teaches:
            return grid.cell(self.arm, self.seed)
        grid.checked(self.arm, self.seed)
        job = grid.teacher(self.arm, self.seed)
        if job is not None:
            train_once(job)
        return None


class Pool(Protocol):
    """What runs pieces of work, each in a process of its own and on one thread."""

    @property
    def size(self) -> int:
        """How many pieces it works at together, >= 1."""
        ...

    def submit(self, work: Work, grid: Grid) -> Future[Any]:
        """Start a piece of work; raises Died where the pool is no more."""
        ...

    def result(self, future: Future[Any]) -> Any:
        """What the work gave or raised; Died where its process ended first."""
        ...

    def renew(self) -> None:
        """Go on after Died; all that was running is lost."""
        ...

    def close(self) -> None:
        """End all processes."""
        ...


class Processes:
    """A pool of processes of this machine."""

    def __init__(self, workers: int) -> None:
        self.size = workers
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(self.size, context, one_thread)

    def submit(self, work: Work, grid: Grid) -> Future[Any]:
        """See `Pool.submit`."""
        try:
            return self._pool.submit(work.do, grid)
        except BrokenProcessPool:
            raise Died from None

    def result(self, future: Future[Any]) -> Any:
        """See `Pool.result`."""
        try:
            return future.result()
        except BrokenProcessPool:
            raise Died from None

    def renew(self) -> None:
        """See `Pool.renew`: the death of one process ends them all."""
        self._pool.shutdown()
        self._start()

    def close(self) -> None:
        """See `Pool.close`."""
        self._pool.shutdown(cancel_futures=True)


def one_thread() -> None:
    """Make torch compute on one thread."""
    import torch

    torch.set_num_threads(1)


@dataclass
class Board:
    """What is ready, what waits for a teacher, and what is done."""

    grid: Grid
    done: dict[int, dict[str, Cell]] = field(default_factory=dict)
    ready: list[Work] = field(default_factory=list)
    waiting: dict[Work, list[Work]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        teachers: dict[str, Work] = {}
        for seed in self.grid.seeds:
            self.done[seed] = {}
            for arm in self.grid.arms:
                self._place(Work(arm, seed), teachers)

    def _place(self, cell: Work, teachers: dict[str, Work]) -> None:
        stored = self.grid.stored(cell.arm, cell.seed)
        if stored is not None:
            self.done[cell.seed][cell.arm] = stored
            return
        job = self.grid.teacher(cell.arm, cell.seed)
        if job is None:
            self.ready.append(cell)
            return
        name = place_of(job).name
        if name not in teachers:
            teachers[name] = Work(cell.arm, cell.seed, teaches=True)
            self.ready.append(teachers[name])
        self.waiting.setdefault(teachers[name], []).append(cell)

    def finish(self, work: Work, found: Cell | None) -> None:
        """Take in what `work` gave; cells that waited for it come first, so that seeds are finished in order."""
        if found is None:
            self.ready = [*self.waiting.pop(work), *self.ready]
        elif work.arm not in self.done[work.seed]:
            self.grid.keep(work.arm, work.seed, found)
            self.done[work.seed][work.arm] = found

    def complete(self, seed: int) -> dict[str, Cell] | None:
        """The cells of a seed in the order of the arms; None while one is missing."""
        cells = self.done[seed]
        return {arm: cells[arm] for arm in self.grid.arms} if len(cells) == len(self.grid.arms) else None


def spread(grid: Grid, pool: Pool) -> Iterator[tuple[int, dict[str, Cell]]]:
    """Measure all cells of `grid` in `pool`, which is closed in the end; yields (seed, cells) as seeds are finished.

    Raises what the first failing cell raises, and UserError where processes die `LIVES` times in a row.
    """
    try:
        board = Board(grid)
        left = list(grid.seeds)
        running: dict[Future[Any], Work] = {}
        deaths = 0
        while left:
            for seed in [seed for seed in left if board.complete(seed) is not None]:
                left.remove(seed)
                yield seed, board.complete(seed) or {}
            if not left:
                return
            try:
                _start(board, running, pool)
                _finish(board, running, pool)
                deaths = 0
            except Died:
                deaths += 1
                _after_death(board, running, pool, deaths)
    finally:
        pool.close()


def _start(board: Board, running: dict[Future[Any], Work], pool: Pool) -> None:
    while board.ready and len(running) < pool.size:
        running[pool.submit(board.ready[0], board.grid)] = board.ready[0]
        board.ready.pop(0)


def _finish(board: Board, running: dict[Future[Any], Work], pool: Pool) -> None:
    """Wait for work to be done and take it in, what came to its end before what did not."""
    done, _ = wait(running, return_when=FIRST_COMPLETED)
    for future in sorted(done, key=lambda f: f.exception() is not None):
        found = pool.result(future)
        board.finish(running.pop(future), found)


def _after_death(board: Board, running: dict[Future[Any], Work], pool: Pool, deaths: int) -> None:
    lost = list(running.values())
    names = ", ".join(f"{work.arm} at seed {work.seed}" for work in lost) or "nothing"
    if deaths >= LIVES:
        raise UserError(
            f"{deaths} worker processes in a row died with {names} in work (the machine may be out of memory): "
            "what is measured is kept, the same command goes on; pass fewer --workers"
        )
    board.ready = [*board.ready, *lost]  # last, so that what kills its process holds nothing else up
    running.clear()
    pool.renew()

"""Cells over processes: each once, teachers first, and again where a process died."""

from __future__ import annotations

import os
from collections import Counter
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from processes import Mortal
from stillroom.claim import Cell, Grid, measure
from stillroom.engine import Engine
from stillroom.errors import UserError
from stillroom.method import Method
from stillroom.spreading import LIVES, Died, Work, spread
from stillroom.task import TeacherJob
from toys import Centred, Fit, Toy

SHORT = Engine(epochs=2, batch_size=8, evaluate_every=0)


@dataclass(eq=False)
class Pupil(Fit):
    """Would ask a teacher."""

    name: ClassVar[str] = "pupil"
    uses_teacher: ClassVar[bool] = True


class Schooled(Grid):
    """A grid in which nothing is computed: a teacher for each seed, or one for all."""

    common: ClassVar[bool] = False
    taught: ClassVar[set[str]] = set()

    def cell(self, arm: str, seed: int) -> Cell:
        if self.arms[arm].uses_teacher:
            assert self._name(seed) in self.taught, "measured before its teacher was there"
        return {"score": float(seed), "test": {}, "seconds": 0.0}

    def checked(self, arm: str, seed: int) -> Any:
        return None

    def _name(self, seed: int) -> str:
        return "all" if self.common else str(seed)

    def teacher(self, arm: str, seed: int) -> TeacherJob | None:
        if not self.arms[arm].uses_teacher or self._name(seed) in self.taught:
            return None
        return self._name(seed)  # type: ignore[return-value]


class Inline:
    """A pool that does its work at once, and dies before the pieces that `deaths` counts down on."""

    def __init__(self, size: int = 2, deaths: dict[Work, int] | None = None) -> None:
        self.size, self.deaths = size, Counter(deaths or {})
        self.log: list[Work] = []
        self.broken = self.closed = False
        self.renewed = 0

    def submit(self, work: Work, grid: Grid) -> Future[Any]:
        if self.broken:
            raise Died
        future: Future[Any] = Future()
        if self.deaths[work] > 0:
            self.deaths[work] -= 1
            self.broken = True
            future.set_exception(Died())
            return future
        self.log.append(work)
        future.set_result(work.do(grid))
        return future

    def result(self, future: Future[Any]) -> Any:
        return future.result()

    def renew(self) -> None:
        self.broken = False
        self.renewed += 1

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def _school(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Schooled, "taught", set())
    monkeypatch.setattr("stillroom.spreading.train_once", Schooled.taught.add)
    monkeypatch.setattr("stillroom.spreading.place_of", Path)


def grid(*seeds: int) -> Schooled:
    arms: dict[str, Method] = {"plain": Fit(), "kd": Pupil(), "nkd": Pupil()}
    return Schooled(arms, Toy(), SHORT, seeds)


@pytest.mark.usefixtures("_school")
@pytest.mark.parametrize("common", [False, True])
def test_each_teacher_is_trained_once_and_before_those_who_ask_it(
    common: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Schooled, "common", common)
    pool = Inline()
    rows = dict(spread(grid(0, 1, 2), pool))
    assert list(rows) == [0, 1, 2]
    assert all(list(row) == ["plain", "kd", "nkd"] for row in rows.values())
    assert Counter(work.teaches for work in pool.log) == {True: 1 if common else 3, False: 9}
    assert len(set(pool.log)) == len(pool.log)
    assert pool.closed


@pytest.mark.usefixtures("_school")
def test_cells_that_waited_come_before_another_seed() -> None:
    pool = Inline(size=1)
    list(spread(grid(0, 1), pool))
    order = [(work.seed, work.arm, work.teaches) for work in pool.log]
    assert order.index((0, "nkd", False)) < order.index((1, "kd", True))


@pytest.mark.usefixtures("_school")
def test_what_died_is_done_again_and_what_is_done_is_not() -> None:
    pool = Inline(deaths={Work("kd", 1): 2, Work("kd", 0, teaches=True): 1, Work("plain", 0): 1})
    rows = dict(spread(grid(0, 1), pool))
    assert sorted(rows) == [0, 1]
    assert pool.renewed == 4
    assert len(set(pool.log)) == len({w for w in pool.log if not w.teaches}) + 2


@pytest.mark.usefixtures("_school")
def test_deaths_in_a_row_end_it_in_one_line() -> None:
    pool = Inline(deaths={Work("kd", 1): 99})
    seen = []
    with pytest.raises(
        UserError, match=rf"^{LIVES} worker processes in a row died with .*kd at seed 1.* in work"
    ):
        for seed, _ in spread(grid(0, 1), pool):
            seen.append(seed)
    assert seen == [0]
    assert pool.closed


@pytest.mark.usefixtures("_school")
def test_a_cell_that_fails_says_so_and_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: Grid, arm: str, seed: int) -> Cell:
        raise UserError("this cannot work: do something else")

    monkeypatch.setattr(Schooled, "cell", fails)
    pool = Inline()
    pool.submit = lambda work, grid: _caught(work, grid)  # type: ignore[method-assign]
    with pytest.raises(UserError, match="this cannot work"):
        list(spread(grid(0), pool))
    assert pool.closed


def _caught(work: Work, grid: Grid) -> Future[Any]:
    future: Future[Any] = Future()
    try:
        future.set_result(work.do(grid))
    except UserError as error:
        future.set_exception(error)
    return future


def test_a_killed_worker_s_cells_are_measured_again_to_the_same_bits(tmp_path: Path) -> None:
    """SIGKILL in the middle, as the kernel does when memory runs out; one cell was measured before."""
    (tmp_path / "trap").mkdir()
    arms: dict[str, Method] = {
        "plain": Fit(),
        "centred": Centred(),
        "mortal": Mortal(trap=str(tmp_path / "trap")),
    }
    alone = dict(measure(Grid(arms, Toy(), SHORT, [0, 1])))
    (tmp_path / "trap" / "bullet").touch()
    store = tmp_path / "store"
    Grid(arms, Toy(), SHORT, [0], store).cell("plain", 0)
    written = os.stat(store / "plain-0.json").st_mtime_ns
    rows = list(measure(Grid(arms, Toy(), SHORT, [0, 1], store), workers=2))
    assert sorted(seed for seed, _ in rows) == [0, 1]
    assert not list((tmp_path / "trap").iterdir())
    for seed, cells in rows:
        assert {a: c["test"] for a, c in cells.items()} == {a: c["test"] for a, c in alone[seed].items()}
    assert sorted(p.name for p in store.iterdir()) == sorted(f"{a}-{s}.json" for a in arms for s in (0, 1))
    assert os.stat(store / "plain-0.json").st_mtime_ns == written

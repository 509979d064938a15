"""Workers: the bits of fetching in the training process, whatever dies."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from stillroom.data import LazySource, MixedSource, Source, TensorSource
from stillroom.data.source import Augment
from stillroom.engine import Engine, Watcher
from stillroom.errors import UserError
from stillroom.method import Batch
from stillroom.plan import Feeder, Plan
from toys import Fit, Toy, same, weights_of
from working import Deadly, Faulty, Traced, noisy, numbered

X = torch.arange(37.0).view(-1, 1, 1, 1).expand(37, 1, 2, 2).contiguous()
PLAN = Plan(37, 8, 3, 5)


def in_memory(augment: Augment) -> TensorSource:
    return TensorSource(X, torch.arange(37) % 3, augment)


@contextmanager
def fed(source: Source, workers: int, rank: int = 0, ranks: int = 1, parts: int = 1) -> Iterator[Feeder]:
    feeder = Feeder(PLAN, source, rank, ranks, parts, torch.device("cpu"), workers)
    try:
        yield feeder
    finally:
        feeder.close()


def taken(source: Source, workers: int, steps=range(PLAN.steps), **cut: int) -> list[Batch]:
    with fed(source, workers, **cut) as feeder:
        return [batch for step in steps for batch in feeder.batches(step)[0]]


def alike(one: list[Batch], other: list[Batch]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a.x, b.x) and torch.equal(a.y, b.y) and torch.equal(a.index, b.index) and a.view == b.view
        for a, b in zip(one, other, strict=True)
    )


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch looks after its workers every half a second, not every five."""
    look: Any = _MultiProcessingDataLoaderIter._try_get_data
    monkeypatch.setattr(look, "__defaults__", (0.5,))


def gone(processes: set[int], seconds: float = 10) -> bool:
    """Whether they have ended, or do so within `seconds`."""
    end = time.monotonic() + seconds
    while any(Path(f"/proc/{number}").exists() for number in processes) and time.monotonic() < end:
        time.sleep(0.05)
    return not any(Path(f"/proc/{number}").exists() for number in processes)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("cut", [{}, {"parts": 3}, {"rank": 1, "ranks": 3, "parts": 2}])
def test_batches_are_those_of_no_worker(workers: int, cut: dict[str, int]) -> None:
    source = in_memory(noisy)
    assert alike(taken(source, 0, **cut), taken(source, workers, **cut))


def test_lazy_and_mixed_samples_too() -> None:
    lazy = LazySource(numbered, torch.arange(37), torch.arange(37) % 3, noisy)
    assert alike(taken(lazy, 0), taken(lazy, 2))
    mixed = MixedSource(lazy, 3, 0.5, 0.5)
    assert alike(taken(mixed, 0), taken(mixed, 2))


def test_a_resumed_run_starts_in_the_middle() -> None:
    source = in_memory(noisy)
    whole = taken(source, 0)
    assert alike(taken(source, 2, range(7, PLAN.steps)), whole[7:])
    with fed(source, 2) as feeder:
        assert all(alike(feeder.batches(step)[0], [whole[step]]) for step in (3, 4, 11, 0, 1))


@dataclass(eq=False)
class Augmented(Toy):
    """The toy data under an augmentation."""

    augment: str = ""

    def train(self) -> TensorSource:
        data = super().train()
        return TensorSource(data.x, data.y, self.given["augment"])


def weights(workers: int, augment: Augment = noisy, folder: Path | None = None, **options) -> dict:
    engine = Engine(epochs=3, batch_size=8, workers=workers, **options)
    task = Augmented().using(augment=augment)
    method = Fit()
    engine.fit(method, task, 0, folder)
    return weights_of(method.players()["student"])


@pytest.mark.parametrize("accumulate", [1, 3])
def test_training_ends_with_the_same_bits(accumulate: int) -> None:
    alone = weights(0, accumulate=accumulate)
    assert all(same(weights(workers, accumulate=accumulate), alone) for workers in (1, 2))
    assert not same(weights(0, augment=torch.neg), alone)


def test_stopped_and_resumed_with_workers_ends_with_the_same_bits(tmp_path: Path) -> None:
    class Stop(Watcher):
        def stepped(self, step, row) -> None:
            if step == 7:
                raise KeyboardInterrupt

    task, engine = (
        Augmented().using(augment=noisy),
        Engine(epochs=3, batch_size=8, workers=2, checkpoint_every=3),
    )
    with pytest.raises(KeyboardInterrupt):
        engine.fit(Fit(), task, 0, tmp_path, Stop())
    assert same(weights(2, folder=tmp_path, checkpoint_every=3), weights(0))


# -- what dies ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("impatient")
def test_a_worker_that_dies_is_survived(tmp_path: Path) -> None:
    at = float(PLAN.order(0)[9])  # of step 1; what step 0 waits for can die with it
    with pytest.warns(UserWarning) as caught:
        found = taken(in_memory(Deadly(tmp_path, (at,))), 2)
    assert alike(found, taken(in_memory(noisy), 0))
    (line,) = [str(w.message) for w in caught if "worker died" in str(w.message)]
    assert re.match(r"a data worker died at step [01] \(", line) and "\n" not in line
    assert line.endswith("): 2 are started again, nothing is lost")


@pytest.mark.usefixtures("impatient")
def test_deaths_at_different_steps_are_survived_each(tmp_path: Path) -> None:
    at = tuple(PLAN.order(0)[[9, 34]].tolist())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = taken(in_memory(Deadly(tmp_path, at)), 1)
    assert alike(found, taken(in_memory(noisy), 0))
    assert sum("worker died" in str(w.message) for w in caught) == 2


@pytest.mark.usefixtures("impatient")
def test_a_worker_that_dies_twice_at_a_step_is_an_error(tmp_path: Path) -> None:
    at = float(PLAN.order(0)[9])
    with pytest.warns(UserWarning, match="worker died"), pytest.raises(UserError) as error:
        taken(in_memory(Deadly(tmp_path, (at,), times=3)), 1)
    line = str(error.value)
    assert re.match(r"data workers died twice at step [01] \(", line) and "\n" not in line
    assert line.endswith(
        "), for want of memory, or of a module that the data need: pass a smaller --engine.workers, 0 to fetch "
        "in the training process"
    )


@pytest.mark.usefixtures("impatient")
def test_killed_from_outside_in_the_midst_of_training(tmp_path: Path) -> None:
    traced = Traced(tmp_path)

    class Kill(Watcher):
        def stepped(self, step, row) -> None:
            if step == 4:
                for number in traced.processes():
                    os.kill(number, signal.SIGKILL)

    method = Fit()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Engine(epochs=3, batch_size=8, workers=2).fit(
            method, Augmented().using(augment=traced), 0, watcher=Kill()
        )
    assert any("worker died" in str(w.message) for w in caught)
    assert same(weights_of(method.players()["student"]), weights(0))


def test_processes_do_not_outlive_the_run(tmp_path: Path) -> None:
    for name, stops in (("done", False), ("stopped", True)):
        traced = Traced(tmp_path / name)
        traced.folder.mkdir()

        class Stop(Watcher):
            def stepped(self, step, row, stops=stops) -> None:
                if stops and step == 3:
                    raise KeyboardInterrupt

        try:
            task = Augmented().using(augment=traced)
            Engine(epochs=2, batch_size=8, workers=2).fit(Fit(), task, 0, watcher=Stop())
        except KeyboardInterrupt:
            assert stops
        assert len(traced.processes()) == 2 and gone(traced.processes())


def test_processes_do_not_outlive_a_killed_run(tmp_path: Path) -> None:
    job = (
        "import sys, torch, time; from pathlib import Path; from working import Traced\n"
        "from stillroom.data import TensorSource; from stillroom.plan import Feeder, Plan\n"
        "source = TensorSource(torch.zeros(40, 1, 2, 2), torch.zeros(40), Traced(Path(sys.argv[1])))\n"
        "feeder = Feeder(Plan(40, 8, 9, 0), source, 0, 1, 1, torch.device('cpu'), 2)\n"
        "feeder.batches(0), print('begun', flush=True), time.sleep(600)\n"
    )
    paths = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    run = subprocess.Popen(
        [sys.executable, "-c", job, str(tmp_path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert run.stdout is not None and run.stdout.readline() == b"begun\n"
    workers = Traced(tmp_path).processes()
    servers = {int(Path(f"/proc/{w}/stat").read_text().rsplit(")", 1)[1].split()[1]) for w in workers}
    run.kill()
    run.wait()
    assert workers and gone(workers | servers)


def test_ctrl_c_is_left_to_the_training_process(tmp_path: Path) -> None:
    """It reaches the whole group of processes; the workers go on until the step is done and the state saved."""
    traced = Traced(tmp_path)
    with fed(in_memory(traced), 2) as feeder, warnings.catch_warnings():
        warnings.simplefilter("error")
        found = feeder.batches(0)[0]
        for number in traced.processes():
            os.kill(number, signal.SIGINT)
        found += [batch for step in range(1, PLAN.steps) for batch in feeder.batches(step)[0]]
    assert alike(found, taken(in_memory(noisy), 0))


# -- what fails -----------------------------------------------------------------------------------------------------


def test_an_error_of_the_source_is_the_users_line() -> None:
    at = float(PLAN.order(0)[20])
    with pytest.raises(UserError, match="^sample 3 is bad: remove it$"):
        taken(in_memory(Faulty(at, for_user=True)), 2)


def test_an_error_of_the_users_code_comes_with_its_traceback() -> None:
    at = float(PLAN.order(0)[20])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is no death
        with pytest.raises(
            RuntimeError, match="(?s)^a data worker failed:.*ZeroDivisionError: in the user's"
        ):
            taken(in_memory(Faulty(at, for_user=False)), 2)


def test_an_error_comes_when_its_step_does() -> None:
    source = in_memory(Faulty(float(PLAN.order(0)[20]), for_user=True))
    with fed(source, 2) as feeder:
        feeder.batches(0), feeder.batches(1)
        with pytest.raises(UserError, match="sample 3 is bad"):
            feeder.batches(2)


def test_what_cannot_be_sent_is_told() -> None:
    with pytest.raises(UserError) as error:
        taken(in_memory(lambda image: image), 1)
    line = str(error.value)
    assert line.startswith("the data cannot be sent to worker processes (Can't ") and "\n" not in line
    assert line.endswith(
        "): pass --engine.workers 0, or define what they hold (a transform, a data set) by name at the top of a module"
    )


# -- what it costs ----------------------------------------------------------------------------------------------------


def test_rows_in_memory_need_no_process() -> None:
    source = TensorSource(X, torch.arange(37))
    with fed(source, 2) as feeder:
        assert feeder._ahead is None
        assert torch.equal(feeder.batches(0)[0][0].x, X[PLAN.order(0)[:8]])


def test_nothing_is_drawn_from_the_process() -> None:
    torch.manual_seed(2), random.seed(2)
    expected = torch.rand(1), random.random()
    torch.manual_seed(2), random.seed(2)
    taken(in_memory(noisy), 2, range(3))
    assert torch.equal(torch.rand(1), expected[0]) and random.random() == expected[1]


def test_a_number_below_zero_is_refused() -> None:
    with pytest.raises(UserError, match="^--engine.workers is -1: pass 0 or more$"):
        Engine(workers=-1).check()

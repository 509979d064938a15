"""What every method of the catalogue promises. A new paper gets these tests for nothing."""

from __future__ import annotations

import dataclasses
import inspect
import re
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch

from processes import in_two_processes
from stillroom import catalogue
from stillroom.catalogue import Entry
from stillroom.engine import Engine, Watcher
from stillroom.fitter import Fitter
from stillroom.method import Method, Result, Update
from stillroom.options import field_docs
from stillroom.task import Task
from stillroom.teaching import teach
from stillroom.workflow import Job, execute
from toys import apart, same, weights_of

ENTRIES = catalogue.entries()
TRAINED = [e for e in ENTRIES if e.load().uses_engine]
"""Those that the Engine trains, in one fit or in stages."""

Tensors = dict[str, torch.Tensor]

every = pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: e.name)
trained = pytest.mark.parametrize("entry", TRAINED, ids=lambda e: e.name)


@lru_cache
def problem(name: str) -> tuple[Task, Engine]:
    """The method's own task and engine, tiny, the teacher taught."""
    kind = catalogue.find(name).load()
    task, engine = kind.default_task().quick(), kind.default_engine().quick()
    if kind.uses_teacher:
        teach(task, engine, None, Watcher)
    return task, engine


class Recorder(Fitter):
    """A Fitter that keeps the methods that it trains, stages of another or the method itself."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.fitted: list[Method] = []
        self.seen: list[str] = []

    def __call__(self, method: Method, stage: str = "", **changes: Any) -> Result:
        self.fitted.append(method)
        return super().__call__(method, stage, **changes)


def fit(
    entry: Entry,
    task: Task | None = None,
    folder: Path | None = None,
    watcher: Watcher | None = None,
    recorder: type[Recorder] = Recorder,
    seed: int = 0,
    **changes: Any,
) -> tuple[Recorder, Tensors]:
    """Run the method; what trained it, and all that was trained: the product and the players of its last fit."""
    usual, engine = problem(entry.name)
    task, engine = task or usual, replace(engine, **changes)
    fitter = recorder(engine, task, seed, folder, lambda arm: watcher or Watcher())
    product = entry.load()().quick().run(task, fitter).product
    modules = {"product": product, **fitter.fitted[-1].players()}
    return fitter, {f"{n}.{k}": v for n, m in modules.items() for k, v in weights_of(m).items()}


def state(entry: Entry, **options: Any) -> Tensors:
    return fit(entry, **options)[1]


# -- what it says of itself ---------------------------------------------------------------------------------------


@every
def test_the_catalogue_names_it_and_the_module_defines_it(entry: Entry) -> None:
    kind = entry.load()
    assert kind.name == entry.name
    assert {m.name for m in catalogue.methods_of(entry.card)} == set(catalogue.names(entry.card))


@every
def test_its_docstring_names_source_and_place(entry: Entry) -> None:
    text = inspect.getdoc(entry.load()) or ""
    assert re.search(r"arXiv:\d{4}\.\d{4,5}|et al\.", text), "no source"
    assert re.search(r"eq\.|section|algorithm", text, re.I), "no equation, section or algorithm"


@every
def test_every_option_is_documented(entry: Entry) -> None:
    kind = entry.load()
    for part in (kind(), kind.default_task(), kind.default_engine(), kind.default_engine().recipe):
        docs = field_docs(type(part))
        missing = [f.name for f in dataclasses.fields(part) if f.init and not docs.get(f.name)]
        assert not missing, f"{type(part).__name__}: {missing}"


@every
def test_its_claims_build(entry: Entry) -> None:
    for claim in entry.load().claims():
        assert claim.says
        assert claim.quick().arms.keys() == claim.arms.keys()
        assert any(rule.headline for rule in claim.rules)


def test_every_working_system_has_a_claim() -> None:
    for card in catalogue.CARDS:
        if catalogue.works(card):
            assert [c for m in catalogue.methods_of(card) for c in m.claims()], card.slug


# -- what it does -------------------------------------------------------------------------------------------------


class Watched(Recorder):
    """Sees that every update is finite and moves the player that it names, and no other."""

    def __call__(self, method: Method, stage: str = "", **changes: Any) -> Result:
        own = method.updates

        def watched(batch: Any) -> Any:
            flow, answer = own(batch), None
            while True:
                try:
                    ask = flow.send(answer)
                except StopIteration:
                    return
                before = {n: weights_of(m) for n, m in method.players().items()}
                answer = yield ask
                if isinstance(ask, Update):
                    self.seen.append(ask.player)
                    assert torch.isfinite(ask.loss)
                    for name, module in method.players().items():
                        moved = not same(before[name], weights_of(module))
                        assert moved == (name == ask.player), (
                            f"{ask.player} was stepped, {name} moved: {moved}"
                        )

        method.updates = watched  # type: ignore[method-assign]
        return super().__call__(method, stage, **changes)


@trained
def test_one_update_is_finite_and_reaches_the_stepped_player_alone(entry: Entry) -> None:
    fitter, _ = fit(entry, recorder=Watched)
    assert set(fitter.seen) == {name for method in fitter.fitted for name in method.players()}


@every
def test_a_whole_run_leaves_a_page_and_a_student(entry: Entry, tmp_path: Path) -> None:
    task, engine = problem(entry.name)
    run, _ = execute(Job(entry.load()().quick(), task, engine, 0), tmp_path / "run")
    assert (run.path / "report.html").is_file()
    student = run.student()
    assert student is not None
    assert not getattr(student, "training", False)


@trained
def test_the_teacher_is_frozen_and_no_part_of_what_is_trained(entry: Entry) -> None:
    if not entry.load().uses_teacher:
        pytest.skip("has no teacher")
    task, _ = problem(entry.name)
    module = task.make_teacher().module
    before = weights_of(module)
    fitter, _ = fit(entry)
    assert same(before, weights_of(task.make_teacher().module))
    assert not module.training
    assert not any(p.requires_grad for p in module.parameters())
    players = [m for method in fitter.fitted for m in method.players().values()]
    assert not {id(p) for m in players for p in m.parameters()} & {id(p) for p in module.parameters()}


@trained
def test_another_teacher_makes_another_student(entry: Entry) -> None:
    if not entry.load().uses_teacher:
        pytest.skip("has no teacher")
    task, engine = problem(entry.name)
    other, job = task.but(), task.teacher_job(engine)
    job.method.bind(job.task, 12345)
    other.teach(job.method.product())
    assert not same(state(entry), state(entry, task=other))


@trained
def test_same_seed_same_bits_other_seed_other_bits(entry: Entry) -> None:
    first = state(entry)
    assert same(first, state(entry))
    assert not same(first, state(entry, seed=1))


class Crash(Watcher):
    """Dies after the third step, of whichever stage it is."""

    steps = 0

    def stepped(self, step: int, row: Any) -> None:
        self.steps += 1
        if self.steps == 3:
            raise ConnectionAbortedError


@trained
def test_killed_and_resumed_same_bits(entry: Entry, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    first = state(entry, folder=whole, checkpoint_every=1)
    with pytest.raises(ConnectionAbortedError):
        state(entry, folder=tmp_path / "broken", checkpoint_every=1, watcher=Crash())
    assert same(first, state(entry, folder=tmp_path / "broken", checkpoint_every=1))
    rows = {path.relative_to(whole): path.read_bytes() for path in whole.rglob("metrics.jsonl")}
    assert rows
    assert all((tmp_path / "broken" / path).read_bytes() == bytes_ for path, bytes_ in rows.items())


@trained
@pytest.mark.parametrize("parts", [2, 3])
def test_accumulation_changes_nothing(entry: Entry, parts: int) -> None:
    assert apart(state(entry), state(entry, accumulate=parts)) < 1e-5


@trained
def test_bfloat16_is_near_float32(entry: Entry) -> None:
    full, low = state(entry), state(entry, precision="bfloat16")
    assert all(torch.isfinite(w).all() for w in low.values() if w.is_floating_point())
    assert apart(full, low) < 0.1 * max(w.abs().max().item() for w in full.values())


@pytest.fixture(scope="session")
def two_processes(
    tmp_path_factory: pytest.TempPathFactory, shared_cache: Path
) -> dict[str, dict[str, torch.Tensor]]:
    """The states of all methods after one epoch on two processes."""
    names = [e.name for e in TRAINED]
    for name in names:
        problem(name)  # teaches, so that the two processes find their teachers kept
    return in_two_processes("every_method", names, tmp_path_factory.mktemp("two"), shared_cache)


@trained
def test_two_processes_do_what_one_does(entry: Entry, two_processes: dict[str, Any]) -> None:
    assert apart(state(entry), two_processes[entry.name]) < 1e-5

"""A run's folder, made and read back."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from stillroom.errors import UserError
from stillroom.models import build, save_student
from stillroom.run import CONFIG, RESULT, Run

SET_UP = {
    "method": "nkd",
    "options": {"gamma": 0.5},
    "task": {},
    "problem": "stillroom.predictors.classification:Classification",
    "engine": {"epochs": 3},
    "seed": 7,
}
OUTCOME = {"verdict": {"kind": "helped"}, "arms": {}, "metric": "accuracy", "more": 1}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "deep" / "run", SET_UP)


def test_a_run_knows_how_it_was_started(run: Run) -> None:
    assert run.config == SET_UP
    assert Run.open(run.path) == run
    assert run.config == Run.open(run.path).config


def test_an_empty_folder_will_do(tmp_path: Path) -> None:
    assert Run.create(tmp_path, SET_UP).config == SET_UP


@pytest.mark.parametrize("there", [CONFIG, "thesis.tex"])
def test_a_folder_in_use_is_left_as_it_is(there: str, tmp_path: Path) -> None:
    (tmp_path / there).write_text("mine")
    with pytest.raises(UserError, match=f"^--out '{tmp_path}' is not empty: ") as caught:
        Run.create(tmp_path, SET_UP)
    assert ("--resume" in str(caught.value)) == (there == CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == [there]
    assert (tmp_path / there).read_text() == "mine"


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="^--out '.*file/run' cannot be written .*: pass another folder$"):
        Run.create(tmp_path / "file" / "run", SET_UP)


def test_a_folder_without_a_run_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^'{tmp_path}' holds no run"):
        Run.open(tmp_path)


@pytest.mark.parametrize("config", [[], {"method": "nkd"}, {**SET_UP, "seed": "7"}])
def test_a_foreign_config_is_refused(config: object, run: Run) -> None:
    (run.path / CONFIG).write_text(json.dumps(config))
    with pytest.raises(UserError, match="is no run's config: "):
        _ = run.config


def test_a_run_is_finished_when_its_result_is_there(run: Run) -> None:
    assert not run.finished
    with pytest.raises(
        UserError, match=f"^run '{run.path}' is not finished: go on with --resume {run.path}$"
    ):
        _ = run.result
    (run.path / RESULT).write_text(json.dumps(OUTCOME))
    assert run.finished
    assert run.result == OUTCOME


def test_a_foreign_result_is_refused(run: Run) -> None:
    (run.path / RESULT).write_text('{"accuracy": 1}')
    with pytest.raises(UserError, match="is no run's result: "):
        _ = run.result


def test_metrics_are_those_of_the_asked_arm(run: Run) -> None:
    assert run.metrics() == []
    (run.path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"st')
    (run.path / "arms" / "plain").mkdir(parents=True)
    (run.path / "arms" / "plain" / "metrics.jsonl").write_text('{"step": 9}\n')
    assert run.metrics() == [{"step": 1}, {"step": 2}]
    assert run.metrics("arms/plain") == [{"step": 9}]
    assert run.metrics("arms/none") == []


def test_the_student_comes_back_built_or_in_a_module_of_one_s_own(run: Run) -> None:
    shape = (1, 4, 4)
    network = build("mlp:5", shape=shape, classes=3, seed=4).train()
    about = {"architecture": "mlp:5", "shape": list(shape), "classes": 3}
    save_student(run.path / "student", network, about)
    x = torch.rand(2, *shape)
    student = run.student()
    assert not student.training
    assert torch.equal(student(x), network.eval()(x))
    mine = build("mlp:5", shape=shape, classes=3, seed=0)
    assert run.student(mine) is mine
    assert torch.equal(mine(x), network(x))
    with pytest.raises(UserError, match="do not fit"):
        run.student(nn.Linear(2, 2))


def test_a_run_without_a_student_says_so(run: Run) -> None:
    with pytest.raises(UserError, match="student"):
        run.student()


def test_a_student_of_somebody_else_s_task_is_not_imported_by_name(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", {**SET_UP, "problem": "os:system"})
    with pytest.raises(UserError, match="a task from 'os'"):
        run.student()


def test_holding_is_let_go_of_whatever_happens(run: Run) -> None:
    with pytest.raises(ZeroDivisionError), run.held():
        assert (run.path / ".lock").read_text() == str(os.getpid())
        1 / 0  # noqa: B018
    with run.held(), pytest.raises(UserError, match="in use by another process"), run.held():
        pass
    with run.held():
        pass

"""A run from beginning to end, from Python and from the command line."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import stillroom
from stillroom import Run, UserError
from stillroom.cli import main
from stillroom.engine import Engine
from stillroom.models import build, load_student
from stillroom.predictors.baselines import DKD, KD, Plain
from stillroom.predictors.classification import Classification
from stillroom.workflow import with_options
from toys import same

TINY = ["--task.train-samples", "150", "--task.student-samples", "60", "--task.teacher-epochs", "2"]
TINY = [*TINY, "--engine.epochs", "3", "--engine.checkpoint-every", "2"]


def tensors(samples: int = 120, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(samples) % 3
    x = torch.randn(samples, 1, 4, 4, generator=generator) + y.view(-1, 1, 1, 1)
    return x, y


def small() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 3))


def teacher() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 3))


def run_cli(folder: Path, *more: str, method: str = "nkd") -> dict[str, Any]:
    assert main(["run", method, *TINY, "--out", str(folder), *more]) == 0
    return json.loads((folder / "result.json").read_text())


# -- from the command line --------------------------------------------------------------------------------------


def test_a_run_leaves_everything_it_promises(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run_cli(tmp_path / "run")
    names = {p.name for p in (tmp_path / "run").iterdir() if not p.name.startswith(".")}
    expected = {
        "config.json",
        "metrics.jsonl",
        "result.json",
        "checkpoints",
        "student",
        "report.html",
        "arms",
    }
    assert names == expected
    assert list(result["arms"]) == ["teacher", "plain", "nkd"]
    for arm in result["arms"].values():
        assert 0 < arm["test"]["accuracy"] <= 1
        assert {"parameters", "multiply_adds", "latency_1", "file_bytes"} <= arm["cost"].keys()
    said = capsys.readouterr().out
    assert "calibration error" in said
    assert "multiply-adds" in said


def test_the_student_loads_and_answers_as_it_was_scored(tmp_path: Path) -> None:
    result = run_cli(tmp_path / "run")
    student = Run.open(tmp_path / "run").student()
    assert not student.training
    config = json.loads((tmp_path / "run" / "student" / "config.json").read_text())
    assert config["architecture"] == "mlp:12"
    from stillroom.predictors.classification import Classification
    from stillroom.runtime import Runtime

    task = Classification(train_samples=150)
    assert task.score(student, "test", Runtime())["accuracy"] == result["arms"]["nkd"]["test"]["accuracy"]
    card = (tmp_path / "run" / "student" / "README.md").read_text()
    assert "load_student" in card
    assert "one run says nothing about the spread over seeds" in card


def test_the_plain_arm_starts_from_the_student_s_weights_and_sees_its_order(tmp_path: Path) -> None:
    """With the teacher's weight at zero and no target term the two arms would be one; kd at alpha 0 is plain."""
    run_cli(tmp_path / "kd", "--method.alpha", "0", method="kd")
    plain = load_file(
        sorted((tmp_path / "kd" / "arms" / "plain" / "checkpoints").iterdir())[-1] / "student.safetensors"
    )
    own = load_file(sorted((tmp_path / "kd" / "checkpoints").iterdir())[-1] / "student.safetensors")
    assert same(plain, own)


def test_the_second_run_finds_the_teacher(tmp_path: Path) -> None:
    first = run_cli(tmp_path / "a", "--task.teacher-seed", "41")
    assert (tmp_path / "a" / "arms" / "teacher").exists()
    second = run_cli(tmp_path / "b", "--task.teacher-seed", "41")
    assert not (tmp_path / "b" / "arms" / "teacher").exists()
    assert first["arms"]["teacher"]["test"] == second["arms"]["teacher"]["test"]
    assert second["costs"]["teacher training"] > 0
    assert first["arms"]["nkd"]["test"] == second["arms"]["nkd"]["test"]


def test_a_method_without_a_teacher_trains_none(tmp_path: Path) -> None:
    result = run_cli(tmp_path / "run", method="uskd")
    assert list(result["arms"]) == ["plain", "uskd"]


def test_plain_alone_is_not_compared(tmp_path: Path) -> None:
    result = run_cli(tmp_path / "run", method="plain")
    assert result["verdict"]["kind"] == "not compared"


def test_a_finished_run_is_not_run_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_cli(tmp_path / "run")
    before = (tmp_path / "run" / "result.json").read_bytes()
    assert main(["run", "nkd", "--resume", str(tmp_path / "run")]) == 0
    assert "already finished" in capsys.readouterr().out
    assert (tmp_path / "run" / "result.json").read_bytes() == before


def test_the_page_is_made_again(tmp_path: Path) -> None:
    run_cli(tmp_path / "run")
    page = tmp_path / "run" / "report.html"
    before = page.read_bytes()
    page.unlink()
    assert main(["report", str(tmp_path / "run")]) == 0
    assert page.read_bytes() == before


# -- killed -----------------------------------------------------------------------------------------------------


def start(folder: Path, cache: Path, *more: str) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "stillroom", "run", "nkd", *more]
    environment = {**os.environ, "STILLROOM_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=folder.parent
    )


def last(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(sorted((folder / "checkpoints").iterdir())[-1] / "student.safetensors")


def wait_for(path: Path, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.01)
    assert path.exists(), path


LONG = ["--task.teacher-epochs", "15", "--engine.epochs", "60", "--engine.checkpoint-every", "7"]


def test_sigkill_anywhere_and_resume_gives_the_same_bits(tmp_path: Path, shared_cache: Path) -> None:
    """One kill in the teacher's training, one in the method's; each resumed by a new process."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert main(["run", "nkd", *LONG, "--out", str(whole)]) == 0
    own_cache = tmp_path / "cache"  # the broken run has to train its own teacher
    random.seed()
    child = start(broken, own_cache, *LONG, "--out", str(broken))
    for place in ("arms/teacher/checkpoints", "checkpoints"):
        wait_for(broken / place)
        time.sleep(random.uniform(0, 0.3))
        child.send_signal(signal.SIGKILL)
        child.wait()
        child = start(broken, own_cache, "--resume", str(broken))
    assert child.wait(120) == 0, child.stderr.read().decode()
    assert same(last(whole), last(broken))
    for rows in ("metrics.jsonl", "arms/plain/metrics.jsonl"):
        assert (whole / rows).read_bytes() == (broken / rows).read_bytes()
    results = [json.loads((folder / "result.json").read_text())["arms"] for folder in (whole, broken)]
    for arm in ("teacher", "plain", "nkd"):
        assert results[0][arm]["test"] == results[1][arm]["test"]


def test_sigterm_saves_says_how_to_go_on_and_goes_on(tmp_path: Path, shared_cache: Path) -> None:
    folder = tmp_path / "run"
    child = start(folder, tmp_path / "cache", *LONG, "--out", str(folder))
    wait_for(folder / "arms" / "teacher" / "checkpoints")
    child.send_signal(signal.SIGTERM)
    assert child.wait(60) == 130
    said = child.stderr.read().decode().strip()
    assert said == f"stillroom: stopped, state saved: go on with stillroom run nkd --resume {folder}"
    assert not (folder / "result.json").exists()
    assert main(["run", "nkd", "--resume", str(folder)]) == 0


# -- from Python ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["tensors", "loader", "dataset"])
def test_distill_takes_modules_and_any_data(form: str, tmp_path: Path) -> None:
    x, y = tensors()
    data: Any = {
        "tensors": (x, y),
        "loader": DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True),
        "dataset": TensorDataset(x, y),
    }[form]
    mine = small()
    start = {k: v.clone() for k, v in mine.state_dict().items()}
    student, run = stillroom.distill(
        teacher(), mine, data, method="nkd", epochs=2, gamma=0.5, lr=0.01, out=tmp_path / "r"
    )
    assert isinstance(student, nn.Sequential)
    assert not student.training
    assert same(start, mine.state_dict())  # the module that was passed in is left as it was
    assert not same(start, student.state_dict())
    assert run.config["options"]["gamma"] == 0.5
    assert run.config["engine"]["recipe"]["lr"] == 0.01
    assert run.config["engine"]["batch_size"] == (16 if form == "loader" else 50)
    assert same(run.student(small()).state_dict(), student.state_dict())


def test_an_option_that_two_have_is_the_method_s() -> None:
    method, engine, rest = with_options(DKD(), Engine(), {"warmup": 3, "lr": 0.5, "epochs": 2})
    assert (method.warmup, engine.recipe.warmup) == (3, Engine().recipe.warmup)
    assert (engine.recipe.lr, engine.epochs, rest) == (0.5, 2, {})


def test_an_option_of_the_task_comes_before_the_engine_s() -> None:
    task = Classification()
    method, engine, rest = with_options(KD(), Engine(), {"alpha": 0.5, "student": "mlp:4", "lr": 0.5}, task)
    assert (method.alpha, engine.recipe.lr, rest) == (0.5, 0.5, {"student": "mlp:4"})
    with pytest.raises(
        UserError, match="neither method 'kd' nor its task nor the engine has an option 'ipc'"
    ):
        with_options(KD(), Engine(), {"ipc": 1}, task)


def test_distill_takes_a_datasets_object(tmp_path: Path) -> None:
    import datasets
    import numpy as np
    from PIL import Image

    images = [Image.fromarray(np.full((6, 6), 40 * (i % 3), np.uint8)) for i in range(60)]
    data = datasets.Dataset.from_dict(
        {"image": images, "label": [i % 3 for i in range(60)]},
        features=datasets.Features(
            {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])}
        ),
    )
    _, run = stillroom.distill("mlp:16", "mlp:4", data, method="kd", epochs=2, out=tmp_path / "r")
    assert run.result["data"]["classes"] == ["a", "b", "c"]


def test_distill_goes_on_with_a_run(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"method": KD(alpha=0.5), "epochs": 3, "out": tmp_path / "r"}
    first, _ = stillroom.distill(teacher(), small(), tensors(), **arguments)
    (tmp_path / "r" / "result.json").unlink()
    again, _ = stillroom.distill(teacher(), small(), tensors(), resume=True, **arguments)
    assert same(first.state_dict(), again.state_dict())
    with pytest.raises(UserError, match=r"was started with --engine.epochs 3, not 4"):
        stillroom.distill(teacher(), small(), tensors(), resume=True, **{**arguments, "epochs": 4})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"student": nn.Sequential(nn.Flatten(), nn.Linear(16, 5))}, "gives 5 classes"),
        ({"teacher": nn.Sequential(nn.Flatten(), nn.Linear(16, 7))}, "teacher 'Sequential' gives 7 classes"),
        ({"teacher": nn.Sequential(nn.Flatten(), nn.Linear(9, 3))}, r"fails on data .* of shape \(1, 4, 4\)"),
        ({"teacher": None}, "needs a teacher"),
        ({"method": "nkdd"}, "did you mean 'nkd'"),
        ({"gama": 1.0}, "has an option 'gama'"),
    ],
)
def test_what_does_not_fit_is_told_before_any_training(
    change: dict[str, Any], says: str, tmp_path: Path
) -> None:
    parts = {"teacher": teacher(), "student": small(), "data": tensors(), "method": "nkd", "epochs": 1}
    with pytest.raises(UserError, match=says):
        stillroom.distill(**{**parts, **change}, out=tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_two_runs_do_not_write_to_one_folder(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "r", {"method": "nkd"})
    with (
        run.held(),
        pytest.raises(UserError, match="in use by another process"),
        Run.open(tmp_path / "r").held(),
    ):
        pass


def test_a_timm_student_loads_with_plain_timm(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    x, y = tensors()
    big = torch.nn.functional.interpolate(x, size=(32, 32))
    _, run = stillroom.distill(
        None, "timm:test_resnet", (big, y), method="uskd", epochs=1, batch_size=40, out=tmp_path / "r"
    )
    weights = str(run.path / "student" / "model.safetensors")
    plain = timm.create_model("test_resnet", num_classes=3, in_chans=1, checkpoint_path=weights).eval()
    assert torch.equal(plain(big[:4]), load_student(run.path / "student")(big[:4]))


def test_the_baseline_is_the_plain_method() -> None:
    assert isinstance(Classification().baseline(), Plain)
    assert same(
        build("mlp:12", shape=(1, 8, 8), classes=10, seed=3).state_dict(),
        Classification().make_student(3).state_dict(),
    )

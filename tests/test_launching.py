"""Launched from the command line: `torchrun` and `accelerate launch`, killed, gone on with, and in error."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from processes import TORCHRUN, environment
from stillroom.cli import main
from stillroom.run import Run
from toys import apart, weights_of

SMALL = {"train_samples": 120, "student_samples": 100, "teacher_epochs": 2}
RUN = ["-m", "stillroom", "run", "kd", "--engine.epochs", "6", "--engine.log-every", "2"]
RUN += ["--engine.checkpoint-every", "2", "--engine.batch-size", "20"]
RUN += [word for key, n in SMALL.items() for word in (f"--task.{key.replace('_', '-')}", str(n))]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> dict[str, Any]:
    """The student of that command in one process; its teacher is kept afterwards."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STILLROOM_CACHE", str(shared_cache))
        assert main([*RUN[2:], "--out", str(folder)]) == 0
    return weights_of(Run(folder).student())


@pytest.fixture
def launched(tmp_path: Path, shared_cache: Path) -> Iterator[Any]:
    """Starts a command in an empty folder; what is left of it is ended with the test."""
    started: list[subprocess.Popen[str]] = []

    def launch(*command: str, **more: str) -> subprocess.Popen[str]:
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        place = {"cwd": tmp_path, "env": environment(shared_cache, **more)}
        started.append(subprocess.Popen(command, **pipes, **place))
        return started[-1]

    yield launch
    for process in started:
        if process.poll() is None:
            kill(process)


def kill(launcher: subprocess.Popen[str]) -> None:
    """SIGKILL for the launcher and for its processes, which would live on without it."""
    whole = psutil.Process(launcher.pid)
    for process in [*whole.children(recursive=True), whole]:
        process.kill()
    launcher.wait()


def test_torchrun_killed_and_gone_on_with_ends_with_the_weights_of_one(
    tmp_path: Path, launched: Any, alone: Any
) -> None:
    """Both processes are killed at a moment of the machine's choosing; nothing but one folder comes to be."""
    first = launched(*TORCHRUN, *RUN, "--out", "run")
    checkpoints = tmp_path / "run" / "checkpoints"
    while first.poll() is None and not list(checkpoints.glob("step-*")):
        time.sleep(0.01)
    kill(first)
    assert not Run(tmp_path / "run").finished
    second = launched(*TORCHRUN, *RUN[:4], "--resume", "run")
    said, _ = second.communicate(timeout=300)
    assert second.returncode == 0, said
    assert apart(weights_of(Run(tmp_path / "run").student()), alone) < 1e-6
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert Run(tmp_path / "run").result["machine"]["processes"] == 2
    assert said.count("kd: going on from step") == 1


def test_accelerate_launch_in_shards_ends_with_the_weights_of_one(
    tmp_path: Path, launched: Any, alone: Any
) -> None:
    """Without a device to be found, its launcher for several of them starts processes on the CPU."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launcher += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    process = launched(*launcher, *RUN, "--engine.shard", "all", "--out", "run")
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert Run(tmp_path / "run").result["machine"]["processes"] == 2
    assert apart(weights_of(Run(tmp_path / "run").student()), alone) < 1e-6
    assert said.count("kd: starts") == 1


def test_an_error_is_said_once(tmp_path: Path, launched: Any) -> None:
    """It is the main process's alone here: the other, left waiting, keeps its broken connection to itself."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").touch()
    process = launched(*TORCHRUN, *RUN, "--out", "run")
    said, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    own = said[: said.index("torch/distributed/elastic")]
    assert own.count("stillroom: ") == 1
    assert "stillroom: --out 'run' is not empty: pass another folder" in own
    assert "Traceback" not in own
    assert [path.name for path in tmp_path.rglob("*")] == ["run", "thesis.tex"]

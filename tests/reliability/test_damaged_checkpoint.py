"""A checkpoint that is cut short or changed in any byte is noticed, and the one before it has the same bits in it."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from reliability.outcomes import left, one_line
from stillroom import checkpoint
from stillroom.cli import main
from stillroom.engine import Engine, Watcher
from stillroom.errors import Interrupted, UserError
from stillroom.metrics import cost
from stillroom.predictors.baselines import Plain
from stillroom.predictors.classification import Classification
from stillroom.workflow import Job, execute

JOB = Job(Plain(), Classification(student_samples=60), Engine(epochs=5, checkpoint_every=2), seed=0)


class Stop(Watcher):
    """Stops a run after six steps, by the signal that a user would send."""

    def stepped(self, step: int, row: Mapping[str, Any] | None) -> None:
        if step == 6:
            signal.raise_signal(signal.SIGTERM)


@pytest.fixture(scope="module", autouse=True)
def _untimed() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost.latency, "__defaults__", (1, 0.0, None))
        yield


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the checkpoints of steps 4 and 6, of 10."""
    run = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.raises(Interrupted):
        execute(JOB, run, watch=lambda _: Stop())
    assert [c.name for c in checkpoint.listing(run / "checkpoints")] == ["step-00000004", "step-00000006"]
    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What an undisturbed run leaves."""
    return left(execute(JOB, tmp_path_factory.mktemp("whole") / "run")[0].path)


@pytest.fixture
def run(stopped: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stopped, tmp_path / "run"))


FILES = ("student.safetensors", "student.optimizer.safetensors", "state.json")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["missing", "empty", "half", "last bytes", "one bit"])
def test_the_line_says_how_to_go_on_and_so_it_does(
    name: str, damage: str, run: Path, whole: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    newest = run / "checkpoints" / "step-00000006"
    file = newest / name
    data = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        cut = {"empty": data[:0], "half": data[: len(data) // 2], "last bytes": data[:-2]}
        file.write_bytes(cut[damage] if damage in cut else flipped(data, 8 * len(data) - 20))
    before = {path: path.read_bytes() for path in run.rglob("*.jsonl")}
    assert main(["run", "plain", "--resume", str(run)]) == 2
    line = one_line(capsys.readouterr().err)
    assert str(newest) in line
    assert line.endswith(f"remove '{newest}' and resume, the run then goes on from step-00000004")
    assert before == {path: path.read_bytes() for path in run.rglob("*.jsonl")}
    shutil.rmtree(newest)
    assert main(["run", "plain", "--resume", str(run)]) == 0
    assert left(run) == whole


def flipped(data: bytes, bit: int) -> bytes:
    """The data with one bit turned over."""
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@pytest.mark.parametrize("name", FILES)
def test_every_length_and_any_bit(name: str, run: Path) -> None:
    """Every cut of the small files, 300 of each, and 300 bits; each is refused in a line."""
    file, chance = run / "checkpoints" / "step-00000006" / name, random.Random(0)
    data = file.read_bytes()
    cuts = chance.sample(range(len(data)), min(300, len(data)))
    bits = chance.sample(range(8 * len(data)), 300)
    for changed in [*(data[:cut] for cut in cuts), *(flipped(data, bit) for bit in bits)]:
        file.write_bytes(changed)
        if name == "state.json" and _equal(changed, data):
            continue  # of JSON a space more or less, or another way to write a letter, is no damage
        with pytest.raises(UserError) as error:
            checkpoint.load(file.parent)
        assert len(str(error.value).splitlines()) == 1
    file.write_bytes(data)
    checkpoint.load(file.parent)


def _equal(one: bytes, other: bytes) -> bool:
    try:
        return json.loads(one) == json.loads(other)
    except ValueError:
        return False


def test_a_checkpoint_of_an_earlier_version_is_read(run: Path) -> None:
    """It has no sums to be held against."""
    path = run / "checkpoints" / "step-00000006"
    state = json.loads((path / "state.json").read_text())
    del state["sum"], state["sums"]
    (path / "state.json").write_text(json.dumps(state))
    assert checkpoint.load(path)[0]["step"] == 6


@pytest.mark.parametrize("damage", ["missing", "short"])
def test_metrics_that_are_gone_are_missed(damage: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that went on without them would end with half a curve and no word of it."""
    rows = run / "metrics.jsonl"
    rows.write_bytes(rows.read_bytes()[:-1])
    if damage == "missing":
        rows.unlink()
    assert main(["run", "plain", "--resume", str(run)]) == 2
    assert "metrics.jsonl' is missing or shorter" in one_line(capsys.readouterr().err)


def test_a_kept_teacher_that_is_damaged_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One bit of its weights: else every student of it would differ, and none would know."""
    from stillroom.teaching import teach

    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path))
    task, engine = Classification(train_samples=100, teacher_epochs=1), Engine()
    teach(task, engine, None, Watcher)
    file = next(tmp_path.rglob("weights.safetensors"))
    file.write_bytes(flipped(file.read_bytes(), 8 * file.stat().st_size - 20))
    with pytest.raises(
        UserError, match=r"the kept teacher '.*' is damaged: remove that folder, it is then trained"
    ):
        teach(task, engine, None, Watcher)
    shutil.rmtree(file.parent)
    assert not teach(task, engine, None, Watcher).kept


@pytest.mark.parametrize("damage", ["missing", "short"])
def test_kept_samples_that_are_damaged_are_not_used(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a making that was killed after its first block, and of one that is finished."""
    import torch

    from stillroom.store import kept_store

    def make(rows: range) -> dict[str, torch.Tensor]:
        if rows.start == 500 and not finished:
            raise KeyboardInterrupt
        return {"x": torch.ones(len(rows), 20)}

    for finished in (False, True):
        monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / str(finished)))
        with contextlib.suppress(KeyboardInterrupt):
            kept_store("pairs", {}, 1000, make)
        file = next(tmp_path.glob(f"{finished}/**/x.npy"))
        file.unlink() if damage == "missing" else file.write_bytes(file.read_bytes()[:1000])
        finished = True
        with pytest.raises(UserError, match=r"the kept samples '.*' are damaged .*: remove that folder"):
            kept_store("pairs", {}, 1000, make)
        shutil.rmtree(file.parent)
        assert len(kept_store("pairs", {}, 1000, make)) == 1000

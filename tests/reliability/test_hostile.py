"""Files that somebody else made: nothing in them is run, nothing outside is touched, all is a line."""

from __future__ import annotations

import io
import json
import shutil
import signal
import struct
import sys
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from reliability.outcomes import one_line
from stillroom import Run, checkpoint
from stillroom.cli import main
from stillroom.engine import Engine, Watcher
from stillroom.errors import Interrupted, UserError
from stillroom.metrics import cost
from stillroom.models import build, load_student, save_student
from stillroom.models.files import read_weights
from stillroom.predictors.baselines import Plain
from stillroom.predictors.classification import Classification
from stillroom.reports import figures
from stillroom.workflow import Job, execute

JOB = Job(Plain(), Classification(student_samples=60), Engine(epochs=3, checkpoint_every=2), seed=0)
ABOUT = {"architecture": "mlp:4", "shape": [1, 8, 8], "classes": 10}


class Bomb:
    """Unpickling one leaves a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@pytest.fixture(scope="module", autouse=True)
def _untimed() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost.latency, "__defaults__", (1, 0.0, None))
        patch.setattr(
            figures, "draw", lambda *_: '<svg viewBox="0 0 1 1"><title id="t">a figure</title></svg>'
        )
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run and one that was stopped at step 3 of 6, never written to by a test."""
    folder = tmp_path_factory.mktemp("made")

    class Stop(Watcher):
        def stepped(self, step: int, row: Mapping[str, Any] | None) -> None:
            if step == 3:
                signal.raise_signal(signal.SIGTERM)

    execute(JOB, folder / "finished")
    with pytest.raises(Interrupted):
        execute(JOB, folder / "stopped", watch=lambda _: Stop())
    return folder


FOREIGN = ("pytorch_model.bin", "model.pt", "model.pth")
"""Names of torch's own files that are read, as far as they hold tensors alone."""


@pytest.fixture
def finished(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "finished", tmp_path / "run"))


@pytest.fixture
def stopped(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "stopped", tmp_path / "run"))


def refused(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    """The line with which the command is refused."""
    assert main([str(word) for word in words]) == 2
    return one_line(capsys.readouterr().err)


def outcome(capsys: pytest.CaptureFixture[str], *words: str | Path) -> int:
    """The status of a command that may go well, or be refused in a line."""
    status = main([str(word) for word in words])
    said = capsys.readouterr().err
    assert (status == 0) or one_line(said)
    return status


# -- what could be run ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("model.safetensors", "student weights"),
        *((name, "hold more than tensors and could run code") for name in FOREIGN),
        ("model.ckpt", "has no weights"),
    ],
)
def test_a_pickle_in_a_model_folder_never_runs(
    name: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a teacher's weights, under any of the names that pickled weights go by."""
    folder, mark = tmp_path / "model", tmp_path / "unpickled"
    save_student(folder, build("mlp:4", shape=(1, 8, 8), classes=10, seed=0), ABOUT)
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Bomb(mark)}, folder / name)
    line = refused(capsys, "run", "nkd", "--task.teacher-weights", folder, "--out", tmp_path / "run")
    assert says in line
    assert not mark.exists()


def test_a_pickle_in_a_pipeline_is_not_opened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """diffusers reads pickled weights where there are no others, unless it is told not to."""
    pytest.importorskip("diffusers")
    import diffusers

    folder, mark = tmp_path / "unet", tmp_path / "unpickled"
    small = {
        "sample_size": 8,
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": (8,),
        "norm_num_groups": 8,
    }
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "layers_per_block": 1}
    pipeline = diffusers.DDPMPipeline(diffusers.UNet2DModel(**small, **blocks), diffusers.DDPMScheduler())
    pipeline.save_pretrained(folder)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save({"weight": Bomb(mark)}, weights.with_suffix(".bin"))
    weights.unlink()
    refused(capsys, "run", "few-steps", "--task.teacher-weights", folder, "--out", tmp_path / "run")
    assert not mark.exists()


def test_a_pickle_among_kept_samples_is_not_opened(tmp_path: Path) -> None:
    """numpy reads an array of objects by unpickling it."""
    from stillroom.store import Store

    np.save(tmp_path / "pairs.npy", np.array([Bomb(tmp_path / "unpickled")], dtype=object), allow_pickle=True)
    checkpoint.write_json(tmp_path / "about.json", {"count": 1, "done": 1, "arrays": ["pairs"]})
    with pytest.raises(UserError, match=r"the kept samples '.*' are damaged"):
        Store(tmp_path)
    assert not (tmp_path / "unpickled").exists()


@pytest.mark.parametrize(
    "problem",
    [
        "reliability_bomb:Task",
        "os:system",
        "stillroom.__main__:x",
        "stillroom.cli:os",
        "stillroom.nothing:x",
        "stillroom..:x",
        "stillroom.predictors.classification:Path",
        "stillroom.predictors.classification:no",
        "",
        5,
    ],
)
def test_a_config_names_no_module_that_is_not_ours(
    problem: Any, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a foreign module, which importing would run, nor one of ours that is no task."""
    (tmp_path / "reliability_bomb.py").write_text("open('imported', 'w')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["stillroom", "list"])
    config = json.loads((finished / "config.json").read_text())
    (finished / "config.json").write_text(json.dumps(config | {"problem": problem}))
    with pytest.raises(UserError) as error:
        Run.open(finished).student()
    assert len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "imported").exists()


# -- what could be written over, or read from elsewhere -----------------------------------------------------------


@pytest.mark.parametrize("name", ["metrics.jsonl", ".lock", "config.json", "checkpoints", "student", "arms"])
def test_a_link_out_of_a_run_is_not_followed(
    name: str, stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else to go on with a stranger's run would cut and write to files of one's own."""
    mine = tmp_path / "mine"
    inside = stopped / name
    if inside.is_dir() or name in ("student", "arms"):
        mine.mkdir()
        (mine / "thesis.tex").write_text("years of work")
        shutil.rmtree(inside, ignore_errors=True)
    else:
        mine.write_text(inside.read_text() + ("" if name == "config.json" else "years of work"))
        inside.unlink()
    before = _contents(mine)
    inside.symlink_to(mine)
    assert "holds a link" in refused(capsys, "run", "plain", "--resume", stopped)
    assert _contents(mine) == before


def test_a_link_where_a_run_is_to_start_is_not_followed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a killed start leaves does not make a folder one in use; a link of its name does."""
    (tmp_path / "mine").write_text("years of work")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".config.json.part").symlink_to(tmp_path / "mine")
    assert "is not empty" in refused(capsys, "run", "plain", "--out", tmp_path / "run")
    assert (tmp_path / "mine").read_text() == "years of work"


def test_a_link_where_no_run_writes_is_left_alone(
    stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trackers put links into a folder of their own, to logs somewhere else."""
    (stopped / "tracker").mkdir()
    (stopped / "tracker" / "debug.log").symlink_to(tmp_path / "log")
    assert outcome(capsys, "run", "plain", "--resume", stopped) == 0


def _contents(place: Path) -> dict[str, bytes]:
    files = [place] if place.is_file() else [path for path in place.rglob("*") if path.is_file()]
    return {str(file): file.read_bytes() for file in files}


@pytest.mark.parametrize("stem", ["../../../outside", "/outside", "sub/student", "../student"])
def test_a_checkpoint_names_no_file_outside_itself(
    stem: str, stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = checkpoint.listing(stopped / "checkpoints")[-1]
    state = json.loads((newest / "state.json").read_text())
    del state["sum"], state["sums"]
    stem = str(tmp_path / "outside") if stem == "/outside" else stem
    state["files"] = {stem: 1}
    (newest / "state.json").write_text(json.dumps(state))
    checkpoint.save_tensors(tmp_path / "outside.safetensors", {"a": torch.ones(1)})
    assert "is not a checkpoint of Stillroom's" in refused(capsys, "run", "plain", "--resume", stopped)


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_an_archive_among_data_writes_nothing_outside(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stillroom opens no archive itself; the `datasets` library, which may, is held to the same."""
    import datasets

    root = tmp_path / "root"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", root / "cache")
    monkeypatch.setattr(datasets.config, "EXTRACTED_DATASETS_PATH", str(root / "cache" / "extracted"))
    (root / "data").mkdir(parents=True)
    names = [
        "../../escaped.png",
        "../" * 12 + str(tmp_path / "escaped.png").lstrip("/"),
        str(tmp_path / "escaped.png"),
    ]
    if kind == "zip":
        with zipfile.ZipFile(root / "data" / "train.zip", "w") as archive:
            for name in [*names, "a.png"]:
                archive.writestr(name, b"x")
    else:
        with tarfile.open(root / "data" / "train.tar", "w") as archive:
            for name in [*names, "a.png"]:
                member = tarfile.TarInfo(name)
                member.size = 1
                archive.addfile(member, io.BytesIO(b"x"))
    outcome(capsys, "run", "plain", "--task.data", root / "data", "--out", tmp_path / "run")
    assert not list(tmp_path.glob("escaped*")) and not list(root.glob("escaped*"))


# -- absurd sizes and shapes --------------------------------------------------------------------------------------


def header(**entries: Any) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text


def entry(shape: list[int], start: int, end: int, kind: str = "F32") -> dict[str, Any]:
    return {"dtype": kind, "shape": shape, "data_offsets": [start, end]}


ABSURD = {
    "a header of 2**60 bytes": struct.pack("<Q", 2**60) + b"{}",
    "a header of 2**64 - 1 bytes": struct.pack("<Q", 2**64 - 1) + b"{}",
    "a header that is cut": struct.pack("<Q", 100) + b'{"a": ',
    "offsets beyond the file": header(a=entry([2], 0, 10**15)) + bytes(8),
    "offsets that overlap": header(a=entry([2], 0, 8), b=entry([2], 4, 12)) + bytes(12),
    "offsets with a hole": header(a=entry([2], 0, 8), b=entry([2], 12, 20)) + bytes(20),
    "bytes of nobody": header(a=entry([2], 0, 8)) + bytes(64),
    "a shape that overflows": header(a=entry([2**40, 2**40, 2**40], 0, 8)) + bytes(8),
    "a shape below zero": header(a=entry([-2], 0, 8)) + bytes(8),
    "a shape of NaN": header(a=entry([float("nan")], 0, 8)) + bytes(8),  # type: ignore[list-item]
    "nothing but nests": struct.pack("<Q", 100_000) + b"[" * 100_000,
    "a name twice": struct.pack("<Q", 130)
    + b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
    b'"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'.ljust(76)
    + bytes(8),
}


@pytest.mark.parametrize("case", ABSURD)
@pytest.mark.parametrize("read", [checkpoint.load_tensors, read_weights])
def test_an_absurd_header_is_refused(case: str, read: Any, tmp_path: Path) -> None:
    """By both readers: of checkpoints, and of students and teachers."""
    file = tmp_path / "model.safetensors"
    file.write_bytes(ABSURD[case])
    with pytest.raises(UserError) as error:
        read(file)
    assert len(str(error.value).splitlines()) == 1


BOMBS = {
    "nests": b"[" * 100_000 + b"]" * 100_000,
    "nested names": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "a number of 5,000 digits": b'{"step": ' + b"9" * 5000 + b"}",
    "no text": b"\xff\xfe{}",
    "nothing": b"",
    "a word": b'"config"',
}


@pytest.mark.parametrize("case", BOMBS)
@pytest.mark.parametrize("place", ["config.json", "state.json", "student", "result.json"])
def test_json_that_is_made_to_break_its_reader(
    case: str, place: str, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind = "stopped" if place in ("config.json", "state.json") else "finished"
    run = Path(shutil.copytree(made / kind, tmp_path / "run"))
    newest = checkpoint.listing(run / "checkpoints")[-1]
    file = {"state.json": newest / place, "student": run / "student" / "config.json"}.get(place, run / place)
    file.write_bytes(BOMBS[case])
    if place == "student":
        with pytest.raises(UserError) as error:
            load_student(run / "student")
        assert len(str(error.value).splitlines()) == 1
    elif place == "result.json":
        refused(capsys, "report", run)
    else:
        refused(capsys, "run", "plain", "--resume", run)

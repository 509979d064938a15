"""What a user reads after a mistake: one line that names the thing, the value and the way out.

`error_lines.json` maps a command to the line it must print; `<tmp>` is the folder that `world` fills. Nothing
may come to be in the working folder or in the world, and nothing in the world may change.
"""

from __future__ import annotations

import json
import shlex
import shutil
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from stillroom import catalogue
from stillroom.cli import main
from stillroom.run import Run

LINES: dict[str, str] = json.loads((Path(__file__).parent / "error_lines.json").read_text(encoding="utf-8"))
IMAGES, SIZE = 30, 8


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> Iterator[Path]:
    """Data, students and runs with something wrong about each."""
    import datasets

    root = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STILLROOM_CACHE", str(shared_cache))
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        (root / "file").write_text("no folder")
        _make_data(root / "data")
        _make_students(root / "students")
        _make_runs(root / "runs")
        with Run(root / "runs" / "busy").held():
            yield root


@pytest.mark.parametrize("command", LINES)
def test_a_mistake_is_one_line_and_leaves_nothing(
    command: str,
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    there = catalogue.works  # one system stays planned here, whatever is built
    monkeypatch.setattr(catalogue, "works", lambda card: card.slug != "ferkd" and there(card))
    monkeypatch.chdir(tmp_path)
    before = _contents(world)
    status = main(shlex.split(command.replace("<tmp>", str(world))))
    error = capsys.readouterr().err.replace(str(world), "<tmp>")
    assert error == LINES[command] + "\n"
    assert status == 2
    assert not list(tmp_path.iterdir())
    assert _contents(world) == before


def test_every_line_is_said_in_the_house_style() -> None:
    for command, line in LINES.items():
        assert line.startswith("stillroom: "), command
        assert len(line.splitlines()) == 1, command
        assert ": " in line.removeprefix("stillroom: "), f"no way out: {command}"


def _contents(folder: Path) -> dict[str, bytes | None]:
    """Every path below `folder` with its bytes, but for the locks, which hold the process that resumed."""
    paths = [path for path in folder.rglob("*") if path.name != ".lock"]
    return {str(path): path.read_bytes() if path.is_file() else None for path in paths}


# -- data -----------------------------------------------------------------------------------------------------


def _make_data(root: Path) -> None:
    (root / "empty").mkdir(parents=True)
    sound = [i % 3 for i in range(IMAGES)]
    _parquet(root / "sound", {"train": sound, "test": sound})
    _parquet(root / "no_rows", {"train": []})
    _parquet(root / "label_seven", {"train": sound, "test": [0, 1, 7]})
    _parquet(root / "label_negative", {"train": [*sound[:-1], -1], "test": sound})
    _parquet(root / "one_class", {"train": [0] * IMAGES})
    _parquet(root / "no_image", {"train": sound}, image=False)
    (root / "garbage").mkdir()
    (root / "garbage" / "train.parquet").write_bytes(b"not a table")
    for i in range(IMAGES):
        file = root / "broken_picture" / ("cat", "dog")[i % 2] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"not a picture")


def _parquet(folder: Path, splits: Mapping[str, list[int]], image: bool = True) -> None:
    """Grey images of 8x8, or numbers in their place, with the labels given for each split."""
    import datasets
    import numpy as np

    folder.mkdir(parents=True)
    kind = datasets.Image() if image else datasets.Value("float32")
    features = datasets.Features({"image": kind, "label": datasets.Value("int64")})
    for split, labels in splits.items():
        pictures = [np.full((SIZE, SIZE), i, np.uint8) if image else float(i) for i in range(len(labels))]
        table = datasets.Dataset.from_dict({"image": pictures, "label": labels}, features)
        table.to_parquet(str(folder / f"{split}.parquet"))


# -- students -------------------------------------------------------------------------------------------------


def _make_students(root: Path) -> None:
    _student(root / "three_classes", "mlp:4", (1, SIZE, SIZE), 3)
    _student(root / "other_shape", "mlp:4", (1, 5, 5), 10)
    _student(root / "cut", "mlp:4", (1, SIZE, SIZE), 10)
    _cut(root / "cut" / "model.safetensors")
    _student(root / "pickled", "mlp:4", (1, SIZE, SIZE), 10)
    _pickle(root / "pickled" / "model.safetensors")
    (root / "strange").mkdir()
    (root / "strange" / "config.json").write_text('{"layers": 3}')


def _student(folder: Path, architecture: str, shape: tuple[int, ...], classes: int) -> None:
    from stillroom.models import build, save_student

    module = build(architecture, shape=shape, classes=classes, seed=0)
    save_student(folder, module, {"architecture": architecture, "shape": list(shape), "classes": classes})


# -- runs -----------------------------------------------------------------------------------------------------


def _make_runs(root: Path) -> None:
    """One run stopped after its first step, and copies of it, each damaged in its own way."""
    sound = root / "stopped"
    _stopped_run(sound)
    for name in ("cut", "pickled", "foreign", "fileless", "cut_state", "odd_state", "cut_config", "busy"):
        shutil.copytree(sound, root / name)
    last = Path("checkpoints/step-00000001")
    _cut(root / "cut" / last / "student.safetensors")
    _pickle(root / "pickled" / last / "student.safetensors")
    _other_network(root / "foreign" / last / "student.safetensors")
    (root / "fileless" / last / "student.optimizer.safetensors").unlink()
    (root / "cut_state" / last / "state.json").write_text('{"step": 1,')
    (root / "odd_state" / last / "state.json").write_text('{"step": 1}')
    (root / "cut_config" / "config.json").write_text('{"method": "nkd"')
    (root / "foreign_folder").mkdir()
    (root / "foreign_folder" / "thesis.tex").write_text("years of work")


def _stopped_run(folder: Path) -> None:
    from stillroom.engine import Engine, Watcher
    from stillroom.errors import Interrupted
    from stillroom.predictors.classification import Classification
    from stillroom.predictors.labels.nkd_uskd import NKD
    from stillroom.workflow import Job, execute

    class Stopper(Watcher):
        def stepped(self, step: int, row: Mapping[str, Any] | None) -> None:
            signal.raise_signal(signal.SIGINT)

    task = Classification(student="mlp:12", train_samples=100, student_samples=50, teacher_epochs=1)
    job = Job(NKD(gamma=1.5), task, Engine(epochs=2), seed=0)
    with pytest.raises(Interrupted):
        execute(job, folder, watch=lambda arm: Stopper() if arm == "nkd" else Watcher())
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-00000001"]


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


class _Bomb:
    """Unpickling one leaves a file behind."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("unpickled"),)


def _pickle(file: Path) -> None:
    import torch

    torch.save({"weight": _Bomb()}, file)


def _other_network(file: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"somebody.elses": torch.zeros(3)}, file)

"""What the trackers are told, read back from what they left on disk; nothing goes over a network."""

from __future__ import annotations

import json
import math
import signal
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from stillroom import tracking
from stillroom.engine import Engine, Watcher
from stillroom.errors import Interrupted, UserError
from stillroom.fitter import unwatched
from stillroom.history import read_fit
from stillroom.predictors.classification import Classification
from stillroom.predictors.labels.nkd_uskd import NKD
from stillroom.run import Run
from stillroom.tracking import Tracking
from stillroom.workflow import Job, execute

ALL = ("tensorboard", "wandb", "mlflow")
NAMES = {"teacher": "arms/teacher", "plain": "arms/plain", "nkd": "."}


def job() -> Job:
    task = Classification(train_samples=120, student_samples=60, teacher_epochs=2)
    return Job(NKD(), task, Engine(epochs=6, batch_size=30, log_every=2, checkpoint_every=2), seed=0)


class Stopper(Watcher):
    """Stops the run behind the fifth step, which is not one that a checkpoint is written at."""

    def stepped(self, step: int, row: Mapping[str, Any] | None) -> None:
        if step == 5:
            signal.raise_signal(signal.SIGINT)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run that was tracked, stopped and resumed, and the same one untracked in one go."""
    for package in ("tensorboard", "wandb", "mlflow", "sqlalchemy", "alembic"):
        pytest.importorskip(package)
    root = tmp_path_factory.mktemp("tracked")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STILLROOM_CACHE", str(root / "cache-tracked"))
        for name in ("WANDB_MODE", "MLFLOW_TRACKING_URI"):
            patch.delenv(name, raising=False)
        with pytest.raises(Interrupted):
            execute(
                job(), root / "run", watch=lambda arm: Stopper() if arm == "nkd" else Watcher(), track=ALL
            )
        execute(job(), root / "run", resume=True)
        patch.setenv("STILLROOM_CACHE", str(root / "cache-plain"))
        execute(job(), root / "plain")
    return root / "run", root / "plain"


def told(run: Path, arm: str) -> dict[int, dict[str, float]]:
    """What the metrics file says, by step, as the trackers name it."""
    found: dict[int, dict[str, float]] = {}
    for row in read_fit(run / NAMES[arm]):
        flat = {k: v for k, v in row.items() if k not in ("step", "validation")}
        flat |= {f"validation/{k}": v for k, v in row.get("validation", {}).items()}
        found.setdefault(row["step"], {}).update(flat)
    return found


def test_tracking_changes_no_weight(runs: tuple[Path, Path]) -> None:
    weights = [(run / "student" / "model.safetensors").read_bytes() for run in runs]
    assert weights[0] == weights[1]
    assert read_fit(runs[0]) == read_fit(runs[1])


@pytest.mark.parametrize("arm", NAMES)
def test_tensorboard_has_each_row_of_each_arm_once(runs: tuple[Path, Path], arm: str) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(runs[0] / "tracking" / "tensorboard" / arm)).Reload()
    rows = told(runs[0], arm)
    for tag in {key for row in rows.values() for key in row}:
        points = [(event.step, event.value) for event in events.Scalars(tag)]
        wanted = [(step, row[tag]) for step, row in sorted(rows.items()) if tag in row]
        assert [step for step, _ in points] == [step for step, _ in wanted], tag
        assert [value for _, value in points] == pytest.approx([value for _, value in wanted], rel=1e-6)
    test = Run(runs[0]).result["arms"][arm]["test"]["accuracy"]
    assert events.Scalars("result/test/accuracy")[0].value == pytest.approx(test, rel=1e-6)


def test_tensorboard_has_options_and_verdict(runs: tuple[Path, Path]) -> None:
    import yaml
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = runs[0] / "tracking" / "tensorboard" / "run"
    (options,) = [yaml.safe_load(file.read_text()) for file in folder.glob("*/hparams.yml")]
    assert options["method"] == "nkd" and options["engine.recipe.lr"] == job().engine.recipe.lr
    events = EventAccumulator(str(folder)).Reload()
    verdict = Run(runs[0]).result["verdict"]
    assert events.Scalars("difference")[0].value == pytest.approx(verdict["difference"], rel=1e-6)
    assert [t.tensor_proto.string_val[0].decode() for t in events.Tensors("verdict/text_summary")] == [
        verdict["text"]
    ]


def wandb_records(run: Path) -> list[list[Any]]:
    """The records of each offline session: W&B's files are LevelDB logs of protobuf messages."""
    from wandb.proto import wandb_internal_pb2

    sessions = []
    for path in sorted((run / "tracking" / "wandb").glob("offline-run-*/*.wandb")):
        data, at, whole, found = path.read_bytes(), 7, b"", []
        while at + 7 <= len(data):
            if 32768 - at % 32768 < 7:
                at += 32768 - at % 32768
                continue
            _, size, kind = struct.unpack("<IHB", data[at : at + 7])
            whole += data[at + 7 : at + 7 + size]
            at += 7 + size
            if kind in (1, 4):  # a whole record, or the last part of one
                record = wandb_internal_pb2.Record()
                record.ParseFromString(whole)
                found.append(record)
                whole = b""
        sessions.append(found)
    return sessions


def items(entries: Any) -> dict[str, Any]:
    return {e.key or "/".join(e.nested_key): json.loads(e.value_json) for e in entries}


def test_wandb_goes_on_with_the_same_run_and_has_each_row_once(runs: tuple[Path, Path]) -> None:
    sessions = wandb_records(runs[0])
    assert len(sessions) == 2
    opened = [r.run for session in sessions for r in session if r.WhichOneof("record_type") == "run"]
    assert {run.run_id for run in opened} == {tracking._read(runs[0] / "tracking/state.json")["wandb"]["id"]}
    assert {(run.project, run.display_name) for run in opened} == {("stillroom", "run")}
    rows = [
        items(r.history.item)
        for session in sessions
        for r in session
        if r.WhichOneof("record_type") == "history"
    ]
    counted = [row["_step"] for row in rows]
    assert counted == list(range(1, len(rows) + 1))
    for arm in NAMES:
        found = {
            row[f"{arm}/step"]: {
                k.removeprefix(f"{arm}/"): v for k, v in row.items() if k.startswith(f"{arm}/")
            }
            for row in rows
            if f"{arm}/step" in row
        }
        assert found == {step: {**row, "step": step} for step, row in told(runs[0], arm).items()}
    assert len(rows) == sum(len(told(runs[0], arm)) for arm in NAMES)


def test_wandb_has_options_scores_and_verdict(runs: tuple[Path, Path]) -> None:
    records = [record for session in wandb_records(runs[0]) for record in session]
    config = [items(r.config.update) for r in records if r.WhichOneof("record_type") == "config"]
    assert config[0]["options.gamma"] == 1.5
    summary: dict[str, Any] = {}
    for record in records:
        if record.WhichOneof("record_type") == "summary":
            summary |= items(record.summary.update)
    result = Run(runs[0]).result
    for arm in NAMES:
        assert summary[f"{arm}/result/test/accuracy"] == result["arms"][arm]["test"]["accuracy"]
    assert summary["verdict"] == result["verdict"]["text"]
    assert summary["run/difference"] == result["verdict"]["difference"]


def test_mlflow_has_one_run_with_each_row_once(runs: tuple[Path, Path]) -> None:
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{runs[0] / 'tracking' / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name = 'stillroom'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "run" and run.info.status == "FINISHED"
    assert run.data.params["options.gamma"] == "1.5"
    assert run.data.tags["verdict"] == Run(runs[0]).result["verdict"]["text"]
    for arm in NAMES:
        rows = told(runs[0], arm)
        for tag in {key for row in rows.values() for key in row}:
            points = [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, f"{arm}/{tag}")]
            wanted = [(step, row[tag]) for step, row in sorted(rows.items()) if tag in row]
            assert sorted(points) == wanted, tag
        test = Run(runs[0]).result["arms"][arm]["test"]["accuracy"]
        assert run.data.metrics[f"{arm}/result/test/accuracy"] == test


def test_mlflow_is_left_as_it_was(runs: tuple[Path, Path]) -> None:
    import mlflow

    assert not mlflow.is_tracking_uri_set()
    assert mlflow.active_run() is None


def test_neither_library_reports_home(runs: tuple[Path, Path]) -> None:
    from mlflow.telemetry.client import get_telemetry_client
    from wandb.env import error_reporting_enabled

    assert get_telemetry_client() is None
    assert not error_reporting_enabled()


def test_the_trackers_keep_to_the_run_s_folder(runs: tuple[Path, Path]) -> None:
    assert sorted(path.name for path in (runs[0] / "tracking").iterdir()) == [
        "mlflow.db",
        "state.json",
        "tensorboard",
        "wandb",
    ]
    assert not (runs[1] / "tracking").exists()


# -- what goes wrong ----------------------------------------------------------------------------------------------


class Broken(tracking._Tracker):
    """Fails at the second row."""

    name = "tensorboard"
    needs = ()

    def start(self, run: str, options: Mapping[str, Any]) -> None:
        self.rows = 0

    def tell(self, arm: str, step: int, numbers: Mapping[str, float]) -> None:
        self.rows += 1
        if self.rows == 2:
            raise OSError("no space left on device")


def test_a_tracker_that_fails_is_dropped_with_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tracking._KINDS, "tensorboard", Broken)
    with (
        Tracking(("tensorboard",), tmp_path / "run", {}) as told_of,
        warnings.catch_warnings(record=True) as seen,
    ):
        warnings.simplefilter("always")
        watcher = told_of.watch(unwatched)("nkd")
        for step in range(1, 5):
            watcher.stepped(step, {"step": step, "loss": 0.5})
    (warning,) = seen
    assert str(warning.message) == (
        "tensorboard stopped tracking (no space left on device): the run goes on, its numbers are in "
        f"'{tmp_path / 'run'}'"
    )
    assert told_of.trackers == []


def test_a_tracker_that_cannot_start_lets_the_run_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no(self: Any, run: str, options: Any) -> None:
        raise RuntimeError("no server")

    monkeypatch.setattr(Broken, "start", no)
    monkeypatch.setitem(tracking._KINDS, "tensorboard", Broken)
    with pytest.warns(UserWarning, match="stopped tracking \\(no server\\)"):
        run, _ = execute(job(), tmp_path / "run", track=("tensorboard",))
    assert run.finished


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("tensorbord", "there is no tracker 'tensorbord': pass tensorboard, wandb, mlflow"),
        ("wandb", 'wandb is not installed: pip install "stillroom[tracking]"'),
    ],
)
def test_wrong_names_are_said_before_anything_is_written(
    name: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda package: None)
    with pytest.raises(UserError, match=f"^{line.replace('[', '.').replace(']', '.')}$"):
        execute(job(), tmp_path / "run", track=(name,))
    assert not (tmp_path / "run").exists()


def test_a_library_that_is_gone_does_not_keep_a_run_from_going_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tracking").mkdir()
    (tmp_path / "tracking" / "state.json").write_text('{"wandb": {"id": "a", "steps": {}}}')
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda package: None)
    with pytest.warns(UserWarning, match="no longer tracked: wandb is not installed"):
        assert Tracking((), tmp_path, {}).trackers == []


def test_from_python_the_trackers_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    import stillroom
    from stillroom.condensation.parts.selection import RandomImages

    monkeypatch.setitem(tracking._KINDS, "tensorboard", Broken)
    heard: list[str] = []
    monkeypatch.setattr(Broken, "tell", lambda self, arm, step, numbers: heard.append(arm))
    x = torch.randn(80, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    data = (x, x.flatten(1)[:, :3].argmax(-1))
    options: dict[str, Any] = {"epochs": 1, "track": ("tensorboard",)}
    stillroom.distill(None, "mlp:4", data, "plain", out=tmp_path / "a", **options)
    assert set(heard) == {"plain", "run"}
    heard.clear()
    images = RandomImages()
    stillroom.condense(data, method=images, ipc=1, eval_epochs=1, repeats=1, out=tmp_path / "b", **options)
    assert "random-images" in heard


def test_other_processes_say_nothing(tmp_path: Path) -> None:
    other = Tracking(("tensorboard",), tmp_path / "run", {}, active=False)
    assert other.watch(unwatched) is unwatched
    other.result({"arms": {}, "costs": {}, "verdict": {"interval": None, "difference": None, "text": ""}})
    assert not (tmp_path / "run").exists()


def test_a_name_that_comes_again_is_another_arm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[tuple[str, int]] = []
    monkeypatch.setitem(tracking._KINDS, "tensorboard", Broken)
    monkeypatch.setattr(Broken, "tell", lambda self, arm, step, numbers: heard.append((arm, step)))
    with Tracking(("tensorboard",), tmp_path, {}) as told_of:
        for _ in range(2):
            told_of.watch(unwatched)("stage").stepped(1, {"step": 1, "loss": 0.5})
    assert heard == [("stage", 1), ("stage-2", 1)]


def test_numbers_are_taken_out_of_rows_and_options_put_flat() -> None:
    row = {
        "loss": 1.0,
        "validation": {"accuracy": 0.5, "words": "x", "list": [1]},
        "odd": math.inf,
        "yes": True,
    }
    assert tracking._numbers(row) == {"loss": 1.0, "validation/accuracy": 0.5, "odd": math.inf}
    options = {"engine": {"recipe": {"lr": 0.1}, "steps": 0}, "widths": [1, 2], "out": None}
    assert tracking._flat(options) == {
        "engine.recipe.lr": 0.1,
        "engine.steps": 0,
        "widths": "[1, 2]",
        "out": "None",
    }

"""`stillroom.export` from a finished run to a folder that is whole, or one line and nothing."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import stillroom
from exporting.conftest import finished
from stillroom.cli import main
from stillroom.errors import UserError
from stillroom.exporting import agreement, writing
from stillroom.exporting.writing import export
from stillroom.run import Run


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# -- what is written ----------------------------------------------------------------------------------------------


def test_onnx_runs_without_stillroom_and_says_what_the_student_says(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    folder = stillroom.export(run.path, "onnx", latency=False)
    assert folder == run.path / "exports" / "onnx"
    assert names(folder) == ["README.md", "export.json", "model.onnx"]
    about = json.loads((folder / "export.json").read_text())
    assert about["opset"] == 20 and about["agreement"]["relative_difference"] < 1e-5
    assert about["agreement"]["inputs"] == "test samples of data 'digits'"
    assert about["about"]["classes"] == [str(digit) for digit in range(10)]
    assert {path: (folder / path).stat().st_size for path in about["files"]} == about["files"]
    x = torch.randn(5, 1, 8, 8)
    with torch.no_grad():
        wanted = run.student()(x)
    (tmp_path / "x.json").write_text(json.dumps(x.tolist()))
    code = (
        "import json, sys, numpy, onnxruntime\n"
        "x = numpy.array(json.load(open(sys.argv[1])), 'float32')\n"
        "session = onnxruntime.InferenceSession('model.onnx')\n"
        "print(json.dumps(session.run(['logits'], {'x': x})[0].tolist()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "x.json")],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    assert torch.allclose(torch.tensor(json.loads(done.stdout)), wanted, atol=1e-5)


def test_the_code_of_the_card_of_a_program_runs(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = export(run, "torch-export", latency=False)
    card = (folder / "README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(folder)
    held: dict[str, Any] = {}
    exec(code, held)
    x = torch.randn(3, 1, 8, 8)
    assert torch.allclose(held["network"](x), run.student()(x), atol=1e-6)
    assert "# network(x) on tensors" in code
    assert "- input `x`: float32 [batch, 1, 8, 8]" in card


def test_a_folder_for_a_hub_has_all_that_belongs_to_a_model(run: Run) -> None:
    folder = export(run, "hub-folder", latency=False)
    assert names(folder) == [
        "LICENCE.md",
        "README.md",
        "config.json",
        "evidence/claims.json",
        "evidence/run.json",
        "export.json",
        "model.safetensors",
        "report.html",
    ]
    assert json.loads((folder / "evidence/run.json").read_text()) == run.result
    assert json.loads((folder / "evidence/claims.json").read_text())["system"] == "nkd-uskd"
    from stillroom.models import load_student

    again = load_student(folder)
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(again(x), run.student()(x))
    front = (folder / "README.md").read_text().split("---")[1]
    assert "license: other" in front and "license_link: LICENCE.md" in front
    licence = (folder / "LICENCE.md").read_text()
    assert "the data: digits" in licence and "the teacher: resnet" not in licence


def test_times_of_all_three_networks_stand_in_card_and_json(run: Run) -> None:
    pytest.importorskip("onnxruntime")
    folder = export(run, "onnx", batches=(1, 8))
    found = json.loads((folder / "export.json").read_text())["latency"]
    keys = {(row["arm"], row["form"], row["batch"]) for row in found["times"]}
    forms = ("PyTorch", "ONNX Runtime", "torch.export")
    assert keys == {(arm, form, n) for arm in ("nkd", "plain", "teacher") for form in forms for n in (1, 8)}
    for row in found["times"]:
        assert 0 < row["low"] <= row["median"] <= row["high"] and row["repeats"] >= 21
    sizes = {(row["arm"], row["file"]): row["bytes"] for row in found["sizes"]}
    assert sizes["nkd", "model.onnx"] == (folder / "model.onnx").stat().st_size
    assert sizes["nkd", "model.safetensors"] == (run.path / "student" / "model.safetensors").stat().st_size
    assert sizes["teacher", "model.safetensors"] > sizes["nkd", "model.safetensors"]
    card = (folder / "README.md").read_text()
    assert "## Times and sizes" in card and "| teacher | ONNX Runtime | 8 |" in card


# -- other products -----------------------------------------------------------------------------------------------


def test_a_sampler_becomes_one_evaluation(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    run = finished(tmp_path / "run", "f-distill")
    folder = export(run, "onnx", latency=False)
    about = json.loads((folder / "export.json").read_text())
    assert about["agreement"]["relative_difference"] < 1e-5
    inputs = run.student().denoiser
    assert list(about["inputs"]) == (["x", "t", "condition"] if inputs.conditional else ["x", "t"])
    plan = about["about"]["plan"]
    assert len(plan["times"]) == len(plan["alpha"]) == run.student().plan.steps + 1


def test_a_network_with_exits_becomes_its_full_pass(tmp_path: Path) -> None:
    run = finished(tmp_path / "run", "jei-dnn")
    folder = export(run, "torch-export", latency=False)
    about = json.loads((folder / "export.json").read_text())
    x = torch.randn(3, 1, 8, 8)
    found = torch.export.load(folder / "model.pt2").module()(x)
    assert torch.allclose(found, run.student()(x), atol=1e-5)
    assert about["output"] == {"exit_logits": ["batch", *found.shape[1:]]}
    assert about["about"]["exits"] == run.student().exits
    assert "A graph has no branches" in (folder / "README.md").read_text()
    with pytest.raises(UserError, match="cannot become 'timm': pass --to onnx, torch-export or hub-folder$"):
        export(run, "timm")


def test_a_condensed_set_becomes_a_repository_of_data(tmp_path: Path) -> None:
    import datasets

    run = finished(tmp_path / "run", "datadam")
    folder = export(run, "hub-folder", out=tmp_path / "hub")
    assert json.loads((folder / "export.json").read_text())["kind"] == "dataset"
    rows = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert {name: len(split) for name, split in rows.items()} == {
        name: len(split)
        for name, split in datasets.load_dataset(
            str(run.path / "student"), cache_dir=str(tmp_path / "other")
        ).items()
    }
    with pytest.raises(UserError, match="of 'datadam' cannot become 'onnx': pass --to hub-folder$"):
        export(run, "onnx")


# -- whole or not at all ------------------------------------------------------------------------------------------


def test_what_does_not_agree_leaves_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(agreement, "TOLERANCE", 0.0)
    with pytest.raises(UserError, match="model.onnx of run .* differs from the network by"):
        export(run, "onnx", latency=False)
    assert not list((run.path / "exports").iterdir())


def test_a_failure_at_the_end_keeps_the_export_that_was_there(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = export(run, "hub-folder", latency=False)
    before = {name: (folder / name).read_bytes() for name in names(folder)}

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(writing, "write_json", full)
    with pytest.raises(OSError, match="no space"):
        export(run, "hub-folder", latency=False, force=True)
    assert {name: (folder / name).read_bytes() for name in names(folder)} == before
    assert os.listdir(folder.parent) == ["hub-folder"]


def test_only_an_export_is_replaced_and_only_if_told_to(run: Run, tmp_path: Path) -> None:
    folder = export(run, "hub-folder", tmp_path / "out", latency=False)
    (folder / "old").touch()
    with pytest.raises(UserError, match="is not empty: pass --force to replace an export"):
        export(run, "hub-folder", folder, latency=False)
    assert (folder / "old").exists()
    export(run, "hub-folder", folder, latency=False, force=True)
    assert not (folder / "old").exists()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="holds no export"):
        export(run, "hub-folder", tmp_path / "thesis", force=True)
    assert names(tmp_path / "thesis") == ["thesis.tex"]


# -- what came from Python ----------------------------------------------------------------------------------------


def mine() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3))


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Any]:
    """A student, a teacher and data from Python."""
    x = torch.randn(90, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    data = (x, x.flatten(1)[:, :3].argmax(-1))
    folder = tmp_path_factory.mktemp("own") / "run"
    _, run = stillroom.distill(mine().eval(), mine(), data, "nkd", out=folder, epochs=2)
    return run, data


def test_a_network_of_one_s_own_needs_the_network(own: tuple[Run, Any], tmp_path: Path) -> None:
    run, data = own
    with pytest.raises(UserError) as caught:
        export(run, "torch-export", tmp_path / "out")
    assert str(caught.value) == (
        f"run '{run.path}' has a network of your own, which no name builds again: export it from Python with "
        "stillroom.export(run, to=..., module=network)"
    )
    assert not (tmp_path / "out").exists()
    folder = export(run, "torch-export", tmp_path / "out", module=mine(), latency=False)
    about = json.loads((folder / "export.json").read_text())
    assert about["agreement"]["inputs"].startswith("random numbers: the run's data are not at hand")
    folder = export(run, "torch-export", tmp_path / "with", module=mine(), data=data)
    about = json.loads((folder / "export.json").read_text())
    assert about["agreement"]["inputs"].startswith("test samples of data")
    assert {row["arm"] for row in about["latency"]["times"]} == {"nkd", "plain"}


def test_data_that_changed_are_said(run: Run) -> None:
    result = run.result
    result["data"]["fingerprint"] = "of other data"
    (run.path / "result.json").write_text(json.dumps(result))
    with pytest.warns(UserWarning, match="changed since it was made"):
        folder = export(run, "torch-export", latency=False)
    about = json.loads((folder / "export.json").read_text())
    assert about["agreement"]["inputs"] == "test samples of data 'digits', which changed since the run"


def test_data_that_are_gone_are_stood_in_for(run: Run) -> None:
    config = json.loads((run.path / "config.json").read_text())
    config["task"]["data"] = str(run.path / "gone")
    (run.path / "config.json").write_text(json.dumps(config))
    with pytest.warns(
        UserWarning, match="cannot be read, random numbers stand in \\(data folder .* does not"
    ):
        folder = export(run, "torch-export")
    about = json.loads((folder / "export.json").read_text())
    assert about["agreement"]["inputs"] == "random numbers: the run's data are not at hand"
    assert {row["arm"] for row in about["latency"]["times"]} == {"nkd", "plain"}


def test_a_teacher_that_is_gone_is_not_timed(run: Run) -> None:
    config = json.loads((run.path / "config.json").read_text())
    config["task"]["teacher_weights"] = str(run.path / "gone")
    (run.path / "config.json").write_text(json.dumps(config))
    about = json.loads((export(run, "hub-folder", batches=(1,)) / "export.json").read_text())
    assert {row["arm"] for row in about["latency"]["times"]} == {"nkd"}
    (line,) = about["latency"]["left_out"]
    assert line.startswith("the other arms: model folder ")


# -- the command line ---------------------------------------------------------------------------------------------


def test_the_command_writes_and_says_what_it_measured(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run.path), "--to", "torch-export", "--batches", "1"]) == 0
    said = capsys.readouterr().out
    assert "differs from the network in PyTorch" in said and "test samples of data 'digits'" in said
    assert "teacher" in said and "model.pt2" in said
    assert said.rstrip().endswith(str(run.path / "exports" / "torch-export"))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("", "the folder of a run is missing: stillroom export RUN --to FORM"),
        ("a b --to onnx", "'b' is one name too many: stillroom export RUN --to FORM"),
        ("{run}", "--to is missing: stillroom export RUN --to FORM"),
        (
            "{run} --to onxx",
            "there is no form 'onxx': did you mean 'onnx'? pass --to onnx, torch-export, diffusers, transformers, "
            "timm or hub-folder",
        ),
        ("{run} --to onnx --batches 0", "--batches is 0: pass 1 or more"),
        (
            "{run} --to timm",
            "run '{run}' of 'nkd' cannot become 'timm': pass --to onnx, torch-export or hub-folder",
        ),
        (
            "{tmp}/none --to onnx",
            "'{tmp}/none' holds no run (no config.json): pass the --out folder of an earlier run",
        ),
        ("{stopped} --to onnx", "run '{stopped}' is not finished: go on with --resume {stopped}"),
        ("{run} --to onnx --out {tmp}/file", "--out '{tmp}/file' is a file: pass a folder"),
        (
            "{run} --to onnx --out {tmp}/file/x",
            "--out '{tmp}/file/x' cannot be written (Not a directory): pass another folder",
        ),
        (
            "{run} --to onnx --out {tmp}/full",
            "--out '{tmp}/full' is not empty: pass --force to replace an export, or another folder",
        ),
        (
            "{run} --to onnx --out {tmp}/full --force",
            "--out '{tmp}/full' holds no export (no export.json) to replace: pass another folder",
        ),
    ],
)
def test_a_mistake_is_one_line(
    words: str, line: str, classified: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    stopped = tmp_path / "stopped"
    shutil.copytree(classified.path, stopped)
    (stopped / "result.json").unlink()
    places = {"run": str(classified.path), "tmp": str(tmp_path), "stopped": str(stopped)}
    before = names(tmp_path)
    assert main(["export", *shlex.split(words.format(**places))]) == 2
    assert capsys.readouterr().err == f"stillroom: {line.format(**places)}\n"
    assert names(tmp_path) == before
    assert not (classified.path / "exports").exists()


def test_a_run_of_one_s_own_task_says_who_reads_it(run: Run) -> None:
    config = json.loads((run.path / "config.json").read_text())
    (run.path / "config.json").write_text(json.dumps(config | {"problem": "thesis.tasks:Mine"}))
    with pytest.raises(UserError, match="is of a task from 'thesis.tasks'"):
        export(run, "onnx")

"""ONNX and torch.export: what is written says what the network says, whatever the batch, or is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stillroom.errors import UserError
from stillroom.exporting import graphs
from stillroom.exporting.agreement import BATCHES, agreement, check
from stillroom.exporting.forms import Graph
from stillroom.models import build

SHAPE = (1, 8, 8)


def graph_of(network: nn.Module, shape: tuple[int, ...] = SHAPE, **more: Any) -> Graph:
    def draw(count: int) -> dict[str, Tensor]:
        return {"x": torch.randn(count, *shape, generator=torch.Generator().manual_seed(0))}

    return Graph(network.eval(), draw, "random numbers", "logits", **more)


@pytest.mark.parametrize("form", graphs.WRITERS)
@pytest.mark.parametrize("name", ["mlp:8", "resnet:4-8@1"])
def test_a_graph_says_what_the_network_says_at_every_batch_size(name: str, form: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    graph = graph_of(build(name, shape=SHAPE, classes=5, seed=0))
    file, write, run = graphs.WRITERS[form]
    facts = write(tmp_path, graph)
    assert facts["inputs"] == {"x": {"shape": ["batch", 1, 8, 8], "type": "float32"}}
    assert facts["output"] == {"logits": ["batch", 5]}
    found = agreement(graph, run(tmp_path / file, graph, 1))
    assert found["batches"] == [1, 2, 7, 64]
    assert found["relative_difference"] < 1e-5
    assert [path.name for path in tmp_path.iterdir()] == [file]


def test_the_file_of_onnx_is_whole_and_says_what_it_is(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    about = {"classes": ["cat", "dog"], "normalisation": {"mean": [0.5], "std": [0.25]}}
    graph = graph_of(build("mlp:8", shape=SHAPE, classes=2, seed=0), about=about)
    assert graphs.write_onnx(tmp_path, graph)["opset"] == graphs.OPSET
    model = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", graphs.OPSET)]
    dims = [d.dim_param or d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    assert dims == ["batch", 1, 8, 8]
    kept = {entry.key: json.loads(entry.value) for entry in model.metadata_props if entry.key in about}
    assert kept == about


def test_a_program_keeps_what_it_is(tmp_path: Path) -> None:
    graph = graph_of(build("mlp:8", shape=SHAPE, classes=2, seed=0), about={"classes": ["cat", "dog"]})
    graphs.write_program(tmp_path, graph)
    files = {"about.json": ""}
    torch.export.load(tmp_path / "model.pt2", extra_files=files)
    assert json.loads(files["about.json"]) == {"classes": ["cat", "dog"]}


# -- what goes wrong ----------------------------------------------------------------------------------------------


class Counts(nn.Module):
    """Keeps the number of samples that it was exported with."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).reshape(len(x), -1).sum(-1, keepdim=True)


class Asks(nn.Module):
    """Goes by the data."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) if bool(x.sum() > 0) else -x.flatten(1)


class Branches(nn.Module):
    """Computes small batches and large ones by different code, as some libraries' networks do."""

    def forward(self, x: Tensor) -> Tensor:
        return (x.contiguous() if x.shape[0] >= 10 else x).flatten(1)[:, :3]


@pytest.mark.parametrize("write", [graphs.write_onnx, graphs.write_program])
def test_a_network_that_fixes_the_batch_size_is_refused(write: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="^Counts fixes the size of a batch, so it cannot become .*: let its"):
        write(tmp_path, graph_of(Counts()))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("write", [graphs.write_onnx, graphs.write_program])
def test_a_network_that_goes_by_its_data_is_refused(write: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="^Asks cannot become .*: pass --to .*hub-folder$") as caught:
        write(tmp_path, graph_of(Asks()))
    assert len(str(caught.value).splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_network_of_two_branches_is_written_for_the_small_one(tmp_path: Path) -> None:
    graph = graph_of(Branches())
    facts = graphs.write_program(tmp_path, graph)
    assert facts["largest"] == {"batch": 9}
    call = graphs.run_program(tmp_path / "model.pt2", graph, 1)
    found = agreement(graph, call, facts["largest"]["batch"])
    assert found["batches"] == [1, 2, 7, 9] and found["relative_difference"] == 0
    assert "largest" not in graphs.write_onnx(tmp_path, graph)
    assert agreement(graph, graphs.run_onnx(tmp_path / "model.onnx", graph, 1))["batches"] == list(BATCHES)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    line = 'onnx is not installed: pip install "stillroom[export]"'
    with pytest.raises(UserError) as caught:
        graphs.write_onnx(tmp_path, graph_of(nn.Flatten()))
    assert str(caught.value) == line


# -- agreement ----------------------------------------------------------------------------------------------------


def test_agreement_is_the_largest_difference_over_the_largest_output() -> None:
    graph = graph_of(nn.Flatten(), (3,))
    drawn = graph.draw(sum(BATCHES))["x"]
    found = agreement(graph, lambda rows: rows["x"] + 0.5)
    assert found["largest_difference"] == pytest.approx(0.5)
    assert found["largest_output"] == pytest.approx(float(drawn.abs().max()))
    assert found["relative_difference"] == pytest.approx(0.5 / float(drawn.abs().max()))


def test_each_batch_has_samples_of_its_own_until_they_run_out() -> None:
    seen: list[list[float]] = []

    def call(rows: Any) -> Tensor:
        seen.append(rows["x"][:, 0].tolist())
        return rows["x"]

    few = torch.arange(20.0).view(20, 1)
    graph = Graph(nn.Flatten().eval(), lambda count: {"x": few[:count]}, "", "y")
    assert agreement(graph, call)["batches"] == [1, 2, 7, 20]
    assert seen[:3] == [[0.0], [1.0, 2.0], [3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]]


@pytest.mark.parametrize(
    ("wrong", "share"),
    [
        (lambda x: x * (1 + 0.9e-4), True),
        (lambda x: x * (1 + 1.1e-4), False),
        (lambda x: x * math.nan, False),
        (lambda x: x[:, :2], False),
    ],
    ids=["below", "above", "not a number", "another shape"],
)
def test_what_is_further_than_the_tolerance_is_refused(wrong: Any, share: bool) -> None:
    graph = graph_of(nn.Flatten(), (3,))
    found = agreement(graph, lambda rows: wrong(rows["x"]))
    if share:
        check(found, "it")
        return
    with pytest.raises(UserError, match="^it differs from the network by .*: nothing is written"):
        check(found, "it")


def test_what_does_not_run_is_refused() -> None:
    def call(rows: Any) -> Tensor:
        raise RuntimeError("no kernel\nfor this")

    with pytest.raises(UserError, match="^what was written does not run on a batch of 1 \\(no kernel\\): "):
        agreement(graph_of(nn.Flatten()), call)


def test_the_file_is_compared_with_the_network_and_not_with_itself(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    graph = graph_of(build("mlp:8", shape=SHAPE, classes=5, seed=0))
    graphs.write_onnx(tmp_path, graph)
    other = replace(graph, network=build("mlp:8", shape=SHAPE, classes=5, seed=1).eval())
    found = agreement(other, graphs.run_onnx(tmp_path / "model.onnx", graph, 1))
    assert found["relative_difference"] > 0.1


class Length(nn.Module):
    """What the processes of diffusion models compute, and torch's exporter to ONNX does not know."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.hypot(x, 2 * x.flip(-1))


def test_hypot_has_a_form_in_onnx(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    graph = graph_of(Length())
    graphs.write_onnx(tmp_path, graph)
    found = agreement(graph, graphs.run_onnx(tmp_path / "model.onnx", graph, 1))
    assert found["relative_difference"] < 1e-6


class Odd(nn.Module):
    """Has no form in ONNX."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x)


def test_what_has_no_form_in_onnx_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="^Odd cannot become ONNX \\(No ONNX function found for .*bessel_j0"
    ) as caught:
        graphs.write_onnx(tmp_path, graph_of(Odd()))
    assert len(str(caught.value).splitlines()) == 1 and "\x1b" not in str(caught.value)

"""Folders that timm, transformers and diffusers load: by the library alone they say what the product says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from exporting.conftest import finished
from stillroom.errors import UserError
from stillroom.exporting.forms import Graph
from stillroom.exporting.libraries import library_of, write_timm, write_transformers
from stillroom.exporting.writing import export
from stillroom.models import build

SHAPE = (3, 32, 32)
MEAN, STD = [0.2, 0.4, 0.6], [0.5, 0.25, 0.5]
LABELS = ["cat", "dog", "fox"]


class Around(nn.Module):
    """A library's network behind fixed numbers, giving logits alone: as Stillroom wraps them."""

    def __init__(self, network: nn.Module, rescale: bool = False, extra: bool = False) -> None:
        super().__init__()
        self.network = network
        if rescale:
            self.register_buffer("scale", torch.tensor([2.0, 0.5, 1.0]).view(3, 1, 1))
            self.register_buffer("shift", torch.tensor([0.1, -0.3, 0.2]).view(3, 1, 1))
        self.rescale = rescale
        self.head = nn.Linear(3, 3) if extra else None

    def forward(self, x: Tensor) -> Tensor:
        said = self.network(x * self.scale + self.shift if self.rescale else x)
        said = getattr(said, "logits", said)
        return said if self.head is None else self.head(said)


def pixels(count: int) -> Tensor:
    """Pixels in [0, 1] of eight bits."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, *SHAPE), generator=generator) / 255


def normalised(count: int) -> dict[str, Tensor]:
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (MEAN, STD))
    return {"x": (pixels(count) - mean) / std}


def graph_of(network: nn.Module) -> Graph:
    about = {"normalisation": {"mean": MEAN, "std": STD}}
    return Graph(network.eval(), normalised, "random numbers", "logits", about=about)


def vit() -> Any:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.ViTConfig(image_size=32, patch_size=8, num_labels=3, **sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return transformers.ViTForImageClassification(config).eval()


# -- finding ------------------------------------------------------------------------------------------------------


def test_a_library_s_network_is_found_inside_what_stands_around_it() -> None:
    pytest.importorskip("timm")
    network = build("timm:test_vit", shape=SHAPE, classes=3, seed=0)
    for product, path in (
        (network, ""),
        (Around(network), "network"),
        (Around(Around(network)), "network.network"),
    ):
        held = library_of(product)
        assert held is not None and held.library == "timm"
        assert held.model is network and held.path == path and held.scale is None
    held = library_of(Around(network, rescale=True))
    assert held is not None and held.scale is not None and held.scale.tolist() == [2.0, 0.5, 1.0]


def test_one_with_weights_of_its_own_around_it_is_no_library_s() -> None:
    pytest.importorskip("timm")
    assert library_of(Around(build("timm:test_vit", shape=SHAPE, classes=3, seed=0), extra=True)) is None
    assert library_of(build("mlp:4", shape=(1, 8, 8), classes=3, seed=0)) is None


def test_a_transformers_network_without_a_head_is_no_classifier() -> None:
    assert library_of(Around(vit().vit)) is None
    held = library_of(Around(vit()))
    assert held is not None and held.library == "transformers"


# -- timm ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rescale", [False, True])
def test_timm_loads_its_folder_and_its_own_transform_makes_the_inputs(rescale: bool, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    from PIL import Image

    product = Around(build("timm:test_vit", shape=SHAPE, classes=3, seed=5), rescale).eval()
    held = library_of(product)
    assert held is not None
    found = write_timm(tmp_path, held, graph_of(product), LABELS)
    assert found["relative_difference"] < 1e-6 and found["batches"] == [1, 2, 7, 64]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert json.loads((tmp_path / "config.json").read_text())["label_names"] == LABELS
    network = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    config = timm.data.resolve_model_data_config(network)
    transform = timm.data.create_transform(**config, is_training=False)
    picture = Image.fromarray((pixels(1)[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy())
    with torch.no_grad():
        theirs = network(transform(picture)[None])
        assert torch.allclose(theirs, product(normalised(1)["x"]), atol=1e-4)


def test_a_timm_student_is_exported_from_its_run(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    run = finished(tmp_path / "run", "nkd", student="timm:test_vit", teacher="mlp:16", image_size=16)
    for form in ("timm", "hub-folder"):
        folder = export(run, form, latency=False)
        network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        x = torch.randn(2, 1, 16, 16)
        with torch.no_grad():
            assert torch.allclose(network(x), run.student()(x), atol=1e-5)
        card = (folder / "README.md").read_text()
        assert "library_name: timm" in card and "timm.create_model('local-dir:.', pretrained=True)" in card
    config = json.loads((folder / "stillroom.json").read_text())
    assert config["architecture"] == "timm:test_vit"


# -- transformers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rescale", [False, True])
def test_transformers_loads_an_image_classifier_with_its_processor(rescale: bool, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from PIL import Image

    product = Around(vit(), rescale).eval()
    held = library_of(product)
    assert held is not None
    found, name = write_transformers(tmp_path, held, graph_of(product), LABELS, tmp_path / "student")
    assert name == "AutoModelForImageClassification" and found["relative_difference"] < 1e-6
    picture = Image.fromarray((pixels(1)[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy())
    inputs = transformers.AutoImageProcessor.from_pretrained(tmp_path)(picture, return_tensors="pt")
    model = transformers.AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.allclose(model(**inputs).logits, product(normalised(1)["x"]), atol=1e-4)
    assert model.config.id2label == dict(enumerate(LABELS))
    assert held.model.config.id2label != dict(enumerate(LABELS))


def test_transformers_loads_a_text_classifier_with_its_tokenizer(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from exporting.test_texts import reader, tokens

    student = tmp_path / "student"
    student.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "model.safetensors", "README.md"):
        (student / name).write_text("{}")
    product = reader("encoder")
    held = library_of(product)
    assert held is not None
    graph = Graph(product, tokens, "random tokens", "logits", axes={"x": {1: "length"}})
    found, name = write_transformers(tmp_path / "out", held, graph, LABELS, student)
    assert name == "AutoModelForSequenceClassification" and found["relative_difference"] < 1e-6
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert model.config.num_labels == 3


def test_transformers_loads_a_language_model(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from exporting.test_texts import reader, tokens

    product = reader("causal")
    held = library_of(product)
    assert held is not None
    graph = Graph(product, tokens, "random tokens", "logits", axes={"x": {1: "length"}})
    found, name = write_transformers(tmp_path, held, graph, [], tmp_path / "none")
    assert name == "AutoModelForCausalLM" and found["relative_difference"] < 1e-6


# -- diffusers ----------------------------------------------------------------------------------------------------


def test_a_pipeline_is_copied_and_samples_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    diffusers = pytest.importorskip("diffusers")
    run = finished(tmp_path / "run", "guided-distillation", teacher="unet:8-16", guidance=2.0)
    folder = export(run, "diffusers", latency=False)
    about = json.loads((folder / "export.json").read_text())
    assert about["agreement"]["relative_difference"] < 1e-5
    assert (folder / "model_index.json").is_file()
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(folder)
    held: dict[str, Any] = {}
    exec(code, held)
    assert isinstance(held["pipeline"], diffusers.DiffusionPipeline)

    index = run.path / "student" / "pipeline" / "network" / "diffusion_pytorch_model.safetensors"
    from safetensors.torch import load_file, save_file

    save_file({key: value + 0.05 for key, value in load_file(index).items()}, index)
    with pytest.raises(UserError, match="the diffusers folder of run .* differs from the network"):
        export(run, "diffusers", tmp_path / "other", latency=False)
    assert not (tmp_path / "other").exists()


def test_a_text_student_is_exported_from_its_run(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from stillroom import catalogue
    from stillroom.predictors.text_classification import TextClassification
    from stillroom.workflow import Job, execute

    kind = catalogue.find("nkd").load()
    task = TextClassification().quick()
    run, _ = execute(Job(kind(), task, kind.default_engine().quick(), 0), tmp_path / "run")
    student, (x, _) = run.student(), task.labelled.test.fetch(torch.arange(5), None)
    for form in ("transformers", "hub-folder"):
        folder = export(run, form, latency=False)
        model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        assert len(tokenizer) == len(task.labelled.tokenizer)
        with torch.no_grad():
            found = model(input_ids=x.clamp_min(0), attention_mask=(x >= 0).long()).logits
            assert torch.allclose(found, student(x), atol=1e-5)
        assert list(model.config.id2label.values()) == task.labelled.classes
    from stillroom.models.text_files import load_text

    assert torch.equal(load_text(folder)(x), student(x))
    about = json.loads((export(run, "torch-export", latency=False) / "export.json").read_text())
    assert about["inputs"] == {"x": {"shape": ["batch", "length"], "type": "int64"}}
    assert about["agreement"]["relative_difference"] < 1e-5

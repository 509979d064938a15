"""Folders of every library: saved by the library, read by ours, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import model_folders as zoo
from stillroom import models
from stillroom.errors import UserError
from stillroom.models.local import open_folder, recognise
from stillroom.models.names import folder_in
from stillroom.models.wrapping import describe, library_module

SHAPE = (3, 16, 16)


def images(n: int = 3) -> Tensor:
    return torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(1))


def ours(folder: Path) -> nn.Module:
    network = zoo.lively(models.build("resnet:4-8@2", shape=SHAPE, classes=4, seed=0))
    about = {"architecture": "resnet:4-8@2", "shape": list(SHAPE), "classes": 4}
    models.save_student(
        folder, network, about | {"normalisation": {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.5]}}
    )
    return network


SAVERS: dict[str, tuple[str, Callable[[Path], nn.Module]]] = {
    "stillroom": ("stillroom", ours),
    "timm column": ("timm", lambda folder: zoo.timm_folder(folder, "test_vit", img_size=16)),
    "timm stages": ("timm", lambda folder: zoo.timm_folder(folder, "test_resnet")),
    "timm as torch saves": ("timm", lambda folder: zoo.timm_folder(folder, "test_resnet", safe=False)),
    "transformers column": ("transformers", lambda folder: zoo.hf_folder(folder, zoo.vit())),
    "transformers stages": ("transformers", lambda folder: zoo.hf_folder(folder, zoo.hf_resnet())),
    "torchvision": ("stillroom", zoo.torchvision_folder),
    "torchvision as torch saves": (
        "stillroom",
        lambda folder: zoo.torchvision_folder(folder, file="model.pth"),
    ),
}
NEEDS = ("timm", "transformers", "torchvision")


@pytest.fixture(params=SAVERS)
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path, nn.Module]:
    """Kind, folder and network."""
    for library in NEEDS:
        if request.param.startswith(library):
            pytest.importorskip(library)
    kind, save = SAVERS[request.param]
    folder = tmp_path / "my-model"
    return kind, folder, save(folder)


def logits(network: nn.Module, x: Tensor) -> Tensor:
    said = network.eval()(x)
    return said if isinstance(said, Tensor) else said.logits


def read(folder: Path | str, classes: int = 4, seed: int = 0) -> nn.Module:
    return models.build(str(folder), shape=SHAPE, classes=classes, seed=seed)


def message(folder: Path | str, classes: int = 4) -> str:
    with pytest.raises(UserError) as caught:
        read(folder, classes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- what every kind owes -------------------------------------------------------------------------------------------


def test_a_folder_is_recognised_and_gives_the_network_that_was_saved(saved) -> None:
    kind, folder, network = saved
    assert recognise(folder) == kind
    found = open_folder(folder, shape=SHAPE, classes=None)
    assert all(part.training for part in found.network.modules())
    assert torch.equal(logits(found.network, images()), logits(network, images()))
    assert found.inputs.normalisation is not None
    torch.testing.assert_close(
        torch.tensor(found.inputs.normalisation), torch.tensor([(0.4, 0.5, 0.6), (0.2, 0.25, 0.5)])
    )
    assert found.inputs.size == (16, 16)


def test_another_number_of_classes_makes_a_new_head_and_nothing_else_new(saved) -> None:
    _, folder, network = saved
    made, again, other = (library_module(read(folder, 7, seed)) for seed in (1, 1, 2))
    assert logits(made, images()).shape == (3, 7)
    before, differing = network.state_dict(), []
    for name, value in made.state_dict().items():
        if value.shape != before[name].shape:
            differing.append(name)
            assert value.shape[0] == 7 and before[name].shape[0] == 4
        else:
            assert torch.equal(value, before[name]), name
        assert torch.equal(value, again.state_dict()[name])
    assert 1 <= len(differing) <= 2
    assert not torch.equal(made.state_dict()[differing[0]], other.state_dict()[differing[0]])


def test_config_takes_the_architecture_alone(saved) -> None:
    _, folder, network = saved
    for file in [*folder.glob("*.safetensors"), *folder.glob("*.bin"), *folder.glob("*.pth")]:
        file.unlink()
    made, again, other = (read(f"config:{folder}", 5, seed) for seed in (1, 1, 2))
    assert logits(made, images()).shape == (3, 5)
    inner = library_module(made)
    assert type(inner) is type(network)
    assert list(inner.state_dict()) == list(network.state_dict())
    assert all(
        torch.equal(a, b)
        for a, b in zip(made.state_dict().values(), again.state_dict().values(), strict=True)
    )
    assert not all(torch.equal(a, b) for a, b in zip(made.parameters(), other.parameters(), strict=True))


def test_a_student_of_it_is_built_again_without_the_folder(saved, tmp_path: Path) -> None:
    _, folder, _ = saved
    student = zoo.lively(read(folder, 7), seed=3)
    about = {"architecture": describe(student), "shape": list(SHAPE), "classes": 7}
    models.save_student(tmp_path / "student", student, about)
    shutil.rmtree(folder)
    assert torch.equal(models.load_student(tmp_path / "student")(images()), student(images()))


def test_the_callers_random_state_is_untouched(saved) -> None:
    _, folder, _ = saved
    before = torch.get_rng_state()
    read(folder, 7)
    read(f"config:{folder}")
    assert torch.equal(before, torch.get_rng_state())


# -- what is refused --------------------------------------------------------------------------------------------------


class Payload:
    """What runs when a careless reader unpickles it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize("name", ["timm stages", "transformers column", "torchvision"])
def test_weights_that_would_run_code_are_refused_and_run_none(name: str, tmp_path: Path) -> None:
    pytest.importorskip(name.split()[0])
    folder, mark = tmp_path / "my-model", tmp_path / "ran"
    SAVERS[name][1](folder)
    (folder / "model.safetensors").unlink()
    torch.save({"head": Payload(mark)}, folder / "pytorch_model.bin")
    said = message(folder)
    assert "hold more than tensors and could run code" in said
    assert not mark.exists()
    torch.load(folder / "pytorch_model.bin", weights_only=False)
    assert mark.exists()  # the payload works


def test_truncated_weights(saved) -> None:
    _, folder, _ = saved
    path = next(iter([*folder.glob("*.safetensors"), *folder.glob("*.bin"), *folder.glob("*.pth")]))
    path.write_bytes(path.read_bytes()[:-100])
    said = message(folder, 7)
    assert "truncated" in said or "cannot be read" in said or "incomplete" in said
    assert str(folder) in said


def test_a_folder_without_weights(saved) -> None:
    _, folder, _ = saved
    for file in [*folder.glob("*.safetensors"), *folder.glob("*.bin"), *folder.glob("*.pth")]:
        file.unlink()
    said = message(folder, 7)
    assert "has no weights" in said or "no file named model.safetensors" in said


def test_weights_of_another_network(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    zoo.timm_folder(tmp_path, "test_resnet")
    tensors = load_file(tmp_path / "model.safetensors")
    tensors.pop("fc.bias")
    save_file(tensors, tmp_path / "model.safetensors")
    assert "do not fit the ResNet that the folder's config describes ('fc.bias' is missing)" in message(
        tmp_path
    )


def test_a_body_without_a_trained_head_is_a_student_and_no_teacher(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    network = zoo.vit()
    transformers.ViTModel(network.config, add_pooling_layer=False).save_pretrained(tmp_path)
    with pytest.raises(
        UserError, match=r"has no weights for 'classifier.bias' of its ViTForImageClassification"
    ):
        open_folder(tmp_path, shape=SHAPE, classes=None)
    assert read(tmp_path, 7)(images()).shape == (3, 7)


@pytest.mark.parametrize(
    ("config", "part"),
    [
        ({}, "is of no known kind (it says nothing)"),
        ({"layers": 3, "width": 5}, "is of no known kind (it says layers, width)"),
        ([1], "is no JSON object"),
        ({"architecture": "no_such_net", "num_classes": 4}, "timm has no model 'no_such_net'"),
        ({"architecture": "test_resnet"}, "says num_classes None: write the number of classes into it"),
        (
            {"architecture": "hf-hub:someone/evil", "num_classes": 4},
            "timm has no model 'hf-hub:someone/evil'",
        ),
        (
            {"architecture": "MyNet", "shape": [3, 16, 16], "classes": 4},
            "names no known architecture ('MyNet')",
        ),
        ({"architecture": "resnet:4-8@2", "classes": 4}, "has shape None"),
        ({"architecture": "resnet:4-8@2", "shape": [3, 16, 16]}, "says classes None"),
        ({"model_type": "bert"}, "is a 'bert', which classifies no images: pass an image classifier"),
        ({"model_type": "no-such-type"}, "cannot be read"),
        ({"_class_name": "UNet2DModel"}, "holds a UNet2DModel of diffusers, which is no classifier"),
    ],
)
def test_configs_of_no_use(config: object, part: str, tmp_path: Path) -> None:
    for library in NEEDS:
        pytest.importorskip(library)
    ours(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert part in message(tmp_path)


def test_folders_of_no_use(tmp_path: Path) -> None:
    assert "model folder" in message(tmp_path / "no") and "does not exist" in message(tmp_path / "no")
    assert "has no config.json" in message(tmp_path)
    (tmp_path / "model_index.json").write_text('{"_class_name": "DDPMPipeline"}')
    assert "holds a DDPMPipeline of diffusers, which is no classifier" in message(tmp_path)


def test_options_in_a_config_cannot_have_files_read(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    mark = tmp_path / "ran"
    torch.save({"x": Payload(mark)}, tmp_path / "evil.pth")
    network = zoo.timm_folder(tmp_path / "my-model", "test_resnet")
    config = json.loads((tmp_path / "my-model" / "config.json").read_text())
    config["model_args"] |= {"checkpoint_path": str(tmp_path / "evil.pth"), "pretrained": True}
    (tmp_path / "my-model" / "config.json").write_text(json.dumps(config))
    assert torch.equal(read(tmp_path / "my-model").eval()(images()), network(images()))
    assert not mark.exists()


def test_a_config_with_code_of_its_own_is_not_run(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    zoo.hf_folder(tmp_path, zoo.vit())
    mark = tmp_path / "ran"
    (tmp_path / "mine.py").write_text(f"open({str(mark)!r}, 'w')\n")
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModel": "mine.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "cannot be read" in message(tmp_path)
    assert not mark.exists()


# -- names ------------------------------------------------------------------------------------------------------------


def test_a_name_on_the_hub_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError) as caught:
        models.build("transformers:nobody/no-such-model", shape=SHAPE, classes=4, seed=0)
    said = str(caught.value)
    assert said.startswith(
        "transformers has no model 'nobody/no-such-model' on this machine, and none came from the hub"
    )
    assert "\n" not in said and said.endswith(
        "pass a folder ./my-model, or fetch it where there is a network"
    )


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("./a", "a"),
        ("/a/b", "/a/b"),
        ("../a", "../a"),
        ("config:./a", "a"),
        ("config:a", "a"),
        ("transformers:./a", "a"),
        ("diffusers:a", "a"),
        ("timm:/a", "/a"),
        ("timm:resnet18", None),
        ("transformers:google/vit", None),
        ("mlp:8", None),
        ("none", None),
        ("shrink:depth=0.5", None),
        ("", None),
    ],
)
def test_which_names_are_folders(name: str, folder: str | None) -> None:
    assert folder_in(name) == (None if folder is None else Path(folder))


def test_home_is_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert folder_in("~/my-model") == tmp_path / "my-model"


def test_a_librarys_prefix_insists_on_it(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    network = zoo.timm_folder(tmp_path, "test_resnet")
    assert torch.equal(read(f"timm:{tmp_path}").eval()(images()), network(images()))
    assert "is a folder of timm, not of transformers: drop the prefix" in message(f"transformers:{tmp_path}")


def test_a_bare_folder_name_is_told_how_to_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-model").mkdir()
    assert message("my-model") == "architecture 'my-model' is a folder: write ./my-model"


def test_a_run_is_as_good_as_its_student(tmp_path: Path) -> None:
    network = ours(tmp_path / "run" / "student")
    assert torch.equal(read(tmp_path / "run").eval()(images()), network(images()))

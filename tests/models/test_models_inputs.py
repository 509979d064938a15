"""What a folder says of its inputs, and the layer that gives a network its own."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import model_folders as zoo
from stillroom import models
from stillroom.errors import UserError
from stillroom.models.inputs import Inputs, check_size, of_processor, of_student, of_timm, of_torchvision
from stillroom.models.places import middle
from stillroom.models.transformers_images import inputs_of
from stillroom.models.wrapping import (
    ImageLogits,
    Rescaled,
    adapted,
    describe,
    library_module,
    rescaled_for,
)
from stillroom.taps import Tap

OWN = (0.4, 0.5, 0.6), (0.2, 0.25, 0.5)
DATA = (0.1, 0.2, 0.3), (0.3, 0.6, 0.9)


def pixels() -> Tensor:
    return torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def scaled(p: Tensor, by: tuple[tuple[float, ...], tuple[float, ...]]) -> Tensor:
    mean, std = (torch.tensor(numbers).view(-1, 1, 1) for numbers in by)
    return (p - mean) / std


# -- the layer --------------------------------------------------------------------------------------------------------


def test_a_network_sees_its_own_normalisation_behind_the_datas() -> None:
    made = rescaled_for(nn.Identity(), OWN, DATA)
    assert isinstance(made, Rescaled)
    torch.testing.assert_close(made(scaled(pixels(), DATA)), scaled(pixels(), OWN), rtol=0, atol=1e-6)


def test_one_number_stands_for_all_channels() -> None:
    made = rescaled_for(nn.Identity(), ((0.5,), (0.25,)), DATA)
    torch.testing.assert_close(made(scaled(pixels(), DATA)), (pixels() - 0.5) / 0.25, rtol=0, atol=1e-6)


def test_the_same_normalisation_needs_no_layer() -> None:
    network = nn.Identity()
    assert rescaled_for(network, DATA, DATA) is network
    assert rescaled_for(network, DATA, (DATA[0], (0.3, 0.6, 0.9001))) is not network
    assert rescaled_for(network, DATA, ((0.1, 0.2, 0.30001), DATA[1])) is not network


def test_other_channels_and_no_deviation_are_refused() -> None:
    with pytest.raises(
        UserError, match=r"^the network takes 3 channels, the data have 1: pass a network of 1"
    ):
        rescaled_for(nn.Identity(), OWN, ((0.1,), (0.2,)))
    with pytest.raises(UserError, match=r"own std is \[1.0, 0.0, 1.0\]: pass positive numbers"):
        rescaled_for(nn.Identity(), (OWN[0], (1.0, 0.0, 1.0)), DATA)


def test_the_layer_is_not_trained_and_belongs_to_the_state() -> None:
    made = rescaled_for(nn.Conv2d(3, 2, 1), OWN, DATA)
    assert [name for name, _ in made.named_parameters()] == ["network.weight", "network.bias"]
    assert set(made.state_dict()) == {"scale", "shift", "network.weight", "network.bias"}


def test_a_rescaled_student_comes_back_from_its_folder(tmp_path: Path) -> None:
    network = zoo.lively(models.build("resnet:4-8", shape=(3, 8, 8), classes=3, seed=0))
    made = rescaled_for(network, OWN, DATA).eval()
    models.save_student(tmp_path, made, {"architecture": describe(made), "shape": [3, 8, 8], "classes": 3})
    again = models.load_student(tmp_path)
    assert isinstance(again, Rescaled) and type(library_module(again)) is type(network)
    assert torch.equal(again(pixels()), made(pixels()))


@pytest.mark.parametrize(
    ("description", "part"),
    [
        (
            {"library": "stillroom", "kind": "rescaled", "network": "mlp:4"},
            "is not whole (KeyError('scale'))",
        ),
        ({"library": "stillroom", "kind": "rescaled", "scale": [1], "shift": [0]}, "says no network"),
        ({"library": "stillroom", "kind": "cut", "kept": {"9": [0]}, "network": "mlp:4"}, "is not whole"),
        ({"library": "stillroom", "kind": "other", "network": "mlp:4"}, "kind 'other', is not known"),
        ({"library": "elsewhere"}, "of library 'elsewhere'"),
        ({"library": "timm", "name": 5}, "has the name 5"),
        ({"library": "transformers", "kind": "AutoTokenizer", "config": {}}, "no model 'AutoTokenizer'"),
        (
            {"library": "transformers", "kind": "ViTForImageClassification"},
            "no model 'ViTForImageClassification'",
        ),
    ],
)
def test_descriptions_of_no_use(description: dict[str, Any], part: str, tmp_path: Path) -> None:
    for library in ("timm", "transformers"):
        pytest.importorskip(library)
    models.save_student(
        tmp_path, nn.Linear(2, 2), {"architecture": description, "shape": [3, 8, 8], "classes": 3}
    )
    with pytest.raises(UserError) as caught:
        models.load_student(tmp_path)
    assert part in str(caught.value) and "\n" not in str(caught.value)


def test_middle_features_and_class_tokens_are_found_behind_wrappers() -> None:
    pytest.importorskip("transformers")
    ours = Rescaled(models.build("resnet:4-8-16", shape=(3, 8, 8), classes=3, seed=0), (1.0,) * 3, (0.0,) * 3)
    assert middle(ours) == "network.stage2"
    column = adapted(zoo.vit(layers=6))
    assert middle(column) == "network.vit.layers.2" and column.num_prefix_tokens == 1
    tap = Tap(column, middle(column))
    x = torch.randn(2, 3, 16, 16)
    column(x)
    assert tap.take_vector().shape == (2, 24)
    stages = adapted(zoo.hf_resnet())
    assert middle(stages) == "network.resnet.encoder.stages.0" and stages.num_prefix_tokens == 0


def test_networks_of_transformers_are_adapted_and_others_left() -> None:
    pytest.importorskip("transformers")
    network = zoo.vit()
    x = torch.randn(2, 3, 16, 16)
    made = adapted(network)
    assert isinstance(made, ImageLogits) and torch.equal(made(x), network(pixel_values=x).logits)
    plain, words = nn.Linear(2, 2), zoo.bert()
    assert adapted(plain) is plain and adapted(words) is words


# -- what is said -----------------------------------------------------------------------------------------------------


def test_what_timm_says() -> None:
    said = {"mean": (0.4, 0.5, 0.6), "std": [0.2, 0.25, 0.5], "input_size": [3, 224, 192]}
    assert of_timm(said, {}, "") == Inputs(*OWN, (224, 192))
    assert of_timm(said, {"img_size": 32}, "").size == (32, 32)
    assert of_timm(said, {"img_size": [32, 16]}, "").size == (32, 16)
    assert of_timm({}, {}, "").normalisation is None


@pytest.mark.parametrize(
    ("said", "mean", "std", "size"),
    [
        ({"image_mean": [0.5], "image_std": [0.25]}, 0.5, 0.25, None),
        ({"do_normalize": False}, 0.0, 1.0, None),
        ({"image_mean": [0.5], "image_std": [0.25], "rescale_factor": 2 / 255}, 0.25, 0.125, None),
        ({"image_mean": [127.5], "image_std": [127.5], "do_rescale": False}, 0.5, 0.5, None),
        ({"size": {"height": 8, "width": 6}}, 0.0, 1.0, (8, 6)),
        ({"size": 8}, 0.0, 1.0, (8, 8)),
        ({"size": {"shortest_edge": 9}}, 0.0, 1.0, None),
        (
            {"size": {"shortest_edge": 9}, "do_center_crop": True, "crop_size": {"height": 8, "width": 8}},
            0,
            1,
            (8, 8),
        ),
        ({"size": 8, "do_resize": False}, 0.0, 1.0, None),
    ],
)
def test_what_an_image_processor_says(said: dict, mean: float, std: float, size: object) -> None:
    found = of_processor(said, "")
    assert found.mean == pytest.approx((mean,)) and found.std == pytest.approx((std,)) and found.size == size


def test_an_image_processor_does_what_we_read_of_it(tmp_path: Path) -> None:
    """The library's own processor, given an image of 8-bit pixels, against ours: equal to 1e-6."""
    transformers = pytest.importorskip("transformers")
    np = pytest.importorskip("numpy")
    options = {"image_mean": OWN[0], "image_std": OWN[1], "size": {"height": 8, "width": 8}}
    processor = transformers.ViTImageProcessor(**options, rescale_factor=1 / 200)
    processor.save_pretrained(tmp_path)
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    theirs = torch.as_tensor(processor(image, return_tensors="pt")["pixel_values"])
    found = inputs_of(tmp_path)
    assert found.size == (8, 8) and found.normalisation is not None
    p = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
    made = rescaled_for(nn.Identity(), found.normalisation, DATA)
    torch.testing.assert_close(made(scaled(p, DATA)), theirs, rtol=0, atol=3e-6)


def test_a_folder_without_a_processor_says_nothing(tmp_path: Path) -> None:
    assert inputs_of(tmp_path) == Inputs()


def test_what_a_student_and_torchvision_say() -> None:
    said = {"normalisation": {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.5]}, "shape": [3, 8, 6]}
    assert of_student(said, "") == Inputs(*OWN, (8, 6))
    assert of_student({"normalisation": "?", "shape": 3}, "") == Inputs()
    preset = SimpleNamespace(mean=[0.4, 0.5, 0.6], std=[0.2, 0.25, 0.5], crop_size=[224])
    assert of_torchvision(preset, "") == Inputs(*OWN, (224, 224))


def test_another_size_is_refused_with_the_way_out() -> None:
    with pytest.raises(UserError) as caught:
        check_size(
            Inputs(None, None, (224, 224), "'./x/config.json'"), (3, 32, 32), "teacher './x'", "cifar10"
        )
    assert str(caught.value) == (
        "teacher './x' was trained on 224x224 images ('./x/config.json'), data 'cifar10' have 32x32: pass "
        "--task.image-size 224, or correct what is said there"
    )
    check_size(Inputs(None, None, (32, 32)), (3, 32, 32), "", "")
    check_size(Inputs(), (3, 32, 32), "", "")

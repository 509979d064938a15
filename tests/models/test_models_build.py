"""From a name to a network: initial weights, names and messages."""

from __future__ import annotations

import builtins
import contextlib
import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stillroom import models
from stillroom.errors import UserError
from stillroom.models.resnet import ResNet

OURS = ["mlp:256", "mlp:32-16", "cnn:8", "cnn:16-32", "resnet:8-16", "resnet:4-8-16@2"]


def build(name: str, shape: tuple[int, ...] = (1, 8, 8), classes: int = 10, **extra) -> nn.Module:
    return models.build(name, shape=shape, classes=classes, **{"seed": 0} | extra)


def weights(module: nn.Module) -> Tensor:
    return torch.cat([value.flatten() for value in module.parameters()])


@pytest.mark.parametrize("name", OURS)
def test_reference_networks_give_logits(name: str) -> None:
    network = build(name)
    assert network.training
    assert network(torch.zeros(3, 1, 8, 8)).shape == (3, 10)


def test_widths_and_blocks_are_read() -> None:
    network = build("resnet:4-8@3")
    assert isinstance(network, ResNet)
    assert network.stages == ["stage1", "stage2"]
    assert [len(getattr(network, stage)) for stage in network.stages] == [3, 3]
    assert [part.out_features for part in build("mlp:5-6") if isinstance(part, nn.Linear)] == [5, 6, 10]


@pytest.mark.parametrize("name", ["mlp:16", "cnn:8-8", "resnet:4-8"])
def test_initial_weights_depend_on_the_seed_alone(name: str) -> None:
    torch.manual_seed(1)
    first = weights(build(name, seed=7))
    torch.manual_seed(2)
    random.seed(2)
    np.random.seed(2)
    assert torch.equal(first, weights(build(name, seed=7)))
    assert not torch.equal(first, weights(build(name, seed=8)))


def test_initial_weights_do_not_depend_on_the_default_device() -> None:
    with torch.device("meta"):
        network = build("mlp:16")
    assert torch.equal(weights(network), weights(build("mlp:16")))


@pytest.mark.parametrize("name", ["mlp:16", "mlp:x"])
def test_the_random_state_of_the_caller_is_untouched(name: str) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with contextlib.suppress(UserError):
        build(name)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("mpl:256", "did you mean 'mlp:256'?"),
        ("MLP:256", "did you mean 'mlp:256'?"),
        ("torchvison:resnet18", "did you mean 'torchvision:resnet18'?"),
        ("zzz:1", "write one like mlp:256-128, cnn:16-32"),
        ("resnet18", "'resnet18' is not of the form FAMILY:DETAIL: write one like mlp:256"),
        ("mlp", "'mlp' is not of the form"),
        ("timm:", "'timm:' is not of the form"),
        ("", "'' is not of the form"),
        ("mlp:2x", "malformed widths '2x': write them like 'mlp:256-128'"),
        ("mlp:16-", "malformed widths '16-'"),
        ("mlp:16--8", "malformed widths '16--8'"),
        ("mlp:-16", "malformed widths '-16'"),
        ("mlp:0", "malformed widths '0'"),
        ("mlp:٣", "malformed widths"),
        ("mlp:16@2", "malformed widths '16@2'"),
        ("cnn:8@1", "malformed widths '8@1': write them like 'cnn:16-32'"),
        ("resnet:8@0", "malformed widths '8@0': write them like 'resnet:16-32-64@2'"),
        ("resnet:8@", "malformed widths '8@'"),
    ],
)
def test_wrong_names_tell_the_way_out(name: str, part: str) -> None:
    with pytest.raises(UserError) as caught:
        build(name)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(64,), (1, 8), (1, 0, 8), (1, 2, 8, 8)])
def test_wrong_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="is not three positive numbers"):
        build("mlp:8", shape)


def test_no_classes_are_refused() -> None:
    with pytest.raises(UserError, match="0 classes"):
        build("mlp:8", classes=0)


def test_reference_networks_have_no_pretrained_weights() -> None:
    with pytest.raises(UserError, match="'mlp:8' has no pretrained weights"):
        build("mlp:8", pretrained=True)


@pytest.mark.parametrize("name", ["timm:resnet18", "torchvision:resnet18"])
def test_a_missing_library_is_told_with_its_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(wanted: str) -> None:
        raise ImportError(wanted)

    monkeypatch.setattr("importlib.import_module", refuse)
    with pytest.raises(UserError) as caught:
        build(name)
    assert str(caught.value) == f'{name.split(":")[0]} is not installed: pip install "stillroom[vision]"'


def test_libraries_are_not_imported_for_reference_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def guarded(name: str, *args, **kwargs):
        assert name.split(".")[0] not in {"timm", "torchvision"}
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", guarded)
    network = build("cnn:8")
    models.middle(network)
    models.check(network, shape=(1, 8, 8), classes=10, role="student")


@pytest.mark.parametrize("width", ["9" * 14, "9" * 30])
def test_a_network_that_no_machine_holds_is_one_line(width: str) -> None:
    with pytest.raises(UserError, match="is larger than this machine's memory: write smaller sizes"):
        models.build(f"mlp:{width}", shape=(1, 8, 8), classes=10, seed=0)

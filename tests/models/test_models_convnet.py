"""The network of data-set distillation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stillroom import models
from stillroom.errors import UserError
from stillroom.models.convnet import ConvNet


def build(name: str, shape: tuple[int, ...] = (3, 16, 16)) -> nn.Module:
    return models.build(name, shape=shape, classes=5, seed=0)


@pytest.mark.parametrize(
    ("name", "shape", "features"),
    [
        ("convnet:8x1", (1, 8, 8), 8 * 16),
        ("convnet:4x3", (3, 16, 16), 4 * 4),
        ("convnet:4x3", (1, 28, 28), 36),
    ],
)
def test_blocks_halve_the_sides(name: str, shape: tuple[int, ...], features: int) -> None:
    network = build(name, shape)
    assert isinstance(network, ConvNet)
    assert isinstance(network[-1], nn.Linear)
    assert network[-1].in_features == features
    assert network(torch.zeros(2, *shape)).shape == (2, 5)


def test_a_block_is_convolution_instance_norm_relu_and_pooling() -> None:
    network = build("convnet:4x3")
    assert isinstance(network, ConvNet)
    kinds = [nn.Conv2d, nn.GroupNorm, nn.ReLU, nn.AvgPool2d] * 3 + [nn.Flatten, nn.Linear]
    assert [type(layer) for layer in network] == kinds
    norm = network[1]
    assert isinstance(norm, nn.GroupNorm)
    assert (norm.num_groups, norm.num_channels, norm.affine) == (4, 4, True)
    x = 5 * torch.randn(2, 3, 16, 16)
    inside = network[:2](x)
    assert torch.allclose(inside.mean((2, 3)), torch.zeros(2, 4), atol=1e-5)
    assert torch.allclose(inside.var((2, 3), correction=0), torch.ones(2, 4), atol=1e-3)
    assert torch.allclose(network(x)[:1], network(x[:1]), atol=1e-6)  # nothing of the rest of the batch


def test_its_middle_is_the_last_but_one_activation() -> None:
    assert models.middle(build("convnet:4x3")) == "6"
    assert models.middle(build("convnet:4x1")) == "2"


def test_a_depth_that_leaves_single_pixels_is_refused() -> None:
    build("convnet:4x3", (1, 8, 8))
    with pytest.raises(
        UserError, match="halves the sides 4 times, images of 8 x 8 allow 3: pass a smaller depth"
    ):
        build("convnet:4x4", (1, 8, 8))


@pytest.mark.parametrize("name", ["convnet:32", "convnet:0x2", "convnet:8x0", "convnet:8-8", "convnet:8x2x2"])
def test_malformed_sizes_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="malformed sizes .* write them like 'convnet:32x3'"):
        build(name)

"""The last layer of a classifier is found by what it does, and its input is read."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stillroom.errors import UserError
from stillroom.models import build
from stillroom.predictors.parts.classifier import Features, last_layer

X = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["mlp:12", "cnn:4-8", "resnet:4-8", "timm:test_resnet"])
def test_the_last_layer_makes_the_logits_of_the_features(name: str) -> None:
    x = X if not name.startswith("timm") else torch.rand(2, 3, 32, 32)
    network = build(name, shape=x.shape[1:], classes=10, seed=0).eval()
    features = Features(network, x[:1])
    logits = network(x)
    seen = features.take()
    assert seen.shape == (len(x), features.size)
    assert features.classes == 10
    with pytest.raises(RuntimeError, match="since its features were taken"):
        features.take()
    features.remove()
    assert torch.equal(network.get_submodule(features.path)(seen), logits)
    assert not network.get_submodule(features.path)._forward_pre_hooks


def test_it_is_the_one_that_was_used_not_the_last_that_is_registered() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out, self.unused, self.inner = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(64, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.inner(x.flatten(1)))

    assert last_layer(Odd(), X[:1]) == "out"


def test_logits_of_another_layer_are_one_line() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Softplus())
    with pytest.raises(UserError, match=r"the logits of Sequential are no linear layer's: pass a student"):
        last_layer(network, X[:1])

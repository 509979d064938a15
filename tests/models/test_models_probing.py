"""Looking at a network leaves no trace in it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stillroom.models.probing import left_in_order


class Twice(nn.Module):
    """Goes through `b` before `a`, and through `a` twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Sequential(nn.Dropout(0.9), nn.Linear(3, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.a(self.a(self.b(x)))


def test_parts_come_in_the_order_in_which_they_are_left_as_often_as_they_are_called() -> None:
    network, x = Twice().train(), torch.rand(1, 3)
    network.b.eval()
    state = torch.get_rng_state()
    parts = {"first": network.a, "second": network.b, "all": network, "inner": network.b[1]}
    met = left_in_order(parts, network, x)
    assert [name for name, _ in met] == ["inner", "second", "first", "first", "all"]
    assert torch.equal(met[-1][1], network.a(network.a(network.b[1](x))))
    assert not met[-1][1].requires_grad
    assert network.training and network.a.training and not network.b.training
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(part._forward_hooks for part in network.modules())


def test_a_pass_that_fails_leaves_no_hook() -> None:
    network = Twice()
    with pytest.raises(RuntimeError):
        left_in_order({"a": network.a}, network, torch.rand(1, 4))
    assert not network.a._forward_hooks

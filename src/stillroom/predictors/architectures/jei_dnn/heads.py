"""What is trained at the exits: classifiers and gates, in sets, one for each weight of the cost."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Heads(nn.Module):
    """Linear classifiers on standardised features: one an exit, for each of `sets` cost weights, all sets equal."""

    def __init__(self, widths: Sequence[int], classes: int, sets: int) -> None:
        super().__init__()
        self.classes, self.sets = classes, sets
        layers = [nn.Linear(width, classes) for width in widths]
        self.weights = nn.ParameterList(
            [nn.Parameter(one.weight.detach().repeat(sets, 1, 1)) for one in layers]
        )
        self.bias = nn.Parameter(torch.stack([one.bias.detach() for one in layers]).repeat(sets, 1, 1))
        for index, width in enumerate(widths):
            self.register_buffer(f"mean{index}", torch.zeros(width))
            self.register_buffer(f"scale{index}", torch.ones(width))

    def standardise(self, features: Sequence[Tensor]) -> None:
        """Take mean and deviation, a number a channel, of features [N, width] of all exits."""
        for index, values in enumerate(features):
            exact = values.double()
            self.get_buffer(f"mean{index}").copy_(exact.mean(0))
            deviation = exact.std(0, correction=0)
            self.get_buffer(f"scale{index}").copy_(torch.where(deviation > 1e-6, deviation, 1.0))

    def at(self, index: int, feature: Tensor) -> Tensor:
        """Logits [n, sets, C] at one exit of its features [n, width]."""
        z = (feature - self.get_buffer(f"mean{index}")) / self.get_buffer(f"scale{index}")
        flat = F.linear(z, self.weights[index].flatten(0, 1), self.bias[:, index].flatten())
        return flat.unflatten(-1, (self.sets, self.classes))  # no len(): a graph would keep its number

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Logits [n, sets, L - 1, C] of the features [n, width] of all exits."""
        return torch.stack([self.at(index, one) for index, one in enumerate(features)], 2)


class Gates(nn.Module):
    """A linear gate on four numbers: one an exit, for each of `sets` cost weights, all sets equal at first."""

    def __init__(self, exits: int, sets: int) -> None:
        super().__init__()
        layers = [nn.Linear(4, 1) for _ in range(exits)]
        self.weight = nn.Parameter(torch.cat([one.weight.detach() for one in layers]).repeat(sets, 1, 1))
        self.bias = nn.Parameter(torch.cat([one.bias.detach() for one in layers]).repeat(sets, 1))

    def forward(self, seen: Tensor) -> Tensor:
        """Gate logits [n, sets, L - 1] of what `uncertainty` gives [n, sets, L - 1, 4]."""
        return (seen * self.weight).sum(-1) + self.bias


def gate_operations(classes: int) -> int:
    """Operations of one gate on C classes, by the authors' count: four statistics, a linear layer, 9 C + 6."""
    return classes + (classes + 1) + 2 * classes + 5 * classes + 5

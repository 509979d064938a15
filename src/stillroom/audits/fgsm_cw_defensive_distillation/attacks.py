"""What an attack needs, and the attacks of one bounded step or several: FGSM and PGD.

Everything here works on pixels in [0, 1] and puts the network in evaluation mode. No attack lets one image of a
batch bear on another: losses are summed over the batch, never averaged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stillroom.models.probing import quietly

Objective = Callable[[Tensor, Tensor], Tensor]
"""From logits [n, C] and classes [n] to a number an image [n] that grows as the class is left."""


class Pixels(nn.Module):
    """A classifier that takes pixels in [0, 1] and normalises them itself."""

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Pixels [n, C, H, W] in [0, 1] to logits [n, classes]."""
        return self.network((x - self.mean) / self.std)


@contextmanager
def attacked(model: nn.Module) -> Iterator[None]:
    """Evaluation mode with gradients; modes and the default random state are afterwards as they were."""
    with quietly(model), torch.enable_grad():
        yield


def cross_entropy(logits: Tensor, y: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
    """-log softmax(logits / temperature)_y, [n]. Logits [n, C], y [n], temperature > 0, one or [n, 1]."""
    return F.cross_entropy(logits / temperature, y, reduction="none")


def lead(logits: Tensor, y: Tensor) -> Tensor:
    """max_{i != y} Z_i - Z_y, [n]: the logit margin with its sign turned, above 0 where another class leads."""
    others = logits.scatter(-1, y.unsqueeze(-1), -torch.inf).amax(-1)
    return others - logits.gather(-1, y.unsqueeze(-1)).squeeze(-1)


def at_temperature(temperature: float | Tensor) -> Objective:
    """The cross-entropy of the logits divided by `temperature`: what the adaptive FGSM climbs."""
    return partial(cross_entropy, temperature=temperature)


def input_gradient(model: nn.Module, x: Tensor, y: Tensor, objective: Objective = cross_entropy) -> Tensor:
    """d objective / d x, [n, C, H, W], each image's own, of the model as it is (its mode is the caller's)."""
    x = x.detach().requires_grad_()
    return torch.autograd.grad(objective(model(x), y).sum(), x)[0]


def fgsm(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    epsilon: float,
    objective: Objective = cross_entropy,
    targeted: bool = False,
) -> Tensor:
    """clip(x + epsilon sign(d objective / dx), 0, 1) (Goodfellow et al., ICLR 2015, arXiv:1412.6572, section 4).

    x [n, C, H, W] in [0, 1], y [n] the labels, or with `targeted` the classes to reach, which turns the step
    round. epsilon in (0, 1] is in the pixels' own unit. Where the gradient is zero nothing moves: sign(0) = 0.
    """
    with attacked(model):
        step = input_gradient(model, x, y, objective).sign()
    return (x - epsilon * step if targeted else x + epsilon * step).clamp(0, 1)


def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    epsilon: float,
    steps: int = 40,
    step_size: float | None = None,
    objective: Objective = lead,
    targeted: bool = False,
    start: Tensor | None = None,
) -> Tensor:
    """`steps` signed steps, each projected on |x' - x| <= epsilon and [0, 1] (Madry et al., arXiv:1706.06083).

    `step_size` is 2.5 epsilon / steps unless given. `start` [n, C, H, W] in [-1, 1], times epsilon, is added
    before the first step (a random start, drawn by the caller so that it can belong to the image); None starts at x.
    """
    size = 2.5 * epsilon / steps if step_size is None else step_size
    low, high = (x - epsilon).clamp(0, 1), (x + epsilon).clamp(0, 1)
    now = x if start is None else (x + epsilon * start).clamp(low, high)
    with attacked(model):
        for _ in range(steps):
            step = input_gradient(model, now, y, objective).sign()
            now = (now - size * step if targeted else now + size * step).clamp(low, high)
    return now


def predict(model: nn.Module, x: Tensor) -> Tensor:
    """Logits [n, C] in evaluation mode, without gradient."""
    with quietly(model):
        return model(x)

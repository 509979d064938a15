"""The joint head: indices of (class, transformation), the vote over copies, and the network that holds it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from stillroom.errors import UserError
from stillroom.models.names import build
from stillroom.models.wrapping import describe, told, within
from stillroom.predictors.parts.classifier import last_layer
from stillroom.predictors.parts.transformations import SETS, transformed

Mode = Literal["sd", "ag", "si"]


def joint_labels(y: Tensor, copies: int, classes: int) -> Tensor:
    """Labels of the joint head for rows b M + j: y_b M + j, int64 [B M].

    Labels mixed from several, float [B, C], stay so: [B M, C M] with y_b in the entries of the row's transformation.
    """
    if not y.is_floating_point():
        return (y.unsqueeze(1) * copies + torch.arange(copies, device=y.device)).flatten()
    own = torch.eye(copies, dtype=y.dtype, device=y.device)
    return torch.einsum("bi,jk->bjik", y, own).reshape(len(y) * copies, classes * copies)


def matching(joint: Tensor, copies: int) -> Tensor:
    """Of each copy the logits of its own transformation: joint [B M, C M] -> [B, C, M], entry (i, j) at i M + j."""
    return joint.unflatten(-1, (-1, copies)).unflatten(0, (-1, copies)).diagonal(dim1=1, dim2=3)


def aggregated(joint: Tensor, copies: int) -> Tensor:
    """s_i = (1 / M) sum_j w_(i,j) . f(t_j(x)) [B, C] of joint logits [B M, C M] (section 3.2, before the softmax)."""
    return matching(joint, copies).mean(-1)


class JointNetwork(nn.Module):
    """A classifier with a second head over pairs (class, transformation), fed by what its last layer is fed.

    `network` is the classifier, its last layer the plain head. Called, it gives logits [n, C] of the joint head: in
    mode `ag` the vote over all M transformed copies (M passes), in mode `si` those of the image as it is (one pass).
    """

    def __init__(self, network: nn.Module, example: Tensor, transformations: str, mode: Mode = "ag") -> None:
        super().__init__()
        self.path = last_layer(network, example)
        layer = network.get_submodule(self.path)
        assert isinstance(layer, nn.Linear)
        self.transformations, self.mode = transformations, mode
        self.network = network
        self.joint = nn.Linear(layer.in_features, layer.out_features * self.copies)
        self._tell()

    def _tell(self) -> None:
        inner = describe(self.network)
        if inner is not None:
            own = {"transformations": self.transformations, "mode": self.mode, "network": inner}
            told(self, {"library": "stillroom", "kind": "joint", **own})

    @property
    def copies(self) -> int:
        """M."""
        return len(SETS[self.transformations])

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Plain logits [n, C] and joint logits [n, C M] of one pass over images [n, C, H, W] as they are."""
        fed: list[Tensor] = []
        layer = self.network.get_submodule(self.path)
        # Hung up for this pass alone, so that the plain classifier is the user's own, without a trace of this one.
        hook = layer.register_forward_pre_hook(lambda _, inputs: fed.append(inputs[0]))
        try:
            plain = self.network(x)
        finally:
            hook.remove()
        return plain, self.joint(fed[-1])

    def forward(self, x: Tensor) -> Tensor:
        """Images [n, channels, H, W] -> logits [n, C]; see the class."""
        if self.mode == "si":
            return self.both(x)[1][:, :: self.copies]
        return aggregated(self.both(transformed(x, SETS[self.transformations]))[1], self.copies)

    def asked(self, mode: Mode) -> nn.Module:
        """The same weights in another mode; `sd` is the plain classifier."""
        if mode == "sd":
            return self.network
        return self._with(mode)

    def _with(self, mode: Mode) -> Self:
        made = copy.copy(self)
        made.mode = mode
        made._tell()
        return made

    def modes(self) -> Iterator[tuple[Mode, str, int, nn.Module]]:
        """Mode, name, passes and network of each way to ask it."""
        for mode, name, passes in (
            ("sd", "plain head", 1),
            ("si", "joint head", 1),
            ("ag", "vote", self.copies),
        ):
            yield mode, name, passes, self.asked(mode)


def of_description(description: Mapping[str, Any], shape: Sequence[int], classes: int) -> JointNetwork:
    """The network that `description` tells, of one that is described itself; UserError where it does not say all."""
    named, mode = description.get("transformations"), description.get("mode")
    if named not in SETS or mode not in ("ag", "si"):
        raise UserError(
            f"a joint head of {named!r} transformations and mode {mode!r} is not known: export it again"
        )
    inner = build(within(description), shape=shape, classes=classes, seed=0)
    return JointNetwork(inner, torch.zeros(1, *shape), named, mode)

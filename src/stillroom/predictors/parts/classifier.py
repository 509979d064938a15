"""A classifier's last layer, and the features that it is fed: where further heads go and other heads come in."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stillroom.errors import UserError
from stillroom.models.probing import left_in_order


def last_layer(network: nn.Module, example: Tensor) -> str:
    """Module path of the linear layer whose output is the logits of `network` for `example` [1, ...].

    Tried, not looked up by name. Raises UserError where the logits are no linear layer's.
    """
    layers = {path: part for path, part in network.named_modules() if isinstance(part, nn.Linear)}
    *met, (_, logits) = left_in_order({**layers, "the network itself": network}, network, example)
    for path, output in reversed(met):
        if output.shape == logits.shape and torch.equal(output, logits):
            return path
    raise UserError(
        f"the logits of {type(network).__name__} are no linear layer's: pass a student that ends in one"
    )


class Features:
    """Reads the input of the last layer in each forward pass of `network`, leaving the network as it is."""

    def __init__(self, network: nn.Module, example: Tensor) -> None:
        self.path = last_layer(network, example)
        layer = network.get_submodule(self.path)
        assert isinstance(layer, nn.Linear)
        self.size, self.classes = layer.in_features, layer.out_features
        self._seen: Tensor | None = None
        self._hook = layer.register_forward_pre_hook(self._keep)

    def _keep(self, layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        self._seen = args[0]

    def take(self) -> Tensor:
        """Features [n, size] of the last forward pass, with their graph; forgotten once taken."""
        if self._seen is None:
            raise RuntimeError(
                f"layer '{self.path}' took no part in a forward pass since its features were taken"
            )
        seen, self._seen = self._seen, None
        return seen

    def remove(self) -> None:
        """Leave the network without a hook."""
        self._hook.remove()

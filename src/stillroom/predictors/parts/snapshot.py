"""The network as an earlier epoch left it: a teacher that a network is for itself."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from stillroom.checkpoint import load_weights, weights
from stillroom.sharding import gathered


class Snapshot:
    """A frozen copy of a network, in evaluation mode, that is no player; made in `bind`, while the network is whole."""

    def __init__(self, network: nn.Module) -> None:
        self.network = copy.deepcopy(network).requires_grad_(False).eval()
        self.epoch = 0
        """The epoch at whose beginning the weights were taken; 0: they are the initial ones."""

    def keep_up(self, network: nn.Module, epoch: int) -> None:
        """Take the weights of `network` where `epoch` is a new one: to be called in each step, before it is made."""
        if epoch > self.epoch:
            taken = gathered(weights(network), keep=True)
            load_weights(self.network, taken, Path(type(network).__name__))
            self.epoch = epoch

    def logits(self, x: Tensor) -> Tensor:
        """What the network then says of `x` [n, ...], without gradient."""
        with torch.no_grad():
            return self.network.to(x.device)(x)

    def state(self) -> dict[str, Tensor]:
        """Weights and epoch, for a checkpoint."""
        return {"epoch": torch.tensor(self.epoch)} | {
            f"network.{k}": v for k, v in weights(self.network).items()
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` gave; KeyError for what another snapshot gave."""
        found = {key: state[f"network.{key}"] for key in weights(self.network)}
        load_weights(self.network, found, Path("snapshot"))
        self.epoch = int(state["epoch"])

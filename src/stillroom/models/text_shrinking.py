"""A smaller copy of a network on text, by the rules of `shrinking`."""

from __future__ import annotations

from torch import nn

from stillroom.errors import UserError
from stillroom.models.shrinking import shrink
from stillroom.models.texts import Causal, Encoder, MeanPooled
from stillroom.models.transplanting import transplant
from stillroom.seeds import seeded


def shrink_text(network: nn.Module, depth: float, width: float, seed: int) -> nn.Module:
    """A copy of an `Encoder` or `Causal` with `depth` of its layers and `width` of its heads, trainable.

    Raises UserError for any other network.
    """
    if not isinstance(network, Encoder | Causal):
        raise UserError(
            f"teacher {type(network).__name__} is no transformers model: name the student by its size"
        )
    if not isinstance(network.network, MeanPooled):
        return shrink(network, depth, width, seed=seed)
    whole: MeanPooled = network.network
    backbone = shrink(whole.backbone, depth, width, seed=seed)
    with seeded(seed):
        made = MeanPooled(backbone, whole.head.out_features, whole.first)
    transplant(whole.head, made.head)
    separator = network.separator if isinstance(network, Encoder) else None
    return Encoder(made, network.padding, separator).train()

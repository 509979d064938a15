"""A language model's answer without its logits: the last hidden states and the layer that would make them."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.models.probing import quietly
from stillroom.models.texts import Causal
from stillroom.predictors.parts.language.vocabulary import Head, Scores


def takes(model: Causal, name: str) -> bool:
    """Whether the transformers network in `model` has an argument of this name."""
    return name in inspect.signature(model.network.forward).parameters


def headed(model: nn.Module) -> bool:
    """Whether the logits of `model` are its last layer's on its last hidden states, and nothing else.

    Tried on four tokens, not looked up: some networks scale or cap their logits.
    """
    if not isinstance(model, Causal):
        return False
    network: Any = model.network
    head = getattr(network, "get_output_embeddings", lambda: None)()
    if not isinstance(head, nn.Linear) or getattr(network, "base_model", network) is network:
        return False
    pad = getattr(network.config, "pad_token_id", None)
    tokens = [token for token in range(len(head.weight)) if token != pad][:4]
    x = torch.tensor([tokens], device=head.weight.device)
    try:
        with quietly(model):
            whole, made = model(x), scores(model, x, True)
    except (AttributeError, TypeError):
        return False
    assert isinstance(made, Head)
    logits = made.logits()
    return logits.shape == whole.shape and bool(torch.allclose(logits, whole, rtol=1e-4, atol=1e-4))


def scores(model: nn.Module, x: Tensor, by_head: bool) -> Scores:
    """What `model` says of x int64 [n, L] or [n, 2, L]: logits [n, L, V], or the states and head that make them."""
    if not by_head or _as_a_whole(model):
        return model(x)
    assert isinstance(model, Causal)
    network: Any = model.network
    states = network.base_model(**model.arguments(x)).last_hidden_state
    head = network.get_output_embeddings()
    return Head(states, head.weight, head.bias)


def _as_a_whole(model: nn.Module) -> bool:
    """Whether only its own call will do: it is compiled, or its weights lie on several processes between calls."""
    compiled = getattr(model, "_compiled_call_impl", None) is not None
    return compiled or any(hasattr(p, "full_tensor") for p in model.parameters())

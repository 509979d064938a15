"""Networks on text: transformers models that take one tensor of token ids, padded with -1 on the right."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.errors import UserError
from stillroom.models.probing import quietly


class MeanPooled(nn.Module):
    """A linear head on the mean of an encoder's last hidden states: token ids [n, L] -> logits [n, classes].

    The form of a sentence-transformers model (Reimers and Gurevych, EMNLP 2019, arXiv:1908.10084, section 3); with
    `first` the state of the first token in place of the mean.
    """

    def __init__(self, backbone: nn.Module, classes: int, first: bool = False) -> None:
        super().__init__()
        self.backbone, self.first = backbone, first
        self.head = nn.Linear(int(self.config.hidden_size), classes)

    @property
    def config(self) -> Any:
        """The configuration of the encoder."""
        return self.backbone.config

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **more: Any) -> SimpleNamespace:
        """Ids and mask [n, L] -> `logits` [n, classes], and `hidden_states` where they are asked for."""
        out = self.backbone(input_ids=input_ids, attention_mask=attention_mask, **more)
        states = out.last_hidden_state
        pooled = states[:, 0] if self.first else mean_of(states, attention_mask)
        return SimpleNamespace(logits=self.head(pooled), hidden_states=out.hidden_states)


def mean_of(states: Tensor, mask: Tensor) -> Tensor:
    """The mean of the states [n, L, C] of the tokens that the mask [n, L] keeps: [n, C]."""
    kept = mask.unsqueeze(-1).to(states.dtype)
    return (states * kept).sum(1) / kept.sum(1).clamp_min(1)


class Encoder(nn.Module):
    """A classifier of texts: x int64 [n, L], padded with negative numbers on the right, -> logits [n, classes].

    `network` is a transformers model for sequence classification, or a `MeanPooled`. `padding` is the id that
    stands in for padding, which the attention mask hides. `separator` is the id that ends each part of a pair,
    where the network tells the parts apart by token types as BERT does: then the second part has type 1.
    A hook on `states`, the middle feature, sees the mean over a text's tokens [n, C] after half of the layers.
    """

    middle = "states"
    frozen: nn.Module | None
    separator: int | None

    def __init__(self, network: nn.Module, padding: int = 0, separator: int | None = None) -> None:
        super().__init__()
        self.network, self.padding, self.states = network, padding, nn.Identity()
        object.__setattr__(self, "frozen", None)  # not a second name of a part in the state
        config: Any = network.config
        typed = "token_type_ids" in _arguments(network) and getattr(config, "type_vocab_size", 0) == 2
        self.separator = separator if typed else None
        if config.pad_token_id is None:
            config.pad_token_id = padding  # decoders look for the last token that is not this one

    def head_only(self) -> Encoder:
        """Freeze all but what stands on the encoder, which stays in evaluation mode: a linear probe."""
        network: Any = self.network
        frozen = network.backbone if isinstance(network, MeanPooled) else network.base_model
        frozen.requires_grad_(False)
        object.__setattr__(self, "frozen", frozen)
        return self.train(self.training)

    def train(self, mode: bool = True) -> Encoder:
        """As any module's; what is frozen stays in evaluation mode."""
        super().train(mode)
        if self.frozen is not None:
            self.frozen.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Token ids [n, L] -> logits [n, classes]."""
        mask = x >= 0
        more: dict[str, Any] = {}
        if self.separator is not None:
            ends = x == self.separator
            more["token_type_ids"] = (ends.cumsum(-1) - ends.long()).clamp_max(1)
        watched = bool(self.states._forward_hooks)
        if watched:
            more["output_hidden_states"] = True
        out = self.network(input_ids=x.where(mask, self.padding), attention_mask=mask.long(), **more)
        if watched:
            layers = len(out.hidden_states) - 1
            self.states(mean_of(out.hidden_states[(layers + 1) // 2], mask))
        return out.logits


class Causal(nn.Module):
    """A language model: x int64 [n, L] or packed [n, 2, L] -> logits [n, L, V] of the token after each position.

    `network` is a transformers causal language model. Padding stands on the right, where a causal model cannot see
    it from any text. Packed rows hold ids and the number of the document within the row: positions start again in
    each, from which transformers makes the mask that keeps documents apart.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        config: Any = network.config
        # any id will do; at its own padding id transformers asks for a mask that nothing here needs
        self.padding = int(config.pad_token_id == 0)
        self._cached, self._masked = (name in _arguments(network) for name in ("use_cache", "attention_mask"))

    @property
    def vocabulary(self) -> int:
        """Number of logits a position."""
        config: Any = self.network.config
        return int(config.vocab_size)

    def forward(self, x: Tensor) -> Tensor:
        """Token ids [n, L], or ids and document numbers [n, 2, L] -> logits [n, L, V]."""
        return self.network(**self.arguments(x)).logits

    def arguments(self, x: Tensor) -> dict[str, Any]:
        """What the network, or its base model, is called with for x."""
        more: dict[str, Any] = {"use_cache": False} if self._cached else {}
        ids = x if x.ndim == 2 else x[:, 0]
        if x.ndim == 3:
            more["position_ids"] = positions(x[:, 1])
        elif self._masked:  # of ones: a text may end in the id that pads, which transformers warns of
            more["attention_mask"] = torch.ones_like(ids)
        return {"input_ids": ids.where(ids >= 0, self.padding), **more}


def check_packing(model: Causal, name: str) -> None:
    """Raise UserError unless two short documents in one packed row are what each is alone, to 1e-3 of the logits.

    Some networks keep no mask between documents, or take no positions (those with a recurrent state, for one).
    """
    ids = torch.arange(2, 10).remainder(model.vocabulary).view(2, 4)
    ids = ids.to(next(model.parameters()).device)
    numbers = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1]], device=ids.device)
    try:
        with quietly(model):
            alone = model(ids).flatten(0, 1)
            together = model(torch.stack([ids.view(1, 8), numbers], 1))[0]
        apart = bool((together - alone).abs().max() <= 1e-3 * alone.abs().max())
    except TypeError:
        apart = False
    if not apart:
        raise UserError(
            f"model '{name}' does not keep the documents of a packed row apart: pass --task.packing blocks or none"
        )


def positions(numbers: Tensor) -> Tensor:
    """Positions [n, L] that start again at 0 where the document's number [n, L] changes."""
    place = torch.arange(numbers.shape[-1], device=numbers.device).expand_as(numbers)
    starts = torch.ones_like(numbers, dtype=torch.bool)
    starts[:, 1:] = numbers[:, 1:] != numbers[:, :-1]
    return place - place.where(starts, 0).cummax(-1).values


def _arguments(network: nn.Module) -> set[str]:
    inner = network.backbone if isinstance(network, MeanPooled) else network
    return set(inspect.signature(inner.forward).parameters)

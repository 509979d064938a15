"""Text that a language model writes: sampled from given random numbers, or by beam search.

Random numbers come from outside, one a row and token, so that a row's text depends on its own numbers alone: not
on the other rows of its batch, nor on how a batch was cut.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.data.texts import PAD
from stillroom.errors import UserError, require
from stillroom.models.probing import quietly
from stillroom.models.texts import Causal
from stillroom.predictors.parts.language.heads import takes


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn."""

    temperature: float = 1.0
    """Of the softmax that tokens are drawn from, > 0."""
    top_k: int = 0
    """Draw among the k most likely tokens; 0: among all."""
    top_p: float = 1.0
    """Draw among the most likely tokens that together reach this probability, in (0, 1]."""

    def check(self) -> None:
        """UserError for a value out of its range."""
        require("--method.sample-temperature", self.temperature, 0, ends="(]")
        require("--method.top-k", self.top_k, 0)
        require("--method.top-p", self.top_p, 0, 1, ends="(]")

    def choose(self, logits: Tensor, u: Tensor) -> Tensor:
        """Tokens [n] for logits [n, V] and numbers u [n] in [0, 1), by the inverse of the distribution function."""
        p = (logits.double() / self.temperature).softmax(-1)
        if self.top_k == 0 and self.top_p == 1:
            return _inverse(p, u)
        p, order = p.sort(stable=True, dim=-1, descending=True)
        if self.top_k:
            p[:, self.top_k :] = 0
        p /= p.sum(-1, keepdim=True)
        p = p.masked_fill(p.cumsum(-1) - p >= self.top_p, 0)
        return order.gather(-1, _inverse(p, u).unsqueeze(-1)).squeeze(-1)


def _inverse(p: Tensor, u: Tensor) -> Tensor:
    reached = p.cumsum(-1)
    wanted = u.double().unsqueeze(-1) * reached[:, -1:]
    last = (p > 0).cumsum(-1).argmax(-1)
    return torch.searchsorted(reached, wanted, right=True).squeeze(-1).minimum(last)


def sampled(
    model: nn.Module,
    prompts: Tensor,
    numbers: Tensor,
    sampling: Sampling,
    stops: Sequence[int] = (),
    longest: int = 0,
) -> Tensor:
    """Prompts with what `model` writes after each, int64 [n, L], padded on the right.

    `prompts` int64 [n, P] are padded on the right, each at least one token long; `numbers` [n, new] in [0, 1) are
    those that the new tokens are drawn with, at most as many as there are. A text ends after a token of `stops`,
    and at `longest` tokens where that is not 0. The model runs in eval mode, without gradients.
    """
    sizes = (prompts != PAD).sum(-1)
    ends = sizes + numbers.shape[-1]
    ends = ends.clamp_max(max(longest, 0)).maximum(sizes) if longest else ends
    rows = prompts.new_full((len(prompts), int(ends.max())), PAD)
    rows[:, : prompts.shape[-1]] = prompts[:, : rows.shape[-1]]
    going = torch.ones_like(sizes, dtype=torch.bool)
    stop = torch.tensor(list(stops), dtype=torch.int64, device=prompts.device)
    with quietly(model):
        ask = _steps(model)
        start = int(sizes.min())
        logits = ask(rows[:, :start])
        for at in range(start, rows.shape[-1]):
            drawn = at - sizes
            u = numbers.gather(-1, drawn.clamp(0, numbers.shape[-1] - 1).unsqueeze(-1)).squeeze(-1)
            token = sampling.choose(logits, u)
            writes = (drawn >= 0) & (at < ends) & going
            rows[:, at] = torch.where(writes, token, rows[:, at])
            going &= ~(writes & torch.isin(token, stop))
            if at + 1 == rows.shape[-1] or not bool((going & (at + 1 < ends)).any()):
                break
            logits = ask(rows[:, at : at + 1])
    _forget_casts()
    return rows


def _forget_casts() -> None:
    """Weights that autocast turned to half precision without gradients must not serve the step that has them."""
    torch.clear_autocast_cache()


def _steps(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """A function of the next tokens [n, more], to be called in turn: logits [n, V] after the last of them."""
    if isinstance(model, Causal) and takes(model, "use_cache") and takes(model, "position_ids"):
        return _Cached(model)
    return _Plain(model)


class _Plain:
    """The whole text anew each time, for a model that keeps nothing."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.seen: Tensor | None = None

    def __call__(self, more: Tensor) -> Tensor:
        self.seen = more if self.seen is None else torch.cat([self.seen, more], -1)
        return self.model(self.seen)[:, -1].float()


class _Cached:
    """Keys and values of what was read are kept."""

    def __init__(self, model: Causal) -> None:
        self.model, self.kept, self.read = model, None, 0

    def __call__(self, more: Tensor) -> Tensor:
        # Rows stand at the same place, also those that are over: what they read there no other row sees.
        places = torch.arange(self.read, self.read + more.shape[-1], device=more.device)
        out: Any = self.model.network(
            input_ids=more.where(more >= 0, self.model.padding),
            attention_mask=more.new_ones(len(more), self.read + more.shape[-1]),
            position_ids=places.expand(len(more), -1),
            past_key_values=self.kept,
            use_cache=True,
        )
        self.kept, self.read = out.past_key_values, self.read + more.shape[-1]
        return out.logits[:, -1].float()


NO_BEAMS = "beam search needs a transformers model as teacher: pass --method.beams 1, which samples"


def searchable(model: nn.Module) -> bool:
    """Whether transformers can look for the likeliest texts of `model`."""
    return isinstance(model, Causal) and hasattr(model.network, "generate")


def beams(model: nn.Module, prompts: Tensor, width: int, new: int, stop: int | None, longest: int) -> Tensor:
    """Prompts with the likeliest continuation of each that a beam of `width` finds, int64 [n, L], padded right.

    transformers' own search, for its models; raises UserError for others. A text has at most `new` more tokens,
    and `longest` in all.
    """
    if not searchable(model):
        raise UserError(NO_BEAMS)
    assert isinstance(model, Causal)
    sizes = (prompts != PAD).sum(-1)
    most = int(sizes.max())
    # The search wants the ends of all prompts at one place.
    left = torch.stack(
        [row.roll(int(most - size)) for row, size in zip(prompts[:, :most], sizes, strict=True)]
    )
    there = left != PAD
    network: Any = model.network
    with quietly(model):
        found = network.generate(
            input_ids=left.where(there, model.padding),
            attention_mask=there.long(),
            num_beams=width,
            do_sample=False,
            max_new_tokens=max(1, min(new, longest - int(sizes.min()))),
            eos_token_id=stop,
            pad_token_id=model.padding,
            length_penalty=1.0,
            early_stopping=True,
        )
    return _trimmed(prompts, sizes, found[:, most:], stop, longest)


def _trimmed(prompts: Tensor, sizes: Tensor, written: Tensor, stop: int | None, longest: int) -> Tensor:
    """Prompts [n, P] of `sizes` with what was written up to a stop, padded on the right."""
    rows = prompts.new_full((len(prompts), int(sizes.max()) + written.shape[-1]), PAD)
    for row, (prompt, size, more) in enumerate(zip(prompts, sizes.tolist(), written, strict=True)):
        ended = (more == stop).nonzero() if stop is not None else more.new_empty(0)
        more = more[: int(ended[0]) + 1] if len(ended) else more
        whole = torch.cat([prompt[:size], more])[: max(longest, size)]
        rows[row, : len(whole)] = whole
    return rows

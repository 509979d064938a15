"""Small networks beside the blocks of a frozen one, which tell it the guidance scale.

Perez Jensen and Sadat, 2025, arXiv:2503.07274, section 4, and their code. A block's output y becomes
y + A(h, w, t, c), h what goes into the block. The base stays what it was: adapters act in `AdaptedNetwork.forward`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stillroom.errors import UserError

Architecture = Literal["offset", "cross_attention"]


# -- what an adapter is made of -------------------------------------------------------------------------------------


class ScalarEncoder(nn.Module):
    """A number [n] as a vector [n, hidden]: cos(2 pi (f w + p)), then an MLP and a norm.

    f ~ N(0, 1) and p ~ U[0, 1) are drawn once and never trained. `norm` puts a second norm into the MLP, before its
    last layer, as the authors' offset adapter has it.
    """

    def __init__(self, hidden: int, norm: bool) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.randn(hidden))
        self.register_buffer("phases", torch.rand(hidden))
        inner = [nn.LayerNorm(4 * hidden)] if norm else []
        self.layers = nn.Sequential(
            _linear(hidden, 4 * hidden), nn.ReLU(), *inner, _linear(4 * hidden, hidden), nn.LayerNorm(hidden)
        )

    def forward(self, value: Tensor) -> Tensor:
        """See the class."""
        angles = value.unsqueeze(-1) * self.frequencies + self.phases
        return self.layers((2 * torch.pi * angles).cos())


def _linear(inputs: int, outputs: int) -> nn.Linear:
    made = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(made.weight, gain=math.sqrt(2))
    nn.init.zeros_(made.bias)
    return made


def positions(length: int, width: int, like: Tensor) -> Tensor:
    """Sines, then cosines, of the places 0 .. length - 1: [length, width], width even (Vaswani et al., section 3.5)."""
    steps = torch.arange(0, width, 2, dtype=torch.float32, device=like.device) / width
    angles = torch.arange(length, device=like.device).unsqueeze(-1) * torch.exp(-math.log(10_000.0) * steps)
    return torch.cat([angles.sin(), angles.cos()], -1).to(like.dtype)


@dataclass(frozen=True)
class Told:
    """What all adapters of one pass are told."""

    scale: Tensor
    """Guidance scales times the multiplier [n]."""
    time: Tensor
    """The base's own embedding of the time [n, width]."""
    condition: Tensor
    """The base's own embedding of the condition: [n, width] for a label, [n, tokens, width] for a prompt."""


class Offset(nn.Module):
    """One vector a sample, the same for all of its tokens: MLP(S(w m) + P_t emb_t(t) + P_c emb_c(c)), zero at first."""

    def __init__(self, inputs: int, outputs: int, time: int, condition: int, hidden: int) -> None:
        super().__init__()
        self.scale = ScalarEncoder(hidden, norm=True)
        self.time, self.condition = nn.Linear(time, hidden), nn.Linear(condition, hidden)
        last = _linear(hidden, outputs)
        nn.init.zeros_(last.weight)
        self.layers = nn.Sequential(_linear(hidden, hidden), nn.ReLU(), nn.LayerNorm(hidden), last)

    def forward(self, h: Tensor, told: Told) -> Tensor:
        """[n, 1, outputs] for the block's tokens h [n, tokens, inputs], which it does not look at."""
        condition = told.condition.mean(1) if told.condition.ndim == 3 else told.condition
        known = self.time(told.time) + self.condition(condition)
        return self.layers(self.scale(told.scale) + known).unsqueeze(1)


class CrossAttention(nn.Module):
    """The block's tokens attend to S(w m), P_t emb_t(t) and the condition's tokens; one head, zero at first."""

    def __init__(self, inputs: int, outputs: int, time: int, condition: int, hidden: int) -> None:
        super().__init__()
        self.scale = ScalarEncoder(hidden, norm=False)
        self.time, self.condition = nn.Linear(time, hidden), nn.Linear(condition, hidden)
        self.query = nn.Linear(inputs, hidden, bias=False)
        self.key = nn.Linear(hidden, hidden, bias=False)
        self.value = nn.Linear(hidden, hidden, bias=False)
        self.leave = nn.Linear(hidden, outputs)
        for layer in (self.query, self.key, self.value):
            nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, h: Tensor, told: Told) -> Tensor:
        """[n, tokens, outputs] for the block's tokens h [n, tokens, inputs]."""
        condition = told.condition if told.condition.ndim == 3 else told.condition.unsqueeze(1)
        known = [self.scale(told.scale).unsqueeze(1), self.time(told.time).unsqueeze(1)]
        tokens = torch.cat([*known, self.condition(condition)], 1)
        tokens = tokens + positions(*tokens.shape[1:], like=tokens)
        return self.leave(F.scaled_dot_product_attention(self.query(h), self.key(tokens), self.value(tokens)))


ADAPTERS: dict[str, type[nn.Module]] = {"offset": Offset, "cross_attention": CrossAttention}


# -- blocks' inputs and outputs --------------------------------------------------------------------------------------


def entering(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What goes into a block: its first argument that is a tensor."""
    return next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)


def width_of(value: Tensor) -> int:
    """Numbers a token."""
    return value.shape[1 if value.ndim > 3 else -1]


def tokens_of(value: Tensor) -> Tensor:
    """[n, tokens, width] of a vector [n, width], of tokens, or of a map [n, width, ...]."""
    if value.ndim == 2:
        return value.unsqueeze(1)
    return value if value.ndim == 3 else value.flatten(2).transpose(1, 2)


def formed_as(added: Tensor, said: Tensor) -> Tensor:
    """`added` [n, tokens or 1, width] in the form of `said`, in its type."""
    added = added.to(said.dtype)
    if said.ndim == 2:
        return added.squeeze(1)
    if said.ndim == 3:
        return added
    added = added.transpose(1, 2)
    alone = (*added.shape[:2], *[1] * (said.ndim - 2))
    return added.reshape(alone if added.shape[2] == 1 else said.shape)


# -- where they sit -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sites:
    """Which adapters sit where, as numbers and names."""

    architecture: Architecture
    hidden: int
    multiplier: float
    """What scales are multiplied by before they are encoded."""
    scales: tuple[float, float]
    """The range of guidance scales that they are trained for."""
    time: int
    """Width of the base's time embedding."""
    condition: int
    """Width of its condition's."""
    blocks: dict[str, tuple[int, int]]
    """Widths into and out of each adapted block, by module path."""


class AdaptedNetwork(nn.Module):
    """`base`, frozen, with an adapter beside each of some blocks; takes the guidance scale as an input.

    The base may be shared, with the teacher for one: called directly it answers as it always did. Its parts stay in
    evaluation mode. What is trained is `adapters`, a module for each path, with / in place of its dots.
    """

    def __init__(self, base: nn.Module, sites: Sites) -> None:
        super().__init__()
        self.sites = sites
        self.base: Any = base.requires_grad_(False).eval()
        kind = ADAPTERS[sites.architecture]
        self.adapters = nn.ModuleDict(
            {
                path.replace(".", "/"): kind(*widths, sites.time, sites.condition, sites.hidden)
                for path, widths in sites.blocks.items()
            }
        )

    def forward(self, x: Tensor, time: Tensor, condition: Tensor, guidance: Tensor | None) -> Tensor:
        """x [n, ...], the network's time [n], conditions [n, ...], scales [n] (None: 1)."""
        scale = torch.ones_like(time) if guidance is None else guidance
        kind = next(self.adapters.parameters()).dtype  # the base may be in half precision
        t, c = self.base.embed_time(time).to(kind), self.base.embed_condition(condition).to(kind)
        told = Told(scale.to(kind) * self.sites.multiplier, t, c)
        with self._acting(told):
            return self.base(x, time, condition, None)

    @contextmanager
    def _acting(self, told: Told) -> Iterator[None]:
        """Inside, the base's blocks have their adapters; outside, the base is as it came."""
        hooks = []
        try:
            for path in self.sites.blocks:
                block, act = self.base.get_submodule(path), self._act(path, told)
                hooks.append(block.register_forward_hook(act, with_kwargs=True))
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _act(self, path: str, told: Told) -> Any:
        adapter, wanted = self.adapters[path.replace(".", "/")], self.sites.blocks[path]

        def act(block: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            said, rest = (output[0], output[1:]) if isinstance(output, tuple) else (output, None)
            h = tokens_of(entering(args, kwargs))
            if (h.shape[-1], width_of(said)) != wanted:
                raise UserError(
                    f"block '{path}' goes from {h.shape[-1]} to {width_of(said)} numbers a token and its adapter from "
                    f"{wanted[0]} to {wanted[1]}: pass a base of the architecture that it was made for"
                )
            said = said + formed_as(adapter(h.to(told.time.dtype), told), said)
            return said if rest is None else (said, *rest)

        return act

    def train(self, mode: bool = True) -> AdaptedNetwork:
        """The adapters' mode; the base stays in evaluation mode."""
        super().train(mode)
        self.base.eval()
        return self

    @property
    def share(self) -> float:
        """The adapters' parameters as a share of the base's."""
        counts = [sum(p.numel() for p in part.parameters()) for part in (self.adapters, self.base)]
        return counts[0] / counts[1]

    def config(self) -> dict[str, Any]:
        """What makes the same architecture again, by `from_config`."""
        from stillroom.models.denoisers.names import network_config  # which knows this class

        return {"kind": "adapted", "base": network_config(self.base), **asdict(self.sites)}

    @classmethod
    def from_config(cls, base: nn.Module, config: Mapping[str, Any]) -> AdaptedNetwork:
        """Untrained adapters as `config` says, on `base`; UserError where it lacks a block."""
        numbers = {key: config[key] for key in Sites.__dataclass_fields__}
        numbers["scales"] = tuple(numbers["scales"])
        numbers["blocks"] = {path: tuple(widths) for path, widths in numbers["blocks"].items()}
        names = {name for name, _ in base.named_modules()}
        for path in numbers["blocks"]:
            if path not in names:
                raise UserError(
                    f"{type(base).__name__} has no block '{path}', which has an adapter: pass a base of the "
                    "architecture that it was made for"
                )
        return cls(base, Sites(**numbers))

"""How one player is trained: optimizer, schedule, clipping and moving average.

Optimizers are torch's own, fused: a wrapper around them costs more than a small step does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from stillroom.errors import UserError, require
from stillroom.sharding import cut_as, is_cut, local, own_part


@dataclass(frozen=True)
class Recipe:
    """How one player is trained."""

    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    """The optimizer; torch's fused implementation of it."""
    lr: float = 0.05
    """Learning rate at the top of the schedule, > 0."""
    momentum: float = 0.9
    """Momentum of sgd, in [0, 1)."""
    nesterov: bool = False
    """Nesterov's form of the momentum (sgd)."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of the two moments (adam, adamw), each in [0, 1)."""
    weight_decay: float = 5e-4
    """Weight decay, >= 0 (decoupled in adamw)."""
    decay_biases: bool = True
    """Apply weight decay to biases and normalisation scales (tensors of at most one axis) as well."""
    schedule: Literal["constant", "cosine", "linear", "step"] = "cosine"
    """Shape of the learning rate over the run after the warm-up."""
    milestones: tuple[float, ...] = (0.3, 0.6, 0.9)
    """Where `step` lowers the learning rate, as shares of the run."""
    decay: float = 0.1
    """What `step` multiplies the learning rate by at each milestone."""
    warmup: float = 0.0
    """Share of the run over which the learning rate rises linearly from 0, in [0, 1)."""
    clip: float | None = None
    """Largest norm of the player's whole gradient; None does not clip."""
    ema: float = 0.0
    """Decay of the exponential moving average of the weights, in [0, 1); 0 keeps none."""

    def check(self) -> None:
        """Raise UserError for a value out of its range."""
        require("--engine.lr", self.lr, 0, ends="(]")
        require("--engine.momentum", self.momentum, 0, 1, ends="[)")
        for beta in self.betas:
            require("--engine.betas", beta, 0, 1, ends="[)")
        require("--engine.weight-decay", self.weight_decay, 0)
        for milestone in self.milestones:
            require("--engine.milestones", milestone, 0, 1)
        require("--engine.decay", self.decay, 0)
        require("--engine.warmup", self.warmup, 0, 1, ends="[)")
        require("--engine.ema", self.ema, 0, 1, ends="[)")
        if self.clip is not None:
            require("--engine.clip", self.clip, 0, ends="(]")

    def factor(self, step: int, steps: int) -> float:
        """The learning rate of `step` (from 0) of `steps`, as a multiple of `lr`."""
        warm = round(self.warmup * steps)
        if step < warm:
            return (step + 1) / warm
        done = (step - warm) / max(1, steps - warm)
        if self.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))
        if self.schedule == "linear":
            return 1 - done
        if self.schedule == "step":
            return self.decay ** sum(step >= m * steps for m in self.milestones)
        return 1.0

    def build(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer over `parameters`, its learning rate at the top of the schedule."""
        groups = self._groups(parameters)
        if self.optimizer == "sgd":
            nesterov = self.nesterov and self.momentum > 0
            return torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum, nesterov=nesterov, fused=True)
        kind = torch.optim.Adam if self.optimizer == "adam" else torch.optim.AdamW
        return kind(groups, lr=self.lr, betas=self.betas, fused=True)

    def _groups(self, parameters: list[nn.Parameter]) -> list[dict[str, object]]:
        if self.decay_biases:
            return [{"params": parameters, "weight_decay": self.weight_decay}]
        matrices = [p for p in parameters if p.ndim > 1]
        vectors = [p for p in parameters if p.ndim <= 1]
        groups = [(matrices, self.weight_decay), (vectors, 0.0)]
        return [{"params": some, "weight_decay": decay} for some, decay in groups if some]


class Player:
    """One trained network with its optimizer, schedule, clipping and moving average.

    Of a network that is cut into shards it trains this process's: all that it keeps is cut alike.
    """

    def __init__(self, name: str, module: nn.Module, recipe: Recipe) -> None:
        recipe.check()
        self.name, self.module, self.recipe = name, module, recipe
        named = [(key, p) for key, p in module.named_parameters() if p.requires_grad]
        self.keys = [key for key, _ in named]
        self.whole = [p for _, p in named]
        self.parameters = [nn.Parameter(local(p)) if is_cut(p) else p for p in self.whole]
        """What is stepped: a parameter of the module, or the memory of this process's shard of one."""
        if not named:
            raise ValueError(f"player '{name}' has no trainable parameters")
        self.cut = [i for i, p in enumerate(self.whole) if is_cut(p)]
        self.uncut = [p for p, whole in zip(self.parameters, self.whole, strict=True) if not is_cut(whole)]
        self.optimizer = recipe.build(self.parameters)
        # A mask of minus infinity is no running mean that went wrong.
        self._sound = {key for key, b in module.named_buffers() if all_finite([b])}
        self.average = [p.detach().clone() for p in self.parameters] if recipe.ema else None

    def take_gradients(self) -> list[Tensor]:
        """Hand the gradients of the shards to what is stepped; returns them."""
        found = []
        for i in self.cut:
            gradient, self.whole[i].grad = self.whole[i].grad, None
            if gradient is not None:
                self.parameters[i].grad = own = local(gradient)
                found.append(own)
        return found

    def step(self, step: int, steps: int, total: Callable[[Tensor], Tensor] | None = None) -> None:
        """Take one optimizer step with the gradients in place, then forget them; `total` sums over processes."""
        if self.recipe.clip is not None:
            self._clip(self.recipe.clip, total)
        rate = self.recipe.lr * self.recipe.factor(step, steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        for parameter in self.parameters:  # what zero_grad does, without its bookkeeping for the profiler
            parameter.grad = None
        if self.average is not None:
            raw: list[Tensor] = list(self.parameters)
            with torch.no_grad():
                torch._foreach_lerp_(self.average, raw, 1 - self.recipe.ema)

    def _clip(self, largest: float, total: Callable[[Tensor], Tensor] | None) -> None:
        """Scale the whole gradient to a norm of at most `largest`; shards are parts of it."""
        if not self.cut or total is None:
            nn.utils.clip_grad_norm_(self.parameters, largest, foreach=True)
            return
        cut, squares = set(self.cut), []
        for shards in (True, False):
            there = [p.grad for i, p in enumerate(self.parameters) if (i in cut) == shards]
            norm = nn.utils.get_total_norm([g for g in there if g is not None])
            squares.append(norm.to(self.parameters[0].device).square())
        norm = (total(squares[0]) + squares[1]).sqrt()
        nn.utils.clip_grads_with_norm_(self.parameters, largest, norm, foreach=True)

    def kept(self) -> Iterator[Tensor]:
        """The parameters, and the buffers that were finite to begin with."""
        yield from self.parameters
        yield from (b for key, b in self.module.named_buffers() if key in self._sound)

    def state(self) -> dict[str, Tensor]:
        """Optimizer state as flat tensors, `<parameter>|<slot>`, cut as the parameters are."""
        flat = {}
        for key, whole, parameter in zip(self.keys, self.whole, self.parameters, strict=True):
            for slot, value in self.optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    flat[f"{key}|{slot}"] = cut_as(whole, value) if value.ndim else value
        return flat

    def load_state(self, flat: Mapping[str, Tensor]) -> None:
        """Put back what `state` gave, whole."""
        by_key = dict(zip(self.keys, zip(self.whole, self.parameters, strict=True), strict=True))
        for name, value in flat.items():
            key, _, slot = name.rpartition("|")
            if key not in by_key:
                raise UserError(
                    f"the optimizer state has '{name}', player '{self.name}' has not: resume its own run"
                )
            whole, parameter = by_key[key]
            part = own_part(whole, value) if value.ndim else value
            self.optimizer.state[parameter][slot] = part.to(parameter.device, copy=is_cut(whole))

    def ema_state(self) -> dict[str, Tensor]:
        """The averaged weights under the parameters' names, cut as they are; empty where no average is kept."""
        if self.average is None:
            return {}
        return {k: cut_as(p, a) for k, p, a in zip(self.keys, self.whole, self.average, strict=True)}

    def load_ema(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `ema_state` gave, whole; UserError where the two do not belong together."""
        average = self.average or []
        if set(state) != set(self.keys[: len(average)]):
            raise UserError(
                f"checkpoint of player '{self.name}' {'has' if state else 'lacks'} averaged weights, the run "
                f"has --engine.ema {self.recipe.ema}: resume with the value that the run was started with"
            )
        for key, whole, value in zip(self.keys, self.whole, average, strict=False):
            value.copy_(own_part(whole, state[key]))

    def swap_average(self) -> None:
        """Exchange raw and averaged weights; calling it twice changes nothing. No-op without an average."""
        if self.average is None:
            return
        with torch.no_grad():
            for parameter, average in zip(self.parameters, self.average, strict=True):
                raw = parameter.detach().clone()
                parameter.copy_(average)
                average.copy_(raw)


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no tensor holds an infinity or a NaN."""
    return all(bool(torch.isfinite(t).all()) for t in tensors if t.is_floating_point())

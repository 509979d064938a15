"""What papers that match distributions share: the surrogate loss, its normaliser, f-divergences, GAN losses and heads.

Yin et al., "One-step Diffusion with Distribution Matching Distillation", CVPR 2024, arXiv:2311.18828 (DMD);
Yin et al., "Improved Distribution Matching Distillation", NeurIPS 2024, arXiv:2405.14867 (DMD2);
Xu et al., "One-step Diffusion Models with f-Divergence Distribution Matching", 2025, arXiv:2502.15681.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stillroom.errors import UserError
from stillroom.generators.parts.estimate import Estimate, true_value
from stillroom.generators.parts.process import along
from stillroom.generators.parts.sampler import Sampler
from stillroom.method import Clock, Mean
from stillroom.models.denoisers.library import DiT, Wrapped
from stillroom.models.denoisers.residual import ResidualMLP
from stillroom.reports import generation_figures as figures
from stillroom.taps import Tap, module_at, paths

Divergence = Literal["rkl", "sf", "js", "sh", "kl", "jf", "neyman", "chi2"]
"""f-divergences D_f(p || q) = E_q f(p / q) between the teacher's law p and the student's q."""


# -- the student's loss -----------------------------------------------------------------------------------------


def surrogate(x: Tensor, direction: Tensor) -> Tensor:
    """1/2 mean (x - sg[x - g])^2 over all numbers: its gradient on x [n, ...] is g / numel, g not differentiated."""
    return 0.5 * (x - (x - direction).detach()).square().mean()


def matching_direction(x: Tensor, real: Tensor, fake: Tensor, weight: Tensor | float = 1.0) -> Tensor:
    """w (D_fake - D_real) / (mean |x - D_real| + 1e-6), the mean over a sample's numbers (DMD, eq. 8).

    Samples and both denoised samples [n, ...]; weights [n] or a number. Without gradient.
    """
    with torch.no_grad():
        scale = (x - real).abs().flatten(1).mean(1) + 1e-6
        return along(torch.as_tensor(weight, device=x.device) / scale, x) * (fake - real)


def denoising_error(at: Estimate, x0: Tensor, eps: Tensor) -> Tensor:
    """Mean squared error, over all numbers, of what the network puts out: of the fake network's training."""
    return (at.value - true_value(at, x0, eps)).square().mean()


# -- f-divergences and their ratio ------------------------------------------------------------------------------


WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "rkl": torch.ones_like,
    "sf": lambda r: 1 / (r + 1),
    "js": lambda r: r / (r + 1),
    "sh": lambda r: r.sqrt(),
    "kl": lambda r: r,
    "jf": lambda r: 1 + r,
    "neyman": lambda r: 1 / r.clamp_min(1e-8),
    "chi2": lambda r: 2 * r.square(),
}
"""h(r) of every `Divergence`; see `divergence_weight`."""


def divergence_weight(ratio: Tensor, divergence: Divergence) -> Tensor:
    """h(r) = r^2 f''(r) up to a constant (Xu et al., 2025, table 1); ratios p / q > 0 of any shape.

    f is, for rkl -log r; sf (r + 1) log(1/2 + 1/(2 r)); js r log r - (r + 1) log((r + 1) / 2); sh (1 - sqrt r)^2;
    kl r log r; jf (r - 1) log r; neyman (1 - r)^2 / r; chi2 (r - 1)^2. Raises UserError for an unknown name.
    """
    if divergence not in WEIGHTS:
        raise UserError(f"--method.divergence '{divergence}' is unknown: pass one of {', '.join(WEIGHTS)}")
    return WEIGHTS[divergence](ratio)


def clipped_ratio(logits: Tensor, logit_clip: float, low: float, high: float) -> Tensor:
    """exp of the mean logit over heads [n, heads], clipped before and after: p / q as [n], without gradient."""
    return logits.detach().float().mean(1).clamp(-logit_clip, logit_clip).exp().clamp(low, high)


class RatioBins:
    """Makes the mean density ratio of the student's samples 1 in each of `bins` equal parts of the times.

    E_q[p / q] = 1 holds at every noise level. b_k <- memory b_k + (1 - memory) mean of the ratios in bin k, where
    there are any; ratios are divided by b_k + 1e-6. `level` [bins] is all that persists.
    """

    def __init__(self, bins: int, low: float, high: float, memory: float) -> None:
        self.bins, self.low, self.high, self.memory = bins, low, high, memory
        self.level = torch.ones(bins)

    def place(self, t: Tensor) -> Tensor:
        """Which bin each time [n] is in, int64 [n]; times outside of the range are in the nearest."""
        return ((t - self.low) / (self.high - self.low) * self.bins).long().clamp(0, self.bins - 1)

    def __call__(self, ratio: Tensor, t: Tensor) -> Generator[Mean, Tensor, Tensor]:
        """Ratios [n] at times [n], normalised, by `yield from`: the means are those of the whole step."""
        # Read before the yield, so that all parts of a batch go on from the same bins.
        place, old = self.place(t), self.level.to(ratio)
        there = F.one_hot(place, self.bins).to(ratio)
        total, count = (yield Mean(torch.stack([there * ratio.unsqueeze(1), there], 1))).unbind(0)
        found = total / count.clamp_min(1e-12)
        self.level = torch.where(count > 0, self.memory * old + (1 - self.memory) * found, old)
        return ratio / (self.level[place] + 1e-6)


# -- the discriminator --------------------------------------------------------------------------------------------


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """E softplus(-d(real)) + E softplus(d(fake)), logits [n, heads]; large means real."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def generator_loss(fake: Tensor) -> Tensor:
    """E softplus(-d(fake)), the non-saturating loss; logits [n, heads]."""
    return F.softplus(-fake).mean()


def approximate_r1(real: Tensor, moved: Tensor) -> Tensor:
    """Mean square of how far logits [n, heads] move when the real samples do (Lin et al., 2025, arXiv:2501.08316)."""
    return (real - moved).square().mean()


class Heads(nn.Module):
    """A small network on each of several features, one logit each: [n, heads]."""

    def __init__(self, features: list[Tensor], width: int = 64) -> None:
        super().__init__()
        self.heads = nn.ModuleList(_head(feature, width) for feature in features)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Logits [n, heads] of features [n, ...] in the order they were given in."""
        return torch.cat([head(x.float()) for head, x in zip(self.heads, features, strict=True)], 1)


def _head(feature: Tensor, width: int) -> nn.Module:
    if feature.ndim == 4:
        convolution = nn.Conv2d(feature.shape[1], width, 3, padding=1)
        return nn.Sequential(
            convolution, nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 1)
        )
    if feature.ndim == 3:
        return nn.Sequential(_Tokens(), nn.Linear(feature.shape[2], width), nn.SiLU(), nn.Linear(width, 1))
    return nn.Sequential(nn.Flatten(), nn.Linear(feature[0].numel(), width), nn.SiLU(), nn.Linear(width, 1))


class _Tokens(nn.Module):
    """The mean over tokens [n, tokens, width]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def default_taps(network: nn.Module) -> tuple[str, ...]:
    """Module paths whose outputs a discriminator reads: the middle of the networks that Stillroom knows."""
    if isinstance(network, ResidualMLP):
        return (f"blocks.{network.depth // 2}",)
    if isinstance(network, DiT):
        return (f"model.transformer_blocks.{len(network.model.transformer_blocks) // 2}",)  # type: ignore[arg-type]
    if isinstance(network, Wrapped):
        return ("model.mid_block",)
    raise UserError(
        f"the middle of {type(network).__name__} is not known: pass --method.taps with module paths of it"
    )


class _Enough(Exception):
    """All features are there, and the rest of the pass is not wanted."""


class Tapped:
    """A frozen sampler's denoiser, asked for its guided estimate and its inner features in one pass."""

    def __init__(self, sampler: Sampler, wanted: tuple[str, ...]) -> None:
        self.sampler, network = sampler, sampler.denoiser.network
        places = paths(network, wanted or default_taps(network), "--method.taps")
        self.taps = [Tap(network, path) for path in places]
        # after the taps' own hooks, which are called in the order in which they came
        self._hooks = [module_at(network, path).register_forward_hook(self._look) for path in places]
        self._early = False
        # where guidance is composed, only the conditional pass has the features
        self._conditional = sampler if sampler.denoiser.takes_guidance else sampler.but(guidance=1.0)

    def _look(self, module: nn.Module, args: object, output: object) -> None:
        if self._early and all(tap.full for tap in self.taps):
            raise _Enough

    def __call__(self, x: Tensor, t: Tensor, condition: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """D(x_t, t, c) [n, ...], guided, and the features of the conditional pass; differentiable in x."""
        real = self.sampler.ask(x, t, condition).x0
        return real, [tap.take()[-len(x) :] for tap in self.taps]

    def features(self, x: Tensor, t: Tensor, condition: Tensor | None) -> list[Tensor]:
        """The features alone, of a pass that ends with the last of them."""
        for tap in self.taps:
            tap.forget()
        self._early = True
        try:
            self._conditional.ask(x, t, condition)
        except _Enough:
            pass
        finally:
            self._early = False
        return [tap.take() for tap in self.taps]

    def remove(self) -> None:
        """Take the taps off."""
        for hook in [*self.taps, *self._hooks]:
            hook.remove()


# -- what is shown of a run ---------------------------------------------------------------------------------------


Fold = Literal["mean", "least", "largest"]
FOLDS: dict[Fold, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": torch.add,
    "least": torch.minimum,
    "largest": torch.maximum,
}


class Trace:
    """Numbers over a run by name, in 40 parts of it: of each the mean, the least or the largest value.

    However a step is cut into micro-batches, the same numbers are found; of several processes each has its own.
    """

    SLOTS = 40

    def __init__(self, **kinds: Fold) -> None:
        self.kinds = kinds
        start = {"mean": 0.0, "least": torch.inf, "largest": -torch.inf}
        self.held = {name: torch.full((self.SLOTS, 2), start[kind]) for name, kind in kinds.items()}

    def note(self, clock: Clock, name: str, values: Tensor) -> None:
        """Fold `values` [n], without gradient, into this part of the run."""
        kind, values = self.kinds[name], values.detach().float()
        found = {"mean": values.sum, "least": values.min, "largest": values.max}[kind]()
        slot, held = clock.step * self.SLOTS // clock.steps, self.held[name].to(values.device)
        held[slot] = FOLDS[kind](held[slot], torch.stack([found, found.new_tensor(float(len(values)))]))
        self.held[name] = held

    def curve(self, name: str) -> tuple[Tensor, Tensor]:
        """Percent of the run and value [k], of those parts in which there was one."""
        value, count = self.held[name].cpu().unbind(1)
        value = value / count if self.kinds[name] == "mean" else value
        there = value.isfinite()
        return (100 * (torch.arange(self.SLOTS) + 1) / self.SLOTS)[there], value[there]

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold."""
        return {f"trace/{name}": held for name, held in self.held.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` gave."""
        self.held = {name: state[f"trace/{name}"] for name in self.held}


def ratio_figures(ratio: RatioBins, trace: Trace) -> list[dict[str, str]]:
    """The ratio's calibration by time; the curves `least`, `largest` and `accuracy`, where the run has any of them."""
    part = (ratio.high - ratio.low) / ratio.bins
    names = [f"{ratio.low + part * (k + 0.5):.2g}" for k in range(ratio.bins)]
    bars = [("mean ratio", ratio.level.cpu().numpy())]
    found = [
        {
            "title": "Density ratio",
            "caption": "Mean density ratio of the student's samples by time, before it is made 1; 1 says that the "
            "discriminator is calibrated.",
            "svg": figures.histogram_bars(names, bars, "mean ratio", "density ratio"),
        }
    ]
    least, largest, accuracy = (trace.curve(name) for name in ("least", "largest", "accuracy"))
    if len(least[0]):
        curves = [("largest", *largest), ("least", *least)]
        svg = figures.lines(curves, "% of the run", "weight h", "weights", log_y=True)
        caption = (
            "Largest and least weight of a sample; their mean is 1. A largest weight near the batch size says that one "
            "sample decides the step."
        )
        found.append({"title": "Weights", "caption": caption, "svg": svg})
    if len(accuracy[0]):
        svg = figures.lines([("accuracy", *accuracy)], "% of the run", "accuracy", "discriminator")
        caption = "Share of noised real and generated samples told apart; 0.5 is chance."
        found.append({"title": "Discriminator", "caption": caption, "svg": svg})
    return found

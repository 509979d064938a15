"""f-distill: one-step generators by any f-divergence between teacher and student.

What for. Distribution matching (DMD, VSD) minimises the reverse KL divergence, which drops modes. f-distill replaces
it by any f-divergence: a teacher, real data and the name of a divergence in, a one-step generator out.

The idea. The gradient of an f-divergence is the score difference of distribution matching times a weight h(r) of the
density ratio r = teacher / student, h(r) = r^2 f''(r). The ratio comes free from the discriminator that DMD2 trains
anyway: r = exp(d). It is normalised twice: E_q[r] = 1 holds at every noise level, and the mean of h is made 1, so
that the step's size stays that of DMD.

Source. Xu, Nie and Vahdat, "One-step Diffusion Models with f-Divergence Distribution Matching", 2025,
arXiv:2502.15681 (theorem 1, table 1); the update order and all constants as in NVIDIA's FastGen.

Deviations. FastGen's own rkl stops with an error; here h = 1 exactly, so rkl is DMD2 to the bit. The discriminator's
heads are one small network for each tapped feature of the frozen teacher. The moving average is updated at the
student's own steps (FastGen: at every iteration). chi2 is added to the table, for its closed form.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from stillroom import metrics
from stillroom.claim import Claim, Rule
from stillroom.engine import Engine
from stillroom.errors import UserError, require
from stillroom.generators.generation import Generation
from stillroom.generators.parts import times
from stillroom.generators.parts.base import GeneratorMethod, generator_engine
from stillroom.generators.parts.matching import (
    Heads,
    Tapped,
    denoising_error,
    discriminator_loss,
    generator_loss,
    matching_direction,
    surrogate,
)
from stillroom.generators.parts.sampler import Plan, Sampler
from stillroom.generators.undistilled import FewSteps
from stillroom.method import Batch, Mean, Method, Update, Updates
from stillroom.optim import Recipe
from stillroom.reports import generation_figures as figures
from stillroom.seeds import seeded
from stillroom.task import Task

Divergence = Literal["rkl", "sf", "js", "sh", "kl", "jf", "neyman", "chi2"]


def weight(ratio: Tensor, divergence: Divergence) -> Tensor:
    """h(r) = r^2 f''(r) up to a constant (Xu et al., table 1); ratios > 0 of any shape.

    rkl -log r; sf (r + 1) log(1/2 + 1/(2 r)); js r log r - (r + 1) log((r + 1) / 2); sh (1 - sqrt r)^2;
    kl r log r; jf (r - 1) log r; neyman (1 - r)^2 / r; chi2 (r - 1)^2.
    """
    return {
        "rkl": lambda r: torch.ones_like(r),
        "sf": lambda r: 1 / (r + 1),
        "js": lambda r: r / (r + 1),
        "sh": lambda r: r.sqrt(),
        "kl": lambda r: r,
        "jf": lambda r: 1 + r,
        "neyman": lambda r: 1 / r.clamp_min(1e-8),
        "chi2": lambda r: 2 * r.square(),
    }[divergence](ratio)


def clipped_ratio(logits: Tensor, logit_clip: float, low: float, high: float) -> Tensor:
    """exp of the mean logit over heads [n, heads], clipped before and after: [n], without gradient."""
    return logits.detach().float().mean(1).clamp(-logit_clip, logit_clip).exp().clamp(low, high)


def bin_of(t: Tensor, low: float, high: float, bins: int) -> Tensor:
    """Which of `bins` equal parts of [low, high] each time [n] is in, int64 [n]."""
    return ((t - low) / (high - low) * bins).long().clamp(0, bins - 1)


def bin_terms(ratio: Tensor, place: Tensor, bins: int) -> Tensor:
    """[n, 2, bins]: the ratio and 1 in the bin of each sample; the quotient of their means is the bins' mean."""
    where = nn.functional.one_hot(place, bins).to(ratio.dtype)
    return torch.stack([where * ratio.unsqueeze(1), where], 1)


def next_bins(old: Tensor, means: Tensor, memory: float) -> Tensor:
    """b <- memory b + (1 - memory) mean, in bins [bins] that are not empty; means [2, bins] of `bin_terms`."""
    found = means[0] / means[1].clamp_min(1e-12)
    return torch.where(means[1] > 0, memory * old + (1 - memory) * found, old)


@dataclass(eq=False)
class FDistill(GeneratorMethod):
    """f-divergence distribution matching (Xu et al., 2025, arXiv:2502.15681, theorem 1 and section 4).

    Every `period`-th iteration steps the student x_g = D(sigma_T z, T, c) along
    h(r) (D_fake - D_teacher) / mean |x_g - D_teacher|, plus `gan_weight` softplus(-d); all others step the fake
    network on the student's samples, and the discriminator on noised real and generated samples.
    """

    name: ClassVar[str] = "f-distill"

    divergence: Divergence = "js"
    """Divergence between teacher and student; rkl with gan_weight 0 is plain DMD."""
    gan_weight: float = 0.01
    """Weight of the GAN's term in the student's loss, >= 0 (published: 0.003 ImageNet, 0.001 CIFAR-10)."""
    period: int = 2
    """Iterations of which one is the student's, >= 2 (published: 5; 10 for text)."""
    fake_rate: float = 5.0
    """Learning rate of fake network and discriminator, as a multiple of the student's, > 0 (published: 1)."""
    logit_clip: float = 3.0
    """Largest absolute logit in the ratio, > 0 (published: 10)."""
    ratio_low: float = 0.1
    """Smallest ratio, > 0."""
    ratio_high: float = 20.0
    """Largest ratio, > ratio_low."""
    bins: int = 10
    """Noise levels' bins in which the mean ratio is made 1, >= 1."""
    memory: float = 0.9
    """Decay of the bins' means, in [0, 1) (published: 0; 0.5 for ImageNet); small batches need memory."""
    time_low: float = 0.02
    """Least time of the matching, as a noise level for edm and as a share of T for others, > 0."""
    time_high: float = 5.0
    """Largest such noise level for edm; others end at 0.98 T."""
    r1_weight: float = 0.0
    """Weight of the approximate R1 penalty, >= 0 (published: 0, or 100 to 1000)."""
    r1_noise: float = 0.1
    """Deviation of the noise on clean real samples in that penalty, > 0."""
    taps: tuple[str, ...] = ()
    """Module paths in the teacher's network whose outputs the discriminator reads; empty: its middle."""

    def check(self) -> None:
        """See the ranges of the fields."""
        super().check()
        for name in ("gan_weight", "r1_weight"):
            require(f"--method.{name.replace('_', '-')}", getattr(self, name), 0)
        for name in ("fake_rate", "logit_clip", "ratio_low", "time_low", "r1_noise"):
            require(f"--method.{name.replace('_', '-')}", getattr(self, name), 0, ends="(]")
        require("--method.period", self.period, 2)
        require("--method.bins", self.bins, 1)
        require("--method.memory", self.memory, 0, 1, ends="[)")
        for low, high in (("ratio_low", "ratio_high"), ("time_low", "time_high")):
            if getattr(self, low) >= getattr(self, high):
                flags = f"--method.{low.replace('_', '-')} {getattr(self, low):g}"
                raise UserError(
                    f"{flags} is not below {high.replace('_', '-')} {getattr(self, high):g}: pass less"
                )

    @property
    def adversarial(self) -> bool:
        """Whether there is a discriminator: rkl needs none for its ratio."""
        return self.gan_weight > 0 or self.divergence != "rkl"

    def bind(self, task: Task, seed: int) -> None:
        """Start student and fake network from the teacher, and put heads on the teacher's features."""
        super().bind(task, seed)
        assert isinstance(task, Generation)
        self.fake = self.reference.denoiser.copy()
        self.level = torch.ones(self.bins)
        self.generator = Sampler(self.student, Plan("ddim", steps=1))
        paths = self.taps if self.adversarial else ()
        self.tapped = Tapped(self.reference.denoiser, paths, task.guidance) if self.adversarial else None
        self.guidance = task.guidance
        if self.tapped is not None:
            x = torch.zeros(2, *task.space.shape)
            with torch.no_grad(), seeded(seed):
                self.discriminator = Heads(self.tapped(x, torch.full((2,), self.limits[0]), None)[1])

    def unbind(self) -> None:
        """Leave the teacher as it came."""
        if self.tapped is not None:
            self.tapped.remove()

    def players(self) -> dict[str, nn.Module]:
        """Student, fake network and, where the ratio or the GAN needs one, discriminator."""
        found: dict[str, nn.Module] = {"student": self.student, "fake": self.fake}
        return found | ({"discriminator": self.discriminator} if self.adversarial else {})

    def recipes(self, default: Recipe) -> dict[str, Recipe]:
        """Two time scales; only the student is averaged."""
        fast = replace(default, lr=default.lr * self.fake_rate, ema=0.0)
        return {name: fast for name in self.players() if name != "student"}

    def state(self) -> dict[str, Tensor]:
        """The bins' means."""
        return {"level": self.level}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put the bins' means back."""
        self.level = state["level"]

    @property
    def limits(self) -> tuple[float, float]:
        """The range of times of the matching."""
        process = self.reference.denoiser.process
        if process.name == "edm":
            return self.time_low, self.time_high
        return self.time_low * process.T, 0.98 * process.T

    def _times(self, u: Tensor) -> Tensor:
        low, high = self.limits
        edm = self.reference.denoiser.process.name == "edm"
        return times.karras(u, low, high) if edm else times.uniform(u, low, high)

    def _noised(self, batch: Batch, x0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        t, eps = self._times(batch.noise.uniform()), batch.noise.normal(*x0.shape[1:])
        return self.reference.denoiser.process.add_noise(x0, t, eps), t, eps

    def _condition(self, batch: Batch) -> Tensor | None:
        return batch.y if self.student.conditional else None

    def updates(self, batch: Batch) -> Updates:
        """The student's iteration, or the fake network's and the discriminator's."""
        if (batch.clock.step + 1) % self.period == 0:
            yield from self._student(batch)
        else:
            yield from self._followers(batch)

    def _followers(self, batch: Batch) -> Updates:
        c = self._condition(batch)
        with torch.no_grad():
            made = self.generator(batch.noise.normal(*batch.x.shape[1:]), c)
        x, t, eps = self._noised(batch, made)
        yield Update("fake", denoising_error(self.fake.estimate(x, t, c), made, eps), items=len(batch))
        if self.tapped is None:
            return
        real, s, noise = self._noised(batch, batch.x)
        with torch.no_grad():
            seen, truth = self.tapped(x, t, c)[1], self.tapped(real, s, c)[1]
        theirs, own = self.discriminator(truth), self.discriminator(seen)
        loss = discriminator_loss(theirs, own)
        if self.r1_weight:
            loss = loss + self.r1_weight * self._penalty(batch, theirs, s, noise)
        right = 0.5 * ((theirs > 0).float().mean() + (own < 0).float().mean())
        yield Update("discriminator", loss, items=len(batch), logs={"discriminator accuracy": right})

    def _penalty(self, batch: Batch, logits: Tensor, s: Tensor, noise: Tensor) -> Tensor:
        """The approximate R1 penalty: how much logits move when clean real samples do (Lin et al., 2025)."""
        moved = batch.x + self.r1_noise * batch.noise.normal(*batch.x.shape[1:])
        assert self.tapped is not None
        with torch.no_grad():
            process = self.reference.denoiser.process
            features = self.tapped(process.add_noise(moved, s, noise), s, self._condition(batch))[1]
        return (logits - self.discriminator(features)).square().mean()

    def _student(self, batch: Batch) -> Updates:
        c = self._condition(batch)
        made = self.generator(batch.noise.normal(*batch.x.shape[1:]), c)
        x, t, _ = self._noised(batch, made)
        h, logs, adversarial = torch.ones_like(t), {}, made.new_zeros(())
        with torch.no_grad():
            fake = self.fake(x, t, c)
        if self.tapped is None:
            with torch.no_grad():
                real = self.reference.but(guidance=self.guidance).ask(x, t, c).x0
        else:
            real, features = self.tapped(x, t, c)
            logits = self.discriminator(features)
            adversarial = generator_loss(logits)
            ratio = yield from self._ratio(logits, t)
            h = weight(ratio, self.divergence)
            if self.divergence != "rkl":
                h = h / ((yield Mean(h)) + 1e-6)
            logs = {"ratio": ratio.mean(), "h least": h.min(), "h largest": h.max(), "loss/gan": adversarial}
        matching = surrogate(made, matching_direction(made, real, fake, h))
        yield Update("student", matching + self.gan_weight * adversarial, items=len(batch), logs=logs)

    def _ratio(self, logits: Tensor, t: Tensor) -> Any:
        """The density ratio [n], its mean made 1 in every bin of noise levels; E_q[r] = 1 at each of them."""
        ratio = clipped_ratio(logits, self.logit_clip, self.ratio_low, self.ratio_high)
        place, old = bin_of(t, *self.limits, self.bins), self.level.to(t.device)
        # `old` is read before the yield: all parts of a batch go on from the same bins
        self.level = next_bins(old, (yield Mean(bin_terms(ratio, place, self.bins))), self.memory)
        return ratio / (self.level[place] + 1e-6)

    def product(self) -> Sampler:
        """The one-step generator."""
        return self.generator

    def figures(self) -> list[dict[str, str]]:
        """The mean density ratio in every bin of noise levels, before it is made 1."""
        if not self.adversarial:
            return []
        low, high = self.limits
        names = [f"{low + (high - low) * (k + 0.5) / self.bins:.2g}" for k in range(self.bins)]
        svg = figures.histogram_bars(
            names, [("mean ratio", self.level.cpu().numpy())], "mean ratio", "density ratio"
        )
        caption = "Mean density ratio of the student's samples by time; 1 says that the discriminator is calibrated."
        return [{"title": "Density ratio", "caption": caption, "svg": svg}]

    def baseline(self, task: Task) -> Method:
        """The teacher in one step."""
        return FewSteps(steps=1)

    @classmethod
    def default_engine(cls) -> Engine:
        """2,400 iterations of AdamW, half of them the student's."""
        return generator_engine(2400, 128, optimizer="adamw", lr=1e-4, betas=(0.0, 0.99), schedule="constant")

    @classmethod
    def claims(cls) -> tuple[Claim, ...]:
        """Less mode-seeking divergences cover more than the reverse KL."""
        arms: dict[str, Method] = {
            "rkl (DMD2)": cls(divergence="rkl"),
            "js": cls(divergence="js"),
            "kl": cls(divergence="kl"),
            "sf": cls(divergence="sf"),
            "rkl without GAN (DMD)": cls(divergence="rkl", gan_weight=0.0),
        }
        beside = [("js", "rkl without GAN (DMD)"), ("js", "sf"), ("js", "kl")]
        rules = [Rule("js", "rkl (DMD2)"), Rule("kl", "rkl (DMD2)")]
        return (
            Claim(
                name="f-distill-digits",
                says="Divergences that seek modes less than the reverse KL cover more of the data: JS and forward KL "
                "against DMD2's reverse KL with the same GAN (ImageNet-64, one step: FID 1.16 with JS, 1.28 DMD2).",
                task=Coverage(),
                engine=cls.default_engine(),
                arms=arms,
                rules=[*rules, *(Rule(a, b, headline=False) for a, b in beside)],
                seeds=5,
                notes="8x8 digits by class, a teacher for each seed, one-step students, equal iterations; scored by "
                "recall (k = 3) in the features of a classifier, where the paper has FID.",
            ),
        )


@dataclass(eq=False)
class Coverage(Generation):
    """Generation, scored by recall: the share of real samples that lie among the generated ones."""

    higher_is_better = True

    @property
    def metric(self) -> str:
        """Recall (Kynkaanniemi et al., 2019, arXiv:1904.06991, eq. 2)."""
        return "recall"

    def score(self, product: nn.Module, split: str, runtime: Any) -> dict[str, Any]:
        """All distances, and on the validation split recall alone."""
        if split == "test":
            found = super().score(product, split, runtime)
            found.pop("per_sample")  # they are parts of a distance, not of recall
            return found
        noise, truth, condition = self.draw(self.score_samples, split, runtime.device)
        fake = self.generate(product, noise, condition, runtime)
        judge = self.judge
        numbers = metrics.precision_recall(judge.features(truth), judge.features(fake))
        return {"recall": numbers["recall"]}

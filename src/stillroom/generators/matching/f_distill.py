"""f-distill: one-step generators by any f-divergence between teacher and student.

What for. Distribution matching (DMD, VSD) minimises the reverse KL divergence, which drops modes. f-distill replaces
it by any f-divergence: a teacher, real data and the name of a divergence in, a one-step generator out.

The idea. The gradient of an f-divergence is the score difference of distribution matching times a weight h(r) of the
density ratio r = teacher / student, h(r) = r^2 f''(r). The ratio comes free from the discriminator that DMD2 trains
anyway: r = exp(d). It is normalised twice: E_q[r] = 1 holds at every noise level, and the mean of h is made 1, so
that the step's size stays that of DMD.

Source. Xu, Nie and Vahdat, "One-step Diffusion Models with f-Divergence Distribution Matching", 2025,
arXiv:2502.15681 (theorem 1, table 1); the order of updates and the constants as in NVIDIA's FastGen.

Deviations. From FastGen, the published re-implementation: its own rkl stops with an error (the length of a 0-d
tensor); here h = 1 exactly, so rkl is DMD2 to the bit. Its approximate R1 penalty gives the teacher the moved clean
image as it is, at the time of the noised one; here the moved image is noised as its pair is. Its moving average is
updated at every iteration; here at the student's own. Its mean ratio in a bin has 1e-6 added to the count; here
empty bins are left alone instead. The discriminator's heads are one small network for each tapped feature of the
frozen teacher, without a normalisation or an input for the time, which the features know. From the paper, for small
data and batches: logits are clipped at 3, bins remember, noise levels end at 5, the fake network and the heads learn
five times as fast as the student, and Adam's first decay is 0; the fields name the published values. chi2 is added
to the table, for its closed form.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

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
    Divergence,
    Heads,
    RatioBins,
    Tapped,
    Trace,
    approximate_r1,
    clipped_ratio,
    denoising_error,
    discriminator_loss,
    divergence_weight,
    generator_loss,
    matching_direction,
    ratio_figures,
    surrogate,
)
from stillroom.generators.parts.sampler import Plan, Sampler
from stillroom.method import Batch, Mean, Method, Update, Updates
from stillroom.optim import Recipe
from stillroom.seeds import seeded
from stillroom.task import Task


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
        divergence_weight(torch.ones(()), self.divergence)
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
        low, high = self.limits
        if low >= high:
            raise UserError(
                f"--method.time-low is {self.time_low:g} and process '{self.reference.denoiser.process.name}' is "
                "matched up to 0.98 of its time: pass less"
            )
        teacher = self.reference.denoiser
        self.fake = (teacher if teacher.learnt else self.student).copy()
        self.generator = Sampler(self.student, Plan("ddim", steps=1))
        self.real = self.reference.but(guidance=task.guidance)
        self.ratio = RatioBins(self.bins, low, high, self.memory)
        self.trace = Trace(least="least", largest="largest", accuracy="mean")
        self.tapped = Tapped(self.real, self.taps) if self.adversarial else None
        if self.tapped is not None:
            x = torch.zeros(2, *task.space.shape)
            with torch.no_grad(), seeded(seed):
                self.discriminator = Heads(self.tapped(x, torch.full((2,), low), None)[1])

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
        """The bins' means, and what the figures show."""
        return {"level": self.ratio.level, **self.trace.state()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` gave."""
        self.ratio.level = state["level"]
        self.trace.load_state(state)

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
            seen, truth = self.tapped.features(x, t, c), self.tapped.features(real, s, c)
        theirs, own = self.discriminator(truth), self.discriminator(seen)
        loss = discriminator_loss(theirs, own)
        if self.r1_weight:
            loss = loss + self.r1_weight * self._penalty(batch, theirs, s, noise)
        right = torch.cat([theirs > 0, own < 0]).float().mean(1)
        self.trace.note(batch.clock, "accuracy", right)
        yield Update("discriminator", loss, items=len(batch), logs={"discriminator accuracy": right.mean()})

    def _penalty(self, batch: Batch, logits: Tensor, s: Tensor, noise: Tensor) -> Tensor:
        """The approximate R1 penalty, of real samples that are moved and then noised as they were."""
        moved = batch.x + self.r1_noise * batch.noise.normal(*batch.x.shape[1:])
        assert self.tapped is not None
        with torch.no_grad():
            noised = self.real.denoiser.process.add_noise(moved, s, noise)
            features = self.tapped.features(noised, s, self._condition(batch))
        return approximate_r1(logits, self.discriminator(features))

    def _student(self, batch: Batch) -> Updates:
        c = self._condition(batch)
        made = self.generator(batch.noise.normal(*batch.x.shape[1:]), c)
        x, t, _ = self._noised(batch, made)
        with torch.no_grad():
            fake = self.fake(x, t, c)
        if self.tapped is None:
            with torch.no_grad():
                real = self.real.ask(x, t, c).x0
            loss = surrogate(made, matching_direction(made, real, fake))
            yield Update("student", loss, items=len(batch))
            return
        real, features = self.tapped(x, t, c)
        logits = self.discriminator(features)
        adversarial = generator_loss(logits)
        h, logs = yield from self._weight(batch, logits, t)
        matching = surrogate(made, matching_direction(made, real, fake, h))
        logs |= {"loss/matching": matching, "loss/gan": adversarial}
        yield Update("student", matching + self.gan_weight * adversarial, items=len(batch), logs=logs)

    def _weight(self, batch: Batch, logits: Tensor, t: Tensor) -> Any:
        """h [n] of the normalised ratio, its mean made 1 over the whole step; and what is logged of it."""
        ratio = clipped_ratio(logits, self.logit_clip, self.ratio_low, self.ratio_high)
        ratio = yield from self.ratio(ratio, t)
        h = divergence_weight(ratio, self.divergence)
        logs = {"ratio": ratio.mean(), "h/mean before": h.mean()}
        if self.divergence != "rkl":  # whose h is 1: the division would move its last bit
            h = h / ((yield Mean(h)) + 1e-6)
            for name in ("least", "largest"):
                self.trace.note(batch.clock, name, h)
        return h, logs | {"h/least": h.min(), "h/largest": h.max()}

    def product(self) -> Sampler:
        """The one-step generator."""
        return self.generator

    def figures(self) -> list[dict[str, str]]:
        """The ratio's calibration, the range of the weights over the run, and the discriminator's accuracy."""
        return ratio_figures(self.ratio, self.trace) if self.adversarial else []

    @classmethod
    def default_engine(cls) -> Engine:
        """2,400 iterations of AdamW, half of them the student's."""
        return generator_engine(2400, 128, optimizer="adamw", lr=1e-4, betas=(0.0, 0.99), schedule="constant")

    @classmethod
    def claims(cls) -> tuple[Claim, ...]:
        """Less mode-seeking divergences cover more than the reverse KL."""
        says = (
            "Divergences that seek modes less than the reverse KL cover more of the data: JS and forward KL against "
            "DMD2's reverse KL with the same GAN (ImageNet-64, one step: FID 1.16 with JS, 1.28 DMD2)."
        )
        digits = (
            "8x8 digits by class, a teacher for each seed, one-step students, equal iterations; scored by recall "
            "(k = 3) in the features of a classifier, where the paper has FID."
        )
        modes = (
            "Eight Gaussians in the plane whose shares fall from 30 to 1, unconditional, a teacher for each seed; "
            "scored by how far the shares of the modes are from the law's, where the paper has FID."
        )
        return (
            cls._claim("f-distill-digits", says, Coverage(), digits),
            cls._claim("f-distill-uneven", says, ModeShares(), modes),
        )

    @classmethod
    def _claim(cls, name: str, says: str, task: Generation, notes: str) -> Claim:
        arms: dict[str, Method] = {
            "rkl (DMD2)": cls(divergence="rkl"),
            "js": cls(divergence="js"),
            "kl": cls(divergence="kl"),
            "sf": cls(divergence="sf"),
            "rkl without GAN (DMD)": cls(divergence="rkl", gan_weight=0.0),
        }
        beside = [("js", "rkl without GAN (DMD)"), ("js", "sf"), ("js", "kl")]
        rules = [Rule("js", "rkl (DMD2)"), Rule("kl", "rkl (DMD2)")]
        rules += [Rule(a, b, headline=False) for a, b in beside]
        return Claim(name, says, task, cls.default_engine(), arms, rules, seeds=5, notes=notes)


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
        if self.samples.images:
            truth, fake = self.judge.features(truth), self.judge.features(fake)
        return {"recall": metrics.precision_recall(truth, fake)["recall"]}


@dataclass(eq=False)
class ModeShares(Generation):
    """Generation in the plane, scored by how far the modes' shares are from the law's, in [0, 1]."""

    data: str = "uneven-gaussians"
    """A law with modes: uneven-gaussians, or eight-gaussians."""
    conditional: bool = False
    """Condition on the data's labels, which are the modes themselves."""
    teacher: str = "mlp:128x3"
    """As the base has it."""

    @property
    def metric(self) -> str:
        """Total variation distance between the modes' shares."""
        return "mode_distance"

    def score(self, product: nn.Module, split: str, runtime: Any) -> dict[str, Any]:
        """All distances, and on the validation split the shares' alone."""
        if split == "test":
            found = super().score(product, split, runtime)
            found.pop("per_sample")  # they are parts of another distance
            return found
        noise, _, condition = self.draw(self.score_samples, split, runtime.device)
        fake = self.generate(product, noise, condition, runtime)
        assert self.samples.modes is not None
        centres, shares = self.samples.modes
        return {"mode_distance": metrics.mode_distance(metrics.mode_counts(fake, centres), shares)}

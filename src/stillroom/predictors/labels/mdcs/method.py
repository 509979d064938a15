"""MDCS, the single network that it is held against, and repeated training (Zhao et al., arXiv:2308.09922)."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from stillroom.engine import Engine
from stillroom.errors import UserError, require
from stillroom.method import Batch, Clock, Fit, Mean, Method, Result, Update, Updates
from stillroom.models.wrapping import describe
from stillroom.optim import Recipe
from stillroom.predictors.classification import Classification
from stillroom.predictors.labels.mdcs.losses import adjustment, confident, consistency_loss, diversity_loss
from stillroom.predictors.labels.mdcs.repeated import Members
from stillroom.predictors.labels.mdcs.task import LongTailed, class_counts
from stillroom.predictors.parts.branches import Branched, branch
from stillroom.predictors.parts.views import Kind, Views, weak_and_strong
from stillroom.seeds import seed_of

if TYPE_CHECKING:
    from stillroom.claim import Claim
    from stillroom.task import Task

EXPERT = 43
"""Keeps the seeds of the experts' weights apart from all others."""


@dataclass(eq=False)
class MDCS(Method):
    """Diverse experts with consistency self-distillation (Zhao et al., ICCV 2023, arXiv:2308.09922, section 3).

    L = sum_k CE(softmax(z^k + lambda_k log n), y) + eta min(epoch / E_w, 1) sum_k 1 / |I_k| sum_{b in I_k}
    tau^2 KL(sg softmax(z~^k(x_weak) / tau) || softmax(z~^k(x_strong) / tau)). The answer is the mean of the z^k.
    """

    name: ClassVar[str] = "mdcs"
    uses_teacher: ClassVar[bool] = False

    exponents: tuple[float, ...] = (-0.5, 1.0, 2.5)
    """Exponent lambda of the class counts, one an expert: below 1 it favours common classes, above 1 rare ones."""
    eta: float = 0.6
    """Weight of the consistency loss, >= 0."""
    ramp: float = 0.05
    """Share of the epochs over which that weight rises to eta, in [0, 1] (published: 20 of 400)."""
    temperature: float = 1.0
    """Temperature tau of the consistency loss, > 0."""
    sampling: bool = True
    """Learn consistency from the samples whose weak view the expert gets right; False, an ablation: from all."""
    width: float = 0.75
    """Share of the student's channels after the cut that each expert has, in (0, 1], where it can be narrowed."""
    cut: str = ""
    """Module path of the last part that the experts share; empty: all but the last two stages of known networks."""
    scale: float = 16.0
    """Scale s of the cosine classifiers, > 0 (published: 30, for hundreds of epochs)."""
    keep_weights: bool = False
    """Begin the experts with the student's own weights, for one that is pretrained; the stem has them anyway."""
    augmentation: Kind = "small"
    """Weak and strong views: `small`, `small-flip`, `auto` (AutoAugment, as on CIFAR), `rand` (as on ImageNet)."""

    def check(self) -> None:
        """See the ranges of the fields."""
        super().check()
        if not self.exponents:
            raise UserError("--method.exponents is empty: pass one an expert, as -0.5 1 2.5")
        for exponent in self.exponents:
            require("--method.exponents", exponent, -10, 10)
        require("--method.eta", self.eta, 0)
        require("--method.ramp", self.ramp, 0, 1)
        for name in ("temperature", "scale"):
            require(f"--method.{name}", getattr(self, name), 0, ends="(]")
        require("--method.width", self.width, 0, 1, ends="(]")

    def bind(self, task: Task, seed: int) -> None:
        """Branch the student, and learn the class counts."""
        if not isinstance(task, Classification):
            raise UserError(
                f"{self.name} branches classifiers of images, not a {type(task).__name__}: pass task=LongTailed(...)"
            )
        if task.mixup or task.cutmix:
            raise UserError(
                f"{self.name} asks which samples are right, and mixed ones have no class: pass --task.mixup 0 "
                "--task.cutmix 0"
            )
        weak_and_strong(self.augmentation, task.images.shape)
        seeds = [seed_of(seed, EXPERT, number) for number in range(len(self.exponents))]
        self.student: nn.Module = self._branched(task, seed, seeds)
        if not isinstance(task, LongTailed) and describe(self.student) is None:
            raise UserError(
                f"{self.name} cannot keep branches of a network of your own for a {type(task).__name__}: pass "
                "task=LongTailed(...)"
            )
        self.adjustment = adjustment(class_counts(task), self.exponents)

    def _branched(self, task: Classification, seed: int, seeds: list[int]) -> Branched:
        return branch(
            task.make_student(seed),
            seeds,
            task.example(),
            self.cut,
            self.width,
            self.scale,
            self.keep_weights,
        )

    def source(self, task: Task) -> Views:
        """Each training image as a weak and a strong view."""
        assert isinstance(task, Classification)
        images = task.images
        views = weak_and_strong(self.augmentation, images.shape, images.name)
        return Views(task.train(), views, images.mean, images.std)

    def updates(self, batch: Batch) -> Updates:
        """Both views in one forward pass, so that they share the statistics of their normalisation."""
        count, views = batch.x.shape[:2]
        adjusted = self._adjusted(batch.x.transpose(0, 1).flatten(0, 1))
        diversity = diversity_loss(adjusted, batch.y.repeat(views))
        weak, strong = adjusted[:count], adjusted[count : 2 * count]
        right = confident(weak, batch.y)
        chosen = right if self.sampling else torch.ones_like(right)
        shares = yield Mean(chosen.float())
        consistency = consistency_loss(weak, strong, chosen, shares, self.temperature)
        loss = diversity + self.weight(batch.clock) * consistency
        logs = {"loss/diversity": diversity, "loss/consistency": consistency, "right": right.float().mean()}
        yield Update("student", loss, items=count, logs=logs)

    def _adjusted(self, x: Tensor) -> Tensor:
        logits = self.student(x, apart=True)
        return logits + self.adjustment.to(logits.device)

    def weight(self, clock: Clock) -> float:
        """eta min(epoch / E_w, 1), with epochs counted from 1."""
        ramp = self.ramp * clock.epochs
        return self.eta * (min((clock.epoch + 1) / ramp, 1.0) if ramp > 0 else 1.0)

    def baseline(self, task: Task) -> Method:
        """One network of the student's full width, on the same views, with logit adjustment alone."""
        return LogitAdjustment(scale=self.scale, augmentation=self.augmentation)

    @classmethod
    def default_task(cls) -> LongTailed:
        """Digits, 75 to 3 a class, and a small residual network."""
        return LongTailed()

    @classmethod
    def default_engine(cls) -> Engine:
        """80 epochs of SGD, batches of 64 images."""
        return Engine(epochs=80, batch_size=64, recipe=Recipe(lr=0.05), evaluate_every=5)

    @classmethod
    def claims(cls) -> tuple[Claim, ...]:
        """Rare classes, specialisation, the ensemble, variance."""
        from stillroom.predictors.labels.mdcs import claims

        return claims.all_claims()


@dataclass(eq=False)
class LogitAdjustment(MDCS):
    """One network trained on its logits plus lambda log n (Menon et al., ICLR 2021, arXiv:2007.07314, eq. 10).

    MDCS with one expert of full width and no consistency; lambda 1 is the balanced softmax (Ren et al., NeurIPS 2020,
    arXiv:2007.10740), lambda 0 plain cross-entropy.
    """

    name: ClassVar[str] = "logit-adjustment"
    listed: ClassVar[bool] = False
    role: ClassVar[str] = "one network with logit adjustment"

    exponents: tuple[float, ...] = (1.0,)
    """Exponent lambda of the class counts; one alone."""
    eta: float = 0.0
    """Weight of the consistency loss, >= 0."""
    width: float = 1.0
    """Not used: there is one branch, of full width."""


@dataclass(eq=False)
class RepeatedMDCS(MDCS):
    """MDCS trained several times, to see how its predictions vary (Zhao et al., arXiv:2308.09922, section 4).

    The product is the mean of the models; its score says their variance, E_{x, c} Var_r p_r(c | x).
    """

    name: ClassVar[str] = "mdcs-repeated"
    listed: ClassVar[bool] = False

    models: int = 3
    """Models that are trained apart, on the same data, >= 2."""

    def check(self) -> None:
        """See the ranges of the fields."""
        super().check()
        require("--method.models", self.models, 2)

    def run(self, task: Task, fit: Fit) -> Result:
        """A stage a model, each with a seed of its own."""
        options: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(MDCS)}
        made = [fit(MDCS(**options), stage=f"model-{number + 1}") for number in range(self.models)]
        members = Members([one.product for one in made])
        return Result(members, fit.seconds, sum(one.steps for one in made))

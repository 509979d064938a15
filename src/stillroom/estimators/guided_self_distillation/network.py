"""GT-SD for networks: the estimate of alpha from two trainings a round (arXiv:2102.13088, section 4)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stillroom.claim import Claim, Rule
from stillroom.data import ImageData
from stillroom.engine import Engine
from stillroom.errors import UserError, require
from stillroom.estimators.guided_self_distillation.closed_form import Allowance
from stillroom.estimators.guided_self_distillation.figures import curves, errors
from stillroom.estimators.guided_self_distillation.formulas import best_mix, mixing_loss
from stillroom.method import Batch, Fit, Method, Result, Update, Updates
from stillroom.optim import Recipe
from stillroom.predictors.classification import Classification, stratified
from stillroom.predictors.parts.label_noise import Relabelled, flipped
from stillroom.runtime import Runtime
from stillroom.seeds import seed_of
from stillroom.task import Task
from stillroom.teacher import Teacher


def sum_of_norms(module: nn.Module) -> Tensor:
    """The sum over the trained parameter tensors of their Euclidean norms, not squared: a scalar."""
    return torch.stack([p.norm() for p in module.parameters() if p.requires_grad]).sum()


def mixed_loss(logits: Tensor, y: Tensor, teacher: Tensor | None, mix: float) -> Tensor:
    """mix MSE(softmax(z), y) + (1 - mix) MSE(softmax(z), softmax(v)), means over batch and classes.

    Logits z and v [n, C]; y int64 [n] or soft [n, C]; without teacher mix counts as 1. No gradient for v.
    """
    share = logits.softmax(-1)
    own = F.mse_loss(share, y if y.is_floating_point() else F.one_hot(y, logits.shape[-1]).to(share.dtype))
    if teacher is None:
        return own
    return mix * own + (1 - mix) * F.mse_loss(share, teacher.detach().softmax(-1))


@dataclass(eq=False)
class MixedTargets(Method):
    """One training (Borup and Andersen, 2021, arXiv:2102.13088, section 4): labels and the network before, mixed."""

    name: ClassVar[str] = "mixed-targets"
    listed: ClassVar[bool] = False
    uses_teacher: ClassVar[bool] = False

    mix: float = 1.0
    """Weight of the labels."""
    norm_weight: float = 1e-4
    """Weight of the sum of norms."""
    before: Any = None
    """The network whose outputs are the other target; None: labels alone."""

    def bind(self, task: Task, seed: int) -> None:
        """A fresh student, and a frozen copy of the network before, which is no part of the student."""
        super().bind(task, seed)
        if self.before is not None:
            self.teacher = Teacher(copy.deepcopy(self.before))

    def updates(self, batch: Batch) -> Updates:
        """One step; the teacher sees the batch that the student sees, augmented as it is."""
        teacher = None if self.before is None else self.teacher(batch).logits
        loss = mixed_loss(self.student(batch.x), batch.y, teacher, self.mix)
        norms = sum_of_norms(self.student)
        logs = {"loss/targets": loss, "norms": norms}
        yield Update("student", loss + self.norm_weight * norms, items=len(batch), logs=logs)


@dataclass(eq=False)
class GuidedSelfDistillationNet(Method):
    """Networks distilled into fresh copies of themselves (Borup and Andersen, 2021, arXiv:2102.13088, section 4).

    Round t trains g on the probabilities of f_{t-1} alone, estimates alpha on the validation split as if the fit were
    linear in its targets, <y - g, f_1 - g> / ||f_1 - g||^2 over probabilities, and trains f_t with
    alpha MSE(p, y) + (1 - alpha) MSE(p, p_{t-1}): two trainings a round instead of one for each alpha of a grid.
    """

    name: ClassVar[str] = "guided-self-distillation-net"
    uses_teacher: ClassVar[bool] = False
    role: ClassVar[str] = "the distilled network"

    rounds: int = 4
    """Rounds of distillation after the first training, >= 0 (the paper's five steps are four rounds)."""
    mix: Literal["estimated"] | float = "estimated"
    """Weight of the labels, alpha, in [0, 1]: estimated in each round, or fixed, at one training a round."""
    shortcut: float = 0.05
    """At an estimate of at most this, the network that was trained without labels is kept, in [0, 1]."""
    norm_weight: float = 1e-4
    """Weight of the sum of the parameter tensors' norms, >= 0."""
    keep: Literal["last", "best"] = "last"
    """The network to keep: of the last round, or of the round with the smallest error on the validation split."""

    def check(self) -> None:
        """See the ranges of the fields."""
        super().check()
        require("--method.rounds", self.rounds, 0)
        require("--method.shortcut", self.shortcut, 0, 1)
        require("--method.norm-weight", self.norm_weight, 0)
        if not isinstance(self.mix, str):
            require("--method.mix", self.mix, 0, 1)

    def bind(self, task: Task, seed: int) -> None:
        """Make a student, to see that it can be made; UserError where alpha could not be estimated."""
        super().bind(task, seed)
        assert isinstance(task, Classification)
        if task.images.validation.labels is None:
            raise UserError("the validation split has no labels to estimate alpha from: pass labelled data")

    def run(self, task: Task, fit: Fit) -> Result:
        """The first training, then the rounds, each in stages of its own; a killed run goes on in its stage."""
        assert isinstance(task, Classification)
        return _Rounds(self, task, fit).run()

    def figures(self) -> list[dict[str, str]]:
        """The error over rounds, and against alpha."""
        return self.__dict__.get("pictures", [])

    def baseline(self, task: Task) -> Method | None:
        """The network after the first training, which is that of the first stage."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        return FirstNetwork(**own | {"rounds": 0})

    def quick(self) -> Self:
        """One round."""
        return replace(self, rounds=min(self.rounds, 1))

    @classmethod
    def default_task(cls) -> Classification:
        """The 8x8 digits and a perceptron."""
        return Classification(teacher="none", student="mlp:64")

    @classmethod
    def default_engine(cls) -> Engine:
        """Adam at 1e-3, batches of 64, no other weight decay."""
        recipe = Recipe("adam", lr=1e-3, weight_decay=0.0, schedule="constant")
        return Engine(epochs=100, batch_size=64, evaluate_every=10, recipe=recipe)

    @classmethod
    def claims(cls) -> tuple[Claim, ...]:
        """The estimate against a grid, with wrong labels."""
        return (flips_claim(),)


class _Rounds:
    """One run of the rounds: the trainings, the estimates and what they say."""

    def __init__(self, method: GuidedSelfDistillationNet, task: Classification, fit: Fit) -> None:
        self.method, self.task, self.fit = method, task, fit
        stages = 1 + method.rounds * (2 if method.mix == "estimated" else 1)
        limit = fit.engine.steps
        self.changes = {"steps": max(1, limit // stages)} if limit else {}
        self.done = 0
        self.runtime = Runtime(fit.engine.precision)
        self.parabolas: list[list[float]] = []
        self.free: list[float] = []
        self.used: list[float] = []

    def train(self, stage: str, mix: float, before: nn.Module | None) -> nn.Module:
        """A fresh network, trained in its own stage."""
        method = MixedTargets(mix, self.method.norm_weight, before)
        result = self.fit(method, stage, **self.changes)
        self.done += result.steps
        return result.product

    def says(self, network: nn.Module) -> tuple[Tensor, Tensor]:
        """Probabilities and one-hot labels [m, C] of the validation split, float64."""
        logits, y = self.runtime.predict(network, self.task.images.validation)
        assert y is not None
        return logits.double().softmax(-1), F.one_hot(y, logits.shape[-1]).double()

    def run(self) -> Result:
        """All rounds; the network to keep, with alpha and the validation error of each round."""
        first = network = self.train("first", 1.0, None)
        networks = [network]
        for t in range(1, self.method.rounds + 1):
            made = self.round(t, first, networks[-1])
            if made is None:
                break
            networks.append(made)
        found = [float(mixing_loss(y, p, p, 1.0)) for p, y in map(self.says, networks)]
        extra = {f"validation error {t}": error for t, error in enumerate(found)}
        extra |= {f"mix {t}": mix for t, mix in enumerate(self.used, 1)}
        extra |= {f"free mix {t}": mix for t, mix in enumerate(self.free, 1)}
        self.method.__dict__["pictures"] = self.pictures(found)
        best = found.index(min(found)) if self.method.keep == "best" else -1
        return Result(networks[best], self.fit.seconds, self.done, extra)

    def round(self, t: int, first: nn.Module, before: nn.Module) -> nn.Module | None:
        """The network of round t; None where every alpha would give the same one."""
        if not isinstance(self.method.mix, str):
            self.used.append(self.method.mix)
            return self.train(f"round-{t}", self.method.mix, before)
        alone = self.train(f"round-{t}-without-labels", 0.0, before)
        (ours, y), (theirs, _) = self.says(first), self.says(alone)
        free = best_mix(y, ours, theirs)
        if free is None:
            return None
        mix = min(1.0, max(0.0, free))
        ends = [float(mixing_loss(y, ours, theirs, a)) for a in (0.0, 0.5, 1.0)]
        slope, bend = 4 * ends[1] - 3 * ends[0] - ends[2], 2 * (ends[0] + ends[2]) - 4 * ends[1]
        self.parabolas.append([ends[0], slope, bend])
        self.free.append(free)
        self.used.append(0.0 if mix <= self.method.shortcut else mix)
        return alone if mix <= self.method.shortcut else self.train(f"round-{t}-mixed", mix, before)

    def pictures(self, found: list[float]) -> list[dict[str, str]]:
        """The error over rounds, and against alpha where it was estimated."""
        made = [errors([("this run", found)])] if len(found) > 1 else []
        return [*made, curves(self.parabolas[:3], self.free[:3], self.used[:3])] if self.free else made


@dataclass(eq=False)
class FirstNetwork(GuidedSelfDistillationNet):
    """The network before any distillation (Borup and Andersen, 2021, arXiv:2102.13088, section 4, step 1)."""

    name: ClassVar[str] = "first-network"
    listed: ClassVar[bool] = False
    role: ClassVar[str] = "the network after the first training"

    rounds: int = 0
    """None."""

    def baseline(self, task: Task) -> Method | None:
        """None: this is what the method is compared with."""
        return None


# -- wrong labels -----------------------------------------------------------------------------------------------


@dataclass(eq=False)
class FlippedLabels(Classification):
    """Classify images some of whose training labels are wrong; those of the validation and test splits are right."""

    label_flips: float = 0.2
    """Share of training labels that are another class, in [0, 1)."""
    validation_samples: int | None = None
    """Images of the validation split to use, the same number a class where possible; None for all."""

    @property
    def images(self) -> ImageData:
        """The data, with wrong training labels."""
        images = super().images
        key = (self.label_flips, self.validation_samples, self.subset_seed, images.fingerprint)
        held = self.__dict__.setdefault("_flipped", {})
        if key not in held:
            held[key] = self._with_flips(images)
        return held[key]

    def _with_flips(self, images: ImageData) -> ImageData:
        labels, held = images.train.labels, images.validation
        assert labels is not None and held.labels is not None
        wrong = flipped(labels, len(images.classes), self.label_flips, seed_of(self.subset_seed, 20))
        if self.validation_samples is not None:
            held = held.subset(stratified(held.labels, self.validation_samples, seed_of(self.split_seed, 21)))
        mark = f"{images.fingerprint}-{self.label_flips}-{self.subset_seed}"
        return replace(images, train=Relabelled(images.train, wrong), validation=held, fingerprint=mark)

    def check(self, seed: int, teacher: bool) -> None:
        """As without flips, and their share."""
        require("--task.label-flips", self.label_flips, 0, 1, ends="[)")
        super().check(seed, teacher)

    def score(self, product: nn.Module, split: str, runtime: Runtime) -> dict[str, Any]:
        """As without flips, with a claim's allowance counted in."""
        scores = super().score(product, split, runtime)
        return scores | {"accuracy": scores["accuracy"] + getattr(product, "allowance", 0.0)}

    def quick(self) -> Classification:
        """A hundred digits."""
        return super().quick().but(validation_samples=None)


def flips_claim() -> Claim:
    """One round with the estimate against a grid of fixed alphas, where a fifth of the labels is wrong."""
    own = GuidedSelfDistillationNet(rounds=1)
    grid: Mapping[str, Method] = {
        f"alpha {mix:g}": own.variant(mix=mix) for mix in (0.0, 0.25, 0.5, 0.75, 1.0)
    }
    arms: dict[str, Method] = {"first network": FirstNetwork(), **grid, "estimated": own}
    arms["estimated plus 0.5 points"] = Allowance(own, 0.005)
    return Claim(
        name="guided-self-distillation-net-mnist",
        says="One estimate of alpha, from two trainings, is within half a point of accuracy of every alpha of a grid.",
        task=FlippedLabels(
            data="mnist",
            teacher="none",
            student="mlp:128",
            image_size=14,
            student_samples=2000,
            validation_samples=1000,
        ),
        engine=replace(own.default_engine(), epochs=30),
        arms=arms,
        rules=(
            *(Rule("estimated plus 0.5 points", arm) for arm in grid),
            Rule("estimated", "first network", headline=False),
            *(Rule("estimated", arm, headline=False) for arm in grid),
        ),
        seeds=5,
        data="mnist",
        notes="MNIST at 14x14; 2,000 training images, a fifth of whose labels is another class, and 1,000 with right "
        "labels from which alpha is estimated; one round; a perceptron, MSE on its probabilities. 'plus 0.5 points' "
        "counts the accuracy half a point higher: to beat an arm is then to be within half a point of it.",
    )

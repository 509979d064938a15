"""Defensive distillation and the audit of what is there: the methods, and the claims."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor
from torch.nn import functional as F

from stillroom.audits.fgsm_cw_defensive_distillation.robustness import Robustness, adam
from stillroom.claim import Claim, Rule
from stillroom.engine import Engine
from stillroom.errors import UserError, require
from stillroom.method import Batch, Fit, Method, Result, Update, Updates
from stillroom.optim import Recipe
from stillroom.predictors.baselines import Plain
from stillroom.predictors.classification import Classification
from stillroom.predictors.parts.losses import soft_cross_entropy
from stillroom.task import Task
from stillroom.teacher import Teacher
from stillroom.teaching import train_once


def soft_labels(teacher: Tensor, temperature: float) -> Tensor:
    """q = softmax(teacher / temperature), [n, C] (Papernot et al., IEEE S&P 2016, arXiv:1511.04508, eq. 1)."""
    return (teacher / temperature).softmax(-1)


def at_temperature(logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    """CE(softmax(logits / temperature), target), mean over the batch (arXiv:1511.04508, section IV).

    Logits [n, C]; target class indices [n] or probabilities [n, C]; temperature > 0. The gradient with respect to an
    image's logits is (softmax(logits / temperature) - target) / temperature / n.
    """
    if target.is_floating_point():
        return soft_cross_entropy(logits / temperature, target)
    return F.cross_entropy(logits / temperature, target)


@dataclass(eq=False)
class _AtTemperature(Method):
    """What teacher and student share: a loss whose logits are divided by T, in its size fitted to the optimizer."""

    uses_teacher: ClassVar[bool] = False

    temperature: float = 100.0
    """T > 0 of teacher and student in training; the student is used at 1."""

    def check(self) -> None:
        """See the ranges of the fields."""
        super().check()
        require("--method.temperature", self.temperature, 0, ends="(]")

    def recipes(self, default: Recipe) -> dict[str, Recipe]:
        """The Engine's own; and see whether its steps grow with the gradient, which has a factor 1 / T."""
        self.scale = self.temperature if default.optimizer == "sgd" else 1.0
        return {}

    def update(self, logits: Tensor, target: Tensor, batch: Batch) -> Update:
        """One step on `target` at the temperature."""
        loss = at_temperature(logits, target, self.temperature)
        return Update("student", self.scale * loss, items=len(batch))


@dataclass(eq=False)
class TeacherAtTemperature(_AtTemperature):
    """The first stage: a network trained on the labels with CE(softmax(Z / T), y) (arXiv:1511.04508, section IV)."""

    name: ClassVar[str] = "teacher-at-temperature"
    listed: ClassVar[bool] = False

    def bind(self, task: Task, seed: int) -> None:
        """The task's own teacher's architecture; where it has none, the student's."""
        assert isinstance(task, Classification)
        if task.teacher != "none":
            given = {key: value for key, value in task.given.items() if key == "data"}
            task = replace(task, student=task.teacher)
            task.given = given
        super().bind(task, seed)

    def updates(self, batch: Batch) -> Updates:
        """One step on the labels."""
        yield self.update(self.student(batch.x), batch.y, batch)


@dataclass(eq=False)
class DefensiveDistillation(_AtTemperature):
    """Defensive distillation (Sarkar et al., 2024, arXiv:2404.04245; Papernot et al., arXiv:1511.04508, section IV).

    A teacher is trained on the labels at temperature T; its softmax at T on the same images is what a fresh student is
    trained on, at T as well; the student is used at temperature 1. A teacher with weights is taken as trained at T.
    """

    name: ClassVar[str] = "defensive-distillation"

    def bind(self, task: Task, seed: int) -> None:
        """Take the student; see that labels are not mixed, which the soft labels would not know."""
        if getattr(task, "mixup", 0) or getattr(task, "cutmix", 0):
            raise UserError(
                "defensive distillation's labels come from its teacher and --task.mixup or --task.cutmix is above 0: "
                "pass 0 for both"
            )
        super().bind(task, seed)

    def run(self, task: Task, fit: Fit) -> Result:
        """Teacher, then student; the student starts and sees its data as a plain one would."""
        assert isinstance(task, Classification)
        brought = "teacher" in task.given or bool(task.weights)
        halves: dict[str, Any] = {}
        if brought:
            self.teacher = task.make_teacher()
        else:
            # Of a number of steps each stage has its share; epochs are each stage's own.
            halves = {"steps": (fit.engine.steps + 1) // 2}
            stage = TeacherAtTemperature(self.temperature)
            self.teacher = Teacher(fit(stage, "teacher", **halves).product)
        result = fit(self, **halves)
        return Result(result.product, fit.seconds, result.steps)

    def updates(self, batch: Batch) -> Updates:
        """One step on the teacher's soft labels."""
        target = soft_labels(self.teacher(batch).logits.float(), self.temperature)
        yield self.update(self.student(batch.x), target, batch)

    @classmethod
    def default_task(cls) -> Robustness:
        """The 8x8 digits, all 800 of them."""
        return Robustness()

    @classmethod
    def default_engine(cls) -> Engine:
        """Adam at 1e-3; each look at the validation split attacks it, so there are two."""
        return Engine(epochs=60, batch_size=50, recipe=adam(), evaluate_every=30)

    @classmethod
    def claims(cls) -> tuple[Claim, ...]:
        """FGSM seems to be withstood, C&W is not: on the digits and on MNIST."""
        return (
            _withstands_fgsm("digits", cls.default_task(), cls.default_engine(), ""),
            _not_carlini("digits", cls.default_task(), cls.default_engine(), ""),
            _withstands_fgsm("mnist", mnist_task(), mnist_engine(), "mnist"),
            _not_carlini("mnist", mnist_task(), mnist_engine(), "mnist"),
        )


@dataclass(eq=False)
class AsTheTeacherIs(Method):
    """The teacher, attacked beside the network that was distilled from it (arXiv:2404.04245, the evaluation)."""

    name: ClassVar[str] = "teacher-as-it-is"
    listed: ClassVar[bool] = False
    uses_teacher: ClassVar[bool] = False
    uses_engine: ClassVar[bool] = False
    role: ClassVar[str] = "the teacher that it was distilled from"

    def run(self, task: Task, fit: Fit) -> Result:
        """Hand on the teacher."""
        return Result(copy.deepcopy(task.make_teacher().module), 0.0)


@dataclass(eq=False)
class RobustnessAudit(Method):
    """Attack a classifier as it is: FGSM, PGD, C&W and the masking diagnosis (Sarkar et al., 2024, arXiv:2404.04245;
    Carlini and Wagner, S&P 2017, arXiv:1608.04644, section VI).

    The classifier is the student of `distill(...)`, or the one in the folder --task.audited; the teacher, where one
    with weights is given, is attacked beside it and FGSM made on it is tried too. Without a classifier a plain one is
    trained, once.
    """

    name: ClassVar[str] = "robustness-audit"
    uses_teacher: ClassVar[bool] = False
    uses_engine: ClassVar[bool] = False

    def run(self, task: Task, fit: Fit) -> Result:
        """Hand on the classifier; the task's score is the audit."""
        assert isinstance(task, Robustness)
        network = task.trained()
        if network is not None:
            return Result(network, 0.0)
        job = task.undistilled_job()
        assert job is not None
        network, taught = train_once(replace(job, seed=fit.seed))
        return Result(network, taught.seconds)

    def baseline(self, task: Task) -> Method | None:
        """The teacher, where there is one with weights."""
        return AsTheTeacherIs() if isinstance(task, Robustness) and task.has_teacher else None

    @classmethod
    def default_task(cls) -> Robustness:
        """The 8x8 digits and a plain network."""
        return Robustness()

    @classmethod
    def default_engine(cls) -> Engine:
        """Not used."""
        return Engine(recipe=adam())


def arms() -> dict[str, Method]:
    """Plain training, the defence, and distillation at temperature 1: soft labels without the temperature."""
    return {
        "plain": Plain(),
        "defensive T=100": DefensiveDistillation(),
        "self-distillation T=1": DefensiveDistillation(temperature=1.0),
    }


RULES = (
    Rule("defensive T=100", "plain"),
    Rule("defensive T=100", "self-distillation T=1"),
    Rule("self-distillation T=1", "plain", headline=False),
)


def mnist_task() -> Robustness:
    """MNIST, 20,000 of its images."""
    return Robustness(student_samples=20_000, teacher_epochs=6, teacher_batch_size=128)


def mnist_engine() -> Engine:
    """Six epochs of Adam at 1e-3: two thirds of the steps that three epochs of all images are."""
    return Engine(epochs=6, batch_size=128, recipe=adam(), evaluate_every=0)


NOTES = (
    "Teacher and student have the same small convolutional network (the report: ResNet-101 and ResNeXt50 on CIFAR-10), "
    "trained with Adam at 1e-3; pixels in [0, 1], epsilon 0.2; attacks on up to 2,000 test images. "
)


def _withstands_fgsm(where: str, task: Robustness, engine: Engine, data: str) -> Claim:
    return Claim(
        name=f"defensive-distillation-{where}",
        says="A defensively distilled network withstands FGSM where a plain one does not, and it is the temperature "
        "that does it, not the soft labels (accuracy under FGSM at epsilon 0.2).",
        # The other claim is about C&W; here few images of it will do, and none of what is transferred.
        task=task.but(decides="fgsm_accuracy", carlini_samples=8, transfer=False),
        engine=engine,
        arms=arms(),
        rules=RULES,
        seeds=5,
        data=data,
        notes=NOTES,
    )


def _not_carlini(where: str, task: Robustness, engine: Engine, data: str) -> Claim:
    return Claim(
        name=f"defensive-distillation-carlini-wagner-{where}",
        says="A defensively distilled network does not withstand C&W: the success of C&W less that of FGSM, which is "
        "what FGSM alone hides, is larger for it than for a plain network.",
        task=task.but(decides="carlini_wagner_gain"),
        engine=engine,
        arms=arms(),
        rules=RULES,
        seeds=5,
        data=data,
        notes=NOTES + "128 images, kappa 0, 300 steps, 6 constants.",
    )

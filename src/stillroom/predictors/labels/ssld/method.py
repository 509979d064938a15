"""SSLD as a method: its options, its stages, what it shows."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stillroom.claim import Claim
from stillroom.data import Source
from stillroom.engine import Engine
from stillroom.errors import UserError, require
from stillroom.method import Batch, Fit, Method, Result, Update, Updates
from stillroom.optim import Recipe
from stillroom.plan import Plan
from stillroom.predictors.labels.ssld.mining import Mined, Selection, mine
from stillroom.predictors.labels.ssld.pictures import pool_figures, stage_figure
from stillroom.predictors.labels.ssld.task import PooledClassification
from stillroom.predictors.parts.classifier import last_layer
from stillroom.predictors.parts.losses import forward_kl, mixture_js, soft_cross_entropy, symmetric_kl
from stillroom.predictors.parts.pool import Union
from stillroom.runtime import Runtime
from stillroom.task import Task

Loss = Literal["symmetric-kl", "kl", "ce", "js-mixture"]


def agreement_loss(student: Tensor, teacher: Tensor, loss: Loss = "symmetric-kl") -> Tensor:
    """How far the student's softmax is from the teacher's, at temperature 1, mean over the batch; logits [n, C].

    "symmetric-kl" is SSLD's: 1/2 KL(p || q) + 1/2 KL(q || p), p the teacher's softmax and q the student's. The others
    are its ablations: KL(p || q), -sum p log q, and the Jensen-Shannon divergence proper.
    """
    if loss == "kl":
        return forward_kl(student, teacher)
    if loss == "ce":
        return soft_cross_entropy(student, teacher.softmax(-1))
    return mixture_js(student, teacher) if loss == "js-mixture" else symmetric_kl(student, teacher)


# -- stages -------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Stage(Method):
    """One stage: `start` goes on to agree with the teacher on `data` (arXiv:2103.05959, section 3)."""

    name: ClassVar[str] = "ssld-stage"
    listed: ClassVar[bool] = False

    start: nn.Module
    """The student as it is before; it is left alone."""
    data: Source
    """What it is trained on."""
    loss: Loss = "symmetric-kl"
    """See `agreement_loss`."""
    labels: bool = False
    """Learn the labels in place of the teacher's answers."""

    def bind(self, task: Task, seed: int) -> None:
        """Take a copy of the student, and the teacher."""
        self.student = copy.deepcopy(self.start)
        self.teacher = task.make_teacher()

    def source(self, task: Task) -> Source:
        """See the base."""
        return self.data

    def updates(self, batch: Batch) -> Updates:
        """One step towards the teacher's answer to the very images that the student sees."""
        logits = self.student(batch.x)
        if self.labels:
            loss = F.cross_entropy(logits, batch.y)
        else:
            loss = agreement_loss(logits, self.teacher(batch).logits, self.loss)
        yield Update("student", loss, items=len(batch))


@dataclass(eq=False)
class HeadStage(Stage):
    """Stage three: the last layer alone, at the resolution of testing (the authors' "Fix strategy", section 3)."""

    name: ClassVar[str] = "ssld-head"

    def bind(self, task: Task, seed: int) -> None:
        """Freeze all but the last layer; statistics of normalisation layers stay as they are, too."""
        super().bind(task, seed)
        self._trainable = [(p, p.requires_grad) for p in self.student.parameters()]
        self.student.requires_grad_(False).eval()
        example = task.example().to(next(self.student.parameters()).device)
        self.head = self.student.get_submodule(last_layer(self.student, example))
        self.head.requires_grad_(True)

    def players(self) -> dict[str, nn.Module]:
        """The last layer."""
        return {"student": self.head}

    def unbind(self) -> None:
        """Let the rest be trainable again, where it was."""
        for parameter, trainable in self._trainable:
            parameter.requires_grad_(trainable)


# -- the method ---------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class SSLD(Method):
    """Simple semi-supervised label distillation (Cui et al., 2021, arXiv:2103.05959, section 3).

    min 1/2 KL(p || q) + 1/2 KL(q || p), p the teacher's softmax and q the student's: first over the labelled images and
    those mined from the pool, then over the labelled images alone at a low rate. No stage reads a label, unless
    `stage2_labels`. The steps of the engine are those of all stages together, as many as plain training takes.
    """

    name: ClassVar[str] = "ssld"

    loss: Loss = "symmetric-kl"
    """The paper's loss, which it calls JS; or KL(p || q), soft cross-entropy, the Jensen-Shannon divergence proper."""
    selection: Selection = "top-k"
    """The top_k images of each class by the scorer's probability; as many at random; or no pool at all."""
    top_k: int = 40
    """Images of the pool taken for each class, >= 1; all of a class that has fewer (published: about 4,000)."""
    duplicate_similarity: float = 0.98
    """Correlation with a validation or test image, in (0, 1], from which a pool's image is taken for its copy."""
    decay_factor: float = 0.25
    """Weight decay of all stages as a multiple of the engine's, >= 0: agreeing with a teacher is hard enough."""
    stage2_share: float = 0.1
    """Share of all updates, at the end of stage one, on the labelled images alone, in [0, 1); 0 leaves it out."""
    stage2_rate: float = 0.01
    """Learning rate of stages two and three as a multiple of stage one's, in (0, 1) (published: 1/100 or less)."""
    stage2_labels: bool = False
    """Learn the labels, not the teacher's answers, in stages two and three."""
    stage3_share: float = 0.0
    """Share of all updates on the last layer alone at --task.test-size, in [0, 1); 0 leaves it out."""

    def __post_init__(self) -> None:
        self._accuracies: list[tuple[str, float]] = []
        self._mined: tuple[PooledClassification, Mined] | None = None

    def check(self) -> None:
        """See the ranges of the fields."""
        super().check()
        require("--method.top-k", self.top_k, 1)
        require("--method.duplicate-similarity", self.duplicate_similarity, 0, 1, ends="(]")
        require("--method.decay-factor", self.decay_factor, 0)
        require("--method.stage2-rate", self.stage2_rate, 0, 1, ends="()")
        for name in ("stage2_share", "stage3_share"):
            require(f"--method.{name.replace('_', '-')}", getattr(self, name), 0, 1, ends="[)")
        if self.stage2_share + self.stage3_share >= 1:
            raise UserError(
                f"--method.stage2-share {self.stage2_share} and stage3-share {self.stage3_share} leave nothing for "
                "stage one: pass less than 1 together"
            )

    def bind(self, task: Task, seed: int) -> None:
        """A trial of what the stages need, before anything is trained; they bind themselves."""
        problem = _pooled(task)
        if self.selection != "none":
            if problem.mixup or problem.cutmix:
                raise UserError(
                    "mixing needs labels and the pool has none: pass --task.mixup 0 --task.cutmix 0, or "
                    "--method.selection none"
                )
            problem.unlabelled.source.fetch(torch.arange(1), None)
        if self.stage3_share and problem.test_size is None:
            raise UserError(
                "--method.stage3-share trains the last layer at the size of testing: pass --task.test-size"
            )
        if self.stage3_share:
            last_layer(problem.make_student(seed), problem.example())

    def run(self, task: Task, fit: Fit) -> Result:
        """Mine the pool, then one stage after the other, each from the weights of the one before."""
        problem, steps = _pooled(task), self._steps(task, fit)
        mined = self._mine(problem, fit.seed)
        model, done = problem.make_student(fit.seed), 0
        seen = problem.train()
        if mined is not None:
            seen = Union(problem.seen(), mined.pool.source.subset(mined.selected))
        self._accuracies = [("start", _accuracy(problem, model))]
        stages: dict[str, Stage] = {"pool": Stage(model, seen, self.loss)}
        if steps["target"]:
            stages["target"] = Stage(model, problem.train(), self.loss, self.stage2_labels)
        if steps["resolution"]:
            stages["resolution"] = HeadStage(
                model, problem.seen_at_test_size(), self.loss, self.stage2_labels
            )
        for name, stage in stages.items():
            stage.start = model
            recipe = self._recipe(fit.engine.recipe, first=name == "pool")
            options: dict[str, Any] = {"steps": steps[name], "recipe": recipe}
            result = fit(stage, **options) if len(stages) == 1 else fit(stage, name, **options)
            model, done = result.product, done + result.steps
            self._accuracies.append((name, _accuracy(problem, model)))
        extra = {f"accuracy, {name}, validation": value for name, value in self._accuracies}
        if mined is not None:
            problem.remember(model, mined=mined)
            self._mined = problem, mined
            extra |= mined.numbers()
        return Result(model, fit.seconds, done, extra)

    def _mine(self, task: PooledClassification, seed: int) -> Mined | None:
        if self.selection == "none":
            return None
        rules = self.selection, self.top_k, self.duplicate_similarity
        return mine(task.unlabelled, task.held_out, task.make_scorer(), *rules, seed)

    def _recipe(self, recipe: Recipe, first: bool) -> Recipe:
        lr = recipe.lr if first else recipe.lr * self.stage2_rate
        return replace(recipe, lr=lr, weight_decay=recipe.weight_decay * self.decay_factor)

    def _steps(self, task: Task, fit: Fit) -> dict[str, int]:
        """Updates of every stage; together as many as training on the labelled images alone would take."""
        engine = fit.engine
        total = Plan(len(task.train()), engine.batch_size, engine.epochs, fit.seed, engine.steps).steps
        shares = {"target": self.stage2_share, "resolution": self.stage3_share}
        later = {name: max(1, round(share * total)) if share else 0 for name, share in shares.items()}
        if sum(later.values()) >= total:
            raise UserError(
                f"{total} updates are too few for the stages: pass more --engine.epochs or --engine.steps"
            )
        return {"pool": total - sum(later.values()), **later}

    def figures(self) -> list[dict[str, str]]:
        """Accuracy after each stage, and what was found in the pool."""
        found = [stage_figure(self._accuracies)] if self._accuracies else []
        if self._mined is not None:
            task, mined = self._mined
            found += pool_figures(mined, task.images.classes, task.pixels)
        return found

    def quick(self) -> Self:
        """See the base; a few images a class."""
        return replace(self, top_k=min(self.top_k, 4))

    @classmethod
    def default_task(cls) -> PooledClassification:
        """The 8x8 digits: 100 labelled, a pool of 700 unlabelled, 300 of junk and 20 copies of what is scored on."""
        return PooledClassification(teacher_epochs=60, teacher_batch_size=10)

    @classmethod
    def default_engine(cls) -> Engine:
        """Long training, as the method wants it: 1,000 epochs, of the labelled digits 2,000 steps."""
        return Engine(epochs=1000, batch_size=50, evaluate_every=50, recipe=Recipe(lr=0.05, warmup=0.03))

    @classmethod
    def claims(cls) -> tuple[Claim, ...]:
        """See claims.py."""
        from stillroom.predictors.labels.ssld.claims import claims

        return claims()


def _pooled(task: Task) -> PooledClassification:
    if not isinstance(task, PooledClassification):
        raise UserError(
            f"ssld works on a PooledClassification and the task is a {type(task).__name__}: leave the task out, or "
            "pass stillroom.predictors.labels.ssld.PooledClassification(...)"
        )
    return task


def _accuracy(task: PooledClassification, model: nn.Module) -> float:
    runtime = Runtime()
    return task.score(model.to(runtime.device), "validation", runtime)[task.metric]

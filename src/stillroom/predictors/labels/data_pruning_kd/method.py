"""DP-KD: the loss, the method, and the arm without a teacher (Ben-Baruch et al., ICML 2025, arXiv:2403.07854)."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal, Self

from torch import Tensor
from torch.nn import functional as F

from stillroom.claim import Claim
from stillroom.data import Source
from stillroom.engine import Engine
from stillroom.errors import UserError, require
from stillroom.method import Batch, Fit, Method, Result, Update, Updates
from stillroom.predictors.labels.data_pruning_kd.scoring import RUNS, Rule, labels_of, order_of
from stillroom.predictors.labels.data_pruning_kd.task import Kept, PrunedClassification
from stillroom.predictors.parts.classifier import last_layer
from stillroom.predictors.parts.losses import forward_kl
from stillroom.predictors.parts.pruning import in_turn, kept, kept_count
from stillroom.reports import pruning_figures
from stillroom.runtime import Runtime
from stillroom.task import Task


def pruned_kd_loss(
    logits: Tensor, teacher: Tensor | None, y: Tensor, alpha: float, temperature: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """(1 - alpha) CE(z, y) + alpha T^2 KL(softmax(v / T) || softmax(z / T)), and its two terms.

    Logits z and v [n, C], labels y [n] or soft [n, C]; means over the batch. At alpha 0 the teacher is not looked at
    and the loss is the cross-entropy to the bit; at 1 the labels are not.
    """
    terms: dict[str, Tensor] = {}
    if alpha < 1:
        terms["loss/labels"] = F.cross_entropy(logits, y)
    if alpha > 0:
        assert teacher is not None
        terms["loss/teacher"] = forward_kl(logits, teacher, temperature)
    weights = {"loss/labels": 1 - alpha, "loss/teacher": alpha}
    parts = [term if weights[name] == 1 else weights[name] * term for name, term in terms.items()]
    return (parts[0] if len(parts) == 1 else parts[0] + parts[1]), terms


@dataclass(eq=False)
class DataPruningKD(Method):
    """Distilling a teacher of all data on few (Ben-Baruch et al., ICML 2025, arXiv:2403.07854, the method's section).

    L = (1 - alpha) CE(z, y) + alpha T^2 KL(softmax(v / T) || softmax(z / T)), over the kept samples alone
    """

    name: ClassVar[str] = "data-pruning-kd"

    rule: Rule = "random"
    """Which samples are kept: at random, by a score from networks trained on all of them, or by herding."""
    fraction: float = 0.1
    """Share of the training samples that is kept, in (0, 1]."""
    balanced: bool = False
    """Keep equal numbers of all classes, as far as they go; within a class, by the rule."""
    end: Literal["hard", "easy"] = "hard"
    """Which end of a score is kept: the hardest samples, or the easiest."""
    alpha: Literal["auto"] | float = "auto"
    """Weight of the teacher, in [0, 1], the rest is the labels'; auto: the best of `alphas` on the validation split."""
    alphas: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)
    """Weights that auto tries, each in [0, 1]: a training for each, and one more with the best."""
    temperature: float = 2.0
    """Temperature of both softmaxes, > 0 (usual: 4 on CIFAR, 1 on ImageNet)."""
    score_runs: int = 0
    """Networks whose scores are averaged, >= 0; 0: 3 for el2n, grand and margin (published: 10), 1 for the others."""
    score_epochs: int = 0
    """Their epochs, >= 0; 0: 10 for el2n and margin, 1 for grand, for the others a whole training."""
    budget: Literal["steps", "epochs"] = "steps"
    """What the student has as much of as a training on all data: optimizer steps, or passes over its samples."""

    def __post_init__(self) -> None:
        self.kept: Tensor | None = None
        self.scores: Tensor | None = None
        self._weight: float | None = None
        self._initial: int | None = None
        self._figures: list[dict[str, str]] = []

    def check(self) -> None:
        """See the ranges of the fields."""
        super().check()
        require("--method.fraction", self.fraction, 0, 1, ends="(]")
        require("--method.temperature", self.temperature, 0, ends="(]")
        require("--method.score-runs", self.score_runs, 0)
        require("--method.score-epochs", self.score_epochs, 0)
        for alpha in self.tried:
            if not isinstance(alpha, float | int):
                raise UserError(f"--method.alpha is '{alpha}': pass auto or a number from 0 to 1")
            require("--method.alphas" if self.alpha == "auto" else "--method.alpha", alpha, 0, 1)
        if not self.tried:
            raise UserError("--method.alphas is empty: pass at least one weight")
        if self.rule not in RUNS:
            raise UserError(f"--method.rule is '{self.rule}': pass one of {', '.join(RUNS)}")
        if self.end == "easy" and self.rule in ("random", "herding"):
            raise UserError(f"--method.rule {self.rule} has no scores: drop --method.end easy")

    @property
    def tried(self) -> tuple[float, ...]:
        """The weights of the teacher that come into question."""
        return self.alphas if self.alpha == "auto" else (self.alpha,)  # type: ignore[return-value]

    # -- one training -------------------------------------------------------------------------------------------------

    def bind(self, task: Task, seed: int) -> None:
        """Take the networks; UserError where the fraction keeps nothing, or labels are needed and missing."""
        super().bind(task, seed if self._initial is None else self._initial)
        source = task.train()
        count = kept_count(len(source), self.fraction)
        if self.rule != "random" or self.balanced or min(self.tried) < 1:
            labels = labels_of(source)
            classes = len(labels.unique())
            if self.balanced and count < classes:
                raise UserError(
                    f"--method.fraction is {self.fraction:g} of {len(source)} samples, {count} for {classes} classes: "
                    f"pass {classes / len(source):.2g} or more, or drop --method.balanced"
                )
        if self.rule in ("grand", "prototypes", "herding"):
            last_layer(self.student, task.example())
        data = getattr(task, "labelled", None)
        if len(self.tried) > 1 and data is not None and data.validation.labels is None:
            raise UserError(
                "the validation split has no labels to choose alpha by: pass --method.alpha with a number"
            )

    def source(self, task: Task) -> Source:
        """The kept samples; all of them as they are where all are kept."""
        source = task.train()
        if self.kept is None or len(self.kept) == len(source):
            return source
        return source.subset(self.kept)

    def updates(self, batch: Batch) -> Updates:
        """One step on labels and teacher."""
        alpha = self.tried[0] if self._weight is None else self._weight
        teacher = self.teacher(batch).logits if alpha > 0 else None
        loss, logs = pruned_kd_loss(self.student(batch.x), teacher, batch.y, alpha, self.temperature)
        yield Update("student", loss, items=len(batch), logs=logs)

    # -- the whole job ------------------------------------------------------------------------------------------------

    def run(self, task: Task, fit: Fit) -> Result:
        """Score all samples, keep some, find the teacher's weight for so few, and train the student on them."""
        source, began = task.train(), fit.seconds
        order, self.scores = order_of(
            self.rule, self.end == "hard", self.score_runs, self.score_epochs, task, fit
        )
        if self.balanced:
            order = in_turn(order, labels_of(source))
        self.kept = kept(order, self.fraction)
        scoring = fit.seconds - began
        options = self.options_of(fit, len(source))
        table = self._tried_out(task, fit, options)
        self._weight = max(table, key=lambda alpha: table[alpha]) if table else self.tried[0]
        choosing = fit.seconds - began - scoring
        made = fit(self, **options)
        extra = {"seconds for scores": scoring, "seconds for choosing alpha": choosing, "alpha": self._weight}
        sign = 1 if task.higher_is_better else -1
        values = {alpha: sign * found[0] for alpha, found in table.items()}
        extra |= {f"validation, alpha {alpha:g}": value for alpha, value in values.items()}
        choice = self.rule, self.fraction, self.balanced, self.end, fit.seed
        record = Kept(*choice, len(source), self.kept.tolist(), self._weight)
        task.remember(made.product, kept=record)
        self._draw(task, source, values)
        return Result(made.product, fit.seconds, made.steps, extra)

    def options_of(self, fit: Fit, samples: int) -> dict[str, Any]:
        """How the Engine trains on the kept of `samples`: its steps, and evaluations as often as on all of them."""
        engine = fit.engine
        assert self.kept is not None
        whole, own = (-(-count // engine.batch_size) for count in (samples, len(self.kept)))
        steps = engine.steps or engine.epochs * whole
        if self.budget == "epochs":
            return {"steps": max(1, round(steps * own / whole))}
        every = engine.evaluate_every
        return {"steps": steps, "evaluate_every": max(1, round(every * whole / own)) if every else 0}

    def _tried_out(self, task: Task, fit: Fit, options: dict[str, Any]) -> dict[float, tuple[float, float]]:
        """Of each weight its worth on validation, and for ties how likely the labels are; empty where one is given.

        All start from the weights that the student starts from, in stages `alpha-...`.
        """
        table: dict[float, tuple[float, float]] = {}
        sign = 1 if task.higher_is_better else -1
        for alpha in self.tried if len(self.tried) > 1 else ():
            stage = replace(self, alpha=alpha)
            stage.kept, stage._initial = self.kept, fit.seed
            made = fit(stage, f"alpha-{alpha:g}", **(options | {"evaluate_every": 0}))
            found = task.score(made.product, "validation", Runtime(fit.engine.precision))
            table[alpha] = (sign * found[task.metric], -found.get("negative_log_likelihood", 0.0))
        return table

    # -- around -------------------------------------------------------------------------------------------------------

    def _draw(self, task: Task, source: Source, values: dict[float, float]) -> None:
        assert self.kept is not None
        names = getattr(getattr(task, "labelled", None), "classes", None)
        self._figures = pruning_figures.kept_figures(source, self.kept, self.scores, self.rule, names)
        if values:
            self._figures.append(pruning_figures.weight(values, self._weight, task.metric))

    def figures(self) -> list[dict[str, str]]:
        """What was kept, its scores, and where alpha comes from."""
        return self._figures

    def baseline(self, task: Task) -> Method | None:
        """Plain training on the very samples that are kept here."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        return KeptAlone(**own | {"alpha": 0.0})

    def quick(self) -> Self:
        """Two weights to try, one short scoring."""
        small = {"alphas": (0.5, 1.0)} if self.alpha == "auto" else {}
        if self.rule != "random":
            small |= {"score_runs": 1, "score_epochs": 1}
        return replace(self, **small)

    @classmethod
    def default_task(cls) -> PrunedClassification:
        """The 8x8 digits, all 800 of them."""
        return PrunedClassification()

    @classmethod
    def default_engine(cls) -> Engine:
        """25 epochs on all data, or as many steps on the kept samples."""
        return Engine(epochs=25)

    @classmethod
    def claims(cls) -> tuple[Claim, ...]:
        """See claims.py."""
        from stillroom.predictors.labels.data_pruning_kd.claims import claims

        return claims()


@dataclass(eq=False)
class KeptAlone(DataPruningKD):
    """Plain training on the kept samples (Ben-Baruch et al., arXiv:2403.07854: data pruning without distillation)."""

    name: ClassVar[str] = "kept-alone"
    listed: ClassVar[bool] = False
    uses_teacher: ClassVar[bool] = False
    role: ClassVar[str] = "the same student trained on the kept samples without a teacher"

    alpha: Literal["auto"] | float = 0.0
    """0: there is no teacher."""

    def check(self) -> None:
        """See the base."""
        super().check()
        if self.tried != (0.0,):
            raise UserError(f"--method.alpha is {self.alpha}: without a teacher pass 0")

    def baseline(self, task: Task) -> Method | None:
        """None: this is what the method is compared with."""
        return None

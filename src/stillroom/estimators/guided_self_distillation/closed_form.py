"""GT-SD in closed form: the method, what it is held against, and its claims (arXiv:2102.13088, section 3)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal, Self

import numpy as np

from stillroom.claim import Claim, Rule
from stillroom.errors import UserError, require
from stillroom.estimators.guided_self_distillation.formulas import Numbers
from stillroom.estimators.guided_self_distillation.kernel_ridge import SelfDistilledKernelRidge
from stillroom.estimators.guided_self_distillation.problem import Regression
from stillroom.estimators.guided_self_distillation.regressors import SelfDistilledRegressor
from stillroom.method import Fit, Method, Result
from stillroom.task import Task


@dataclass(eq=False)
class GuidedSelfDistillation(Method):
    """Kernel ridge distilled into itself (Borup and Andersen, 2021, arXiv:2102.13088, section 3).

    Model t is fitted to alpha_t Y + (1 - alpha_t) Y_{t-1}, with Y_{t-1} the outputs of the model before; alpha_t
    minimises the error on the validation split in closed form, from one further fit. Where the task brings a user's own
    linear smoother, that one is distilled. The validation split is as noisy as the training split.
    """

    name: ClassVar[str] = "guided-self-distillation"
    uses_teacher: ClassVar[bool] = False
    uses_engine: ClassVar[bool] = False
    role: ClassVar[str] = "the distilled model"

    rounds: int = 5
    """Rounds of distillation after the first fit, >= 0."""
    mix: Literal["estimated"] | float | tuple[float, ...] = "estimated"
    """Weight of the original targets, alpha: estimated on the validation split, one number, or one a round."""
    clip: bool = True
    """Keep alpha in [0, 1], as the paper does."""
    limit: bool = False
    """Take the model after infinitely many rounds instead; needs one fixed mix."""
    kernel: Literal["rbf", "laplacian", "linear", "polynomial"] = "rbf"
    """Kernel of the ridge regression."""
    gamma: float = 0.1
    """Scale of the kernel (rbf: exp(-gamma ||x - x'||^2)), > 0."""
    ridge: float = 0.1
    """Ridge lambda, > 0."""

    def check(self) -> None:
        """See the ranges of the fields."""
        super().check()
        require("--method.rounds", self.rounds, 0)
        for name in ("gamma", "ridge"):
            require(f"--method.{name}", getattr(self, name), 0, ends="(]")
        if self.limit and not isinstance(self.mix, int | float):
            raise UserError(
                f"--method.limit needs one constant mix and --method.mix is {self.mix}: pass a number"
            )
        mixes = self.mix if isinstance(self.mix, Sequence) else (self.mix,)
        if isinstance(self.mix, str):
            return
        if isinstance(self.mix, Sequence) and len(mixes) != self.rounds:
            raise UserError(
                f"--method.mix has {len(mixes)} numbers: pass one for each of {self.rounds} rounds"
            )
        bounded = self.clip or self.limit
        for mix in mixes:
            require("--method.mix", float(mix), 0 if bounded else -np.inf, 1 if bounded else np.inf)

    def bind(self, task: Task, seed: int) -> None:
        """Make the estimator that is distilled."""
        assert isinstance(task, Regression)
        given = task.estimator()
        options: dict[str, Any] = {"mix": self.mix, "clip": self.clip, "steps": self.rounds + 1}
        if given is not None and self.limit:
            raise UserError(
                "--method.limit is for kernel ridge, the student is your own: pass --method.rounds 20"
            )
        if given is not None:
            self.model: Any = SelfDistilledRegressor(given, **options)
            return
        options["steps"] = "limit" if self.limit else self.rounds + 1
        self.model = SelfDistilledKernelRidge(self.ridge, kernel=self.kernel, gamma=self.gamma, **options)

    def run(self, task: Task, fit: Fit) -> Result:
        """Fit all rounds on the training split, alpha from the validation split."""
        assert isinstance(task, Regression)
        self.bind(task, fit.seed)
        began, scaling = time.perf_counter(), task.scaling()

        def scaled(part: tuple[Numbers, Numbers]) -> tuple[Numbers, Numbers]:
            return scaling.inputs(part[0]), scaling.targets(part[1])

        try:
            self.model.fit(*scaled(task.part("train")), validation=scaled(self.held_out(task)))
        except UserError:
            raise
        except ValueError as error:
            raise UserError(
                f"{type(self.model).__name__} cannot be fitted: {error}".splitlines()[0]
            ) from error
        found = {"mix": self.model.mixes_, "free mix": self.model.free_mixes_}
        extra = {f"{name} {t}": float(mix) for name, each in found.items() for t, mix in enumerate(each) if t}
        return Result(task.predictor(self.model), time.perf_counter() - began, extra=extra)

    def held_out(self, task: Regression) -> tuple[Numbers, Numbers]:
        """The samples from which alpha is estimated."""
        return task.part("validation")

    def baseline(self, task: Task) -> Method | None:
        """The first fit, without distillation."""
        return FirstFit(**_options(self) | {"rounds": 0, "mix": 1.0, "limit": False})

    @classmethod
    def default_task(cls) -> Regression:
        """One-hot digits with noise of deviation 0.3."""
        return Regression()

    @classmethod
    def claims(cls) -> tuple[Claim, ...]:
        """The estimate against fixed weights and an oracle, in six cells of noise and ridge."""
        return tuple(digits_claim(noise, ridge) for noise in (0.3, 0.6) for ridge in (0.02, 0.1, 0.5))


def _options(method: Method) -> dict[str, Any]:
    return {f.name: getattr(method, f.name) for f in fields(method)}


@dataclass(eq=False)
class FirstFit(GuidedSelfDistillation):
    """The model before any distillation (Borup and Andersen, 2021, arXiv:2102.13088, section 3, step 1)."""

    name: ClassVar[str] = "first-fit"
    listed: ClassVar[bool] = False
    role: ClassVar[str] = "the first fit"

    rounds: int = 0
    """None."""

    def baseline(self, task: Task) -> Method | None:
        """None: this is what the method is compared with."""
        return None


@dataclass(eq=False)
class Oracle(GuidedSelfDistillation):
    """Alpha of every round from the test split, round by round: what no estimate can know."""

    name: ClassVar[str] = "oracle-self-distillation"
    listed: ClassVar[bool] = False

    def held_out(self, task: Regression) -> tuple[Numbers, Numbers]:
        """The test split."""
        return task.part("test")


@dataclass(eq=False)
class TunedRidge(FirstFit):
    """Kernel ridge with the best ridge of a grid on the validation split, and no distillation."""

    name: ClassVar[str] = "tuned-ridge"
    listed: ClassVar[bool] = False

    grid: tuple[float, ...] = tuple(np.geomspace(0.01, 30, 29).round(6).tolist())
    """Ridges to choose from."""

    def run(self, task: Task, fit: Fit) -> Result:
        """Fit each and keep the best."""
        assert isinstance(task, Regression)
        x, y = task.part("validation")
        fits = [FirstFit.run(replace(self, ridge=ridge), task, fit) for ridge in self.grid]
        best = min(fits, key=lambda made: float(((made.product.predict(x) - y) ** 2).sum()))
        return Result(best.product, sum(made.seconds for made in fits))


@dataclass(eq=False)
class Allowance(Method):
    """`method`, its score counted better by `amount`: if it beats another arm, `method` is at most that much worse.

    A share of the error in the closed form's task, points of accuracy in the network's; negative counts it worse.
    """

    name: ClassVar[str] = "allowance"
    listed: ClassVar[bool] = False
    uses_teacher: ClassVar[bool] = False

    method: Method
    """Whose product is scored."""
    amount: float
    """By how much."""

    def check(self) -> None:
        """As the method."""
        self.method.check()

    def run(self, task: Task, fit: Fit) -> Result:
        """As the method."""
        made = self.method.run(task, fit)
        made.product.allowance = self.amount
        return made

    def quick(self) -> Self:
        """With the method's own quick copy."""
        return replace(self, method=self.method.quick())


def digits_claim(noise: float, ridge: float) -> Claim:
    """One cell: targets with noise of this deviation, and this ridge."""
    own = GuidedSelfDistillation(ridge=ridge)
    arms: dict[str, Method] = {
        "first fit": FirstFit(ridge=ridge),
        "alpha 0": own.variant(mix=0.0),
        "alpha 0.5": own.variant(mix=0.5),
        "free": own.variant(clip=False),
        "clipped": own,
        "one round": own.variant(rounds=1),
        "oracle": Oracle(ridge=ridge, clip=False),
        "clipped oracle": Oracle(ridge=ridge),
        "tuned ridge": TunedRidge(),
    }
    for arm in ("free", "clipped"):
        arms[f"{arm} less 1 %"] = Allowance(arms[arm], 0.01)
    arms["first fit plus 20 %"] = Allowance(arms["first fit"], -0.2)
    regularised = (noise, ridge) == (0.3, 0.5)
    return Claim(
        name=f"guided-self-distillation-digits-noise{noise:g}-ridge{ridge:g}",
        says="The weight of the targets that is estimated from one further fit is within 1 % of an oracle's error and "
        "not worse than distilling without targets or not at all"
        + (", where five rounds without targets cost more than 20 %." if regularised else "."),
        task=Regression(noise=noise),
        engine=own.default_engine(),
        arms=arms,
        rules=(
            Rule("free less 1 %", "oracle"),
            Rule("clipped less 1 %", "clipped oracle"),
            Rule("clipped less 1 %", "alpha 0"),
            Rule("clipped less 1 %", "first fit"),
            Rule("first fit plus 20 %", "alpha 0", headline=regularised),
            Rule("free", "alpha 0", headline=False),
            Rule("free", "first fit", headline=False),
            Rule("clipped", "alpha 0.5", headline=False),
            Rule("clipped", "first fit", headline=False),
            Rule("free", "clipped", headline=False),
            Rule("free", "tuned ridge", headline=False),
        ),
        seeds=10,
        notes="One-hot 8x8 digits; 300 training and 300 validation samples with Gaussian noise on their targets, "
        "the rest, clean, for the test; RBF kernel, gamma 0.1; squared error summed over classes, after five rounds. "
        "'less 1 %' counts an arm's error 1 % lower: to beat another arm is then to be at most 1 % worse. The oracle "
        "takes each round's alpha from the test labels, one after the other; after several rounds it is no bound.",
    )

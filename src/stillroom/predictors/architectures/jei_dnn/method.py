"""JEI-DNN and the exits that it has to beat (Regol et al., ICLR 2024, arXiv:2310.09163, sections 4 and 5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from stillroom.claim import Claim, Rule
from stillroom.engine import Engine
from stillroom.errors import UserError, require
from stillroom.method import Clock, Method
from stillroom.optim import Recipe
from stillroom.predictors.architectures.jei_dnn.heads import Gates, Heads
from stillroom.predictors.architectures.jei_dnn.losses import (
    confidence_thresholds,
    evenly,
    exit_weights,
    leaving,
    warm_up_weights,
)
from stillroom.predictors.architectures.jei_dnn.network import EarlyExit, Settings
from stillroom.predictors.architectures.jei_dnn.task import EarlyExiting
from stillroom.predictors.architectures.jei_dnn.training import ExitTraining, accuracy_of
from stillroom.task import Task


@dataclass(eq=False)
class JEIDNN(ExitTraining):
    """Exits and gates that learn from each other (Regol et al., ICLR 2024, arXiv:2310.09163, algorithm 1).

    min over heads and gates of E sum_l P_l [CE(y_l, y) + lambda IC_l], by turns: the gates learn to leave where
    CE + lambda IC is least, the heads learn from the samples that leave at them. A network for each lambda.
    """

    name: ClassVar[str] = "jei-dnn"

    exit_costs: tuple[float, ...] = (0.01, 0.05, 0.1, 0.3, 1.0, 3.0)
    """Weights lambda >= 0 of the cost, rising; each gives a setting with heads and gates of its own."""
    normalise: bool = True
    """Keep each sample's total loss when the heads' losses are weighted by exit probabilities; False: plain P_l."""
    stop_gradient: bool = True
    """No gradient through that normalisation; False is the released arithmetic, in which the weights cancel."""
    jointly: bool = True
    """False is an ablation: the heads have all their steps first, unweighted, and rest while the gates learn."""
    leave: Literal["gates", "random"] = "gates"
    """`random` is an ablation: samples leave by chance, as many at each exit as by the gates."""

    def check(self) -> None:
        """See the ranges of the fields."""
        super().check()
        for weight in self.exit_costs or (-1.0,):
            require("--method.exit-costs", weight, 0)
        if sorted(set(self.exit_costs)) != list(self.exit_costs):
            told = " ".join(f"{weight:g}" for weight in self.exit_costs)
            raise UserError(f"--method.exit-costs is {told}: pass rising weights, as 0.01 0.1 1")

    @property
    def lambdas(self) -> tuple[float, ...]:
        """The cost weights."""
        return self.exit_costs

    def head_weights(self, network: EarlyExit, logits: Tensor, losses: Tensor) -> Tensor:
        """omega [n, K, L - 1]: the exit probabilities, with each sample's total loss kept."""
        if not self.jointly:
            return warm_up_weights(losses.shape[-1] + 1).to(losses.device)
        probabilities = network.gate_probabilities(logits)[..., :-1]
        return exit_weights(losses, probabilities, self.normalise, self.stop_gradient)

    def turn(self, clock: Clock) -> str:
        """Gates and heads by turns, or all turns of the heads first."""
        start = int(self.memory["warm until"])
        if self.jointly or start < 0:
            return super().turn(clock)
        return "heads" if clock.step - start < self.heads_after(clock.steps - start) else "gates"

    def rounds(self, clock: Clock) -> int:
        """Of gates that come after all heads: their turns."""
        if self.jointly:
            return super().rounds(clock)
        start = int(self.memory["warm until"])
        return max(0, clock.step - start - self.heads_after(clock.steps - start)) // self.period

    def worth(self, network: EarlyExit, logits: Tensor, y: Tensor) -> Tensor:
        """Accuracy [K] of the gated answers."""
        return accuracy_of(logits, y, leaving(network.gate_probabilities(logits)))

    def finished(self, heads: Heads, gates: Gates | None, logits: Tensor) -> EarlyExit:
        """The network, a setting for each lambda."""
        names = tuple(f"λ={weight:g}" for weight in self.exit_costs)
        sets = tuple(range(len(names)))
        made = self.assemble(heads, gates, Settings(names, "gates", sets))
        if self.leave == "gates":
            return made
        taken = made.leave(logits)
        chance = self.assemble(heads, gates, Settings(names, "random", sets))
        counts = [taken[:, index].bincount(minlength=logits.shape[2]) for index in sets]
        chance.histogram.copy_(torch.stack(counts) / len(taken))
        return chance

    def baseline(self, task: Task) -> Method:
        """Exits trained for as many steps without gates, left by a threshold on confidence."""
        same = ("exits", "warmup_epochs", "patience", "period", "miscoverage")
        return ThresholdExits(**{name: getattr(self, name) for name in same})

    def quick(self) -> JEIDNN:
        """One epoch of warm-up, then turns of one step, two cost weights."""
        made = self.variant(warmup_epochs=1, period=1, exit_costs=self.exit_costs[-2:])
        assert isinstance(made, JEIDNN)
        return made

    @classmethod
    def default_task(cls) -> EarlyExiting:
        """Noisy digits and a residual network of six blocks."""
        return EarlyExiting(budgets=(0.25, 0.3, 0.35, 0.4, 0.45))

    @classmethod
    def default_engine(cls) -> Engine:
        """The features are kept, so that many epochs cost little."""
        recipe = Recipe(lr=0.05, momentum=0.9, weight_decay=5e-4)
        return Engine(epochs=200, batch_size=64, recipe=recipe, evaluate_every=20)

    @classmethod
    def claims(cls) -> tuple[Claim, ...]:
        """Accuracy and calibration at equal cost, on digits and on photographs."""
        return (*claims_on_digits(), *claims_on_cifar())


@dataclass(eq=False)
class ThresholdExits(ExitTraining):
    """Exits with a threshold on the largest probability (as in Regol et al., arXiv:2310.09163, section 6).

    The heads have the warm-up and as many steps as JEI-DNN's, on the plain sum of their cross-entropies. One
    threshold for all exits; a setting for each of several mean costs, met on the validation split.
    """

    name: ClassVar[str] = "threshold-exits"
    listed: ClassVar[bool] = False
    role: ClassVar[str] = "exits by a threshold on confidence"

    thresholds: int = 12
    """Settings: mean costs, evenly between the first exit's and the full one, for which a threshold is set, >= 1."""

    def check(self) -> None:
        """See the ranges of the fields."""
        super().check()
        require("--method.thresholds", self.thresholds, 1)

    @property
    def learns_gates(self) -> bool:
        """There are none to learn."""
        return False

    def head_weights(self, network: EarlyExit, logits: Tensor, losses: Tensor) -> Tensor:
        """1 for every head."""
        return torch.ones_like(losses)

    def worth(self, network: EarlyExit, logits: Tensor, y: Tensor) -> Tensor:
        """Mean accuracy [1] of the heads."""
        return (logits[:, :, :-1].argmax(-1) == y[:, None, None]).float().mean((0, 2))

    def finished(self, heads: Heads, gates: Gates | None, logits: Tensor) -> EarlyExit:
        """The network, a setting for each threshold."""
        count = self.thresholds
        made = self.assemble(heads, None, Settings(("",) * count, "threshold", (0,) * count))
        made.to(logits.device).measure(self.task.images.shape)
        confidence = logits[:, 0, :-1].softmax(-1).amax(-1)
        targets = evenly(made.shares[0].item(), count)
        made.thresholds.copy_(confidence_thresholds(confidence, made.shares, targets))
        names = tuple(f"p>={threshold:.3f}" for threshold in made.thresholds.tolist())
        made.settings = Settings(names, "threshold", (0,) * count)
        return made

    def quick(self) -> ThresholdExits:
        """As the method's."""
        made = self.variant(warmup_epochs=1, period=1, thresholds=4)
        assert isinstance(made, ThresholdExits)
        return made


# -- claims -------------------------------------------------------------------------------------------------------

SAYS = (
    "Gates and exits that are trained jointly are more accurate at equal cost than exits with confidence thresholds "
    "(CIFAR-10, CIFAR-100, CIFAR-100-LT and SVHN on T2T-ViT)."
)
CALIBRATED = (
    "At equal cost, jointly trained exits are better calibrated than exits with confidence thresholds."
)
NOTES = (
    "Accuracy and calibration at 30 to 70 % of the full network's multiply-adds; a budget is met by mixing the two "
    "settings next to it in cost. Six lambdas against twelve thresholds; all arms have the same backbone and equally "
    "many steps of the heads. "
)


def arms() -> dict[str, Method]:
    """The method, the baseline, and three ablations."""
    return {
        "jei-dnn": JEIDNN(),
        "threshold": ThresholdExits(),
        "released arithmetic": JEIDNN(stop_gradient=False),
        "heads first": JEIDNN(jointly=False),
        "random exits": JEIDNN(leave="random"),
    }


def rules() -> tuple[Rule, ...]:
    """JEI-DNN against thresholds decides; its ablations stand beside."""
    beside = ("released arithmetic", "heads first", "random exits")
    return (Rule("jei-dnn", "threshold"), *(Rule("jei-dnn", arm, headline=False) for arm in beside))


def claims_on_digits() -> tuple[Claim, ...]:
    """On the built-in data, a backbone for each seed."""
    task, engine = JEIDNN.default_task(), JEIDNN.default_engine()
    notes = (
        NOTES
        + "8x8 digits under noise, six residual blocks, exits after five of them, a backbone for each seed."
    )
    pairs = (("accuracy", SAYS, "jei-dnn-digits"), ("calibration", CALIBRATED, "jei-dnn-digits-calibration"))
    return tuple(
        Claim(name, says, task.but(judged_by=judge), engine, arms(), rules(), seeds=5, notes=notes)
        for judge, says, name in pairs
    )


def cifar_task() -> EarlyExiting:
    """CIFAR-10 at 16x16 on six residual blocks."""
    return EarlyExiting(
        data="cifar10_jpeg",
        image_size=16,
        train_samples=20_000,
        validation_samples=4_000,
        teacher="resnet:16-32-64@2",
        teacher_epochs=12,
        teacher_batch_size=128,
        teacher_augment="crop-flip",
        vary_teacher=False,
    )


def claims_on_cifar() -> tuple[Claim, ...]:
    """On photographs, one backbone for all seeds."""
    engine = Engine(epochs=15, batch_size=64, recipe=Recipe(lr=0.05), evaluate_every=0)
    notes = NOTES + (
        "CIFAR-10 at 16x16 pixels, six residual blocks trained once on 16,000 images, exits after five of them; "
        "seeds differ in the exits' first weights and the order of the data."
    )
    pairs = (
        ("accuracy", SAYS, "jei-dnn-cifar10"),
        ("calibration", CALIBRATED, "jei-dnn-cifar10-calibration"),
    )
    return tuple(
        Claim(
            name, says, cifar_task().but(judged_by=judge), engine, arms(), rules(), 5, "cifar10_jpeg", notes
        )
        for judge, says, name in pairs
    )

"""SLA+SD and what it is held against (Lee et al., ICML 2020, arXiv:1910.05872, sections 2 and 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stillroom.claim import Claim
from stillroom.engine import Engine
from stillroom.errors import UserError, require
from stillroom.method import Batch, Fit, Method, Result, Update, Updates
from stillroom.optim import Recipe
from stillroom.predictors.baselines import Plain
from stillroom.predictors.classification import Classification
from stillroom.predictors.labels.sla_sd.network import JointNetwork, Mode, aggregated, joint_labels
from stillroom.predictors.labels.sla_sd.task import TransformedClassification
from stillroom.predictors.parts.classifier import Features
from stillroom.predictors.parts.losses import forward_kl
from stillroom.predictors.parts.transformations import SETS, Named, Transformation, check_fit, transformed
from stillroom.task import Task


def sla_sd_loss(
    single: Tensor,
    joint: Tensor,
    y: Tensor,
    copies: int,
    temperature: float = 1.0,
    beta: float = 1.0,
    stop_gradient: bool = True,
) -> dict[str, Tensor]:
    """The three terms: joint labels, T^2 KL(softmax(s / T) || softmax(u / T)), and beta times plain labels (eq. 5).

    `single` [B, C] are the plain head's logits of the images as they are, `joint` [B M, C M] those of all copies; y
    int64 [B] or mixed [B, C]; means over rows. Their sum is the loss.
    """
    vote = aggregated(joint, copies)
    return {
        "loss/joint": joint_loss(joint, y, copies),
        "loss/distillation": forward_kl(single, vote.detach() if stop_gradient else vote, temperature),
        "loss/labels": beta * F.cross_entropy(single, y),
    }


def joint_loss(joint: Tensor, y: Tensor, copies: int) -> Tensor:
    """Cross-entropy over all C M entries, mean over the B M rows (eq. 3). joint [B M, C M], y [B] or [B, C]."""
    return F.cross_entropy(joint, joint_labels(y, copies, joint.shape[-1] // copies))


@dataclass(eq=False)
class Transforming(Method):
    """What all arms with transformed copies share."""

    uses_teacher: ClassVar[bool] = False

    transformations: Named = "rotations"
    """Quarter turns, half turns, orders of colours (all 6, or 3 cyclic), both at once, or none. Name a set under which
    the class of an image stays what it is."""

    @property
    def group(self) -> tuple[Transformation, ...]:
        """The transformations, the identity first."""
        return SETS[self.transformations]

    def bind(self, task: Task, seed: int) -> None:
        """See that the images have such copies."""
        if not isinstance(task, Classification):
            raise UserError(
                f"method '{self.name}' transforms images, {type(task).__name__} has none: pass images"
            )
        super().bind(task, seed)
        check_fit(self.transformations, task.images.shape, task.images.name)


@dataclass(eq=False)
class SLASD(Transforming):
    """Self-supervised label augmentation with self-distillation (Lee et al., ICML 2020, arXiv:1910.05872, eq. 3, 5).

    L = (1/M) sum_j CE(w f(t_j(x)), (y, j)) + T^2 KL(sg softmax(s / T) || softmax(u f(x) / T)) + beta CE(u f(x), y)
    with the vote s_i = (1/M) sum_j w_(i,j) f(t_j(x)). One pass over all copies, one step for encoder and both heads.
    """

    name: ClassVar[str] = "sla-sd"

    mode: Mode = "sd"
    """What is kept: the plain classifier (sd, one pass), the vote over all copies (ag, as many passes as
    transformations), or the joint head on the image as it is (si, one pass)."""
    temperature: float = 1.0
    """Temperature T of the distillation, > 0."""
    beta: float = 1.0
    """Weight of the plain head's labels, >= 0."""
    loss_scale: Literal["mean", "sum"] = "mean"
    """The joint loss as a mean or as a sum over copies; published: the sum on ImageNet and iNaturalist."""
    distil: bool = True
    """False: no plain head, label augmentation alone (SLA, eq. 3), for the modes ag and si."""
    stop_gradient: bool = True
    """False is an ablation: the vote is pulled towards the plain head as well."""

    def check(self) -> None:
        """See the ranges of the fields."""
        super().check()
        require("--method.temperature", self.temperature, 0, ends="(]")
        require("--method.beta", self.beta, 0)
        if self.mode == "sd" and not self.distil:
            raise UserError(
                "--method.mode is sd and --method.distil is False, so nothing trains the plain head: pass "
                "--method.mode ag or si"
            )

    def bind(self, task: Task, seed: int) -> None:
        """Put the joint head beside the student's last layer."""
        super().bind(task, seed)
        self.network = JointNetwork(self.student, task.example(), self.transformations)
        if isinstance(task, TransformedClassification):
            task.trained_within(self.student, self.network)
        elif self.mode != "sd":
            raise UserError(
                f"--method.mode is {self.mode}, and {type(task).__name__} keeps plain classifiers: pass "
                "task=TransformedClassification(...), or mode='sd'"
            )

    def players(self) -> dict[str, nn.Module]:
        """Encoder and both heads, under one optimizer."""
        return {"student": self.network}

    def updates(self, batch: Batch) -> Updates:
        """One pass over all copies, the plain head's answers of the images as they are, one step."""
        copies = len(self.group)
        plain, joint = self.network.both(transformed(batch.x, self.group))
        if self.distil:
            single = plain[::copies]
            logs = sla_sd_loss(
                single, joint, batch.y, copies, self.temperature, self.beta, self.stop_gradient
            )
        else:
            logs = {"loss/joint": joint_loss(joint, batch.y, copies)}
        if self.loss_scale == "sum":
            logs["loss/joint"] = copies * logs["loss/joint"]
        yield Update("student", torch.stack(list(logs.values())).sum(), items=len(batch), logs=logs)

    def product(self) -> nn.Module:
        """The network, asked in the chosen mode."""
        return self.network.asked(self.mode)

    def baseline(self, task: Task) -> Method | None:
        """Plain training; where the vote is kept, it is said beside it that it was asked once."""
        passes = len(self.group) if self.mode == "ag" else 1
        return OnePass(passes=passes) if passes > 1 else super().baseline(task)

    @classmethod
    def default_task(cls) -> TransformedClassification:
        """Generated pictures of objects that have a way up."""
        return TransformedClassification()

    @classmethod
    def default_engine(cls) -> Engine:
        """30 epochs of SGD in batches of 64 images."""
        return Engine(epochs=30, batch_size=64, recipe=Recipe(lr=0.1, weight_decay=1e-4))

    @classmethod
    def claims(cls) -> tuple[Claim, ...]:
        """Against plain training of equal compute, augmentation and two tasks; on objects and on photographs."""
        from stillroom.predictors.labels.sla_sd.claims import cifar_claim, objects_claim

        return (objects_claim(), cifar_claim())


# -- what it is held against --------------------------------------------------------------------------------------


@dataclass(eq=False)
class OnePass(Plain):
    """Plain training beside a vote of several passes (Hinton et al., 2015, section 3): the same, and said to be one."""

    name: ClassVar[str] = "plain"
    listed: ClassVar[bool] = False

    passes: int = 4
    """Passes of what it stands beside."""

    @property
    def role(self) -> str:  # type: ignore[override]
        """See the base."""
        return f"the same student trained without it, in one pass against {self.passes}"


@dataclass(eq=False)
class DataAugmentation(Transforming):
    """One head that says the label of every copy (Lee et al., arXiv:1910.05872, eq. 1: DA)."""

    name: ClassVar[str] = "transformed-data"
    listed: ClassVar[bool] = False

    def updates(self, batch: Batch) -> Updates:
        """One step on all copies."""
        logits = self.student(transformed(batch.x, self.group))
        loss = F.cross_entropy(logits, batch.y.repeat_interleave(len(self.group), 0))
        yield Update("student", loss, items=len(batch))


@dataclass(eq=False)
class MultiTask(Transforming):
    """Two heads, for the label and for the transformation (Lee et al., arXiv:1910.05872, eq. 2: MT)."""

    name: ClassVar[str] = "two-tasks"
    listed: ClassVar[bool] = False

    def bind(self, task: Task, seed: int) -> None:
        """Put a head for the transformation beside the last layer."""
        super().bind(task, seed)
        self.features = Features(self.student, task.example())
        self.head = nn.Linear(self.features.size, len(self.group))
        self.trained = nn.ModuleDict({"student": self.student, "head": self.head})

    def unbind(self) -> None:
        """Leave the student as it came."""
        self.features.remove()

    def players(self) -> dict[str, nn.Module]:
        """Student and second head, under one optimizer."""
        return {"student": self.trained}

    def updates(self, batch: Batch) -> Updates:
        """One step on both labels of all copies."""
        copies = len(self.group)
        logits = self.student(transformed(batch.x, self.group))
        which = torch.arange(copies, device=batch.x.device).repeat(len(batch))
        label = F.cross_entropy(logits, batch.y.repeat_interleave(copies, 0))
        turn = F.cross_entropy(self.head(self.features.take()), which)
        logs = {"loss/labels": label, "loss/transformation": turn}
        yield Update("student", label + turn, items=len(batch), logs=logs)


@dataclass(eq=False)
class LongPlain(Plain):
    """Plain training for several times the epochs, the control of equal compute (Hinton et al., 2015, section 3)."""

    name: ClassVar[str] = "long-plain"
    listed: ClassVar[bool] = False

    times: int = 4
    """How many times the epochs of the other arms, >= 1."""

    def check(self) -> None:
        """See the ranges of the fields."""
        super().check()
        require("--method.times", self.times, 1)

    def run(self, task: Task, fit: Fit) -> Result:
        """One fit, its schedule stretched."""
        return fit(self, epochs=self.times * fit.engine.epochs, steps=self.times * fit.engine.steps)

"""Arms of the claims alone: teachers of other sizes or of fewer data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from stillroom.data import Source
from stillroom.errors import UserError, require
from stillroom.method import Fit, Result
from stillroom.predictors.baselines import Plain
from stillroom.predictors.labels.data_pruning_kd.method import DataPruningKD
from stillroom.predictors.labels.data_pruning_kd.scoring import order_of
from stillroom.predictors.labels.data_pruning_kd.task import PrunedClassification
from stillroom.predictors.parts.pruning import kept
from stillroom.task import Task
from stillroom.teacher import Teacher


@dataclass(eq=False)
class TeacherStage(Plain):
    """Plain training of the network called `network` on the samples `ids` of the task."""

    name: ClassVar[str] = "teacher-stage"
    listed: ClassVar[bool] = False

    network: str = ""
    """Its architecture."""
    ids: Tensor | None = None
    """The samples, ascending."""

    def bind(self, task: Task, seed: int) -> None:
        """A fresh network."""
        assert isinstance(task, PrunedClassification)
        self.student: nn.Module = task.build_network("teacher", self.network, seed)

    def source(self, task: Task) -> Source:
        """The samples `ids`."""
        assert self.ids is not None
        return task.train().subset(self.ids)


@dataclass(eq=False)
class OwnTeacher(DataPruningKD):
    """A teacher of another size, or of part of the data (arXiv:2403.07854), trained here instead of the task's."""

    name: ClassVar[str] = "data-pruning-kd-own-teacher"
    listed: ClassVar[bool] = False
    uses_teacher: ClassVar[bool] = False

    alpha: Literal["auto"] | float = 1.0
    """Weight of the teacher, in [0, 1]."""
    network: str = "mlp:64-64"
    """Architecture of the teacher."""
    teacher_fraction: float = 1.0
    """Share of the samples that the teacher sees, the student's among them, from `fraction` to 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.trained: nn.Module | None = None

    def check(self) -> None:
        """See the ranges of the fields."""
        super().check()
        require("--method.teacher-fraction", self.teacher_fraction, self.fraction, 1)
        if self.alpha == "auto":
            raise UserError("--method.alpha is auto, and this teacher is trained once: pass a number")

    def bind(self, task: Task, seed: int) -> None:
        """With the teacher of the first stage, where that is over."""
        super().bind(task, seed)
        if self.trained is not None:
            self.teacher = Teacher(self.trained)

    def run(self, task: Task, fit: Fit) -> Result:
        """The teacher, in as many steps as the student's, then the method."""
        order, _ = order_of(self.rule, self.end == "hard", self.score_runs, self.score_epochs, task, fit)
        self.kept = kept(order, self.teacher_fraction)
        stage = TeacherStage(network=self.network, ids=self.kept)
        self.trained = fit(stage, "teacher", **self.options_of(fit, len(order))).product
        return super().run(task, fit)

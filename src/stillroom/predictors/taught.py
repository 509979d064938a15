"""What tasks with a teacher and a student share: networks by name or from Python, and a student made of the teacher."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

from torch import nn

from stillroom.errors import UserError
from stillroom.models.shrinking import is_shrink, parse_shrink, shrink
from stillroom.task import Task
from stillroom.teacher import Mixture, Teacher


class TaughtTask(Task):
    """A teacher and a student. A subclass is a dataclass that has the options below among its own."""

    teacher_example: ClassVar[str] = "an architecture"
    """What to pass where there is no teacher, for a message."""

    teacher: str
    student: str
    teacher_weights: str
    subset_seed: int
    teacher_seed: int
    vary_teacher: bool

    def build_network(self, role: str, name: str, seed: int) -> nn.Module:
        """The network called `name`, for a 'teacher' or a 'student'."""
        raise NotImplementedError

    def load_teacher(self, place: str) -> nn.Module:
        """The network with its weights in the folder `place`, of an earlier run's student or of a model."""
        raise NotImplementedError

    # -- networks -----------------------------------------------------------------------------------------------

    def make_student(self, seed: int) -> nn.Module:
        """A fresh student; a module from Python is copied as it is, whatever the seed."""
        return self._network("student", self.student, seed)

    def teacher_network(self) -> nn.Module:
        """The teacher's network, with weights only where they come from outside."""
        return self._network("teacher", self.teacher, self.teacher_seed)

    def _network(self, role: str, name: str, seed: int) -> nn.Module:
        return self.given_network(role) if role in self.given else self.build_network(role, name, seed)

    def given_network(self, role: str) -> nn.Module:
        """The network from Python: a copy of a module, or what a function makes."""
        given = self.given[role]
        return copy.deepcopy(given) if isinstance(given, nn.Module) else given()

    @property
    def derived(self) -> bool:
        """See the base."""
        return "student" not in self.given and is_shrink(self.student)

    def derive(self, seed: int) -> nn.Module:
        """The student that is made of the teacher; UserError where there is no teacher, or several."""
        name = self.student
        wanted = parse_shrink(name)
        if self.teacher == "none" and "teacher" not in self.given and not self.weights:
            raise UserError(f"student '{name}' is made of the teacher and --task.teacher is 'none': pass one")
        network = self.make_teacher().module
        if isinstance(network, Mixture):
            raise UserError(
                f"student '{name}' is made of one teacher, and there are several: pass --task.student"
            )
        return shrink(network, wanted.depth, wanted.width, seed=seed, example=self.example())

    @property
    def weights(self) -> str:
        """Where the teacher's weights come from; empty where it is trained here."""
        return self.teacher_weights

    @property
    def teacher_name(self) -> str:
        """What messages and reports call the teacher."""
        own = self.teacher_weights if self.teacher_weights not in ("", "pretrained") else self.teacher
        return _name_of(self.given.get("teacher"), own)

    @property
    def student_name(self) -> str:
        """What messages and reports call the student."""
        return _name_of(self.given.get("student"), self.student)

    # -- the teacher --------------------------------------------------------------------------------------------

    def make_teacher(self) -> Teacher:
        """The frozen teacher; it must have been taught, unless its weights come from outside."""
        given = self.given.get("teacher")
        if isinstance(given, Teacher):
            return given
        network = self.__dict__.get("_taught")
        if network is None:
            network = self._outside_teacher()
        return Teacher(network)

    def _outside_teacher(self) -> nn.Module:
        if "teacher" in self.given or self.weights in ("", "pretrained"):
            return self.teacher_network()
        return self.load_teacher(self.weights)

    def teach(self, network: nn.Module) -> None:
        """Take a trained network as the teacher."""
        self._taught = network

    def needs_teacher(self, teacher: bool) -> bool:
        """Whether there is a network of a teacher to look at; UserError where one is needed and there is none."""
        if not teacher or isinstance(self.given.get("teacher"), Teacher):
            return False
        if self.teacher == "none" and "teacher" not in self.given and not self.weights:
            raise UserError(
                f"this method needs a teacher and --task.teacher is 'none': pass {self.teacher_example}"
            )
        return True

    # -- copies -------------------------------------------------------------------------------------------------

    def paired(self, seed: int) -> Any:
        """The same problem with another choice of the student's samples and, if asked, another teacher."""
        teacher_seed = seed if self.vary_teacher else self.teacher_seed
        return self.but(subset_seed=seed, teacher_seed=teacher_seed)


def _name_of(given: object, name: str) -> str:
    if isinstance(given, Teacher):
        return type(given.module).__name__
    return type(given).__name__ if given is not None else name

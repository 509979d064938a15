"""What methods of this family have in common: a teacher that is a Sampler, a student that is a Denoiser."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stillroom.engine import Engine
from stillroom.generators.generation import Generation
from stillroom.generators.parts.denoiser import Denoiser
from stillroom.generators.parts.sampler import Sampler
from stillroom.method import Method
from stillroom.optim import Recipe
from stillroom.task import Task


@dataclass(eq=False)
class GeneratorMethod(Method):
    """Base of the family's methods: `student` is a Denoiser, `reference` the teacher, a Sampler."""

    def bind(self, task: Task, seed: int) -> None:
        """Take teacher and student from the task."""
        super().bind(task, seed)
        self.student: Denoiser  # type: ignore[no-redef]
        if self.uses_teacher:
            self.reference: Sampler = self.teacher.module  # type: ignore[assignment]

    @classmethod
    def default_task(cls) -> Generation:
        """The 8x8 digits by class, with a residual perceptron as the teacher."""
        return Generation()

    @classmethod
    def default_engine(cls) -> Engine:
        """Adam with a moving average of the weights, counted in steps."""
        return generator_engine()


def generator_engine(steps: int = 2000, batch_size: int = 128, **recipe: Any) -> Engine:
    """The Engine as generators are usually trained: Adam, cosine schedule, moving average, no weight decay."""
    usual: dict[str, Any] = {
        "optimizer": "adam",
        "lr": 5e-4,
        "weight_decay": 0.0,
        "warmup": 0.02,
        "ema": 0.995,
    }
    made = Recipe(**(usual | recipe))
    return Engine(steps=steps, batch_size=batch_size, recipe=made, evaluate_every=0)

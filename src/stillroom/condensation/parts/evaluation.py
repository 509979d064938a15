"""What a condensed set is worth: fresh networks are trained on it alone, and asked about real images.

As in the published code of data-set distillation (Zhao and Bilen, ICML 2021, arXiv:2102.08259, section 4.1): SGD with
momentum .9 and weight decay 5e-4, the learning rate a tenth from half time on, and in every step one transform of the
differentiable augmentation, drawn for the batch, with numbers of each image's own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from stillroom import metrics
from stillroom.condensation.parts.siamese import NUMBERS, augment, transforms_of
from stillroom.data import Source
from stillroom.engine import Engine
from stillroom.method import Batch, Method, Update, Updates
from stillroom.optim import Recipe
from stillroom.runtime import Runtime
from stillroom.seeds import seed_of
from stillroom.task import Task

KIND = 7
"""Keeps the seeds of transforms apart from all others."""


@dataclass(frozen=True)
class Lesson:
    """How a fresh network is trained on a set."""

    epochs: int
    """Passes over the set."""
    most_steps: int
    """Steps after which a large set's training is over before its epochs are."""
    batch_size: int
    lr: float
    strategy: str
    """Transforms of the augmentation, with _ between."""

    def engine(self, samples: int) -> Engine:
        """The Engine that does so."""
        steps = min(self.most_steps, self.epochs * -(-samples // self.batch_size))
        recipe = Recipe("sgd", lr=self.lr, schedule="step", milestones=(0.5,), decay=0.1)
        return Engine(steps=steps, batch_size=self.batch_size, recipe=recipe, evaluate_every=0)


@dataclass(eq=False)
class FreshNetwork(Task):
    """Train a fresh network on a set; `given` are the set's source and the function that makes the network."""

    metric: ClassVar[str] = "accuracy"

    source: str = ""
    """The set."""
    network: str = ""
    """The network."""

    def train(self) -> Source:
        """The set."""
        return self.given["source"]

    def make_student(self, seed: int) -> nn.Module:
        """The network."""
        return self.given["network"](seed)

    def score(self, product: nn.Module, split: str, runtime: Runtime) -> dict[str, Any]:
        """Accuracy on the set itself."""
        logits, y = runtime.predict(product, self.train())
        assert y is not None
        return {"accuracy": metrics.accuracy(logits, y)}


@dataclass(eq=False)
class AugmentedTraining(Method):
    """Cross-entropy on augmented images (Zhao and Bilen, 2021, arXiv:2102.08259, section 3.2)."""

    name: ClassVar[str] = "augmented-training"
    listed: ClassVar[bool] = False
    uses_teacher: ClassVar[bool] = False

    strategy: str = "none"
    """Transforms of the augmentation, with _ between."""

    def bind(self, task: Task, seed: int) -> None:
        """Make the network."""
        super().bind(task, seed)
        self.seed, self.transforms = seed, transforms_of(self.strategy)

    def updates(self, batch: Batch) -> Updates:
        """One step."""
        x = batch.x
        if self.transforms:
            kind = seed_of(self.seed, KIND, batch.clock.step) % len(self.transforms)
            x = augment(x, torch.full_like(batch.y, kind), batch.noise.uniform(NUMBERS), self.transforms)
        yield Update("student", F.cross_entropy(self.student(x), batch.y), items=len(batch))


def trained_on(source: Source, make: Callable[[int], nn.Module], lesson: Lesson, seed: int) -> nn.Module:
    """A fresh network that has learnt from `source` and nothing else; its weights and order depend on `seed`."""
    task = FreshNetwork().using(source=source, network=make)
    method = AugmentedTraining(strategy=lesson.strategy)
    return lesson.engine(len(source)).fit(method, task, seed).product.eval()

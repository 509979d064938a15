"""The rules of pruning: the networks that are trained on all data for a rule, and the order that it makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stillroom.data import Source
from stillroom.errors import UserError
from stillroom.method import Batch, Fit, Gather, Method, Update, Updates
from stillroom.predictors.parts.classifier import Features
from stillroom.predictors.parts.losses import hard_labels
from stillroom.predictors.parts.pruning import (
    Forgetting,
    el2n,
    grand_last_layer,
    herding,
    margin,
    prototype_distance,
    random_order,
    ranked,
)
from stillroom.runtime import Runtime
from stillroom.seeds import seed_of
from stillroom.task import Task

Rule = Literal["random", "el2n", "grand", "margin", "forgetting", "prototypes", "herding"]

RUNS: dict[str, tuple[int, int]] = {
    "random": (0, 0),
    "el2n": (3, 10),
    "grand": (3, 1),
    "margin": (3, 10),
    "forgetting": (1, 0),
    "prototypes": (1, 0),
    "herding": (1, 0),
}
"""Networks and epochs of each rule; 0 epochs are as many as the student's training on all data has."""

ORDER = 31
"""Keeps the choice of samples apart from all else that is made from a run's seed."""


@dataclass(eq=False)
class Scoring(Method):
    """Plain training on all data, for a rule's scores; remembers what is forgotten (Toneva et al., algorithm 1)."""

    name: ClassVar[str] = "scoring"
    listed: ClassVar[bool] = False
    uses_teacher: ClassVar[bool] = False

    forgetting: bool = False
    """Count the samples' transitions from right to wrong."""

    def bind(self, task: Task, seed: int) -> None:
        """A fresh student, and an empty memory."""
        super().bind(task, seed)
        self.forgotten = Forgetting(len(self.source(task)) if self.forgetting else 0)

    def updates(self, batch: Batch) -> Updates:
        """One step on the labels."""
        logits = self.student(batch.x)
        if self.forgetting:
            right = (logits.argmax(-1) == hard_labels(batch.y)).to(torch.uint8)
            ids = yield Gather(batch.index)
            self.forgotten.update(ids, (yield Gather(right)))
        yield Update("student", F.cross_entropy(logits, batch.y), items=len(batch))

    def state(self) -> dict[str, Tensor]:
        """What is forgotten so far."""
        return self.forgotten.memory if self.forgetting else {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put it back."""
        if self.forgetting:
            self.forgotten.load(state)


class Probe(nn.Module):
    """A network that answers with its logits and the features of its last layer, side by side."""

    def __init__(self, network: nn.Module, example: Tensor) -> None:
        super().__init__()
        self.network, self.features = network, Features(network, example)
        self.bias = network.get_submodule(self.features.path).bias is not None

    def forward(self, x: Tensor) -> Tensor:
        """[n, classes + features] of inputs [n, ...]."""
        logits = self.network(x)
        return torch.cat([logits, self.features.take().flatten(1)], -1)


def labels_of(source: Source) -> Tensor:
    """All labels [N]; UserError where there are none."""
    if source.labels is None:
        raise UserError(
            "the training data have no labels, which this --method.rule needs: pass --method.rule random"
        )
    return source.labels


def order_of(
    rule: Rule, hard: bool, runs: int, epochs: int, task: Task, fit: Fit
) -> tuple[Tensor, Tensor | None]:
    """Ids [N] of the task's training samples, the first to keep first, and their scores [N] where the rule has any.

    `runs` and `epochs` of 0 are the rule's own numbers. Networks are trained in stages `score-1`, `score-2`, ...
    """
    source, seed = task.train(), seed_of(fit.seed, ORDER)
    if rule == "random":
        return random_order(len(source), seed), None
    usual, short = RUNS[rule]
    found = []
    for run in range(runs or usual):
        stage = Scoring(forgetting=rule == "forgetting")
        network = fit(stage, f"score-{run + 1}", **options_of(fit, len(source), epochs or short)).product
        if rule == "forgetting":
            found.append(stage.forgotten.scores())
        else:
            found.append(_scores(rule, network, source, seed, task, fit))
        if rule == "herding":
            return found[0].long(), None
    scores = torch.stack(found).mean(0)
    return ranked(scores if hard else -scores, seed), scores


def options_of(fit: Fit, samples: int, epochs: int) -> dict[str, Any]:
    """How the Engine trains a network for scores: at the top of its schedule where training is cut short."""
    engine = fit.engine
    if not epochs:
        return {"evaluate_every": 0}
    recipe = replace(engine.recipe, schedule="constant")
    steps = epochs * -(-samples // engine.batch_size)
    return {"evaluate_every": 0, "recipe": recipe, "epochs": epochs, "steps": steps}


def _scores(rule: Rule, network: nn.Module, source: Source, seed: int, task: Task, fit: Fit) -> Tensor:
    """Scores [N] of the samples as they are, not augmented; of herding, its order."""
    runtime, y = Runtime(fit.engine.precision), labels_of(source)
    if rule in ("el2n", "margin"):
        logits = runtime.predict(network, source)[0].float()
        return (el2n if rule == "el2n" else margin)(logits, y)
    probe = Probe(network, task.example().to(runtime.device))
    try:
        both = runtime.predict(probe, source)[0].float()
    finally:
        probe.features.remove()
    logits, features = both.split([probe.features.classes, probe.features.size], -1)
    if rule == "grand":
        return grand_last_layer(logits, features, y, probe.bias)
    if rule == "herding":
        return herding(features, y)
    return prototype_distance(features, probe.features.classes, seed)

"""Fresh networks trained on a set of graphs by the Engine, as every condensation of graphs is judged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stillroom.checkpoint import weights
from stillroom.condensation.mirage.graphs import Packs
from stillroom.condensation.mirage.networks import GraphNetwork, Kind, Pool
from stillroom.data.source import TensorSource
from stillroom.engine import Engine
from stillroom.method import Batch, Method, Update, Updates
from stillroom.models.probing import quietly
from stillroom.optim import Recipe
from stillroom.runtime import Runtime
from stillroom.task import Task


def auc_placements(scores: Tensor, positive: Tensor) -> Tensor:
    """For each sample its part in the area under the ROC curve, float64 [n], whose mean is the area.

    A + (n / n_c)(V_i - A), with V_i the share of samples of the other class that sample i is on the right side
    of, ties counted half, and n_c the size of its own class: DeLong's components, so that the spread of their
    differences between two classifiers is that of the difference of areas. scores [n], positive [n] bool, both
    classes there.
    """
    high, low = scores[positive].double(), scores[~positive].double()
    wins = (high[:, None] > low).double() + 0.5 * (high[:, None] == low).double()
    area, n = wins.mean(), len(scores)
    parts = torch.empty(n, dtype=torch.float64)
    parts[positive] = area + n / len(high) * (wins.mean(1) - area)
    parts[~positive] = area + n / len(low) * (wins.mean(0) - area)
    return parts


def placements(logits: Tensor, y: Tensor) -> Tensor:
    """The same for any number of classes: each against the rest, averaged over those that are there, [n]."""
    p = logits.softmax(-1)
    present = [c for c in range(logits.shape[1]) if 0 < int((y == c).sum()) < len(y)]
    if logits.shape[1] == 2:
        present = present[-1:]
    return torch.stack([auc_placements(p[:, c], y == c) for c in present]).mean(0)


@dataclass(frozen=True)
class Recipes:
    """How fresh networks are built and trained."""

    layers: int
    hidden: int
    pool: Pool
    steps: int
    batch_size: int
    lr: float
    every: int
    """Steps between looks at the validation graphs."""


class Lesson(Task):
    """One network, one training set; the Engine's looks at the validation graphs choose the weights that are kept."""

    metric = "auc"

    def __init__(
        self,
        kind: Kind,
        packs: Packs,
        validation: Packs,
        prior: Tensor,
        widths: tuple[int, int],
        how: Recipes,
    ) -> None:
        super().__init__()
        self.kind, self.packs, self.validation, self.prior = kind, packs, validation, prior
        self.widths, self.how = widths, how
        self.best, self.kept = -1.0, {}

    def train(self) -> TensorSource:
        """Places to be filled: what stands there is drawn when the step is made."""
        return TensorSource(torch.zeros(self.how.every * self.how.batch_size, 1))

    def make_student(self, seed: int) -> nn.Module:
        """A fresh network; the Engine has seeded torch's generator."""
        how = self.how
        return GraphNetwork(self.kind, *self.widths, len(self.prior), how.layers, how.hidden, how.pool)

    def score(self, product: nn.Module, split: str, runtime: Runtime) -> dict[str, Any]:
        """The area under the ROC curve on the validation graphs; the best weights so far are kept."""
        area = float(placements(logits_of(product, self.validation, runtime), self.validation.y).mean())
        if area > self.best:
            self.best = area
            self.kept = {key: value.clone() for key, value in weights(product).items()}
        return {"auc": area}


@dataclass(eq=False)
class Fresh(Method):
    """Cross-entropy on graphs drawn in proportion to their weights within a class (Mirage, section 3.3)."""

    name: ClassVar[str] = "fresh-network"
    listed: ClassVar[bool] = False
    uses_teacher: ClassVar[bool] = False

    def bind(self, task: Task, seed: int) -> None:
        """Make the network, and the distribution that examples are drawn from."""
        assert isinstance(task, Lesson)
        super().bind(task, seed)
        self.packs = task.packs
        self.ends = chances(task.packs, task.prior).cumsum(0)

    def updates(self, batch: Batch) -> Updates:
        """One step on graphs drawn for it."""
        ends = self.ends.to(batch.x.device)
        drawn = torch.searchsorted(ends, batch.noise.uniform().double(), right=True).clamp_max(len(ends) - 1)
        loss = F.cross_entropy(self.student(self.packs.take(drawn)), self.packs.y.to(drawn.device)[drawn])
        yield Update("student", loss, items=len(batch))


def chances(packs: Packs, prior: Tensor) -> Tensor:
    """Probability of each example, float64 [n]: its class's prior times its share of the class's weight."""
    weight = packs.weight.double()
    total = torch.zeros(len(prior), dtype=torch.float64).index_add(0, packs.y, weight)
    chance = prior.double()[packs.y] * weight / total[packs.y]
    return chance / chance.sum()


def trained(lesson: Lesson, seed: int) -> nn.Module:
    """The lesson's network with the weights that did best on the validation graphs."""
    how = lesson.how
    engine = Engine(
        steps=how.steps,
        batch_size=how.batch_size,
        recipe=Recipe("adam", lr=how.lr, weight_decay=0.0, schedule="constant"),
        evaluate_every=1,
        log_every=how.every,
    )
    network = engine.fit(Fresh(), lesson, seed).product
    network.load_state_dict(lesson.kept)
    return network.eval()


def logits_of(network: nn.Module, packs: Packs, runtime: Runtime, size: int = 500) -> Tensor:
    """Logits [n, classes] of all graphs, in order, off the device."""
    with quietly(network), runtime.autocast():
        parts = [network(packs.take(ids.to(runtime.device))) for ids in torch.arange(len(packs)).split(size)]
    return torch.cat(parts).float().cpu()

"""The problem of MDCS: few classes have most of the training images, and all count alike in the test."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from stillroom import metrics
from stillroom.data import Source
from stillroom.errors import UserError, require
from stillroom.exporting.forms import Portable
from stillroom.models import build, load_student, read_config, save_student
from stillroom.models.wrapping import describe
from stillroom.predictors.classification import Classification
from stillroom.predictors.labels.mdcs.losses import expert_divergence, prediction_variance
from stillroom.predictors.labels.mdcs.pictures import tail_figures
from stillroom.predictors.labels.mdcs.repeated import Members
from stillroom.predictors.parts.branches import Branched, rebuilt
from stillroom.predictors.parts.card import write_card
from stillroom.predictors.parts.long_tail import long_tailed, shot_accuracies, shots, tail_order
from stillroom.runtime import Runtime

DIGITS_TAIL: dict[str, Any] = {"imbalance": 25.0, "largest": 75, "many_above": 30, "few_below": 8}
"""The built-in digits have 78 to 81 images a class."""


def class_counts(task: Classification) -> Tensor:
    """The student's training images of each class, int64 [C]; UserError where a class has none."""
    source, images = task.seen(), task.images
    if source.labels is None:
        raise UserError(f"data '{images.name}' has no labels: pass labelled data")
    counts = source.labels.bincount(minlength=task.classes)
    if int(counts.min()) == 0:
        name = images.classes[int(counts.argmin())]
        raise UserError(
            f"class '{name}' of data '{images.name}' has no training image: add some, or remove the class"
        )
    return counts


@dataclass(eq=False)
class LongTailed(Classification):
    """Classify images of classes of very unequal sizes: long-tailed 8x8 digits unless told otherwise."""

    metric: ClassVar[str] = "balanced_accuracy"

    teacher: str = "none"
    """Not used by MDCS; an architecture or a folder for methods that have a teacher."""
    student: str = "resnet:8-16-32"
    """mlp:, cnn: or resnet:WIDTHS, timm:, torchvision: or transformers:NAME, or a model's folder ./DIR."""
    imbalance: float | None = None
    """Make the training images long-tailed: largest class over smallest, >= 1. None: as they are; digits: 25."""
    largest: int | None = None
    """Training images of the largest class then; None: as many as every class has enough for, of the digits 75."""
    class_order: Literal["labels", "shuffled"] = "labels"
    """Which classes are common: the first ones, or a choice by `subset_seed`, another one for each seed of a claim."""
    many_above: int | None = None
    """Classes with more training images count as `many`; None: 100, of the built-in digits 30."""
    few_below: int | None = None
    """Classes with fewer training images count as `few`, the others as `medium`; None: 20, of the digits 8."""

    # -- data -------------------------------------------------------------------------------------------------------

    def option(self, name: str) -> Any:
        """The value of `imbalance`, `largest`, `many_above` or `few_below` where it was not told."""
        told = getattr(self, name)
        if told is not None:
            return told
        if self.data == "digits" and "data" not in self.given:
            return DIGITS_TAIL[name]
        return {"many_above": 100, "few_below": 20}.get(name)

    @property
    def wanted(self) -> int | None:
        """All, before the tail is cut, unless told otherwise."""
        return self.student_samples

    def seen(self) -> Source:
        """The training images, long-tailed if asked; validation and test are left as they are."""
        source, imbalance = super().seen(), self.option("imbalance")
        if imbalance is None:
            return source
        if source.labels is None:
            raise UserError(f"data '{self.images.name}' has no labels: pass labelled data")
        order = tail_order(self.classes, self.subset_seed if self.class_order == "shuffled" else None)
        largest = self.option("largest")
        return source.subset(
            long_tailed(source.labels, self.images.classes, imbalance, largest, order, self.subset_seed)
        )

    @property
    def counts(self) -> Tensor:
        """See `class_counts`."""
        return class_counts(self)

    @property
    def groups(self) -> dict[str, list[int]]:
        """The classes with many, medium and few training images."""
        return shots(self.counts.tolist(), self.option("many_above"), self.option("few_below"))

    def check(self, seed: int, teacher: bool) -> None:
        """See the base; every class has to have a training image."""
        if self.imbalance is not None:
            require("--task.imbalance", self.imbalance, 1)
        if self.largest is not None:
            require("--task.largest", self.largest, 1)
        few, many = self.option("few_below"), self.option("many_above")
        require("--task.few-below", few, 0)
        require("--task.many-above", many, few - 1)
        if self.images.train.labels is not None:
            _ = self.counts
        super().check(seed, teacher)

    # -- scores -----------------------------------------------------------------------------------------------------

    def score(self, product: nn.Module, split: str, runtime: Runtime) -> dict[str, Any]:
        """Means over classes, all and by how common they are, of the product and on 'test' of each of its experts."""
        source = self.images.validation if split == "validation" else self.images.test
        apart, y = runtime.predict(_Apart(product), source)
        if y is None:
            raise UserError(
                f"the {split} split of data '{self.images.name}' has no labels: pass labelled data"
            )
        logits, groups = apart.mean(1), self.groups
        found = shot_accuracies(logits, y, groups)
        found |= {
            "accuracy": metrics.accuracy(logits, y),
            "negative_log_likelihood": metrics.negative_log_likelihood(logits, y),
        }
        if split == "validation":
            return found
        experts = [
            {**shot_accuracies(one, y, groups), "per_class_accuracy": metrics.per_class_accuracy(one, y)}
            for one in apart.unbind(1)
        ]
        found = metrics.classification_report(logits, y) | found
        self.remember(product, accuracies=found | {"experts": experts})
        right, counts = (logits.argmax(-1) == y).double(), y.bincount(minlength=self.classes)
        weights = len(y) / (int((counts > 0).sum()) * counts[y].double())
        found["per_sample"] = (right * weights).tolist()
        if isinstance(product, Members):
            return found | {"variance": prediction_variance(apart)}
        return found | _of_experts(experts, expert_divergence(apart))

    def figures(self, products: Mapping[str, Any], runtime: Runtime) -> list[dict[str, str]]:
        """Accuracy by how common classes are, of each arm, and class by class of each expert."""
        rows = self.recalled(products, "accuracies")
        return tail_figures(rows, self.images.classes, self.counts.tolist(), self.groups)

    def summary(self) -> dict[str, Any]:
        """See the base, with the training images of each class."""
        counts = self.counts.tolist()
        ends = {"imbalance": round(max(counts) / min(counts), 1)}
        return super().summary() | {"class counts": counts, **ends, "groups": self.groups}

    # -- what is kept -----------------------------------------------------------------------------------------------

    def export(self, product: nn.Module, folder: Path, about: Mapping[str, Any]) -> None:
        """Write weights, config and a model card to `folder`."""
        if not isinstance(product, Branched):
            super().export(product, folder, about)
            return
        own = product.description
        experts = f" with {own['branches']} experts" if own["branches"] > 1 else ""
        config = self.student_config(
            about, architecture=describe(product), branched=own, network=f"{self.student_name}{experts}"
        )
        save_student(folder, product, config)
        write_card(folder, config, about)

    @classmethod
    def load(cls, folder: Path, module: nn.Module | None = None) -> nn.Module:
        """The network in `folder`; `module` is a user's own student, before it was branched, or a plain product."""
        config = read_config(folder)
        own = config.get("branched")
        if not isinstance(own, dict):
            return load_student(folder, module)
        made = module if isinstance(module, Branched) else rebuilt(own, _maker(own, config, folder, module))
        return load_student(folder, made)

    def portable(
        self, product: nn.Module, folder: Path, about: Mapping[str, Any], absent: Collection[str] = ()
    ) -> Portable:
        """A classifier's graphs; the run's plain arm is another architecture, and is not timed beside it."""
        return replace(super().portable(product, folder, about, absent), beside=dict)

    def quick(self) -> LongTailed:
        """A hundred digits, 6 to 18 a class, and a network without statistics over batches."""
        small = {"imbalance": 3.0, "largest": 18, "many_above": 14, "few_below": 8, "student": "cnn:4-8-8"}
        made = super().quick().but(train_samples=200, student_samples=None, **small)
        assert isinstance(made, LongTailed)
        return made


class _Apart(nn.Module):
    """A product as logits [n, K, C]: of each expert, or of the one network that it is."""

    def __init__(self, product: nn.Module) -> None:
        super().__init__()
        self.product = product

    def forward(self, x: Tensor) -> Tensor:
        """Inputs [n, ...]."""
        if isinstance(self.product, Branched | Members):
            return self.product(x, apart=True)
        return self.product(x).unsqueeze(1)


def _of_experts(experts: list[dict[str, Any]], divergence: float) -> dict[str, float]:
    """Each expert's numbers, how far the first is ahead on many and the last on few, and their divergence."""
    found: dict[str, float] = {}
    for group, ahead, behind in (("many", 0, -1), ("few", -1, 0)):
        key = f"{group}_accuracy"
        if key in experts[0]:
            found[f"{group}_specialisation"] = experts[ahead][key] - experts[behind][key]
    found["expert_divergence"] = divergence
    if len(experts) > 1:
        for number, row in enumerate(experts, 1):
            found |= {
                f"expert_{number}_{key}": value for key, value in row.items() if isinstance(value, float)
            }
    return found


def _maker(own: Mapping[str, Any], config: Mapping[str, Any], folder: Path, module: nn.Module | None) -> Any:
    """What makes one of the branches: its description, or copies of the user's own network."""
    import copy

    if module is not None:
        return lambda seed: copy.deepcopy(module)
    name = own.get("network")
    if not isinstance(name, (str, dict)):
        raise UserError(
            f"the branches in '{folder}' are of a network of your own: pass load(folder, module=network)"
        )
    return lambda seed: build(name, shape=config["shape"], classes=config["classes"], seed=seed)

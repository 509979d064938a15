"""The problem: all samples to choose from, some of whose labels may be wrong, and the list of what was kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stillroom.checkpoint import write_json
from stillroom.data import ImageData
from stillroom.errors import require
from stillroom.predictors.classification import Classification
from stillroom.predictors.parts.label_noise import Relabelled, flipped
from stillroom.reports import pruning_figures
from stillroom.runtime import Runtime
from stillroom.seeds import seed_of

INDICES = "indices.json"

NOISE = 32
"""Keeps the choice of wrong labels apart from all other seeds."""


@dataclass(frozen=True)
class Kept:
    """What was kept, and how it was chosen: what `indices.json` holds."""

    rule: str
    fraction: float
    balanced: bool
    end: str
    seed: int
    samples: int
    """Of how many training samples."""
    ids: list[int]
    """The ids of those kept among the samples to choose from, ascending."""
    alpha: float
    """The teacher's weight that was trained with."""


@dataclass(eq=False)
class PrunedClassification(Classification):
    """Classify images, a student of few samples and a teacher of all: the 8x8 digits unless told otherwise."""

    teacher: str = "mlp:64-64"
    """mlp:, cnn: or resnet:WIDTHS, timm:, torchvision: or transformers:NAME, a model's folder ./DIR, or none."""
    student: str = "mlp:64-64"
    """Likewise, or config:./DIR, its architecture alone, or less of the teacher, shrink:depth=0.5,width=0.5."""
    teacher_epochs: int = 25
    """Epochs of the teacher's training, >= 1."""
    student_samples: int | None = None
    """How many samples there are to choose from; the teacher sees all. None: all."""
    label_noise: float = 0.0
    """Share of training labels that are another class, in [0, 1); validation and test labels stay right."""
    noise_seed: int = 0
    """Seed of the choice of wrong labels, which are the same for teacher and student."""

    @property
    def wanted(self) -> int | None:
        """As asked, also of the built-in digits."""
        return self.student_samples

    @property
    def images(self) -> ImageData:
        """The data, with wrong training labels where they are asked for."""
        base = super().images
        if not self.label_noise or base.train.labels is None:
            return base
        key = (base.fingerprint, self.label_noise, self.noise_seed)
        held = self.__dict__.setdefault("_noisy", {})
        if key not in held:
            seed = seed_of(NOISE, self.noise_seed)
            labels = flipped(base.train.labels, len(base.classes), self.label_noise, seed)
            splits = base.splits | {"wrong training labels": int((labels != base.train.labels).sum())}
            mark = f"{base.fingerprint}-{self.label_noise:g}-{self.noise_seed}"
            train = Relabelled(base.train, labels)
            held[key] = replace(base, train=train, splits=splits, fingerprint=mark)
        return held[key]

    @property
    def rows(self) -> torch.Tensor | None:
        """Of each sample to choose from its row in the training split as it came; None where that is not known."""
        return self.images.rows if self.student_samples is None else None

    def check(self, seed: int, teacher: bool) -> None:
        """As the base, and the share of wrong labels."""
        require("--task.label-noise", self.label_noise, 0, 1, ends="[)")
        super().check(seed, teacher)

    def score(self, product: nn.Module, split: str, runtime: Runtime) -> dict[str, Any]:
        """As the base; of a student of few samples their number and alpha too."""
        found = super().score(product, split, runtime)
        record: Kept | None = self.recall(product, "kept")
        if record is not None:
            found |= {"kept_samples": len(record.ids), "alpha": record.alpha}
        return found

    def figures(self, products: Mapping[str, Any], runtime: Runtime) -> list[dict[str, str]]:
        """Accuracy on the validation split against the kept fraction: this run's points in the curve."""
        points = []
        for name, product in products.items():
            record: Kept | None = self.recall(product, "kept")
            fraction = record.fraction if record is not None else 1.0
            label = name if record is not None else f"{name}, all data"
            points.append((label, [fraction], [[self.score(product, "validation", runtime)["accuracy"]]]))
        return [pruning_figures.accuracy_by_fraction(points, "validation split")]

    def export(self, product: nn.Module, folder: Path, about: Mapping[str, Any]) -> None:
        """As the base, and the list of what was kept."""
        super().export(product, folder, about)
        record: Kept | None = self.recall(product, "kept")
        if record is not None:
            found = asdict(record) | {"data": self.images.name, "fingerprint": self.images.fingerprint}
            if self.rows is not None:
                found["rows"] = self.rows[torch.tensor(record.ids)].tolist()
            write_json(folder / INDICES, found)

    def paired(self, seed: int) -> PrunedClassification:
        """As the base, with other wrong labels."""
        return super().paired(seed).but(noise_seed=seed if self.label_noise else self.noise_seed)

    def quick(self) -> PrunedClassification:
        """A hundred digits, and two epochs for the teacher."""
        made = super().quick().but(student_samples=None)
        assert isinstance(made, PrunedClassification)
        return made

"""Images some of whose training labels are wrong: a problem that leaves something to repair on easy data."""

from __future__ import annotations

from dataclasses import dataclass

from stillroom.data import Source
from stillroom.errors import UserError, require
from stillroom.predictors.classification import Classification
from stillroom.predictors.parts.label_noise import Relabelled, flipped
from stillroom.seeds import seed_of

WRONG = 22
"""Keeps the choice of wrong labels apart from all other seeds."""


@dataclass(eq=False)
class WrongLabels(Classification):
    """Classify images some of whose training labels are wrong; validation and test labels are right."""

    wrong_labels: float = 0.2
    """Share of the student's training labels that are another class, in [0, 1)."""

    def seen(self) -> Source:
        """The student's images, with their wrong labels, another choice for each `subset_seed`."""
        source = super().seen()
        if source.labels is None:
            raise UserError(f"data '{self.images.name}' has no labels to make wrong: pass labelled data")
        seed = seed_of(self.subset_seed, WRONG)
        return Relabelled(source, flipped(source.labels, self.classes, self.wrong_labels, seed))

    def check(self, seed: int, teacher: bool) -> None:
        """See the base; and the share of wrong labels."""
        require("--task.wrong-labels", self.wrong_labels, 0, 1, ends="[)")
        super().check(seed, teacher)

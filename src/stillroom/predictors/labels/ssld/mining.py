"""What is taken from the pool: no image that is scored on, and of the rest the best of each class."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from stillroom.data import Source
from stillroom.errors import UserError
from stillroom.predictors.parts.pool import Pool, likeness, random_choice, score_pool, top_k_per_class
from stillroom.runtime import Runtime
from stillroom.seeds import seed_of
from stillroom.teacher import Teacher

Selection = Literal["top-k", "random", "none"]
DRAW = 31
"""Keeps the random choice apart from all else that is made from a run's seed."""
SELECTED, REMOVED = "selected.csv", "near-duplicates.csv"


@dataclass(frozen=True)
class Mined:
    """A pool, what was found out about its N images, and which of them the student is shown."""

    pool: Pool
    likeness: Tensor
    """Correlation with the nearest image of validation and test, [N]."""
    duplicates: Tensor
    """Whether that makes an image one of them, bool [N]."""
    scores: Tensor
    """The scorer's largest probability, float64 [N]."""
    classes: Tensor
    """Its class, int64 [N]."""
    selected: Tensor
    """Ids, ascending."""

    def numbers(self) -> dict[str, float]:
        """Counts, and where it is known what the images are, how much of what should stay out did."""
        chosen = self.scores[self.selected]
        found = {
            "pool images": float(len(self.scores)),
            "near-duplicates removed": float(self.duplicates.sum()),
            "images selected": float(len(self.selected)),
            "lowest score selected": float(chosen.min()),
            "classes selected": float(len(self.classes[self.selected].unique())),
        }
        for kind in sorted(set(self.pool.kinds) - {"image"}):
            of_kind = torch.tensor([one == kind for one in self.pool.kinds])
            taken = float(of_kind[self.selected].sum())
            found |= {f"{kind} selected": taken, f"{kind}_kept_out": 1 - taken / float(of_kind.sum())}
        images = torch.tensor([one == "image" for one in self.pool.kinds])
        if len(images):
            found["other images removed as near-duplicates"] = float((images & self.duplicates).sum())
        return found

    def write(self, folder: Path, names: Sequence[str]) -> None:
        """Write both lists to `folder`: the selected images, best first within their class, and those removed."""
        ids = self.selected
        ids = ids[self.scores[ids].argsort(descending=True, stable=True)]
        ids = ids[self.classes[ids].argsort(stable=True)].tolist()
        rows = [(i, self.pool.where(i), names[int(self.classes[i])], f"{self.scores[i]:.9g}") for i in ids]
        _write(folder / SELECTED, ("id", "image", "class", "score"), rows)
        out = self.duplicates.nonzero().squeeze(1).tolist()
        removed = [(i, self.pool.where(i), f"{self.likeness[i]:.6f}") for i in out]
        _write(folder / REMOVED, ("id", "image", "likeness"), removed)


def mine(
    pool: Pool,
    held_out: Sequence[Source],
    scorer: Teacher,
    how: Selection,
    top_k: int,
    similarity: float,
    seed: int,
) -> Mined:
    """Leave out what is as near to an image of `held_out` as `similarity`, and take the `top_k` of each class.

    `how` "random" takes as many images from all that is left, whatever their scores. Raises UserError where nothing
    is left.
    """
    runtime = Runtime()
    near = likeness(pool.source, held_out, runtime)
    duplicates = near >= similarity
    if bool(duplicates.all()):
        raise UserError(
            f"all {len(near)} images of the pool are near-duplicates of validation or test images: pass another "
            "--task.pool, or a --method.duplicate-similarity nearer to 1"
        )
    scores, classes = score_pool(scorer, pool.source, runtime)
    selected = top_k_per_class(scores, classes, top_k, ~duplicates)
    if how == "random":
        selected = random_choice(len(selected), ~duplicates, seed_of(seed, DRAW))
    return Mined(pool, near, duplicates, scores, classes, selected)


def _write(path: Path, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(head)
        table.writerows(rows)

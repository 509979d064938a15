"""Long-tailed training data: how many samples each class keeps, which ones, and accuracy by how common a class is."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from stillroom.errors import UserError, require
from stillroom.metrics import per_class_accuracy
from stillroom.seeds import seed_of

ORDER, CHOICE = 41, 42
"""Keep the order of the classes and the choice of their samples apart from all other seeds."""


def tail_counts(largest: int, imbalance: float, classes: int) -> list[int]:
    """n_r = floor(n_max IF^(-r / (C - 1))) for the ranks r = 0 .. C - 1 (Cao et al., NeurIPS 2019, arXiv:1906.07413).

    `largest` n_max >= 1; `imbalance` IF >= 1 is the largest count over the smallest. A count may be 0.
    """
    shares = _shares(imbalance, classes)
    return [math.floor(largest * share + 1e-9) for share in shares]


def tail_order(classes: int, seed: int | None = None) -> list[int]:
    """The classes from the most to the least common: as they are numbered, or shuffled by `seed`."""
    if seed is None:
        return list(range(classes))
    generator = torch.Generator().manual_seed(seed_of(ORDER, seed))
    return torch.randperm(classes, generator=generator).tolist()


def long_tailed(
    labels: Tensor,
    names: Sequence[str],
    imbalance: float,
    largest: int | None = None,
    order: Sequence[int] | None = None,
    seed: int = 0,
) -> Tensor:
    """Ids [m], ascending, of a random subset of samples with `labels` [n] whose class counts fall off exponentially.

    `names` are the classes', `order` as in `tail_order`; `largest` None takes the most that every class has enough
    for. Raises UserError where a class lacks samples, or would keep none.
    """
    require("--task.imbalance", imbalance, 1)
    classes = len(names)
    ranked = list(order or range(classes))
    there = labels.bincount(minlength=classes)[ranked].tolist()
    most = _most(there, imbalance)
    largest = most if largest is None else largest
    counts = tail_counts(largest, imbalance, classes)
    short = next((r for r in range(classes) if counts[r] > there[r]), None)
    if short is not None:
        raise UserError(
            f"--task.largest is {largest}: class '{names[ranked[short]]}' has {there[short]} training samples and "
            f"would need {counts[short]}; pass at most {most}"
        )
    if counts[-1] < 1:
        raise UserError(
            f"--task.imbalance is {imbalance:g}: of {largest} samples in the largest class none is left in class "
            f"'{names[ranked[-1]]}'; pass at most {max(1, largest)}"
        )
    generator = torch.Generator().manual_seed(seed_of(CHOICE, seed))
    shuffled = torch.randperm(len(labels), generator=generator)
    kept = [shuffled[labels[shuffled] == c][:n] for c, n in zip(ranked, counts, strict=True)]
    return torch.cat(kept).sort().values


def _shares(imbalance: float, classes: int) -> list[float]:
    return [imbalance ** (-rank / max(1, classes - 1)) for rank in range(classes)]


def _most(there: Sequence[int], imbalance: float) -> int:
    """The largest n_max whose counts, by rank, are all there."""
    shares = _shares(imbalance, len(there))
    return min(math.ceil((n + 1) / share - 1e-9) - 1 for n, share in zip(there, shares, strict=True))


# -- accuracy by how common a class is ----------------------------------------------------------------------------


def shots(counts: Sequence[int], many_above: int = 100, few_below: int = 20) -> dict[str, list[int]]:
    """The classes with `many`, `medium` and `few` training samples (Liu et al., CVPR 2019, arXiv:1904.05160).

    Many: more than `many_above`; few: less than `few_below`; medium: the rest. A group may be empty.
    """
    groups: dict[str, list[int]] = {"many": [], "medium": [], "few": []}
    for c, n in enumerate(counts):
        groups["many" if n > many_above else "few" if n < few_below else "medium"].append(c)
    return groups


def balanced_accuracy(per_class: Sequence[float | None]) -> float:
    """The mean of the classes' accuracies in [0, 1]; classes without test samples (None) are left out."""
    found = [value for value in per_class if value is not None]
    return sum(found) / len(found)


def shot_accuracies(
    logits: Tensor, y: Tensor, groups: dict[str, list[int]], prefix: str = ""
) -> dict[str, float]:
    """`balanced_accuracy`, and `many_accuracy` and so on for each group of `shots` that has tested classes.

    Logits [n, C], labels [n]; all are means over classes, in [0, 1]. `prefix` stands before each name.
    """
    per_class = per_class_accuracy(logits, y)
    found = {f"{prefix}balanced_accuracy": balanced_accuracy(per_class)}
    for name, members in groups.items():
        tested = [per_class[c] for c in members if per_class[c] is not None]
        if tested:
            found[f"{prefix}{name}_accuracy"] = balanced_accuracy(tested)
    return found

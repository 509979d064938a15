"""How good samples are: the distances of the field, each beside its floor, real data against other real data."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from stillroom import metrics
from stillroom.data import Source
from stillroom.generators.parts.data import Samples
from stillroom.generators.parts.judge import Judge

FOLDS = 10
"""Parts of the samples over which a distance is compared between two arms of one run."""


def real(source: Source, most: int) -> tuple[Tensor, Tensor | None]:
    """Up to `most` samples [n, ...] of a source, spread evenly over it, with their labels."""
    count = min(most, len(source))
    ids = torch.arange(count) * len(source) // count
    return source.fetch(ids, view=None)


def distance(judge: Judge | None, fake: Tensor, truth: Tensor) -> float:
    """The one number that decides: Frechet's in the judge's features, sliced Wasserstein's for points (no judge)."""
    if judge is None:
        return metrics.sliced_wasserstein(truth, fake)
    return metrics.frechet(judge.features(truth), judge.features(fake))


def report(
    samples: Samples, judge: Judge | None, fake: Tensor, truth: Tensor, other: Tensor, labels: Tensor | None
) -> dict[str, Any]:
    """All distances of `fake` to `truth`, with the floor that `other` real samples set, and those of ten parts."""
    if judge is None:
        parts = folds(metrics.sliced_wasserstein, fake, truth)
        return points_report(samples, fake, truth, other) | {"per_sample": parts}
    fake, truth, other = (judge.features(x) for x in (fake, truth, other))
    parts = folds(metrics.frechet, fake, truth)
    return image_report(judge, fake, truth, other, labels) | {"per_sample": parts}


def points_report(samples: Samples, fake: Tensor, truth: Tensor, other: Tensor) -> dict[str, Any]:
    """Distances of points [n, 2] to `truth` [n, 2], with those of other real points as the floor.

    The exact Wasserstein distance among them where POT is installed.
    """
    count = min(len(fake), len(other))
    report: dict[str, Any] = {
        "sliced_wasserstein": metrics.sliced_wasserstein(truth, fake),
        "sliced_wasserstein_floor": metrics.sliced_wasserstein(truth, other[:count]),
        "mmd": metrics.mmd(truth, fake),
        "mmd_floor": metrics.mmd(truth, other[:count]),
        **metrics.precision_recall(truth, fake),
    }
    if find_spec("ot") is not None:
        report["wasserstein"] = metrics.wasserstein(truth, fake)
        report["wasserstein_floor"] = metrics.wasserstein(truth, other[:count])
    if samples.modes is not None:
        centres, shares = samples.modes
        counts = metrics.mode_counts(fake, centres)
        report["modes_covered"] = metrics.modes_covered(counts, weights=shares)
        report["mode_distance"] = metrics.mode_distance(counts, shares)
        report["mode_distance_floor"] = metrics.mode_distance(metrics.mode_counts(truth, centres), shares)
        report["modes"] = counts.tolist()
    return report


def image_report(
    judge: Judge, fake: Tensor, truth: Tensor, other: Tensor, labels: Tensor | None
) -> dict[str, Any]:
    """Distances of features [n, d], and how often the judge sees the wanted class in them."""
    report: dict[str, Any] = {
        "frechet": metrics.frechet(truth, fake),
        "frechet_floor": metrics.frechet(truth, other[: len(fake)]),
        "mmd": metrics.mmd(truth, fake),
        "mmd_floor": metrics.mmd(truth, other[: len(fake)]),
        **metrics.precision_recall(truth, fake),
    }
    if labels is not None and judge.head is not None:
        report["class_agreement"] = (judge.classes(fake) == labels).double().mean().item()
        report["class_agreement_floor"] = (judge.classes(truth) == labels).double().mean().item()
    return report


def folds(measure: Callable[[Tensor, Tensor], float], fake: Tensor, truth: Tensor) -> list[float]:
    """The distance in each of ten parts of the samples, or their features: what two arms are paired over."""
    parts = zip(fake.tensor_split(FOLDS), truth.tensor_split(FOLDS), strict=True)
    return [measure(theirs, own) for own, theirs in parts]

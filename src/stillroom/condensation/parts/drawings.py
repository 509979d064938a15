"""Pictures of condensed sets: the images of each arm beside each other, and what networks learn from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from stillroom.condensation.parts.synthetic import SyntheticSet
from stillroom.reports.generation_figures import histogram_bars, sample_grid

Figure = dict[str, str]
CLASSES, EACH = 10, 3


def image_grid(sets: Mapping[str, SyntheticSet]) -> Figure:
    """For each of the first three images of a class a row an arm: the first ten classes, from left to right."""
    rows = []
    for place in range(EACH):
        for arm, made in sets.items():
            shown = _of_each_class(made, place)
            if shown is not None:
                rows.append((f"{arm}, image {place + 1} of each class", 2 * shown - 1))
    names = next(iter(sets.values())).classes[:CLASSES]
    caption = f"From left to right: {', '.join(names)}. Pixels outside of their range are clipped."
    return {"title": "The images", "caption": caption, "svg": sample_grid(rows, "images of each class")}


def _of_each_class(made: SyntheticSet, place: int) -> Tensor | None:
    """Image `place` of each of the first classes, in [0, 1]; None where a class has not so many."""
    rows = [(made.labels == number).nonzero()[:, 0] for number in range(min(CLASSES, len(made.classes)))]
    if any(len(group) <= place for group in rows):
        return None
    pixels = made.pixels().cpu()[torch.stack([group[place] for group in rows]).cpu()]
    return pixels[:, :3] if pixels.shape[1] >= 3 else pixels[:, :1]


def accuracy_bars(networks: Sequence[str], accuracies: Mapping[str, Sequence[float]]) -> Figure:
    """Bars by architecture, an arm beside the other; accuracies in [0, 1]."""
    series = [(arm, [100 * value for value in values]) for arm, values in accuracies.items()]
    svg = histogram_bars(networks, series, "accuracy, %", "accuracy by architecture")
    caption = (
        "Accuracy on the real test images of fresh networks that were trained on each set, mean over networks. The "
        "first architecture is the one that the set was made with."
    )
    return {"title": "What networks learn from them", "caption": caption, "svg": svg}


def pictures(
    networks: Sequence[str], sets: Mapping[str, Any], accuracies: Mapping[str, Sequence[float]]
) -> list[Figure]:
    """All of them."""
    return [image_grid(sets), accuracy_bars(networks, accuracies)]

"""Figures of a table: how sure the teacher was of its crops and what became of them, and crops of each kind."""

from __future__ import annotations

import torch
from torch import Tensor

from stillroom.data import ImageData
from stillroom.predictors.labels.ferkd.adapting import Adapted
from stillroom.predictors.labels.ferkd.regions import REGIONS
from stillroom.predictors.parts.crops import FreshCrops, replay
from stillroom.reports.generation_figures import histogram_bars, sample_grid

BINS, SHOWN = 12, 10


def confidence_figure(held: Adapted, told: str) -> dict[str, str]:
    """Crops by the teacher's confidence in [0, 1], what became of them side by side; `told` ends the caption."""
    sure, where, at = held.table.confidence.reshape(-1), held.regions.reshape(-1), held.at
    edges = torch.linspace(float(sure.min()), 1.0, BINS + 1)
    bins = torch.bucketize(sure, edges[1:-1])
    series = [
        (name, 100 * torch.bincount(bins[where == number], minlength=BINS) / len(sure))
        for number, name in enumerate(REGIONS)
        if bool((where == number).any())
    ]
    names = [f"{(a + b) / 2:.2f}" for a, b in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)]
    caption = (
        f"Share of the stored crops by the teacher's largest probability, at the middle of each bin. Thresholds: "
        f"dropped below {at.low:.3g} and above {at.top:.5g}, softened below {at.middle:.3g}. {told}"
    )
    svg = histogram_bars(names, series, "crops, %", "stored crops by confidence")
    return {"title": "How sure the teacher is of its crops", "caption": caption, "svg": svg}


def example_figure(held: Adapted, source: FreshCrops, images: ImageData) -> dict[str, str]:
    """Ten crops of each kind, evenly spread over the table of the images of `source`."""
    rows = []
    for number, name in enumerate(REGIONS):
        there = (held.regions == number).nonzero()
        if len(there):
            shown = min(SHOWN, len(there))
            chosen = there[torch.arange(shown) * len(there) // shown]
            label = f"{name}, {len(there) / held.regions.numel():.1%} of the crops"
            rows.append((label, _pixels(held, source, images, chosen)))
    svg = sample_grid(rows, "crops of each kind")
    return {"title": "Crops of each kind", "caption": "Evenly spread over the table.", "svg": svg}


def _pixels(held: Adapted, source: FreshCrops, images: ImageData, chosen: Tensor) -> Tensor:
    """The crops `chosen` [n, 2] (image, number) as [n, C, H, W] in [-1, 1], C 1 or 3."""
    mean, std = (torch.tensor(numbers).view(-1, 1, 1) for numbers in (images.mean, images.std))
    whole, _ = source.source.fetch(chosen[:, 0], None)
    boxes, flips = held.table.places(chosen[:, 0])
    made = [
        replay(image, boxes[i, k], bool(flips[i, k]), source.cropping.size)
        for i, (image, k) in enumerate(zip(whole, chosen[:, 1].tolist(), strict=True))
    ]
    pixels = 2 * (torch.stack(made) * std + mean) - 1
    return pixels[:, :3] if pixels.shape[1] >= 3 else pixels[:, :1]

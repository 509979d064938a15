"""Figures of a run of SSLD: its stages, the scores of the pool, the classes, and some of the images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from stillroom.predictors.labels.ssld.mining import Mined
from stillroom.reports.generation_figures import histogram_bars, sample_grid

BINS = 10


def stage_figure(stages: Sequence[tuple[str, float]]) -> dict[str, str]:
    """Validation accuracy, in [0, 1], at the start and after each stage."""
    names = [name for name, _ in stages]
    values = [100 * value for _, value in stages]
    svg = histogram_bars(names, [("student", values)], "accuracy, %", "validation accuracy after each stage")
    told = ", ".join(f"{name} {value:.1f} %" for name, value in zip(names, values, strict=True))
    caption = f"Validation accuracy before training and after each stage: {told}."
    return {"title": "Stages", "caption": caption, "svg": svg}


def pool_figures(
    mined: Mined, classes: Sequence[str], pixels: Callable[[Tensor], Tensor]
) -> list[dict[str, str]]:
    """Scores of the pool, classes of what was selected, and examples; `pixels` puts images back into [0, 1]."""
    chosen = torch.zeros(len(mined.scores), dtype=torch.bool)
    chosen[mined.selected] = True
    bins = (mined.scores * BINS).long().clamp(0, BINS - 1)
    parts = [("selected", chosen), ("left out", ~chosen & ~mined.duplicates)]
    scores = [(name, bins[rows].bincount(minlength=BINS).tolist()) for name, rows in parts]
    counts = [(name, mined.classes[rows].bincount(minlength=len(classes)).tolist()) for name, rows in parts]
    edges = [f"{i / BINS:.1f}" for i in range(BINS)]
    return [
        {
            "title": "Scores of the pool",
            "caption": "Images by the scorer's largest probability; a bar begins at the number below it. "
            f"{int(mined.duplicates.sum())} near-duplicates of validation and test images were removed before.",
            "svg": histogram_bars(edges, scores, "images", "images of the pool by score"),
        },
        {
            "title": "Selected by class",
            "caption": "Images by the class with the largest probability.",
            "svg": histogram_bars(classes, counts, "images", "images of the pool by class"),
        },
        {
            "title": "Images of the pool",
            "caption": "As they came, not augmented.",
            "svg": sample_grid(_examples(mined, chosen, pixels), "images of the pool"),
        },
    ]


def _examples(mined: Mined, chosen: Tensor, pixels: Callable[[Tensor], Tensor]) -> list[tuple[str, Tensor]]:
    """Rows of ten images: the best and the worst that were selected, the best left out, some near-duplicates."""
    ranked = mined.scores.argsort(descending=True, stable=True)
    taken, left = ranked[chosen[ranked]], ranked[(~chosen & ~mined.duplicates)[ranked]]
    rows = {
        "selected, highest scores": taken[:10],
        "selected, lowest scores": taken[-10:],
        "left out, highest scores": left[:10],
        "left out, lowest scores": left[-10:],
        "near-duplicates": mined.duplicates.nonzero().squeeze(1)[:10],
    }
    found = []
    for name, ids in rows.items():
        if len(ids):
            x = pixels(mined.pool.source.fetch(ids, None)[0])
            x = x if x.shape[1] in (1, 3) else x.mean(1, keepdim=True)
            found.append((name, 2 * x - 1))
    return found

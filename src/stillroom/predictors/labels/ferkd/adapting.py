"""A table with its labels adapted, once: what a student is trained on, and what can be said of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stillroom.predictors.labels.ferkd.regions import (
    EASIEST,
    HARD,
    HARDEST,
    IMPORTANT,
    Thresholds,
    adapted,
    regions_of,
    rescued,
    shuffled,
    thresholds,
)
from stillroom.predictors.labels.ferkd.table import Table
from stillroom.predictors.parts.crops import covered


@dataclass
class Adapted:
    """Regions of all crops; called with images and numbers of crops, it reads their labels."""

    table: Table
    y: Tensor
    """True classes of the images, int64 [N]."""
    at: Thresholds
    regions: Tensor
    """Of each crop [N, K], uint8."""
    smoothing: float

    @classmethod
    def of(cls, table: Table, y: Tensor, options: Any) -> Adapted:
        """By the thresholds that `options` (the method) has, over the whole table."""
        confidence = table.confidence
        at = thresholds(confidence, options.low, options.middle, options.top, options.thresholds)
        regions = regions_of(confidence, at)
        if options.selection == "random":
            regions = shuffled(regions, options.crop_seed)
        return cls(table, y, at, rescued(regions, confidence, at), options.smoothing)

    @property
    def kept(self) -> Tensor:
        """Which crops may be drawn [N, K], bool."""
        return (self.regions == HARD) | (self.regions == IMPORTANT)

    def __call__(self, ids: Tensor, picks: Tensor) -> Tensor:
        """The labels [n, classes] of the crops `picks` [n] of the images `ids` [n]."""
        return adapted(self.table.labels(ids, picks), self.y[ids], self.regions[ids, picks], self.smoothing)

    def told(self, objects: Tensor | None, seconds: float) -> str:
        """Where the table came from, its size, and what its crops show, in words."""
        made = f"made in {seconds:.1f} s" if seconds else "found in the cache"
        facts = facts_of(self, objects)
        known = (
            f" Confidence and the visible share of the object: rank correlation {facts['rank correlation']:.2f}; "
            f"softened crops show {facts['visible in softened']:.0%} of it, kept ones {facts['visible in kept']:.0%}."
            if "rank correlation" in facts
            else ""
        )
        return f"The table takes {self.table.store.bytes / 1e6:,.1f} MB and was {made}.{known}"


def facts_of(held: Adapted, objects: Tensor | None) -> dict[str, float]:
    """Shares of the regions; where `objects` [N, 4] are known, what the crops of each show of them."""
    names = {HARDEST: "too hard", HARD: "softened", IMPORTANT: "kept", EASIEST: "too easy"}
    facts = {f"share {name}": float((held.regions == r).float().mean()) for r, name in names.items()}
    facts |= {"T_L": held.at.low, "T_M": held.at.middle, "T_T": held.at.top}
    if objects is None:
        return facts
    from scipy.stats import spearmanr

    boxes, _ = held.table.places(torch.arange(len(held.table)))
    shown = covered(boxes, objects.unsqueeze(1))
    rank = spearmanr(held.table.confidence.reshape(-1).numpy(), shown.reshape(-1).numpy()).statistic
    facts["rank correlation"] = float(rank)
    for region, name in names.items():
        if bool((held.regions == region).any()):
            facts[f"visible in {name}"] = float(shown[held.regions == region].mean())
    return facts

"""The model card beside an exported generator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stillroom.exporting.card import Card, arm_rows
from stillroom.generators.parts.sampler import Sampler


def write_card(
    folder: Path, sampler: Sampler, config: Mapping[str, Any], about: Mapping[str, Any], pipeline: str | None
) -> None:
    """Write README.md: what the sampler is, how it was made, how good it is, how to load it."""
    card(sampler, config["shape"], about, pipeline).write(folder, about)


def card(
    sampler: Sampler, shape: Sequence[int], about: Mapping[str, Any], pipeline: str | None = None
) -> Card:
    """The card of a sampler of samples of `shape` that the run `about` made; `pipeline` says how diffusers loads it."""
    plan, metric = sampler.plan, about["metric"]

    def cells(arm: Mapping[str, Any]) -> list[str]:
        cost = arm["cost"]
        numbers = str(cost.get("evaluations", "")), f"{cost.get('parameters', 0):,}"
        return [f"{arm['test'][metric]:.4g}", *numbers]

    return Card(
        title=f"A sampler distilled with {about['method']}",
        tags=("distillation", "diffusion"),
        table=[("", metric.replace("_", " "), "evaluations a sample", "parameters"), *arm_rows(about, cells)],
        facts=[
            f"samples of shape {tuple(shape)}, images in [-1, 1]",
            f"sampling: {plan.solver}, {plan.steps} steps, guidance {plan.guidance:g}, {sampler.evaluations} "
            "evaluations",
        ],
        code=[
            "from stillroom.generators.parts.saving import load_sampler",
            "sampler = load_sampler('.')  # sampler(noise, labels): unit noise in, samples out",
        ],
        ending=[pipeline] if pipeline else [],
    )

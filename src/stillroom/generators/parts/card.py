"""The model card beside an exported generator."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stillroom.checkpoint import write_text
from stillroom.generators.parts.sampler import Sampler


def write_card(
    folder: Path, sampler: Sampler, config: Mapping[str, Any], about: Mapping[str, Any], pipeline: str | None
) -> None:
    """Write README.md: what the sampler is, how it was made, how good it is, how to load it."""
    plan, metric = sampler.plan, about["metric"]
    rows = [
        f"| {name} | {arm['test'][metric]:.4g} | {arm['cost'].get('evaluations', '')} "
        f"| {arm['cost'].get('parameters', 0):,} |"
        for name, arm in about["arms"].items()
    ]
    lines = [
        "---",
        "library_name: stillroom",
        "tags: [distillation, diffusion]",
        "---",
        f"# A sampler distilled with {about['method']}",
        "",
        about["verdict"]["text"],
        "",
        f"| | {metric.replace('_', ' ')} | evaluations a sample | parameters |",
        "|---|---|---|---|",
        *rows,
        "",
        f"- data: {about['data']['name']}; samples of shape {tuple(config['shape'])}, images in [-1, 1]",
        f"- sampling: {plan.solver}, {plan.steps} steps, guidance {plan.guidance:g}, {sampler.evaluations} evaluations",
        f"- method: {about['method']} ({about['source']}), options {dict(about['options'])}",
        f"- seed {about['seed']}; one run says nothing about the spread over seeds",
        f"- made by: `{about['command']}`",
        "",
        "## Load it",
        "",
        "```python",
        "from stillroom.generators.parts.saving import load_sampler",
        "sampler = load_sampler('.')  # sampler(noise, labels): unit noise in, samples out",
        "```",
        "",
        *([pipeline, ""] if pipeline else []),
    ]
    write_text(folder / "README.md", "\n".join(lines))

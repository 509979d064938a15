"""Pairs of noise and sample: a deterministic coupling, made once and kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stillroom.data import Source
from stillroom.generators.flows.rfpp.flow import invert
from stillroom.generators.generation import Generation
from stillroom.generators.parts.building import sampler_digest
from stillroom.generators.parts.sampler import Sampler
from stillroom.generators.parts.store import StoreSource
from stillroom.models.probing import quietly
from stillroom.runtime import Runtime
from stillroom.seeds import seed_of
from stillroom.store import Store, kept_store

PAIRS = 31
"""Keeps the noise of pairs apart from all other seeds."""
TRAINING, HELD_OUT, INVERTED = 0, 1, 2
"""Parts, whose noise has nothing in common."""


def row_noise(rows: range, shape: tuple[int, ...], seed: int, part: int) -> Tensor:
    """Unit noise [rows, *shape], each row from its own number, to half precision: what is stored is what was used."""
    made = []
    for row in rows:
        generator = torch.Generator().manual_seed(seed_of(PAIRS, seed, part, row))
        made.append(torch.randn(shape, generator=generator))
    return torch.stack(made).half().float()


def row_conditions(rows: range, source: Source, seed: int, part: int) -> Tensor:
    """Conditions [rows, ...] of training samples drawn at random, each row from its own number."""
    ids = [seed_of(PAIRS, seed, part, row, 1) % len(source) for row in rows]
    condition = source.fetch(torch.tensor(ids), view=None)[1]
    assert condition is not None
    return condition


def _store(
    kind: str, task: Generation, sampler: Sampler, part: int, count: int, make: Any, **key: Any
) -> Store:
    sampler.to(Runtime().device)
    about = {
        "sampler": sampler_digest(sampler),
        "data": task.fingerprint(),
        "space": [task.autoencoder, list(task.space.shape)],
        "seed": [task.teacher_seed, part],
        **key,
    }
    return kept_store(kind, about, count, make)


def sampled_pairs(task: Generation, sampler: Sampler, count: int, part: int = TRAINING) -> StoreSource:
    """`count` pairs of UNIT noise and what `sampler` makes of it, x [n, 2, ...] and conditions y (section 2).

    Both are stored in half precision: the noise is rounded before it is used, and a sample's rounding, 2^-11 of a
    value, is an eighth of that of 8-bit images, which the authors store.
    """
    device = Runtime().device

    def make(rows: range) -> dict[str, Tensor]:
        eps = row_noise(rows, task.space.shape, task.teacher_seed, part)
        made = {"eps": eps.half()}
        condition = None
        if sampler.denoiser.conditional:
            condition = made["condition"] = row_conditions(rows, task.train(), task.teacher_seed, part)
        with quietly(sampler):
            x0 = sampler(eps.to(device), None if condition is None else condition.to(device))
        return {**made, "x0": x0.half()}

    return StoreSource(_store("pairs", task, sampler, part, count, make), ("eps", "x0"), "condition")


def inverted_pairs(task: Generation, sampler: Sampler, steps: int) -> StoreSource:
    """All training samples with the noise that the flow `sampler` takes them to in `steps` evaluations (table 1, G)."""
    device, source = Runtime().device, task.train()

    def make(rows: range) -> dict[str, Tensor]:
        x0, condition = source.fetch(torch.tensor(rows), view=None)
        noise = row_noise(rows, task.space.shape, task.teacher_seed, INVERTED)
        asked = condition if sampler.denoiser.conditional else None
        at = None if asked is None else asked.to(device)
        eps = invert(sampler, x0.to(device), at, noise.to(device), steps)
        return {"eps": eps.half(), "x0": x0.half(), **({} if asked is None else {"condition": asked})}

    store = _store("inverted pairs", task, sampler, INVERTED, len(source), make, steps=steps)
    return StoreSource(store, ("eps", "x0"), "condition")

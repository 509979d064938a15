"""The name under which a sampler's samples are kept."""

from __future__ import annotations

import torch

from stillroom.generators.parts.building import sampler_digest
from stillroom.generators.parts.denoiser import Denoiser
from stillroom.generators.parts.sampler import Plan, Sampler
from stillroom.models.denoisers import build_denoiser_network


def sampler(prediction: str = "edm") -> Sampler:
    network = build_denoiser_network("mlp:8x1", shape=(2,), classes=0, seed=0)
    return Sampler(Denoiser(network, "edm", prediction), Plan("heun", 3))


def test_equal_samplers_share_a_name_and_any_change_makes_another() -> None:
    names = {sampler_digest(sampler()), sampler_digest(sampler().but(steps=4)), sampler_digest(sampler("x0"))}
    assert sampler_digest(sampler()) in names
    assert len(names) == 3
    changed = sampler()
    with torch.no_grad():
        next(changed.parameters()).view(-1)[0] += 1e-6
    assert sampler_digest(changed) not in names

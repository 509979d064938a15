"""Denoising networks: the guidance scale as an input changes nothing until it is trained."""

from __future__ import annotations

import copy

import pytest
import torch

import pipelines
from stillroom.generators.parts.denoiser import Denoiser
from stillroom.models.denoisers import build_denoiser_network
from stillroom.models.denoisers.library import wrap


@pytest.mark.parametrize("name", ["mlp:16x2", "unet:8-16", "dit:16x1@2"])
def test_a_guidance_input_says_nothing_until_it_is_trained(name: str) -> None:
    network = build_denoiser_network(name, shape=(1, 8, 8), classes=3, seed=0)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    x, t, c, w = (
        torch.randn(3, 1, 8, 8),
        torch.tensor([1.0, 9.0, 90.0]),
        torch.tensor([0, 2, 3]),
        torch.tensor([1.0, 3, 7]),
    )
    before = network(x, t, c, None)
    network.add_guidance()
    assert torch.equal(network(x, t, c, w), before)
    moved = copy.deepcopy(network)
    torch.nn.init.ones_(moved.guidance.last.weight)
    assert not torch.equal(moved(x, t, c, w), before)
    assert torch.equal(network(x, t, c, w), before)


def test_a_text_networks_guidance_is_the_librarys_own_input() -> None:
    pytest.importorskip("diffusers")
    denoiser = Denoiser(
        wrap(pipelines.text_unet()), "linear", "eps", clock="index", null=torch.zeros(5, 12)
    ).eval()
    x, t, tokens = torch.randn(2, 1, 8, 8), torch.tensor([0.2, 0.9]), torch.randn(2, 5, 12)
    with torch.no_grad():
        before = denoiser(x, t, tokens)
        denoiser.accept_guidance()
        assert torch.allclose(denoiser(x, t, tokens, torch.tensor([1.0, 7.0])), before, atol=1e-6)
        torch.nn.init.ones_(denoiser.network.model.time_embedding.cond_proj.weight)
        assert not torch.allclose(denoiser(x, t, tokens, torch.tensor([1.0, 7.0])), before, atol=1e-6)

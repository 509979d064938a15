"""Samplers to folders and back, and diffusers pipelines in and out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from stillroom.errors import UserError
from stillroom.generators.parts.building import read_denoiser
from stillroom.generators.parts.denoiser import Denoiser
from stillroom.generators.parts.pipelines import read_pipeline, read_schedule
from stillroom.generators.parts.process import NAMED, Discrete
from stillroom.generators.parts.publishing import write_pipeline
from stillroom.generators.parts.sampler import Plan, Sampler
from stillroom.generators.parts.saving import load_sampler, save_sampler
from stillroom.models.denoisers import build_denoiser_network

NOISE = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def made(name: str = "mlp:16x2", classes: int = 4, guided: bool = False) -> Sampler:
    network = build_denoiser_network(name, shape=(1, 8, 8), classes=classes, seed=0)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(1)
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    clock = None if name.startswith("mlp") else "index"
    denoiser = Denoiser(network, "linear", "v", classes=classes, clock=clock)
    if guided:
        denoiser.accept_guidance()
        nn.init.ones_(network.guidance.last.weight)
    return Sampler(denoiser, Plan("ddim", 4, guidance=2.0 if guided else 1.0, interval=(0.1, 5.0))).eval()


@pytest.mark.parametrize("name", ["mlp:16x2", "unet:8-16", "dit:16x1@2"])
@pytest.mark.parametrize("guided", [False, True])
def test_a_sampler_comes_back_as_it_was(name: str, guided: bool, tmp_path: Path) -> None:
    if not name.startswith("mlp"):
        pytest.importorskip("diffusers")
    sampler, c = made(name, guided=guided), torch.tensor([0, 3, 4])
    save_sampler(tmp_path, sampler, {"shape": [1, 8, 8]})
    again = load_sampler(tmp_path)
    assert again.plan == sampler.plan
    with torch.no_grad():
        assert torch.equal(again(NOISE, c), sampler(NOISE, c))


def test_a_moved_denoiser_comes_back_on_both_processes(tmp_path: Path) -> None:
    network = build_denoiser_network("mlp:16x1", shape=(2,), classes=0, seed=0)
    sampler = Sampler(Denoiser(network, "edm", "edm", sigma_data=0.7).on("flow"), Plan("euler", 2))
    save_sampler(tmp_path, sampler, {})
    again = load_sampler(tmp_path)
    assert (again.denoiser.process, again.denoiser.own) == (NAMED["flow"], NAMED["edm"])
    assert torch.equal(again(torch.ones(2, 2)), sampler(torch.ones(2, 2)))


def test_an_embedding_that_stands_for_no_condition_comes_back(tmp_path: Path) -> None:
    network = build_denoiser_network("mlp:16x1", shape=(2,), classes=0, seed=0)
    sampler = Sampler(Denoiser(network, "edm", "edm", null=torch.arange(3.0)), Plan())
    save_sampler(tmp_path, sampler, {})
    again = load_sampler(tmp_path).denoiser
    assert again.conditional
    assert again.null is not None
    assert torch.equal(again.null, torch.arange(3.0))


def test_what_is_no_sampler_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_sampler(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="holds no sampler: pass the folder of a run of a generator"):
        load_sampler(tmp_path)
    save_sampler(tmp_path, made(), {})
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(UserError, match="truncated or foreign"):
        load_sampler(tmp_path)


def test_a_pipeline_is_a_teacher(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    sampler = made("unet:8-16", classes=0)
    write_pipeline(tmp_path, sampler)
    denoiser = read_denoiser(tmp_path)
    t = torch.tensor([0.2, 0.5, 0.9])
    assert (denoiser.prediction, denoiser.clock, denoiser.classes) == ("v", "index", 0)
    with torch.no_grad():
        assert torch.allclose(denoiser(NOISE, t), sampler.denoiser(NOISE, t), atol=1e-4)


@pytest.mark.parametrize(
    ("about", "line"),
    [
        (
            {"_class_name": "DDIMScheduler", "beta_schedule": "linear"},
            "says no prediction_type: write epsilon",
        ),
        (
            {"_class_name": "DDIMScheduler", "prediction_type": "foo"},
            "says prediction_type 'foo': write epsilon",
        ),
        (
            {"_class_name": "DDPMScheduler", "prediction_type": "epsilon"},
            "has beta_schedule None: write one of linear",
        ),
        (
            {"_class_name": "DDPMScheduler", "prediction_type": "epsilon", "trained_betas": [0.1]},
            "has 1 trained_betas for 1000 timesteps: make the two agree",
        ),
        (
            {"_class_name": "FlowMatchEulerDiscreteScheduler", "prediction_type": "epsilon"},
            "says prediction_type 'epsilon' for a flow",
        ),
        ({"_class_name": "EDMEulerScheduler", "prediction_type": "v_prediction"}, "for an EDM process"),
    ],
)
def test_a_schedule_that_does_not_say_is_one_line(about: dict, line: str, tmp_path: Path) -> None:
    (tmp_path / "scheduler_config.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match=line):
        read_schedule(tmp_path)


def test_schedules_are_read(tmp_path: Path) -> None:
    path = tmp_path / "scheduler_config.json"
    pndm = {"_class_name": "PNDMScheduler", "prediction_type": "epsilon", "beta_schedule": "linear"}
    path.write_text(json.dumps(pndm))
    assert read_schedule(tmp_path) == (Discrete(), "eps", "index", 0.5)
    path.write_text(json.dumps({"_class_name": "FlowMatchEulerDiscreteScheduler"}))
    assert read_schedule(tmp_path)[:3] == (NAMED["flow"], "velocity", "thousand")
    path.write_text(json.dumps({"_class_name": "EDMEulerScheduler", "sigma_data": 0.6}))
    assert read_schedule(tmp_path) == (NAMED["edm"], "edm", "log-sigma", 0.6)


def test_weights_that_can_run_code_are_refused(tmp_path: Path) -> None:
    unet = tmp_path / "unet"
    unet.mkdir()
    with pytest.raises(UserError, match="holds neither a run's student nor a diffusers pipeline"):
        read_pipeline(tmp_path)
    (unet / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    with pytest.raises(UserError, match="has no weights"):
        read_pipeline(tmp_path)
    (unet / "diffusion_pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(UserError, match=r"diffusion_pytorch_model.bin' can run code when it is read: save"):
        read_pipeline(tmp_path)

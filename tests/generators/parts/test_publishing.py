"""Students as pipelines: diffusers samples from them what we do, in a process that never imports Stillroom."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipelines import text_pipeline
from stillroom.errors import UserError
from stillroom.generators.parts.building import read_denoiser
from stillroom.generators.parts.denoiser import Denoiser
from stillroom.generators.parts.latent import LatentSpace, autoencoder, read_latent_space
from stillroom.generators.parts.pipelines import read_pipeline
from stillroom.generators.parts.process import Discrete
from stillroom.generators.parts.publishing import write_pipeline
from stillroom.generators.parts.sampler import Plan, Sampler
from stillroom.generators.parts.saving import load_sampler, save_sampler
from stillroom.models.denoisers import build_denoiser_network

diffusers = pytest.importorskip("diffusers")
NOISE = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 3, 4])


def shaken(module: nn.Module) -> None:
    """Weights that are not at their start, where many layers say nothing."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))


def made(name: str, process: Any = "linear", prediction: str = "v", **options: Any) -> Sampler:
    plan, guided = options.pop("plan", Plan("ddim", 4)), options.pop("guided", False)
    network = build_denoiser_network(name, shape=(1, 8, 8), classes=options.get("classes", 0), seed=0)
    clock = {"edm": "log-sigma"}.get(prediction, "index")
    denoiser = Denoiser(network, process, prediction, clock=clock, **options)  # type: ignore[arg-type]
    if guided:
        denoiser.accept_guidance()
    shaken(network)
    return Sampler(denoiser, plan).eval()


def forms() -> Mapping[str, Sampler]:
    """Students of every form that becomes a pipeline of few steps."""
    edm = made("unet:8-16", "edm", "edm", classes=4, plan=Plan("ddim", 2))
    return {
        "labelled": made("unet:8-16", classes=4),
        "velocities": made("unet:8-16", "flow", "velocity", plan=Plan("euler", 3)),
        "guided": made("unet:8-16", "cosine", "v", classes=4, guided=True, plan=Plan(steps=2, guidance=3.0)),
        "guided transformer": made("dit:16x2@2", "cosine", "x0", classes=4, guided=True, plan=Plan(steps=2)),
        "preconditioned": edm,
        "moved": Sampler(edm.denoiser.on("flow"), Plan("anchored", 2)).eval(),
        "signal left at T": made("unet:8-16", "scaled-linear", "eps"),
        "scores": made("unet:8-16", "linear", "score", classes=4),
        "noise": made("dit:16x1@2", "cosine", "eps", classes=4, plan=Plan(steps=2)),
    }


def test_a_students_pipeline_samples_the_same_without_stillroom(tmp_path: Path) -> None:
    """diffusers' DDIMPipeline, in a fresh process that never imports Stillroom, from the same noise, to 1e-4."""
    sampler = made("unet:8-16")
    assert "num_inference_steps=4" in (write_pipeline(tmp_path / "p", sampler) or "")
    code = (
        "import sys, torch\n"
        "from diffusers import DiffusionPipeline\n"
        f"pipeline = DiffusionPipeline.from_pretrained({str(tmp_path / 'p')!r})\n"
        "pipeline.set_progress_bar_config(disable=True)\n"
        "generator = torch.Generator().manual_seed(0)\n"
        "made = pipeline(3, generator=generator, num_inference_steps=4, output_type='np').images\n"
        "assert 'stillroom' not in sys.modules\n"
        f"torch.save(torch.tensor(made), {str(tmp_path / 'made')!r})\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, capture_output=True)
    theirs = torch.load(tmp_path / "made", weights_only=True).permute(0, 3, 1, 2)
    with torch.no_grad():
        ours = (sampler(NOISE) / 2 + 0.5).clamp(0, 1)
    assert (ours - theirs).abs().max() < 1e-4


CODE = """
import json, sys, torch
from safetensors.torch import load_file, save_file
from diffusers import DiffusionPipeline
noise, found = load_file("noise.safetensors")["noise"], {}
for name, arguments in json.load(open("calls.json")).items():
    pipeline = DiffusionPipeline.from_pretrained(name, trust_remote_code=True)
    made = pipeline(**arguments, latents=noise, output_type="np").images
    found[name] = torch.tensor(made).permute(0, 3, 1, 2).contiguous()
assert "stillroom" not in sys.modules
save_file(found, "made.safetensors")
"""


def test_pipelines_of_few_steps_sample_the_same_without_stillroom(tmp_path: Path) -> None:
    """From the same noise and labels, to 1e-4 of the range, the last with another scale than it was saved with."""
    samplers = dict(forms())
    calls: dict[str, Any] = {}
    for name, sampler in samplers.items():
        assert "trust_remote_code=True" in (write_pipeline(tmp_path / name, sampler) or "")
        calls[name] = {"class_labels": LABELS.tolist()} if sampler.denoiser.conditional else {"batch_size": 3}
    calls["guided transformer"]["guidance_scale"] = 2.5
    samplers["guided transformer"] = samplers["guided transformer"].at(2.5)
    (tmp_path / "calls.json").write_text(json.dumps(calls))
    save_file({"noise": NOISE}, tmp_path / "noise.safetensors")
    environment = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "OMP_NUM_THREADS": "1", "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        cwd=tmp_path,
        env=environment,
        timeout=300,
        capture_output=True,
        text=True,
    )
    assert not done.returncode, done.stderr[-2000:]
    theirs = load_file(tmp_path / "made.safetensors")
    for name, sampler in samplers.items():
        ours = _shown(sampler, LABELS if sampler.denoiser.conditional else None)
        assert ours.std() > 0.05, name
        assert (ours - theirs[name]).abs().max() < 1e-4, name


def _shown(sampler: Sampler, condition: Tensor | None, noise: Tensor = NOISE) -> Tensor:
    with torch.no_grad():
        return (sampler(noise, condition) / 2 + 0.5).clamp(0, 1)


def test_a_student_behind_an_autoencoder_goes_out_with_it(tmp_path: Path) -> None:
    """The pipeline decodes as we do; and its autoencoder is one that --task.autoencoder takes."""
    latents = LatentSpace(autoencoder((1, 16, 16), 1, 1).eval(), 0.7)
    shaken(latents.module)
    sampler = made("unet:8-16", classes=4)
    write_pipeline(tmp_path, sampler, latents)
    pipeline = diffusers.DiffusionPipeline.from_pretrained(tmp_path, trust_remote_code=True)
    found = pipeline(class_labels=LABELS.tolist(), latents=NOISE, output_type="np").images
    with torch.no_grad():
        ours = (latents.decode(sampler(NOISE, LABELS)) / 2 + 0.5).clamp(0, 1)
    assert (ours - torch.tensor(found).permute(0, 3, 1, 2)).abs().max() < 1e-4
    again = read_latent_space(tmp_path / "vae")
    assert again.scale == pytest.approx(0.7)
    x = torch.randn(2, 1, 16, 16)
    assert torch.allclose(again.encode(x), latents.encode(x), atol=1e-5)


@pytest.mark.parametrize("kind", ["perceptron", "two passes", "second order"])
def test_what_no_pipeline_samples_is_not_written(kind: str, tmp_path: Path) -> None:
    if kind == "perceptron":
        network = build_denoiser_network("mlp:16x1", shape=(1, 8, 8), classes=4, seed=0)
        sampler = Sampler(Denoiser(network, "linear", "v", classes=4), Plan("ddim", 4))
    else:
        plan = Plan("ddim", 4, guidance=2.0) if kind == "two passes" else Plan("heun", 4)
        sampler = made("unet:8-16", classes=4, plan=plan)
    assert write_pipeline(tmp_path / "p", sampler) is None
    assert not (tmp_path / "p").exists()


# -- text ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    return text_pipeline(tmp_path_factory.mktemp("text") / "pipeline")


def test_classes_are_said_to_a_network_that_is_conditioned_on_text(spoken: Path, tmp_path: Path) -> None:
    """Its answers for labels are those for the embeddings that the pipeline itself makes of the prompts."""
    sampler = read_pipeline(spoken, ["a 3", "a 7"])
    denoiser = sampler.denoiser
    assert (denoiser.classes, denoiser.process) == (2, Discrete(zero_terminal=True))
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(spoken)
    embedded = [pipeline.encode_prompt(p, "cpu", 1, False)[0] for p in ("a 7", "a 3", "")]
    x, t = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0.2, 0.5, 0.9])
    bare = read_denoiser(spoken)
    with torch.no_grad():
        known = bare(x, t, torch.cat(embedded))
        assert torch.allclose(denoiser(x, t, torch.tensor([1, 0, 2])), known, atol=1e-5)
        assert (denoiser(x, t, torch.tensor([0, 1, 2])) - known)[:2].abs().max() > 1e-4
        save_sampler(tmp_path, sampler, {})
        assert torch.equal(
            load_sampler(tmp_path).denoiser(x, t, LABELS.clamp_max(2)), denoiser(x, t, LABELS.clamp_max(2))
        )


def test_a_guided_student_goes_back_into_its_pipeline(spoken: Path, tmp_path: Path) -> None:
    """StableDiffusionPipeline reads its guidance_scale as the network's input, without a second pass."""
    sampler = read_pipeline(spoken, ["a 3", "a 7"]).but(steps=2, guidance=4.0)
    sampler.denoiser.accept_guidance()
    shaken(sampler.denoiser.network)
    assert sampler.evaluations == 2
    said = write_pipeline(tmp_path / "p", sampler, origin=spoken) or ""
    assert "num_inference_steps=2, guidance_scale=4)" in said
    pipeline = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "p")
    pipeline.set_progress_bar_config(disable=True)
    seen: list[int] = []
    pipeline.unet.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    noise = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(3))
    for scale in (4.0, 1.5):
        made = pipeline(
            "a 7", num_inference_steps=2, guidance_scale=scale, latents=noise.clone(), output_type="latent"
        ).images
        with torch.no_grad():
            ours = sampler.at(scale)(noise, torch.tensor([1]))
        assert (made - ours).abs().max() < 1e-4
    assert seen == [1, 1, 1, 1]


def test_a_pipeline_without_its_text_encoder_is_one_line(spoken: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no tokenizer/: save the pipeline whole"):
        read_pipeline(_without(spoken, "tokenizer", tmp_path), ["a 3"])


def _without(folder: Path, part: str, to: Path) -> Path:
    import shutil

    shutil.copytree(folder, to / "p", ignore=shutil.ignore_patterns(part))
    return to / "p"

"""Students as diffusers pipeline folders, which sample without Stillroom what they sample here."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from stillroom.checkpoint import read_json, save_tensors, write_json
from stillroom.generators import portable
from stillroom.generators.parts.card import write_card
from stillroom.generators.parts.data import Samples
from stillroom.generators.parts.denoiser import Denoiser
from stillroom.generators.parts.latent import LatentSpace
from stillroom.generators.parts.pipelines import LETTERS
from stillroom.generators.parts.process import Cosine, Discrete, Process
from stillroom.generators.parts.sampler import Sampler
from stillroom.generators.parts.saving import save_sampler
from stillroom.models.denoisers.library import DiT, UNet2D, UNet2DCondition, diffusers
from stillroom.models.files import portable_state

LOAD = "diffusers.DiffusionPipeline.from_pretrained('pipeline'"


def publish(
    folder: Path,
    sampler: Sampler,
    about: Mapping[str, Any],
    samples: Samples,
    latents: LatentSpace | None,
    origin: Path | None,
) -> None:
    """Write a run's student: the sampler, the autoencoder, a pipeline where there is a form for one, a model card."""
    config = {
        "shape": list(samples.shape),
        "labels": samples.classes if sampler.denoiser.classes else [],
        "latents": None if latents is None else {"scale": latents.scale},
        "made_by": {"method": about["method"], "data": samples.name, "seed": about["seed"]},
    }
    save_sampler(folder, sampler, config)
    if latents is not None:
        latents.save(folder / "autoencoder")
    note = write_pipeline(folder / "pipeline", sampler, latents, origin)
    write_card(folder, sampler, config, about, note)


def write_pipeline(
    folder: Path, sampler: Sampler, latents: LatentSpace | None = None, origin: Path | None = None
) -> str | None:
    """Write a folder that `DiffusionPipeline.from_pretrained` loads; returns how, or None where there is no form.

    - An unconditional UNet2DModel that puts out eps, v or x0 on a variance preserving process becomes diffusers' own
      DDIMPipeline.
    - A UNet2DConditionModel goes back into a copy of the pipeline folder `origin` that its teacher came from; where it
      takes the guidance scale, the pipeline's `guidance_scale` is that input.
    - Any other UNet2DModel or DiTTransformer2DModel (with classes, with a guidance scale as an input, preconditioned,
      moved to another process, behind an autoencoder) becomes a pipeline of few steps, whose code goes into the folder.

    All of them where the way from noise to data is DDIM's, or anchored to the starting noise; else nothing is written.
    """
    network = sampler.denoiser.network
    if isinstance(network, UNet2DCondition):
        return _into_origin(folder, sampler, origin) if origin is not None else None
    if not isinstance(network, (UNet2D, DiT)):
        return None
    if latents is None and _is_ddim_pipelines(sampler):
        return _ddim(folder, sampler)
    return _few_steps(folder, sampler, latents) if _is_first_order(sampler) else None


# -- diffusers' own pipelines -------------------------------------------------------------------------------------


def _scheduler(sampler: Sampler) -> Any:
    letters = {ours: theirs for theirs, ours in LETTERS.items()}
    return diffusers().DDIMScheduler(
        num_train_timesteps=getattr(sampler.denoiser.process, "steps", 1000),
        trained_betas=_betas(sampler.denoiser.process),
        prediction_type=letters[sampler.denoiser.prediction],
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
        steps_offset=1,  # trailing steps have none; Stable Diffusion's pipeline warns of another number
    )


def _ddim(folder: Path, sampler: Sampler) -> str:
    model: Any = sampler.denoiser.network.model
    diffusers().DDIMPipeline(unet=model, scheduler=_scheduler(sampler)).save_pretrained(folder)
    return f"`{LOAD})(num_inference_steps={sampler.plan.steps})` samples it without Stillroom."


def _into_origin(folder: Path, sampler: Sampler, origin: Path) -> str | None:
    index = origin / "model_index.json"
    if not index.is_file() or not _goes_as_ddim(sampler):
        return None
    skip = shutil.ignore_patterns("unet", "scheduler", "model_index.json", ".*")
    shutil.copytree(origin, folder, ignore=skip, dirs_exist_ok=True)
    model: Any = sampler.denoiser.network.model
    model.save_pretrained(folder / "unet")
    _scheduler(sampler).save_pretrained(folder / "scheduler")
    write_json(folder / "model_index.json", read_json(index) | {"scheduler": ["diffusers", "DDIMScheduler"]})
    scale = f", guidance_scale={sampler.plan.guidance:g}"
    said = f"`{LOAD})(prompt, num_inference_steps={sampler.plan.steps}{scale})` samples it without Stillroom"
    return said + ("; the scale is an input." if sampler.denoiser.takes_guidance else ".")


def _is_ddim_pipelines(sampler: Sampler) -> bool:
    """Whether diffusers' DDIMPipeline, which knows neither classes nor scales, samples what we do."""
    plain = sampler.denoiser.network.guidance is None and not sampler.denoiser.conditional
    return plain and _goes_as_ddim(sampler)


def _goes_as_ddim(sampler: Sampler) -> bool:
    """Whether the way from noise to data is the one that diffusers' DDIMScheduler goes."""
    denoiser, plan = sampler.denoiser, sampler.plan
    if denoiser.process != denoiser.own or not isinstance(denoiser.process, (Discrete, Cosine)):
        return False
    # It starts from unit noise, we from sigma_T times it.
    unit = float(denoiser.process.sigma(torch.tensor(1.0, dtype=torch.float64))) > 1 - 1e-4
    plain = plan.solver == "ddim" and plan.spacing == "uniform" and sampler.start == 1.0
    return unit and plain and denoiser.clock == "index" and denoiser.prediction in LETTERS.values()


def _betas(process: Process) -> list[float]:
    steps = getattr(process, "steps", 1000)
    t = torch.arange(steps + 1, dtype=torch.float64) / steps
    bar = process.alpha(t).square()
    return (1 - bar[1:] / bar[:-1]).clamp(1e-12, 0.999999).tolist()


# -- the pipeline of few steps --------------------------------------------------------------------------------------


def _is_first_order(sampler: Sampler) -> bool:
    """Whether each step is one evaluation and DDIM's step, or one back to the starting noise."""
    straight = sampler.denoiser.process.name in ("flow", "edm")  # where Euler's step is DDIM's
    known = ("ddim", "anchored", "euler") if straight else ("ddim", "anchored")
    return type(sampler).forward is Sampler.forward and sampler.passes == 1 and sampler.plan.solver in known


def _rows(sampler: Sampler) -> list[dict[str, float]]:
    """Each step's numbers: on the process that it is a step of, and on the network's own."""
    denoiser, rows = sampler.denoiser, []
    process, own = denoiser.process, denoiser.own
    for t, s in pairwise(sampler.times()):
        there = t if process == own else own.time_at(process.ratio(t))
        numbers = {
            "time": denoiser.time(there),
            "scale": own.size(there) / process.size(t) if process != own else torch.ones(()),
            "own_alpha": own.alpha(there),
            "own_sigma": own.sigma(there),
            "dalpha": own.dalpha(there),
            "dsigma": own.dsigma(there),
            "alpha": process.alpha(t),
            "sigma": process.sigma(t),
            "next_alpha": process.alpha(s),
            "next_sigma": process.sigma(s),
        }
        rows.append({name: float(value) for name, value in numbers.items()})
    return rows


def _few_steps(folder: Path, sampler: Sampler, latents: LatentSpace | None) -> str:
    denoiser = sampler.denoiser
    network: Any = denoiser.network
    model, guidance = network.model, network.guidance
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder / "network")
    index: dict[str, Any] = {
        "_class_name": ["pipeline", "FewStepPipeline"],
        "_diffusers_version": diffusers().__version__,
        "network": ["diffusers", type(model).__name__],
        "guidance": [None, None],
        "vae": [None, None],
        **_numbers(sampler),
    }
    if guidance is not None:
        index["guidance"] = ["guidance", "GuidanceScale"]
        _write_guidance(folder / "guidance", denoiser)
    if latents is not None:
        index["vae"] = ["diffusers", type(latents.module).__name__]
        latents.save(folder / "vae")
    _copy("pipeline.py", folder)
    write_json(folder / "model_index.json", index)
    about = "class_labels=[0, 1]" if denoiser.conditional else "2"
    scale = f", guidance_scale={sampler.plan.guidance:g}" if guidance is not None else ""
    call = f"{LOAD}, trust_remote_code=True)({about}{scale})"
    return f"`{call}` samples it without Stillroom; the folder's own pipeline.py is what is trusted."


def _numbers(sampler: Sampler) -> dict[str, Any]:
    denoiser = sampler.denoiser
    return {
        "steps": _rows(sampler),
        "prediction": denoiser.prediction,
        "sigma_data": denoiser.sigma_data,
        "classes": denoiser.classes,
        "guidance_scale": sampler.plan.guidance,
        "anchored": sampler.plan.solver == "anchored",
    }


def _write_guidance(folder: Path, denoiser: Denoiser) -> None:
    embedding: Any = denoiser.network.guidance
    folder.mkdir(parents=True, exist_ok=True)
    about = {"_class_name": "GuidanceScale", "_diffusers_version": diffusers().__version__}
    write_json(folder / "config.json", about | embedding.config())
    save_tensors(folder / "diffusion_pytorch_model.safetensors", portable_state(embedding))
    _copy("guidance.py", folder)


def _copy(name: str, folder: Path) -> None:
    shutil.copyfile(Path(portable.__path__[0]) / name, folder / name)

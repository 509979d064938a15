"""diffusers pipeline folders: teachers come from them, students of a form that diffusers can sample go out as them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stillroom.errors import UserError, reason
from stillroom.generators.parts.denoiser import Clock, Denoiser
from stillroom.generators.parts.process import Cosine, Discrete, Flow, Process, VarianceExploding
from stillroom.generators.parts.sampler import Plan, Sampler
from stillroom.models.denoisers.library import UNet2D, diffusers, wrap

RUNS_CODE = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
NETWORKS = ("unet", "transformer")
BETAS = {"linear": "linear", "scaled_linear": "scaled-linear", "squaredcos_cap_v2": "cosine"}
LETTERS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}


def read_pipeline(folder: Path) -> Sampler:
    """The denoiser of a pipeline folder, to be sampled by DDIM in 50 steps; latent pipelines in latent space.

    Its network is a UNet2DModel, a UNet2DConditionModel or a DiTTransformer2DModel, its process and prediction
    are read from its scheduler. Raises UserError for a folder that holds no pipeline, weights that could run code,
    and a scheduler that does not say, or contradicts, what the network predicts.
    """
    part = next((name for name in NETWORKS if (folder / name / "config.json").is_file()), None)
    if part is None:
        raise UserError(
            f"--task.teacher-weights '{folder}' holds neither a run's student nor a diffusers pipeline: pass a folder "
            "with config.json and model.safetensors, or with unet/ or transformer/ and scheduler/"
        )
    _refuse_code(folder / part)
    process, prediction, clock, deviation = read_schedule(folder / "scheduler")
    network = _network(folder / part)
    classes, null = _conditions(network)
    denoiser = Denoiser(
        wrap(network), process, prediction, classes=classes, clock=clock, sigma_data=deviation, null=null
    )
    return Sampler(denoiser, Plan()).eval()


def _refuse_code(folder: Path) -> None:
    if any(folder.glob("*.safetensors")):
        return
    for path in sorted(folder.iterdir()):
        if path.suffix in RUNS_CODE:
            raise UserError(
                f"'{path}' can run code when it is read: save the pipeline again with safe_serialization=True"
            )
    raise UserError(f"'{folder}' has no weights: pass a folder with diffusion_pytorch_model.safetensors")


def _network(folder: Path) -> Any:
    name = _json(folder / "config.json").get("_class_name")
    kind = getattr(diffusers(), str(name), None)
    if kind is None:
        raise UserError(f"'{folder}' holds a '{name}', which diffusers does not have: pass another pipeline")
    try:
        return kind.from_pretrained(folder, use_safetensors=True, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"the network in '{folder}' cannot be read ({reason(error)}): save it again"
        ) from None


def _conditions(network: Any) -> tuple[int, torch.Tensor | None]:
    """Number of classes, and the embedding that stands for no condition where conditions are embeddings."""
    options, kind = network.config, type(network).__name__
    if kind == "UNet2DConditionModel":
        return 0, torch.zeros(77, options.cross_attention_dim)
    if kind == "DiTTransformer2DModel":
        return options.num_embeds_ada_norm, None
    return (options.num_class_embeds or 1) - 1, None


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"'{path}' cannot be read ({reason(error)}): save the pipeline again") from None
    if not isinstance(found, dict):
        raise UserError(f"'{path}' is no JSON object: save the pipeline again")
    return found


def read_schedule(folder: Path) -> tuple[Process, str, Clock, float]:
    """Process, prediction, clock and sigma_data that a scheduler's folder tells."""
    path = folder / "scheduler_config.json"
    if not path.is_file():
        raise UserError(
            f"'{folder}' has no scheduler_config.json, so the process is not known: save the pipeline whole"
        )
    about = _json(path)
    name, said = str(about.get("_class_name", "")), about.get("prediction_type")
    if name.startswith("EDM"):
        low, high = about.get("sigma_min", 0.002), about.get("sigma_max", 80.0)
        if said not in (None, "epsilon"):
            raise UserError(f"'{path}' says prediction_type '{said}' for an EDM process: make it epsilon")
        return VarianceExploding(low, high), "edm", "log-sigma", about.get("sigma_data", 0.5)
    if name.startswith("FlowMatch"):
        if said not in (None, "flow_prediction"):
            raise UserError(
                f"'{path}' says prediction_type '{said}' for a flow, which predicts velocities: remove it"
            )
        return Flow(), "velocity", "thousand", 0.5
    if said not in LETTERS:
        what = "no prediction_type" if said is None else f"prediction_type '{said}'"
        raise UserError(f"'{path}' says {what}: write epsilon, sample or v_prediction into it")
    return _table(about, path), LETTERS[said], "index", 0.5


def _table(about: dict[str, Any], path: Path) -> Discrete:
    steps, zero = (
        int(about.get("num_train_timesteps", 1000)),
        bool(about.get("rescale_betas_zero_snr", False)),
    )
    betas = about.get("trained_betas")
    if betas is not None:
        if len(betas) != steps:
            raise UserError(
                f"'{path}' has {len(betas)} trained_betas for {steps} timesteps: make the two agree"
            )
        return Discrete(tuple(map(float, betas)), steps=steps, zero_terminal=zero)
    kind = about.get("beta_schedule")
    if kind not in BETAS:
        raise UserError(
            f"'{path}' has beta_schedule {kind!r}: write one of {', '.join(BETAS)}, or trained_betas"
        )
    start, end = float(about.get("beta_start", 1e-4)), float(about.get("beta_end", 0.02))
    return Discrete(BETAS[kind], start, end, steps, zero)  # type: ignore[arg-type]


# -- out --------------------------------------------------------------------------------------------------------


def write_pipeline(folder: Path, sampler: Sampler) -> str | None:
    """Write a folder that `DiffusionPipeline.from_pretrained` loads; returns how, or None where there is no form.

    diffusers' DDIMPipeline samples an unconditional UNet2DModel that puts out eps, v or x0 on a variance
    preserving process, by DDIM on a uniform grid from unit noise: those students become one, and sample there
    what they sample here. For others diffusers has no pipeline of its own, and nothing is written.
    """
    denoiser = sampler.denoiser
    network: nn.Module = denoiser.network
    if not isinstance(network, UNet2D) or network.guidance is not None or denoiser.conditional:
        return None
    if not _is_ddim_pipelines(sampler):
        return None
    letters = {ours: theirs for theirs, ours in LETTERS.items()}
    library = diffusers()
    scheduler = library.DDIMScheduler(
        num_train_timesteps=getattr(denoiser.process, "steps", 1000),
        trained_betas=_betas(denoiser.process),
        prediction_type=letters[denoiser.prediction],
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
    )
    library.DDIMPipeline(unet=network.model, scheduler=scheduler).save_pretrained(folder)
    return (
        f"`diffusers.DiffusionPipeline.from_pretrained('pipeline')(num_inference_steps={sampler.plan.steps})` samples "
        "it without Stillroom."
    )


def _is_ddim_pipelines(sampler: Sampler) -> bool:
    """Whether the way from noise to data is the one that diffusers' DDIMPipeline goes."""
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

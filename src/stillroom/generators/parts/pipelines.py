"""diffusers pipeline folders as teachers; `publishing` writes students out as such."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from stillroom.errors import UserError, reason
from stillroom.generators.parts.denoiser import Clock, Denoiser
from stillroom.generators.parts.process import Discrete, Flow, Process, VarianceExploding
from stillroom.generators.parts.prompts import embed_prompts
from stillroom.generators.parts.sampler import Plan, Sampler
from stillroom.models.denoisers.library import diffusers, wrap

RUNS_CODE = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
NETWORKS = ("unet", "transformer")
BETAS = {"linear": "linear", "scaled_linear": "scaled-linear", "squaredcos_cap_v2": "cosine"}
LETTERS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}


def read_pipeline(folder: Path, prompts: Sequence[str] = ()) -> Sampler:
    """The denoiser of a pipeline folder, to be sampled by DDIM in 50 steps; latent pipelines in latent space.

    Its network is a UNet2DModel, a UNet2DConditionModel or a DiTTransformer2DModel, its process and prediction
    are read from its scheduler. `prompts` say each class in words to a network that is conditioned on text: the
    folder's own text encoder embeds them once. Raises UserError for a folder that holds no pipeline, weights that
    could run code, and a scheduler that does not say, or contradicts, what the network predicts.
    """
    part = next((name for name in NETWORKS if (folder / name / "config.json").is_file()), None)
    if part is None:
        raise UserError(
            f"--task.teacher-weights '{folder}' holds neither a run's student nor a diffusers pipeline: pass a folder "
            "with config.json and model.safetensors, or with unet/ or transformer/ and scheduler/"
        )
    refuse_code(folder / part)
    process, prediction, clock, deviation = read_schedule(folder / "scheduler")
    network = _network(folder / part)
    classes, null, table = conditions(network), None, None
    if type(network).__name__ == "UNet2DConditionModel":
        null = torch.zeros(77, network.config.cross_attention_dim)
        if prompts:
            classes, null, table = len(prompts), None, embed_prompts(folder, [*prompts, ""])
    denoiser = Denoiser(
        wrap(network),
        process,
        prediction,
        classes=classes,
        clock=clock,
        sigma_data=deviation,
        null=null,
        table=table,
    )
    return Sampler(denoiser, Plan()).eval()


def read_model(folder: Path) -> Any:
    """The network of diffusers in a folder of its own (config.json and weights), behind the house's call.

    Such a folder says neither process nor prediction. Raises UserError for weights that could run code, damaged ones,
    and networks that Stillroom cannot call.
    """
    refuse_code(folder)
    return wrap(_network(folder))


def untrained_model(folder: Path) -> Any:
    """The network that such a folder's config describes, with weights from torch's global generator."""
    kind = _kind(folder)
    try:
        return wrap(kind.from_config(kind.load_config(folder, local_files_only=True)))
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise UserError(
            f"the network in '{folder}' cannot be built ({reason(error)}): correct its config"
        ) from None


def refuse_code(folder: Path) -> None:
    """Raise UserError for a folder whose weights are no safetensors."""
    if any(folder.glob("*.safetensors")):
        return
    for path in sorted(folder.iterdir()):
        if path.suffix in RUNS_CODE:
            raise UserError(
                f"'{path}' can run code when it is read: save the pipeline again with safe_serialization=True"
            )
    raise UserError(f"'{folder}' has no weights: pass a folder with diffusion_pytorch_model.safetensors")


def _kind(folder: Path) -> Any:
    name = _json(folder / "config.json").get("_class_name")
    kind = getattr(diffusers(), str(name), None)
    if kind is None:
        raise UserError(f"'{folder}' holds a '{name}', which diffusers does not have: pass another pipeline")
    return kind


def _network(folder: Path) -> Any:
    kind = _kind(folder)
    try:
        return kind.from_pretrained(folder, use_safetensors=True, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"the network in '{folder}' cannot be read ({reason(error)}): save it again"
        ) from None


def conditions(network: Any) -> int:
    """Number of classes that a network of diffusers is conditioned on."""
    options, kind = network.config, type(network).__name__
    if kind == "DiTTransformer2DModel":
        return options.num_embeds_ada_norm
    return (getattr(options, "num_class_embeds", None) or 1) - 1


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

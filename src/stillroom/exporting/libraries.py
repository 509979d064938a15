"""A product as its own library's folder: timm, transformers and diffusers load it without Stillroom.

Each folder is read back by its library before it is handed over, and has to say what the product says.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from stillroom.checkpoint import read_json
from stillroom.errors import UserError, reason
from stillroom.exporting.agreement import TOLERANCE, agreement
from stillroom.exporting.forms import Graph
from stillroom.models.files import METADATA, portable_state

AUTO = ("AutoModelForImageClassification", "AutoModelForSequenceClassification", "AutoModelForCausalLM")
TOKENIZER = ("tokenizer*", "special_tokens_map.json", "vocab.*", "merges.txt", "*.model", "chat_template.*")


@dataclass(frozen=True)
class Held:
    """A library's model inside a product."""

    library: Literal["timm", "transformers"]
    model: Any
    path: str
    """Its module path in the product; empty where it is the product."""
    scale: Tensor | None = None
    """By what inputs [n, C, H, W] are multiplied on the way to it, a channel."""
    shift: Tensor | None = None
    """What is then added."""


def library_of(product: nn.Module) -> Held | None:
    """The library's model that all of the product's numbers belong to; None where there is none.

    What stands around it may scale and shift its inputs, and nothing else.
    """
    for path, module in product.named_modules():
        library = _kind(module)
        if library is None:
            continue
        before = f"{path}." if path else ""
        rest = {key: value for key, value in product.state_dict().items() if not key.startswith(before)}
        names = {key.rpartition(".")[2] for key in rest}
        if (path and names not in (set(), {"scale", "shift"})) or len(rest) not in (0, 2):
            return None
        if library == "transformers" and auto_class(module) is None:
            return None
        numbers = {key.rpartition(".")[2]: value.flatten() for key, value in rest.items()}
        return Held(library, module, path, numbers.get("scale"), numbers.get("shift"))
    return None


def _kind(module: nn.Module) -> Literal["timm", "transformers"] | None:
    for base in type(module).__mro__:
        if base.__module__.startswith("timm.") and hasattr(module, "pretrained_cfg"):
            return "timm"
        if base.__name__ == "PreTrainedModel" and base.__module__.startswith("transformers."):
            return "transformers"
    return None


def auto_class(model: Any) -> str | None:
    """The name of transformers' Auto class that loads `model` whole; None for a model without a head for a task."""
    import transformers

    for name in AUTO:
        known = getattr(transformers, name)._model_mapping
        if type(model.config) in known:
            found = known[type(model.config)]
            if type(model) in (found if isinstance(found, tuple) else (found,)):
                return name
    return None


# -- timm ---------------------------------------------------------------------------------------------------------


def write_timm(folder: Path, held: Held, graph: Graph, labels: list[str]) -> dict[str, Any]:
    """Write what `timm.create_model('local-dir:FOLDER', pretrained=True)` reads, from the hub too.

    Returns how far it is when it is read back.
    """
    import timm
    from timm.models._hub import save_config_for_hf

    mean, std = _pixels(graph, held)
    shape = tuple(graph.draw(1)["x"].shape[1:])
    save_file(portable_state(held.model), folder / "model.safetensors", metadata=METADATA)
    data = {"input_size": shape, "mean": mean, "std": std, "crop_pct": 1.0}
    save_config_for_hf(
        held.model, str(folder / "config.json"), model_config={"label_names": labels}, data_config=data
    )
    try:
        loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    except Exception as error:
        raise UserError(
            f"timm cannot read its own folder back ({reason(error)}): pass --to hub-folder"
        ) from error
    return _compared(graph, held, loaded)


def _pixels(graph: Graph, held: Held) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation that take pixels in [0, 1] to what the model sees, a channel."""
    normalisation = graph.about["normalisation"]
    mean, std = (torch.tensor(normalisation[name], dtype=torch.float64) for name in ("mean", "std"))
    if held.scale is not None and held.shift is not None:
        # (p - mean) / std * scale + shift = (p - (mean - shift std / scale)) / (std / scale)
        scale, shift = held.scale.double(), held.shift.double()
        mean, std = mean - shift * std / scale, std / scale
    channels = next(iter(graph.draw(1).values())).shape[1]
    return tuple(mean.expand(channels).tolist()), tuple(std.expand(channels).tolist())


# -- transformers -------------------------------------------------------------------------------------------------


def write_transformers(
    folder: Path, held: Held, graph: Graph, labels: list[str], student: Path
) -> tuple[dict[str, Any], str]:
    """Write what transformers' Auto classes read, with tokenizer or image processor; the distance, and the class."""
    import transformers

    name = auto_class(held.model)
    assert name is not None
    model = copy.deepcopy(held.model)
    if name != "AutoModelForCausalLM" and len(labels) == model.config.num_labels:
        model.config.id2label = dict(enumerate(labels))
        model.config.label2id = {label: number for number, label in enumerate(labels)}
    model.save_pretrained(folder)
    if name == "AutoModelForImageClassification":
        _write_processor(folder, held, graph)
    for pattern in TOKENIZER:
        for file in student.glob(pattern):
            shutil.copyfile(file, folder / file.name)
    try:
        loaded = getattr(transformers, name).from_pretrained(folder).eval()
    except Exception as error:
        raise UserError(
            f"transformers cannot read its own folder back ({reason(error)}): pass --to hub-folder"
        ) from error
    return _compared(graph, held, loaded), name


def _write_processor(folder: Path, held: Held, graph: Graph) -> None:
    """How pixels become inputs, for `AutoImageProcessor` and pipelines."""
    mean, std = _pixels(graph, held)
    height, width = graph.draw(1)["x"].shape[2:]
    settings = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def _compared(graph: Graph, held: Held, loaded: nn.Module) -> dict[str, Any]:
    """How far the product is from itself with the library's model as it was read back."""
    other = _swapped(graph.network, held.path, loaded).eval()

    def call(rows: Mapping[str, Tensor]) -> Tensor:
        with torch.no_grad():
            return other(*rows.values())

    return agreement(graph, call)


def _swapped(module: nn.Module, path: str, new: nn.Module) -> nn.Module:
    """`module` with `new` at a path of it; what is not on the way is shared."""
    if not path:
        return new
    first, _, rest = path.partition(".")
    made = copy.copy(module)
    made._modules = {**module._modules, first: _swapped(module.get_submodule(first), rest, new)}
    return made


# -- diffusers ----------------------------------------------------------------------------------------------------


def write_diffusers(folder: Path, student: Path, product: Any, prompts: list[str]) -> dict[str, Any] | None:
    """Copy the student's pipeline; returns how far its samples are from the product's, from the same noise.

    Both are compared as they leave the network: latents, or images in [0, 1]. `prompts` stand for the labels where
    the pipeline takes text.
    """
    shutil.copytree(student / "pipeline", folder, dirs_exist_ok=True)
    import diffusers

    kind = read_json(folder / "model_index.json")["_class_name"]
    said = diffusers.utils.logging
    level = said.get_verbosity()
    said.set_verbosity_error()
    said.disable_progress_bar()
    try:
        pipeline: Any = diffusers.DiffusionPipeline.from_pretrained(
            folder, trust_remote_code=isinstance(kind, list)
        )
    except Exception as error:
        raise UserError(
            f"diffusers cannot read the pipeline back ({reason(error)}): pass --to hub-folder"
        ) from error
    finally:
        said.enable_progress_bar()
        said.set_verbosity(level)
    pipeline.set_progress_bar_config(disable=True)
    if pipeline.__class__.__name__ in ("FewStepPipeline", "DDIMPipeline"):
        worst, scale = _from_noise(pipeline, product)
    elif prompts:
        worst, scale = _from_prompts(pipeline, product, prompts)
    else:
        return None
    return {
        "against": "the sampler in PyTorch, float32, from the same noise",
        "inputs": "unit noise",
        "batches": [4],
        "largest_difference": worst,
        "largest_output": scale,
        "relative_difference": worst / max(scale, torch.finfo(torch.float32).tiny),
        "tolerance": TOLERANCE,
    }


def _from_noise(pipeline: Any, product: Any) -> tuple[float, float]:
    model = getattr(pipeline, "network", None) or pipeline.unet
    size, count = model.config.sample_size, 4
    shape = (count, model.config.in_channels, size, size)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    labels = None
    if hasattr(pipeline, "network"):
        given: dict[str, Any] = {"latents": noise, "batch_size": count}
        if pipeline.config.classes:
            labels = torch.arange(count) % pipeline.config.classes
            given = {"latents": noise, "class_labels": labels.tolist()}
    else:
        given = {"batch_size": count, "num_inference_steps": product.plan.steps}
        given["generator"] = torch.Generator().manual_seed(0)
    found = torch.tensor(pipeline(**given, output_type="np").images).permute(0, 3, 1, 2)
    with torch.no_grad():
        made = product(noise, labels)
        if getattr(pipeline, "vae", None) is not None:
            made = pipeline.vae.decode(made / pipeline.vae.config.scaling_factor).sample
    wanted = (made / 2 + 0.5).clamp(0, 1)
    return float((wanted - found).abs().max()), float(wanted.abs().max())


def _from_prompts(pipeline: Any, product: Any, prompts: list[str]) -> tuple[float, float]:
    count = min(2, len(prompts))
    size = pipeline.unet.config.sample_size
    noise = torch.randn(
        count, pipeline.unet.config.in_channels, size, size, generator=torch.Generator().manual_seed(0)
    )
    plan = {"num_inference_steps": product.plan.steps, "guidance_scale": product.plan.guidance}
    found = pipeline(prompts[:count], **plan, latents=noise.clone(), output_type="latent").images
    with torch.no_grad():
        wanted = product(noise, torch.arange(count))
    return float((wanted - found).abs().max()), float(wanted.abs().max())

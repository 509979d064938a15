"""The folder of a student: `model.safetensors` and `config.json`, which need no Stillroom to be read."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from stillroom.checkpoint import save_tensors, write_text
from stillroom.errors import UserError, reason
from stillroom.models.names import build, buildable

WEIGHTS, CONFIG = "model.safetensors", "config.json"
METADATA = {"format": "pt"}
FINISHED = "pass the 'student' folder of a finished run"
AGAIN = "copy the folder or export the student again"


def save_student(folder: str | os.PathLike[str], module: nn.Module, config: Mapping[str, Any]) -> None:
    """Write the module's weights and `config` into `folder`, which is made if need be.

    `config` holds `architecture` (a name that `build` knows, or None for a module of the user's own),
    `shape`, `classes`, `labels`, `normalisation` (`mean`, `std`) and what else the reader should know;
    tensors and arrays in it become lists, paths strings. Each file appears whole or not at all.

    Raises UserError if a buildable architecture lacks its sizes, or if the state holds what is no tensor.
    """
    lacking = [key for key in ("shape", "classes") if config.get(key) is None]
    if buildable(config.get("architecture")) and lacking:
        raise UserError(f"the student's config lacks {lacking[0]!r}: it could not be built again without")
    folder = Path(folder)
    text = json.dumps(dict(config), indent=2, default=_plain) + "\n"
    tensors = portable_state(module)
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{WEIGHTS}.partial"
    save_tensors(partial, tensors, METADATA)
    partial.replace(folder / WEIGHTS)
    write_text(folder / CONFIG, text)


def load_student(folder: str | os.PathLike[str], module: nn.Module | None = None) -> nn.Module:
    """The student kept in `folder`, in evaluation mode and with the floating-point types it was saved in.

    The architecture is built, on the CPU, from the folder's config. A `module` given is filled in place and
    returned, and the config is not read: this is the way for a network that `build` does not know.

    Raises UserError for a missing, truncated or foreign file and for weights that do not fit.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"student folder '{folder}' does not exist: {FINISHED}")
    if module is None:
        module = _rebuild(folder)
    fill(module, read_weights(folder / WEIGHTS), folder / WEIGHTS)
    return module.eval()


def read_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The config of the student kept in `folder`; UserError if it is missing or no JSON object."""
    path = Path(folder) / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"student config '{path}' cannot be read: {FINISHED}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"student config '{path}' is no JSON ({reason(error)}): {AGAIN}") from error
    if not isinstance(config, dict):
        raise UserError(f"student config '{path}' is not a JSON object: {AGAIN}")
    return config


def weights_digest(module: nn.Module) -> str:
    """sha256 over names, types, shapes and bytes of a module's state."""
    found = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        found.update(f"{key} {tuple(value.shape)} {value.dtype}".encode())
        found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def portable_state(module: nn.Module) -> dict[str, Tensor]:
    """The module's state as contiguous CPU tensors, each with memory of its own.

    A tensor that several names share is written under each of them, so that every reader finds
    the keys that a strict `load_state_dict` asks for; the prefix that `torch.compile` adds is taken off.
    """
    state: dict[str, Tensor] = {}
    for key, value in module.state_dict().items():
        if not isinstance(value, Tensor):
            raise UserError(f"the student's state {key!r} is a {type(value).__name__}: keep tensors only")
        tensor = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        state[key.replace("_orig_mod.", "")] = tensor
    return state


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else os.fspath(value)


def _rebuild(folder: Path) -> nn.Module:
    config = read_config(folder)
    name, where = config.get("architecture"), f"student config '{folder / CONFIG}'"
    if not isinstance(name, str) or not buildable(name):
        raise UserError(
            f"{where} names no known architecture ({name!r}): pass load_student(folder, module=...)"
        )
    shape, classes = config.get("shape"), config.get("classes")
    if not isinstance(shape, list) or type(classes) is not int or {type(size) for size in shape} != {int}:
        raise UserError(f"{where} has shape {shape!r} and {classes!r} classes: {AGAIN}")
    try:
        return build(name, shape=shape, classes=classes, seed=0)
    except (MemoryError, OverflowError, RuntimeError, TypeError) as error:  # sizes that no memory holds
        raise UserError(
            f"{where} asks for a network that cannot be built ({reason(error)}): {AGAIN}"
        ) from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; UserError where it is missing, truncated or foreign."""
    try:
        return load_file(path)
    except OSError as error:
        raise UserError(f"student weights '{path}' cannot be read: {FINISHED}") from error
    except SafetensorError as error:
        raise UserError(
            f"student weights '{path}' are truncated or foreign ({reason(error)}): {AGAIN}"
        ) from error


def fill(module: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Put `tensors`, read from `path`, into the module, which takes their types; UserError unless they fit."""
    own = module.state_dict(keep_vars=True)
    faults = [f"{key!r} is missing" for key in own if key not in tensors]
    faults += [f"{key!r} is unknown" for key in tensors if key not in own]
    for key in own.keys() & tensors.keys():
        if own[key].shape != tensors[key].shape:
            faults.append(f"{key!r} is {tuple(tensors[key].shape)}, not {tuple(own[key].shape)}")
        elif own[key].is_floating_point() != tensors[key].is_floating_point():
            faults.append(f"{key!r} is {tensors[key].dtype}, not {own[key].dtype}")
    if faults:
        more = f" and {len(faults) - 1} more" if len(faults) > 1 else ""
        raise UserError(
            f"student weights '{path}' do not fit {type(module).__name__} ({faults[0]}{more}): "
            "pass the network that they were saved from"
        )
    with torch.no_grad():
        for key, value in own.items():
            # load_state_dict would round to the type of the module; the student is what was saved.
            value.data = value.data.to(tensors[key].dtype)
    module.load_state_dict(tensors)

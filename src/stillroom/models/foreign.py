"""Weights in the folders of other libraries: safetensors, or torch's own files read without running what is in them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from stillroom.errors import UserError, reason
from stillroom.models.files import faults_of

SAFE = ("model.safetensors", "open_clip_model.safetensors")
TORCH = ("pytorch_model.bin", "model.bin", "model.pth", "model.pt", "checkpoint.pth")
"""Where weights are looked for, in this order."""


def weights_file(folder: Path) -> Path:
    """The file of weights in `folder`; UserError where there is none."""
    for name in (*SAFE, *TORCH):
        if (folder / name).is_file():
            return folder / name
    raise UserError(
        f"'{folder}' has no weights: put model.safetensors into it, or pass config:{folder} for fresh ones"
    )


def read_foreign(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file by name, floats as float32; UserError for a damaged file, and for one that holds
    more than tensors."""
    try:
        found = load_file(path) if path.suffix == ".safetensors" else _read_torch(path)
    except OSError as error:
        raise UserError(f"weights '{path}' cannot be read ({reason(error)}): copy the folder again") from None
    except SafetensorError as error:
        raise UserError(
            f"weights '{path}' are truncated or foreign ({reason(error)}): copy the folder again"
        ) from None
    return {key: value.float() if value.is_floating_point() else value for key, value in found.items()}


def _read_torch(path: Path) -> Mapping[str, Tensor]:
    try:
        found = torch.load(path, map_location=torch.device("cpu"), weights_only=True)
    except Exception as error:
        if type(error).__name__ == "UnpicklingError":  # its module is not imported here, lest it be used
            raise UserError(
                f"weights '{path}' hold more than tensors and could run code: save them as model.safetensors"
            ) from None
        raise UserError(
            f"weights '{path}' are truncated or foreign ({reason(error)}): copy the folder again"
        ) from None
    for key in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise UserError(f"weights '{path}' are no tensors by name: save the network's state_dict")
    return found


def fill_all(module: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Put `tensors` into the module; UserError unless all of them fit and none is missing."""
    faults = faults_of(module, tensors)
    if faults:
        raise misfit(module, faults, path)
    module.load_state_dict(dict(tensors))


def fill_but_head(
    module: nn.Module, tensors: Mapping[str, Tensor], path: Path, before: int, classes: int
) -> None:
    """As `fill_all`, but a head for `before` classes may meet one for `classes`, which keeps its fresh weights.

    The head is what has another first size, `classes` in place of `before`, and else the same sizes.
    """
    own = module.state_dict()
    fresh = {
        key
        for key, value in tensors.items()
        if key in own and value.ndim and value.shape != own[key].shape and before != classes
        if (len(value), len(own[key])) == (before, classes) and value.shape[1:] == own[key].shape[1:]
    }
    fill_all(module, {key: own[key] if key in fresh else value for key, value in tensors.items()}, path)


def misfit(module: nn.Module, faults: list[str], path: Path) -> UserError:
    """What to say of weights that do not fit their own folder's config."""
    more = f" and {len(faults) - 1} more" if len(faults) > 1 else ""
    return UserError(
        f"weights '{path}' do not fit the {type(module).__name__} that the folder's config describes "
        f"({faults[0]}{more}): save the model with its config"
    )

"""The folder of a sampler: `model.safetensors` and `config.json`, read back without its training run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from stillroom.checkpoint import read_json, save_tensors, write_json
from stillroom.config import from_plain
from stillroom.errors import UserError
from stillroom.generators.parts.denoiser import denoiser_from
from stillroom.generators.parts.sampler import Plan, Sampler
from stillroom.models.denoisers.names import network_config, network_from_config
from stillroom.models.files import CONFIG, WEIGHTS, fill, portable_state, read_weights

NULL, TABLE = "denoiser.null", "denoiser.table"
"""Embeddings of no condition, and of all conditions, beside the network's weights."""


def save_sampler(folder: Path, sampler: Sampler, config: Mapping[str, Any]) -> None:
    """Write the network's weights, and `config` with all that makes the sampler again, into `folder`."""
    network = sampler.denoiser.network
    about = {**config, "network": network_config(network), **sampler.config()}
    folder.mkdir(parents=True, exist_ok=True)
    beside = {NULL: sampler.denoiser.null, TABLE: sampler.denoiser.table}
    held = {key: value for key, value in beside.items() if value is not None}
    save_tensors(folder / WEIGHTS, portable_state(network) | held)
    write_json(folder / CONFIG, about)


def load_sampler(folder: Path, network: nn.Module | None = None) -> Sampler:
    """The sampler kept in `folder`, in evaluation mode; `network` takes the weights where it is the user's own.

    Raises UserError for a folder that holds none, a damaged file, and weights that do not fit.
    """
    about = read_json(folder / CONFIG)
    if not isinstance(about, dict) or not {"network", "plan", "denoiser"} <= set(about):
        raise UserError(
            f"'{folder}' holds no sampler: pass the folder of a run of a generator, or a pipeline"
        )
    if network is None and about["network"] is None:
        raise UserError(
            f"the sampler in '{folder}' has a network of the user's own: pass load_sampler(folder, network)"
        )
    adapted = about["network"] is not None and about["network"]["kind"] == "adapted"
    if network is None or adapted:
        network = network_from_config(about["network"], network)
        add = getattr(network, "add_guidance", None)
        if about["denoiser"]["takes_guidance"] and add is not None:
            add()
    tensors = read_weights(folder / WEIGHTS)
    null, table = tensors.pop(NULL, None), tensors.pop(TABLE, None)
    fill(network, tensors, folder / WEIGHTS)
    return Sampler(
        denoiser_from(network, about["denoiser"], null, table), from_plain(Plan, about["plan"])
    ).eval()

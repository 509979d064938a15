"""Classifiers from timm and torchvision by name. Both are imported only when they are asked for."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from types import ModuleType
from typing import Any

from torch import nn

from stillroom.errors import UserError, reason
from stillroom.hub import hub_or_cache
from stillroom.models.inputs import Inputs, of_timm, of_torchvision

# In training these give a tuple with the logits of auxiliary heads, which no loss of ours expects.
WITH_AUXILIARY_HEADS = ("googlenet", "inception_v3")

READING = (
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "checkpoint_path",
    "cache_dir",
    "num_features",
)
"""Options of `timm.create_model` that have it read files or the hub, and one that its folders only state."""


def from_timm(name: str, shape: Sequence[int], classes: int, pretrained: bool) -> nn.Module:
    """timm's model `name` for inputs `[N, *shape]`, told the image size where it fixes one.

    Raises UserError for an unknown name, a missing timm, and weights that cannot be had.
    """
    timm = _known_timm(name)
    try:
        with hub_or_cache() if pretrained else nullcontext():
            return timm.create_model(name, pretrained=pretrained, **timm_options(name, shape, classes))
    except Exception as error:
        raise UserError(_unbuilt(f"timm:{name}", shape, pretrained, error)) from error


def timm_made(name: str, options: Mapping[str, Any]) -> nn.Module:
    """timm's model `name` with these options and fresh weights; those that would read files are left out.

    Raises UserError for an unknown name, options that the model does not take, and a missing timm.
    """
    timm = _known_timm(name)
    options = {key: value for key, value in options.items() if key not in READING}
    try:
        return timm.create_model(name, pretrained=False, **options)
    except Exception as error:
        raise UserError(
            f"timm:{name} cannot be built with {options} ({reason(error)}): correct them"
        ) from error


def _known_timm(name: str) -> ModuleType:
    timm = _library("timm")
    if not timm.is_model(name):
        raise UserError(_unknown("timm", name, timm.list_models()))
    return timm


def timm_options(name: str, shape: Sequence[int], classes: int) -> dict[str, Any]:
    """What `timm.create_model` has to be told of the data: classes, channels, and the size where it is fixed."""
    options: dict[str, Any] = {"num_classes": classes, "in_chans": shape[0]}
    config = _library("timm").models.get_pretrained_cfg(name, allow_unregistered=True)
    # A config with fixed_input_size is timm's word for "the model takes img_size".
    if config is not None and config.fixed_input_size:
        options["img_size"] = tuple(shape[1:])
    return options


def from_torchvision(name: str, shape: Sequence[int], classes: int, pretrained: bool) -> nn.Module:
    """torchvision's classifier `name`, which takes three channels, without auxiliary heads.

    Raises UserError for an unknown name, another number of channels, a missing torchvision, and weights that
    cannot be had.
    """
    models = _known_torchvision(name)
    if shape[0] != 3:
        raise UserError(
            f"architecture 'torchvision:{name}' takes 3 channels, the data has {shape[0]}: "
            "use a timm:NAME, which takes any number"
        )
    try:
        module = models.get_model(name, weights=None, num_classes=classes, **_extra(name))
        if pretrained:
            _load_published(module, models.get_model_weights(name).DEFAULT.get_state_dict(progress=False))
    except Exception as error:
        raise UserError(_unbuilt(f"torchvision:{name}", shape, pretrained, error)) from error
    return module


def torchvision_made(name: str, options: Mapping[str, Any]) -> nn.Module:
    """torchvision's classifier `name` with these options, fresh weights and no auxiliary heads.

    Raises UserError for an unknown name, options that the model does not take, and a missing torchvision.
    """
    models = _known_torchvision(name)
    try:
        return models.get_model(name, weights=None, **{**_extra(name), **options})
    except Exception as error:
        raise UserError(
            f"torchvision:{name} cannot be built with {dict(options)} ({reason(error)}): correct them"
        ) from error


def _extra(name: str) -> dict[str, Any]:
    return {"aux_logits": False, "init_weights": True} if name in WITH_AUXILIARY_HEADS else {}


def _known_torchvision(name: str) -> ModuleType:
    models = _library("torchvision.models")
    if name not in (known := models.list_models(module=models)):
        raise UserError(_unknown("torchvision", name, known))
    return models


def published(name: str) -> tuple[Inputs, int | None]:
    """What the published weights of `timm:NAME` or `torchvision:NAME` take, and how many classes they tell apart."""
    library, _, detail = name.partition(":")
    if library == "torchvision":
        weights = _library("torchvision.models").get_model_weights(detail).DEFAULT
        found = of_torchvision(weights.transforms(), f"torchvision's weights of {detail}")
        return found, len(weights.meta.get("categories", ())) or None
    config = _library("timm").models.get_pretrained_cfg(detail, allow_unregistered=True)
    said = {} if config is None else config.to_dict()
    return of_timm(said, {}, f"timm's weights of {detail}"), said.get("num_classes")


def _load_published(module: nn.Module, published: dict[str, Any]) -> None:
    """Fill the module with published weights, all but a head that has another number of classes."""
    own = module.state_dict()
    fitting = {key: value for key, value in published.items() if key in own and own[key].shape == value.shape}
    module.load_state_dict(fitting, strict=False)


def _library(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        library = name.partition(".")[0]
        raise UserError(f'{library} is not installed: pip install "stillroom[vision]"') from error


def _unknown(library: str, name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name.lower(), list(known), n=1, cutoff=0.4)
    hint = f"did you mean '{library}:{near[0]}'?" if near else f"see {library}'s list_models()"
    return f"{library} has no model {name!r}: {hint}"


def _unbuilt(name: str, shape: Sequence[int], pretrained: bool, error: Exception) -> str:
    why = reason(error)
    if pretrained:
        return f"no pretrained weights for {name!r} ({why}): check name and network or drop 'pretrained'"
    return f"architecture {name!r} cannot be built for inputs {tuple(shape)} ({why}): choose another one"

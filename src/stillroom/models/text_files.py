"""The folder of a student on text: transformers' own files, the tokenizer, and what Stillroom adds to them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from stillroom.checkpoint import read_json, write_json
from stillroom.errors import UserError, reason
from stillroom.hub import quiet, transformers
from stillroom.models.files import AGAIN, FINISHED, METADATA, WEIGHTS, fill, portable_state, read_weights
from stillroom.models.text_names import pooled_of, settled
from stillroom.models.text_places import HEAD
from stillroom.models.texts import Causal, Encoder, MeanPooled

ABOUT = "stillroom.json"
"""Beside transformers' config.json, which is the library's own: what kind of student it is and how it was made."""


def wrapped(network: nn.Module, tokenizer: Any, causal: bool) -> nn.Module:
    """A transformers model as `Causal` or `Encoder`; any other module is returned as it is."""
    if isinstance(network, transformers().PreTrainedModel):
        return settled(network, tokenizer, causal)
    return network


def save_text(folder: Path, module: nn.Module, tokenizer: Any, about: Mapping[str, Any]) -> None:
    """Write the module, the tokenizer and `about` into `folder`, which is made if need be.

    An `Encoder` or `Causal` is left as its network's `save_pretrained` does, safetensors only, so that
    `AutoModelForSequenceClassification` or `AutoModelForCausalLM.from_pretrained(folder)` reads it; one with a
    pooled head as a sentence-transformers folder with the head as its last layer. Of any other module the weights
    are written. `about` must be plain values; `length` and `classes` (the names) belong to it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kind = type(module).__name__ if isinstance(module, Encoder | Causal) else None
    network = module.network if isinstance(module, Encoder | Causal) else None
    if isinstance(network, MeanPooled):
        _save_pooled(folder, network, int(about["length"]))
    elif network is not None:
        with quiet():
            network.save_pretrained(folder)  # pyrefly: ignore[not-callable]
    else:
        save_file(portable_state(module), folder / WEIGHTS, metadata=METADATA)
    tokenizer.save_pretrained(folder)
    write_json(folder / ABOUT, {"kind": kind, **about})


def read_about(folder: Path) -> dict[str, Any]:
    """What `save_text` was told about the student in `folder`; UserError where there is none."""
    if not folder.is_dir():
        raise UserError(f"student folder '{folder}' does not exist: {FINISHED}")
    about = read_json(folder / ABOUT)
    if not isinstance(about, dict) or "kind" not in about:
        raise UserError(f"'{folder / ABOUT}' is not about a student on text: {AGAIN}")
    return about


def load_text(folder: Path, module: nn.Module | None = None) -> nn.Module:
    """The student kept in `folder`, in evaluation mode, on the CPU.

    A `module` given is filled and returned (a transformers model wrapped): this is the way for a network of the
    user's own. Raises UserError for missing, truncated or foreign files and for weights that do not fit.
    """
    folder = Path(folder)
    about = read_about(folder)
    tokenizer = tokenizer_in(folder)
    if module is not None:
        own = wrapped(module, tokenizer, about["kind"] == "Causal")
        inner = own.network if isinstance(own, Encoder | Causal) else own
        assert isinstance(inner, nn.Module)
        fill(inner, _with_tied(inner, read_weights(folder / WEIGHTS)), folder / WEIGHTS)
        return own.eval()
    if about["kind"] not in ("Encoder", "Causal"):
        raise UserError(
            f"student folder '{folder}' holds a network of your own: pass it, student(module=...)"
        )
    network = _rebuilt(folder, about)
    return settled(network, tokenizer, about["kind"] == "Causal").eval()


def tokenizer_in(folder: Path) -> Any:
    """The tokenizer beside the model in `folder`; UserError where it cannot be read."""
    try:
        return transformers().AutoTokenizer.from_pretrained(str(folder))
    except Exception as error:  # of several libraries, by file type
        raise UserError(f"the tokenizer in '{folder}' cannot be read ({reason(error)}): {AGAIN}") from error


def _rebuilt(folder: Path, about: Mapping[str, Any]) -> nn.Module:
    read_weights(folder / WEIGHTS)  # its errors are one line
    try:
        if (folder / HEAD).is_file():
            return pooled_of(str(folder), None, len(about["classes"]), fresh=False)
        name = "AutoModelForCausalLM" if about["kind"] == "Causal" else "AutoModelForSequenceClassification"
        with quiet():
            return getattr(transformers(), name).from_pretrained(folder, use_safetensors=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"student folder '{folder}' cannot be read ({reason(error)}): {AGAIN}") from error


def _with_tied(module: nn.Module, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`tensors` with those that transformers leaves out because another name shares them."""
    state = module.state_dict(keep_vars=True)
    by_memory = {value.data_ptr(): key for key, value in state.items() if key in tensors}
    tied = {
        key: tensors[by_memory[value.data_ptr()]]
        for key, value in state.items()
        if key not in tensors and value.data_ptr() in by_memory
    }
    return tensors | tied


def _save_pooled(folder: Path, network: MeanPooled, length: int) -> None:
    backbone: Any = network.backbone
    with quiet():
        backbone.save_pretrained(folder)
    width, classes = network.head.in_features, network.head.out_features
    kinds = ("Transformer", "Pooling", "Dense")
    paths = ("", "1_Pooling", "2_Dense")
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    (folder / "modules.json").write_text(json.dumps(modules, indent=2) + "\n", encoding="utf-8")
    for path in paths[1:]:
        (folder / path).mkdir(exist_ok=True)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": length, "do_lower_case": False})
    pooling = {"pooling_mode_cls_token": network.first, "pooling_mode_mean_tokens": not network.first}
    write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": width, **pooling})
    dense = {"in_features": width, "out_features": classes, "bias": True}
    dense_config = dense | {"activation_function": "torch.nn.modules.linear.Identity"}
    write_json(folder / "2_Dense" / "config.json", dense_config)
    state = {f"linear.{key}": value for key, value in portable_state(network.head).items()}
    save_file(state, folder / HEAD, metadata=METADATA)

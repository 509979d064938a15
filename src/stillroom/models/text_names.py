"""From a text model's name to a network: built-in sizes, folders, configurations, the hub."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stillroom.errors import UserError
from stillroom.hub import asked, quiet, transformers
from stillroom.models.text_places import (
    HEAD,
    SIZES,
    config_of,
    has_head,
    is_sentence,
    own_head,
    place_of,
    unread,
)
from stillroom.models.texts import Causal, Encoder, MeanPooled
from stillroom.seeds import seeded


def build_encoder(
    name: str, *, tokenizer: Any, classes: Sequence[str], length: int, seed: int, fresh: bool = False
) -> Encoder:
    """The classifier of texts called `name`, in training mode; what has no weights yet depends on `seed` alone.

    `bert:64x2` (width x layers, heads after @), likewise `gpt:` and `llama:`; a folder of a transformers model
    (`./folder` or `transformers:./folder`) or of a sentence-transformers model, whose weights it takes;
    `config:./folder`, its configuration with fresh weights and the tokenizer's vocabulary; `transformers:NAME`, of
    the hub; `sentence:PACKAGE`, an encoder that a Python package carries in its folder `model` (`minilm`). A head
    with another number of classes is made anew. `fresh` takes no weights from anywhere.

    Raises UserError for an unknown name, a missing folder, a vocabulary that is not the tokenizer's.
    """
    with seeded(seed):
        network = _classifier(name, tokenizer, list(classes), length, fresh)
    _check_fit(network, name, tokenizer, length)
    return settled(network, tokenizer, causal=False).train()


def build_causal(name: str, *, tokenizer: Any, length: int, seed: int, fresh: bool = False) -> Causal:
    """The causal language model called `name`, in training mode: `gpt:64x2`, `llama:64x2`, or as `build_encoder`.

    Raises UserError as `build_encoder` does.
    """
    with seeded(seed):
        network = _language_model(name, tokenizer, length, fresh)
    _check_fit(network, name, tokenizer, length)
    return settled(network, tokenizer, causal=True).train()


def settled(network: nn.Module, tokenizer: Any, causal: bool) -> Any:
    """A transformers model as `Causal` or `Encoder`, told the special tokens that it needs to know."""
    return Causal(network) if causal else Encoder(network, padding_of(tokenizer), tokenizer.sep_token_id)


def padding_of(tokenizer: Any) -> int:
    """The id that stands in for padding where a network wants one."""
    found = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
    return int(found)


# -- networks ---------------------------------------------------------------------------------------------------


def _classifier(name: str, tokenizer: Any, classes: list[str], length: int, fresh: bool) -> nn.Module:
    library = transformers()
    sizes = _sizes(name)
    labels = {"id2label": dict(enumerate(classes)), "label2id": {c: i for i, c in enumerate(classes)}}
    if sizes is not None:
        config = _sized_config(*sizes, tokenizer, length, labels)
        return library.AutoModelForSequenceClassification.from_config(config)
    place = place_of(name)
    fresh = fresh or name.startswith("config:")
    if is_sentence(place):
        return pooled_of(place, tokenizer, len(classes), fresh)
    kind = library.AutoModelForSequenceClassification
    named = list(config_of(place).id2label.values())
    config = config_of(place, **labels)
    if fresh:
        _fit_vocabulary(config, tokenizer)
    if type(config) not in kind._model_mapping:
        return pooled_of(place, tokenizer, len(classes), fresh)
    network = _made(kind, place, config, fresh)
    if not fresh and has_head(name, len(classes)):
        _reorder(network, named, classes)
    return network


def _reorder(network: Any, theirs: list[str], ours: list[str]) -> None:
    """Put the classes of a trained head in the order of the data's, where it names the same ones in another."""
    plain = [name.casefold() for name in theirs]
    wanted = [name.casefold() for name in ours]
    if plain == wanted or sorted(plain) != sorted(wanted):
        return
    rows = torch.tensor([plain.index(name) for name in wanted])
    last = [
        part for part in network.modules() if isinstance(part, nn.Linear) and part.out_features == len(ours)
    ][-1]
    with torch.no_grad():
        last.weight.copy_(last.weight[rows])
        if last.bias is not None:
            last.bias.copy_(last.bias[rows])


def _language_model(name: str, tokenizer: Any, length: int, fresh: bool) -> nn.Module:
    library = transformers()
    sizes = _sizes(name)
    kind = library.AutoModelForCausalLM
    if sizes is not None:
        if sizes[0] == "bert":
            raise UserError(f"model '{name}' reads in both directions: pass gpt:64x2, or llama:64x2")
        return kind.from_config(_sized_config(*sizes, tokenizer, length, {}))
    place = place_of(name)
    config = config_of(place)
    fresh = fresh or name.startswith("config:")
    if fresh:
        _fit_vocabulary(config, tokenizer)
    if type(config) not in kind._model_mapping:
        raise UserError(
            f"model '{name}' is a {config.model_type}, no causal language model: pass one that is"
        )
    return _made(kind, place, config, fresh)


def _made(kind: Any, place: str, config: Any, fresh: bool) -> nn.Module:
    """The model of `place` as `kind`; weights that are not there are made, others must fit."""
    if fresh:
        return kind.from_config(config)
    try:
        with quiet(), asked(place):
            return kind.from_pretrained(
                place, config=config, ignore_mismatched_sizes=True, dtype=torch.float32, weights_only=True
            )
    except Exception as error:  # of several libraries, by file type
        raise unread(place, error) from error


def pooled_of(place: str, tokenizer: Any, classes: int, fresh: bool) -> MeanPooled:
    """The encoder of a sentence-transformers folder with a linear head: its own where it has one, or a fresh one."""
    from safetensors.torch import load_file

    library = transformers()
    config = config_of(place)
    if fresh:
        _fit_vocabulary(config, tokenizer)
    backbone = _made(library.AutoModel, place, config, fresh)
    pooling = Path(place) / "1_Pooling" / "config.json"
    told = json.loads(pooling.read_text()) if pooling.is_file() else {}
    first = bool(told.get("pooling_mode_cls_token")) or told.get("pooling_mode") == "cls"
    network = MeanPooled(backbone, classes, first)
    if own_head(Path(place)) == classes and not fresh:
        state = load_file(Path(place) / HEAD)
        network.head.load_state_dict({key.removeprefix("linear."): value for key, value in state.items()})
    return network


def _sizes(name: str) -> tuple[str, int, int, int] | None:
    """Family, width, layers and heads of a name like bert:64x2; None for other names; UserError for a bad one."""
    family, colon, detail = name.partition(":")
    if family not in SIZES or not colon:
        return None
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)(?:@([1-9]\d*))?", detail, flags=re.ASCII)
    if match is None:
        raise UserError(
            f"model '{name}' has malformed sizes '{detail}': write width x layers, like {family}:64x2"
        )
    width, layers = int(match[1]), int(match[2])
    heads = (
        int(match[3]) if match[3] else next(h for h in range(max(1, width // 32), 0, -1) if width % h == 0)
    )
    if width % heads or (width // heads) % 2:
        raise UserError(
            f"model '{name}' is {width} wide and has {heads} heads: pass a width whose share a head is even"
        )
    return family, width, layers, heads


def _sized_config(
    family: str, width: int, layers: int, heads: int, tokenizer: Any, length: int, labels: dict[str, Any]
) -> Any:
    """The configuration of a small model; positions for `length` tokens, at least 512."""
    library = transformers()
    shared = {"vocab_size": len(tokenizer), "pad_token_id": padding_of(tokenizer), **labels}
    shared |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    places = max(512, length)
    if family == "gpt":
        dry = {
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
        }  # as llama, which has no dropout either
        return library.GPT2Config(
            n_positions=places, n_embd=width, n_layer=layers, n_head=heads, **dry, **shared
        )
    kind = library.BertConfig if family == "bert" else library.LlamaConfig
    return kind(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        max_position_embeddings=places,
        **shared,
    )


def _fit_vocabulary(config: Any, tokenizer: Any) -> None:
    """A configuration for fresh weights takes the tokenizer's vocabulary and special tokens."""
    config.vocab_size = len(tokenizer)
    config.pad_token_id = padding_of(tokenizer)
    config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id


def _check_fit(network: nn.Module, name: str, tokenizer: Any, length: int) -> None:
    config: Any = network.config
    if len(tokenizer) > config.vocab_size:
        raise UserError(
            f"model '{name}' has {config.vocab_size} tokens, the tokenizer {len(tokenizer)}: pass its own "
            f"tokenizer, or config:FOLDER for fresh weights on this one"
        )
    places = getattr(config, "max_position_embeddings", None)
    if isinstance(places, int) and length > places > 0:
        raise UserError(
            f"model '{name}' reads {places} tokens, --task.length is {length}: pass {places} or less"
        )

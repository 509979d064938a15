"""The options and configs of smaller networks: fewer blocks, narrower layers, by what each library calls them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from stillroom.errors import UserError
from stillroom.models.cutting import count_left, evenly
from stillroom.models.names import sizes_of

LAYERS = ("num_hidden_layers", "encoder_layers", "decoder_layers", "num_decoder_layers", "num_layers")
INNER = (
    *("intermediate_size", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim"),
    *("d_ff", "hidden_dim", "n_inner", "moe_intermediate_size"),
)
"""transformers' names of the widths inside feed-forward layers."""
FOLLOW = ("embedding_size", "word_embed_proj_dim", "pooler_output_size", "d_model", "classifier_proj_size")
"""Its names of widths that are the hidden size under another name, where they are equal to it."""

Changes = dict[str, Any]


def scaled(size: int, width: float) -> int:
    """`size` times `width`, rounded: to a multiple of 8 where `size` is one and 8 or more is left; 1 at least."""
    wanted = size * width
    if size % 8 == 0 and wanted >= 8:
        return 8 * round(wanted / 8)
    return max(1, round(wanted))


def fewer_heads(heads: int, width: float) -> int:
    """How many of `heads` attention heads, which keep their width, are left: the nearest number, 1 at least."""
    return max(1, round(heads * width))


# -- our own networks ---------------------------------------------------------------------------------------------


def smaller_name(name: str, depth: float, width: float) -> str:
    """The name of one of our own networks with fewer blocks (hidden layers, convolutions) of fewer channels."""
    family, widths, blocks = sizes_of(name)
    if blocks is None:
        widths = [widths[i] for i in evenly(len(widths), count_left(len(widths), depth))]
    else:
        blocks = count_left(blocks, depth)
    widths = [size if width == 1 else scaled(size, width) for size in widths]
    if family == "convnet":
        return f"convnet:{widths[0]}x{blocks}"
    return f"{family}:{'-'.join(map(str, widths))}" + (f"@{blocks}" if family == "resnet" else "")


# -- timm and torchvision -----------------------------------------------------------------------------------------


def timm_changes(network: Any, depth: float, width: float) -> Iterator[Changes]:
    """Options of `timm.create_model` that would make `network` smaller, to be tried one after the other.

    Columns of blocks (ViT and its kin: depth, embed_dim, num_heads; heads keep their width), ResNets (layers,
    channels; the stem stays), networks of stages with blocks (ConvNeXt: depths, dims; Swin: depths, embed_dim,
    num_heads). Nothing for other networks.
    """
    dim, blocks = getattr(network, "embed_dim", None), getattr(network, "blocks", None)
    if isinstance(dim, int) and isinstance(blocks, nn.ModuleList | nn.Sequential):
        yield from _column(blocks, dim, depth, width)
    elif all(hasattr(network, f"layer{i}") for i in (1, 2, 3, 4)):
        stages = [getattr(network, f"layer{i}") for i in (1, 2, 3, 4)]
        changes: Changes = {"layers": [count_left(len(stage), depth) for stage in stages]}
        if width != 1:
            outs = [entry["num_chs"] for entry in network.feature_info[-4:]]
            planes = [c // getattr(stage[-1], "expansion", 1) for c, stage in zip(outs, stages, strict=True)]
            changes["channels"] = tuple(scaled(c, width) for c in planes)
        yield changes
    else:
        yield from _staged(network, depth, width)


def _column(blocks: Any, dim: int, depth: float, width: float) -> Iterator[Changes]:
    left, attention = count_left(len(blocks), depth), getattr(blocks[0], "attn", None)
    heads = getattr(attention, "num_heads", None)
    narrow: Changes = {}
    if width != 1 and isinstance(heads, int):
        kept = fewer_heads(heads, width)
        narrow = {"embed_dim": kept * (dim // heads), "num_heads": kept}
    elif width != 1:
        narrow = {"embed_dim": scaled(dim, width)}
    yield {"depth": left, **narrow}
    yield {"num_blocks": left, **narrow}


def _staged(network: Any, depth: float, width: float) -> Iterator[Changes]:
    name = next((name for name in ("stages", "layers") if hasattr(network, name)), None)
    stages = list(getattr(network, name)) if name else []
    if not stages or not all(hasattr(stage, "blocks") for stage in stages):
        return
    changes: Changes = {"depths": tuple(count_left(len(stage.blocks), depth) for stage in stages)}
    if width == 1:
        yield changes
        return
    heads: list[Any] = [
        getattr(getattr(stage.blocks[0], "attn", None), "num_heads", None) for stage in stages
    ]
    if all(isinstance(count, int) for count in heads) and isinstance(
        getattr(network, "embed_dim", None), int
    ):
        kept = fewer_heads(heads[0], width)
        more = [count // heads[0] for count in heads]
        dim = kept * (network.embed_dim // heads[0])
        yield {**changes, "embed_dim": dim, "num_heads": tuple(kept * times for times in more)}
    outs = [entry["num_chs"] for entry in getattr(network, "feature_info", [])]
    if len(outs) == len(stages):
        yield {**changes, "dims": tuple(scaled(count, width) for count in outs)}


def torchvision_changes(options: Mapping[str, Any], width: float) -> Iterator[Changes]:
    """Options of `torchvision.models.get_model` that would make a network narrower, to be tried one after the other."""
    yield {"width_per_group": scaled(options.get("width_per_group", 64), width)}
    yield {"width_mult": options.get("width_mult", 1.0) * width}


# -- transformers -------------------------------------------------------------------------------------------------


def smaller_config(config: Any, depth: float, width: float) -> Any:
    """The config of a smaller network of transformers: fewer layers (or `depths` of stages), fewer heads.

    Heads keep their width, so that the hidden size is a multiple of it; feed-forward widths and the sizes of stages are
    scaled. UserError where neither layers, or neither heads nor sizes, are known by name.
    """
    options = copy.deepcopy(config.to_dict())
    names = {
        key: config.attribute_map.get(key, key) for key in (*LAYERS, "hidden_size", "num_attention_heads")
    }
    if depth != 1:
        _fewer_layers(options, [names[key] for key in LAYERS], depth, config)
    if width != 1:
        _narrower(options, names["hidden_size"], names["num_attention_heads"], width, config)
    return type(config).from_dict(options)


def _fewer_layers(options: Changes, names: Sequence[str], depth: float, config: Any) -> None:
    found = False
    if isinstance(options.get("depths"), (list, tuple)):
        options["depths"] = [count_left(count, depth) for count in options["depths"]]
        found = True
    for key in dict.fromkeys(names):
        count = options.get(key)
        if isinstance(count, int) and "depths" not in options:
            left, found = evenly(count, count_left(count, depth)), True
            options[key] = len(left)
            for name, value in options.items():
                aligned = name.endswith(("layer_types", "_layers")) and isinstance(value, (list, tuple))
                if aligned and len(value) == count:
                    options[name] = [value[i] for i in left]
    if not found:
        raise UserError(
            f"the number of layers is not known of a '{config.model_type}': pass --task.student by name"
        )


def _narrower(options: Changes, hidden: str, heads: str, width: float, config: Any) -> None:
    size, count = options.get(hidden), options.get(heads)
    found = False
    if isinstance(size, int) and isinstance(count, int):
        kept, found = fewer_heads(count, width), True
        options[heads], options[hidden] = kept, kept * (size // count)
        groups = options.get("num_key_value_heads")
        if isinstance(groups, int):
            fewer = kept if groups == count else fewer_heads(groups, width)
            options["num_key_value_heads"] = next(g for g in range(fewer, 0, -1) if kept % g == 0)
        for key in FOLLOW:
            if key != hidden and options.get(key) == size:
                options[key] = options[hidden]
    elif isinstance(options.get("hidden_sizes"), (list, tuple)) and not isinstance(count, (list, tuple)):
        found = True
        options["hidden_sizes"] = [scaled(each, width) for each in options["hidden_sizes"]]
        if isinstance(options.get("embedding_size"), int):
            options["embedding_size"] = scaled(options["embedding_size"], width)
    for key in INNER:
        if isinstance(options.get(key), int):
            options[key] = scaled(options[key], width)
    if not found:
        raise UserError(f"the width is not known of a '{config.model_type}': pass shrink:depth=... alone")

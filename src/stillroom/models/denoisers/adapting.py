"""Putting adapters on a network: at which blocks, in which widths; and their files, which go without the network."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from stillroom.checkpoint import read_json, save_tensors, write_json
from stillroom.errors import UserError
from stillroom.models.denoisers.adapters import AdaptedNetwork, Architecture, Sites, entering, tokens_of
from stillroom.models.denoisers.library import DiT, UNet2D, UNet2DCondition
from stillroom.models.denoisers.residual import ResidualMLP
from stillroom.models.files import fill, portable_state, read_weights, weights_digest
from stillroom.models.probing import quietly

BLOCKS: dict[type[nn.Module], str] = {
    DiT: "model.transformer_blocks.*.attn1",
    UNet2DCondition: "model.**.attn2",
    UNet2D: "model.**.attentions.*",
    ResidualMLP: "blocks.*",
}
"""Which blocks are adapted unless told: attention; cross-attention where there is some; a perceptron's blocks."""
WEIGHTS, CONFIG = "adapters.safetensors", "adapters.json"


def adapt(
    base: nn.Module,
    example: tuple[Tensor, Tensor, Tensor],
    *,
    blocks: Sequence[str] = (),
    architecture: Architecture = "cross_attention",
    hidden: int = 12,
    multiplier: float = 1.0,
    scales: tuple[float, float] = (1.0, 6.0),
) -> AdaptedNetwork:
    """Untrained adapters on `base`, at the blocks named or at those of `BLOCKS`, in the widths that a pass shows.

    `example` is x [n, ...], the network's time [n] and conditions [n, ...]. Raises UserError for a base without
    embedders, and for blocks that there are not or that do not work on vectors, tokens or maps of the samples.
    """
    for name in ("embed_time", "embed_condition"):
        if not callable(getattr(base, name, None)):
            raise UserError(
                f"{type(base).__name__} has no method {name}(...): give it one that returns vectors, as adapters are "
                "told time and condition in the base's own embeddings"
            )
    if architecture == "cross_attention" and hidden % 2:
        raise UserError(
            f"--method.hidden is {hidden} and cross_attention needs an even width: pass {hidden + 1}"
        )
    paths = chosen_blocks(base, blocks)
    x, time, condition = example
    with quietly(base):
        embedded = [base.embed_time(time), base.embed_condition(condition)]  # type: ignore[operator]
        seen = _pass(base, paths, example)
    found = {path: _site(path, seen.get(path), len(x), architecture) for path in paths}
    widths = [value.shape[-1] for value in embedded]
    return AdaptedNetwork(base, Sites(architecture, hidden, multiplier, scales, *widths, blocks=found))


def chosen_blocks(base: nn.Module, patterns: Sequence[str]) -> list[str]:
    """The module paths that match: * stands for one name in a path, ** for several. Empty: those of `BLOCKS`."""
    names = [name for name, _ in base.named_modules() if name]
    if not patterns:
        usual = next((pattern for kind, pattern in BLOCKS.items() if isinstance(base, kind)), None)
        if usual is None:
            raise UserError(
                f"--method.blocks is empty and {type(base).__name__} is none of ours: pass its blocks' module paths, "
                f"such as {names[0] if names else 'blocks.*'}"
            )
        patterns = [usual]
    found: list[str] = []
    for pattern in patterns:
        words = {"**": ".+", "*": "[^.]+"}
        regular = "".join(words.get(part, re.escape(part)) for part in re.split(r"(\*\*|\*)", pattern))
        matching = [name for name in names if re.fullmatch(regular, name)]
        if not matching:
            near = difflib.get_close_matches(pattern, names, n=5, cutoff=0.0)
            raise UserError(
                f"--method.blocks '{pattern}' is no module of {type(base).__name__}: pass one of its own, the nearest "
                f"are {', '.join(near) or 'none'}"
            )
        found += [name for name in matching if name not in found]
    return found


def _pass(base: nn.Module, paths: Sequence[str], example: tuple[Tensor, ...]) -> dict[str, tuple[Any, Any]]:
    """What went into each block and out of it."""
    seen: dict[str, tuple[Any, Any]] = {}

    def watch(path: str) -> Any:
        def note(block: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            seen[path] = (entering(args, kwargs), output[0] if isinstance(output, tuple) else output)

        return note

    hooks = [base.get_submodule(p).register_forward_hook(watch(p), with_kwargs=True) for p in paths]
    try:
        base(*example, None)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _site(path: str, seen: tuple[Any, Any] | None, count: int, architecture: str) -> tuple[int, int]:
    if seen is None:
        raise UserError(f"--method.blocks '{path}' took no part in the forward pass: name one that does")
    for value in seen:
        if not isinstance(value, Tensor) or value.ndim < 2 or len(value) != count:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise UserError(
                f"--method.blocks '{path}' has {shape} for {count} samples: name a block from vectors, tokens or maps "
                "of the samples to such"
            )
    h, said = tokens_of(seen[0]), tokens_of(seen[1])
    if architecture == "cross_attention" and h.shape[1] != said.shape[1]:
        raise UserError(
            f"--method.blocks '{path}' turns {h.shape[1]} tokens into {said.shape[1]}: pass --method.architecture "
            "offset, or a block that keeps them"
        )
    return h.shape[-1], said.shape[-1]


# -- files ----------------------------------------------------------------------------------------------------------


def save_adapters(folder: Path, network: AdaptedNetwork) -> None:
    """Write the adapters alone: tensors by module path, and a JSON of what they are and for which base."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        key.replace("/", "."): value.contiguous() for key, value in portable_state(network.adapters).items()
    }
    save_tensors(folder / WEIGHTS, tensors)
    about = {**network.config(), "base_name": type(network.base).__name__}
    write_json(folder / CONFIG, {**about, "base_digest": weights_digest(network.base)})


def load_adapters(base: nn.Module, folder: Path) -> AdaptedNetwork:
    """The adapters kept in `folder` on `base`: the network that they were made for, or another of its architecture.

    Raises UserError for a folder that holds none, and for a base that lacks their blocks.
    """
    about = read_json(folder / CONFIG)
    if not isinstance(about, dict) or about.get("kind") != "adapted":
        raise UserError(f"'{folder / CONFIG}' describes no adapters: pass a folder of save_adapters")
    made = AdaptedNetwork.from_config(base, about)
    paths = sorted(made.sites.blocks, key=len, reverse=True)

    def key_of(name: str) -> str:
        path = next((path for path in paths if name.startswith(f"{path}.")), "")
        return path.replace(".", "/") + name[len(path) :]

    tensors = {key_of(name): value for name, value in read_weights(folder / WEIGHTS).items()}
    fill(made.adapters, tensors, folder / WEIGHTS)
    place = next(base.parameters(), None)
    return made.eval() if place is None else made.to(place.device).eval()

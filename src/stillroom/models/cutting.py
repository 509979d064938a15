"""Taking repeated blocks out of a network: which blocks repeat, and which of them stay."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from stillroom.errors import UserError, reason
from stillroom.models.probing import quietly

Shapes = dict[str, tuple[int, ...] | None]
"""What shape a block keeps, by its module path; None where it changes it, or was not called once."""


def count_left(count: int, depth: float) -> int:
    """How many of `count` blocks are left at `depth` in (0, 1]: the nearest number (half up), one at least."""
    return max(1, math.floor(depth * count + 0.5))


def evenly(count: int, left: int) -> list[int]:
    """The numbers of the `left` blocks of `count` that stay: the first, the last, and the rest evenly between.

    round(i (count - 1) / (left - 1)), halves up, for i = 0 .. left - 1; of 12 blocks six are 0, 2, 4, 7, 9 and 11. One
    block alone is the first.
    """
    if left <= 1:
        return [0]
    return [math.floor(i * (count - 1) / (left - 1) + 0.5) for i in range(left)]


def blocks_to_keep(network: nn.Module, depth: float, example: Tensor | None = None) -> dict[str, list[int]]:
    """Of each list of blocks in `network`, by module path, the numbers of the blocks that stay.

    A list is a ModuleList or Sequential. Its stages are runs of children of one class; a child that changes the shape
    of what it is given begins a new one. Of a stage of n blocks `count_left` stay, evenly spread (`evenly`), among
    them the one that changes the shape. Whether it is changed is seen in a forward pass of `example` [1, ...];
    without one, children count as of one stage where their weights have the same names and shapes. Lists inside the
    blocks of a stage are left alone, and lists that lose nothing are left out.
    """
    kept: dict[str, list[int]] = {}
    lists = dict(_lists(network))
    shapes = None if example is None else _shapes(network, lists, example)
    inside: list[str] = []
    for path, blocks in lists.items():
        if any(path.startswith(f"{above}.") for above in inside):
            continue
        stages = _stages(path, blocks, shapes)
        if any(len(stage) > 1 for stage in stages):
            inside.append(path)
        left = [stage[i] for stage in stages for i in evenly(len(stage), count_left(len(stage), depth))]
        if len(left) < len(blocks):
            kept[path] = left
    return kept


def cut(network: nn.Module, kept: Mapping[str, Sequence[int]]) -> nn.Module:
    """`network`, changed in place: of the list at each path the blocks `kept[path]` are left, numbered anew.

    Names that are no numbers stay. Attention layers that know their number in a cache (`layer_idx`) are renumbered.
    """
    for path, ids in kept.items():
        held: Any = network.get_submodule(path)
        names = list(held._modules)
        numbered = all(name.isdecimal() for name in names)
        left = [
            (str(new) if numbered else names[old], held._modules[names[old]]) for new, old in enumerate(ids)
        ]
        held._modules.clear()
        held._modules.update(left)
        for new, (_, block) in enumerate(left):
            for part in block.modules():
                if isinstance(getattr(part, "layer_idx", None), int):
                    part.layer_idx = new
    return network


def _lists(network: nn.Module) -> Iterator[tuple[str, list[nn.Module]]]:
    for path, part in network.named_modules():
        if path and isinstance(part, nn.ModuleList | nn.Sequential) and len(part) > 1:
            yield path, list(part)


def _stages(path: str, blocks: Sequence[nn.Module], shapes: Shapes | None) -> list[list[int]]:
    stages: list[list[int]] = []
    for i, block in enumerate(blocks):
        before = blocks[i - 1]
        goes_on = i > 0 and type(block) is type(before) and any(True for _ in block.parameters())
        if shapes is None:
            goes_on = goes_on and _state(block) == _state(before)
        else:
            goes_on = goes_on and shapes.get(f"{path}.{i}") is not None
        if goes_on:
            stages[-1].append(i)
        else:
            stages.append([i])
    return stages


def _state(block: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, tuple(value.shape)) for name, value in block.state_dict().items()]


def _shapes(network: nn.Module, lists: Mapping[str, list[nn.Module]], example: Tensor) -> Shapes:
    """The shapes that blocks keep, by path and number, in a forward pass of `example`."""
    found: Shapes = {}
    calls: dict[str, int] = {}

    def note(name: str) -> Any:
        def look(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            calls[name] = calls.get(name, 0) + 1
            before, after = _first((*args, *kwargs.values())), _first(output)
            same = (
                before is not None and after is not None and before.shape == after.shape and calls[name] == 1
            )
            found[name] = tuple(after.shape) if same and after is not None else None

        return look

    hooks = [
        block.register_forward_hook(note(f"{path}.{i}"), with_kwargs=True)
        for path, blocks in lists.items()
        for i, block in enumerate(blocks)
    ]
    try:
        with quietly(network):
            network(_placed(network, example))
    except Exception as error:
        raise UserError(
            f"{type(network).__name__} fails on an input of shape {tuple(example.shape)} ({reason(error)}): pass a "
            "teacher that takes the data"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _first(values: Any) -> Tensor | None:
    if isinstance(values, Tensor):
        return values
    if isinstance(values, dict):
        values = tuple(values.values())
    if isinstance(values, (tuple, list)):
        return next((found for found in map(_first, values) if found is not None), None)
    return None


def _placed(network: nn.Module, x: Tensor) -> Tensor:
    """`x` where the network is, floats in the type that it computes in."""
    held = next((value for value in network.parameters() if value.is_floating_point()), None)
    return x if held is None else x.to(held.device, held.dtype if x.is_floating_point() else x.dtype)

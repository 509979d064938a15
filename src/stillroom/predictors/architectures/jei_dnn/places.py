"""Where a network can be left: exits by module path, in the order in which a forward pass comes to them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from stillroom.errors import UserError
from stillroom.models.places import of_torchvision_resnets, stages
from stillroom.models.probing import left_in_order
from stillroom.models.resnet import ResNet
from stillroom.models.wrapping import Around
from stillroom.taps import module_at, paths

FLAG = "--method.exits"


def exit_paths(network: nn.Module, wanted: Sequence[str], example: Tensor) -> list[str]:
    """The paths of the exits, in the order of a forward pass of `example` [1, ...].

    `wanted` are module paths, with wildcards as in `stillroom.taps`; none: every block but the last, whose exit is the
    network's own output. Raises UserError for a path that is no module of the network, a module that a forward pass
    does not meet exactly once, a network whose blocks are not known, and where no exit is left.
    """
    chosen = paths(network, wanted, FLAG)
    exits = chosen or default_paths(network)
    parts = {path: module_at(network, path, FLAG) for path in exits}
    met = [path for path, _ in left_in_order(parts, network, example)]
    for path in exits:
        if met.count(path) != 1:
            raise UserError(
                f"{FLAG} '{path}' takes part {met.count(path)} times in a forward pass: name a module that does once"
            )
    if not chosen:
        met = met[:-1]
    if not met:
        raise UserError(
            f"{type(network).__name__} has one exit, its own output: pass {FLAG} with modules before it, or a deeper "
            "--task.teacher"
        )
    return met


def default_paths(network: nn.Module) -> list[str]:
    """The blocks of networks that Stillroom, timm or torchvision know, or what a module's own `exits` names."""
    own = getattr(network, "exits", None)
    if isinstance(own, (list, tuple)) and own and all(isinstance(path, str) for path in own):
        return paths(network, own, FLAG)
    if isinstance(network, Around):
        return [f"network.{path}" for path in default_paths(network.network)]
    found = stages(network)
    if isinstance(network, ResNet) or of_torchvision_resnets(network):
        return paths(network, [f"{stage}.*" for stage in found], FLAG)
    if found:
        return found
    names = ", ".join([path for path, _ in network.named_children()][:8]) or "none"
    raise UserError(
        f"the blocks of {type(network).__name__} are not known: pass {FLAG} with module paths (children: {names})"
    )

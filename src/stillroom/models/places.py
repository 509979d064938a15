"""Where the stages of a network are, and its middle feature."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from stillroom.errors import UserError
from stillroom.models.cnn import CNN
from stillroom.models.mlp import MLP
from stillroom.models.resnet import ResNet
from stillroom.models.wrapping import Around, is_transformers


def middle(module: nn.Module) -> str:
    """Module path of the last-but-one stage, whose output serves as the middle feature.

    For the networks of this package the last-but-one stage or activation; for timm's staged networks the
    last-but-one entry of `feature_info`; for timm's columns of equal blocks (ViT and its kin) the block after
    which half of them have run; for torchvision's ResNets `layer3`; for transformers' networks likewise, of the
    first list of blocks in them. A module of the user's own can say it
    itself with a string attribute `middle`.

    Raises UserError, with paths to choose from, where the place is not known.
    """
    for path in _claims(module):
        if path and path in dict(module.named_modules()):
            return path
    name, paths = type(module).__name__, ", ".join(_candidates(module)) or "none"
    raise UserError(f"the middle of {name} is not known: pass --method.middle PATH (candidates: {paths})")


def stages(network: nn.Module) -> list[str]:
    """Module paths of the stages of networks that Stillroom, timm or torchvision know; empty for others."""
    if isinstance(network, Around):
        return [f"network.{path}" for path in stages(network.network)]
    if isinstance(network, CNN | MLP):
        return [path for path, part in network.named_children() if isinstance(part, nn.ReLU)]
    if isinstance(network, ResNet):
        return list(network.stages)
    if of_torchvision_resnets(network):
        return [f"layer{number}" for number in (1, 2, 3, 4)]
    entries = getattr(network, "feature_info", None)
    if isinstance(entries, list) and entries and all("module" in entry for entry in entries):
        return [entry["module"] for entry in entries]
    return []


def of_torchvision_resnets(network: nn.Module) -> bool:
    """Whether it is one of torchvision's ResNets, or made like them."""
    return any(base.__module__ == "torchvision.models.resnet" for base in type(network).__mro__)


def _claims(module: nn.Module) -> Iterator[str]:
    own = getattr(module, "middle", None)
    if isinstance(own, str):
        yield own
    entries = getattr(module, "feature_info", None)
    if isinstance(entries, list) and entries and all("module" in entry for entry in entries):
        yield _of_feature_info(entries)
    if of_torchvision_resnets(module):
        yield "layer3"
    if is_transformers(module):
        yield from _of_lists(module)


def _of_feature_info(entries: list[dict]) -> str:
    column = len(entries) > 2 and len({entry.get("reduction") for entry in entries}) == 1
    index = (len(entries) - 1) // 2 if column else max(len(entries) - 2, 0)
    return entries[index]["module"]


def _of_lists(module: nn.Module) -> Iterator[str]:
    """The middle of the first list of equal children: the last stage but one, or the block that half have run at."""
    for path, part in module.named_modules():
        if isinstance(part, nn.ModuleList) and len(part) > 1 and len({type(child) for child in part}) == 1:
            lists = (inner for inner in part[0].modules() if isinstance(inner, nn.ModuleList | nn.Sequential))
            staged = any(len({type(child) for child in inner}) == 1 for inner in lists)
            yield f"{path}.{len(part) - 2 if staged else (len(part) - 1) // 2}"
            return


def _candidates(module: nn.Module, limit: int = 8) -> list[str]:
    """Up to `limit` module paths: whole levels from the top, then an even choice of the next."""
    names = [name for name, _ in module.named_modules() if name]
    chosen: list[str] = []
    for depth in range(max((name.count(".") for name in names), default=-1) + 1):
        level = [name for name in names if name.count(".") == depth]
        room = limit - len(chosen)
        if len(level) > room:
            return chosen + [level[index * len(level) // room] for index in range(room)]
        chosen += level
    return chosen

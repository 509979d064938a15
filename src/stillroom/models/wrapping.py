"""What stands around a library's network so that it takes this house's inputs and gives logits.

A network that `build` made, or a wrapper here, says what makes it again: `describe`. The description is a name, or a
JSON object for what no name says: a library's model with its options, a wrapper around another description, or a
description with blocks taken out.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.errors import UserError

Description = str | dict[str, Any]
"""What `build` makes a network of: an architecture's name, or an object that says its library."""


class Around(nn.Module):
    """Base of the wrappers; the wrapped network is `network`, and so the first name of all its module paths."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network: Any = network  # libraries say little of their networks' parts

    @property
    def middle(self) -> str:
        """Module path of the middle feature of the network within."""
        from stillroom.models.places import middle

        return f"network.{middle(self.network)}"

    @property
    def num_prefix_tokens(self) -> int:
        """How many tokens stand before those of the image: the network's own word, or 1 for a class token."""
        own = getattr(self.network, "num_prefix_tokens", None)
        if own is not None:
            return int(own)
        names = [name.rpartition(".")[2] for name, _ in self.network.named_parameters()]
        return int("cls_token" in names or "class_token" in names)


class Rescaled(Around):
    """A network behind `x * scale + shift`, a fixed number a channel: it sees the inputs that it was trained on.

    Takes [n, C, H, W]; gives what the network gives. The numbers belong to the state, and are not trained.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, scale: Sequence[float], shift: Sequence[float]) -> None:
        super().__init__(network)
        for name, values in (("scale", scale), ("shift", shift)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(-1, 1, 1))

    @property
    def description(self) -> Description | None:
        """What makes it again; None where that is not known of the network within."""
        within = describe(self.network)
        if within is None:
            return None
        numbers = {"scale": self.scale.flatten().tolist(), "shift": self.shift.flatten().tolist()}
        return {"library": "stillroom", "kind": "rescaled", **numbers, "network": within}

    def forward(self, x: Tensor) -> Any:
        """See the class."""
        return self.network(x * self.scale + self.shift)


class ImageLogits(Around):
    """One of transformers' image classifiers as a plain one: images [n, C, H, W] to logits [n, classes]."""

    @property
    def description(self) -> Description:
        """The library's class and config."""
        return {"library": "transformers", **described_config(self.network)}

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return self.network(pixel_values=x, return_dict=True).logits


def described_config(network: Any) -> dict[str, Any]:
    """Class and config of one of transformers' networks, as JSON."""
    config = network.config.to_dict()
    # where it came from is no part of what it is
    config.pop("_name_or_path", None)
    return {"kind": type(network).__name__, "config": config}


def is_transformers(module: nn.Module) -> bool:
    """Whether `module` is one of transformers' networks; the library is not imported to find out."""
    return any(
        base.__name__ == "PreTrainedModel" and base.__module__.startswith("transformers.")
        for base in type(module).__mro__
    )


def adapted(module: nn.Module) -> nn.Module:
    """`module`, behind a wrapper where it is one of transformers' image classifiers; others as they are."""
    images = getattr(module, "main_input_name", None) == "pixel_values"
    return ImageLogits(module) if is_transformers(module) and images else module


def told(module: nn.Module, description: Description) -> nn.Module:
    """`module`, which remembers what makes it again."""
    module.__dict__["_description"] = description
    return module


def describe(module: nn.Module) -> Description | None:
    """What makes the architecture of `module` again, by `build`; None for a network of the user's own."""
    if isinstance(module, Rescaled | ImageLogits):
        return module.description
    return module.__dict__.get("_description")


def library_module(module: nn.Module) -> nn.Module:
    """The library's own network inside the wrappers: what its own save and load functions take."""
    while isinstance(module, Around):
        module = module.network
    return module


def rewrapped(module: nn.Module, inner: nn.Module) -> nn.Module:
    """A copy of `module`, in which `inner` stands in place of `core_of(module)`."""
    core = core_of(module)
    return inner if core is module else copy.deepcopy(module, {id(core): inner})


def core_of(module: nn.Module) -> nn.Module:
    """The network of transformers somewhere in `module`, where there is one alone; else as `library_module`."""
    inner = library_module(module)
    found: dict[str, nn.Module] = {}
    for path, part in inner.named_modules():
        if is_transformers(part) and not any(f"{path}.".startswith(f"{above}.") for above in found):
            found[path] = part
            if not path:
                break
    return next(iter(found.values())) if len(found) == 1 else inner


def rescaled_for(
    module: nn.Module,
    own: tuple[Sequence[float], Sequence[float]],
    data: tuple[Sequence[float], Sequence[float]],
) -> nn.Module:
    """`module`, which takes (pixel - mean) / std with its `own` mean and std, for data scaled by theirs.

    Pixels are in [0, 1], and the pairs are (mean, std), a number a channel or one for all. A module that takes the
    data as they are is returned itself. With x = (p - m) / s, (p - m') / s' = x (s / s') + (m - m') / s'. Raises
    UserError for another number of channels, and for a deviation of zero.
    """
    (own_mean, own_std), (mean, std) = own, data
    channels = len(mean)
    if len(own_mean) not in (1, channels) or len(own_std) not in (1, channels):
        raise UserError(
            f"the network takes {max(len(own_mean), len(own_std))} channels, the data have {channels}: pass a "
            f"network of {channels}"
        )
    if min(own_std, default=0.0) <= 0:
        raise UserError(f"the network's own std is {list(own_std)}: pass positive numbers in its config")
    own_mean = [float(own_mean[c % len(own_mean)]) for c in range(channels)]
    own_std = [float(own_std[c % len(own_std)]) for c in range(channels)]
    scale = [s / o for s, o in zip(std, own_std, strict=True)]
    shift = [(m - o) / s for m, o, s in zip(mean, own_mean, own_std, strict=True)]
    same = max(abs(a - 1) for a in scale) < 1e-7 and max(abs(b) for b in shift) < 1e-7
    return module if same else Rescaled(module, scale, shift)


def within(description: Mapping[str, Any]) -> Description:
    """The description that another one stands around; UserError where it says none."""
    inner = description.get("network")
    if not isinstance(inner, (str, dict)):
        raise UserError(
            f"an architecture of kind {description.get('kind')!r} says no network: export it again"
        )
    return inner

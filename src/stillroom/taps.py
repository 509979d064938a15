"""Features by module path: what a named module inside any network put out in its last forward pass.

Paths are those of `named_modules`, and may have wildcards: see `paths`.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from stillroom.errors import UserError


class Tap:
    """Reads the output of `path` inside `network`, leaving the network as it is.

    Of an output that is a tuple, a list or one of transformers' model outputs it is the first tensor. The hook sits
    on the module itself, so the tap also works on a copy's state and costs one assignment a pass.
    """

    def __init__(self, network: nn.Module, path: str, flag: str = "module path") -> None:
        self.path = path
        self._seen: Tensor | None = None
        self._class_token = bool(getattr(network, "num_prefix_tokens", 0)) or hasattr(network, "class_token")
        self._hook = module_at(network, path, flag).register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, args: object, output: object) -> None:
        seen = first_tensor(output)
        if seen is None:
            raise UserError(
                f"module '{self.path}' puts out a {type(output).__name__}, not a tensor: name another module"
            )
        self._seen = seen

    @property
    def full(self) -> bool:
        """Whether there is something to take."""
        return self._seen is not None

    def forget(self) -> None:
        """Drop what was seen."""
        self._seen = None

    def take(self) -> Tensor:
        """The output of the last forward pass, with its graph; forgotten once taken."""
        if self._seen is None:
            raise UserError(f"module '{self.path}' took no part in the forward pass: name one that does")
        seen, self._seen = self._seen, None
        return seen

    def take_vector(self) -> Tensor:
        """As `take`, pooled to one vector [n, channels] a sample."""
        return pool(self.take(), self._class_token)

    def remove(self) -> None:
        """Leave the network without a hook."""
        self._hook.remove()


def first_tensor(output: Any) -> Tensor | None:
    """A tensor itself; of a tuple, a list or one of transformers' model outputs the first tensor; None of others.

    A plain dictionary has no first entry that is meant, so that it gives None.
    """
    if isinstance(output, Tensor):
        return output
    if hasattr(output, "to_tuple"):  # transformers' and diffusers' outputs
        output = output.to_tuple()
    if isinstance(output, (tuple, list)):
        return next((seen for seen in map(first_tensor, output) if seen is not None), None)
    return None


def paths(network: nn.Module, pattern: str | Sequence[str], flag: str = "module path") -> list[str]:
    """The module paths that match `pattern`, in the network's order; several patterns one after the other.

    In a pattern `*` stands for any characters of one name between dots, `?` for one of them, `[abc]` for one of
    these, and `**` between dots for any number of names: `blocks.*.attn`, `layer?.1`, `**.mlp`. No path comes twice.
    UserError that names `flag` and the nearest paths where a pattern matches none.
    """
    found: dict[str, None] = {}
    for one in [pattern] if isinstance(pattern, str) else pattern:
        names = one.split(".")
        fitting = [path for path, _ in network.named_modules() if path and _fits(path.split("."), names)]
        if not fitting:
            module_at(network, one, flag)
        found |= dict.fromkeys(fitting)
    return list(found)


def _fits(path: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern:
        return not path
    if pattern[0] == "**":
        return any(_fits(path[skipped:], pattern[1:]) for skipped in range(len(path) + 1))
    return bool(path) and fnmatchcase(path[0], pattern[0]) and _fits(path[1:], pattern[1:])


def module_at(network: nn.Module, path: str, flag: str = "module path") -> nn.Module:
    """The module at `path`; UserError that names `flag` and the nearest paths where there is none."""
    modules = dict(network.named_modules())
    if path and path in modules:
        return modules[path]
    near = difflib.get_close_matches(path, [name for name in modules if name], n=5, cutoff=0.0)
    raise UserError(
        f"{flag} '{path}' is no module of {type(network).__name__}: pass one of its own, the nearest are "
        f"{', '.join(near) or 'none'}"
    )


def pool(feature: Tensor, class_token: bool = False) -> Tensor:
    """One vector [n, channels] a sample.

    The mean over a map [n, c, h, w], or [n, h, w, c] where only the first two of its three axes are equal; of
    tokens [n, tokens, c] the first where there is a `class_token`, else the mean; anything else flattened.
    """
    if feature.ndim == 4:
        height, width, last = feature.shape[1:]
        return feature.mean((1, 2)) if height == width != last else feature.mean((2, 3))
    if feature.ndim == 3:
        return feature[:, 0] if class_token else feature.mean(1)
    return feature.flatten(1)

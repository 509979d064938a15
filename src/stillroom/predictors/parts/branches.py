"""Several branches on one stem: any network, cut after a module, with what comes after it copied.

The first branch is a whole network; in the others the modules of the stem are replaced by the outputs that they had
in the first, so that a forward pass computes the stem once and nothing of the network has to be rewritten. Gradients
of all branches reach the stem.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from stillroom.errors import UserError
from stillroom.models.names import build
from stillroom.models.places import stages
from stillroom.models.probing import left_in_order, quietly
from stillroom.models.wrapping import describe, told, within
from stillroom.predictors.parts.classifier import last_layer
from stillroom.predictors.parts.narrowing import Maker, maker
from stillroom.seeds import seeded
from stillroom.taps import module_at

FLAG = "--method.cut"


class Cosine(nn.Linear):
    """A linear layer that sees directions alone: s <f / ||f||, w_c / ||w_c||>, in [-s, s].

    Features [n, in_features] to logits [n, out_features]; there is no bias. `scale` s > 0.
    """

    def __init__(self, in_features: int, out_features: int, scale: float = 30.0) -> None:
        self.scale = scale
        super().__init__(in_features, out_features, bias=False)

    def reset_parameters(self) -> None:
        """Draw directions: uniform numbers in [-1, 1), each class's to the norm 1."""
        with torch.no_grad():
            self.weight.uniform_(-1, 1)
            self.weight.div_(self.weight.norm(dim=1, keepdim=True))

    def forward(self, input: Tensor) -> Tensor:
        """See the class; in float32 at least, because half precision tells logits near s apart by s / 256."""
        with torch.autocast(input.device.type, enabled=False):
            features = input.to(torch.promote_types(input.dtype, torch.float32))
            directions = F.normalize(self.weight.to(features.dtype), dim=-1)
            return self.scale * F.linear(F.normalize(features, dim=-1), directions)


class Recall(nn.Module):
    """Stands in a branch for a module of the stem, and puts out what that has put out, call for call."""

    def __init__(self, of: nn.Module) -> None:
        super().__init__()
        self.__dict__["_of"] = of  # for its attributes alone: it is a part of the first branch
        self.outputs: Iterator[Any] = iter(())

    def __getattr__(self, name: str) -> Any:
        """The replaced module's, where the network around it asks for a size of it."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_of"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Whatever it is given: the next of the stem's outputs."""
        return _own(next(self.outputs))


def _own(output: Any) -> Any:
    """A copy with the same gradient: a branch may change it in place."""
    return tree_map(lambda value: value.clone() if isinstance(value, Tensor) else value, output)


@dataclass(frozen=True)
class Cut:
    """How networks of one architecture become branches."""

    head: str
    """Module path of the layer that becomes a cosine classifier."""
    scale: float
    """Scale s of the cosine classifiers."""
    after: str = ""
    """Module path after which the branches part; empty where there is one."""
    stem: list[str] = field(default_factory=list)
    """Module paths that the branches share, each whole."""
    tied: list[str] = field(default_factory=list)
    """Names of parameters before the cut that belong to no module of the stem; shared as well."""


class Branched(nn.Module):
    """K networks that share their stem: x [n, ...] to the mean of their logits [n, C]."""

    def __init__(self, networks: Sequence[nn.Module], cut: Cut) -> None:
        super().__init__()
        self.network = describe(networks[0])
        """What makes one of the networks again, before its head is replaced; None for a network of the user's own."""
        self.cut = cut
        for one in networks:
            head = one.get_submodule(cut.head)
            assert isinstance(head, nn.Linear)
            one.set_submodule(cut.head, Cosine(head.in_features, head.out_features, cut.scale))
        first, *others = networks
        for other in others:
            for path in cut.stem:
                other.set_submodule(path, Recall(first.get_submodule(path)))
            for name in cut.tied:
                owner, _, key = name.rpartition(".")
                other.get_submodule(owner).register_parameter(key, first.get_parameter(name))
        self.branches = nn.ModuleList(networks)
        if self.network is not None:
            told(self, {"library": "stillroom", "kind": "branched", **self.description})

    @property
    def description(self) -> dict[str, Any]:
        """What `rebuilt` needs, as JSON."""
        return {"branches": len(self.branches), "network": self.network, **asdict(self.cut)}

    def forward(self, x: Tensor, apart: bool = False) -> Tensor:
        """The mean of the logits [n, C]; `apart`: those of every branch [n, K, C]."""
        first, *others = self.branches
        with self._heard() as heard:
            logits = [first(x)]
        recalls = [
            (path, cast(Recall, other.get_submodule(path))) for other in others for path in self.cut.stem
        ]
        try:
            for path, recall in recalls:
                recall.outputs = iter(heard[path])
            logits += [other(x) for other in others]
        finally:
            for _, recall in recalls:
                recall.outputs = iter(())
        answers = torch.stack(logits, 1)
        return answers if apart else answers.mean(1)

    @contextmanager
    def _heard(self) -> Iterator[dict[str, list[Any]]]:
        """Inside, the outputs of the first branch's stem are kept, by path, in the order of the calls."""
        heard: dict[str, list[Any]] = {path: [] for path in self.cut.stem}

        def keep(path: str) -> Any:
            def hook(module: nn.Module, args: Any, output: Any) -> Any:
                heard[path].append(output)
                return _own(output)

            return hook

        first = self.branches[0]
        stem = self.cut.stem if len(self.branches) > 1 else []
        handles = [first.get_submodule(path).register_forward_hook(keep(path)) for path in stem]
        try:
            yield heard
        finally:
            for handle in handles:
                handle.remove()


# -- making it ----------------------------------------------------------------------------------------------------


def branch(
    network: nn.Module,
    seeds: Sequence[int],
    example: Tensor,
    after: str = "",
    width: float = 1.0,
    scale: float = 30.0,
    keep_weights: bool = False,
) -> Branched:
    """A branch for each of `seeds` on the stem of `network`, which keeps its weights; the network itself is left alone.

    The stem is all up to the module at `after` (empty: all but the last two stages, of networks whose stages are
    known). The rest is copied with `width` in (0, 1] of its channels, where that can be (see `narrowing.maker`), with
    fresh weights or, with `keep_weights`, with the network's own as far as they fit; the last linear layer becomes a
    `Cosine`. With one seed nothing is cut or narrowed. `example` [1, ...] is an input. Raises UserError for a path
    that a forward pass does not meet once, and where only the classifier comes after it.
    """
    cut = Cut(last_layer(network, example), scale)
    if len(seeds) == 1:
        with seeded(seeds[0]):
            return Branched([copy.deepcopy(network)], cut)
    after = after or last_shared(network)
    cut = Cut(cut.head, scale, after, stem_of(network, after, example))
    make = maker(network, cut.stem, width, example, keep_weights)
    trial = Branched([make(seed) for seed in seeds[:2]], cut)
    tied = _unreached(trial, example)
    own = [name for name, _ in trial.branches[1].named_parameters() if name not in tied]
    if all(name.rpartition(".")[0] == cut.head for name in own):
        raise UserError(
            f"{FLAG} '{after}' leaves nothing to branch but the classifier: name a module before it, with layers "
            "between"
        )
    return _filled(network, make, seeds, Cut(cut.head, scale, after, cut.stem, tied))


def _filled(network: nn.Module, make: Maker, seeds: Sequence[int], cut: Cut) -> Branched:
    """The branches, with the stem's weights from `network`."""
    networks = [make(seed) for seed in seeds]
    for path in cut.stem:
        networks[0].get_submodule(path).load_state_dict(network.get_submodule(path).state_dict())
    with torch.no_grad():
        for name in cut.tied:
            own, theirs = networks[0].get_parameter(name), network.get_parameter(name)
            if own.shape == theirs.shape:
                own.copy_(theirs)
    with seeded(seeds[0]):
        return Branched(networks, cut)


def rebuilt(description: Mapping[str, Any], make: Maker) -> Branched:
    """The architecture that `description` tells, of networks from `make`, with weights of no meaning."""
    keys = ("head", "scale", "after", "stem", "tied")
    try:
        cut = Cut(**{key: description[key] for key in keys})
        return Branched([make(seed) for seed in range(description["branches"])], cut)
    except (KeyError, TypeError, AttributeError, AssertionError) as error:
        raise UserError(
            f"the branches are not described in full ({error!r}): export the network again"
        ) from None


def of_description(description: Mapping[str, Any], shape: Sequence[int], classes: int) -> Branched:
    """The branches that `description` tells, of networks that are described themselves."""
    inner = within(description)
    return rebuilt(description, lambda seed: build(inner, shape=shape, classes=classes, seed=seed))


# -- where it is cut ----------------------------------------------------------------------------------------------


def last_shared(network: nn.Module) -> str:
    """The stage after which two more come, or the first of two stages, as in Zhao et al. (2023); UserError else."""
    found = stages(network)
    if len(found) < 2:
        names = ", ".join([path for path, _ in network.named_children()][:8]) or "none"
        raise UserError(
            f"where to cut {type(network).__name__} is not known: pass {FLAG} with the last module that the experts "
            f"share (children: {names})"
        )
    return found[max(0, len(found) - 3)]


def stem_of(network: nn.Module, after: str, example: Tensor) -> list[str]:
    """The modules that are done when the one at `after` is, in a forward pass of `example`; none inside another.

    Raises UserError for a path that is no module, and for a module that is not called exactly once.
    """
    module_at(network, after, FLAG)
    parts = {path: part for path, part in network.named_modules() if path}
    ends = [path for path, _ in left_in_order(parts, network, example)]
    if ends.count(after) != 1:
        raise UserError(
            f"{FLAG} '{after}' takes part {ends.count(after)} times in a forward pass: name a module that does once"
        )
    at = ends.index(after)
    done = set(ends[: at + 1]) - set(ends[at + 1 :])
    return [path for path in parts if path in done and not any(path.startswith(f"{up}.") for up in done)]


def _unreached(made: Branched, example: Tensor) -> list[str]:
    """Parameters of the second branch that its logits do not depend on: they stand before the cut."""
    named = dict(made.branches[1].named_parameters())
    with quietly(made), torch.enable_grad():
        logits = made(example, apart=True)[:, 1]
        found = torch.autograd.grad(logits.sum(), list(named.values()), allow_unused=True)
    return [name for name, gradient in zip(named, found, strict=True) if gradient is None]

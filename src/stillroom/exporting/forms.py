"""What `stillroom export` writes, and what it has to know of a product to do so. A Task answers with a Portable."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from stillroom.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from stillroom.exporting.card import Card

Form = Literal["onnx", "torch-export", "diffusers", "transformers", "timm", "hub-folder"]
FORMS: tuple[str, ...] = get_args(Form)


@dataclass(frozen=True)
class Graph:
    """A network as it is exported: what it takes, by name, and what it says."""

    network: nn.Module
    """In evaluation mode, on the CPU; called with the inputs in their order."""
    draw: Callable[[int], Mapping[str, Tensor]]
    """That many samples [n, ...] of every input, by name; a number of samples gives the same ones every time."""
    source: str
    """What the samples are, e.g. `test samples of data 'digits'`."""
    output: str
    """Name of what it returns."""
    axes: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    """Axes that may have any length, beside the first, which always may: by input, the axis's name."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """What a reader of the graph must know (classes, normalisation, process), as plain values."""
    note: str = ""
    """Sentences about its use for the card."""


@dataclass(frozen=True)
class Portable:
    """What a product can become."""

    graph: Graph | None = None
    """The product's network, for `onnx` and `torch-export`."""
    library: Literal["diffusers", "transformers", "timm"] | None = None
    """The library that the product's network, or pipeline, is one of."""
    kind: Literal["model", "dataset"] = "model"
    """What repository of a hub it goes to."""
    beside: Callable[[], Mapping[str, nn.Module]] = dict
    """Networks of the run's other arms, by role (teacher, baseline), that take the same inputs: to be timed."""
    card: Card | None = None
    """What its card says."""
    labels: Sequence[str] = ()
    """Names of the classes, or prompts that stand for them."""

    @property
    def forms(self) -> tuple[str, ...]:
        """What it can be written as."""
        graphs = ("onnx", "torch-export") if self.graph is not None else ()
        own = (self.library,) if self.library is not None else ()
        return (*graphs, *own, "hub-folder")


def check_name(form: str) -> None:
    """Raise UserError, with the nearest, for a form that there is not."""
    if form not in FORMS:
        near = difflib.get_close_matches(form.lower(), FORMS, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise UserError(f"there is no form '{form}': {hint}pass --to {_either(FORMS)}")


def check_fits(form: str, portable: Portable, what: str) -> None:
    """Raise UserError for a form that `what`, this product, has not."""
    if form not in portable.forms:
        raise UserError(f"{what} cannot become '{form}': pass --to {_either(portable.forms)}")


def _either(names: tuple[str, ...]) -> str:
    return " or ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]

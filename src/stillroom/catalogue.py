"""The catalogue: seventy-six systems, found by name without importing torch or any of them.

A system works when its module is there; nothing else says so. A system's module is
`stillroom.<family>.<slug>`, and its methods are the Method classes that the module defines.
"""

from __future__ import annotations

import difflib
import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stillroom._cards import CARDS, Card
from stillroom.errors import UserError

if TYPE_CHECKING:
    from stillroom.method import Method

BASELINES = (
    Card(
        slug="baselines",
        title="Baselines",
        paper="Distilling the Knowledge in a Neural Network; Decoupled Knowledge Distillation",
        source="Hinton et al., 2015, arXiv:1503.02531; Zhao et al., CVPR 2022, arXiv:2203.08679",
        family="predictors",
        gist="Training without a teacher, and the two distillation losses that every other system is held against.",
        methods=("plain", "kd", "dkd"),
    ),
    Card(
        slug="undistilled",
        title="Undistilled generators",
        paper="Elucidating the Design Space of Diffusion-Based Generative Models; Flow Matching",
        source="Karras et al., NeurIPS 2022, arXiv:2206.00364; Lipman et al., ICLR 2023, arXiv:2210.02747",
        family="generators",
        gist="A diffusion or flow model trained on data, and a teacher asked to sample in too few steps.",
        methods=("diffusion", "few-steps"),
    ),
    Card(
        slug="language-models",
        title="Language models",
        paper="On-Policy Distillation of Language Models; Sequence-Level Knowledge Distillation",
        source="Agarwal et al., ICLR 2024, arXiv:2306.13649; Kim and Rush, EMNLP 2016, arXiv:1606.07947",
        family="predictors",
        gist="A small language model taught by a larger one: token by token, on its own texts, or by the teacher's.",
        methods=("next-token", "gkd", "seq-kd"),
    ),
)
"""Not of the seventy-six: what they are compared with, a card a family."""


PROBLEMS = {
    "image-classification": "stillroom.predictors.classification:Classification",
    "text-classification": "stillroom.predictors.text_classification:TextClassification",
}
"""Problems that stand in for each other, by name: a method whose own problem is one of them runs on all."""
TOKEN_PROBLEMS = {"language-modelling": "stillroom.predictors.language_modelling:LanguageModelling"}
"""Those with a label for every token: for the methods among them that say so."""


@dataclass(frozen=True)
class Entry:
    """A method of the catalogue: the name to run it by, and the card of its system."""

    name: str
    card: Card

    def load(self) -> type[Method]:
        """Import the system's module, and only that, and return the method's class."""
        for method in methods_of(self.card):
            if method.name == self.name:
                return method
        raise LookupError(f"module '{module_of(self.card)}' defines no method '{self.name}'")


def cards() -> tuple[Card, ...]:
    """All cards, the baselines first."""
    return (*BASELINES, *CARDS)


def module_of(card: Card) -> str:
    """The dotted name of the module in which a system lives or will live."""
    return ".".join(["stillroom", *card.family.split("/"), card.slug.replace("-", "_")])


def works(card: Card) -> bool:
    """Whether the system's module is there."""
    place = Path(__file__).parent.joinpath(*module_of(card).split(".")[1:])
    return place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()


def names(card: Card) -> tuple[str, ...]:
    """The names by which a system's methods are run."""
    return card.methods or (card.slug,)


def methods_of(card: Card) -> list[type[Method]]:
    """The Method classes that a working system's module defines, in their order there; not those of its stages."""
    from stillroom.method import Method

    module = importlib.import_module(module_of(card))
    return [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, Method)
        and f"{value.__module__}.".startswith(f"{module.__name__}.")
        and "name" in vars(value)
        and value.listed
    ]


def entries() -> list[Entry]:
    """Every method that works."""
    return [Entry(name, card) for card in cards() if works(card) for name in names(card)]


def find_card(name: str) -> Card:
    """The card with this slug, or the one that holds a method of this name; UserError with the nearest."""
    for card in cards():
        if name == card.slug or name in names(card):
            return card
    known = sorted({known for card in cards() for known in (card.slug, *names(card))})
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    hint = f"did you mean '{near[0]}'? " if near else ""
    raise UserError(f"there is no system or method '{name}': {hint}`stillroom list` shows all")


def find(name: str) -> Entry:
    """The working method of this name; UserError where it is unknown, planned, or one name of several."""
    card = find_card(name)
    if not works(card):
        raise UserError(f"system '{card.slug}' is planned, not built yet: `stillroom list` shows what works")
    if name in names(card):
        return Entry(name, card)
    raise UserError(f"system '{name}' has several methods: run one of {', '.join(names(card))}")

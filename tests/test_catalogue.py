"""Seventy-six systems, found by name."""

from __future__ import annotations

import re
import types
from dataclasses import replace

import pytest

from stillroom import catalogue
from stillroom._cards import CARDS, Card
from stillroom.catalogue import BASELINES, Entry
from stillroom.errors import UserError
from stillroom.method import Method
from stillroom.predictors.baselines import DKD, KD, Plain
from toys import Fit

PLANNED = Card(
    "no-such-system", "None", "A paper", "Nobody, 2026", "predictors/labels", "Nothing in, nothing out."
)
SEVERAL = replace(BASELINES[0], slug="several", methods=("one", "two"))

every = pytest.mark.parametrize("card", catalogue.cards(), ids=lambda card: card.slug)


# -- the cards --------------------------------------------------------------------------------------------------


def test_there_are_seventy_six_and_the_baselines() -> None:
    assert len(CARDS) == 76
    assert catalogue.cards() == (*BASELINES, *CARDS)


def test_no_name_means_two_things() -> None:
    """A name is a slug or a method of one system alone."""
    owners: dict[str, set[str]] = {}
    for card in catalogue.cards():
        for name in (card.slug, *catalogue.names(card)):
            owners.setdefault(name, set()).add(card.slug)
    assert {name: slugs for name, slugs in owners.items() if len(slugs) > 1} == {}
    assert len({card.slug for card in catalogue.cards()}) == 76 + len(BASELINES)


@every
def test_a_card_is_complete(card: Card) -> None:
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", card.slug)
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name) for name in catalogue.names(card))
    assert card.title
    assert card.paper
    assert re.search(r"\d{4}", card.source)
    assert 20 <= len(card.gist) <= 110
    assert card.gist.endswith(".")
    assert "\n" not in "".join([card.title, card.paper, card.source, card.gist])


@every
def test_a_module_is_named_by_family_and_slug(card: Card) -> None:
    module = catalogue.module_of(card)
    assert module.startswith(f"stillroom.{card.family.split('/')[0]}.")
    assert all(part.isidentifier() for part in module.split("."))


# -- what works -------------------------------------------------------------------------------------------------


def test_a_system_works_when_its_module_is_there() -> None:
    assert catalogue.works(BASELINES[0])
    assert catalogue.module_of(PLANNED) == "stillroom.predictors.labels.no_such_system"
    assert not catalogue.works(PLANNED)
    assert catalogue.works(replace(PLANNED, slug="nkd-uskd"))


def test_a_package_is_a_module_too() -> None:
    assert catalogue.works(replace(PLANNED, slug="labels", family="predictors"))
    assert not catalogue.works(replace(PLANNED, slug="reports", family="predictors"))


def test_entries_are_the_methods_that_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        catalogue, "CARDS", (PLANNED, replace(PLANNED, slug="nkd-uskd", methods=("nkd", "uskd")))
    )
    assert [entry.name for entry in catalogue.entries()] == [
        *("plain", "kd", "dkd", "diffusion", "few-steps", "next-token", "gkd", "seq-kd"),
        *("nkd", "uskd"),
    ]


def test_methods_are_those_that_the_module_defines_in_its_order() -> None:
    """Not what it imports, and not what only its own methods build on."""
    assert catalogue.methods_of(BASELINES[0]) == [Plain, KD, DKD]


def test_a_base_class_and_an_import_are_no_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("made.up")

    class Base(Method):
        pass

    class Own(Base):
        name = "own"

    class Part(Own):
        name = "part"

    class Neighbour(Own):
        name = "neighbour"

    Base.__module__ = Own.__module__ = module.__name__
    Part.__module__, Neighbour.__module__ = "made.up.part", "made.upper"
    vars(module).update(Base=Base, Part=Part, Own=Own, Fit=Fit, Neighbour=Neighbour, number=3)
    monkeypatch.setattr(catalogue.importlib, "import_module", lambda name: module)
    assert catalogue.methods_of(PLANNED) == [Part, Own]  # a package's are its own wherever in it they stand


def test_an_entry_loads_its_class() -> None:
    assert Entry("kd", BASELINES[0]).load() is KD
    with pytest.raises(LookupError, match="'stillroom.predictors.baselines' defines no method 'kdd'"):
        Entry("kdd", BASELINES[0]).load()


# -- finding ----------------------------------------------------------------------------------------------------


@every
def test_every_name_finds_its_card(card: Card) -> None:
    for name in (card.slug, *catalogue.names(card)):
        assert catalogue.find_card(name) == card


def test_a_system_of_one_method_is_run_by_its_slug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "CARDS", (PLANNED, SEVERAL))
    monkeypatch.setattr(catalogue, "works", lambda card: True)
    assert catalogue.names(PLANNED) == ("no-such-system",)
    assert catalogue.find("no-such-system") == Entry("no-such-system", PLANNED)
    assert catalogue.find("two") == Entry("two", SEVERAL)
    with pytest.raises(UserError, match="^system 'several' has several methods: run one of one, two$"):
        catalogue.find("several")


def test_what_is_planned_is_found_and_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "CARDS", (PLANNED,))
    assert catalogue.find_card("no-such-system") == PLANNED
    with pytest.raises(UserError, match="^system 'no-such-system' is planned, not built yet: "):
        catalogue.find("no-such-system")


@pytest.mark.parametrize(
    ("name", "hint"), [("nkdd", "did you mean 'nkd'"), ("plane", "did you mean 'plain'"), ("qqqqqqqq", None)]
)
def test_an_unknown_name_has_the_nearest_beside_it(name: str, hint: str | None) -> None:
    with pytest.raises(UserError, match=f"^there is no system or method '{name}': ") as caught:
        catalogue.find(name)
    assert ("did you mean" in str(caught.value)) == bool(hint)
    assert (hint or "") in str(caught.value)

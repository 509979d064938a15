"""What `stillroom show` prints of a system: what it is for, its source, its methods' options, its evidence."""

from __future__ import annotations

from typing import Any

from stillroom import catalogue
from stillroom.console import comparison_tables
from stillroom.evidence import read_evidence
from stillroom.options import describe


def show_system(name: str, to: Any) -> None:
    """Print the system or method called `name` on the console `to`; UserError for an unknown name."""
    card = catalogue.find_card(name)
    to.print(
        f"[bold]{card.title}[/bold]  ({card.slug}, {card.family})\n{card.paper}\n{card.source}\n\n{card.gist}"
    )
    if not catalogue.works(card):
        to.print("\nplanned, not built yet")
        return
    for method in catalogue.methods_of(card):
        if name not in (card.slug, method.name):
            continue
        to.print(f"\n[bold]stillroom run {method.name}[/bold]\n{method.__doc__}\n")
        for option in describe(method(), "--method."):
            to.print(f"  {option.flag} {option.default}", markup=False)
            to.print(f"      {option.help}", markup=False)
    _show_evidence(card, to)


def _show_evidence(card: catalogue.Card, to: Any) -> None:
    evidence = read_evidence(card.slug)
    to.print("\n[bold]evidence[/bold]" if evidence else "\nno evidence yet: stillroom claims " + card.slug)
    for entry in evidence:
        to.print(f"{entry['name']}: [bold]{entry['verdict']}[/bold] over {len(entry['seeds'])} seeds")
        for table in comparison_tables(entry):
            to.print(table)

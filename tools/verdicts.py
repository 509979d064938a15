"""The claims of all systems, how they came out: a row a system for the README, a row a claim for docs/claims.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from markdown import prose, table, text
from stillroom._cards import Card
from stillroom.words import change, pair_words, span

PAGE = Path("docs/claims.md")
NOTE = "<!-- Made by tools/pages.py from evidence: do not edit. -->"
VERDICTS = ("holds", "inconclusive", "refuted")


class Measured(Protocol):
    """A system with the evidence that belongs to it."""

    card: Card

    @property
    def entries(self) -> dict[str, dict[str, Any]]:
        """What was measured, by the name of its claim."""
        ...

    @property
    def claim_names(self) -> list[str]:
        """All claims, made or measured."""
        ...


def summary(systems: Sequence[Measured]) -> list[str]:
    """A row a system: which of its claims came out how."""
    found = [(system, _sorted(system)) for system in systems if system.claim_names]
    rows = [
        [
            f"[{prose(system.card.title)}](docs/systems/{system.card.slug}.md)",
            *(", ".join(prose(_short(system, name)) for name in names) or "–" for names in parts),
        ]
        for system, parts in found
    ]
    counts = [str(sum(len(parts[i]) for _, parts in found)) for i in range(len(VERDICTS) + 1)]
    return table(["system", *VERDICTS, "not measured yet"], [*rows, ["all", *counts]])


def page(systems: Sequence[Measured]) -> str:
    """A row a claim, with the comparisons that its verdict rests on, however they came out; and what is not yet."""
    rows, waiting = [], []
    for system in systems:
        title = f"[{prose(system.card.title)}](systems/{system.card.slug}.md)"
        for name in system.claim_names:
            entry = system.entries.get(name)
            if entry is None:
                waiting.append(name)
                continue
            rows.append([title, name, _rests_on(entry), str(len(entry["seeds"])), f"**{entry['verdict']}**"])
    opening = (
        "What a verdict rests on is paired over seeds; intervals are 95 % intervals of the mean difference."
    )
    head = ["system", "claim", "what it rests on: difference, interval", "seeds", "verdict"]
    rest = f"Not measured yet: {', '.join(waiting)}." if waiting else "Every claim has been measured."
    return text([NOTE, "", "# The claims", "", opening, "", *table(head, rows, right="3"), rest, ""])


def _sorted(system: Measured) -> list[list[str]]:
    """The names of its claims that hold, are inconclusive, refuted, and not measured."""
    found = {name: (system.entries.get(name) or {}).get("verdict") for name in system.claim_names}
    return [[name for name, verdict in found.items() if verdict == wanted] for wanted in (*VERDICTS, None)]


def _short(system: Measured, name: str) -> str:
    """The claim's name without that of its system."""
    return name.removeprefix(f"{system.card.slug}-")


def _rests_on(entry: Mapping[str, Any]) -> str:
    """The comparisons that a claim's verdict rests on."""
    rows = [row for row in entry["comparisons"] if row["headline"]]
    return "<br>".join(
        f"{named(row)}: {change(by(row, entry['metric']), row['mean'])} ({interval(entry['metric'], row)}), "
        + row["verdict"]
        for row in rows
    )


# -- a comparison in words ------------------------------------------------------------------------------------


def named(row: Mapping[str, Any]) -> str:
    """What is compared."""
    beside = "" if row["headline"] else " *(beside the claim)*"
    return prose(pair_words(row)) + beside


def by(row: Mapping[str, Any], metric: str) -> str:
    """What a comparison is by."""
    return row.get("metric") or metric


def interval(metric: str, row: Mapping[str, Any]) -> str:
    """Between what the mean difference lies."""
    metric = by(row, metric)
    return span(metric, tuple(row["interval"])) if row["interval"] else "too few seeds"

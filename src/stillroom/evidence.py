"""What the claims measured: one file a system, written by `stillroom claims` and never by hand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom._cards import Card
from stillroom.checkpoint import read_json, write_json
from stillroom.errors import UserError

if TYPE_CHECKING:
    from stillroom.claim import Claim

INSTALLED = Path(__file__).parent / "evidence"
CHECKOUT = Path(__file__).parents[2] / "evidence"


def read_evidence(slug: str, folder: Path | None = None) -> list[dict[str, Any]]:
    """The entries of a system: from `folder`, or this checkout, or the installed package; none where it has none."""
    for place in [folder] if folder else [CHECKOUT, INSTALLED]:
        if (place / f"{slug}.json").is_file():
            return read_json(place / f"{slug}.json")["claims"]
    return []


def check_writable(folder: Path, flag: str = "--evidence") -> None:
    """Raise UserError that names `flag`, before anything is measured, where `folder` cannot be made or written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"{flag} '{folder}' cannot be written ({error.strerror}): pass another folder"
        ) from None


def record(folder: Path, card: Card, entry: dict[str, Any], claims: Iterable[Claim] = ()) -> Path:
    """Put a claim's entry in its system's file and make the page anew, with what `claims` draw; returns the file.

    An earlier entry of the same claim is kept, shortened, under "earlier"; those of other claims stay.
    """
    from stillroom.reports.claim_page import write_claim_page

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{card.slug}.json"
    entries = read_json(path)["claims"] if path.is_file() else []
    before = next((c for c in entries if c["name"] == entry["name"]), None)
    if before is not None:
        entry = entry | {"earlier": [*before.get("earlier", []), _short(before)]}
    entries = [entry if c["name"] == entry["name"] else c for c in entries]
    entries += [entry] if before is None else []
    evidence = filed(card, entries)
    write_json(path, evidence)
    write_claim_page(evidence, folder / f"{card.slug}.html", drawn(entries, claims))
    return path


def filed(card: Card, entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a system's file of evidence holds."""
    return {"system": card.slug, "title": card.title, "source": card.source, "claims": entries}


def drawn(
    entries: Iterable[Mapping[str, Any]], claims: Iterable[Claim]
) -> dict[str, Sequence[Mapping[str, str]]]:
    """The figures that `claims` draw of what was measured of them, by the name of the claim."""
    draws = {claim.name: claim.draw for claim in claims if claim.draw}
    return {entry["name"]: draws[entry["name"]](entry) for entry in entries if entry["name"] in draws}


def _short(entry: dict[str, Any]) -> dict[str, Any]:
    kept = ("date", "seeds", "verdict", "command", "versions")
    rows = [
        {k: c[k] for k in ("better", "worse", "metric", "mean", "interval", "verdict") if k in c}
        for c in entry["comparisons"]
    ]
    return {k: entry[k] for k in kept if k in entry} | {"comparisons": rows}

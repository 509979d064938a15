"""The page of a system's claims: does what the paper says hold here, by how much, and how was it measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stillroom.checkpoint import write_text
from stillroom.reports import formats
from stillroom.reports.figures import Difference, Tone, paired_differences
from stillroom.reports.formats import DASH, SPACE, amount, duration, span
from stillroom.reports.page import plates, render
from stillroom.words import is_share, pair_words

HEADLINES = {"holds": "The claim holds.", "inconclusive": "Inconclusive.", "refuted": "Refuted."}
Figures = Mapping[str, Sequence[Mapping[str, str]]]
"""Figures of claims, by a claim's name: title, caption and svg of each."""
TONES: dict[str, Tone] = {"holds": "better", "refuted": "worse"}


def write_claim_page(evidence: Mapping[str, Any], path: Path, figures: Figures | None = None) -> Path:
    """Write what `claim_page` makes to `path`, whole or not at all; returns `path`."""
    write_text(path, claim_page(evidence, figures))
    return path


def claim_page(evidence: Mapping[str, Any], figures: Figures | None = None) -> str:
    """The page of one system's evidence; `figures` are those of its claims, by name: title, caption and svg of each.

    Raises UserError for a figure that is not one of ours.
    """
    drawn = {name: plates(found) for name, found in (figures or {}).items()}
    claims = [_claim(claim) | {"figures": drawn.get(claim["name"], [])} for claim in evidence["claims"]]
    values = {
        "system": evidence["system"],
        "title": evidence.get("title") or evidence["system"],
        "source": evidence.get("source") or "",
        "headline": _headline([claim["verdict"] for claim in claims]),
        "tone": _tone([claim["verdict"] for claim in claims]),
        "claims": claims,
    }
    return render("claim.html.j2", values)


def _headline(verdicts: Sequence[str]) -> str:
    if not verdicts:
        return "Nothing measured yet."
    if len(verdicts) == 1:
        return HEADLINES[verdicts[0]]
    holding = verdicts.count("holds")
    if holding == len(verdicts):
        return f"All {len(verdicts)} claims hold."
    return f"{holding or 'None'} of {len(verdicts)} claims {'hold' if holding > 1 else 'holds'}."


def _tone(verdicts: Sequence[str]) -> Tone:
    same = set(verdicts)
    return TONES.get(verdicts[0], "unclear") if len(same) == 1 else "unclear"


def _claim(claim: Mapping[str, Any]) -> dict[str, Any]:
    """What the template shows of one claim."""
    metric, comparisons = claim["metric"], claim["comparisons"]
    about = {key: claim[key] for key in ("task", "engine") if key in claim}
    return {
        "name": claim["name"],
        "says": claim["says"],
        "source": claim.get("source") or "",
        "notes": claim.get("notes") or "",
        "verdict": claim["verdict"],
        "tone": TONES.get(claim["verdict"], "unclear"),
        "findings": [_finding(one, metric) for one in comparisons if one["headline"]],
        "metric": f"{formats.spoken(metric)}{'' if claim['higher_is_better'] else ', lower is better'}",
        "seeds": len(claim["seeds"]),
        "advantage": "advantage, points" if is_share(metric) else "advantage",
        "arms": [_arm(name, arm, metric) for name, arm in claim["arms"].items()],
        "comparisons": [_comparison(one, metric) for one in comparisons],
        "figure": _figure(comparisons, metric),
        "options": {name: formats.flat(arm["options"]) for name, arm in claim["arms"].items()}
        | {key: formats.flat(tree) for key, tree in about.items()},
        "versions": formats.flat(claim["versions"]),
        "machine": formats.flat(claim.get("machine") or {}),
        "earlier": [_earlier(entry, metric) for entry in claim.get("earlier") or []],
        "command": claim.get("command") or "",
        "date": claim["date"],
        "duration": duration(claim["seconds"]),
    }


def _arm(name: str, arm: Mapping[str, Any], metric: str) -> list[str]:
    spread = amount(metric, arm["std"], signed=True, unit=False).lstrip("+")
    scores = [score for score in arm["scores"] if formats.known(score)]
    extremes = [amount(metric, pick(scores)) if scores else DASH for pick in (min, max)]
    return [name, amount(metric, arm["mean"]), f"±{SPACE}{spread}", *extremes, duration(arm["seconds"])]


def _comparison(one: Mapping[str, Any], metric: str) -> list[str]:
    metric = one.get("metric") or metric
    label = f"{pair_words(one, 'over')}{'' if one['headline'] else ' (beside the claim)'}"
    between = span(metric, one["interval"], unit=False) or "none, too few seeds"
    return [label, amount(metric, one["mean"], signed=True, unit=False), between, _wins(one), one["verdict"]]


def _wins(one: Mapping[str, Any]) -> str:
    ties = one.get("ties") or 0
    tail = f", {ties} {'tie' if ties == 1 else 'ties'}" if ties else ""
    return f"{one['wins']} of {len(one['differences'])}{tail}"


def _finding(one: Mapping[str, Any], metric: str) -> str:
    metric = one.get("metric") or metric
    between = span(metric, one["interval"])
    interval = f"95 % interval {between}" if between else "too few seeds for an interval"
    gain = amount(metric, one["mean"], signed=True)
    return f"{pair_words(one, 'over')}: {gain} ({interval}), ahead in {_wins(one)} seeds."


def _figure(comparisons: Sequence[Mapping[str, Any]], metric: str) -> str | None:
    rows = [
        Difference(
            pair_words(one, "over"),
            TONES.get(one["verdict"], "unclear"),
            one["differences"],
            one["mean"],
            one["interval"],
        )
        for one in comparisons
        if not one.get("metric")  # other numbers have other axes
    ]
    return paired_differences(rows, metric, f"advantage in {formats.spoken(metric)}") if rows else None


def _earlier(entry: Mapping[str, Any], metric: str) -> list[str]:
    gains = [
        f"{pair_words(one, 'over')} {amount(one.get('metric') or metric, one['mean'], signed=True)}"
        for one in entry["comparisons"]
    ]
    return [entry.get("date") or DASH, str(len(entry.get("seeds") or [])), entry["verdict"], "; ".join(gains)]

"""A page for each comparison that `stillroom compare --out evidence/comparisons/NAME.json` recorded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from markdown import changed, coded, prose, table, text
from stillroom import catalogue
from stillroom.checkpoint import read_json
from stillroom.config import to_plain
from stillroom.engine import Engine
from stillroom.errors import UserError
from stillroom.words import amount, change, span

FOLDER = Path("docs/comparisons")
NOTE = "<!-- Made by tools/pages.py from evidence/comparisons: do not edit. -->"


def wanted(evidence: Path) -> dict[Path, str]:
    """The pages of the comparisons that are recorded below a folder of evidence."""
    files = sorted((evidence / "comparisons").glob("*.json"))
    return {FOLDER / f"{file.stem}.md": page(file.stem, read_json(file)) for file in files}


def page(name: str, entry: Mapping[str, Any]) -> str:
    """One comparison: every arm against the first and the second, what it takes, how it was tuned and measured."""
    arms = list(entry["arms"])
    against = arms[:2]
    lines = [NOTE, "", f"# {prose(name.replace('-', ' '))}", "", _opening(entry), ""]
    score = f"{prose(entry['metric'])}, mean ± std"
    head = [
        "arm",
        "setting",
        score,
        *(f"against {prose(a)}" for a in against),
        f"time ÷ {prose(against[-1])}",
    ]
    lines += table(head, [_row(entry, arm, against) for arm in arms], right="25")
    if "tuning" in entry:
        lines += ["## What was tried", "", *_tried(entry)]
    return text([*lines, "## How it was measured", "", *_settings(entry)])


def _opening(entry: Mapping[str, Any]) -> str:
    tuned = entry.get("tuning")
    words = "The same data, samples, teacher, initial weights and steps for all arms, "
    words += f"{len(entry['seeds'])} paired seeds."
    if tuned:
        first, last = tuned["seeds"][0], tuned["seeds"][-1]
        words += f" Settings were chosen on the validation split over seeds {first} to {last}, which are not compared."
    return f"{words} Differences are paired, with 95 % intervals; **bold** where an interval leaves out 0."


def _row(entry: Mapping[str, Any], arm: str, against: list[str]) -> list[str]:
    found, metric = entry["arms"][arm], entry["metric"]
    chosen = entry.get("tuning", {}).get("arms", {}).get(arm, {}).get("chosen", "as it comes")
    score = f"{amount(metric, found['mean'])} ± {amount(metric, found['std'])}"
    time = found["seconds"] / max(entry["arms"][against[-1]]["seconds"], 1e-9)
    return [
        coded([arm]),
        prose(chosen),
        score,
        *(_difference(entry, arm, other) for other in against),
        f"{time:.2f}",
    ]


def _difference(entry: Mapping[str, Any], arm: str, other: str) -> str:
    """Positive where `arm` is better, whichever of the two came first on the command line."""
    for row in entry["comparisons"]:
        if {row["better"], row["worse"]} == {arm, other} and arm != other:
            sign = 1 if row["better"] == arm else -1
            ends = sorted(sign * end for end in row["interval"] or ())
            words = change(entry["metric"], sign * row["mean"])
            if not ends:
                return f"{words} (too few seeds)"
            words = f"{words} ({span(entry['metric'], (ends[0], ends[1]))})"
            return f"**{words}**" if ends[0] > 0 or ends[1] < 0 else words
    return "–"


def _tried(entry: Mapping[str, Any]) -> list[str]:
    rows = []
    for arm, found in entry["tuning"]["arms"].items():
        scores = "; ".join(
            f"{prose(words)}: {amount(entry['metric'], mean)}" for words, mean in found["tried"].items()
        )
        rows.append([coded([arm]), str(len(found["tried"])), scores])
    return table(["arm", "settings", f"mean validation {prose(entry['metric'])} of each"], rows, right="1")


def _settings(entry: Mapping[str, Any]) -> Iterator[str]:
    usual = {"task": _usual_task(entry), "engine": to_plain(Engine())}
    for part in ("task", "engine"):
        yield f"- {part}: {coded(changed(entry[part], usual[part])) or 'all options as they come'}"
    for arm, found in entry["arms"].items():
        options = changed(found["options"], to_plain(catalogue.find(found["method"]).load()()))
        yield f"- {coded([arm])}: {coded(options) or 'options as they come'}"
    machine = entry["machine"]
    place = f"{machine['system']}, {machine['processor']}, {machine['cores']} cores"
    yield f"- measured on {entry['date']} ({place})"
    yield f"- versions: {', '.join(f'{name} {version}' for name, version in entry['versions'].items())}"
    yield f"- by `{entry['command']}`"


def _usual_task(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the first arm's own problem, as they come; none where it is gone."""
    try:
        method = catalogue.find(next(iter(entry["arms"].values()))["method"]).load()
    except UserError:
        return {}
    return to_plain(type(method.default_task())())

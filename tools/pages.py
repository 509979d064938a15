"""A page a system, made from its code, its card and its evidence: `python tools/pages.py [--check]`.

Writes `docs/systems/`, `docs/comparisons/`, `docs/claims.md` and the pages in `evidence/`, and in the README what
stands between `<!-- families -->` or `<!-- evidence -->` and its closing mark. The same inputs give the same bytes.
With `--check` nothing is written: what is stale, missing or orphaned is a line each, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # so that the tools find each other however they are started

import comparisons
import stillroom
import verdicts
from markdown import changed, coded, fenced, paragraphs, prose, table, text
from stillroom import catalogue
from stillroom._cards import CARDS, Card
from stillroom.claim import Claim
from stillroom.config import to_plain
from stillroom.engine import Engine
from stillroom.errors import UserError
from stillroom.evidence import drawn, filed, read_evidence
from stillroom.method import Method
from stillroom.options import Option, describe
from stillroom.reports.claim_page import claim_page
from stillroom.words import amount, change, pair_words
from verdicts import by, interval, named

ROOT = Path(__file__).resolve().parents[1]
FOLDER, EVIDENCE = Path("docs/systems"), Path("evidence")
INDEX, README = FOLDER / "README.md", Path("README.md")
AGAIN = "run `python tools/pages.py`"
NOTE = "<!-- Made by tools/pages.py from code, card and evidence: do not edit. -->"
UNMEASURED = "not measured yet"


@dataclass(frozen=True)
class System:
    """A card with the code and the evidence that belong to it."""

    card: Card
    evidence: Path
    """The folder of evidence files."""

    @cached_property
    def works(self) -> bool:
        """Whether there is code."""
        return catalogue.works(self.card)

    @cached_property
    def methods(self) -> list[type[Method]]:
        """Its methods, in the order of the code; none while it is planned."""
        return catalogue.methods_of(self.card) if self.works else []

    @cached_property
    def claims(self) -> dict[str, Claim]:
        """The claims that the code makes, by name."""
        return {claim.name: claim for method in self.methods for claim in method.claims()}

    @cached_property
    def entries(self) -> dict[str, dict[str, Any]]:
        """What was measured, by the name of its claim."""
        return {entry["name"]: entry for entry in read_evidence(self.card.slug, self.evidence)}

    @property
    def claim_names(self) -> list[str]:
        """All claims, made or measured."""
        return [*self.claims, *(name for name in self.entries if name not in self.claims)]

    @cached_property
    def module(self) -> ModuleType:
        """Its module, imported."""
        return importlib.import_module(catalogue.module_of(self.card))

    @cached_property
    def code(self) -> str:
        """Where its module is, from the root of the repository."""
        package = Path(stillroom.__file__).parents[1]
        return Path("src", Path(inspect.getfile(self.module)).relative_to(package)).as_posix()

    @cached_property
    def said(self) -> dict[str, list[str]]:
        """The paragraphs of the module's docstring under what they begin with; "" has those before the first."""
        found: dict[str, list[str]] = {"": []}
        label = ""
        for paragraph in (inspect.getdoc(self.module) or "").split("\n\n"):
            begins = re.match(r"(What for|The idea|Source|Deviations)s?[.:]\s+", paragraph)
            label = begins[1] if begins else label
            found.setdefault(label, []).append(paragraph[begins.end() :] if begins else paragraph)
        return found


# -- a system's page ------------------------------------------------------------------------------------------


def page(system: System) -> str:
    """All that is known of a working system."""
    card, said, code = system.card, system.said, system.code
    where = (
        f"{coded(catalogue.names(card))} · {card.family} · [{code}](../../{code}) · [all systems](README.md)"
    )
    lines = [NOTE, "", f"# {prose(card.title)}", "", prose(card.gist), "", where, ""]
    lines += ["## What it is for", "", *paragraphs(said[""] + said.get("What for", []))]
    if "The idea" in said:
        lines += ["## The idea", "", *paragraphs(said["The idea"])]
    lines += ["## Source", "", *paragraphs(said.get("Source") or [f"{card.paper}. {card.source}"])]
    for method in system.methods:
        lines += _method(method)
    lines += ["## How to run", "", fenced("\n".join(_commands(system)), "bash"), "", *_evidence(system)]
    deviations = said.get("Deviations", ["The code names none."])
    return text([*lines, "## Deviations from the paper", "", *paragraphs(deviations)])


def _method(method: type[Method]) -> list[str]:
    flags = describe(method(), "--method.")
    rows = [(_flag(option), _value(option.default), prose(option.help)) for option in flags]
    return [
        f"## The algorithm of `{method.name}`",
        "",
        fenced(_algorithm(method), "python"),
        "",
        *(table(["option", "default", "meaning"], rows) if rows else ["It has no options.", ""]),
        _built_in(method),
        "",
    ]


def _built_in(method: type[Method]) -> str:
    task, engine = method.default_task(), method.default_engine()
    other = changed(to_plain(task), to_plain(type(task)())) + changed(to_plain(engine), to_plain(Engine()))
    about = prose(inspect.getdoc(method.default_task) or "")
    options = f"`{type(task).__name__}`" + (f" with {coded(other)}" if other else "")
    more = f"`stillroom run {method.name} --help` tells all options of task and engine."
    return f"The built-in problem, {options}: {about} {more}"


def _algorithm(method: type[Method]) -> str:
    """The class without its fields: the docstring, and `updates` or whatever takes its place."""
    about = inspect.getdoc(method) or ""
    body = f'"""{about}' + ('\n"""\n' if "\n" in about else '"""\n')
    for name in ("run", "updates"):
        if getattr(method, name) is not getattr(Method, name):
            body += "\n" + textwrap.dedent(inspect.getsource(getattr(method, name)))
    bases = ", ".join(base.__name__ for base in method.__bases__)
    return f"class {method.__name__}({bases}):\n{textwrap.indent(body, '    ')}"


def _flag(option: Option) -> str:
    part, _, name = option.flag.rpartition(".")
    return coded([option.flag, *([f"{part}.no-{name}"] if isinstance(option.default, bool) else [])])


def _value(value: Any) -> str:
    return "none" if value is None else "empty" if value == "" else f"`{value}`"


def _commands(system: System) -> Iterator[str]:
    for method in system.methods:
        yield f"stillroom run {method.name}"
        baseline = method.default_task().baseline()
        if baseline is not None and baseline.name != method.name:
            yield f"stillroom compare {baseline.name} {method.name} --seeds 10"
    if system.claims:
        yield f"stillroom claims {system.card.slug}"
    for data in sorted({claim.data for claim in system.claims.values() if claim.data}):
        yield f"stillroom claims {system.card.slug} --data-root FOLDER  # a folder that holds {data}"


# -- evidence -------------------------------------------------------------------------------------------------


def _evidence(system: System) -> list[str]:
    lines = ["## Evidence", ""]
    if not system.claim_names:
        return [*lines, "It makes no claim of its own: other systems are compared with it.", ""]
    for name in system.claim_names:
        entry, claim = system.entries.get(name), system.claims.get(name)
        lines += [f"### {name}: {entry['verdict'] if entry else UNMEASURED}", ""]
        if entry is None:
            lines += [
                *_intended(claim),
                f"`stillroom claims {system.card.slug} --only {name}` measures it.",
                "",
            ]
        else:
            lines += _measured(entry, claim)
    if system.entries:
        path = f"evidence/{system.card.slug}.json"
        page = f"evidence/{system.card.slug}.html"
        offline = f"[{page}](../../{page}) shows them as a page that opens offline"
        lines += [f"Every seed's numbers are in [{path}](../../{path}); {offline}.", ""]
    return lines


def _intended(claim: Claim) -> list[str]:
    rules = [pair_words(asdict(rule)) for rule in claim.rules if rule.headline]
    return [prose(claim.says), "", f"To be shown: {coded(rules)}. {prose(claim.notes)}", ""]


def _measured(entry: Mapping[str, Any], claim: Claim | None) -> list[str]:
    metric = entry["metric"]
    arms = [
        (prose(name), _recipe(arm), _spread(metric, arm), f"{arm['seconds']:.1f}")
        for name, arm in entry["arms"].items()
    ]
    pairs = [
        (
            named(row),
            change(by(row, metric), row["mean"]),
            interval(metric, row),
            _wins(row),
            row["verdict"],
        )
        for row in entry["comparisons"]
    ]
    return [
        *(["The code no longer makes this claim.", ""] if claim is None else []),
        prose(entry["says"]),
        "",
        *([prose(entry["notes"]), ""] if entry["notes"] else []),
        *table(["arm", "method", f"{prose(metric)}, mean ± std", "seconds a seed"], arms, right="23"),
        *table(["comparison", "difference", "95 % interval", "wins", "verdict"], pairs, right="123"),
        *_settings(entry, claim),
        "",
    ]


def _recipe(arm: Mapping[str, Any]) -> str:
    try:
        usual = to_plain(catalogue.find(arm["method"]).load()())
    except UserError:  # measured with a method that is gone
        usual = {}
    return coded([arm["method"], *changed(arm["options"], usual)])


def _spread(metric: str, arm: Mapping[str, Any]) -> str:
    return f"{amount(metric, arm['mean'])} ± {amount(metric, arm['std'])}"


def _wins(row: Mapping[str, Any]) -> str:
    tied = f", {row['ties']} tied" if row["ties"] else ""
    return f"{row['wins']} of {len(row['differences'])}{tied}"


def _settings(entry: Mapping[str, Any], claim: Claim | None) -> Iterator[str]:
    """How it was measured, a list item each; options only where they are not the usual ones."""
    seeds, machine = entry["seeds"], entry["machine"]
    in_row = seeds == list(range(seeds[0], seeds[0] + len(seeds)))
    yield f"- seeds: {f'{seeds[0]} to {seeds[-1]}' if in_row else ', '.join(map(str, seeds))}, paired"
    usual = {"task": to_plain(type(claim.task)()), "engine": to_plain(Engine())} if claim else {}
    for part in ("task", "engine"):
        yield f"- {part}: {coded(changed(entry[part], usual.get(part, {}))) or 'all options as they come'}"
    place = f"{machine['system']}, {machine['processor']}, {machine['cores']} cores"
    yield f"- measured on {entry['date']} in {entry['seconds'] / 60:.1f} minutes ({place})"
    yield f"- versions: {', '.join(f'{name} {version}' for name, version in entry['versions'].items())}"
    if entry.get("command"):
        yield f"- by `{entry['command']}`"
    for old in entry.get("earlier", []):
        yield f"- earlier, on {old['date']}, over {len(old['seeds'])} seeds: {old['verdict']}"


# -- tables of all of them ------------------------------------------------------------------------------------


def index(systems: Sequence[System]) -> str:
    """The page of all systems by family."""
    papers, others = _papers(systems), [system for system in systems if system.card not in CARDS]
    done = sum(system.works for system in papers)
    opening = f"{done} of {len(papers)} work, the others are planned. Verdicts are what `stillroom claims` measured."
    lines = [NOTE, "", "# The systems", "", opening, ""]
    parts = {family: [s for s in papers if s.card.family == family] for family in _families(papers)}
    for title, of_it in [*parts.items(), ("What they are compared with", others)]:
        head = ["system", "what it does", "source", "status", "verdict"]
        lines += [f"## {title}", "", *table(head, map(_row, of_it))]
    return text(lines)


def _papers(systems: Iterable[System]) -> list[System]:
    return [system for system in systems if system.card in CARDS]


def _families(systems: Iterable[System]) -> list[str]:
    return list(dict.fromkeys(system.card.family for system in systems))


def _row(system: System) -> list[str]:
    card = system.card
    title = f"[{prose(card.title)}]({card.slug}.md)" if system.works else prose(card.title)
    status = f"works: {coded(catalogue.names(card))}" if system.works else "planned"
    verdicts = [f"{name}: {_verdict(system.entries.get(name))}" for name in system.claim_names]
    return [title, prose(card.gist), prose(card.source), status, "<br>".join(verdicts) or "–"]


def _verdict(entry: Mapping[str, Any] | None) -> str:
    return f"**{entry['verdict']}**" if entry else UNMEASURED


def families(systems: Sequence[System]) -> list[str]:
    """The README's table of families."""
    papers, rows = _papers(systems), []
    for family in _families(papers):
        of_it = [system for system in papers if system.card.family == family]
        anchor = re.sub(r"[^\w -]", "", family.lower()).replace(" ", "-")
        rows.append([f"[{family}]({INDEX}#{anchor})", str(len(of_it)), str(sum(s.works for s in of_it))])
    total = ["all", str(len(papers)), str(sum(system.works for system in papers))]
    return table(["family", "systems", "work"], [*rows, total], right="12")


def claim_page_of(system: System) -> str:
    """The claims' page that opens offline, as `stillroom claims` writes it."""
    entries = list(system.entries.values())
    return claim_page(filed(system.card, entries), drawn(entries, system.claims.values()))


# -- files ----------------------------------------------------------------------------------------------------

SECTIONS: dict[str, Callable[[Sequence[System]], list[str]]] = {
    "families": families,
    "evidence": verdicts.summary,
}


def wanted(root: Path) -> dict[Path, str]:
    """What the generated files have to hold, by their paths from `root`."""
    systems = [System(card, root / "evidence") for card in catalogue.cards()]
    files = {FOLDER / f"{system.card.slug}.md": page(system) for system in systems if system.works}
    files[INDEX] = index(systems)
    files[verdicts.PAGE] = verdicts.page(systems)
    files |= comparisons.wanted(root / "evidence")
    files |= {EVIDENCE / f"{one.card.slug}.html": claim_page_of(one) for one in systems if one.entries}
    if (root / README).is_file():
        files[README] = _with_sections((root / README).read_text(encoding="utf-8"), systems)
    return files


def _with_sections(readme: str, systems: Sequence[System]) -> str:
    for name, make in SECTIONS.items():
        marks = re.compile(f"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if marks.search(readme):
            inner = "\n".join(["", *make(systems)])
            readme = marks.sub(lambda found, inner=inner: f"{found[1]}{inner}\n{found[2]}", readme)
    return readme


def faults(root: Path, files: Mapping[Path, str]) -> dict[Path, str]:
    """What is wrong with the files that are there: 'missing', 'stale' or 'orphaned'."""
    found = {}
    for path, wanted_text in files.items():
        there = root / path
        if not there.is_file():
            found[path] = "missing"
        elif there.read_text(encoding="utf-8") != wanted_text:
            found[path] = "stale"
    made = ((FOLDER, "*.md"), (comparisons.FOLDER, "*.md"), (EVIDENCE, "*.html"))
    pages = (path.relative_to(root) for folder, kind in made for path in sorted((root / folder).glob(kind)))
    return found | {path: "orphaned" for path in pages if path not in files}


def mend(root: Path, files: Mapping[Path, str], wrong: Mapping[Path, str]) -> None:
    """Write what is missing or stale, remove what is orphaned."""
    for path, fault in wrong.items():
        if fault == "orphaned":
            (root / path).unlink()
        else:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(files[path], encoding="utf-8")


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Write the pages, or check them; returns the exit status."""
    parser = argparse.ArgumentParser(description="Make docs/systems and the README's tables.")
    parser.add_argument(
        "--check", action="store_true", help="write nothing; status 1 where a page is not fresh"
    )
    check = parser.parse_args(arguments).check
    try:
        files = wanted(root)
    except UserError as error:
        print(error)
        return 1
    wrong = faults(root, files)
    for path, fault in sorted(wrong.items()):
        print(f"{path} is {fault}: {AGAIN}" if check else f"{path} was {fault}")
    if not check:
        mend(root, files, wrong)
    return int(check and bool(wrong))


if __name__ == "__main__":
    sys.exit(main())

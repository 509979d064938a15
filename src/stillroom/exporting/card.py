"""The card beside a product: what it is, how it was made, what is known of it and what is not. All cards are made here.

A family says what is its own (title, table, facts, how to load it); the rest is read from the run's result: teacher,
method, data, evidence, limits and what distilling cost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from stillroom.checkpoint import write_text
from stillroom.evidence import read_evidence
from stillroom.reports.formats import duration, engineering
from stillroom.words import amount, change, span

About = Mapping[str, Any]
"""A run's result with the method's options: what `Task.export` is told."""


@dataclass(frozen=True)
class Card:
    """What a family says of its product."""

    title: str
    """The heading."""
    tags: Sequence[str] = ()
    """Tags in the front matter."""
    front: Mapping[str, Any] = field(default_factory=dict)
    """What else the front matter says, in the hub's words (pipeline_tag, configs ...)."""
    table: Sequence[Sequence[str]] = ()
    """Rows of the table under the verdict, headings first."""
    facts: Sequence[str] = ()
    """Lines about this product, beside those that are made of the result."""
    code: Sequence[str] = ()
    """Python that loads it."""
    ending: Sequence[str] = ()
    """Paragraphs after the code."""
    sections: Sequence[tuple[str, Sequence[str]]] = ()
    """Further sections, before the one on loading: heading and lines."""

    def text(self, about: About) -> str:
        """The whole card, Markdown under YAML."""
        sections = [
            ("How it was made", [*made(about), *bullets(self.facts)]),
            ("Evidence", evidence(about)),
            ("Limits", bullets(limits(about))),
            ("What distilling cost", costs(about)),
            *self.sections,
            ("Load it", ["```python", *self.code, "```"] if self.code else []),
        ]
        lines = [*self._front(about), f"# {self.title}", "", about["verdict"]["text"], "", *table(self.table)]
        for heading, content in sections:
            if content:
                lines += [f"## {heading}", "", *"\n".join(content).strip().splitlines(), ""]
        for paragraph in self.ending:
            lines += [paragraph, ""]
        return "\n".join(lines)

    def write(self, folder: Path, about: About) -> None:
        """Write README.md."""
        write_text(folder / "README.md", self.text(about))

    def but(self, **changes: Any) -> Self:
        """A copy that says other things."""
        return replace(self, **changes)

    def _front(self, about: About) -> list[str]:
        import yaml

        library = {} if "task_categories" in self.front else {"library_name": "stillroom"}
        front: dict[str, Any] = {**library, **self.front, "tags": [*self.tags, "stillroom"]}
        front |= _measured(self, about) if "pipeline_tag" in front else {}
        text = yaml.safe_dump(front, sort_keys=False, allow_unicode=True, width=200, default_flow_style=None)
        return ["---", *text.splitlines(), "---"]


def _measured(card: Card, about: About) -> dict[str, Any]:
    """The run's score as the hub's model-index."""
    from huggingface_hub import EvalResult, ModelCardData

    metric, name = about.get("metric"), about["data"]["name"]
    value = about["arms"].get(about["method"], {}).get("test", {}).get(metric)
    if value is None:
        return {}
    found = EvalResult(
        task_type=card.front["pipeline_tag"],
        dataset_type=name,
        dataset_name=name,
        dataset_split="test",
        metric_type=str(metric),
        metric_value=round(float(value), 6),
    )
    index = ModelCardData(model_name=card.title, eval_results=[found]).to_dict()
    return {"model-index": index["model-index"]}


# -- what a result says -------------------------------------------------------------------------------------------


def made(about: About) -> list[str]:
    """Teacher, method, data, seed and command, a line each."""
    data = about["data"]
    lines = [f"teacher: {data['teacher']}"] if data.get("teacher") else []
    lines.append(f"method: {about['method']} ({about['source']}), options {dict(about['options'])}")
    seen = f", {data['student sees']} training samples seen by the student" if "student sees" in data else ""
    lines.append(f"data: {data['name']}{seen}")
    lines += [f"  - {name}: {text}" for name, text in _splits(data.get("splits"))]
    if data.get("fingerprint"):
        lines.append(f"fingerprint of the data: {data['fingerprint']}")
    lines.append(f"seed {about['seed']}; one run says nothing about the spread over seeds")
    lines.append(f"made by: `{about['command']}`")
    versions = about.get("versions", {})
    if versions:
        lines.append("versions: " + ", ".join(f"{name} {number}" for name, number in versions.items()))
    return bullets(lines)


def _splits(splits: Any) -> Iterable[tuple[str, str]]:
    """The splits in words: how many samples, and where they came from where that is known."""
    for name, split in splits.items() if isinstance(splits, Mapping) else ():
        if isinstance(split, Mapping):
            origin = f", {split['origin']}" if "origin" in split else ""
            yield name, f"{split.get('samples', '?')} samples{origin}"
        elif name != "seed":
            yield name, str(split)


def evidence(about: About) -> list[str]:
    """What this run measured, and the verdicts on the system's claims that come with Stillroom."""
    lines = [f"This run: {_this_run(about)}", ""]
    claims = read_evidence(about["system"]) if about.get("system") else []
    if not claims:
        return [*lines, "No claim of this system's has been measured."]
    lines += ["The system's claims, measured by Stillroom on its own problems, not on this product:", ""]
    for claim in claims:
        lines.append(f"- **{claim['verdict']}** over {len(claim['seeds'])} seeds: {claim['says']}")
        for row in claim["comparisons"]:
            if row.get("headline") and row.get("interval"):
                metric = row.get("metric") or claim["metric"]
                lines.append(
                    f"  - {row['better']} against {row['worse']}, {metric.replace('_', ' ')}: "
                    f"{change(metric, row['mean'])} (95 % interval {span(metric, tuple(row['interval']))})"
                )
    return lines


def _this_run(about: About) -> str:
    verdict, metric = about["verdict"], about.get("metric")
    kind = verdict.get("kind", "not compared")
    if verdict.get("difference") is None or metric is None:
        return f"{kind}."
    words = f"{kind}, {change(metric, verdict['difference'])} of {metric.replace('_', ' ')} on the test split"
    if verdict.get("interval"):
        return f"{words} (95 % interval {span(metric, tuple(verdict['interval']))}; one seed)."
    return f"{words} (one seed, no interval)."


def limits(about: About) -> list[str]:
    """What was not tested, as far as the result tells."""
    data, metric, verdict = about["data"], about.get("metric"), about["verdict"]
    test = about["arms"].get(about["method"], {}).get("test", {})
    samples = f"{test['samples']} test samples" if "samples" in test else "the test split"
    found = [
        f"Scored on {samples} of {data['name']} alone. Other data, inputs from elsewhere, hostile inputs, and how "
        "errors fall on groups of people were not tested."
    ]
    if verdict.get("kind") in ("no clear difference", "hurt"):
        found.append("This run does not show that distilling helped: see the verdict above.")
    if verdict.get("interval") and metric:
        low, high = verdict["interval"]
        half = change(metric, (high - low) / 2).lstrip("+")
        found.append(f"Differences smaller than about {half} cannot be told from chance on this test split.")
    found += _beside_teacher(about)
    if any(
        key.startswith(("latency", "seconds_per"))
        for arm in about["arms"].values()
        for key in arm.get("cost", {})
    ):
        machine = about.get("machine", {})
        where = f"{machine.get('processor', 'one machine')}, {machine.get('threads', '?')} thread(s)"
        found.append(f"Times are of one machine ({where}); other hardware was not measured.")
    return found


def _beside_teacher(about: About) -> list[str]:
    metric = about.get("metric")
    arms = {arm.get("role"): arm["test"].get(metric) for arm in about["arms"].values()}
    own, teacher = arms.get("student"), arms.get("teacher")
    if metric is None or own is None or teacher is None:
        return []
    better = 1 if about.get("higher_is_better", True) else -1
    place = "behind" if (own - teacher) * better < 0 else "not behind"
    numbers = f"{amount(metric, own)} against {amount(metric, teacher)}"
    return [f"The student is {place} its teacher on the test split ({metric.replace('_', ' ')} {numbers})."]


def costs(about: About) -> list[str]:
    """The seconds and bytes of making it, as a table."""
    rows = [
        (name, engineering(value, "B") if name.startswith("bytes") else duration(value))
        for name, value in about.get("costs", {}).items()
    ]
    return table([("", "cost"), *rows])[:-1] if rows else []


# -- Markdown -----------------------------------------------------------------------------------------------------


def arm_rows(about: About, cells: Callable[[Mapping[str, Any]], Sequence[str]]) -> list[list[str]]:
    """A row of the table for each arm of the run: its name, and what `cells` makes of it."""
    return [[name, *cells(arm)] for name, arm in about["arms"].items()]


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table, headings first, and an empty line; nothing without rows."""
    if not rows:
        return []
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    if not rows[0][0]:
        lines[0] = "| " + lines[0][2:].lstrip()
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:], ""]


def bullets(lines: Sequence[str]) -> list[str]:
    """Lines as a list; one that is indented already stays under the one before."""
    return [line if line.startswith("  - ") else f"- {line}" for line in lines]

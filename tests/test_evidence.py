"""What the claims measured stays, whatever is measured after it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from stillroom import evidence
from stillroom._cards import Card
from stillroom.claim import Rule, compare
from stillroom.errors import UserError
from stillroom.evidence import check_writable, read_evidence, record
from stillroom.reports.generation_figures import lines

CARD = Card(
    "made-up", "Made <up>", "A paper", "Somebody, 2026", "predictors/labels", "Nothing in, nothing out."
)


def entry(name: str, gain: float, date: str) -> dict[str, Any]:
    """A claim's entry as `claim.prove` makes one."""
    scores = {"old": [0.5, 0.6, 0.7, 0.65], "new": [0.5 + gain, 0.61 + gain, 0.69 + gain, 0.665 + gain]}
    found = compare(Rule("new", "old"), scores, higher_is_better=True)
    arms = {
        arm: {
            "method": arm,
            "options": {"gain": gain},
            "scores": s,
            "mean": sum(s) / 4,
            "std": 0.1,
            "seconds": 1.0,
        }
        for arm, s in scores.items()
    }
    return {
        "name": name,
        "says": f"{name} helps.",
        "notes": "",
        "metric": "accuracy",
        "higher_is_better": True,
        "seeds": [0, 1, 2, 3],
        "arms": arms,
        "comparisons": [found],
        "verdict": found["verdict"],
        "task": {"data": "digits"},
        "engine": {"epochs": 2},
        "versions": {"torch": "2"},
        "machine": {"cores": 2},
        "seconds": 12.0,
        "date": date,
        "command": f"stillroom claims made-up --only {name}",
    }


def test_an_entry_is_recorded_whole_with_its_page(tmp_path: Path) -> None:
    first = entry("one", 0.1, "2026-01-01")
    path = record(tmp_path / "deep" / "evidence", CARD, first)
    assert path == tmp_path / "deep" / "evidence" / "made-up.json"
    assert json.loads(path.read_text()) == {
        "system": "made-up",
        "title": "Made <up>",
        "source": "Somebody, 2026",
        "claims": [first],
    }
    page = path.with_suffix(".html").read_text()
    assert "one helps." in page
    assert "Made &lt;up&gt;" in page
    assert read_evidence("made-up", path.parent) == [first]


def test_other_claims_are_left_alone_and_keep_their_order(tmp_path: Path) -> None:
    entries = [entry(name, 0.1, "2026-01-01") for name in ("one", "two", "three")]
    for each in entries:
        record(tmp_path, CARD, each)
    assert read_evidence("made-up", tmp_path) == entries
    record(tmp_path, CARD, entry("two", 0.2, "2026-02-02"))
    found = read_evidence("made-up", tmp_path)
    assert [c["name"] for c in found] == ["one", "two", "three"]
    assert [found[0], found[2]] == [entries[0], entries[2]]


def test_earlier_measurements_of_a_claim_are_kept_in_short(tmp_path: Path) -> None:
    gains = {"2026-01-01": 0.1, "2026-02-02": -0.1, "2026-03-03": 0.0}
    made = [entry("one", gain, date) for date, gain in gains.items()]
    for each in made:
        path = record(tmp_path, CARD, each)
    (found,) = read_evidence("made-up", tmp_path)
    assert {key: value for key, value in found.items() if key != "earlier"} == made[-1]
    assert [e["date"] for e in found["earlier"]] == ["2026-01-01", "2026-02-02"]
    assert [e["verdict"] for e in found["earlier"]] == ["holds", "refuted"]
    for short, whole in zip(found["earlier"], made, strict=False):
        assert {key: short[key] for key in ("seeds", "command", "versions")} == {
            key: whole[key] for key in ("seeds", "command", "versions")
        }
        (row,) = short["comparisons"]
        assert row == {
            key: whole["comparisons"][0][key] for key in ("better", "worse", "mean", "interval", "verdict")
        }
        assert "arms" not in short
    page = path.with_suffix(".html").read_text()
    assert all(date in page for date in gains)


def test_a_claim_s_figures_are_drawn_from_its_own_entry(tmp_path: Path) -> None:
    def draw(entry: Mapping[str, Any]) -> list[dict[str, str]]:
        mean = 100 * entry["arms"]["new"]["mean"]
        svg = lines([("mean", [1.0, 2.0], [50.0, mean])], "x", "y", "rising")
        return [{"title": f"Of {entry['name']}", "caption": f"Ends at {mean:.1f} %.", "svg": svg}]

    class Drawing:
        """All of a claim that is asked for."""

        def __init__(self, name: str) -> None:
            self.name, self.draw = name, draw if name != "two" else None

    claims: Any = [Drawing(name) for name in ("one", "two", "never measured")]
    for name in ("one", "two"):
        path = record(tmp_path, CARD, entry(name, 0.1, "2026-01-01"), claims)
    page = path.with_suffix(".html").read_text()
    assert page.count("Of one") == page.count("Ends at 71.6") == 1
    assert "Of two" not in page
    assert "svg" not in path.read_text()


def test_recording_does_not_change_what_it_is_given(tmp_path: Path) -> None:
    first, second = entry("one", 0.1, "2026-01-01"), entry("one", 0.2, "2026-02-02")
    record(tmp_path, CARD, first)
    record(tmp_path, CARD, second)
    assert second == entry("one", 0.2, "2026-02-02")


def test_a_file_that_is_cut_is_not_written_over(tmp_path: Path) -> None:
    path = record(tmp_path, CARD, entry("one", 0.1, "2026-01-01"))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="made-up.json' is cut short"):
        record(tmp_path, CARD, entry("one", 0.1, "2026-01-01"))
    assert path.stat().st_size == 100


def test_a_system_without_evidence_has_none(tmp_path: Path) -> None:
    assert read_evidence("made-up", tmp_path) == []
    assert read_evidence("made-up", tmp_path / "nowhere") == []


def test_a_checkout_s_evidence_goes_before_the_package_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence, "CHECKOUT", tmp_path / "checkout")
    monkeypatch.setattr(evidence, "INSTALLED", tmp_path / "installed")
    assert read_evidence("made-up") == []
    record(tmp_path / "installed", CARD, entry("old", 0.1, "2026-01-01"))
    assert [c["name"] for c in read_evidence("made-up")] == ["old"]
    record(tmp_path / "checkout", CARD, entry("new", 0.1, "2026-01-01"))
    assert [c["name"] for c in read_evidence("made-up")] == ["new"]


def test_a_folder_is_tried_before_anything_is_measured(tmp_path: Path) -> None:
    check_writable(tmp_path / "deep" / "evidence")
    assert list((tmp_path / "deep" / "evidence").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="^--evidence '.*file/x' cannot be written .*: pass another folder$"):
        check_writable(tmp_path / "file" / "x")

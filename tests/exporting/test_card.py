"""What every card says, read from a run's result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from stillroom.exporting.card import Card, limits
from stillroom.run import Run

ABOUT: dict[str, Any] = {
    "method": "nkd",
    "system": "nkd-uskd",
    "source": "Yang et al., ICCV 2023",
    "options": {"gamma": 0.75},
    "seed": 3,
    "metric": "accuracy",
    "higher_is_better": True,
    "command": "stillroom run nkd --seed 3",
    "verdict": {
        "kind": "helped",
        "text": "nkd helped.",
        "difference": 0.03,
        "interval": [0.01, 0.05],
    },
    "arms": {
        "teacher": {"role": "teacher", "test": {"accuracy": 0.97, "samples": 900}, "cost": {}},
        "plain": {"role": "baseline", "test": {"accuracy": 0.92, "samples": 900}, "cost": {}},
        "nkd": {
            "role": "student",
            "test": {"accuracy": 0.95, "samples": 900},
            "cost": {"latency_1": 1e-5},
        },
    },
    "costs": {"teacher training": 12.5, "bytes kept": 4000},
    "data": {
        "name": "digits",
        "teacher": "mlp:256",
        "student sees": 200,
        "fingerprint": "abc123",
        "splits": {"seed": 0, "test": {"samples": 900, "origin": "cut from data 'digits'"}},
    },
    "machine": {"processor": "x86_64", "threads": 1},
    "versions": {"torch": "2.14.1"},
}
CARD = Card(title="mlp:12 distilled", front={"pipeline_tag": "image-classification"}, code=["import this"])


def but(**verdict: Any) -> dict[str, Any]:
    return {**ABOUT, "verdict": {**ABOUT["verdict"], **verdict}}


def section(text: str, heading: str) -> str:
    return text.split(f"## {heading}\n")[1].split("\n## ")[0]


def test_it_says_how_the_product_was_made() -> None:
    said = section(CARD.text(ABOUT), "How it was made")
    for line in (
        "- teacher: mlp:256",
        "- method: nkd (Yang et al., ICCV 2023), options {'gamma': 0.75}",
        "- data: digits, 200 training samples seen by the student",
        "  - test: 900 samples, cut from data 'digits'",
        "- fingerprint of the data: abc123",
        "- seed 3; one run says nothing about the spread over seeds",
        "- made by: `stillroom run nkd --seed 3`",
        "- versions: torch 2.14.1",
    ):
        assert line in said.splitlines(), line


def test_it_says_what_the_run_measured_with_its_interval() -> None:
    said = section(CARD.text(ABOUT), "Evidence")
    assert (
        "This run: helped, +3.0 points of accuracy on the test split "
        "(95 % interval +1.0 to +5.0 points; one seed)." in said
    )
    bare = section(CARD.text(but(interval=None)), "Evidence")
    assert "+3.0 points of accuracy on the test split (one seed, no interval)." in bare


def test_it_repeats_the_verdicts_on_the_system_s_claims_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    claim = {
        "name": "nkd-digits",
        "says": "It helps.",
        "metric": "accuracy",
        "seeds": [0, 1, 2, 3],
        "verdict": "refuted",
        "comparisons": [
            {"better": "nkd", "worse": "plain", "headline": True, "mean": -0.02, "interval": [-0.03, -0.01]},
            {"better": "nkd", "worse": "kd", "headline": False, "mean": 0.01, "interval": [0.0, 0.02]},
        ],
    }
    monkeypatch.setattr("stillroom.exporting.card.read_evidence", lambda system: [claim])
    said = section(CARD.text(ABOUT), "Evidence")
    assert "- **refuted** over 4 seeds: It helps." in said
    assert "  - nkd against plain, accuracy: -2.0 points (95 % interval -3.0 to -1.0 points)" in said
    assert "kd, accuracy" not in said.replace("nkd against plain, accuracy", "")
    monkeypatch.setattr("stillroom.exporting.card.read_evidence", lambda system: [])
    assert "No claim of this system's has been measured." in CARD.text(ABOUT)


def test_it_says_what_was_not_tested() -> None:
    said = "\n".join(limits(ABOUT))
    assert "Scored on 900 test samples of digits alone." in said
    assert "were not tested" in said
    assert "Differences smaller than about 2.0 points cannot be told from chance" in said
    assert "The student is behind its teacher on the test split (accuracy 95.0 % against 97.0 %)." in said
    assert "Times are of one machine (x86_64, 1 thread(s))" in said
    assert "does not show that distilling helped" not in said


@pytest.mark.parametrize("kind", ["hurt", "no clear difference"])
def test_it_says_so_where_distilling_did_not_help(kind: str) -> None:
    assert any("does not show that distilling helped" in line for line in limits(but(kind=kind)))


def test_lower_is_better_turns_behind_round() -> None:
    about = {**ABOUT, "higher_is_better": False}
    assert any("not behind its teacher" in line for line in limits(about))


def test_it_says_what_distilling_cost() -> None:
    said = section(CARD.text(ABOUT), "What distilling cost").replace("\u202f", " ").replace("\xa0", " ")
    assert "| teacher training | 12.5 s |" in said
    assert "| bytes kept | 4 kB |" in said


def test_the_hub_reads_its_front_matter() -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")
    card = huggingface_hub.ModelCard(CARD.text(ABOUT))
    assert card.data.library_name == "stillroom"
    (found,) = card.data.eval_results
    assert (found.task_type, found.dataset_name, found.dataset_split) == (
        "image-classification",
        "digits",
        "test",
    )
    assert (found.metric_type, found.metric_value) == ("accuracy", 0.95)


def test_titles_with_signs_of_yaml_stay_whole() -> None:
    text = Card(title="x: [y] #z", front={"pretty_name": "a: 'b' #c"}).text(ABOUT)
    assert yaml.safe_load(text.split("---")[1])["pretty_name"] == "a: 'b' #c"


def test_every_quick_run_leaves_a_card_that_the_hub_reads(classified: Run) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")
    path = Path(classified.path / "student" / "README.md")
    card = huggingface_hub.ModelCard.load(path)
    result = classified.result
    assert card.data.eval_results[0].metric_value == pytest.approx(
        result["arms"]["nkd"]["test"]["accuracy"], abs=1e-6
    )
    assert result["data"]["fingerprint"] in path.read_text()

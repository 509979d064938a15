"""The page of a system's claims."""

from __future__ import annotations

import pytest

from stillroom.errors import UserError
from stillroom.reports.claim_page import claim_page, write_claim_page
from stillroom.reports.generation_figures import lines


def test_one_claim_has_its_verdict_first(evidence, tmp_path, read_page):
    path = write_claim_page(evidence, tmp_path / "nkd-uskd.html")
    assert path == tmp_path / "nkd-uskd.html"
    page = read_page(path)
    page.assert_sound()
    order = ["The claim holds.", evidence["claims"][0]["says"], "Arms", "Comparisons", "Options"]
    found = [page.texts.index(text) for text in [*order, "Versions and machine", "Command"]]
    assert found == sorted(found)
    assert "<table" not in page.source[: page.source.index("<h1>")]
    assert page.all("header") == [{"class": "better"}]


def test_numbers_are_those_of_the_evidence(evidence, tmp_path, read_page):
    claim = evidence["claims"][0]
    claim["arms"]["nkd"] |= {"scores": [0.91, 0.95], "mean": 0.93, "std": 0.0283}
    claim["comparisons"][0] |= {"mean": 0.0207, "interval": [0.0112, 0.0301], "wins": 9, "ties": 1}
    page = read_page(write_claim_page(evidence, tmp_path / "page.html"))
    at = page.texts.index("time a run")
    assert page.texts[at + 1 : at + 7] == ["nkd", "93.0 %", "± 2.8", "91.0 %", "95.0 %", "31.2 s"]
    at = page.texts.index("verdict")
    assert page.texts[at + 1 : at + 6] == ["nkd over kd", "+2.1", "+1.1 to +3.0", "9 of 10, 1 tie", "holds"]
    assert "nkd over plain (beside the claim)" in page.texts
    finding = "nkd over kd: +2.1 points (95 % interval +1.1 to +3.0 points), ahead in 9 of 10, 1 tie seeds."
    assert finding in page.texts


def test_a_metric_that_is_no_share_is_not_in_percent(evidence, tmp_path, read_page):
    claim = evidence["claims"][0] | {"metric": "sliced_wasserstein", "higher_is_better": False}
    page = read_page(write_claim_page({"system": "x", "claims": [claim]}, tmp_path / "page.html"))
    page.assert_sound()
    assert any(
        text.startswith("Sliced wasserstein, lower is better, on the test split") for text in page.texts
    )
    assert "points" not in " ".join(page.texts)


@pytest.mark.parametrize(
    ("verdict", "headline", "tone"),
    [("inconclusive", "Inconclusive.", "unclear"), ("refuted", "Refuted.", "worse")],
)
def test_other_verdicts_are_said_as_loudly(evidence, tmp_path, read_page, verdict, headline, tone):
    evidence["claims"][0]["verdict"] = verdict
    page = read_page(write_claim_page(evidence, tmp_path / "page.html"))
    assert headline in page.texts
    assert page.all("header") == [{"class": tone}]


def test_several_claims_are_counted_and_linked(evidence_of_three, tmp_path, read_page):
    page = read_page(write_claim_page(evidence_of_three, tmp_path / "page.html"))
    page.assert_sound()
    assert "1 of 3 claims holds." in page.texts
    assert [link["href"] for link in page.all("a")] == ["#claim-1", "#claim-2", "#claim-3"]
    for claim in evidence_of_three["claims"]:
        claim["verdict"] = "holds"
    assert (
        "All 3 claims hold." in read_page(write_claim_page(evidence_of_three, tmp_path / "page.html")).texts
    )


def test_too_few_seeds_and_nothing_at_all(evidence, tmp_path, read_page):
    comparison = evidence["claims"][0]["comparisons"][0]
    comparison |= {"differences": [0.01, 0.01], "interval": None, "verdict": "inconclusive"}
    page = read_page(write_claim_page(evidence, tmp_path / "page.html"))
    page.assert_sound()
    assert "none, too few seeds" in page.texts
    empty = read_page(write_claim_page({"system": "nkd-uskd", "claims": []}, tmp_path / "page.html"))
    assert "Nothing measured yet." in empty.texts


def test_earlier_measurements_stay_in_sight(evidence, tmp_path, read_page):
    claim = evidence["claims"][0]
    before = {"better": "nkd", "worse": "kd", "mean": -0.004, "interval": None, "verdict": "inconclusive"}
    claim["earlier"] = [
        {"date": "2026-10-01", "seeds": [0, 1], "verdict": "inconclusive", "comparisons": [before]}
    ]
    page = read_page(write_claim_page(evidence, tmp_path / "page.html"))
    at = page.texts.index("2026-10-01")
    assert page.texts[at + 1 : at + 4] == ["2", "inconclusive", "nkd over kd −0.4 points"]


def test_a_claim_is_escaped_and_gives_the_same_bytes(evidence, tmp_path, read_page):
    evil = "<img src=x onerror=alert(1)> & $a$"
    claim = evidence["claims"][0]
    claim |= {"says": evil, "name": evil, "command": evil, "notes": evil}
    claim["arms"][evil] = claim["arms"].pop("kd")
    claim["comparisons"][0]["worse"] = evil
    first = write_claim_page(evidence, tmp_path / "page.html").read_bytes()
    read_page(tmp_path / "page.html").assert_sound()
    assert write_claim_page(evidence, tmp_path / "other.html").read_bytes() == first


def test_what_a_claim_draws_stands_on_its_page_and_nothing_strange_does(
    evidence_of_three, tmp_path, read_page
):
    svg = lines([("mean", [0.05, 0.5], [60.0, 90.0])], "kept", "accuracy, %", "accuracy by share")
    name = evidence_of_three["claims"][1]["name"]
    figure = {"title": "Accuracy by share", "caption": "Of all seeds.", "svg": svg}
    page = read_page(write_claim_page(evidence_of_three, tmp_path / "page.html", {name: [figure]}))
    page.assert_sound()
    at = [index for index, text in enumerate(page.texts) if text == "Accuracy by share"]
    assert len(at) == 1
    headings = [i for i, text in enumerate(page.texts) if text == "Options"]
    assert headings[0] < at[0] < headings[1], "beside its own claim"
    with pytest.raises(UserError, match="figure 'x' holds 'script', which no page may"):
        claim_page(evidence_of_three, {name: [{"title": "x", "svg": "<svg><script>1</script></svg>"}]})

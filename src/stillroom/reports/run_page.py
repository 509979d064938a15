"""The page of one run: did distilling help, by how much, at what cost, and how was it done."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stillroom.checkpoint import read_json, write_text
from stillroom.reports import class_section, cost_section, formats
from stillroom.reports.arms import Arm, Arms, read_arms, scalars
from stillroom.reports.figures import (
    Difference,
    Series,
    Tone,
    learning_curves,
    paired_differences,
    reliability_diagram,
)
from stillroom.reports.formats import amount, engineering, known, ratio
from stillroom.reports.page import plates, render

HEADLINES = {
    "helped": "Distilling helped.",
    "hurt": "Distilling hurt.",
    "no clear difference": "No clear difference.",
    "not compared": "Nothing to compare with.",
}
TONES: dict[str, Tone] = {"helped": "better", "hurt": "worse"}

MEASURES = {
    "top_5": "top-5 accuracy",
    "expected_calibration_error": "calibration error",
    "negative_log_likelihood": "negative log-likelihood",
    "brier": "Brier score",
    "area_under_risk_coverage": "risk-coverage area",
    "excess_area_under_risk_coverage": "excess of that area",
}
COSTS = {
    "parameters": ("parameters", ""),
    "multiply_adds": ("multiply-adds", ""),
    "evaluations": ("network evaluations a sample", ""),
    "seconds_per_sample": ("time a sample, in batches of 64", "s"),
    "latency_1": ("latency, one sample", "s"),
    "latency_64": ("latency, batch of 64", "s"),
    "file_bytes": ("file size", "B"),
}


def write_run_page(folder: Path) -> Path:
    """Write report.html into a finished run's folder, whole or not at all; returns its path.

    Raises UserError where the folder holds no finished run, or a figure that is not one of ours.
    """
    result, config = read_json(folder / "result.json"), read_json(folder / "config.json")
    arms = read_arms(result, folder)
    values = {
        "run": result,
        "headline": HEADLINES.get(result["verdict"]["kind"], result["verdict"]["kind"]),
        "tone": TONES.get(result["verdict"]["kind"], "unclear"),
        "strip": _strip(result, arms),
        "arms": arms.all,
        "measures": _measures(arms, result["metric"]),
        "samples": arms.student.test.get("samples"),
        "compared": arms.teacher is not None and arms.teacher is not arms.student,
        "costs": cost_section.rows(result["costs"]),
        "summary": cost_section.summary(result["costs"], arms),
        "curves": _curves(arms, result["metric"]),
        "per_class": class_section.per_class(arms, result["data"]),
        "confusion": class_section.confusion(arms, result["data"]),
        "calibration": _calibration(arms),
        "figures": plates(result.get("figures") or []),
        "options": {key: formats.flat({key: value}) for key, value in config.items()},
        "data": formats.flat({key: value for key, value in result["data"].items() if key != "classes"}),
        "classes": result["data"].get("classes") or [],
        "versions": formats.flat(result["versions"]),
        "machine": formats.flat(result["machine"]),
        "finished": result["finished"].replace("T", " ").replace("+00:00", " UTC"),
    }
    path = folder / "report.html"
    write_text(path, render("run.html.j2", values))
    return path


def _strip(result: Mapping[str, Any], arms: Arms) -> str | None:
    """The difference to the arm without distilling and its interval on one line."""
    verdict, metric = result["verdict"], result["metric"]
    if not known(verdict["difference"]):
        return None
    tone = TONES.get(verdict["kind"], "unclear")
    row = Difference("", tone, (), verdict["difference"], verdict["interval"])
    return paired_differences([row], metric, f"{formats.spoken(metric)}, distilled minus {_rival(arms)}")


def _rival(arms: Arms) -> str:
    return "plain" if arms.baseline is None else arms.baseline.label.removesuffix(" student")


def _measures(arms: Arms, metric: str) -> list[dict[str, Any]]:
    """The rows of the table: label, one text an arm, and the student's ratio to the teacher."""
    tests = [scalars(arm.test) for arm in arms.all]
    names = dict.fromkeys([metric, *MEASURES, *(key for test in tests for key in test)])
    rows = []
    for name in names:
        if name != "samples" and any(name in test for test in tests):
            texts = [amount(name, test.get(name)) for test in tests]
            rows.append(
                {"label": MEASURES.get(name, formats.spoken(name)), "texts": texts, "key": name, "of": "test"}
            )
    for name, (label, unit) in COSTS.items():
        if any(name in arm.cost for arm in arms.all):
            texts = [engineering(arm.cost.get(name), unit) for arm in arms.all]
            rows.append({"label": label, "texts": texts, "key": name, "of": "cost"})
    for row in rows:
        student, teacher = (_value(arm, row) for arm in (arms.student, arms.teacher))
        row["ratio"] = ratio(student, teacher)
    return rows


def _value(arm: Arm | None, row: Mapping[str, Any]) -> float | None:
    if arm is None:
        return None
    return (arm.test if row["of"] == "test" else arm.cost).get(row["key"])


def _curves(arms: Arms, metric: str) -> list[tuple[str, str]]:
    """(caption, SVG) of the validation metric and of the training loss over epochs, where there are any."""
    curves = [arm.validation_curve(metric) for arm in arms.all]
    levels = [arm.level(metric) for arm, curve in zip(arms.all, curves, strict=True) if not curve.points()]
    losses = [arm.loss_curve() for arm in arms.all]
    figures = []
    if any(curve.points() for curve in curves):
        caption = f"{formats.spoken(metric).capitalize()} on the validation split."
        figures.append((caption, learning_curves(curves, metric, levels)))
    if any(loss.points() for loss in losses):
        caption = "Training loss. Every arm minimises its own, so only the shapes compare."
        figures.append((caption, learning_curves(losses, "loss", small=True)))
    return figures


def _calibration(arms: Arms) -> str | None:
    diagrams = [(arm, arm.test["reliability"]) for arm in arms.all if arm.test.get("reliability")]
    series = [Series(arm.label, arm.look, d["accuracy"], d["confidence"], d["count"]) for arm, d in diagrams]
    return reliability_diagram(series) if any(one.points() for one in series) else None

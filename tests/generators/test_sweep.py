"""The sweep over guidance scales: what it compares, what a flat student looks like, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from stillroom.engine import Engine, Watcher
from stillroom.errors import UserError
from stillroom.generators.parts.sampler import FixedGuidance, Sampler
from stillroom.generators.sweep import GuidanceSweep
from stillroom.generators.undistilled import FewSteps
from stillroom.runtime import Runtime
from stillroom.teaching import teach


def taught(**changes: Any) -> GuidanceSweep:
    options: dict[str, Any] = {
        "process": "cosine",
        "solver": "ddim",
        "spacing": "uniform",
        "scales": (1.0, 2.0, 4.0),
    }
    task = GuidanceSweep().quick().but(**(options | changes))
    teach(task, Engine(), None, Watcher)
    return task


@pytest.mark.parametrize("data", ["digits", "eight-gaussians"])
@pytest.mark.parametrize("against", ["distance", "mse"])
def test_the_reference_itself_is_not_off(data: str, against: str) -> None:
    task = taught(data=data, against=against)
    teacher = task.make_teacher().module
    assert isinstance(teacher, Sampler)
    found = task.score(teacher.but(steps=task.reference_steps), "test", Runtime())
    other = task.score(teacher.but(steps=1), "test", Runtime())
    assert found[task.metric] == pytest.approx(0, abs=1e-6)
    assert other[task.metric] > 1e-3
    assert len(other["per_sample"]) == 10
    if against == "mse":
        assert sum(other["per_sample"]) / 10 == pytest.approx(other[task.metric])
    assert task.score(teacher.but(steps=1), "validation", Runtime()).keys() == {task.metric}


def test_only_scales_from_two_on_count_and_each_is_told() -> None:
    task = taught(against="mse")
    product = FewSteps(steps=2).run(task, None).product  # type: ignore[arg-type]
    found = task.score(product, "test", Runtime())
    assert found["reference_mse"] == pytest.approx((found["mse at 2"] + found["mse at 4"]) / 2)
    assert found["mse at 1"] != found["mse at 2"]
    assert math.isfinite(found["distance at 4"])
    assert math.isfinite(found["frechet"])
    titles = [figure["title"] for figure in task.figures({"few-steps": product}, Runtime())]
    assert "Guidance: paired error" in titles


def test_a_sampler_of_fixed_guidance_makes_the_same_at_every_scale() -> None:
    task = taught()
    product = FewSteps(steps=2, guidance=1.0).run(task, None).product  # type: ignore[arg-type]
    assert isinstance(product, FixedGuidance)
    noise, condition = task.noise("test", torch.device("cpu"))
    with torch.no_grad():
        assert torch.equal(product.at(4.0)(noise, condition), product(noise, condition))
        asked = Sampler(product.denoiser, product.plan).at(4.0)
        assert not torch.equal(asked(noise, condition), product(noise, condition))
    assert (product.at(4.0).evaluations, asked.evaluations) == (2, 4)


def test_the_task_does_not_make_another_teacher() -> None:
    """Scores of its own do not train one twice: the kept teacher is that of the plain task."""
    sweep, plain = taught(), taught(scales=(2.0,), against="mse", reference_steps=9)
    jobs = [task.teacher_job(Engine()) for task in (sweep, plain)]
    assert jobs[0] is not None
    assert jobs[1] is not None
    assert jobs[0].task.__dict__ == jobs[1].task.__dict__


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"scales": (2.0, 1.0)}, "--task.scales is 2 1: pass rising scales of 1 or more"),
        ({"scales": (0.5, 2.0)}, "--task.scales is 0.5 2: pass rising"),
        ({"scales": ()}, "--task.scales is empty"),
        ({"scales": (1.0,)}, "--task.judged-from is 2 and the scales are 1: pass less"),
        ({"reference_steps": 0}, "--task.reference-steps is 0"),
        ({"sweep_samples": 10}, "--task.sweep-samples is 10"),
        ({"conditional": False}, "the teacher is unconditional: pass data with labels"),
    ],
)
def test_what_cannot_be_swept_is_one_line(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line):
        GuidanceSweep().quick().but(**({"scales": (1.0, 2.0)} | changes)).check(0, teacher=True)

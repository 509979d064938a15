"""The regression of a guided teacher: its start, its target and its gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from stillroom.engine import Engine, Watcher
from stillroom.errors import UserError
from stillroom.generators.generation import Generation
from stillroom.generators.parts.guidance import GuidanceRegression, clean_error
from stillroom.generators.parts.process import NAMED
from stillroom.teaching import teach
from toys import batch_of, updates_of


def bound(process: str = "cosine", **options: Any) -> GuidanceRegression:
    task = Generation().quick().but(process=process, solver="ddim", spacing="uniform")
    teach(task, Engine(), None, Watcher)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for (
            parameter
        ) in task.make_teacher().module.parameters():  # a teacher of 30 steps hardly knows its labels
            parameter.add_(0.05 * torch.randn_like(parameter))
    method = GuidanceRegression(**options)
    method.bind(task, 0)
    return method


def batch(n: int = 6) -> Any:
    x = torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return batch_of(x, torch.arange(n))


@pytest.mark.parametrize("process", ["cosine", "edm", "flow"])
def test_at_the_start_the_student_is_the_conditional_teacher_at_every_scale(process: str) -> None:
    method = bound(process)
    x, c = batch().x, torch.arange(6)
    t = torch.linspace(0.1, 0.9, 6) * method.student.start
    with torch.no_grad():
        known = method.reference.denoiser(x, t, c)
        for w in (1.0, 2.5, 4.0):
            assert torch.equal(method.student(x, t, c, torch.full((6,), w)), known)


def test_at_scale_one_there_is_nothing_to_learn_and_above_there_is() -> None:
    near, far = bound(guidance_high=1.0 + 1e-6), bound()
    assert updates_of(near, batch())[0].loss < 1e-6
    loss = updates_of(far, batch())[0].loss
    assert loss > 1e-3
    loss.backward()
    assert all(p.grad is None for p in far.reference.denoiser.parameters())
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in far.student.parameters())


def test_the_weight_is_the_signal_to_noise_ratio_but_at_least_one() -> None:
    process, t = NAMED["cosine"], torch.tensor([0.25, 0.5, 0.9], dtype=torch.float64)
    said, wanted = torch.full((3, 1, 2), 3.0), torch.full((3, 1, 2), 1.0)
    found = clean_error(process, t, said.double(), wanted.double())
    assert torch.allclose(found, 8 * torch.tensor([(1 + 2**0.5) ** 2, 1.0, 1.0], dtype=torch.float64))


def test_ranges_are_checked() -> None:
    with pytest.raises(UserError, match="--method.guidance-low is 0.5"):
        GuidanceRegression(guidance_low=0.5).check()
    with pytest.raises(UserError, match="--method.guidance-high is 1, not above guidance-low 1"):
        GuidanceRegression(guidance_high=1.0).check()
    task = Generation(conditional=False).quick()
    teach(task, Engine(), None, Watcher)
    with pytest.raises(UserError, match="the teacher is unconditional"):
        GuidanceRegression().bind(task, 0)

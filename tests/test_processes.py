"""One process and two do the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from processes import in_two_processes, of_tokens, whole_run
from stillroom.engine import Engine
from stillroom.run import Run
from toys import Centred, Fit, GradientPenalty, Remembering, Toy, apart, weights_of

CASES = [
    f"{m.name}:{n}:{k}"
    for m in (Fit, Centred, Remembering, GradientPenalty)
    for n in (37, 33)
    for k in (1, 3)
]
"""method : samples : micro-batches. 37 leaves a last batch of 5 (3 and 2: one process has a micro-batch more), 33 one
of 1: nothing for the second process."""


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> dict[str, Any]:
    """All that two processes do here, in one launch."""
    words = ["+toys", *CASES, "+whole_run", "two-moons", "+seen", "ids", "+tokens", "tokens:1", "tokens:2"]
    return in_two_processes("several", words, tmp_path_factory.mktemp("toys"), shared_cache)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_end_with_the_weights_of_one(case: str, together: dict[str, Any]) -> None:
    kind, samples, _ = case.split(":")
    method = {m.name: m for m in (Fit, Centred, Remembering, GradientPenalty)}[kind]()
    Engine(epochs=3, batch_size=8).fit(method, Toy(samples=int(samples)), 0)
    assert apart(weights_of(method.players()["student"]), together[case]) < 1e-6


@pytest.mark.parametrize("case", ["tokens:1", "tokens:2"])
def test_a_memory_by_token_is_the_same_on_two_processes(case: str, together: dict[str, Any]) -> None:
    assert apart(of_tokens(1), together[case]) < 1e-5


def test_a_whole_run_of_a_generator_comes_to_its_end(tmp_path: Path, together: dict[str, Any]) -> None:
    """Scores, costs and pictures are made together or alone, never half of each: the last is the report."""
    whole_run(["two-moons"], tmp_path)
    one = Run(tmp_path / "two-moons").student()
    assert apart(weights_of(one), together["two-moons"]) < 1e-5


def test_samples_are_shared_out_without_loss_or_repetition(together: dict[str, Any]) -> None:
    found = together["ids"]
    assert sorted(found["ids"].tolist()) == list(range(37))
    assert 0 < len(found["own"]) < 37
    assert torch.equal(found["ids"][: len(found["own"])], found["own"])

"""Numbers that are not finite: the run stops at the first, nothing of them is saved, and a mended run goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import stillroom
from stillroom import checkpoint
from stillroom.engine import Engine
from stillroom.errors import NonFinite, UserError
from stillroom.method import Batch
from stillroom.optim import all_finite
from toys import Fit, Toy, same, weights_of

ENGINE = Engine(epochs=6, batch_size=8, checkpoint_every=5, log_every=4)
"""30 steps; the loss is read every four, and saved every five."""


def spoil_x(batch: Batch) -> None:
    batch.x[0, 0] = float("nan")


def spoil_all_but_a_little(batch: Batch) -> None:
    batch.x[:] = float("inf")


@pytest.mark.parametrize("spoil", [spoil_x, spoil_all_but_a_little])
@pytest.mark.parametrize("at", [0, 7, 10, 29])
def test_a_spoilt_batch_stops_the_run_at_its_step(
    spoil: Callable[[Batch], None], at: int, tmp_path: Path
) -> None:
    def hook(batch: Batch) -> None:
        if batch.clock.step == at:
            batch.x = batch.x.clone()
            spoil(batch)

    good = tmp_path / "checkpoints" / f"step-{at // 5 * 5:08d}" if at >= 5 else None
    with pytest.raises(NonFinite) as stop:
        ENGINE.fit(Fit(hook=hook), Toy(), 0, tmp_path)
    line = str(stop.value)
    assert len(line.splitlines()) == 1
    assert f"at step {at} of method 'fit'" in line
    assert (f"the last good checkpoint is '{good}'" if good else "there is no checkpoint yet") in line
    for file in tmp_path.rglob("*.safetensors"):
        assert all_finite(load_file(file).values()), file
    for text in tmp_path.rglob("*.json*"):
        assert "NaN" not in text.read_text() and "Infinity" not in text.read_text()
    mended, undisturbed = Fit(), Fit()
    ENGINE.fit(mended, Toy(), 0, tmp_path)
    ENGINE.fit(undisturbed, Toy(), 0)
    assert same(weights_of(mended.student), weights_of(undisturbed.student))


class Normed(nn.Sequential):
    """A batch norm, whose running variance overflows long before the loss does."""

    def __init__(self) -> None:
        super().__init__(nn.BatchNorm1d(4), nn.Linear(4, 3))
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))


def test_a_running_statistic_that_overflows_is_not_saved(tmp_path: Path) -> None:
    """The loss of the batch stays finite; in use the network would answer alike to everything."""

    def hook(batch: Batch) -> None:
        if batch.clock.step == 12:
            batch.x = batch.x * 1e25

    with pytest.raises(
        NonFinite, match=r"a weight of player 'student' is not finite at step 15 .*step-00000010"
    ):
        ENGINE.fit(Fit(hook=hook), Toy().using(student=Normed), 0, tmp_path)
    assert [c.name[-2:] for c in checkpoint.listing(tmp_path / "checkpoints")] == ["05", "10"]


def test_a_mask_of_infinities_is_no_fault(tmp_path: Path) -> None:
    ENGINE.fit(Fit(), Toy().using(student=Normed), 0, tmp_path)


def images() -> tuple[Tensor, Tensor]:
    return torch.randn(60, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 3


def spoilt(which: str, value: float) -> tuple[Tensor, Tensor]:
    x, y = images()
    (x if which == "x" else y)[5] = value
    return x, y


def broken_teacher() -> nn.Module:
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    nn.init.constant_(network[1].weight, float("nan"))
    return network


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            {"data": spoilt("x", float("nan"))},
            "sample 5 of data 'tensors' has NaN or infinite pixels: remove or",
        ),
        (
            {"data": spoilt("x", float("inf"))},
            "sample 5 of data 'tensors' has NaN or infinite pixels: remove or",
        ),
        (
            {"data": spoilt("y", -1)},
            "label -1 of sample 5 of split 'train' of data 'tensors' is out of range",
        ),
        ({"data": images(), "teacher": broken_teacher()}, "not finite"),
    ],
    ids=["nan", "inf", "label", "teacher"],
)
def test_what_a_user_hands_in(given: dict[str, Any], says: str, tmp_path: Path) -> None:
    """Data are refused before training; a teacher that answers NaN at the first number of it that is needed."""
    parts = {"teacher": nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), "student": "mlp:4", **given}
    with pytest.raises(UserError, match=says) as stop:
        stillroom.distill(**parts, method="nkd", epochs=2, out=tmp_path / "run")
    assert len(str(stop.value).splitlines()) == 1
    assert not (tmp_path / "run" / "result.json").exists()

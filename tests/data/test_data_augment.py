"""Augmentation presets: what they may do to an image, and what they may not."""

from __future__ import annotations

import random
import sys
import warnings
from dataclasses import dataclass

import pytest
import torch

from stillroom.data.augment import PRESETS, augmentation, warn_if_mirrored
from stillroom.data.source import TensorSource
from stillroom.engine import Engine
from stillroom.errors import UserError
from stillroom.method import Batch
from stillroom.plan import view_of
from toys import Fit, Toy

SHAPE = (3, 16, 24)
X = torch.randint(256, (6, *SHAPE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def views(name: str, x: torch.Tensor = X, count: int = 20) -> torch.Tensor:
    source = TensorSource(x, augment=augmentation(name, tuple(x.shape[1:])))
    return torch.stack([source.fetch(torch.arange(len(x)), view)[0] for view in range(count)])


def darker(image: torch.Tensor) -> torch.Tensor:
    """A user's own, which draws from torch's generator and from random's."""
    return (image.float() / 255) * torch.rand(1) * random.random()


@pytest.mark.parametrize("name", ["crop", "crop-flip", "trivial", darker])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_what_training_saw_is_replayed_one_sample_at_a_time(name, accumulate: int) -> None:
    pytest.importorskip("torchvision")
    x = torch.randint(256, (20, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    source = TensorSource(x, torch.arange(20) % 3, augmentation(name, (3, 8, 8)), (0.5,) * 3, (0.2,) * 3)
    seen: list[Batch] = []

    @dataclass(eq=False)
    class Pictures(Toy):
        def train(self) -> TensorSource:
            return source

        def make_student(self, seed: int) -> torch.nn.Module:
            return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3))

        def score(self, product, split, runtime) -> dict[str, float]:
            return {"accuracy": 0.0}

    Engine(epochs=2, batch_size=8, accumulate=accumulate).fit(Fit(hook=seen.append), Pictures(), 7)
    assert sum(len(batch) for batch in seen) == 40
    for batch in reversed(seen):
        for image, i in zip(batch.x, batch.index, strict=True):
            torch.rand(3)
            alone, _ = source.fetch(i[None], view_of(7, batch.clock.epoch))
            assert torch.equal(alone[0], image)


def test_none_and_callables() -> None:
    assert augmentation("none", SHAPE) is None
    assert augmentation(torch.flip, SHAPE) is torch.flip


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "none"])
@pytest.mark.parametrize("shape", [(3, 16, 24), (1, 8, 8), (1, 7, 7)])
def test_presets_keep_shape_and_range(name: str, shape: tuple[int, int, int]) -> None:
    pytest.importorskip("torchvision")
    x = torch.randint(256, (4, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    for pixels in (x, x.float() / 255):
        made = views(name, pixels, count=4)
        assert made.shape == (4, 4, *shape) and made.min() >= 0 and made.max() <= 1


def test_crop_shifts_by_at_most_an_eighth_without_mirroring() -> None:
    pytest.importorskip("torchvision")
    ramp = torch.arange(24.0).expand(1, 3, 16, 24) / 255
    made = views("crop", ramp, 40)[:, 0, 0] * 255
    inside = made[:, :, 3:-3]
    shift = inside - torch.arange(3.0, 21.0)
    assert (shift == shift[:, :1, :1]).all()  # the middle is only moved sideways: no flip
    assert set(shift[:, 0, 0].round().tolist()) == {-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0}
    assert made.min() >= 0 and (made[:, :, 0] <= 3).all()  # the border is a reflection, not black


def test_crop_flip_mirrors_about_half() -> None:
    pytest.importorskip("torchvision")
    ramp = torch.arange(24.0).expand(1, 3, 16, 24) / 255
    slope = views("crop-flip", ramp, 200)[:, 0, 0, 0].diff()[:, 12].sign()
    assert 70 < (slope < 0).sum() < 130


def test_trivial_changes_colours_too() -> None:
    pytest.importorskip("torchvision")
    flat = torch.full((1, 3, 16, 16), 100, dtype=torch.uint8)
    assert (views("crop-flip", flat) == 100 / 255).all()
    assert (views("trivial", flat) != 100 / 255).any()


def test_trivial_refuses_normalised_pixels() -> None:
    pytest.importorskip("torchvision")
    source = TensorSource(torch.full((1, 3, 8, 8), 2.5), augment=augmentation("trivial", (3, 8, 8)))
    with pytest.raises(
        UserError, match=r"^augmentation 'trivial' needs pixels in \[0, 1\], these span 2.5 to 2.5: "
    ):
        source.fetch(torch.tensor([0]), 1)


def test_unknown_name() -> None:
    with pytest.raises(UserError) as error:
        augmentation("mixup", SHAPE)
    expected = "augmentation 'mixup' is unknown: pass --task.augment with none, crop, crop-flip, trivial"
    assert str(error.value) == expected


def test_missing_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision.transforms", None)
    with pytest.raises(UserError) as error:
        augmentation("crop", SHAPE)
    assert str(error.value) == 'augmentation needs torchvision: pip install "stillroom[vision]"'


@pytest.mark.parametrize(
    ("augment", "data", "warned"),
    [
        ("crop-flip", "digits", True),
        ("trivial", "ylecun/MNIST", True),
        ("crop", "digits", False),
        ("crop-flip", "fashion_mnist", False),
        ("crop-flip", "cifar10", False),
        (torch.flip, "digits", False),
    ],
)
def test_mirrored_characters_are_warned_about(augment, data: str, warned: bool) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_if_mirrored(augment, data)
    assert bool(caught) == warned
    if warned:
        assert "mirrored or turned character" in str(caught[0].message)

"""Several views of a sample: a function of (view seed, id, which of them), made of pixels."""

from __future__ import annotations

import math
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from stillroom.data import TensorSource
from stillroom.errors import UserError
from stillroom.predictors.parts.views import Cutout, Each, Jitter, View, Views, to_bytes, weak_and_strong

GENERATOR = torch.Generator().manual_seed(0)
PIXELS = (torch.rand(12, 3, 16, 16, generator=GENERATOR) * 255).to(torch.uint8)
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
KINDS = ["small", "small-flip", "auto", "rand"]


def views(kind: Any, **changes: Any) -> Views:
    source = TensorSource(PIXELS, torch.arange(12) % 3, mean=MEAN, std=STD, **changes)
    return Views(source, weak_and_strong(kind, (3, 16, 16)), MEAN, STD)


@pytest.mark.parametrize("kind", KINDS)
def test_a_view_depends_on_seed_id_and_which_alone(kind: str) -> None:
    source = views(kind)
    x, y = source.fetch(torch.arange(12), 7)
    assert x.shape == (12, 2, 3, 16, 16)
    assert y is not None
    assert y.tolist() == [0, 1, 2] * 4
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    some, _ = source.fetch(torch.tensor([5, 2]), 7)
    assert torch.equal(some, x[[5, 2]])  # to the bit, in whatever company
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(pickle.loads(pickle.dumps(source)).fetch(torch.tensor([3]), 7)[0][0], x[3])
    assert not torch.equal(source.fetch(torch.arange(12), 8)[0], x)
    assert not torch.equal(x[:, 0], x[:, 1])


def test_without_a_view_all_are_the_image_as_it_is() -> None:
    source = views("small")
    x, _ = source.fetch(torch.arange(4), None)
    plain, _ = source.source.fetch(torch.arange(4), None)
    assert torch.equal(x, plain[:, None].expand_as(x))
    assert not source.fixed
    part = source.subset(torch.tensor([4, 9]))
    assert torch.equal(
        part.fetch(torch.tensor([1]), None)[0][0, 0], source.fetch(torch.tensor([9]), None)[0][0, 0]
    )
    assert part.labels is not None
    assert part.labels.tolist() == [1, 0]
    assert len(part) == 2


def test_views_are_made_of_pixels_and_normalised_afterwards() -> None:
    """A shifted image has black, 0, where it came in, not the mean."""
    seen: list[Tensor] = []

    def look(x: Tensor, seeds: Any) -> Tensor:
        seen.append(x)
        return torch.zeros_like(x)

    source = Views(views("small").source, [look], MEAN, STD)
    x, _ = source.fetch(torch.arange(12), 1)
    torch.testing.assert_close(seen[0], PIXELS / 255, atol=1e-6, rtol=0)
    black = -torch.tensor(MEAN) / torch.tensor(STD)
    torch.testing.assert_close(x[0, 0, :, 3, 3], black)


def test_what_the_source_draws_itself_is_drawn_for_each_view() -> None:
    def noisy(image: Tensor) -> Tensor:
        return image / 255 + torch.rand(())

    same = [lambda x, seeds: x] * 2
    source = Views(TensorSource(PIXELS, augment=noisy, mean=MEAN, std=STD), same, MEAN, STD)
    x, _ = source.fetch(torch.arange(3), 1)
    assert not torch.allclose(x[:, 0], x[:, 1])
    assert torch.equal(x, source.fetch(torch.arange(3), 1)[0])


def test_a_shift_moves_whole_pixels_and_reaches_its_largest() -> None:
    x = torch.zeros(400, 1, 9, 9)
    x[:, :, 4, 4] = 1
    moved = Jitter(2)(x, range(400)).squeeze(1)
    at = moved.flatten(1).argmax(-1)
    assert (moved.flatten(1).sum(-1) == 1).all()
    assert set((at // 9 - 4).tolist()) == set((at % 9 - 4).tolist()) == {-2, -1, 0, 1, 2}
    assert torch.equal(Jitter(0)(x, range(400)), x)


def test_a_rotation_is_within_its_angle_both_ways_and_keeps_the_centre() -> None:
    x = torch.zeros(300, 1, 21, 21)
    x[:, :, 10, 18] = 1  # eight pixels to the right of the centre
    turned = Jitter(0, angle=25.0)(x, range(300)).squeeze(1)
    rows = torch.arange(21.0) - 10
    down, right = (turned.sum(2) * rows).sum(-1), (turned.sum(1) * rows).sum(-1)
    angles = torch.rad2deg(torch.atan2(down, right))
    assert 20 < angles.max() < 26
    assert -26 < angles.min() < -20
    middle = torch.zeros(5, 1, 9, 9)
    middle[:, :, 4, 4] = 1
    torch.testing.assert_close(Jitter(0, angle=90.0)(middle, range(5))[:, 0, 4, 4], torch.ones(5))


def test_a_quarter_turn_is_one() -> None:
    from stillroom.predictors.parts.views import _rotated

    x = torch.rand(2, 1, 7, 7)
    torch.testing.assert_close(
        _rotated(x, torch.tensor([math.pi / 2] * 2)), x.rot90(-1, (2, 3)), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("make", [Jitter(0, erase=4), Each(Cutout(4))], ids=["jitter", "cutout"])
def test_an_erased_square_is_cut_off_at_the_borders(make: View) -> None:
    made = make(torch.ones(300, 1, 8, 8), range(300))
    gone = (made == 0).sum((1, 2, 3))
    assert gone.max() == 16
    assert gone.min() == 4  # a centre in the first corner leaves two rows and columns
    assert ((made == 0) | (made == 1)).all()


def test_noise_has_its_deviation_and_a_mirror_its_chance() -> None:
    x = torch.zeros(50, 1, 16, 16)
    assert Jitter(0, noise=0.1)(x, range(50)).std().item() == pytest.approx(0.1, rel=0.05)
    half = torch.arange(4.0).expand(400, 1, 4, 4)
    mirrored = (Jitter(0, flip=True)(half, range(400))[:, 0, 0, 0] == 3).float().mean()
    assert 0.4 < mirrored < 0.6


def test_policies_ask_for_pixels() -> None:
    assert to_bytes(torch.tensor([0.0, 0.5, 1.0])).tolist() == [0, 128, 255]
    assert to_bytes(torch.tensor([3], dtype=torch.uint8)).tolist() == [3]
    source = Views(
        TensorSource(torch.randn(2, 3, 16, 16)), weak_and_strong("auto", (3, 16, 16)), (0,) * 3, (1,) * 3
    )
    with pytest.raises(UserError, match=r"policies of augmentation need pixels in \[0, 1\]"):
        source.fetch(torch.arange(2), 1)


@pytest.mark.parametrize("kind", KINDS)
def test_grey_images_and_odd_sizes_work(kind: Any) -> None:
    x = torch.rand(4, 1, 9, 13)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made, _ = Views(
            TensorSource(x), weak_and_strong(kind, (1, 9, 13), "fashion-mnist"), (0,), (1,)
        ).fetch(torch.arange(4), 0)
    assert made.shape == (4, 2, 1, 9, 13)
    assert torch.isfinite(made).all()


def test_bad_kinds_and_sizes_are_one_line() -> None:
    with pytest.raises(UserError, match="--method.augmentation is 'wild': pass small"):
        weak_and_strong("wild", (1, 8, 8))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="3 x 9 pixels, too small"):
        weak_and_strong("small", (1, 3, 9))
    with pytest.warns(UserWarning, match="a mirrored character of 'MNIST'"):
        weak_and_strong("rand", (1, 28, 28), "MNIST")

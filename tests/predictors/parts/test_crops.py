"""Crops that are a function of (seed, image), replayed; rows of several crops of one image."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from stillroom.data import TensorSource
from stillroom.plan import view_of
from stillroom.predictors.parts.crops import (
    Cropping,
    FreshCrops,
    StoredCrops,
    covered,
    draw_crops,
    pixels_of,
    replay,
)

CROPPING = Cropping((12, 12))


def image(channels: int = 1, height: int = 40, width: int = 56, seed: int = 0) -> Tensor:
    return torch.rand(channels, height, width, generator=torch.Generator().manual_seed(seed))


def test_boxes_are_a_function_of_seed_and_image_alone() -> None:
    boxes, flips = draw_crops(3, [5, 9, 2], 7, (40, 56), CROPPING)
    again, turned = draw_crops(3, [2], 7, (40, 56), CROPPING)
    assert torch.equal(boxes[2], again[0])
    assert torch.equal(flips[2], turned[0])
    assert not torch.equal(draw_crops(4, [2], 7, (40, 56), CROPPING)[0], again)
    assert not torch.equal(boxes[0], boxes[1])


def test_boxes_are_whole_pixels_inside_the_image_with_areas_and_ratios_as_asked() -> None:
    boxes, flips = draw_crops(0, range(200), 20, (40, 56), replace(CROPPING, scale=(0.1, 0.5)))
    pixels = boxes.double() * torch.tensor([40, 56, 40, 56])
    torch.testing.assert_close(pixels, pixels.round(), rtol=0, atol=1e-4)
    top, left, tall, wide = pixels.round().unbind(-1)
    assert min(top.min(), left.min()) >= 0
    assert (top + tall).max() <= 40 and (left + wide).max() <= 56
    share = tall * wide / (40 * 56)
    assert 0.09 < share.min() < 0.12 and 0.48 < share.max() < 0.52
    assert abs(share.mean() - 0.3) < 0.01  # areas are uniform
    assert 0.45 < flips.float().mean() < 0.55
    assert not draw_crops(0, range(50), 20, (40, 56), replace(CROPPING, flip=0.0))[1].any()


def test_where_no_box_fits_the_middle_is_taken() -> None:
    boxes, _ = draw_crops(0, [0], 5, (10, 100), replace(CROPPING, scale=(0.9, 1.0)))
    expected = torch.tensor([0, 43 / 100, 1, 13 / 100]).expand(1, 5, 4)
    torch.testing.assert_close(boxes, expected)


def test_a_replayed_crop_is_the_generating_one_bit_for_bit() -> None:
    picture, (boxes, flips) = image(3), draw_crops(0, [0], 30, (40, 56), CROPPING)
    for box, flip in zip(boxes[0], flips[0], strict=True):
        top, left, tall, wide = (round(float(v) * s) for v, s in zip(box, (40, 56, 40, 56), strict=True))
        part = picture[None, :, top : top + tall, left : left + wide]
        made = F.interpolate(part, (12, 12), mode="bilinear", antialias=True)[0]
        assert torch.equal(replay(picture, box, bool(flip), (12, 12)), made.flip(-1) if flip else made)


def test_a_crop_of_its_own_size_is_the_pixels_themselves() -> None:
    picture = image()
    box = torch.tensor([3 / 40, 5 / 56, 12 / 40, 12 / 56])
    assert torch.equal(replay(picture, box, False, (12, 12)), picture[:, 3:15, 5:17])
    assert torch.equal(replay(picture, box, True, (12, 12)), picture[:, 3:15, 5:17].flip(-1))


@pytest.mark.parametrize("factor", [0.5, 1.3, 2.0, 3.7])
def test_at_another_resolution_a_box_is_the_same_region_within_a_pixel(factor: float) -> None:
    boxes, _ = draw_crops(1, [0], 50, (400, 560), CROPPING)
    height, width = round(400 * factor), round(560 * factor)
    for box in boxes[0]:
        for span, start, length, side in zip(
            pixels_of(box, height, width), box[:2], box[2:], (height, width), strict=True
        ):
            assert abs(span.start - float(start) * side) <= 1
            assert abs(span.stop - float(start + length) * side) <= 1
            assert span.stop > span.start


def test_a_tiny_image_still_gives_one_pixel() -> None:
    rows, columns = pixels_of(torch.tensor([0.99, 0.99, 0.01, 0.01]), 4, 4)
    assert (rows.stop - rows.start, columns.stop - columns.start) == (1, 1)


def test_covered_is_the_share_of_the_object_in_the_crop() -> None:
    thing = torch.tensor([0.25, 0.25, 0.5, 0.5])
    boxes = torch.tensor(
        [[0, 0, 1, 1], [0, 0, 0.5, 0.5], [0.5, 0.5, 0.5, 0.25], [0, 0, 0.2, 0.2]], dtype=torch.float32
    )
    torch.testing.assert_close(covered(boxes, thing), torch.tensor([1.0, 0.25, 0.25, 0.0]))


class Counted(TensorSource):
    """Counts the images that it loads."""

    loads = 0

    def fetch(self, ids: Tensor, view: int | None) -> Any:
        self.loads += len(ids)
        return super().fetch(ids, view)


def crop_source(
    images: int = 10, crops: int = 6, each: int = 4, epochs: int = 0, single: int | None = None
) -> Any:
    source = Counted(
        torch.stack([image(seed=i, height=24, width=24) for i in range(images)]), torch.arange(images) % 3
    )
    boxes, flips = draw_crops(0, range(images), crops, (24, 24), CROPPING)
    made = StoredCrops(
        source,
        lambda ids: (boxes[ids], flips[ids]),
        torch.ones(images, crops, dtype=torch.bool),
        lambda ids, picks: torch.stack([ids, picks], 1).float(),
        each,
        (12, 12),
        {view_of(0, epoch): epoch for epoch in range(epochs)},
        single,
    )
    return made, boxes, flips


def test_a_row_has_n_different_crops_of_one_image_loaded_once_with_their_own_labels() -> None:
    source, boxes, flips = crop_source()
    assert len(source) == 3  # ten images, four crops a row: as many crops as images
    x, y = source.fetch(torch.tensor([0, 2]), 99)
    assert x.shape == (2, 4, 1, 12, 12)
    assert source.source.loads == 2
    for row in range(2):
        images, picks = y[row].long().unbind(1)
        assert len(images.unique()) == 1
        assert len(picks.unique()) == 4
        for crop, i, k in zip(x[row], images.tolist(), picks.tolist(), strict=True):
            assert torch.equal(crop, replay(source.source.x[i], boxes[i, k], bool(flips[i, k]), (12, 12)))


def test_a_row_is_a_function_of_view_and_number_whatever_is_beside_it() -> None:
    source, _, _ = crop_source()
    together, alone = source.fetch(torch.tensor([2, 0, 1]), 7), source.fetch(torch.tensor([1]), 7)
    assert torch.equal(together[0][2], alone[0][0])
    assert not torch.equal(source.fetch(torch.tensor([1]), 8)[0], alone[0])


def test_n_epochs_go_through_all_images_once_and_the_last_n_go_through_them_n_times_with_single_crops() -> (
    None
):
    source, _, _ = crop_source(images=12, epochs=12, single=8)
    rows = torch.arange(len(source))
    for start in (0, 4):
        seen = torch.cat([source.rows(rows, view_of(0, epoch))[0][:, 0] for epoch in range(start, start + 4)])
        assert sorted(seen.tolist()) == list(range(12))
    for epoch in range(8, 12):
        images, picks = source.rows(rows, view_of(0, epoch))
        assert sorted(images.flatten().tolist()) == list(range(12))
        assert picks.shape == images.shape
    first = source.rows(rows, view_of(0, 0))[0]
    assert not torch.equal(first, source.rows(rows, view_of(0, 4))[0])


def test_with_one_crop_a_row_every_epoch_is_one_pass() -> None:
    source, _, _ = crop_source(images=7, each=1, epochs=3)
    for epoch in range(3):
        assert sorted(source.rows(torch.arange(7), view_of(0, epoch))[0].flatten().tolist()) == list(range(7))


def test_dropped_crops_never_come_and_few_kept_ones_come_round() -> None:
    source, _, _ = crop_source(images=4, crops=6, each=4)
    source.kept[:, :3] = False
    source.kept[0, 3:5] = False  # one is left of image 0
    for view in range(20):
        images, picks = source.rows(torch.tensor([0]), view)
        assert source.kept[images, picks].all()
        counts = picks[0].bincount()
        assert counts.max() <= -(-4 // int(source.kept[images[0, 0]].sum()))


def test_a_subset_has_the_same_crops_of_its_images() -> None:
    source, _, _ = crop_source()
    part = source.subset(torch.tensor([8, 3]))
    assert len(part) == 1
    _, y = part.fetch(torch.tensor([0]), 5)
    assert set(y[..., 0].flatten().tolist()) <= {3.0, 8.0}
    whole, _, _ = crop_source(images=4, each=1)
    assert len(whole.subset(torch.tensor([1, 2]))) == 2


def test_fresh_crops_show_what_they_must_of_the_object() -> None:
    objects = torch.tensor([[0.1, 0.1, 0.4, 0.4]]).repeat(30, 1)
    pictures = torch.zeros(30, 1, 40, 40)
    pictures[:, :, 4:20, 4:20] = 1
    source = FreshCrops(TensorSource(pictures, torch.zeros(30, dtype=torch.int64)), CROPPING)
    choosy = FreshCrops(source.source, CROPPING, objects, 0.6)
    ink = [one.fetch(torch.arange(30), 3)[0].amax((1, 2, 3)) for one in (source, choosy)]
    assert (ink[0] == 0).any()
    assert (ink[1] > 0).all()
    assert torch.equal(
        source.fetch(torch.arange(2), None)[0],
        F.interpolate(pictures[:2], (12, 12), mode="bilinear", antialias=True),
    )
    some = choosy.subset(torch.tensor([4]))
    assert len(some) == 1 and some.objects is not None and len(some.objects) == 1

"""Figures of generators: that pixels, points and lines are where the arrays say, and that the SVG stays harmless."""

from __future__ import annotations

import base64
import io
import re
from itertools import chain
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from stillroom.errors import UserError
from stillroom.reports.drawing import checked
from stillroom.reports.generation_figures import (
    histogram_bars,
    lines,
    point_clouds,
    sample_grid,
    trajectories,
    trajectory_strip,
)

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.uniform(-1, 1, (3, 1, 4, 5))
CLOUD = RANDOM.normal(size=(50, 2))
PATHS = RANDOM.normal(size=(6, 5, 2))

EVERY = {
    "grid": lambda: sample_grid([("teacher", IMAGES), ("student", torch.zeros(2, 3, 8, 8))], "samples"),
    "strip": lambda: trajectory_strip(np.zeros((3, 2, 1, 4, 4)), [1, 0.5, 0], "strip"),
    "clouds": lambda: point_clouds([("data", CLOUD), ("student", torch.tensor(CLOUD))], "points"),
    "paths": lambda: trajectories([("a", PATHS), ("b", torch.tensor(PATHS)), ("c", PATHS)], "paths"),
    "lines": lambda: lines(
        [("a", [1, 2, 4], [0.1, 0.2, np.nan])], "evaluations", "distance", "far", True, True
    ),
    "bars": lambda: histogram_bars(["x", "y"], [("a", [0.1, np.nan]), ("b", [-1, 2])], "share", "bars"),
}

PNG = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUg=="


def elements(svg: str, tag: str) -> list[ElementTree.Element]:
    return list(ElementTree.fromstring(svg).iter(tag))


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in elements(svg, "text")]


def pictures(svg: str) -> list[np.ndarray]:
    """The pixels [H, width, RGBA] of the images in an SVG."""
    from PIL import Image

    data = [base64.b64decode(element.get("href", "").split(",")[1]) for element in elements(svg, "image")]
    return [np.asarray(Image.open(io.BytesIO(one)).convert("RGBA")) for one in data]


def dots(svg: str, colour: str, width: str) -> list[list[tuple[float, float]]]:
    """For each path of dots of one colour and size, where they are."""
    style = rf"stroke: var\(--{colour}\);[^\"]*stroke-width: {width};"
    paths = re.findall(rf'<path d="([^"]*)"[^>]*style="[^"]*{style}', svg)
    found = [re.findall(r"M(-?[\d.]+) (-?[\d.]+)h0", path) for path in paths]
    return [[(float(x), float(y)) for x, y in path] for path in found if path]


@pytest.mark.parametrize("name", EVERY)
def test_every_figure_is_a_themed_scalable_svg_with_a_title(name):
    svg = EVERY[name]()
    assert checked(svg, name) == svg
    root = ElementTree.fromstring(svg)
    assert (root.get("width"), root.get("height"), root.get("role")) == ("100%", None, "img")
    assert float(root.get("viewBox").split()[2]) == 340
    assert root.find("title").get("id") == root.get("aria-labelledby")
    assert root.find("title").text
    assert not re.search(r"#[0-9a-fA-F]{6}\b", re.sub(r'(url\(|href=")#\w+', "", svg))
    assert "font-family" not in svg and "nan" not in re.sub(r'href="[^"]*"', "", svg)
    assert EVERY[name]() == svg


def test_images_are_embedded_pixel_by_pixel_clipped_and_apart():
    images = np.array([[[[-1.0, 1.0], [0.0, 0.5]]], [[[-7.0, 7.0], [np.nan, 0.0]]]])
    (row,) = pictures(sample_grid([("a", images)], "t"))
    assert row.shape == (2, 5, 4)
    assert row[:, :2, 0].tolist() == [[0, 255], [128, 191]]
    assert row[:, 3:, 0].tolist() == [[0, 255], [0, 128]]
    assert (row[..., 0] == row[..., 2]).all()
    assert row[..., 3].tolist() == [[255, 255, 0, 255, 255]] * 2


def test_colours_are_red_green_blue():
    image = torch.tensor([1.0, 0.0, -1.0])[None, :, None, None].expand(1, 3, 4, 4)
    (row,) = pictures(sample_grid([("a", image)], "t"))
    assert (row == [255, 128, 0, 255]).all()


def test_a_row_has_ten_images_at_most_and_they_are_not_smoothed_by_the_browser():
    svg = sample_grid([("a", np.zeros((12, 1, 8, 8))), ("b", np.zeros((10, 1, 28, 28)))], "t")
    small, large = elements(svg, "image")
    assert int(small.get("width")) == 10 * 9 - 1
    assert "pixelated" in small.get("style")
    scales = [re.findall(r"[\d.]+", one.get("transform")) for one in (small, large)]
    pitches = [float(scale[0]) * pixels for scale, pixels in zip(scales, (9, 28 + 3), strict=True)]
    assert pitches == pytest.approx([34.3, 34.3], abs=0.01)
    for one, scale in zip((small, large), scales, strict=True):
        assert float(scale[0]) == pytest.approx(float(scale[3]), rel=1e-4)
        assert float(scale[0]) * int(one.get("width")) + float(scale[4]) < 340.01
    assert texts(svg) == ["a", "b"] and "t: a, b</title>" in svg


def test_large_images_are_averaged_down():
    checks = np.indices((256, 256)).sum(axis=0) % 2 * 2.0 - 1
    (row,) = pictures(sample_grid([("a", checks[None, None])], "t"))
    assert row.shape[:2] == (64, 64)
    assert set(row[..., 0].flat) <= {127, 128}


def test_a_strip_has_a_row_a_sample_and_the_times_of_its_columns():
    frames = np.linspace(-1, 1, 17)[:, None, None, None, None] * np.ones((1, 6, 1, 2, 2))
    frames[:, 1] *= -1
    svg = trajectory_strip(frames, np.linspace(1, 0, 17), "t")
    rows = pictures(svg)
    assert len(rows) == 4
    assert len(texts(svg)) == 8
    assert (texts(svg)[0], texts(svg)[-1]) == ("t = 1", "0")
    assert rows[0][0, 0, 0] == 0 and rows[0][0, -1, 0] == 255
    assert rows[1][0, 0, 0] == 255 and rows[1][0, -1, 0] == 0
    assert (np.diff(rows[0][0, ::3, 0].astype(int)) > 0).all()


def test_points_are_drawn_within_the_limits_of_the_data_and_counted_outside():
    data = np.array([[-1.0, -1.0], [1.0, 1.0], [0.0, 0.0]])
    other = np.array([[0.0, 0.0], [9.0, 0.0], [np.nan, 0.0], [0.5, 0.9]])
    svg = point_clouds([("data", data), ("far", other)], "t")
    left = sorted(chain(*dots(svg, "muted", "2")))
    right = sorted(chain(*dots(svg, "arm-1", "2")))
    assert len(left) == 3 and len(right) == 2
    (x0, y0), (x1, y1), (x2, y2) = left
    assert (x1, y1) == pytest.approx(((x0 + x2) / 2, (y0 + y2) / 2), abs=0.11)
    assert y0 > y2
    # Half of the way to the right in the data's units is the same length in the other panel.
    assert right[1][0] - right[0][0] == pytest.approx((x2 - x1) / 2, abs=0.2)
    assert right[0][1] == pytest.approx(y1, abs=0.11)
    assert [text for text in texts(svg) if "outside" in text] == ["2 outside"]


def test_of_many_points_as_many_are_drawn_in_each_panel_and_the_figure_stays_small():
    clouds = [(str(index), RANDOM.normal(size=(4000, 2)) * 0.9**index) for index in range(7)]
    two, seven = point_clouds(clouds[:2], "t"), point_clouds(clouds, "t")
    assert 1450 < sum(map(len, dots(two, "arm-1", "2"))) <= 1500
    assert len(seven) < 150_000


def test_paths_start_hollow_and_end_filled():
    paths = np.stack([np.array([[0.0, 0.0], [0.0, 1.0]]), np.array([[1.0, 0.0], [np.nan, 1.0]])], axis=1)
    svg = trajectories([("a", paths)], "t")
    starts, ends = dots(svg, "arm-1", "4.2")
    assert dots(svg, "paper", "2.6") == [starts]
    assert len(starts) == 2 and len(ends) == 1
    assert starts[0][1] == starts[1][1] > ends[0][1] + 100
    assert ends[0][0] == starts[0][0] < starts[1][0]
    line = re.search(r'<path d="M(\S+) (\S+)L(\S+) (\S+)"', svg)
    assert [float(number) for number in line.groups()] == [*starts[0], *ends[0]]
    assert "1 outside" in texts(svg)


def test_of_long_paths_forty_are_drawn_and_the_figure_stays_small():
    walks = np.cumsum(RANDOM.normal(size=(1001, 60, 2)), axis=0)
    svg = trajectories([(str(index), walks) for index in range(8)], "t")
    assert len(svg) < 200_000
    assert len(dots(svg, "arm-1", "4.2")[0]) <= 40
    assert len(re.findall(r'<path d="M[^"]*L[^"]*"[^>]*arm-3', svg)) == 40


def markers(svg: str, colour: str) -> list[tuple[float, float]]:
    pattern = rf'<use href="[^"]*" x="([\d.]+)" y="([\d.]+)" style="fill: var\(--{colour}\)'
    return [(float(x), float(y)) for x, y in re.findall(pattern, svg)]


def test_lines_have_their_looks_labels_and_logarithmic_axes():
    svg = lines([("one", [1, 2, 4], [1, 10, 100]), ("two", [1, 4], [-1, 10])], "n", "d", "far", True, True)
    *first, legend = sorted(markers(svg, "arm-1"), key=lambda place: -place[1])
    assert legend[1] < first[-1][1]
    assert first[1][0] - first[0][0] == pytest.approx(first[2][0] - first[1][0], abs=0.05)
    assert first[0][1] - first[1][1] == pytest.approx(first[1][1] - first[2][1], abs=0.05)
    places = markers(svg, "arm-2")
    assert len(places) == 2  # The value that is not positive is a gap; the other mark is the legend's.
    assert max(y for _, y in places) == pytest.approx(first[1][1], abs=0.05)
    assert {"one", "two", "n", "d", "1", "2", "4"} <= set(texts(svg))
    assert not {"3", "$"} & set("".join(texts(svg)))
    assert "far: one ends at 100, two ends at 10</title>" in svg


def test_a_line_may_go_without_a_label_and_have_an_infinite_place():
    svg = lines([("", [1, 2, np.inf], [1, 2, 3])], "n", "d", "far", log_x=True)
    assert len(markers(svg, "arm-1")) == 2
    assert {"n", "d", "1", "2"} <= set(texts(svg))


def test_long_lines_have_few_markers():
    svg = lines([("a", np.arange(1000), np.arange(1000))], "t", "loss", "l")
    assert 12 <= len(markers(svg, "arm-1")) <= 18


def test_bars_are_as_high_as_their_values_and_stand_in_groups():
    svg = histogram_bars(["x", "y"], [("a", [1.0, 2.0]), ("b", [np.inf, -1.0])], "share", "t")
    boxes = {}
    for colour in ("arm-1", "arm-2"):
        paths = re.findall(rf'<path d="([^"]*)"[^>]*style="fill: var\(--{colour}\)"', svg)
        numbers = [np.array(re.findall(r"-?[\d.]+", path), float).reshape(-1, 2) for path in paths]
        boxes[colour] = [(*one.min(axis=0), *one.max(axis=0)) for one in numbers][:-1]
    low, high = boxes["arm-1"]
    (down,) = [box for box in boxes["arm-2"] if box[3] - box[1] > 1]
    assert high[3] - high[1] == pytest.approx(2 * (low[3] - low[1]), abs=0.1)
    assert down[3] - down[1] == pytest.approx(low[3] - low[1], abs=0.1)
    assert down[1] == pytest.approx(low[3], abs=0.1)
    assert low[2] < high[0] < high[2] <= down[0]
    assert {"x", "y", "a", "b", "share"} <= set(texts(svg))


def test_of_many_bins_only_some_are_named():
    names = [f"bin {index}" for index in range(50)]
    written = set(texts(histogram_bars(names, [("a", np.ones(50))], "share", "t"))) & set(names)
    assert 8 <= len(written) <= 13 and "bin 0" in written


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sample_grid([], "f"), "nothing to show"),
        (lambda: sample_grid([("a", np.zeros((2, 2, 4, 4)))], "f"), r"\[2, 2, 4, 4\]: pass .* C 1 or 3"),
        (lambda: sample_grid([("a", np.zeros((0, 1, 4, 4)))], "f"), r"\[0, 1, 4, 4\]"),
        (lambda: trajectory_strip(np.zeros((3, 1, 1, 2, 2)), [1, 0], "f"), "2 times: .* 3 frames"),
        (lambda: point_clouds([("a", np.zeros((4, 3)))], "f"), r"pass \[n, 2\]"),
        (lambda: trajectories([("a", np.zeros((4, 2)))], "f"), r"pass \[steps \+ 1, n, 2\]"),
        (lambda: lines([("a", [1, 2], [1])], "x", "y", "f"), "2 x and 1 y"),
        (lambda: histogram_bars(["x"], [("a", [1, 2])], "y", "f"), "2 values: .* 1 bins"),
    ],
)
def test_arrays_of_another_shape_are_refused(make, message):
    with pytest.raises(UserError, match=f"figure 'f'.*{message}") as caught:
        make()
    assert "\n" not in str(caught.value)


def test_an_image_may_hold_a_png():
    svg = f'<svg><image href="{PNG}" width="1" height="1" style="image-rendering:pixelated"/></svg>'
    assert checked(svg, "Good") == svg


@pytest.mark.parametrize(
    "svg",
    [
        '<svg><image href="http://example.org/a.png"/></svg>',
        '<svg><image href="//example.org/a.png"/></svg>',
        '<svg><image href="a.png"/></svg>',
        '<svg><image href="#a"/></svg>',
        '<svg><image href="javascript:alert(1)"/></svg>',
        '<svg><image href="data:image/svg+xml;base64,PHN2Zz4="/></svg>',
        '<svg><image href="data:image/svg+xml,&lt;svg/&gt;"/></svg>',
        '<svg><image href="data:image/png;base64,PHN2Zz4="/></svg>',
        f'<svg><image href=" {PNG}"/></svg>',
        f'<svg><image href="{PNG}&#10;//example.org"/></svg>',
        f'<svg><image href="{PNG}" src="//example.org/a.png"/></svg>',
        f'<svg><image href="{PNG}" srcset="//example.org/a.png"/></svg>',
        f'<svg><image href="{PNG}" HREF="//example.org/a.png"/></svg>',
        f'<svg><image href="{PNG}" onload="alert(1)"/></svg>',
        f'<svg><image href="{PNG}" style="background: url(//example.org/a.png)"/></svg>',
        '<svg><title><image src="//example.org/a.png"/></title></svg>',
        '<svg><use HREF="//example.org/a.svg#b"/></svg>',
        f'<svg><use href="{PNG}"/></svg>',
        '<svg xmlns:x="http://www.w3.org/1999/xlink"><image x:href="//example.org/a.png"/></svg>',
    ],
)
def test_an_image_that_is_no_embedded_png_is_refused(svg):
    with pytest.raises(UserError, match=r"figure 'Odd' holds '.*', which no page may"):
        checked(svg, "Odd")

"""Images and labels by name: samples and batches that are mappings, mappings of columns, tables, folders."""

from __future__ import annotations

import io
import json

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from stillroom.data import ImageData, LazySource, load_images
from stillroom.errors import UserError

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (40, 6, 5, 3), dtype=np.uint8)
LABELS = [i % 2 for i in range(40)]
X = torch.from_numpy(PIXELS).permute(0, 3, 1, 2).contiguous()
Y = torch.tensor(LABELS)


@pytest.fixture(autouse=True)
def _own_datasets_cache(tmp_path_factory, monkeypatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def same(data: ImageData, labels=Y) -> bool:
    """Whether it is the pixels of this file, by id of the splits that are cut from them, under `labels`."""
    expected = load_images((X, labels))
    ids = torch.arange(len(expected.train))
    x, y = data.train.fetch(ids, None)
    scale = torch.tensor(data.std).view(1, -1, 1, 1)
    raw = x * scale + torch.tensor(data.mean).view(1, -1, 1, 1)
    want_x, want_y = expected.train.fetch(ids, None)
    if y is None or want_y is None:
        return torch.allclose(raw, want_x, atol=1e-6) and y is want_y
    return torch.allclose(raw, want_x, atol=1e-6) and torch.equal(y, want_y)


def samples(image: str, label: str, **more) -> list[dict]:
    return [{"id": i, image: X[i], label: LABELS[i], **more} for i in range(40)]


@pytest.mark.parametrize(
    ("image", "label"), [("image", "label"), ("pixel_values", "labels"), ("img", "fine_label"), ("scan", "y")]
)
@pytest.mark.parametrize("limit", [2**30, 100])
def test_samples_that_are_mappings(image: str, label: str, limit: int) -> None:
    data = load_images(samples(image, label), memory_limit=limit)
    assert same(data) and isinstance(data.train, LazySource) == (limit == 100)


def test_names_are_asked_for_where_they_cannot_be_told() -> None:
    two = samples("scan", "kind", mask=X[0])
    with pytest.raises(UserError) as error:
        load_images(two)
    assert str(error.value) == (
        "sample 0 of data 'list' has no image among ['id', 'scan', 'kind', 'mask']: pass --task.image-column NAME"
    )
    with pytest.raises(UserError) as error:
        load_images(two, image_column="scan")
    assert str(error.value) == (
        "sample 0 of data 'list' has no label among ['id', 'scan', 'kind', 'mask']: pass --task.label-column NAME "
        "('none' for unlabelled data)"
    )
    assert same(load_images(two, image_column="scan", label_column="kind"))
    assert same(load_images(two, image_column="scan", label_column="none"), labels=None)
    for columns in ({"image_column": "x"}, {"image_column": "scan", "label_column": "x"}):
        kind = "label" if "label_column" in columns else "image"
        with pytest.raises(
            UserError, match=f"^sample 0 of data 'list' has no 'x' among .*--task.{kind}-column"
        ):
            load_images(two, **columns)


def collated(items: list[dict]) -> dict:
    return {
        "pixel_values": torch.stack([item["image"] for item in items]),
        "labels": torch.tensor([item["label"] for item in items]),
    }


def test_loaders_of_mappings() -> None:
    whole = samples("image", "label")
    assert same(load_images(DataLoader(whole, batch_size=7)))  # type: ignore[arg-type]
    assert same(load_images(DataLoader(whole, batch_size=7, collate_fn=collated)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "columns",
    [
        {"image": X, "label": Y},
        {"x": X.numpy(), "y": np.array(LABELS)},
        {"image": list(X), "label": LABELS, "id": list(range(40))},
        {"img": [Image.fromarray(p) for p in PIXELS], "target": LABELS},
    ],
)
def test_a_mapping_of_columns(columns: dict) -> None:
    assert same(load_images(columns))


def test_a_mapping_of_columns_of_unequal_length() -> None:
    with pytest.raises(UserError) as error:
        load_images({"image": list(X), "label": LABELS[:7]})
    assert str(error.value) == (
        "the columns of the data have 40 images and 7 labels: pass one label an image"
    )


def encoded(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_a_column_of_bytes_holds_images_where_nothing_else_does(tmp_path) -> None:
    table = datasets.Dataset.from_dict({"jpg": [encoded(p) for p in PIXELS], "label": LABELS})
    assert same(load_images(table)) and same(load_images(table.to_iterable_dataset()))
    table.to_parquet(str(tmp_path / "data.parquet"))
    assert same(load_images(tmp_path)) and same(load_images(tmp_path, stream=True, memory_limit=100))


def test_parquet_in_folders_below_a_folder(tmp_path) -> None:
    table = datasets.Dataset.from_dict({"jpg": [encoded(p) for p in PIXELS], "label": LABELS})
    for split, rows in (("train", range(30)), ("test", range(30, 40))):
        (tmp_path / split / "parts").mkdir(parents=True)
        table.select(rows).to_parquet(str(tmp_path / split / "parts" / "0000.parquet"))
    for data in (load_images(tmp_path), load_images(tmp_path, stream=True)):
        assert (len(data.train), len(data.validation), len(data.test)) == (27, 3, 10)


def test_labels_beside_images(tmp_path) -> None:
    with open(tmp_path / "metadata.jsonl", "w") as lines:
        for i, pixels in enumerate(PIXELS):
            Image.fromarray(pixels).save(tmp_path / f"{i:02d}.png")
            lines.write(json.dumps({"file_name": f"{i:02d}.png", "kind": ["cat", "dog"][LABELS[i]]}) + "\n")
    data = load_images(tmp_path, label_column="kind")
    assert data.classes == ["cat", "dog"] and same(data)
    with pytest.raises(UserError, match="has no column that is known to hold labels among"):
        load_images(tmp_path)


class Coloured:
    """A data set whose first image is grey, and smaller than the others that are in colour."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, i: int) -> tuple[Image.Image, int]:
        return Image.fromarray(PIXELS[i] if i else PIXELS[i, ..., 0]), LABELS[i]


def test_a_data_set_that_turns_out_too_large_is_read_as_it_is_needed() -> None:
    grey = 40 * 4 * 30  # bytes, if all were like the first
    data = load_images(Coloured(), memory_limit=2 * grey, normalise="none")
    assert isinstance(data.train, LazySource) and data.shape == (3, 6, 5)
    held = load_images(Coloured(), memory_limit=4 * grey, normalise="none")
    ids = torch.arange(len(data.train))
    assert torch.equal(data.train.fetch(ids, None)[0], held.train.fetch(ids, None)[0])

"""Image data from names, folders and `datasets` objects: the same pixels and labels that were put in."""

from __future__ import annotations

import json

import datasets
import numpy as np
import pytest
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import OfflineModeIsEnabled
from PIL import Image

from stillroom.data import ImageData, LazySource, TensorSource, load_images
from stillroom.data.images import moments
from stillroom.errors import UserError

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (60, 6, 5), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (60, 6, 5, 3), dtype=np.uint8)
LABELS = [i % 3 for i in range(60)]
NAMES = ["ant", "bee", "cow"]
NO_ROOM = 1000  # bytes: nothing fits


@pytest.fixture(autouse=True)
def _own_datasets_cache(tmp_path_factory, monkeypatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def dataset(pixels=GREY, labels=LABELS, rows=slice(None)) -> datasets.Dataset:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    images = [Image.fromarray(p) for p in pixels[rows]]
    return datasets.Dataset.from_dict({"image": images, "label": labels[rows]}, features=features)


def write_images(root, pixels=COLOUR, rows=range(60), classes=True) -> None:
    for i in rows:
        folder = root / NAMES[LABELS[i]] if classes else root
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[i]).save(folder / f"{i:03d}.png")


def everything(data: ImageData) -> dict[bytes, int]:
    """Raw pixels of all splits to labels, normalisation undone."""
    found = {}
    for source in (data.train, data.validation, data.test):
        x, y = source.fetch(torch.arange(len(source)), None)
        mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (data.mean, data.std))
        numbers = [-1] * len(x) if y is None else y.tolist()
        raw = ((x * std + mean) * 255).round().to(torch.uint8)
        found |= {image.numpy().tobytes(): int(label) for image, label in zip(raw, numbers, strict=True)}
    return found


def expected(pixels) -> dict[bytes, int]:
    planes = pixels[:, None] if pixels.ndim == 3 else pixels.transpose(0, 3, 1, 2)
    return {plane.tobytes(): label for plane, label in zip(planes, LABELS, strict=True)}


def sizes(data: ImageData) -> tuple[int, int, int]:
    return len(data.train), len(data.validation), len(data.test)


def same(a: ImageData, b: ImageData) -> bool:
    ids = torch.arange(len(a.train))
    return all(
        torch.equal(p, q) for p, q in zip(a.train.fetch(ids, None), b.train.fetch(ids, None), strict=True)
    )


def test_digits() -> None:
    data = load_images("digits")
    assert sizes(data) == (800, 97, 900) and data.shape == (1, 8, 8) and data.name == "digits"
    assert data.classes == [str(i) for i in range(10)]
    whole = torch.cat(
        [s.fetch(torch.arange(len(s)), None)[0] for s in (data.train, data.validation, data.test)]
    )
    assert len({image.numpy().tobytes() for image in whole}) > 1790  # of 1797, a few of which are alike
    assert abs(float(data.train.x.mean())) < 1e-5 and abs(float(data.train.x.std(correction=0)) - 1) < 1e-5
    shares = data.train.labels.bincount() / 800
    assert (shares - data.test.labels.bincount() / 900).abs().max() < 0.003
    assert data.splits["seed"] == 0 and data.splits["train"]["samples"] == 800
    json.dumps(data.splits)
    raw = load_images("digits", normalise="none").train.x
    assert (float(raw.min()), float(raw.max())) == (0.0, 1.0)


def test_digits_depend_on_the_split_seed_alone() -> None:
    torch.manual_seed(0)
    a = load_images("digits")
    torch.manual_seed(1)
    b, c = load_images("digits"), load_images("digits", split_seed=1)
    assert a.fingerprint == b.fingerprint != c.fingerprint
    assert torch.equal(a.train.x, b.train.x) and not torch.equal(a.test.x, c.test.x)


def test_loading_leaves_the_process_wide_generators_alone() -> None:
    torch.manual_seed(4)
    expected_draw = torch.rand(1)
    torch.manual_seed(4)
    load_images("digits", train_samples=50)
    assert torch.equal(torch.rand(1), expected_draw)


@pytest.mark.parametrize("pixels", [GREY, COLOUR])
def test_parquet_folder_round_trip(tmp_path, pixels) -> None:
    dataset(pixels, rows=slice(0, 40)).to_parquet(tmp_path / "train-00000-of-00001.parquet")
    dataset(pixels, rows=slice(40, 60)).to_parquet(tmp_path / "test-00000-of-00001.parquet")
    data = load_images(tmp_path)
    assert sizes(data) == (36, 4, 20) and data.classes == NAMES and data.name == tmp_path.name
    assert data.shape == (1 if pixels is GREY else 3, 6, 5)
    assert everything(data) == expected(pixels)
    _, y = data.test.fetch(torch.tensor([0]), None)
    assert y.tolist() == [LABELS[40]]
    assert data.splits["test"] == {
        "samples": 20,
        "origin": f"split 'test' of data '{tmp_path.name}', as given",
    }
    assert (
        data.splits["validation"]["origin"] == f"cut from split 'train' of data '{tmp_path.name}', stratified"
    )


def test_parquet_not_written_by_datasets(tmp_path) -> None:
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    cells = []
    for pixels in GREY:
        Image.fromarray(pixels).save(file := io.BytesIO(), "png")
        cells.append({"bytes": file.getvalue(), "path": None})
    pq.write_table(pa.table({"img": cells, "y": LABELS}), tmp_path / "data.parquet")
    data = load_images(str(tmp_path))
    assert data.classes == ["0", "1", "2"] and everything(data) == expected(GREY)


@pytest.mark.parametrize("grey_too", [False, True])
def test_image_folder_round_trip(tmp_path, grey_too: bool) -> None:
    write_images(tmp_path)
    if grey_too:
        Image.fromarray(GREY[0]).save(tmp_path / "ant" / "grey.png")
    (tmp_path / "ant" / "._000.png").write_bytes(b"what a Mac leaves behind")
    data = load_images(tmp_path)
    assert data.shape == (3, 6, 5) and data.classes == NAMES
    found = everything(data)
    assert found.items() >= expected(COLOUR).items() and len(found) == 60 + grey_too
    assert sizes(data) == ((42, 6, 12) if not grey_too else (43, 6, 12))


def test_image_folder_with_split_level(tmp_path) -> None:
    for split, rows in {"train": range(30), "val": range(30, 45), "test": range(45, 60)}.items():
        write_images(tmp_path / split, GREY, rows)
    (tmp_path / "extra").mkdir()
    data = load_images(tmp_path)
    assert sizes(data) == (30, 15, 15) and data.shape == (1, 6, 5) and everything(data) == expected(GREY)


def test_image_folder_without_classes_is_unlabelled(tmp_path) -> None:
    write_images(tmp_path, classes=False)
    data = load_images(tmp_path)
    assert data.classes == [] and data.train.labels is None and sizes(data) == (42, 6, 12)
    assert data.train.fetch(torch.arange(2), None)[1] is None
    assert set(everything(data)) == set(expected(COLOUR))


def test_dataset_dict_and_saved_to_disk(tmp_path) -> None:
    both = datasets.DatasetDict(train=dataset(rows=slice(0, 40)), validation=dataset(rows=slice(40, 60)))
    data = load_images(both)
    assert sizes(data) == (32, 20, 8) and everything(data) == expected(GREY)
    both.save_to_disk(tmp_path)
    assert same(load_images(tmp_path), data)


def test_a_few_colour_images_among_grey_ones_make_all_rgb() -> None:
    grey = [Image.fromarray(p) for p in RNG.integers(0, 256, (400, 2, 2), dtype=np.uint8)]
    grey[201] = Image.fromarray(COLOUR[0][:2, :2])  # not among the few that are looked at first
    data = load_images([(picture, i % 2) for i, picture in enumerate(grey)])
    assert data.shape == (3, 2, 2)
    assert COLOUR[0][:2, :2].transpose(2, 0, 1).tobytes() in everything(data)


def test_image_size_takes_the_largest_square_around_the_centre() -> None:
    wide = np.zeros((8, 16), dtype=np.uint8)
    wide[:, 4:12] = 200  # the middle square
    tall = wide.T.copy()
    data = load_images([(Image.fromarray(p), i % 2) for i, p in enumerate([wide, tall] * 5)], image_size=4)
    assert data.shape == (1, 4, 4)
    assert set(everything(data)) == {bytes([200] * 16)}
    tensors = torch.from_numpy(np.stack([wide] * 10)), torch.arange(10) % 2
    assert set(everything(load_images(tensors, image_size=4))) == {bytes([200] * 16)}


@pytest.mark.parametrize("size", [4, 9])
def test_pictures_and_tensors_are_resized_alike(size: int) -> None:
    pictures = [(Image.fromarray(p), i % 2) for i, p in enumerate(COLOUR)]
    tensors = torch.from_numpy(COLOUR).permute(0, 3, 1, 2), torch.arange(60) % 2
    a, b = (
        load_images(given, image_size=size, normalise="none").train.x * 255 for given in (pictures, tensors)
    )
    assert (a - b).abs().max() <= 1.01


def test_resized_images_of_unequal_size_agree_in_memory_and_lazily(tmp_path) -> None:
    for i in range(20):
        (tmp_path / NAMES[i % 2]).mkdir(exist_ok=True)
        Image.fromarray(RNG.integers(0, 256, (6 + i, 9, 3), dtype=np.uint8)).save(
            tmp_path / NAMES[i % 2] / f"{i}.png"
        )
    a = load_images(tmp_path, image_size=5)
    b = load_images(tmp_path, image_size=5, memory_limit=NO_ROOM)
    assert isinstance(b.train, LazySource) and same(a, b)


@pytest.mark.parametrize("kind", ["dataset", "folder"])
def test_lazy_is_the_same_data(tmp_path, kind: str) -> None:
    write_images(tmp_path)
    given = tmp_path if kind == "folder" else dataset(COLOUR)
    held, lazy = load_images(given), load_images(given, memory_limit=NO_ROOM)
    assert isinstance(held.train, TensorSource) and isinstance(lazy.train, LazySource)
    assert lazy.mean == pytest.approx(held.mean) and lazy.std == pytest.approx(held.std)
    assert same(held, lazy) and lazy.splits == held.splits and lazy.classes == held.classes
    assert lazy.fingerprint == load_images(given, memory_limit=NO_ROOM).fingerprint != held.fingerprint


def test_fingerprints_notice_a_changed_pixel_and_label() -> None:
    def fingerprint(pixels=GREY, labels=LABELS, rows=slice(0, 40), **options) -> str:
        splits = {"validation": dataset(rows=slice(40, 50)), "test": dataset(rows=slice(50, 60))}
        given = {"train": dataset(pixels, labels, rows), **splits}
        return load_images(given, **{"normalise": "none", **options}).fingerprint

    pixel, label = GREY.copy(), LABELS.copy()
    pixel[17, 3, 3] ^= 1
    label[0], label[1] = label[1], label[0]
    base = fingerprint()
    others = [
        fingerprint(pixel),
        fingerprint(labels=label),
        fingerprint(rows=slice(0, 39)),
        fingerprint(normalise="data"),
        fingerprint(memory_limit=NO_ROOM),
        fingerprint(labels=label, memory_limit=NO_ROOM),
    ]
    assert fingerprint() == base and len({base, *others}) == 7


def test_lazy_fingerprints_notice_file_names_and_sizes(tmp_path) -> None:
    write_images(tmp_path)
    before = load_images(tmp_path, memory_limit=NO_ROOM).fingerprint
    first = tmp_path / "ant" / "000.png"
    first = first.rename(tmp_path / "ant" / "000b.png")
    renamed = load_images(tmp_path, memory_limit=NO_ROOM).fingerprint
    with first.open("ab") as file:
        file.write(b"more")
    assert len({before, renamed, load_images(tmp_path, memory_limit=NO_ROOM).fingerprint}) == 3


def test_normalisation() -> None:
    by_hand = load_images(dataset(COLOUR), normalise="none")
    assert by_hand.mean == (0.0, 0.0, 0.0) and by_hand.std == (1.0, 1.0, 1.0)
    raw = by_hand.train.x.double()
    own = load_images(dataset(COLOUR))
    assert own.mean == pytest.approx(raw.mean((0, 2, 3)).tolist())
    assert own.std == pytest.approx(raw.std((0, 2, 3), correction=0).tolist())
    imagenet = load_images(dataset(COLOUR), normalise="imagenet")
    assert imagenet.mean == (0.485, 0.456, 0.406) and imagenet.std == (0.229, 0.224, 0.225)
    assert torch.allclose(imagenet.test.x[:, 1], (by_hand.test.x[:, 1] - 0.456) / 0.224)


def test_statistics_are_those_of_the_training_split_alone() -> None:
    test = np.full((20, 6, 5), 255, dtype=np.uint8)
    both = {"train": dataset(rows=slice(0, 40)), "test": dataset(test, rows=slice(0, 20))}
    data = load_images(both)
    assert data.mean[0] == pytest.approx(float(load_images(both, normalise="none").train.x.mean()))


def test_a_constant_channel_has_a_deviation_of_one() -> None:
    mean, std = moments([torch.full((5, 2, 3, 3), 0.3), torch.full((5, 2, 3, 3), 0.3)])
    assert mean == pytest.approx((0.3, 0.3)) and std == (1.0, 1.0)


def test_train_samples_is_a_stratified_subset_of_train_alone() -> None:
    whole, part = load_images("digits"), load_images("digits", train_samples=100)
    assert sizes(part) == (100, 97, 900)
    assert part.train.labels.bincount().min() >= 9
    assert torch.equal(part.test.labels, whole.test.labels)
    raw = {image.numpy().tobytes() for image in load_images("digits", normalise="none").train.x}
    few = load_images("digits", train_samples=100, normalise="none").train.x
    assert all(image.numpy().tobytes() in raw for image in few)
    assert part.splits["train"]["origin"].endswith("; of it 100 samples, stratified")


def test_a_small_training_subset_has_every_class() -> None:
    y = torch.tensor([0] * 90 + [1] * 5 + [2] * 5)
    x = torch.zeros(100, 1, 2, 2)
    for samples in (3, 5):
        assert load_images((x, y), train_samples=samples).train.labels.unique().tolist() == [0, 1, 2]


def test_augmentation_is_for_training_alone() -> None:
    pytest.importorskip("torchvision")
    data = load_images("digits", augment="crop")
    ids = torch.arange(50)
    assert not data.train.fixed and data.validation.fixed and data.test.fixed
    assert not torch.equal(data.train.fetch(ids, 1)[0], data.train.fetch(ids, None)[0])
    assert torch.equal(data.train.fetch(ids, None)[0], load_images("digits").train.fetch(ids, None)[0])
    with pytest.warns(UserWarning, match="mirrored or turned"):
        load_images("digits", augment="crop-flip")


def test_validation_is_at_most_5000() -> None:
    x, y = torch.zeros(60_000, 1, 1, 1, dtype=torch.uint8), torch.arange(60_000) % 2
    assert sizes(load_images((x, y))) == (43_000, 5_000, 12_000)


def test_columns_are_found() -> None:
    plain = dataset()
    strings = plain.cast_column("label", datasets.Value("int64"))
    strings = strings.map(lambda row: {"target": NAMES[::-1][row["label"]]}, remove_columns="label")
    data = load_images(strings)
    assert data.classes == NAMES  # sorted, whatever their order in the data
    assert {k: 2 - v for k, v in everything(data).items()} == expected(GREY)
    cifar = plain.rename_column("label", "fine_label").add_column("coarse_label", [0] * 60)
    assert everything(load_images(cifar)) == expected(GREY)
    odd = plain.rename_column("label", "species").add_column("weight", [1] * 60)
    assert load_images(odd).classes == NAMES  # the only ClassLabel
    two = plain.add_column("kind", [i % 2 for i in range(60)])
    assert load_images(two, label_column="kind").classes == ["0", "1"]
    assert load_images(two, label_column="none").classes == []


def test_a_local_folder_is_not_taken_for_a_hub_data_set(tmp_path, monkeypatch) -> None:
    """`datasets` offline gives whoever asks for 'x' the cached copy of a local folder 'x'."""
    (tmp_path / "pets").mkdir()
    dataset().to_parquet(tmp_path / "pets" / "train.parquet")
    load_images(tmp_path / "pets")

    def offline(*_args, **_kwargs):
        raise OfflineModeIsEnabled("offline")

    monkeypatch.setattr(HfApi, "dataset_info", offline)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="^data 'pets' cannot be loaded from the hub"):
        load_images("pets")

"""Streams: the same samples by number as data that come whole, from memory or from disk, at a flat cost of memory."""

from __future__ import annotations

import gc
import io
import os
import shutil
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset

from stillroom.data import ImageData, LazySource, TensorSource, load_images, spool
from stillroom.data.spool import Room, keep
from stillroom.errors import UserError
from stillroom.plan import Feeder, Plan

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (60, 6, 5, 3), dtype=np.uint8)
LABELS = [i % 3 for i in range(60)]
NAMES = ["ant", "bee", "cow"]
NO_ROOM = 1000  # bytes: no more than two samples


@pytest.fixture(autouse=True)
def _own_caches(tmp_path, tmp_path_factory, monkeypatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path) -> Path:
    """Where streams are kept."""
    return tmp_path / "cache" / "streams"


def kept(root: Path) -> list[str]:
    return sorted(path.name for path in root.glob("*") if path.is_dir())


def encoded(pixels, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def table(rows=range(60), pixels=PIXELS, labels=LABELS) -> datasets.Dataset:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    images = [{"bytes": encoded(pixels[i]), "path": None} for i in rows]
    return datasets.Dataset.from_dict(
        {"image": images, "label": [labels[i] for i in rows]}, features=features
    )


def parquet(folder: Path, **options) -> Path:
    folder.mkdir(exist_ok=True)
    table(range(45), **options).to_parquet(str(folder / "train-00000-of-00001.parquet"))
    table(range(45, 60)).to_parquet(str(folder / "test-00000-of-00001.parquet"))
    return folder


def same(a: ImageData, b: ImageData) -> bool:
    """Whether every id of every split is the same sample."""
    for one, other in ((a.train, b.train), (a.validation, b.validation), (a.test, b.test)):
        ids = torch.arange(len(one))
        pairs = zip(one.fetch(ids, None), other.fetch(ids, None), strict=True)
        if len(one) != len(other) or not all(torch.equal(p, q) for p, q in pairs):
            return False
    return a.classes == b.classes


class Stream(IterableDataset):
    """Samples in one of the forms that users have; `begun` and `given` count what is read of it."""

    def __init__(self, form: str = "PIL", endless: bool = False) -> None:
        self.form, self.endless, self.begun, self.given = form, endless, 0, 0

    def __iter__(self):
        self.begun += 1
        while True:
            for i in range(60):
                self.given += 1
                yield self.item(i)
            if not self.endless:
                return

    def item(self, i: int):
        pixels, label = PIXELS[i], LABELS[i]
        tensor = torch.from_numpy(pixels).permute(2, 0, 1)
        forms = {
            "PIL": Image.fromarray(pixels),
            "CMYK": Image.fromarray(pixels).convert("CMYK"),
            "grey": Image.fromarray(pixels[..., 0]),
            "array": pixels,
            "uint8": tensor,
            "float": tensor / 255 - 0.5,
            "double": (tensor / 255).double(),
        }
        if self.form == "mapping":
            return {"id": i, "pixel_values": tensor, "labels": label}
        return forms[self.form], label


class Nothing(IterableDataset):
    def __iter__(self):
        return iter(())


def whole(form: str) -> list:
    stream = Stream(form)
    return [stream.item(i) for i in range(60)]


# -- what is read ----------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [2**30, NO_ROOM], ids=["memory", "disk"])
def test_a_stream_of_datasets_is_the_same_data(limit: int, root: Path) -> None:
    expected = load_images(table(), memory_limit=limit, normalise="none")
    data = load_images(table().to_iterable_dataset(), memory_limit=limit, normalise="none")
    assert same(data, expected) and data.shape == (3, 6, 5)
    assert isinstance(data.train, TensorSource if limit > NO_ROOM else LazySource)
    assert len(kept(root)) == (0 if limit > NO_ROOM else 1)


@pytest.mark.parametrize("limit", [2**30, NO_ROOM], ids=["memory", "disk"])
def test_a_folder_and_its_splits_as_streams(tmp_path, limit: int, root: Path) -> None:
    folder = parquet(tmp_path / "data")
    expected = load_images(folder, memory_limit=limit, normalise="none")
    for _ in range(2):
        data = load_images(folder, stream=True, memory_limit=limit, normalise="none")
        assert same(data, expected) and data.splits == expected.splits
        assert len(kept(root)) == (0 if limit > NO_ROOM else 2)  # one of each split
    in_hand = datasets.load_dataset(str(folder), streaming=True)
    assert same(load_images(in_hand, memory_limit=limit, normalise="none"), expected)
    assert data.splits["test"] == {"samples": 15, "origin": "split 'test' of data 'data', as given"}


def test_a_stream_without_features_has_its_columns_told_from_the_first_row() -> None:
    def rows():
        for i in range(60):
            yield {"picture": Image.fromarray(PIXELS[i]), "label": LABELS[i], "id": i}

    stream = datasets.IterableDataset.from_generator(rows)
    expected = load_images(whole("PIL"), normalise="none")
    for limit in (2**30, NO_ROOM):
        data = load_images(stream, memory_limit=limit, normalise="none")
        ids = torch.arange(len(data.train))
        pairs = zip(data.train.fetch(ids, None), expected.train.fetch(ids, None), strict=True)
        assert all(torch.equal(p, q) for p, q in pairs)


def test_columns_of_a_stream_are_named(root: Path) -> None:
    two = table().add_column("other", [i % 2 for i in range(60)]).to_iterable_dataset()
    assert load_images(two, memory_limit=NO_ROOM).classes == NAMES
    assert load_images(two, memory_limit=NO_ROOM, label_column="other").classes == ["0", "1"]
    assert load_images(two, memory_limit=NO_ROOM, label_column="none").train.labels is None
    assert len(kept(root)) == 3
    with pytest.raises(UserError, match="^split 'train' of data 'dataset' has no column 'x' among"):
        load_images(two, label_column="x")


@pytest.mark.parametrize("form", ["PIL", "CMYK", "grey", "array", "uint8", "float", "double", "mapping"])
def test_a_stream_of_torch_is_the_same_from_disk(form: str, root: Path) -> None:
    expected = load_images(whole(form))
    assert same(load_images(Stream(form)), expected) and kept(root) == []
    data = load_images(Stream(form), memory_limit=NO_ROOM)
    assert isinstance(data.train, LazySource) and len(kept(root)) == 1
    assert same(data, expected) and data.mean == pytest.approx(expected.mean, abs=1e-9)


@pytest.mark.parametrize("form", ["uint8", "mapping"])
@pytest.mark.parametrize("size", [None, 7])
def test_a_loader_of_a_stream_is_the_same_from_disk(form: str, size: int | None) -> None:
    data = load_images(DataLoader(Stream(form), batch_size=size), memory_limit=NO_ROOM)
    assert same(data, load_images(whole(form))) and isinstance(data.train, LazySource)


def test_images_are_resized_as_they_come() -> None:
    expected = load_images(whole("PIL"), image_size=4)
    assert same(load_images(Stream(), image_size=4, memory_limit=NO_ROOM), expected)
    stream = table().to_iterable_dataset()
    assert same(load_images(stream, image_size=4, memory_limit=NO_ROOM), load_images(table(), image_size=4))


def test_batches_of_a_plan_are_those_of_memory_and_disjoint_between_processes() -> None:
    data = load_images(Stream("uint8"), memory_limit=NO_ROOM, augment=torch.nn.Identity())
    expected = load_images(whole("uint8"), augment=torch.nn.Identity())
    plan = Plan(len(data.train), 8, 2, 3)
    for step in range(plan.steps):
        seen = []
        for rank in range(2):
            (one,), (other,) = (
                Feeder(plan, each.train, rank, 2, 1, torch.device("cpu")).batches(step)[0]
                for each in (data, expected)
            )
            assert torch.equal(one.x, other.x) and torch.equal(one.y, other.y)
            seen += one.index.tolist()
        start, end = plan.rows(step)
        assert seen == plan.order(step // plan.steps_per_epoch)[start:end].tolist()


# -- how much is read ------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [2**30, NO_ROOM], ids=["memory", "disk"])
def test_the_first_samples_of_an_endless_stream(limit: int) -> None:
    stream = Stream("uint8", endless=True)
    data = load_images(stream, stream_samples=45, memory_limit=limit)
    assert same(data, load_images(whole("uint8")[:45])) and stream.given == 45


def test_the_first_samples_of_each_split(tmp_path) -> None:
    data = load_images(parquet(tmp_path / "data"), stream_samples=12)
    assert (len(data.train) + len(data.validation), len(data.test)) == (12, 12)


def test_the_first_samples_are_asked_of_streams_alone(tmp_path) -> None:
    way = "its samples are read by number: pass --task.train-samples in place of --task.stream-samples"
    Image.fromarray(PIXELS[0]).save(tmp_path / "0.png")
    for data, name in (
        ("digits", "data 'digits'"),
        (whole("PIL"), "data 'list'"),
        (table(), "split 'train' of data 'dataset'"),
        (tmp_path, f"data folder '{tmp_path}', of image files,"),
        ((torch.zeros(4, 1, 2, 2), torch.arange(4)), "a pair of tensors"),
    ):
        with pytest.raises(UserError) as error:
            load_images(data, stream_samples=3)
        assert str(error.value) == f"{name} is no stream, {way}"
    with pytest.raises(UserError, match="^--task.stream-samples is 0: pass a number of at least 1$"):
        load_images(Stream(), stream_samples=0)


def test_an_empty_stream() -> None:
    for data in (table().to_iterable_dataset().take(0), DataLoader(Nothing(), batch_size=None)):
        with pytest.raises(UserError, match="is empty: pass data with images$"):
            load_images(data)


# -- the disk ---------------------------------------------------------------------------------------


def test_an_endless_stream_stops_at_the_disk_limit_and_leaves_nothing(root: Path) -> None:
    told = "does not fit in memory: it is kept in .* a folder that is safe to remove"
    with pytest.warns(UserWarning, match=told), pytest.raises(UserError) as error:
        load_images(Stream("uint8", endless=True), memory_limit=NO_ROOM, disk_limit=100_000)
    assert str(error.value).startswith(
        "data 'Stream' needs more than 9.31e-05 GiB of disk, reached at sample "
    )
    assert str(error.value).endswith(
        ": pass --task.stream-samples N for the first N, or a larger --task.disk-limit, in GiB"
    )
    assert kept(root) == []


def test_the_size_is_predicted_where_the_number_of_samples_is_known(root: Path) -> None:
    given = []

    def cells():
        for i in range(10_000):
            given.append(i)
            yield b"x" * 99, 0

    with pytest.raises(UserError) as error:
        keep(root, None, cells, Room("data 'd'", 500_000, 10_000))
    assert str(error.value) == (
        "data 'd' needs about 0.000931 GiB of disk for 10000 samples: pass --task.stream-samples N for the first N, "
        "or a larger --task.disk-limit, in GiB"
    )
    assert len(given) == 256 and kept(root) == []
    assert len(keep(root, None, cells, Room("data 'd'", 1_000_001, 10_000))) == 10_000


def test_a_disk_without_room(root: Path, monkeypatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage(10**9, 10**9 - 10**8, 10**8))
    with pytest.raises(UserError) as error:
        keep(root, None, lambda: iter([(b"x" * 999, 0)] * 300), Room("data 'd'", 10**9, 200_000))
    assert str(error.value).startswith(f"data 'd' takes 0.186 GiB or more and '{root}")
    assert str(error.value).endswith(
        "has 0.0931 GiB free: pass --task.stream-samples N for the first N, or set STILLROOM_CACHE to a folder on "
        "another disk"
    )
    assert kept(root) == []


def test_a_disk_that_fills_up(root: Path, monkeypatch) -> None:
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError) as error:
        load_images(table().to_iterable_dataset(), memory_limit=NO_ROOM)
    assert str(error.value) == (
        f"split 'train' of data 'dataset' cannot be kept in '{root}' (No space left on device): pass "
        "--task.stream-samples N for the first N, or set STILLROOM_CACHE to another folder"
    )
    assert kept(root) == []
    monkeypatch.undo()


def test_an_error_of_the_stream_is_not_taken_for_one_of_the_disk(root: Path) -> None:
    def cells():
        yield b"x", 0
        raise ConnectionResetError(104, "Connection reset by peer")

    with pytest.raises(ConnectionResetError):
        keep(root, None, cells, Room("data 'd'", 10**9, None))
    assert kept(root) == []


# -- what is kept ----------------------------------------------------------------------------------


def counted(folder: Path, pixels=PIXELS):
    """A stream that counts, in a file, how many of its samples were read: an object of the stream is copied."""

    def rows(folder, pixels):
        for i in range(60):
            with open(folder / "given", "a") as file:
                file.write("x")
            yield {"image": {"bytes": encoded(pixels[i]), "path": None}, "label": LABELS[i]}

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    return datasets.IterableDataset.from_generator(
        rows, features=features, gen_kwargs={"folder": folder, "pixels": pixels}
    )


def given(folder: Path) -> int:
    count = len((folder / "given").read_text())
    (folder / "given").unlink()
    return count


def test_what_was_kept_is_not_read_again(tmp_path, root: Path) -> None:
    first = load_images(counted(tmp_path), memory_limit=NO_ROOM)
    assert given(tmp_path) >= 60
    again = load_images(counted(tmp_path), memory_limit=NO_ROOM, split_seed=0)
    assert given(tmp_path) <= 9  # its first eight, to see that it is the same
    assert same(first, again) and first.fingerprint == again.fingerprint and len(kept(root)) == 1
    other = load_images(counted(tmp_path, 255 - PIXELS), memory_limit=NO_ROOM)
    assert given(tmp_path) >= 60 and other.fingerprint != first.fingerprint


def test_a_changed_file_is_noticed(tmp_path, root: Path) -> None:
    first = load_images(parquet(tmp_path / "data"), stream=True, memory_limit=NO_ROOM)
    changed = PIXELS.copy()
    changed[40, 0, 0, 0] ^= 1
    second = load_images(parquet(tmp_path / "data", pixels=changed), stream=True, memory_limit=NO_ROOM)
    assert first.fingerprint != second.fingerprint and not same(first, second)
    expected = load_images(tmp_path / "data", memory_limit=NO_ROOM)
    ids = torch.arange(len(expected.train))
    assert torch.equal(second.train.fetch(ids, None)[0], expected.train.fetch(ids, None)[0])


def cells_of(values: list[int]):
    return lambda: iter([(torch.full((1, 2, 2), value), value) for value in values])


def values_of(kept_stream) -> list[int]:
    pictures = kept_stream.read(range(len(kept_stream)))
    return [int(picture[0, 0, 0]) for picture in pictures]


def test_a_stream_that_begins_otherwise_is_kept_anew_beside_one_in_use(root: Path) -> None:
    room = Room("data 'd'", 10**9, None)
    one = keep(root, "key", cells_of([1, 2, 3]), room)
    two = keep(root, "key", cells_of([4, 5]), room)  # `one` is in use
    assert values_of(one) == [1, 2, 3] and values_of(two) == [4, 5] and len(kept(root)) == 2
    del one
    gc.collect()
    three = keep(root, "key", cells_of([6]), room)
    assert values_of(three) == [6] and values_of(two) == [4, 5]
    del two
    gc.collect()
    assert kept(root) == ["key"] and sorted(path.name for path in root.glob("*.lock")) == ["key.lock"]


def test_a_kept_stream_that_was_cut_short_is_kept_anew(root: Path) -> None:
    room = Room("data 'd'", 10**9, None)
    for name in ("data.bin", "ends.bin", "about.json"):
        keep(root, "key", cells_of([1, 2, 3]), room)
        gc.collect()
        os.truncate(root / "key" / name, 9)
        assert values_of(keep(root, "key", cells_of([1, 2, 3]), room)) == [1, 2, 3]


def test_two_that_keep_one_stream_write_it_once(root: Path) -> None:
    begun = []

    def cells():
        begun.append(1)
        return iter([(torch.full((1, 40, 40), i), i) for i in range(200)])

    def work(_):
        return values_of(keep(root, "key", cells, Room("data 'd'", 10**9, None)))

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(work, range(4)))
    assert found == [list(range(200))] * 4 and kept(root) == ["key"]
    assert len(begun) == 4  # once to write, three times to see that it is the same


def test_the_longest_unused_make_room(root: Path) -> None:
    room = Room("data 'd'", 10**9, None)
    for i, key in enumerate("abc"):
        keep(root, key, cells_of([i] * 10), room)
        os.utime(root / key / "about.json", (i, i))
    gc.collect()
    held = keep(root, "a", cells_of([0] * 10), room)
    os.utime(root / "a" / "about.json", (0, 0))
    size = (root / "a" / "data.bin").stat().st_size
    keep(root, "d", cells_of([7]), Room("data 'd'", 2 * size, None))
    assert kept(root) == ["a", "c", "d"] and values_of(held) == [0] * 10


def test_what_killed_processes_left_is_removed(root: Path) -> None:
    room = Room("data 'd'", 10**9, None)
    for name in (".key", "own-1-0", ".own-1-0"):
        (root / name).mkdir(parents=True)
        (root / f"{name.lstrip('.')}.lock").touch()
    keep(root, "other", cells_of([1]), room)
    assert kept(root) == ["other"] and not list(root.glob("own*"))


def test_a_kept_stream_is_of_one_format(root: Path, monkeypatch) -> None:
    room = Room("data 'd'", 10**9, None)
    keep(root, "key", cells_of([1]), room)
    gc.collect()
    monkeypatch.setattr(spool, "FORMAT", 2)
    assert values_of(keep(root, "key", cells_of([1, 2]), room)) == [1, 2]

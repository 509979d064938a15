"""Every mistake has its one line: the thing, the value, the way out."""

from __future__ import annotations

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from stillroom.data import load_images
from stillroom.errors import UserError

X = torch.rand(20, 1, 4, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(20) % 2
NAME = "'tensors'"
TRAIN = f"split 'train' of data {NAME}"
PICTURES = [Image.fromarray(np.full((4, 4), i, dtype=np.uint8)) for i in range(20)]


@pytest.fixture(autouse=True)
def _own_datasets_cache(tmp_path_factory, monkeypatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def error(data, **options) -> str:
    with pytest.raises(UserError) as caught:
        load_images(data, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def table(**columns) -> datasets.Dataset:
    made = datasets.Dataset.from_dict({"image": PICTURES, "label": Y.tolist(), **columns})
    return made.cast_column("image", datasets.Image())


def nan_at(i: int) -> torch.Tensor:
    x = X.clone()
    x[i, 0, 2, 1] = float("nan")
    return x


def test_missing_folder(tmp_path) -> None:
    for path in (tmp_path / "x", str(tmp_path / "x"), "./nowhere", "a/b/c"):
        assert error(path) == (
            f"data folder '{path}' does not exist: pass --task.data with a folder, a hub name, 'digits' or 'objects'"
        )


def test_file_in_place_of_a_folder(tmp_path) -> None:
    (tmp_path / "a.parquet").touch()
    assert error(tmp_path / "a.parquet") == (
        f"data '{tmp_path / 'a.parquet'}' is a file: pass the folder that it is in"
    )


def test_empty_folder_and_empty_split(tmp_path) -> None:
    (tmp_path / "ant").mkdir()
    assert error(tmp_path) == f"data folder '{tmp_path}' is empty: pass a folder with images or parquet files"
    assert error((X[:0], Y[:0])) == "data 'tensors' is empty: pass data with images"
    assert error([]) == "data 'list' is empty: pass data with images"
    assert error({"train": table(), "test": table().select([])}) == (
        "split 'test' of data 'dataset' is empty: pass data with images"
    )


def test_unreadable_folder(tmp_path) -> None:
    (tmp_path / "train.parquet").write_bytes(b"not parquet")
    assert error(tmp_path).startswith(f"data folder '{tmp_path}' cannot be read (")
    assert error(tmp_path).endswith("): pass images or parquet")


def test_unknown_hub_name(monkeypatch) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled

    def refuse(*_args, **_kwargs):
        raise ConnectionError("Name or service not known\nand a second line")

    monkeypatch.setattr(HfApi, "dataset_info", refuse)
    assert error("nobody/nothing") == (
        "data 'nobody/nothing' is not a folder here and the hub cannot be reached "
        "(Name or service not known): pass --task.data with a folder, 'digits' or 'objects', or set HF_HUB_OFFLINE=1 "
        "to use a copy in the cache"
    )
    monkeypatch.undo()
    assert error("no body") == (
        "data 'no body' is not a folder here and not on the hub: "
        "pass --task.data with a folder, a hub name, 'digits' or 'objects'"
    )

    def offline(*_args, **_kwargs):
        raise OfflineModeIsEnabled("offline")

    monkeypatch.setattr(HfApi, "dataset_info", offline)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    assert error("nobody/nothing") == (
        "data 'nobody/nothing' cannot be loaded from the hub (Couldn't reach 'nobody/nothing' on the Hub "
        "(OfflineModeIsEnabled)): pass a folder or a datasets.Dataset"
    )


@pytest.mark.parametrize(
    ("labels", "line"),
    [
        ([1, -1] * 10, f"label -1 of sample 1 of {TRAIN} is out of range 0 to 1: correct or remove it"),
        ([0] * 20, "data 'tensors' has only one class, 0: pass at least two"),
        ([0.5] * 20, f"labels of {TRAIN} are float32 of shape [20]: give one integer or string a sample"),
        ([0] * 19 + [9999], f"data {NAME} has label 9999 and 20 training samples: number its classes from 0"),
        ([0] * 19, "x has 20 samples, y has shape [19]: pass one label a sample"),
        ([[0, 1]] * 20, "x has 20 samples, y has shape [20, 2]: pass one label a sample"),
    ],
)  # fmt: skip
def test_labels_of_tensors(labels, line: str) -> None:
    assert error((X, torch.tensor(labels))) == line


def test_label_beyond_the_names_of_the_classes() -> None:
    names = datasets.ClassLabel(names=["a", "b"])
    wrong = table().cast_column("label", names)
    assert error({"train": wrong, "test": _with_labels(wrong, [0] * 19 + [-1])}) == (
        "label -1 of sample 19 of split 'test' of data 'dataset' is out of range 0 to 1: correct or remove it"
    )
    assert error({"train": (X, Y), "test": (X, Y + 1)}) == (
        "label 2 of sample 1 of split 'test' of data 'tensors' is out of range 0 to 1: correct or remove it"
    )


def _with_labels(dataset: datasets.Dataset, labels: list[int]) -> datasets.Dataset:
    """Labels that ClassLabel itself does not check, as files from elsewhere have them."""
    import pyarrow as pa

    changed = dataset.data.table.set_column(1, "label", pa.array(labels))
    return datasets.Dataset(pa.table(changed), info=dataset.info)


def test_labels_across_splits() -> None:
    strings = table(label=["a", "b"] * 10)
    assert error({"train": strings, "test": table(label=["a", "c"] * 10)}) == (
        "label 'c' of split 'test' of data 'dataset' is not in the training split: correct or remove it"
    )
    assert error({"train": strings, "test": table()}) == (
        "labels of split 'test' of data 'dataset' are int64, those of 'train' <U1: "
        "give integers or strings in all splits"
    )
    assert error({"train": (X, Y), "test": X}) == (
        "split 'test' of data 'tensors' has no labels: label all splits or none"
    )
    a, b = (table().cast_column("label", datasets.ClassLabel(names=n)) for n in (["a", "b"], ["b", "a"]))
    assert error({"train": a, "test": b}) == (
        "splits 'train' and 'test' of data 'dataset' name their classes differently: make them equal"
    )
    assert error(table(label=[None] + [0, 1] * 9 + [1])) == (
        "sample 0 of split 'train' of data 'dataset' has no label: label or remove it"
    )


def test_columns() -> None:
    data = table(text=["word"] * 20)
    where = "split 'train' of data 'dataset'"
    assert error(data, image_column="text") == (
        f"column 'text' of {where} holds string, not images, which image does: pass --task.image-column NAME"
    )
    assert error(data.remove_columns("image"), image_column="text") == (
        f"column 'text' of {where} holds string, not images, which no column does: "
        "pass --task.image-column NAME"
    )
    assert error(data.remove_columns("image")) == (
        f"{where} has no image columns among ['label', 'text']: pass --task.image-column NAME"
    )
    twice = table(text=["word"] * 20, other=PICTURES).cast_column("other", datasets.Image())
    assert error(twice) == (
        f"{where} has 2 image columns among ['image', 'label', 'text', 'other']: "
        "pass --task.image-column NAME"
    )
    assert error(data, image_column="img") == (
        f"{where} has no column 'img' among ['image', 'label', 'text']: pass --task.image-column NAME"
    )
    assert error(data, label_column="lbl") == (
        f"{where} has no column 'lbl' among ['image', 'label', 'text']: pass --task.label-column NAME"
    )
    assert error(data, label_column="image") == (
        f"column 'image' of {where} holds PIL.Image.Image, not labels: pass --task.label-column with a "
        "column of integers or strings"
    )
    assert error(data.rename_column("label", "kind")) == (
        f"{where} has no column that is known to hold labels among ['image', 'kind', 'text']: "
        "pass --task.label-column NAME ('none' for unlabelled data)"
    )


def test_a_transform_on_a_dataset() -> None:
    assert error(table().with_transform(lambda batch: batch)) == (
        "split 'train' of data 'dataset' has a transform of its own (set_transform), which would be passed "
        "over: pass dataset.with_format(None), and the transform as augment"
    )


def test_pixels() -> None:
    assert (
        error((nan_at(13), Y))
        == "sample 13 of data 'tensors' has NaN or infinite pixels: remove or repair it"
    )
    assert error((X / 0, Y)).endswith("has NaN or infinite pixels: remove or repair it")
    assert error(((X * 9).long(), Y)).endswith("has int64 pixels: give uint8 in 0 .. 255, or floats")
    assert (
        error((torch.rand(20, 8, 8, 3), Y))
        == "x has shape [20, 8, 8, 3], channels last: pass x.permute(0, 3, 1, 2)"
    )
    assert error((torch.rand(20, 5), Y)) == "x has shape [20, 5]: pass images [N, C, H, W] or [N, H, W]"
    assert error((X, Y, Y)) == "data is a tuple of 3 tensors: pass images and labels, (x, y)"


def test_tensors_that_differ() -> None:
    mixed = [(x if i else (x * 255).to(torch.uint8), i % 2) for i, x in enumerate(X)]
    assert error(mixed).endswith("float32 pixels, the first of its split torch.uint8: make them equal")
    mixed = [(x if i < 19 else x.expand(3, 4, 4), i % 2) for i, x in enumerate(X)]
    assert error(mixed) == "sample 0 of data 'list' has 1 channels and others have 3: make them equal"
    assert error({"train": (X, Y), "test": (X.expand(20, 3, 4, 4), Y)}).endswith("make them equal")


def test_nan_in_lazy_data_is_found_when_it_is_fetched() -> None:
    pairs = [(x, int(y)) for x, y in zip(nan_at(13), Y, strict=True)]
    assert (
        error(pairs, memory_limit=100)
        == "sample 13 of data 'list' has NaN or infinite pixels: remove or repair it"
    )


@pytest.mark.parametrize("limit", [2**30, 100])
def test_unequal_sizes(tmp_path, limit: int) -> None:
    for i, picture in enumerate(PICTURES):
        (tmp_path / "ab"[i % 2]).mkdir(exist_ok=True)
        picture.resize((4, 7) if i == 8 else (4, 4)).save(tmp_path / "ab"[i % 2] / f"{i:02d}.png")
    line = error(tmp_path, memory_limit=limit)
    assert line == (
        f"file '{tmp_path / 'a' / '08.png'}' is 7 x 4 pixels (height x width) and others are 4 x 4: "
        "pass --task.image-size N"
    )
    assert load_images(tmp_path, image_size=4, memory_limit=limit).shape == (1, 4, 4)


def test_unreadable_images(tmp_path) -> None:
    for i, picture in enumerate(PICTURES):
        (tmp_path / "ab"[i % 2]).mkdir(exist_ok=True)
        picture.resize((40, 40)).save(tmp_path / "ab"[i % 2] / f"{i:02d}.png")
    bad = tmp_path / "a" / "04.png"
    whole = bad.read_bytes()
    bad.write_bytes(whole[: len(whole) - 30])
    assert error(tmp_path).startswith(f"file '{bad}' cannot be read as an image (")
    bad.write_bytes(b"text")
    assert error(tmp_path).startswith(f"file '{bad}' cannot be read as an image (")
    assert error(tmp_path).endswith("): remove or repair it")
    Image.fromarray(np.zeros((40, 40), dtype=np.uint16)).save(bad)
    assert error(tmp_path) == (
        f"file '{bad}' has mode I;16, more than 8 bits a channel: convert it to L or RGB"
    )


def test_missing_image_in_a_table() -> None:
    assert error(table(image=[PICTURES[0], None, *PICTURES[2:]])) == (
        "row 1 of split 'train' of data 'dataset' has no image: remove it"
    )


def test_loose_images_beside_class_folders(tmp_path) -> None:
    (tmp_path / "a").mkdir()
    PICTURES[0].save(tmp_path / "a" / "0.png")
    PICTURES[1].save(tmp_path / "1.png")
    assert error(tmp_path) == (
        f"folder '{tmp_path}' has images in class folders and others that are not, such as '1.png': "
        "move them into class folders, or remove them"
    )


def test_train_samples() -> None:
    assert error((X, Y), train_samples=15) == (
        "data 'tensors' has 14 training samples, 15 were asked for: pass --task.train-samples of at most 14"
    )
    assert error((X, torch.arange(20) % 4), train_samples=3) == (
        "data 'tensors' has 4 classes, 3 training samples were asked for: "
        "pass --task.train-samples of at least 4"
    )
    assert error((X, Y), train_samples=0) == "--task.train-samples is 0: pass a number of at least 1"
    assert error((X, Y), image_size=-3) == "--task.image-size is -3: pass a number of at least 1"


def test_too_few_to_split() -> None:
    assert error((X[:2], Y[:2])) == (
        "data 'tensors' has 2 training samples, too few for a test split: pass data that have one"
    )


def test_normalisation() -> None:
    assert error((X, Y), normalise="imagenet") == (
        "normalisation 'imagenet' is for 3 channels, data 'tensors' has 1: pass --task.normalise data"
    )
    assert error((X, Y), normalise="zscore") == (
        "normalisation 'zscore' is unknown: pass --task.normalise with data, imagenet, centred, none"
    )


def test_things_that_are_no_data() -> None:
    assert error(7) == (
        "data of type int cannot be read: pass 'digits' or 'objects', a folder, a hub name, a "
        "datasets.Dataset, a DataLoader, a map-style data set or tensors (x, y)"
    )
    assert error([{"image": 1}] * 4) == (
        "sample 0 of data 'list' has no label among ['image']: pass --task.label-column NAME ('none' for "
        "unlabelled data)"
    )
    assert error([("path.png", 0)] * 4) == (
        "sample 0 of data 'list' has a str for an image: give a PIL image, an array or a tensor"
    )

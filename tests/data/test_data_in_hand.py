"""Data in hand: tensors, loaders, map-style and iterable data sets."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, TensorDataset

from stillroom.data import ImageData, LazySource, TensorSource, load_images
from stillroom.errors import UserError

X = torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 4 - 2
Y = torch.arange(40) % 2
NO_ROOM = 100


class Pairs(Dataset):
    """(image, label), the image in one of the forms that users have; random on demand."""

    def __init__(self, form: str = "tensor", noise=None) -> None:
        self.form, self.noise, self.reads = form, noise, 0

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, i: int):
        self.reads += 1
        image = X[i] + (self.noise() if self.noise else 0)
        pixels = ((image + 4) * 20).to(torch.uint8)
        if self.form == "PIL":
            image = Image.fromarray(pixels[0].numpy())
        elif self.form == "array":
            image = pixels.permute(1, 2, 0).numpy()
        return image, int(Y[i])


class Stream(IterableDataset):
    def __init__(self, source: Dataset, endless: bool = False) -> None:
        self.source, self.endless = source, endless

    def __iter__(self):
        while True:
            yield from (self.source[i] for i in range(40))
            if not self.endless:
                return


def rows(data: ImageData) -> list[tuple[bytes, int]]:
    found = []
    for source in (data.train, data.validation, data.test):
        x, y = source.fetch(torch.arange(len(source)), None)
        found += [(image.numpy().tobytes(), int(label)) for image, label in zip(x, y, strict=True)]
    return sorted(found)


def sizes(data: ImageData) -> tuple[int, int, int]:
    return len(data.train), len(data.validation), len(data.test)


def collate(items):
    return torch.stack([x for x, _ in items]), torch.tensor([y for _, y in items])


EXPECTED = sorted((x.numpy().tobytes(), int(y)) for x, y in zip(X, Y, strict=True))


@pytest.mark.parametrize(
    "given",
    [
        (X, Y),
        (X[:, 0], Y),
        (X.double(), Y.to(torch.uint8)),
        (X.numpy(), Y.numpy()),
        (X.clone().requires_grad_(), Y),
        TensorDataset(X, Y),
        DataLoader(TensorDataset(X, Y), batch_size=7, shuffle=True, drop_last=True),
        Pairs(),
        [(x, int(y)) for x, y in zip(X, Y, strict=True)],
        DataLoader(Pairs(), batch_size=7),
        DataLoader(Pairs(), batch_size=7, collate_fn=collate),
        DataLoader(Pairs(), batch_size=None),
        Stream(Pairs()),
        DataLoader(Stream(Pairs()), batch_size=7),
        DataLoader(Stream(Pairs()), batch_size=None),
    ],
    ids=lambda given: type(given).__name__,
)  # fmt: skip
def test_tensors_are_taken_as_they_are(given) -> None:
    data = load_images(given)
    assert rows(data) == EXPECTED and sizes(data) == (28, 4, 8)
    assert (
        data.mean == (0.0,) and data.std == (1.0,) and data.shape == (1, 4, 4) and data.classes == ["0", "1"]
    )
    assert isinstance(data.train, TensorSource)


@pytest.mark.parametrize(("form", "mean"), [("PIL", 80 / 255), ("array", 0.0)])
def test_pictures_and_arrays(form: str, mean: float) -> None:
    assert load_images(Pairs(form)).mean == pytest.approx((mean,), abs=0.02)
    raw = load_images(Pairs(form), normalise="none").train.x * 255
    assert raw.shape[1:] == (1, 4, 4)
    whole = {((x + 4) * 20).to(torch.uint8).numpy().tobytes() for x in X}
    assert {image.round().to(torch.uint8).numpy().tobytes() for image in raw} <= whole


def test_uint8_tensors_are_scaled() -> None:
    x = (X * 50 + 100).to(torch.uint8)
    data = load_images((x, Y))
    given = {image.numpy().tobytes() for image in x}
    assert {image.round().to(torch.uint8).numpy().tobytes() for image in data.train.x * 255} <= given
    assert float(data.train.x.max()) <= 1 and data.mean == (0.0,)
    assert load_images((x, Y), normalise="data").mean != (0.0,)


def test_unlabelled_tensors() -> None:
    for given in (X, (X,), (X, None), DataLoader(TensorDataset(X))):
        data = load_images(given)
        assert data.classes == [] and data.train.labels is None and sizes(data) == (28, 4, 8)


def test_splits_by_name() -> None:
    data = load_images(
        {"train": (X[:30], Y[:30]), "test": DataLoader(TensorDataset(X[30:], Y[30:]), batch_size=3)}
    )
    assert sizes(data) == (27, 3, 10) and rows(data) == EXPECTED
    assert torch.equal(data.test.x, X[30:])


def test_a_data_set_without_room_is_read_as_it_is_needed() -> None:
    pairs = Pairs()
    data = load_images(pairs, memory_limit=NO_ROOM)
    assert isinstance(data.train, LazySource) and rows(data) == EXPECTED and data.train.fixed
    pairs.reads = 0
    data.train.fetch(torch.tensor([3, 1, 2]), None)
    assert pairs.reads == 3


def test_declared_labels_save_a_reading_pass_and_are_checked() -> None:
    pairs = Pairs()
    pairs.targets = Y.tolist()
    load_images(pairs, memory_limit=NO_ROOM)
    honest = pairs.reads
    pairs.reads, pairs.targets = 0, [0] * 40
    data = load_images(pairs, memory_limit=NO_ROOM)
    assert pairs.reads > honest and rows(data) == EXPECTED


@pytest.mark.parametrize(
    "noise", [lambda: float(torch.rand(1)), random.random, lambda: float(np.random.rand())]
)
def test_random_items_are_a_function_of_view_and_id(noise) -> None:
    with pytest.warns(
        UserWarning, match="has random transforms of its own, and test and validation are cut from it"
    ):
        data = load_images(DataLoader(Pairs(noise=noise), shuffle=True))
    assert isinstance(data.train, LazySource) and not data.train.fixed
    ids = torch.tensor([4, 9, 0])
    views = [data.train.fetch(ids, view)[0] for view in (1, 2, None)]
    assert not torch.equal(views[0], views[1]) and not torch.equal(views[0], views[2])
    torch.rand(3), random.random(), np.random.rand()
    for view, seen in zip((1, 2, None), views, strict=True):
        assert torch.equal(data.train.fetch(ids.flip(0), view)[0].flip(0), seen)


def test_loading_random_data_draws_nothing_from_the_process() -> None:
    torch.manual_seed(2)
    expected = torch.rand(1)
    torch.manual_seed(2)
    with pytest.warns(UserWarning):
        load_images(Pairs(noise=lambda: float(torch.rand(1))))
    assert torch.equal(torch.rand(1), expected)


def test_a_private_generator_cannot_be_reproduced() -> None:
    private = np.random.default_rng(0)
    with pytest.raises(UserError) as error:
        load_images(Pairs(noise=private.random))
    assert str(error.value) == (
        "sample 0 of data 'Pairs' differs between two readings under one seed: let its transforms draw from "
        "torch's, random's or numpy's process-wide generator"
    )


def test_a_stream_that_draws_is_the_same_in_every_run() -> None:
    a = load_images(Stream(Pairs(noise=random.random)))
    random.random()
    b, c = (load_images(Stream(Pairs(noise=random.random)), split_seed=seed) for seed in (0, 1))
    assert rows(a) == rows(b) != rows(c)


def test_a_sampler_of_ones_own() -> None:
    class Odd(RandomSampler):
        pass

    with pytest.raises(UserError) as error:
        load_images(DataLoader(Pairs(), sampler=Odd(Pairs())))
    assert str(error.value) == (
        "the DataLoader has a sampler of its own, Odd: Stillroom draws its own order, pass the dataset"
    )
    with pytest.raises(UserError, match="^the DataLoader has a sampler of its own, list: "):
        load_images(DataLoader(Pairs(), batch_sampler=[[0, 1], [2, 3]]))

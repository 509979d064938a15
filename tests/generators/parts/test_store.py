"""Samples that a teacher makes once: written in blocks, gone on with, refused where damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from stillroom import store as module
from stillroom.errors import UserError
from stillroom.generators.parts.store import StoreSource
from stillroom.store import kept_store


def rows(ids: range) -> dict[str, Tensor]:
    x = torch.tensor(list(ids), dtype=torch.float32)
    return {"x0": x.view(-1, 1).expand(-1, 3).half(), "eps": -x.view(-1, 1).expand(-1, 3), "label": x.long()}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path))


def test_a_store_is_made_once() -> None:
    asked: list[range] = []

    def make(ids: range) -> dict[str, Tensor]:
        asked.append(ids)
        return rows(ids)

    kept = kept_store("pairs", {"teacher": "a"}, 25, make, block=10)
    assert asked == [range(10), range(10, 20), range(20, 25)]
    again = kept_store("pairs", {"teacher": "a"}, 25, make, block=10)
    assert len(asked) == 3
    assert torch.equal(kept.rows("eps"), again.rows("eps"))
    kept_store("pairs", {"teacher": "b"}, 25, make, block=10)
    assert len(asked) == 6


@pytest.mark.parametrize("limit", [0, 2**30])
def test_rows_come_side_by_side(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IN_MEMORY", limit)
    source = StoreSource(kept_store("pairs", {}, 25, rows, block=10), ("eps", "x0"), "label")
    x, y = source.subset(torch.tensor([24, 3, 7])).fetch(torch.tensor([0, 2]), None)
    assert x.dtype == torch.float32
    assert x[:, :, 0].tolist() == [[-24.0, 24.0], [-7.0, 7.0]]
    assert y is not None
    assert y.tolist() == [24, 7]


def test_numbers_of_embeddings_come_as_the_embeddings() -> None:
    table = torch.randn(25, 2, 4)
    source = StoreSource(kept_store("pairs", {}, 25, rows), ("x0",), "label", table)
    assert source.labels is None
    _, y = source.subset(torch.tensor([24, 3, 7])).fetch(torch.tensor([0, 2]), None)
    assert y is not None
    assert torch.equal(y, table[[24, 7]])


def test_a_killed_making_goes_on(tmp_path: Path) -> None:
    def die(ids: range) -> dict[str, Tensor]:
        if ids.start == 20:
            raise ConnectionAbortedError
        return rows(ids)

    with pytest.raises(ConnectionAbortedError):
        kept_store("pairs", {}, 25, die, block=10)
    asked: list[range] = []

    def make(ids: range) -> dict[str, Tensor]:
        asked.append(ids)
        return rows(ids)

    whole = kept_store("pairs", {}, 25, make, block=10)
    assert asked == [range(20, 25)]
    assert whole.rows("label").tolist() == list(range(25))


def test_a_damaged_store_is_one_line(tmp_path: Path) -> None:
    kept = kept_store("pairs", {}, 25, rows)
    (kept.folder / "eps.npy").write_bytes(b"x")
    with pytest.raises(UserError, match="the kept samples '.*' are damaged .* remove that folder"):
        kept_store("pairs", {}, 25, rows)


def test_a_store_larger_than_the_disk_is_refused_before_it_is_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: type("Free", (), {"free": 100})())
    with pytest.raises(UserError, match=r"25 pairs take 0.0 GB and '.*' has 0.0 GB free: ask for fewer"):
        kept_store("pairs", {}, 25, rows)

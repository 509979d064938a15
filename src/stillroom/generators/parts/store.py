"""Samples that a teacher makes to train a student on, made once and kept on disk: pairs, trajectories.

They are in the cache under a name made of all that determines them; see `stillroom.store` for the files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from stillroom.config import digest
from stillroom.runtime import Runtime
from stillroom.store import Make, Store, filled
from stillroom.teaching import cache

FORMAT = 2
"""Of the files; a store of another format has another name."""


class StoreSource:
    """A store as a source of training samples: x [n, k, ...] holds the arrays `names` side by side, y the labels.

    Where the array `label` numbers `embeddings` [m, ...], y holds those, and there are no labels.
    """

    def __init__(
        self,
        store: Store,
        names: Sequence[str],
        label: str = "",
        embeddings: Tensor | None = None,
        ids: Tensor | None = None,
    ) -> None:
        self.store, self.names, self.label, self.embeddings = store, tuple(names), label, embeddings
        self.ids = torch.arange(len(store)) if ids is None else ids

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def fixed(self) -> bool:
        """See `Source.fixed`."""
        return True

    @property
    def labels(self) -> Tensor | None:
        """See `Source.labels`."""
        return self._numbers(self.ids) if self.embeddings is None else None

    def _numbers(self, rows: Tensor) -> Tensor | None:
        return self.store.rows(self.label, rows) if self.label in self.store.arrays else None

    def fetch(self, ids: Tensor, view: int | None) -> tuple[Tensor, Tensor | None]:
        """See `Source.fetch`."""
        rows = self.ids.index_select(0, ids)
        x = torch.stack([self.store.rows(name, rows) for name in self.names], 1)
        numbers = self._numbers(rows)
        return x, numbers if self.embeddings is None else self.embeddings[numbers]

    def subset(self, ids: Tensor) -> StoreSource:
        """See `Source.subset`."""
        return StoreSource(self.store, self.names, self.label, self.embeddings, self.ids.index_select(0, ids))


def kept_store(kind: str, key: Mapping[str, Any], count: int, make: Make, block: int = 500) -> Store:
    """The store of `count` rows that `key` determines: from the cache, or made now by the main process.

    Raises UserError, before much is written, where the disk has no room for it.
    """
    whole = {"kind": kind, "count": count, "block": block, "format": FORMAT, **key}
    place = cache() / "stores" / f"{kind}-{digest(whole)}"
    runtime = Runtime()
    if runtime.main:
        filled(place, count, block, make, kind)
    runtime.barrier()
    return Store(place)

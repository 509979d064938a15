"""Samples that a teacher made and that are kept on disk (`stillroom.store`), as what a student trains on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stillroom.store import Store


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

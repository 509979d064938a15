"""An unlabelled pool: a frozen network's scores of it, the best of each class, and no image that is scored on.

Everything here looks at images as they are, not augmented, and goes through a pool in parts of a fixed size, so that
it finds the same bits on one process and on several.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from stillroom.data import Source
from stillroom.runtime import Runtime
from stillroom.teacher import Teacher

AT_ONCE = 512
"""Images that a network is asked about at once."""
SIDE = 32
"""Images are compared at this height and width at most, pixels."""


@dataclass(frozen=True)
class Pool:
    """Images without labels."""

    source: Source
    where: Callable[[int], str]
    """What to call an image, by its id: its file's path, where it has one."""
    kinds: tuple[str, ...] = ()
    """Of a pool that was made here, what each image is; () where nobody knows."""


class Union:
    """Samples of several sources as one, without their labels: ids run through the sources in turn."""

    labels = None

    def __init__(self, *parts: Source) -> None:
        self.parts = parts
        self._starts = torch.tensor([0, *(len(part) for part in parts)]).cumsum(0)

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def fixed(self) -> bool:
        """See `Source.fixed`."""
        return all(part.fixed for part in self.parts)

    def fetch(self, ids: Tensor, view: int | None) -> tuple[Tensor, None]:
        """See `Source.fetch`; a sample looks as in its own source in that view."""
        which = torch.searchsorted(self._starts, ids, right=True) - 1
        rows, found = [], []
        for number, part in enumerate(self.parts):
            mine = (which == number).nonzero().squeeze(1)
            if len(mine):
                rows.append(mine)
                found.append(part.fetch(ids[mine] - self._starts[number], view)[0])
        return torch.cat(found)[torch.cat(rows).argsort()], None

    def subset(self, ids: Tensor) -> Subset:
        """See `Source.subset`."""
        return Subset(self, ids)


class Subset:
    """Some samples of a source that cannot be cut itself."""

    def __init__(self, source: Source, ids: Tensor) -> None:
        self.source, self.ids = source, ids

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def fixed(self) -> bool:
        """See `Source.fixed`."""
        return self.source.fixed

    @property
    def labels(self) -> Tensor | None:
        """See `Source.labels`."""
        return None if self.source.labels is None else self.source.labels[self.ids]

    def fetch(self, ids: Tensor, view: int | None) -> tuple[Tensor, Tensor | None]:
        """See `Source.fetch`."""
        return self.source.fetch(self.ids[ids], view)

    def subset(self, ids: Tensor) -> Subset:
        """See `Source.subset`."""
        return Subset(self.source, self.ids[ids])


def _through(source: Source, ask: Callable[[Tensor], Tensor], runtime: Runtime) -> Tensor:
    """Rows of `ask(x)` for all images x of `source`, in order; each process asks about its share of the parts."""
    parts = torch.arange(len(source)).split(AT_ONCE)
    own = torch.arange(len(parts)).tensor_split(runtime.size)[runtime.rank].tolist()
    made = [ask(source.fetch(parts[i], None)[0].to(runtime.device)) for i in own]
    return runtime.gather_rows(
        torch.cat(made or [ask(source.fetch(parts[0], None)[0].to(runtime.device))[:0]])
    )


# -- scores and choice --------------------------------------------------------------------------------------------


def score_pool(scorer: Teacher, pool: Source, runtime: Runtime) -> tuple[Tensor, Tensor]:
    """The largest probability that `scorer` gives each image, float64 [N], and its class, int64 [N]."""

    def ask(x: Tensor) -> Tensor:
        # in float32 many a score would be exactly 1, and the best of them a matter of order
        scores, classes = scorer.answer(x).double().softmax(-1).max(-1)
        return torch.stack([scores, classes.double()], -1)

    scorer.to(runtime.device)
    scores, classes = _through(pool, ask, runtime).unbind(-1)
    return scores, classes.long()


def top_k_per_class(scores: Tensor, classes: Tensor, k: int, among: Tensor) -> Tensor:
    """Ids, ascending, of the `k` >= 1 images of each class with the highest scores; all of a class that has fewer.

    scores [N]; classes int64 [N], the one class that each image stands for; among bool [N], who may be chosen. Of
    equal scores the lower id comes first.
    """
    ids = among.nonzero().squeeze(1)
    ids = ids[scores[ids].argsort(descending=True, stable=True)]
    ids = ids[classes[ids].argsort(stable=True)]
    counts = classes[ids].bincount()
    place = torch.arange(len(ids)) - (counts.cumsum(0) - counts)[classes[ids]]
    return ids[place < k].sort().values


def random_choice(count: int, among: Tensor, seed: int) -> Tensor:
    """Ids, ascending, of `count` images drawn from those that `among`, bool [N], names; all where there are fewer."""
    ids = among.nonzero().squeeze(1)
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed))
    return ids[order[:count]].sort().values


# -- near-duplicates ----------------------------------------------------------------------------------------------


def pattern(x: Tensor, size: Sequence[int]) -> Tensor:
    """What images x [n, C, H, W] look like: grey, of `size` (height, width), mean 0, norm 1; [n, pixels], float32.

    The product of two patterns is the correlation of their pixels, which neither brightness nor contrast changes. An
    image without any contrast is 0, and like none.
    """
    grey = x.float().mean(1, keepdim=True)
    flat = F.interpolate(grey, list(size), mode="bilinear", antialias=True).flatten(1)
    flat = flat - flat.mean(1, keepdim=True)
    norm = flat.norm(dim=1, keepdim=True)
    return torch.where(norm > 1e-4, flat / norm.clamp_min(1e-4), 0.0)


def likeness(pool: Source, held_out: Sequence[Source], runtime: Runtime) -> Tensor:
    """How near each image of `pool` comes to any image of `held_out`: correlation of patterns in [-1, 1], [N].

    All are compared with all, at 32 x 32 pixels or the size of the smallest: N x M products of up to 1,024 numbers.
    Copies that were scaled, coded anew or changed in brightness are near 1; those that were cut, mirrored or turned
    are not found.
    """
    shapes = [one.fetch(torch.arange(1), None)[0].shape[-2:] for one in (pool, *held_out)]
    size = [min(SIDE, *(shape[axis] for shape in shapes)) for axis in (0, 1)]
    known = [_through(one, lambda x: pattern(x, size), runtime).to(runtime.device) for one in held_out]

    def ask(x: Tensor) -> Tensor:
        mine = pattern(x, size)
        return torch.stack([(mine @ part.T).amax(1) for rows in known for part in rows.split(4096)]).amax(0)

    return _through(pool, ask, runtime)

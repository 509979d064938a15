"""Random crops that can be made again: boxes as fractions of an image, flips, and sources that cut them out.

A crop is a box (top / H, left / W, height / H, width / W) and a flip, which say the same of an image stored at another
resolution. Boxes are drawn as torchvision's RandomResizedCrop draws them, from a seed and an image's id, so that who
draws them, how many at once and in which order does not matter.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from stillroom.data.source import Source, WrappedSource
from stillroom.errors import UserError
from stillroom.seeds import seed_of

ATTEMPTS = 10
"""Boxes that are tried before a central one is taken, as in torchvision."""
LEAST_PIXELS = 4
"""A crop that is narrower holds nothing to look at."""
BOXES, PICKS, ORDER = 41, 42, 43
"""Keep the boxes of crops, the choice among them, and the order of images apart from all other seeds."""


@dataclass(frozen=True)
class Cropping:
    """How crops are drawn and what becomes of them."""

    size: tuple[int, int]
    """Height and width that each is scaled to, pixels."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Least and largest share of the image's area."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Least and largest ratio of width to height."""
    flip: float = 0.5
    """Chance of the mirror image."""

    def see_room(self, height: int, width: int, flag: str = "--task.scale") -> None:
        """Raise UserError where images of this size, pixels, are too small for such crops."""
        narrow = math.sqrt(height * width * self.scale[0] * min(self.ratio[0], 1 / self.ratio[1]))
        if narrow < LEAST_PIXELS:
            least = LEAST_PIXELS**2 / (height * width * min(self.ratio[0], 1 / self.ratio[1]))
            larger = f", or {flag} {math.ceil(1000 * least) / 1000:g} 1" if least < 1 else ""
            raise UserError(
                f"images of {height} x {width} pixels are too small for crops of {self.scale[0]:g} of their area, "
                f"{narrow:.1f} pixels at the narrowest: pass images that are larger{larger}"
            )


# -- boxes ----------------------------------------------------------------------------------------------------------


def draw_crops(
    seed: int, ids: Sequence[int], count: int, image: tuple[int, int], cropping: Cropping
) -> tuple[Tensor, Tensor]:
    """`count` boxes, float32 [n, count, 4], and flips, bool [n, count], of n images of `image` pixels.

    What image `i` gets is a function of (seed, i) alone. Areas are uniform, the logarithm of the ratio is uniform, and
    the first of ten attempts that fits is taken (else the largest central box of an allowed ratio).
    """
    height, width = image
    generators = [torch.Generator().manual_seed(seed_of(BOXES, seed, i)) for i in ids]
    shape = torch.stack(
        [torch.rand(count, ATTEMPTS, 2, generator=g, dtype=torch.float64) for g in generators]
    )
    place = torch.stack([torch.rand(count, 3, generator=g, dtype=torch.float64) for g in generators])
    low, high = cropping.scale
    area = height * width * (low + (high - low) * shape[..., 0])
    logs = [math.log(r) for r in cropping.ratio]
    ratio = (logs[0] + (logs[1] - logs[0]) * shape[..., 1]).exp()
    tall, wide = (area / ratio).sqrt().round(), (area * ratio).sqrt().round()
    fits = (tall >= 1) & (tall <= height) & (wide >= 1) & (wide <= width)
    first = fits.int().argmax(-1, keepdim=True)
    tall, wide = (side.gather(-1, first).squeeze(-1) for side in (tall, wide))
    top = (place[..., 0] * (height - tall + 1)).floor()
    left = (place[..., 1] * (width - wide + 1)).floor()
    boxes = torch.stack([top, left, tall, wide], -1)
    boxes[~fits.any(-1)] = _central(height, width, cropping.ratio)
    sides = torch.tensor([height, width, height, width], dtype=torch.float64)
    return (boxes / sides).float(), place[..., 2] < cropping.flip


def _central(height: int, width: int, ratio: tuple[float, float]) -> Tensor:
    """The largest box in the middle whose ratio is allowed, pixels [4]."""
    wide = min(width, round(height * ratio[1]))
    tall = min(height, round(width / ratio[0]))
    return torch.tensor([(height - tall) // 2, (width - wide) // 2, tall, wide], dtype=torch.float64)


def pixels_of(box: Tensor, height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns of a box [4] in an image of this size: its edges at the nearest pixels, and at least one."""
    top, left, tall, wide = box.tolist()
    spans = []
    for start, length, side in ((top, tall, height), (left, wide, width)):
        first = min(max(round(start * side), 0), side - 1)
        spans.append(slice(first, min(max(round((start + length) * side), first + 1), side)))
    return spans[0], spans[1]


def replay(image: Tensor, box: Tensor, flip: bool, size: tuple[int, int], how: str = "bilinear") -> Tensor:
    """The crop [C, *size] that a box [4] and a flip stand for, of an image [C, H, W], float.

    Scaled with `how`, "bilinear" or "bicubic", without aliasing; the same bits whenever it is made.
    """
    rows, columns = pixels_of(box, *image.shape[-2:])
    part = image[None, :, rows, columns]
    if part.shape[-2:] != tuple(size):
        part = F.interpolate(part, size, mode=how, align_corners=False, antialias=True)
    return part[0].flip(-1) if flip else part[0]


def size_of(images: Tensor) -> tuple[int, int]:
    """Height and width of images [..., H, W], pixels."""
    return images.shape[-2], images.shape[-1]


def covered(boxes: Tensor, objects: Tensor) -> Tensor:
    """Share of an object's box [..., 4] that a crop's box [..., 4] holds, in [0, 1]; both as fractions."""
    first = torch.maximum(boxes[..., :2], objects[..., :2])
    last = torch.minimum(boxes[..., :2] + boxes[..., 2:], objects[..., :2] + objects[..., 2:])
    return (last - first).clamp_min(0).prod(-1) / objects[..., 2:].prod(-1)


# -- sources --------------------------------------------------------------------------------------------------------


class FreshCrops(WrappedSource):
    """One random crop of each image in each view, as usual augmentation; without a view the whole image.

    Where `objects` [N, 4] says where in each image its object is, a crop holds at least the share `visible` of it: the
    first of sixteen that does, or the one that holds the most.
    """

    fixed = False
    TRIED = 16

    def __init__(
        self, source: Source, cropping: Cropping, objects: Tensor | None = None, visible: float = 0.0
    ) -> None:
        super().__init__(source)
        self.cropping, self.objects, self.visible = cropping, objects, visible

    def fetch(self, ids: Tensor, view: int | None) -> tuple[Tensor, Tensor | None]:
        """See `Source.fetch`."""
        whole, y = self.source.fetch(ids, view)
        if view is None:
            return scaled(whole, self.cropping.size), y
        tried = self.TRIED if self.objects is not None and self.visible else 1
        boxes, flips = draw_crops(view, ids.tolist(), tried, size_of(whole), self.cropping)
        chosen = torch.zeros(len(ids), dtype=torch.int64)
        if self.objects is not None and self.visible:
            chosen = covered(boxes, self.objects[ids].unsqueeze(1)).clamp_max(self.visible).argmax(-1)
        crops = [
            replay(image, boxes[i, j], bool(flips[i, j]), self.cropping.size)
            for i, (image, j) in enumerate(zip(whole, chosen.tolist(), strict=True))
        ]
        return torch.stack(crops), y

    def subset(self, ids: Tensor) -> Self:
        """See `Source.subset`."""
        part = super().subset(ids)
        part.objects = None if self.objects is None else self.objects[ids]
        return part


class WholeImages(WrappedSource):
    """The images of `source`, each scaled to `size` pixels."""

    def __init__(self, source: Source, size: tuple[int, int]) -> None:
        super().__init__(source)
        self.size = size

    def fetch(self, ids: Tensor, view: int | None) -> tuple[Tensor, Tensor | None]:
        """See `Source.fetch`."""
        whole, y = self.source.fetch(ids, view)
        return scaled(whole, self.size), y


def scaled(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images [n, C, H, W] at another size, as crops are."""
    if images.shape[-2:] == tuple(size):
        return images
    return F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)


Places = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Boxes [n, K, 4] and flips [n, K] of all crops of the images `ids` (int64 [n])."""
Read = Callable[[Tensor, Tensor], Tensor]
"""Labels [n, ...] of the crops `picks` (int64 [n]) of the images `ids` (int64 [n])."""


class StoredCrops:
    """Rows of `each` stored crops: x [B, each, C, *size], and what `read` says of them, y [B, each, ...].

    `places` says which crops each image of `source` has, `kept` [N, K], bool, those that may be drawn. A row holds one
    image, which is loaded once, and `each` of its crops drawn without replacement (an image with fewer gives each of
    them before any comes again). An epoch has N / each rows, so that it counts as many crops as there are images;
    `each` epochs go through all images once. From the epoch `single` on, a row holds one crop of each of `each` images
    instead. `epochs` says the epoch of each view; another view is a pass of its own.
    """

    fixed = False

    def __init__(
        self,
        source: Source,
        places: Places,
        kept: Tensor,
        read: Read,
        each: int,
        size: tuple[int, int],
        epochs: Mapping[int, int] | None = None,
        single: int | None = None,
    ) -> None:
        self.source, self.places, self.kept, self.read = source, places, kept, read
        self.each, self.size, self.epochs, self.single = each, size, dict(epochs or {}), single
        self._views = {epoch: view for view, epoch in self.epochs.items()}
        self._order: tuple[int, Tensor] | None = None
        self.images = torch.arange(len(source))
        """Ids in `source` of the images that are seen [M]."""

    def __len__(self) -> int:
        return -(-len(self.images) // self.each)

    @property
    def labels(self) -> Tensor | None:
        """None: a row is no sample of one class."""
        return None

    def subset(self, ids: Tensor) -> StoredCrops:
        """The same crops of the images `ids` (int64 [n], numbers among those seen here) alone."""
        part = copy.copy(self)
        part.images, part._order = self.images.index_select(0, ids), None
        return part

    # -- what a row holds ----------------------------------------------------------------------------------------

    def rows(self, ids: Tensor, view: int | None) -> tuple[Tensor, Tensor]:
        """Images and numbers of the crops that rows `ids` [B] hold in a view, both int64 [B, each]."""
        view, each = 0 if view is None else view, self.each
        epoch = self.epochs.get(view)
        alone = epoch is not None and self.single is not None and epoch >= self.single
        slots = (
            ids.unsqueeze(1) * each + torch.arange(each) if alone else ids + len(self) * ((epoch or 0) % each)
        )
        # one order for all epochs of a pass, which share the images out
        order = self._ordered(view if alone or epoch is None else self._views[epoch - epoch % each])
        images = order[slots % len(order)]
        if alone:
            return images, self._picks(images.reshape(-1), view, 1).view_as(images)
        return images.unsqueeze(1).expand(-1, each), self._picks(images, view, each)

    def _ordered(self, number: int) -> Tensor:
        """The images in the order of a pass."""
        if self._order is None or self._order[0] != number:
            generator = torch.Generator().manual_seed(seed_of(ORDER, number))
            self._order = number, self.images[torch.randperm(len(self.images), generator=generator)]
        return self._order[1]

    def _picks(self, images: Tensor, view: int, count: int) -> Tensor:
        """Numbers [n, count] of crops, drawn from (view, image)."""
        scores = torch.stack(
            [
                torch.rand(
                    self.kept.shape[1],
                    generator=torch.Generator().manual_seed(seed_of(PICKS, view, image)),
                )
                for image in images.tolist()
            ]
        )
        kept = self.kept[images]
        order = scores.masked_fill(~kept, 2.0).argsort(-1)
        return order.gather(-1, torch.arange(count) % kept.sum(-1, keepdim=True))

    def fetch(self, ids: Tensor, view: int | None) -> tuple[Tensor, Tensor]:
        """See `Source.fetch`."""
        images, picks = self.rows(ids, view)
        wanted, where = images.reshape(-1).unique(return_inverse=True)
        whole, _ = self.source.fetch(wanted, None)
        boxes, flips = self.places(wanted)
        pairs = zip(where.tolist(), picks.reshape(-1).tolist(), strict=True)
        crops = [replay(whole[i], boxes[i, j], bool(flips[i, j]), self.size) for i, j in pairs]
        y = self.read(images.reshape(-1), picks.reshape(-1))
        return torch.stack(crops).unflatten(0, images.shape), y.unflatten(0, images.shape)

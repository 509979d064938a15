"""A condensed set of images with fixed labels, and the folder that it is kept in.

The folder is a data set for everybody (parquet files with an image column of PNGs, a card that `datasets` reads) and
holds the numbers as they were learnt beside it, which 8 bits and the range of pixels cannot.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from stillroom.checkpoint import load_tensors, read_json, save_tensors, write_json
from stillroom.data import Source, TensorSource
from stillroom.errors import UserError

TENSORS, CONFIG = "images.safetensors", "config.json"
CHUNK = 512


class SyntheticSet(nn.Module):
    """Images, which can be learnt, with labels, which cannot; in normalised space, as networks take them."""

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        classes: Sequence[str],
        mean: Sequence[float],
        std: Sequence[float],
        limits: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        """images [n, C, H, W], (pixel - mean) / std a channel; labels int64 [n]; `limits` of pixels as they came."""
        super().__init__()
        self.images = nn.Parameter(images.detach().clone().to(torch.float32))
        self.labels: Tensor
        self.register_buffer("labels", labels.detach().clone().to(torch.int64))
        self.classes, self.mean, self.std, self.limits = list(classes), tuple(mean), tuple(std), limits

    def __len__(self) -> int:
        return len(self.labels)

    def pixels(self) -> Tensor:
        """The images as they are shown, [n, C, H, W] in [0, 1]: without normalisation, and clipped."""
        return pixels_of(self.images.detach(), self.mean, self.std, self.limits)

    def source(self) -> TensorSource:
        """The set to train on."""
        return TensorSource(self.images.detach().cpu(), self.labels.cpu())

    @property
    def bytes(self) -> int:
        """Bytes of images and labels as they are kept."""
        return self.images.numel() * self.images.element_size() + self.labels.numel() * 8

    def save(self, folder: Path, real: Mapping[str, Source], about: Mapping[str, Any]) -> dict[str, int]:
        """Write the set as split 'train', and `real` sources as splits of their own; returns rows by split."""
        folder.mkdir(parents=True, exist_ok=True)
        save_tensors(folder / TENSORS, {"images": self.images, "labels": self.labels})
        write_json(
            folder / CONFIG,
            {
                "shape": list(self.images.shape[1:]),
                "classes": self.classes,
                "normalisation": {"mean": list(self.mean), "std": list(self.std)},
                "limits": list(self.limits),
                **about,
            },
        )
        splits: dict[str, Source] = {"train": self.source(), **real}
        return {split: self._write(folder / "data", split, source) for split, source in splits.items()}

    def _write(self, folder: Path, split: str, source: Source) -> int:
        import datasets

        features = datasets.Features(
            {"image": datasets.Image(), "label": datasets.ClassLabel(names=self.classes)}
        )
        folder.mkdir(exist_ok=True)
        images: list[dict[str, Any]] = []
        labels: list[int] = []
        for x, y in chunks(source):
            shown = (pixels_of(x, self.mean, self.std, self.limits) * 255).round().to(torch.uint8)
            images += [{"bytes": png(image), "path": None} for image in shown]
            labels += y.tolist()
        table = datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)
        shown_bars = not datasets.are_progress_bars_disabled()
        datasets.disable_progress_bars()
        try:
            table.to_parquet(folder / f"{split}-00000-of-00001.parquet")
        finally:
            if shown_bars:
                datasets.enable_progress_bars()
        return len(labels)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The set that `save` left in `folder`, with the numbers as they were learnt; UserError where there is none."""
        config, tensors = read_json(folder / CONFIG), load_tensors(folder / TENSORS)
        try:
            scale = config["normalisation"]
            low, high = config["limits"]
            return cls(
                tensors["images"],
                tensors["labels"],
                config["classes"],
                scale["mean"],
                scale["std"],
                (low, high),
            )
        except (KeyError, TypeError, ValueError):
            raise UserError(
                f"'{folder / CONFIG}' is of no condensed set: pass the 'student' folder of a run"
            ) from None


def chunks(source: Source) -> Iterator[tuple[Tensor, Tensor]]:
    """All of a labelled source, in order, some samples at a time."""
    for ids in torch.arange(len(source)).split(CHUNK):
        x, y = source.fetch(ids, None)
        assert y is not None
        yield x, y


def pixels_of(x: Tensor, mean: Sequence[float], std: Sequence[float], limits: tuple[float, float]) -> Tensor:
    """Pixels [n, C, H, W] of normalised images, `limits` made [0, 1] and what is outside of them clipped."""
    shift, scale = (x.new_tensor(list(numbers)).view(1, -1, 1, 1) for numbers in (mean, std))
    low, high = limits
    return ((x * scale + shift - low) / (high - low)).clamp(0, 1)


def png(image: Tensor) -> bytes:
    """The PNG of an image, uint8 [1 or 3, H, W]."""
    from PIL import Image

    pixels = image.cpu().numpy()
    picture = Image.fromarray(pixels[0]) if len(pixels) == 1 else Image.fromarray(pixels.transpose(1, 2, 0))
    held = io.BytesIO()
    picture.save(held, "PNG")
    return held.getvalue()

"""A residual multi-layer perceptron that denoises points and very small images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.models.denoisers.features import Fourier, GuidanceEmbedding


class ResidualMLP(nn.Module):
    """Blocks of norm, scale and shift by the embedding, SiLU and two linear layers, each added to its input.

    Takes x [n, *shape], a time [n], labels [n] (0 .. classes, `classes` for none) or None, and a guidance scale [n]
    or None; gives [n, *shape]. The last layer starts at zero.
    """

    def __init__(self, shape: Sequence[int], classes: int, width: int, depth: int) -> None:
        super().__init__()
        self.shape, self.classes, self.width, self.depth = tuple(shape), classes, width, depth
        size = math.prod(shape)
        self.features = Fourier(16, 1.0, 200.0)
        self.time = nn.Sequential(nn.Linear(33, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(classes + 1, width) if classes else None
        self.guidance: GuidanceEmbedding | None = None
        self.enter = nn.Linear(size, width)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(depth))
        last = nn.Linear(width, size)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.leave = nn.Sequential(nn.LayerNorm(width), last)

    def forward(self, x: Tensor, time: Tensor, condition: Tensor | None, guidance: Tensor | None) -> Tensor:
        """See the class."""
        embedding = self.embed_time(time)
        if self.label is not None and condition is not None:
            embedding = embedding + self.label(condition)
        if self.guidance is not None and guidance is not None:
            embedding = embedding + self.guidance(guidance)
        embedding = nn.functional.silu(embedding)
        h = self.enter(x.flatten(1))
        for block in self.blocks:
            h = block(h, embedding)
        return self.leave(h).view(x.shape)

    def embed_time(self, time: Tensor) -> Tensor:
        """The vector [n, width] that stands for times [n]."""
        return self.time(torch.cat([time.unsqueeze(-1), self.features(time)], -1))

    def embed_condition(self, condition: Tensor) -> Tensor:
        """The vector [n, width] that stands for labels [n]."""
        if self.label is None:
            raise ValueError("an unconditional network has no labels to embed")
        return self.label(condition)

    def add_guidance(self) -> None:
        """Give the network the guidance scale as an input; its answers stay what they are until it is trained."""
        self.guidance = GuidanceEmbedding(self.width)

    def config(self) -> dict[str, Any]:
        """What makes the same architecture again."""
        return {
            "kind": "mlp",
            "shape": list(self.shape),
            "classes": self.classes,
            "width": self.width,
            "depth": self.depth,
        }


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulate = nn.Linear(width, 2 * width)
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.modulate(embedding).chunk(2, -1)
        inner = self.norm(h) * (1 + scale) + shift
        return h + self.second(nn.functional.silu(self.first(inner)))

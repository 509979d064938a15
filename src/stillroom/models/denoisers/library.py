"""diffusers' networks behind the house's call: U-Nets, text-conditioned U-Nets and DiTs.

Each wrapper keeps the library's model whole in `model`, so that a pipeline folder can be written from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.errors import UserError
from stillroom.models.denoisers.features import GuidanceEmbedding


def diffusers() -> Any:
    """The library; UserError where it is not installed."""
    try:
        import diffusers as library
    except ImportError:
        raise UserError(
            'diffusers is not installed: pip install "stillroom[diffusion]", or pass an architecture mlp:WIDTHxDEPTH'
        ) from None
    return library


class Wrapped(nn.Module):
    """What the wrappers share: the model, and a vector that is added to its time embeddings."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model  # diffusers' classes say little of their parts
        self.guidance: GuidanceEmbedding | None = None
        self._added: Tensor | None = None
        for embedder in self._embedders():
            embedder.register_forward_hook(self._add)

    def _embedders(self) -> list[nn.Module]:
        """The modules whose outputs are time embeddings."""
        return []

    def _add(self, module: nn.Module, args: object, output: Tensor) -> Tensor | None:
        return None if self._added is None else output + self._added.to(output.dtype)

    @contextmanager
    def _guided(self, guidance: Tensor | None) -> Iterator[None]:
        """Inside, the embedding of the guidance scale is added to every time embedding."""
        if self.guidance is not None and guidance is not None:
            self._added = self.guidance(guidance)
        try:
            yield
        finally:
            self._added = None

    @property
    def options(self) -> Any:
        """The library's config of the model."""
        return self.model.config


class UNet2D(Wrapped):
    """`UNet2DModel`: images, and labels where it has `num_class_embeds` (the last of which stands for none)."""

    def _embedders(self) -> list[nn.Module]:
        return [self.model.time_embedding]

    def forward(self, x: Tensor, time: Tensor, condition: Tensor | None, guidance: Tensor | None) -> Tensor:
        """x [n, C, H, W], the library's time [n], labels [n] or None, scales [n] or None."""
        labels = condition if self.model.class_embedding is not None else None
        with self._guided(guidance):
            return self.model(x, time, labels).sample

    def embed_time(self, time: Tensor) -> Tensor:
        """The model's vector [n, width] for times [n]."""
        return self.model.time_embedding(self.model.time_proj(time))

    def embed_condition(self, condition: Tensor) -> Tensor:
        """The model's vector [n, width] for labels [n]."""
        return self.model.class_embedding(condition)

    def add_guidance(self) -> None:
        """Give the network the guidance scale as an input; it says the same until it is trained."""
        self.guidance = GuidanceEmbedding(self.model.time_embedding.linear_2.out_features)


class UNet2DCondition(Wrapped):
    """`UNet2DConditionModel`: images, and token embeddings [n, tokens, width] as conditions.

    The guidance scale is the library's own `timestep_cond` (1,000 (w - 1) in sinusoids, as its pipelines send
    it), so that a student with it loads there and `guidance_scale` is that input.
    """

    def forward(self, x: Tensor, time: Tensor, condition: Tensor, guidance: Tensor | None) -> Tensor:
        """x [n, C, H, W], the library's time [n], tokens [n, tokens, width], scales [n] or None."""
        size = self.options.time_cond_proj_dim
        given = None if size is None or guidance is None else scale_features(guidance, size).to(x.dtype)
        return self.model(x, time, condition.to(x.dtype), timestep_cond=given).sample

    def embed_time(self, time: Tensor) -> Tensor:
        """The model's vector [n, width] for times [n]."""
        return self.model.time_embedding(self.model.time_proj(time).to(self.model.dtype))

    def embed_condition(self, condition: Tensor) -> Tensor:
        """The tokens themselves."""
        return condition

    def add_guidance(self, size: int = 256) -> None:
        """Make the model again with `time_cond_proj_dim`, whose layer is zero, and the old weights."""
        if self.options.time_cond_proj_dim is not None:
            return
        old = self.model
        # without the library's own notes: it leaves out every option that they call a default
        options = {key: value for key, value in old.config.items() if not key.startswith("_")}
        made = type(old).from_config({**options, "time_cond_proj_dim": size})
        made.load_state_dict(old.state_dict(), strict=False)
        nn.init.zeros_(made.time_embedding.cond_proj.weight)
        self.model = made.to(next(old.parameters()).device)


class DiT(Wrapped):
    """`DiTTransformer2DModel`: images or latents, and labels (the last of its table stands for none)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        for block in self.model.transformer_blocks:
            block.norm1.emb.class_embedder.dropout_prob = 0.0  # who trains drops conditions, not the network

    def _embedders(self) -> list[nn.Module]:
        return [block.norm1.emb.timestep_embedder for block in self.model.transformer_blocks]

    def forward(self, x: Tensor, time: Tensor, condition: Tensor | None, guidance: Tensor | None) -> Tensor:
        """x [n, C, H, W], the library's time [n], labels [n] or None, scales [n] or None."""
        labels = torch.zeros_like(time, dtype=torch.int64) if condition is None else condition
        with self._guided(guidance):
            said = self.model(x, time, labels).sample
        return said[:, : x.shape[1]]  # learned variances follow the mean

    def embed_time(self, time: Tensor) -> Tensor:
        """The first block's vector [n, width] for times [n]."""
        embedder = self.model.transformer_blocks[0].norm1.emb
        return embedder.timestep_embedder(embedder.time_proj(time))

    def embed_condition(self, condition: Tensor) -> Tensor:
        """The first block's vector [n, width] for labels [n]."""
        return self.model.transformer_blocks[0].norm1.emb.class_embedder(condition)

    def add_guidance(self) -> None:
        """Give the network the guidance scale as an input; it says the same until it is trained."""
        width = self.options.num_attention_heads * self.options.attention_head_dim
        self.guidance = GuidanceEmbedding(width)


def scale_features(scale: Tensor, size: int) -> Tensor:
    """diffusers' sinusoids [n, size] of 1,000 (w - 1), in float32 (Ho et al., 2020, section B, for w in place of t)."""
    half = size // 2
    steps = torch.arange(half, dtype=torch.float32, device=scale.device) / (half - 1)
    angles = 1000 * (scale.float() - 1).unsqueeze(-1) * (10_000.0**-steps)
    return torch.cat([angles.sin(), angles.cos()], -1)


WRAPPERS: dict[str, type[Wrapped]] = {
    "UNet2DModel": UNet2D,
    "UNet2DConditionModel": UNet2DCondition,
    "DiTTransformer2DModel": DiT,
}


def wrap(model: nn.Module) -> Wrapped:
    """The wrapper of one of the library's models; UserError for one that has none."""
    kind = WRAPPERS.get(type(model).__name__)
    if kind is None:
        known = ", ".join(WRAPPERS)
        raise UserError(
            f"{type(model).__name__} is no network that Stillroom can call: pass one of {known}, or a module "
            "forward(x, time, condition, guidance) of your own"
        )
    return kind(model)

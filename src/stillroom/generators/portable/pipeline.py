"""A sampler of few steps as a diffusers pipeline: DiffusionPipeline.from_pretrained(folder, trust_remote_code=True).

Every step's numbers are in the pipeline's config, so that no scheduler is needed. Source: the DDIM step of Song et
al., 2021, arXiv:2010.02502, eq. 12; the preconditioning of Karras et al., 2022, arXiv:2206.00364, table 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor


class FewStepPipeline(DiffusionPipeline):  # type: ignore[invalid-inheritance]
    """Unit noise to images in as many network evaluations as there are rows in `steps`."""

    _optional_components = ["guidance", "vae"]  # noqa: RUF012

    def __init__(
        self,
        network: Any,
        guidance: Any = None,
        vae: Any = None,
        steps: Sequence[dict[str, float]] = (),
        prediction: str = "x0",
        sigma_data: float = 0.5,
        classes: int = 0,
        guidance_scale: float = 1.0,
        anchored: bool = False,
    ) -> None:
        super().__init__()
        self.register_modules(network=network, guidance=guidance, vae=vae)
        self.register_to_config(
            steps=list(steps),
            prediction=prediction,
            sigma_data=sigma_data,
            classes=classes,
            guidance_scale=guidance_scale,
            anchored=anchored,
        )

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        class_labels: Sequence[int] | None = None,
        guidance_scale: float | None = None,
        generator: torch.Generator | None = None,
        output_type: str = "pil",
        latents: Tensor | None = None,
    ) -> ImagePipelineOutput:
        """Images of `class_labels` (as many as there are), or `batch_size` of them; `latents` is unit noise.

        `guidance_scale` is an input of the network where it takes one: the batch is never doubled.
        """
        config = self.network.config
        count = len(class_labels) if class_labels is not None else batch_size
        side = config.sample_size
        shape = (count, config.in_channels, side, side)
        device, kind = self._execution_device, self.network.dtype
        noise = randn_tensor(shape, generator=generator, device=device) if latents is None else latents
        labels = None
        if self.config.classes:
            given = [self.config.classes] * count if class_labels is None else list(class_labels)
            labels = torch.tensor(given, device=device)
        w = self.config.guidance_scale if guidance_scale is None else guidance_scale
        x = noise * self.config.steps[0]["sigma"]
        hooks = self._hook(torch.full((count,), w, device=device, dtype=kind))
        try:
            for step in self.config.steps:
                x0 = self._clean(x.to(kind), step, labels)
                if self.config.anchored:
                    x = step["next_alpha"] * x0 + step["next_sigma"] * noise
                else:
                    share = step["next_sigma"] / step["sigma"]
                    x = share * x + (step["next_alpha"] - share * step["alpha"]) * x0
        finally:
            for hook in hooks:
                hook.remove()
        if self.vae is not None:
            x = self.vae.decode(x / self.vae.config.scaling_factor).sample
        images = (x / 2 + 0.5).clamp(0, 1).float().cpu().permute(0, 2, 3, 1).numpy()
        return ImagePipelineOutput(images=self.numpy_to_pil(images) if output_type == "pil" else images)

    def _hook(self, scale: Tensor) -> list[Any]:
        """Add the embedding of the guidance scale to every embedding of the time."""
        if self.guidance is None:
            return []
        added = self.guidance(scale)
        if hasattr(self.network, "time_embedding"):
            places = [self.network.time_embedding]
        else:
            places = [b.norm1.emb.timestep_embedder for b in self.network.transformer_blocks]
        return [place.register_forward_hook(lambda m, a, out: out + added.to(out.dtype)) for place in places]

    def _clean(self, x: Tensor, step: dict[str, float], labels: Tensor | None) -> Tensor:
        """E[x_0 | x_t], from what the network says on its own process."""
        x = x * step["scale"]
        alpha, sigma, data = step["own_alpha"], step["own_sigma"], self.config.sigma_data
        if self.config.prediction == "edm":
            size = (sigma**2 + (alpha * data) ** 2) ** 0.5
            return alpha * data**2 / size**2 * x + sigma * data / size * self._ask(x / size, step, labels)
        said = self._ask(x, step, labels)
        return {
            "x0": lambda: said,
            "eps": lambda: (x - sigma * said) / alpha,
            "v": lambda: (alpha * x - sigma * said) / (alpha**2 + sigma**2),
            "score": lambda: (x + sigma**2 * said) / alpha,
            "velocity": lambda: (
                (step["dsigma"] * x - sigma * said) / (alpha * step["dsigma"] - sigma * step["dalpha"])
            ),
        }[self.config.prediction]()

    def _ask(self, x: Tensor, step: dict[str, float], labels: Tensor | None) -> Tensor:
        time = torch.full((len(x),), step["time"], device=x.device, dtype=x.dtype)
        if hasattr(self.network, "transformer_blocks"):
            labels = torch.zeros(len(x), dtype=torch.int64, device=x.device) if labels is None else labels
            return self.network(x, timestep=time, class_labels=labels).sample[:, : x.shape[1]]
        return self.network(x, time, labels).sample

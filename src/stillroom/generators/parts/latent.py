"""Latent diffusion: images behind a small autoencoder, trained once on the same data and kept.

Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", CVPR 2022, arXiv:2112.10752,
section 3.1 with the KL regularisation; the adversarial and perceptual terms are for images larger than these.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from stillroom.data import Source, TensorSource
from stillroom.engine import Engine
from stillroom.errors import UserError, reason
from stillroom.generators.parts.data import Samples
from stillroom.method import Batch, Method, Update, Updates
from stillroom.models.denoisers.library import diffusers
from stillroom.optim import Recipe
from stillroom.runtime import Runtime
from stillroom.task import Task, TeacherJob
from stillroom.teaching import train_once

STEPS, BATCH = 800, 32


@dataclass(eq=False)
class Images(Task):
    """Images to be given back."""

    metric: ClassVar[str] = "reconstruction"
    higher_is_better: ClassVar[bool] = False

    fingerprint_of: str = ""
    """Digest of the images."""

    def train(self) -> Source:
        """The images, given as `samples`."""
        return self.given["samples"].train

    def score(self, product: Any, split: str, runtime: Runtime) -> dict[str, Any]:
        """Mean squared error a number of the held-out images."""
        held: Samples = self.given["samples"]
        source = held.validation if split == "validation" else held.test
        x, _ = source.fetch(torch.arange(min(500, len(source))), view=None)
        space = LatentSpace(product, 1.0)
        back = space.decode(space.encode(x.to(runtime.device)))
        return {"reconstruction": (back.cpu() - x).square().mean().item()}


@dataclass(eq=False)
class Reconstruction(Method):
    """A variational autoencoder trained to give images back (Rombach et al., 2022, section 3.1).

    min E ||decode(z) - x||^2 + weight KL(q(z | x) || N(0, I)), z ~ q(z | x), means over a sample's numbers.
    """

    name: ClassVar[str] = "reconstruction"
    listed: ClassVar[bool] = False
    uses_teacher: ClassVar[bool] = False

    shape: tuple[int, ...] = (1, 8, 8)
    """Shape of an image (C, H, W)."""
    channels: int = 4
    """Channels of the latents, >= 1."""
    levels: int = 1
    """How often the side is halved, >= 1."""
    weight: float = 1e-4
    """Weight of the KL divergence, >= 0."""

    def bind(self, task: Task, seed: int) -> None:
        """Build the autoencoder; its weights depend on the seed alone."""
        self.student: Any
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.student = autoencoder(self.shape, self.channels, self.levels)

    def updates(self, batch: Batch) -> Updates:
        """One step of reconstruction."""
        law = self.student.encode(batch.x).latent_dist
        z = law.mean + law.std * batch.noise.normal(*law.mean.shape[1:])
        error = (self.student.decode(z).sample - batch.x).square().mean()
        loss = error + self.weight * law.kl().mean() / batch.x[0].numel()
        yield Update("student", loss, items=len(batch), logs={"loss/reconstruction": error})


def autoencoder(shape: tuple[int, ...], channels: int, levels: int) -> Any:
    """An untrained AutoencoderKL of diffusers with 16 channels at the top and twice as many at each level."""
    kinds = levels + 1
    return diffusers().AutoencoderKL(
        in_channels=shape[0],
        out_channels=shape[0],
        latent_channels=channels,
        down_block_types=["DownEncoderBlock2D"] * kinds,
        up_block_types=["UpDecoderBlock2D"] * kinds,
        block_out_channels=[16 * 2**level for level in range(kinds)],
        norm_num_groups=8,
        sample_size=shape[-1],
    )


@dataclass(frozen=True)
class LatentSpace:
    """An autoencoder with the scale that makes its latents' deviation 0.5."""

    module: Any
    """The library's autoencoder."""
    scale: float

    def encode(self, x: Tensor) -> Tensor:
        """Latents [n, c, h, w] of images [n, C, H, W] in [-1, 1]: the mean of q, scaled."""
        with torch.no_grad():
            return (
                torch.cat([self.module.encode(part).latent_dist.mean for part in x.split(500)]) * self.scale
            )

    def decode(self, z: Tensor) -> Tensor:
        """Images [n, C, H, W] of latents [n, c, h, w]."""
        with torch.no_grad():
            return torch.cat([self.module.decode(part).sample for part in (z / self.scale).split(500)])

    def save(self, folder: Path) -> None:
        """Write the autoencoder as diffusers has it, with the scale as its `scaling_factor`."""
        self.module.register_to_config(scaling_factor=self.scale)
        self.module.save_pretrained(folder)

    def samples(self, images: Samples) -> Samples:
        """The same samples as latents."""
        train, validation, test = (self._source(s) for s in (images.train, images.validation, images.test))
        shape = tuple(train.x.shape[1:])
        return replace(images, train=train, validation=validation, test=test, shape=shape)

    def _source(self, source: Source) -> TensorSource:
        parts = [source.fetch(ids, view=None)[0] for ids in torch.arange(len(source)).split(500)]
        return TensorSource(torch.cat([self.encode(part) for part in parts]), source.labels)


def parse_autoencoder(name: str, side: int) -> tuple[int, int]:
    """Channels and levels of `kl:CHANNELS@FACTOR`; UserError for another form, or a side that does not divide."""
    match = re.fullmatch(r"kl:(\d+)@(2|4|8)", name)
    if match is None or int(match[1]) < 1:
        raise UserError(
            f"--task.autoencoder '{name}' is no folder and not of the form kl:CHANNELS@FACTOR: write kl:4@2"
        )
    if side % int(match[2]):
        raise UserError(
            f"--task.autoencoder '{name}' divides sides by {match[2]}, the images have {side}: pass another factor or "
            "--task.image-size"
        )
    return int(match[1]), int(match[2]).bit_length() - 1


def read_latent_space(folder: Path) -> LatentSpace:
    """The space of an AutoencoderKL that diffusers saved; UserError where there is none, or its weights are pickled."""
    try:
        module = diffusers().AutoencoderKL.from_pretrained(
            folder, use_safetensors=True, local_files_only=True
        )
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise UserError(
            f"--task.autoencoder '{folder}' holds no AutoencoderKL in safetensors ({reason(error)}): pass a pipeline's "
            "vae folder"
        ) from None
    return LatentSpace(module.requires_grad_(False).eval(), float(module.config.scaling_factor))


def make_latent_space(name: str, images: Samples) -> LatentSpace:
    """The space of the autoencoder `name`, trained on the training images now or before, or of one in a folder."""
    if Path(name).is_dir():
        return read_latent_space(Path(name))
    task = Images(fingerprint_of=images.fingerprint)
    task.given = {"samples": images}
    channels, levels = parse_autoencoder(name, images.shape[-1])
    recipe = Recipe("adam", lr=2e-3, weight_decay=0.0, warmup=0.02, clip=1.0)
    engine = Engine(steps=STEPS, batch_size=BATCH, recipe=recipe, evaluate_every=0)
    method = Reconstruction(images.shape, channels, levels)
    network, _ = train_once(TeacherJob(method, task, engine, 0, {}))
    network.requires_grad_(False).eval()
    unit = LatentSpace(network, 1.0)
    x, _ = images.train.fetch(torch.arange(min(1000, len(images.train))), view=None)
    return LatentSpace(network, 0.5 / float(unit.encode(x).double().square().mean().sqrt()))

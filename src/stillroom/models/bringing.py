"""Teachers and students by name or folder, behind what makes the data's inputs their own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from stillroom.data import ImageData
from stillroom.errors import UserError
from stillroom.models.inputs import Inputs, check_size
from stillroom.models.libraries import published
from stillroom.models.local import open_folder
from stillroom.models.names import build, library_in, weighty
from stillroom.models.wrapping import rescaled_for
from stillroom.seeds import seeded

READ = 1000
"""Training images whose range tells pixels from what the user has scaled."""


@dataclass(frozen=True)
class Fitting:
    """Networks for these images."""

    images: ImageData
    told: bool = False
    """Whether the user has said how the images are scaled; else 'not at all' may mean 'not by Stillroom'."""

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.images.classes)

    def teacher(self, name: str, seed: int, pretrained: bool = False) -> nn.Module:
        """The teacher called `name`: of a folder, and with `pretrained` of a library, with its weights and head.

        Where it is said what inputs those weights were trained on, the network is given them: another normalisation
        than the data's by `Rescaled`, another size not at all. Raises UserError then, and for what cannot be read.
        """
        folder = weighty(name)
        if folder is not None:
            with seeded(seed), torch.device("cpu"):
                found = open_folder(folder, library_in(name), shape=self.images.shape, classes=None)
            network, inputs = found.network, found.inputs
        elif pretrained:
            network, inputs = self._published(name, seed)
        else:
            return self._named(name, seed)
        check_size(inputs, self.images.shape, f"teacher '{name}'", self.images.name)
        return self.rescaled(network, inputs, f"teacher '{name}'")

    def student(self, name: str, seed: int) -> nn.Module:
        """A student: of a folder with its weights, and a new head where it tells another number of classes apart.

        It is given the normalisation that its weights were trained on, as a teacher is; its size may be another.
        """
        folder = weighty(name)
        if folder is None:
            return self._named(name, seed)
        with seeded(seed), torch.device("cpu"):
            found = open_folder(folder, library_in(name), shape=self.images.shape, classes=self.classes)
        return self.rescaled(found.network, found.inputs, f"student '{name}'")

    def _named(self, name: str, seed: int) -> nn.Module:
        return build(name, shape=self.images.shape, classes=self.classes, seed=seed)

    def _published(self, name: str, seed: int) -> tuple[nn.Module, Inputs]:
        shape = self.images.shape
        if name.startswith("transformers:"):
            from stillroom.models.transformers_images import from_hub, inputs_of

            place = name.partition(":")[2]
            with seeded(seed), torch.device("cpu"):
                return from_hub(place, shape, None, pretrained=True), inputs_of(place)
        known = name.startswith(("timm:", "torchvision:"))
        network = build(name, shape=shape, classes=self.classes, seed=seed, pretrained=True)
        if not known:
            return network, Inputs()
        inputs, classes = published(name)
        if classes not in (None, self.classes):
            raise UserError(
                f"teacher '{name}' was trained on {classes} classes, data '{self.images.name}' has {self.classes}: "
                f"pass --task.teacher with {self.classes} classes, or drop --task.teacher-weights to train one"
            )
        return network, inputs

    def rescaled(self, network: nn.Module, inputs: Inputs, who: str) -> nn.Module:
        """`network` for the data's inputs; UserError where it is not known how these were scaled."""
        own, data = inputs.normalisation, (self.images.mean, self.images.std)
        if own is None:
            return network
        made = rescaled_for(network, own, data)
        if made is not network and not self.told and self._scaled_by_the_user():
            raise UserError(
                f"{who} takes pixels less {_short(own[0])} over {_short(own[1])} ({inputs.where}), and data "
                f"'{self.images.name}' come as numbers beyond [0, 1]: pass pixels in [0, 1], or the network from Python"
            )
        return made

    def _scaled_by_the_user(self) -> bool:
        images = self.images
        if any(images.mean) or any(s != 1 for s in images.std):
            return False
        x, _ = images.train.fetch(torch.arange(min(READ, len(images.train))), None)
        return bool(x.min() < -1e-3 or x.max() > 1 + 1e-3)


def _short(values: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"

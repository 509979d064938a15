"""The network in whose features images are compared: trained once on the task's own data, or a published one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stillroom.engine import Engine
from stillroom.errors import UserError, reason
from stillroom.generators.parts.data import Samples
from stillroom.optim import Recipe
from stillroom.predictors.baselines import Plain
from stillroom.predictors.classification import Classification
from stillroom.seeds import seed_of
from stillroom.task import TeacherJob
from stillroom.teaching import train_once

Features = Literal["classifier", "inception", "pixels"]


@dataclass(frozen=True)
class Judge:
    """Features [n, d] of images, and where it is a classifier the class that it sees in them."""

    name: str
    body: nn.Module
    head: nn.Module | None = None

    def features(self, x: Tensor, size: int = 500) -> Tensor:
        """Features [n, d] of images [n, C, H, W] in [-1, 1]."""
        with torch.no_grad():
            return torch.cat([self.body(part) for part in x.clamp(-1, 1).split(size)])

    def classes(self, features: Tensor) -> Tensor:
        """The class [n] that the classifier sees; only where there is a `head`."""
        assert self.head is not None
        return self.head(features).argmax(-1)


def make_judge(kind: Features, samples: Samples, data: Any, options: dict[str, Any], seed: int = 0) -> Judge:
    """The judge of `kind` for these samples; judges of different seeds share no weights and no data order.

    A classifier is trained on the training split with its labels, in a few seconds for small data, and kept;
    data without labels are judged by their pixels. Raises UserError where Inception's weights are not here.
    """
    if kind == "inception":
        return Judge("Inception v3, pool 3", _inception())
    if kind == "pixels" or not samples.classes:
        return Judge("pixels", nn.Flatten())
    network = classifier(samples, data, options, seed)
    body, head = nn.Sequential(*list(network.children())[:-1]), list(network.children())[-1]
    return Judge("a classifier of the same data, last layer but one", body.eval(), head.eval())


def classifier(samples: Samples, data: Any, options: dict[str, Any], seed: int) -> nn.Module:
    """A small convolutional network trained to tell the classes of these images, frozen, kept by its seed."""
    side = samples.shape[-1]
    widths = "32-64" if side <= 16 else "16-32-64"
    options = {**options, "normalise": "centred", "teacher": "none", "student": f"cnn:{widths}"}
    task = Classification(data=data if isinstance(data, str) else "digits", **options)
    task = task.but(student_samples=len(samples.train))
    if not isinstance(data, str):
        task.given = {"data": data}
    steps = 800 if side <= 16 else 1500
    engine = Engine(steps=steps, batch_size=64, recipe=Recipe("adam", lr=2e-3, weight_decay=1e-4))
    job = TeacherJob(Plain(), task, engine, seed_of(seed, 17), {"data": task.images.fingerprint})
    network, _ = train_once(job)
    return network.requires_grad_(False).eval()


def _inception() -> nn.Module:
    try:
        from torchmetrics.image.fid import NoTrainInceptionV3

        network = NoTrainInceptionV3(name="inception-v3-compat", features_list=["2048"])
    except (ImportError, OSError, RuntimeError, ValueError) as error:  # the library or its weights
        raise UserError(
            f"--task.features inception: the network or its weights are not here ({reason(error)}): install "
            "torchmetrics[image] and put its weights in torch's hub folder, or pass --task.features classifier"
        ) from None

    class Bytes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            grey = x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x
            return network(((grey + 1) * 127.5).round().to(torch.uint8))

    return Bytes()

"""The task: labelled images whose class outlives a transformation; a network with a joint head is kept and scored too.

The built-in data are generated pictures of upright objects. The digits of other systems will not do: a turned 6 is a
9, so that a quarter of the joint labels could not be told; and no package ships photographs with labels.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from weakref import ref

import torch
from torch import nn

from stillroom import metrics
from stillroom.errors import UserError
from stillroom.exporting.card import Card
from stillroom.exporting.forms import Portable
from stillroom.models import build, load_student, read_config, save_student
from stillroom.models.wrapping import describe
from stillroom.predictors.classification import Classification
from stillroom.predictors.labels.sla_sd.network import JointNetwork
from stillroom.predictors.parts.card import card as plain_card
from stillroom.predictors.parts.transformations import SETS, transformed
from stillroom.reports.formats import engineering, percent
from stillroom.reports.generation_figures import lines, sample_grid
from stillroom.runtime import Runtime

OBJECTS_SEEN = 600
SHOWN = 6
"""Transformations of which the page shows copies."""


@dataclass(eq=False)
class TransformedClassification(Classification):
    """Classify images whose class outlives a transformation: generated pictures unless told otherwise."""

    data: str = "objects"
    """`objects` (16x16 pictures that are drawn here), `digits`, a local folder (parquet, or images in a folder a
    class), or the name of a set on the hub."""
    teacher: str = "none"
    """Has no part in this; `none`."""
    student: str = "resnet:8-16-32"
    """mlp:, cnn: or resnet:WIDTHS, timm:, torchvision: or transformers:NAME, ./DIR, or config:./DIR."""
    student_samples: int | None = None
    """How many of the training images the student sees. None: all, but of the built-in objects 600."""

    # -- data -------------------------------------------------------------------------------------------------------

    @property
    def _built_in(self) -> bool:
        return self.data == "objects" and "data" not in self.given

    @property
    def wanted(self) -> int | None:
        """As asked; of the built-in objects 600 unless told otherwise."""
        if self._built_in and self.student_samples is None:
            return min(OBJECTS_SEEN, len(self.images.train))
        return super().wanted

    # -- the joint head ---------------------------------------------------------------------------------------------

    def trained_within(self, student: nn.Module, network: JointNetwork) -> None:
        """Note that `student` was trained within `network`, whose other modes are then scored with it."""
        self.remember(student, joint=ref(network))  # weak: the network holds the student

    def joint_of(self, product: nn.Module) -> JointNetwork | None:
        """The network with a joint head that `product` is, or was trained within."""
        if isinstance(product, JointNetwork):
            return product
        held = self.recall(product, "joint")
        return None if held is None else held()

    def score(self, product: nn.Module, split: str, runtime: Runtime) -> dict[str, Any]:
        """See the base; on 'test' also the accuracy of each mode of a network with a joint head."""
        found = super().score(product, split, runtime)
        joint = self.joint_of(product)
        if joint is None or split != "test":
            return found
        accuracies: dict[str, float] = {}
        for _, name, _, network in joint.modes():
            logits, y = runtime.predict(network, self.images.test)
            assert y is not None
            accuracies[name] = metrics.accuracy(logits, y)
        self.remember(product, accuracies=accuracies)
        return found | {f"{name.replace(' ', '_')}_accuracy": share for name, share in accuracies.items()}

    def cost(self, product: nn.Module) -> dict[str, float]:
        """See the base; multiply-adds of an image also for each mode of a network with a joint head."""
        found, joint = super().cost(product), self.joint_of(product)
        if joint is None:
            return found
        shape = self.images.shape
        each = {name: metrics.multiply_adds(network, shape) for _, name, _, network in joint.modes()}
        return found | {f"{name.replace(' ', '_')}_multiply_adds": adds for name, adds in each.items()}

    def figures(self, products: Mapping[str, Any], runtime: Runtime) -> list[dict[str, str]]:
        """Accuracy against multiply-adds for each way to ask, and what the network is shown."""
        found = [(one, self.joint_of(one)) for one in products.values()]
        product, joint = next(((one, joint) for one, joint in found if joint is not None), (None, None))
        accuracies = self.recall(product, "accuracies") if product is not None else None
        if joint is None or accuracies is None:
            return []
        shape = self.images.shape
        points, told = [], []
        for mode, name, passes, network in joint.modes():
            adds, share = metrics.multiply_adds(network, shape), accuracies[name]
            points.append((f"{name} ({mode})", [adds / 1e6], [100 * share]))
            ways = f"{passes} passes" if passes > 1 else "one pass"
            told.append(f"{name} ({mode}), {ways}: {percent(share)} for {engineering(adds)} multiply-adds")
        caption = f"On the test split. {'; '.join(told)}."
        svg = lines(points, "multiply-adds an image, millions", "accuracy, %", "accuracy by mode")
        figures = [{"title": "Three ways to ask the network", "caption": caption, "svg": svg}]
        return figures if shape[0] not in (1, 3) else [*figures, self._copies(joint)]

    def _copies(self, joint: JointNetwork) -> dict[str, str]:
        images, group = self.images, SETS[joint.transformations]
        x = images.test.fetch(torch.arange(min(10, len(images.test))), None)[0]
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (images.mean, images.std))
        x = transformed(x, group) * std + mean
        rows = [(one.name, 2 * x[j :: len(group)] - 1) for j, one in enumerate(group[:SHOWN])]
        caption = (
            "Test images and their copies. If a copy's class cannot be told, leave that transformation out."
        )
        if len(group) > SHOWN:
            caption += f" The first {SHOWN} of {len(group)} transformations."
        return {"title": "Copies", "caption": caption, "svg": sample_grid(rows, "transformed copies")}

    # -- keeping ----------------------------------------------------------------------------------------------------

    def export(self, product: nn.Module, folder: Path, about: Mapping[str, Any]) -> None:
        """Write a plain classifier as the base does, a network with a joint head with all that builds it again."""
        if not isinstance(product, JointNetwork):
            super().export(product, folder, about)
            return
        config = self.student_config(
            about,
            architecture=describe(product),
            classifier=describe(product.network) or (None if "student" in self.given else self.student),
            transformations=product.transformations,
            mode=product.mode,
            network=f"{self.student_name} with a joint head",
        )
        save_student(folder, product, config)
        joint_card(config, about).write(folder, about)

    @classmethod
    def load(cls, folder: Path, module: nn.Module | None = None) -> nn.Module:
        """The network in `folder`; `module` is the classifier where it was the user's own."""
        config = read_config(folder)
        if "transformations" not in config:
            return load_student(folder, module)
        if config["transformations"] not in SETS or config.get("mode") not in ("ag", "si"):
            raise UserError(f"'{folder}' holds no joint head that is known: export it again")
        shape, named = config["shape"], config.get("classifier")
        if module is None:
            if not isinstance(named, (str, dict)):
                raise UserError(
                    f"the classifier in '{folder}' is a network of your own: pass student(module=network)"
                )
            module = build(named, shape=shape, classes=config["classes"], seed=0)
        made = JointNetwork(module, torch.zeros(1, *shape), config["transformations"], config["mode"])
        return load_student(folder, made)

    def portable(
        self, product: nn.Module, folder: Path, about: Mapping[str, Any], absent: Collection[str] = ()
    ) -> Portable:
        """See the base; the graph of a vote has all its passes in it."""
        base = super().portable(product, folder, about, absent)
        if not isinstance(product, JointNetwork):
            return base
        plain = copy.deepcopy(product.network)
        return replace(base, card=joint_card(read_config(folder), about), beside=lambda: {"baseline": plain})

    def quick(self) -> TransformedClassification:
        """A hundred pictures and a network without batch statistics."""
        quick = super().quick()
        assert isinstance(quick, TransformedClassification)
        return quick.but(data="objects", student="cnn:4-8")


def joint_card(config: Mapping[str, Any], about: Mapping[str, Any]) -> Card:
    """The card of a network with a joint head."""
    copies = len(SETS[config["transformations"]])
    passes = {"si": "one pass, of the image as it is", "ag": f"{copies} passes, whose logits are averaged"}
    base = plain_card(config, about)
    home = "stillroom.predictors.labels.sla_sd"
    own = "" if config["classifier"] else ", module=network"
    return replace(
        base,
        facts=[
            *base.facts,
            f"an answer takes {passes[config['mode']]} (transformations: {config['transformations']})",
        ],
        code=[
            "from pathlib import Path",
            f"from {home} import TransformedClassification",
            f"network = TransformedClassification.load(Path('.'){own})  # its .network is the plain classifier",
        ],
    )

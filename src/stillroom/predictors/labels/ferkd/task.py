"""The problem: classify whole images by what was learnt from crops of them; scenes unless told otherwise."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stillroom import metrics
from stillroom.data import ImageData, Source, TensorSource
from stillroom.data.augment import of_characters
from stillroom.errors import UserError, require
from stillroom.models.bringing import Fitting
from stillroom.predictors.classification import Classification
from stillroom.predictors.labels.ferkd.scenes import Composition, scenes_of
from stillroom.predictors.parts.crops import Cropping, FreshCrops, WholeImages, covered, draw_crops, replay
from stillroom.runtime import Runtime

SCENE_INPUT = 28
"""Side of the networks' input for scenes of 48 pixels."""
BLIND, BLIND_TRIED = 46, 32
"""Seed of the crops without an object, and how many are looked at for each scene."""


class Sized(nn.Module):
    """A teacher with an input size of its own: what comes at another size is scaled to it, bicubic."""

    def __init__(self, network: nn.Module, side: int) -> None:
        super().__init__()
        self.network, self.side = network, side

    def forward(self, x: Tensor) -> Tensor:
        """Logits [n, classes] for images [n, C, H, W]."""
        size = (self.side, self.side)
        if x.shape[-2:] != size:
            x = F.interpolate(x, size, mode="bicubic", align_corners=False, antialias=True)
        return self.network(x)


@dataclass(eq=False)
class CropClassification(Classification):
    """Classify images by learning from their crops: scenes of 8x8 digits unless told otherwise."""

    teacher: str = "resnet:16-32-64"
    """mlp:, cnn: or resnet:WIDTHS, timm:, torchvision: or transformers:NAME, a model's folder ./DIR, or none."""
    student: str = "resnet:8-16-32"
    """Likewise, or config:./DIR, its architecture alone, or less of the teacher, shrink:depth=0.5,width=0.5."""
    teacher_epochs: int = 12
    """Epochs of the teacher's training, >= 1."""
    teacher_batch_size: int = 64
    """Batch size of the teacher's training, >= 1."""
    input_size: int | None = None
    """Height and width of the networks' input, pixels; None: those of the images, for scenes 28."""
    teacher_size: int | None = None
    """The teacher's, where it has another one; crops are scaled to it, bicubic."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Least and largest share of the image that a crop takes, in (0, 1] (one published teacher: .08 .936)."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Least and largest ratio of a crop's width to its height, > 0."""
    flip: float | None = None
    """Chance that a crop is mirrored, in [0, 1]; None: one half, but of the built-in digits none is."""
    scenes: bool | None = None
    """Paste each image on a larger textured canvas beside fragments of others; None: built-in digits alone."""
    scenes_each: int = 2
    """Scenes of each training and validation image, >= 1; of test images one."""
    eval_scenes: int = 2000
    """Test images, and validation images, of which there are scenes at most."""
    canvas: int = 48
    """Side of a scene, pixels."""
    item: int = 24
    """Side of the image in a scene, pixels, >= 8."""
    fragments: int = 2
    """Cut-outs of images of other classes in a scene, >= 0."""
    scene_seed: int = 0
    """Seed of the scenes."""
    visible: float = 0.0
    """Scenes only: share of the object that crops of usual training show at least, in [0, 1]."""
    teacher_visible: float = 0.6
    """The same in the teacher's training."""

    @classmethod
    def of(cls, task: Classification) -> CropClassification:
        """Crops of the images of another task, at their size, its networks and its teacher."""
        options = {field.name: getattr(task, field.name) for field in fields(Classification)}
        made = cls(**options | {"student_samples": task.wanted, "scenes": False})
        made.given = {name: one for name, one in task.given.items() if name in options}
        if "_taught" in task.__dict__:
            made.teach(task.make_teacher().module)
        return made

    # -- data -------------------------------------------------------------------------------------------------------

    @property
    def built_in(self) -> bool:
        """Whether the data are scikit-learn's digits."""
        return self.data == "digits" and "data" not in self.given

    @property
    def composed(self) -> bool:
        """Whether the images are scenes."""
        return self.built_in if self.scenes is None else self.scenes

    @property
    def wanted(self) -> int | None:
        """How many images the student sees; None for all."""
        return self.student_samples

    @property
    def cropping(self) -> Cropping:
        """How crops are drawn."""
        height, width = self.images.shape[1:]
        return self._cropping((height, width))

    def _cropping(self, size: tuple[int, int]) -> Cropping:
        flip = (0.0 if self.built_in else 0.5) if self.flip is None else self.flip
        return Cropping(size, self.scale, self.ratio, flip)

    @property
    def whole(self) -> ImageData:
        """Scenes or images as they are, not cropped; its shape is theirs."""
        return self._whole()[0]

    @property
    def images(self) -> ImageData:
        """The same with the shape of the networks' input: fresh crops to train on, whole images to be judged by."""
        if "_images" not in self.__dict__:
            whole, objects = self._whole()
            side = self.input_size or (SCENE_INPUT if self.composed else None)
            size = whole.shape[1:] if side is None else (side, side)
            train = FreshCrops(whole.train, self._cropping(size), objects.get("train"), self.visible)
            self._images = replace(
                whole,
                train=train,
                validation=WholeImages(whole.validation, size),
                test=WholeImages(whole.test, size),
                shape=(whole.shape[0], *size),
            )
        return self._images

    def _whole(self) -> tuple[ImageData, dict[str, Tensor]]:
        """The images and, of scenes, where their objects are, by split."""
        if not self.composed:
            return super().images, {}
        plain = self.but(normalise="none", augment="none")
        base = super(CropClassification, plain).images
        how = Composition(self.canvas, self.item, self.fragments)
        counts = (self.scenes_each, self.eval_scenes)
        return scenes_of(base, how, counts, self.scene_seed, self.normalise)

    def objects(self) -> Tensor | None:
        """Where the objects of the student's training images are, boxes [N, 4]; None for what are no scenes."""
        source = self.seen()
        assert isinstance(source, FreshCrops)
        return source.objects

    # -- networks ---------------------------------------------------------------------------------------------------

    def build_network(self, role: str, name: str, seed: int) -> nn.Module:
        """The classifier called `name`; a teacher's is one for its own size."""
        if role != "teacher" or self.teacher_size is None:
            return super().build_network(role, name, seed)
        return self._fitting.teacher(name, seed, self.teacher_weights == "pretrained")

    @property
    def _fitting(self) -> Fitting:
        side = self.teacher_size or 0
        images = replace(self.images, shape=(self.images.shape[0], side, side))
        return Fitting(images, self.normalise != "auto")

    def load_teacher(self, place: str) -> nn.Module:
        """The network with its weights in a folder."""
        if self.teacher_size is None:
            return super().load_teacher(place)
        return self._fitting.teacher(place, self.teacher_seed)

    def _outside_teacher(self) -> nn.Module:
        return self._sized(super()._outside_teacher())

    def teach(self, network: nn.Module) -> None:
        """Take a trained network as the teacher."""
        super().teach(self._sized(network))

    def _sized(self, network: nn.Module) -> nn.Module:
        return network if self.teacher_size is None else Sized(network, self.teacher_size)

    def teacher_options(self) -> dict[str, Any]:
        """The teacher learns from crops that show what they are labelled with, at its own size."""
        return super().teacher_options() | {
            "visible": self.teacher_visible if self.composed else 0.0,
            "input_size": self.teacher_size or self.input_size,
            "teacher_size": None,
        }

    # -- checks and scores ------------------------------------------------------------------------------------------

    def check(self, seed: int, teacher: bool) -> None:
        """See the base; and that the images are large enough for the crops."""
        for name in ("scale", "ratio"):
            low, high = getattr(self, name)
            require(f"--task.{name}", low, 0, high, ends="(]")
        require("--task.scale", self.scale[1], 0, 1, ends="(]")
        for name in ("visible", "teacher_visible", *(("flip",) if self.flip is not None else ())):
            require(f"--task.{name.replace('_', '-')}", getattr(self, name), 0, 1)
        for name in ("input_size", "teacher_size", "scenes_each", "eval_scenes"):
            if getattr(self, name) is not None:
                require(f"--task.{name.replace('_', '-')}", getattr(self, name), 1)
        require("--task.fragments", self.fragments, 0)
        require("--task.item", self.item, 8)
        require("--task.canvas", self.canvas, self.item)
        if self.composed and self.normalise == "imagenet":
            raise UserError("--task.normalise is imagenet and scenes are grey: pass data")
        super().check(seed, teacher)
        self.cropping.see_room(*self.whole.shape[1:])
        if self.cropping.flip and of_characters(self.whole.name):
            warnings.warn(
                f"crops are mirrored, and a mirrored character of '{self.whole.name}' has another meaning (2 and 5, "
                "6 and 9): --task.flip 0 keeps it",
                stacklevel=2,
            )

    def score(self, product: nn.Module, split: str, runtime: Runtime) -> dict[str, Any]:
        """See the base; of test scenes also how often crops without the object are given its class (chance: 1 / C)."""
        found = super().score(product, split, runtime)
        blind = self.blind() if split == "test" else None
        if blind is not None:
            logits, y = runtime.predict(product, blind)
            assert y is not None
            found["accuracy_without_object"] = metrics.accuracy(logits, y)
        return found

    def blind(self) -> Source | None:
        """A crop of each test scene that shows nothing of its object, where one was found; None without scenes."""
        whole, objects = self._whole()
        if "test" not in objects:
            return None
        if "_blind" not in self.__dict__:
            ids = list(range(len(whole.test)))
            size = whole.shape[1:]
            boxes, flips = draw_crops(BLIND, ids, BLIND_TRIED, size, self.cropping)
            least, which = covered(boxes, objects["test"].unsqueeze(1)).min(-1)
            found = (least == 0).nonzero().squeeze(1)
            x, y = whole.test.fetch(found, None)
            at = which[found].tolist()
            crops = [
                replay(x[k], boxes[i, at[k]], bool(flips[i, at[k]]), self.cropping.size)
                for k, i in enumerate(found.tolist())
            ]
            self._blind = TensorSource(torch.stack(crops), y) if crops else None
        return self._blind

    # -- copies -----------------------------------------------------------------------------------------------------

    def summary(self) -> dict[str, Any]:
        """See the base."""
        return super().summary() | {"images": list(self.whole.shape)}

    def paired(self, seed: int) -> CropClassification:
        """See the base; of scenes another set."""
        made: CropClassification = super().paired(seed)
        return made.but(scene_seed=seed)

    def quick(self) -> CropClassification:
        """Three hundred scenes and small networks."""
        small: Mapping[str, Any] = {
            "train_samples": 320,
            "student_samples": 300,
            "scenes_each": 1,
            "eval_scenes": 60,
            "teacher": "cnn:8-16",
            "student": "cnn:4-8",
            "image_size": None,
        }
        made = super().quick()
        assert isinstance(made, CropClassification)
        return made.but(**small, scenes=None, input_size=16, teacher_size=None)

"""The task of this family: labelled images, a teacher and a student that classify them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import nn

from stillroom import metrics
from stillroom.data import ImageData, MixedSource, Source, load_images
from stillroom.errors import UserError, require
from stillroom.exporting.forms import Portable
from stillroom.models import check, load_student, read_config, save_student
from stillroom.models.bringing import Fitting
from stillroom.models.names import buildable, weighty
from stillroom.models.wrapping import adapted, describe
from stillroom.predictors.labelled import LabelledTask, stratified
from stillroom.predictors.parts.card import write_card
from stillroom.task import TeacherJob

__all__ = ["Classification", "stratified"]

Augment = Literal["none", "crop", "crop-flip", "trivial"]

TEACHER_IGNORES = {"mixup": 0.0, "cutmix": 0.0, "subset_seed": 0, "teacher_seed": 0, "vary_teacher": True}
"""Options that say nothing of how a teacher is trained: at these values they do not make another teacher of it."""

DIGITS_SEEN = 200
"""Of the 800 digits: on all of them a student has little to learn from its teacher."""


@dataclass(eq=False)
class Classification(LabelledTask):
    """Classify images: 8x8 digits unless told otherwise."""

    teacher_ignores: ClassVar[dict[str, Any]] = TEACHER_IGNORES

    data: str = "digits"
    """`digits`, `objects`, a local folder (parquet, or images in a folder a class), or the name of a set on the hub."""
    teacher: str = "mlp:256"
    """mlp:, cnn: or resnet:WIDTHS, timm:, torchvision: or transformers:NAME, a model's folder ./DIR, or none."""
    student: str = "mlp:12"
    """Likewise, or config:./DIR, its architecture alone, or less of the teacher, shrink:depth=0.5,width=0.5."""
    teacher_weights: str = ""
    """Folder of an earlier run or model, or `pretrained` for the library's own; empty: train the teacher here."""
    image_column: str | None = None
    """Column of the images; None finds it."""
    label_column: str | None = None
    """Column of the labels; None finds it."""
    image_size: int | None = None
    """Scale all images to this height and width, pixels; None takes them as they are."""
    memory_limit: float = 4.0
    """GiB of images, as float32, up to which they are held in memory; more are decoded as they are fetched."""
    stream: bool = False
    """Read a hub name or a parquet folder as a stream, without a copy of all its files; see `disk_limit`."""
    stream_samples: int | None = None
    """Of each split of a stream, use the first so many; what `data` names is then read as a stream. None for all."""
    disk_limit: float = 16.0
    """GiB of a stream that may be kept in the cache on disk, where it takes more than the memory limit."""
    normalise: Literal["auto", "data", "imagenet", "centred", "none"] = "auto"
    """Scale inputs by mean and deviation of the training images, of ImageNet, to [-1, 1], or not; auto: their own."""
    augment: Augment = "none"
    """Augmentation of the student's images; the same for an image in every run with the same seed."""
    mixup: float = 0.0
    """Mix images and labels, the share drawn from Beta(mixup, mixup); 0 does not (Zhang et al., ICLR 2018)."""
    cutmix: float = 0.0
    """Paste a box of another image, its area's share from Beta(cutmix, cutmix); 0 does not (Yun et al., ICCV 2019)."""
    train_samples: int | None = None
    """Training images to use, the same number a class where possible; None for all."""
    student_samples: int | None = None
    """How many of them the student sees; the teacher sees all. None: all, but of the built-in digits 200."""
    split_seed: int = 0
    """Seed of the splits that the data do not come with."""
    subset_seed: int = 0
    """Seed of the choice of the student's samples."""
    teacher_seed: int = 0
    """Seed of the teacher's training."""
    teacher_epochs: int = 100
    """Epochs of the teacher's training, >= 1."""
    teacher_batch_size: int = 50
    """Batch size of the teacher's training, >= 1."""
    teacher_augment: Augment = "none"
    """Augmentation of the teacher's images."""
    vary_teacher: bool = True
    """In comparisons over seeds, train a teacher for each seed; False keeps the one of `teacher_seed`."""

    # -- data -------------------------------------------------------------------------------------------------

    @property
    def images(self) -> ImageData:
        """The data with their splits, loaded once."""
        return self.loaded(
            load_images,
            self.data,
            image_column=self.image_column,
            label_column=self.label_column,
            image_size=self.image_size,
            normalise=None if self.normalise == "auto" else self.normalise,
            augment=self.augment,
            split_seed=self.split_seed,
            train_samples=self.train_samples,
            memory_limit=int(self.memory_limit * 2**30),
            stream=self.stream,
            stream_samples=self.stream_samples,
            disk_limit=int(self.disk_limit * 2**30),
        )

    @property
    def labelled(self) -> ImageData:
        """See `images`."""
        return self.images

    def train(self) -> Source:
        """The student's training images, augmented and mixed as asked."""
        source = self.seen()
        if self.mixup or self.cutmix:
            source = MixedSource(source, self.classes, self.mixup, self.cutmix)
        return source

    @property
    def wanted(self) -> int | None:
        """As asked; of the built-in digits 200 unless told otherwise."""
        built_in = self.data == "digits" and "data" not in self.given
        if self.student_samples is None and built_in:
            return min(DIGITS_SEEN, len(self.images.train))
        return self.student_samples

    # -- networks -----------------------------------------------------------------------------------------------

    def build_network(self, role: str, name: str, seed: int) -> nn.Module:
        """The classifier of images called `name`."""
        fitting = Fitting(self.images, self.normalise != "auto")
        if role == "teacher":
            return fitting.teacher(name, seed, self.teacher_weights == "pretrained")
        if self.derived:
            return self.derive(seed)
        return fitting.student(name, seed)

    def given_network(self, role: str) -> nn.Module:
        """A network from Python, one of transformers' behind what gives its logits alone."""
        return adapted(super().given_network(role))

    @property
    def weights(self) -> str:
        """Where the teacher's weights come from: a folder, or `pretrained`; empty where it is trained here."""
        return self.teacher_weights or (self.teacher if weighty(self.teacher) else "")

    def load_teacher(self, place: str) -> nn.Module:
        """The network with its weights in a folder of a model or of an earlier run."""
        name = place if weighty(place) else str(Path(place).absolute())
        return Fitting(self.images, self.normalise != "auto").teacher(name, self.teacher_seed)

    def teacher_options(self) -> dict[str, Any]:
        """The teacher has an augmentation of its own."""
        return {"augment": self.teacher_augment}

    def teacher_job(self, engine: Any) -> TeacherJob | None:
        """See the base; a name that stands for what is in a file says less than what it stands for."""
        job = super().teacher_job(engine)
        if job is None or buildable(self.teacher):
            return job
        return replace(job, key=job.key | {"architecture": describe(self.teacher_network())})

    # -- checks and scores --------------------------------------------------------------------------------------

    def check(self, seed: int, teacher: bool) -> None:
        """Load the data and run both networks on two blank images."""
        for name in ("memory_limit", "disk_limit"):
            require(f"--task.{name.replace('_', '-')}", getattr(self, name), 0)
        images = self.images
        for name, least in (("mixup", 0), ("cutmix", 0), ("teacher_epochs", 1), ("teacher_batch_size", 1)):
            require(f"--task.{name.replace('_', '-')}", getattr(self, name), least)
        if images.train.labels is None:
            raise UserError(
                f"data '{images.name}' has no labels: pass --task.label-column with the column of them"
            )
        about = {"shape": images.shape, "classes": self.classes, "data": images.name}
        check(self.make_student(seed), role="student", name=self.student_name, **about)
        self.train()
        if not self.needs_teacher(teacher):
            return
        check(self._outside_teacher(), role="teacher", name=self.teacher_name, **about)

    def cost(self, product: nn.Module) -> dict[str, float]:
        """Parameters, multiply-adds an image, seconds for batches of 1 and 64, bytes on disk."""
        return metrics.costs(product, self.images.shape)

    def summary(self) -> dict[str, Any]:
        """Name, shape, classes and splits of the data."""
        images = self.images
        return {
            "name": images.name,
            "shape": list(images.shape),
            "classes": images.classes,
            "splits": images.splits,
            "student sees": len(self.train()),
            "fingerprint": images.fingerprint,
            "teacher": self.teacher_name,
            "student": self.student_name,
        }

    def export(self, product: nn.Module, folder: Path, about: Mapping[str, Any]) -> None:
        """Write weights, config and a model card to `folder`."""
        named = describe(product) or (None if "student" in self.given else self.student)
        config = self.student_config(about, architecture=named)
        save_student(folder, product, config)
        write_card(folder, config, about)

    def student_config(self, about: Mapping[str, Any], **own: Any) -> dict[str, Any]:
        """What a student's folder says of it; `own` is what makes the network again, and what else is its own."""
        images = self.images
        return {
            "network": self.student_name,
            "shape": list(images.shape),
            "classes": self.classes,
            "labels": images.classes,
            "normalisation": {"mean": list(images.mean), "std": list(images.std)},
            "made_by": {"method": about["method"], "data": images.name, "seed": about["seed"]},
            **own,
        }

    @classmethod
    def load(cls, folder: Path, module: nn.Module | None = None) -> nn.Module:
        """The network in `folder`."""
        return load_student(folder, module)

    def portable(
        self, product: nn.Module, folder: Path, about: Mapping[str, Any], absent: Collection[str] = ()
    ) -> Portable:
        """A classifier's graphs, and the library's own folder where it is a library's network."""
        from stillroom.exporting.networks import classifier

        return classifier(self, product, read_config(folder), about, absent)

    # -- copies -------------------------------------------------------------------------------------------------

    def quick(self) -> Classification:
        """A hundred digits and two epochs for the teacher."""
        small = {"data": "digits", "stream_samples": None, "train_samples": 120, "student_samples": 100}
        return self.but(**small, teacher_epochs=2)

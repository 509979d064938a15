"""FerKD: the method (Shen, ICCV 2023, arXiv:2312.17473) on FKD's table of crops (ECCV 2022, arXiv:2112.01528)."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn

from stillroom.claim import Claim
from stillroom.data import Source
from stillroom.engine import Engine
from stillroom.errors import UserError, require
from stillroom.method import Batch, Fit, Gather, Method, Result, Update, Updates
from stillroom.optim import Recipe
from stillroom.plan import view_of
from stillroom.predictors.classification import Classification
from stillroom.predictors.labels.ferkd import pictures
from stillroom.predictors.labels.ferkd.adapting import Adapted, facts_of
from stillroom.predictors.labels.ferkd.mixing import cut_box, pasted, within_images
from stillroom.predictors.labels.ferkd.regions import Scale
from stillroom.predictors.labels.ferkd.table import (
    Labelling,
    Table,
    carried_table,
    made_table,
    read_about,
    see_fits,
)
from stillroom.predictors.labels.ferkd.task import CropClassification
from stillroom.predictors.parts.compression import Compression, Precision
from stillroom.predictors.parts.crops import FreshCrops, StoredCrops
from stillroom.predictors.parts.losses import soft_cross_entropy
from stillroom.runtime import Runtime
from stillroom.seeds import seed_of
from stillroom.task import Task

MIXING = 47
"""Keeps the boxes of mixing apart from all other seeds."""
FEW_CLASSES = 20
"""Up to so many, labels are kept whole unless told otherwise."""


def first_single(epochs: int, crops: int) -> int:
    """The epoch from which on a step has one crop of an image, as in the published script.

    Passes of `crops` epochs begin at multiples of `crops`; the last one, up to `crops` epochs, goes by single crops.
    """
    return crops * (-(-epochs // crops) - 1)


@dataclass(frozen=True)
class CutShort(Recipe):
    """A recipe whose learning rate goes as if the run had `whole` steps."""

    whole: int = 0
    """Steps of the run that was cut short."""

    def factor(self, step: int, steps: int) -> float:
        """See the base."""
        return super().factor(step, self.whole)


@dataclass(eq=False)
class FerKD(Method):
    """Label adaptation on stored crops (Shen, ICCV 2023, arXiv:2312.17473, section 3).

    L = mean of - sum_i a_i log softmax(z / T)_i, a = softened true label where the teacher's confidence c < T_M, its
    stored soft label above; crops with c < T_L or c > T_T are dropped.
    """

    name: ClassVar[str] = "ferkd"

    stored: int = 24
    """Crops K of each image in the table, >= 1 (published: 500)."""
    crops: int = 4
    """Crops n of an image in a step, 1 to K, so that it is loaded once for n; n epochs go through the images once."""
    low: float = 0.05
    """T_L: crops below are dropped as too hard, a quantile of all confidences or a confidence, >= 0."""
    middle: float = 0.2
    """T_M: crops from T_L up to it get the softened true label, >= T_L."""
    top: float = 0.98
    """T_T: crops above are dropped as too easy, >= T_M."""
    thresholds: Scale = "quantiles"
    """What the three thresholds are: quantiles over the whole table, or confidences."""
    selection: Literal["confidence", "random"] = "confidence"
    """Random is the control: as many crops dropped and softened, but which is left to chance."""
    smoothing: float = 0.1
    """Share of a softened label that the false classes get, in [0, 1)."""
    mix: Literal["none", "selfmix", "cutmix"] = "selfmix"
    """Crops pasted into others of the same image, or (an ablation) of the whole batch, or not."""
    mix_chance: float = 0.5
    """Chance that a step mixes, in [0, 1]."""
    mix_alpha: float = 1.0
    """Parameter of Beta(a, a), from which the share that is kept comes, > 0."""
    temperature: float = 1.0
    """Temperature T of the student's softmax, > 0."""
    label_temperature: float = 1.0
    """Temperature of the softmax that makes the stored labels, > 0."""
    compression: Compression | None = None
    """What is kept of a label; None: all of it up to 20 classes, marginal-smoothing beyond (published: that)."""
    top_k: int = 5
    """Values that the marginal kinds keep, >= 1."""
    precision: Precision = "float16"
    """Of the stored values."""
    single: bool = True
    """Go through the last n epochs with one crop of an image in a step, of n times as many images."""
    until: float = 1.0
    """Share of the run after which to stop, in (0, 1]; the learning rate goes as if it went on."""
    crop_seed: int = 0
    """Seed of the stored crops, >= 0."""
    table: str = ""
    """Folder of a table that was saved before: no teacher is needed then."""
    save_table: str = ""
    """New folder to leave the table in, for other students and elsewhere; empty: only the cache has it."""
    table_limit: float = 20.0
    """GiB that the table may take."""

    def __post_init__(self) -> None:
        self.uses_teacher = not self.table  # type: ignore[misc]
        self._held: Adapted | None = None
        self._epochs: dict[int, int] = {}
        self._alone: int | None = None
        self._steps = 0
        self.labelling_seconds = 0.0

    def check(self) -> None:
        """See the ranges of the fields."""
        super().check()
        require("--method.stored", self.stored, 1)
        if not self.table:
            require("--method.crops", self.crops, 1, self.stored)
        most = 1.0 if self.thresholds == "quantiles" else float("inf")
        require("--method.low", self.low, 0, most)
        require("--method.middle", self.middle, self.low, most)
        require("--method.top", self.top, self.middle, most)
        for name, ends in (("smoothing", "[)"), ("mix_chance", "[]"), ("until", "(]")):
            require(f"--method.{name.replace('_', '-')}", getattr(self, name), 0, 1, ends=ends)
        for name in ("mix_alpha", "temperature", "label_temperature", "table_limit"):
            require(f"--method.{name.replace('_', '-')}", getattr(self, name), 0, ends="(]")
        require("--method.top-k", self.top_k, 1)
        require("--method.crop-seed", self.crop_seed, 0)
        if self.table:
            require("--method.crops", self.crops, 1, read_about(Path(self.table))["crops"])
        place = Path(self.save_table or ".")
        if self.save_table and (place.is_file() or (place.is_dir() and any(place.iterdir()))):
            raise UserError(f"--method.save-table '{place}' is there already: pass a new folder")

    # -- the table --------------------------------------------------------------------------------------------------

    def labelling(self, classes: int) -> Labelling:
        """How the table is made."""
        kind = self.compression or ("full" if classes <= FEW_CLASSES else "marginal-smoothing")
        return Labelling(
            self.stored, self.crop_seed, kind, self.top_k, self.precision, self.label_temperature
        )

    def whole(self, task: Task) -> tuple[CropClassification, FreshCrops]:
        """The task, and its training images; UserError where there is no table to be made of them."""
        if not isinstance(task, Classification):
            raise UserError(
                f"method 'ferkd' cuts crops out of images, and a {type(task).__name__} has none: pass images"
            )
        for name in ("augment", "mixup", "cutmix"):
            if getattr(task, name) not in ("none", 0):
                raise UserError(
                    f"--task.{name} is {getattr(task, name)} and the table is of crops as they are: drop it, and see "
                    "--method.mix"
                )
        crops = task if isinstance(task, CropClassification) else CropClassification.of(task)
        source = crops.seen()
        assert isinstance(source, FreshCrops)
        return crops, source

    def _table(self, task: Task) -> Table:
        crops, source = self.whole(task)
        if self.table:
            folder = Path(self.table)
            see_fits(read_about(folder), folder, source, crops.classes)
            return carried_table(folder)
        how, own = self.labelling(crops.classes), crops.teacher_size
        at = crops.cropping if own is None else replace(crops.cropping, size=(own, own))
        about = {"data": crops.fingerprint()}
        made, seconds = made_table(source.source, crops.make_teacher(), at, how, crops.classes, about)
        self.labelling_seconds += seconds
        return made

    def prepared(self, task: Task) -> Adapted:
        """The table with its labels adapted: the teacher is asked here, and never again."""
        if self._held is None:
            table, source = self._table(task), self.whole(task)[1]
            if self.save_table and Runtime().main:
                table.save(Path(self.save_table))
            assert source.labels is not None
            self._held = Adapted.of(table, source.labels, self)
        return self._held

    # -- training ---------------------------------------------------------------------------------------------------

    def bind(self, task: Task, seed: int) -> None:
        """Make the student; the teacher has no part in training. See, before any work, that the table has room."""
        crops, source = self.whole(task)
        if self.table:
            see_fits(read_about(Path(self.table)), Path(self.table), source, crops.classes)
        else:
            self.labelling(crops.classes).see_room(len(source), crops.classes, self.table_limit)
        self.student: nn.Module = task.make_student(seed)
        self.seed = seed

    def source(self, task: Task) -> Source:
        """Rows of n crops and their adapted labels."""
        held, (crops, source) = self.prepared(task), self.whole(task)
        return StoredCrops(
            source.source,
            held.table.places,
            held.kept,
            held,
            self.crops,
            crops.cropping.size,
            self._epochs,
            self._alone,
        )

    def run(self, task: Task, fit: Fit) -> Result:
        """Label, then train: batches are of so many crops as the Engine's of samples, and so are epochs."""
        held, (_, source) = self.prepared(task), self.whole(task)
        self.task = task
        size = -(-fit.engine.batch_size // self.crops)
        rows = -(-len(source) // self.crops)
        per_epoch = -(-rows // size)
        self._steps = fit.engine.steps or fit.engine.epochs * per_epoch
        epochs = -(-self._steps // per_epoch)
        self._epochs = {view_of(fit.seed, epoch): epoch for epoch in range(epochs)}
        self._alone = first_single(epochs, self.crops) if self.single else None
        made = fit(self, batch_size=size, steps=max(1, round(self.until * self._steps)), keep_views=0)
        extra = {"labelling seconds": self.labelling_seconds, "table bytes": float(held.table.store.bytes)}
        return replace(made, extra=made.extra | extra | facts_of(held, source.objects))

    def recipes(self, default: Recipe) -> dict[str, Recipe]:
        """The Engine's own; of a run that is cut short with the learning rates of the whole one."""
        if self.until == 1:
            return {}
        same: dict[str, Any] = {field.name: getattr(default, field.name) for field in fields(default)}
        return {"student": CutShort(**same, whole=self._steps)}

    def updates(self, batch: Batch) -> Updates:
        """One step on the adapted labels of crops x [B, n, C, H, W], y [B, n, classes]: one loss and no other."""
        x, labels = yield from self._mixed(batch)
        logits = self.student(x.flatten(0, 1))
        loss = soft_cross_entropy(logits / self.temperature, labels.flatten(0, 1))
        yield Update("student", loss, items=len(batch))

    def _mixed(self, batch: Batch) -> Generator[Any, Any, tuple[Tensor, Tensor]]:
        """Crops and labels, pasted into each other: one share and one box a step, from (seed, step)."""
        x, labels, clock = batch.x, batch.y, batch.clock
        alone = self._alone is not None and clock.epoch >= self._alone
        if self.mix == "none" or (self.mix == "selfmix" and alone):
            return x, labels  # a crop that is alone has no partner but itself
        random = np.random.default_rng(seed_of(MIXING, self.seed, clock.step))
        if random.random() >= self.mix_chance:
            return x, labels
        box = cut_box(random, self.mix_alpha, *x.shape[-2:])
        if self.mix == "selfmix":
            return within_images(x, labels, batch.noise.uniform(x.shape[1]).argsort(-1), box)
        ids, all_x, all_labels = (yield Gather(batch.index)), (yield Gather(x)), (yield Gather(labels))
        order = torch.from_numpy(random.permutation(all_x.shape[0] * all_x.shape[1])).to(ids.device)
        own = (ids == batch.index.unsqueeze(1)).int().argmax(-1)
        partners = order.view(all_x.shape[:2])[own]
        return pasted(x, labels, all_x.flatten(0, 1)[partners], all_labels.flatten(0, 1)[partners], box)

    # -- what is seen of it -----------------------------------------------------------------------------------------

    def figures(self) -> list[dict[str, str]]:
        """The table's confidences with the three regions, and crops of each."""
        held, (task, source) = self.prepared(self.task), self.whole(self.task)
        told = held.told(source.objects, self.labelling_seconds)
        return [pictures.confidence_figure(held, told), pictures.example_figure(held, source, task.whole)]

    def quick(self) -> Self:
        """Six crops, two a step, in all epochs."""
        return replace(self, stored=6, crops=2, single=False)

    @classmethod
    def default_task(cls) -> CropClassification:
        """Scenes of the 8x8 digits."""
        return CropClassification()

    @classmethod
    def default_engine(cls) -> Engine:
        """Twenty epochs of crops, in batches of 128 of them: SGD at .1 with a cosine, as published."""
        return Engine(epochs=20, batch_size=128, recipe=Recipe(lr=0.1, weight_decay=1e-4))

    @classmethod
    def claims(cls) -> tuple[Claim, ...]:
        """Adapting labels, converging faster, and mixing within images: on scenes of digits and of MNIST."""
        from stillroom.predictors.labels.ferkd.claims import all_claims

        return all_claims()

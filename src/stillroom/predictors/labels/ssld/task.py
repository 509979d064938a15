"""The problem of SSLD: labelled images, whose labels may stay unread, and a pool of images without labels."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from stillroom.data import ImageData, Source, TensorSource
from stillroom.data.augment import augmentation
from stillroom.data.folders import Folder
from stillroom.data.opening import Reading, open_data
from stillroom.data.parts import Part, spread
from stillroom.data.pictures import Look
from stillroom.errors import UserError, require
from stillroom.models import check as check_network
from stillroom.predictors.classification import TEACHER_IGNORES, Augment, Classification
from stillroom.predictors.labels.ssld.made import PATCHES, Scaled, disturbed, shuffled
from stillroom.predictors.labels.ssld.mining import Mined
from stillroom.predictors.parts.pool import Pool, Union
from stillroom.runtime import Runtime
from stillroom.seeds import seed_of
from stillroom.task import TeacherJob
from stillroom.teacher import Teacher

JUNK, PLANTED = 32, 33
"""Keep what is made for the built-in pool apart from all other seeds."""
DIGITS_SEEN, DIGITS_JUNK, DIGITS_PLANTED = 100, 300, 20
REST = "rest"


@dataclass(eq=False)
class PooledClassification(Classification):
    """Classify images with the help of a pool of unlabelled ones: 8x8 digits unless told otherwise.

    The teacher is trained on the labelled images that the student sees and on no other: a teacher that has seen the
    labels of the pool would hand them on.
    """

    teacher_ignores: ClassVar[dict[str, Any]] = {
        **{name: value for name, value in TEACHER_IGNORES.items() if name != "subset_seed"},
        "pool": REST,
        "pool_junk": None,
        "pool_planted": None,
        "pool_image_column": None,
        "scorer": "",
        "test_size": None,
    }

    teacher: str = "resnet:32-64"
    """mlp:, cnn: or resnet:WIDTHS, timm:, torchvision: or transformers:NAME, a model's folder ./DIR, or none."""
    student: str = "mlp:32"
    """Likewise, or config:./DIR, its architecture alone, or less of the teacher, shrink:depth=0.5,width=0.5."""
    teacher_augment: Augment = "crop"
    """Augmentation of the teacher's images."""
    pool: str = REST
    """Unlabelled images: a folder, a set on the hub, or `rest`, the training images that the student does not see."""
    pool_image_column: str | None = None
    """Column of the pool's images; None finds it."""
    pool_junk: int | None = None
    """Images of shuffled patches among `rest`, which show nothing; None: 0, of the built-in digits 300."""
    pool_planted: int | None = None
    """Copies of validation and test images among `rest`, which mining has to find; None: 0, of the digits 20."""
    scorer: str = ""
    """Folder of the model that scores the pool; empty: the teacher does."""
    test_size: int | None = None
    """Score at this height and width, pixels, where it is not that of training; networks must take both."""

    # -- data -------------------------------------------------------------------------------------------------------

    @property
    def built_in(self) -> bool:
        """Whether the data are the digits that come with scikit-learn."""
        return self.data == "digits" and "data" not in self.given

    @property
    def wanted(self) -> int | None:
        """As asked; of the built-in digits 100, so that most of them are left for the pool."""
        if self.student_samples is None and self.built_in:
            return min(DIGITS_SEEN, len(super().images.train))
        return self.student_samples

    @property
    def images(self) -> ImageData:
        """The data with their splits, validation and test at `test_size` where there is one."""
        base = super().images
        if self.test_size is None:
            return base
        if "_large" not in self.__dict__:
            large = self.at_test_size.labelled
            validation, test = (Scaled(one, base.mean, base.std) for one in (large.validation, large.test))
            digest = hashlib.sha256((base.fingerprint + large.fingerprint).encode()).hexdigest()
            self._large = replace(base, validation=validation, test=test, fingerprint=digest)
        return self._large

    @property
    def held_out(self) -> list[Source]:
        """What the pool may hold no copy of: validation and test, at the size of the pool's images."""
        base = super().images
        return [base.validation, base.test]

    @property
    def at_test_size(self) -> Classification:
        """The same problem with all images as pixels at `test_size`, not augmented."""
        if "_at_test_size" not in self.__dict__:
            self._at_test_size = self.but(
                image_size=self.test_size, test_size=None, normalise="none", augment="none"
            )
        return self._at_test_size

    def seen_at_test_size(self) -> Source:
        """The student's training images as they are tested: at `test_size`, scaled alike, not augmented."""
        base = super().images
        return Scaled(self.at_test_size.seen(), base.mean, base.std)

    @property
    def unlabelled(self) -> Pool:
        """The pool, opened once."""
        if "_pool" not in self.__dict__:
            named = self.given.get("pool", self.pool)
            self._pool = self._rest() if isinstance(named, str) and named == REST else self._opened(named)
        return self._pool

    @property
    def pool_name(self) -> str:
        """What messages call the pool."""
        given = self.given.get("pool")
        return self.pool if given is None else type(given).__name__

    def _opened(self, named: Any) -> Pool:
        """A pool of the user's, made to look like the labelled images; its labels, if there are any, stay unread."""
        base = super().images
        limits = int(self.memory_limit * 2**30), int(self.disk_limit * 2**30)
        how = Reading(self.pool_image_column, "none", self.image_size, *limits, stream=self.stream)
        items = open_data(named, how).parts["train"]
        if not len(items):
            raise UserError(f"pool '{self.pool_name}' is empty: pass --task.pool with images")
        look, part = Look(*base.shape, self.image_size), Part(items, torch.arange(len(items)), None)
        transform = augmentation(self.augment, look.shape)
        source: Source
        if items.random or 4 * math.prod(look.shape) * len(items) > limits[0]:
            source = part.lazy(look, transform, base.mean, base.std)
        else:
            source = TensorSource(part.decode(look), None, transform, base.mean, base.std)
        if isinstance(items, Folder):
            return Pool(source, lambda i: str(items.root / items.files[i]))
        return Pool(source, items.where)

    def _rest(self) -> Pool:
        """The training images that the student does not see, junk, and copies of images that are scored on."""
        base, ids = super().images, self.seen_ids()
        hidden = torch.ones(len(base.train), dtype=torch.bool)
        hidden[torch.arange(len(base.train)) if ids is None else ids] = False
        rest = hidden.nonzero().squeeze(1)
        if not len(rest):
            raise UserError(
                f"--task.pool is 'rest' and the student sees all {len(hidden)} training images: pass a folder, "
                "--task.student-samples with fewer, or --method.selection none"
            )
        seed = self.subset_seed
        junk = self._made(base.train, rest, self._junk, shuffled, seed_of(JUNK, seed))
        planted = [
            self._made(one, torch.arange(len(one)), count, disturbed, seed_of(PLANTED, seed, which))
            for which, (one, count) in enumerate(
                ((base.validation, self._planted // 2), (base.test, self._planted - self._planted // 2))
            )
        ]
        kinds = ["image"] * len(rest) + ["junk"] * self._junk + ["planted"] * self._planted
        made = [one for one in (junk, *planted) if len(one)]
        names = [f"training image {i}" for i in rest.tolist()]
        names += [
            f"{kind} {i}" for kind, n in (("junk", self._junk), ("planted", self._planted)) for i in range(n)
        ]
        return Pool(Union(base.train.subset(rest), *made), names.__getitem__, tuple(kinds))

    def _made(self, source: Source, ids: Tensor, count: int, change: Any, seed: int) -> TensorSource:
        """`count` images made by `change(pixels, generator)` of images of `source` drawn from `ids`."""
        base, generator = super().images, torch.Generator().manual_seed(seed)
        chosen = ids[torch.randint(len(ids), (count,), generator=generator)]
        if change is disturbed:
            chosen = ids[torch.randperm(len(ids), generator=generator)[:count]]
        x, _ = source.fetch(chosen, None)
        x = change(self.pixels(x), generator)
        return TensorSource(x, None, augmentation(self.augment, base.shape), base.mean, base.std)

    def pixels(self, x: Tensor) -> Tensor:
        """Scaled images [n, C, H, W] as they were before: in [0, 1] where they were pictures."""
        base = super().images
        mean, std = (torch.tensor(one).view(1, -1, 1, 1) for one in (base.mean, base.std))
        return x * std + mean

    @property
    def _junk(self) -> int:
        return (DIGITS_JUNK if self.built_in else 0) if self.pool_junk is None else self.pool_junk

    @property
    def _planted(self) -> int:
        return (DIGITS_PLANTED if self.built_in else 0) if self.pool_planted is None else self.pool_planted

    # -- networks ---------------------------------------------------------------------------------------------------

    def make_scorer(self) -> Teacher:
        """What scores the pool: the model that was asked for, or the teacher."""
        if "scorer" in self.given:
            return Teacher(self.given_network("scorer"))
        return Teacher(self.load_teacher(self.scorer)) if self.scorer else self.make_teacher()

    def teacher_job(self, engine: Any) -> TeacherJob | None:
        """See the base; on what the student sees, by epochs whatever the number of the student's steps."""
        job = super().teacher_job(replace(engine, steps=0))
        if job is None:
            return None
        return replace(job, task=job.task.but(student_samples=self.wanted))

    def check(self, seed: int, teacher: bool) -> None:
        """See the base; networks must take images of `test_size` as well."""
        self._check_rest()
        if self.test_size is not None:
            require("--task.test-size", self.test_size, 1)
        super().check(seed, teacher)
        about: dict[str, Any] = {"classes": self.classes, "data": self.images.name}
        if self.test_size is not None:
            about["shape"] = (self.images.shape[0], self.test_size, self.test_size)
            check_network(self.make_student(seed), role="student", name=self.student_name, **about)
            if self.needs_teacher(teacher):
                check_network(self._outside_teacher(), role="teacher", name=self.teacher_name, **about)
        if self.scorer or "scorer" in self.given:
            about |= {"shape": self.images.shape, "role": "scorer", "name": self.scorer or None}
            check_network(self.make_scorer().module, **about)

    def _check_rest(self) -> None:
        """The options of a pool that is made here."""
        images, made = super().images, (self.pool_junk, self.pool_planted)
        if self.pool != REST or "pool" in self.given:
            if any(made):
                raise UserError(
                    f"--task.pool-junk and pool-planted are for --task.pool rest, and the pool is '{self.pool_name}': "
                    "drop them"
                )
            return
        require("--task.pool-junk", self._junk, 0)
        require("--task.pool-planted", self._planted, 0, min(len(images.validation), len(images.test)))
        if self._junk and min(images.shape[1:]) < PATCHES:
            raise UserError(
                f"images of data '{images.name}' are {images.shape[1]} x {images.shape[2]} pixels, too small for 4 x 4 "
                "patches to shuffle: pass --task.pool-junk 0"
            )

    # -- scores and files -------------------------------------------------------------------------------------------

    def score(self, product: nn.Module, split: str, runtime: Runtime) -> dict[str, Any]:
        """See the base; on 'test' with the shares of junk and of planted copies that were kept from it."""
        found = super().score(product, split, runtime)
        mined: Mined | None = self.recall(product, "mined")
        if split == "test" and mined is not None:
            found |= {key: value for key, value in mined.numbers().items() if key.endswith("_kept_out")}
        return found

    def export(self, product: nn.Module, folder: Path, about: Mapping[str, Any]) -> None:
        """See the base; with lists of the images that were selected and of those removed as near-duplicates."""
        super().export(product, folder, about)
        mined = self.recall(product, "mined")
        if mined is not None:
            mined.write(folder, self.images.classes)

    def fingerprint(self) -> str:
        """The digest of the labelled images, and where the pool is not made of them, of some of its own."""
        own = super().fingerprint()
        if self.pool == REST and "pool" not in self.given:
            return own
        source = self.unlabelled.source
        x, _ = source.fetch(spread(len(source), 64), None)
        return hashlib.sha256(f"{own} {len(source)} ".encode() + x.numpy().tobytes()).hexdigest()

    def quick(self) -> PooledClassification:
        """See the base; 20 digits are left for the pool."""
        made = super().quick()
        assert isinstance(made, PooledClassification)
        return made.but(pool=REST, pool_junk=20, pool_planted=4, scorer="", test_size=None)

    def summary(self) -> dict[str, Any]:
        """See the base; with the pool."""
        return super().summary() | {"pool": self.pool_name, "test size": self.test_size or "that of training"}

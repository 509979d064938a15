"""Labelled texts, a teacher and a student that classify them: the task of images with tokens in their place."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from stillroom import metrics
from stillroom.data import Source
from stillroom.data.texts import TextData, load_texts
from stillroom.engine import Engine
from stillroom.errors import UserError, require
from stillroom.exporting.forms import Portable
from stillroom.models import check
from stillroom.models.local import student_folder
from stillroom.models.shrinking import is_shrink
from stillroom.models.text_files import load_text, read_about, save_text, wrapped
from stillroom.models.text_names import build_encoder
from stillroom.models.text_places import folder_of, has_head, same_tokens, start_digest
from stillroom.models.texts import Encoder, MeanPooled
from stillroom.optim import Recipe
from stillroom.predictors.labelled import LabelledTask
from stillroom.predictors.parts.text_card import text_card
from stillroom.task import TeacherJob

Tuning = Literal["all", "head"]

FRESH_TOKENS = "bpe:2000"
"""The tokenizer where neither network brings one."""

FRESH_LR, TUNING_LR = 1e-3, 5e-5
"""Learning rates of a teacher: of fresh weights, and of trained ones (Devlin et al., 2019, A.3: 2e-5 to 5e-5)."""

REVIEWS_SEEN = 500
"""Of the built-in reviews: on all of them a student has little to learn from its teacher."""


@dataclass(eq=False)
class TextClassification(LabelledTask):
    """Classify texts: made-up reviews unless told otherwise."""

    teacher_ignores: ClassVar[dict[str, Any]] = {
        "subset_seed": 0,
        "teacher_seed": 0,
        "vary_teacher": True,
        "teacher_lr": None,
        "teacher_tuning": "all",
    }

    data: str = "reviews"
    """`reviews`, a local folder (parquet, json, csv, or .txt files in a folder a class), or a name on the hub."""
    teacher: str = "bert:64x2"
    """bert:WIDTHxLAYERS, gpt:.., llama:.., a model's ./folder, transformers:NAME, sentence:PACKAGE, minilm, or none."""
    student: str = "bert:16x1"
    """The student, likewise; config:./folder takes no weights; shrink:depth=0.5,width=0.5 is cut out of the teacher."""
    teacher_weights: str = ""
    """Folder of an earlier run; empty: a teacher with a fitting head is taken as it is, others are trained here."""
    text_column: str | None = None
    """Column of the texts, or two as A,B for pairs; None finds it."""
    label_column: str | None = None
    """Column of the labels; None finds it."""
    tokenizer: str = "auto"
    """characters, bpe:N (made from the training texts), a folder or hub name; auto: the teacher's, the student's."""
    length: int = 128
    """Tokens of a text at most, >= 2; longer ones are cut."""
    train_samples: int | None = None
    """Training texts to use, the same number a class where possible; None for all."""
    student_samples: int | None = None
    """How many of them the student sees; the teacher sees all. None: all, but of the built-in reviews 500."""
    split_seed: int = 0
    """Seed of the splits that the data do not come with."""
    subset_seed: int = 0
    """Seed of the choice of the student's samples."""
    tuning: Tuning = "all"
    """What of the student is trained: all of it, or the head on an encoder that stays as it is."""
    teacher_seed: int = 0
    """Seed of the teacher's training."""
    teacher_epochs: int = 8
    """Epochs of the teacher's training, >= 1."""
    teacher_batch_size: int = 32
    """Batch size of the teacher's training, >= 1."""
    teacher_tuning: Tuning = "all"
    """What of a teacher is trained that has no fitting head yet: all of it, or the head alone."""
    teacher_lr: float | None = None
    """Learning rate of the teacher's training; None: 1e-3, but 5e-5 to tune all of a trained encoder."""
    vary_teacher: bool = True
    """In comparisons over seeds, train a teacher for each seed; False keeps the one of `teacher_seed`."""

    # -- data -------------------------------------------------------------------------------------------------

    @property
    def labelled(self) -> TextData:
        """The texts with their splits, tokenised once."""
        return self.loaded(
            load_texts,
            self.data,
            tokenizer=self._tokens(),
            targets="labels",
            text_column=self.text_column,
            label_column=self.label_column,
            length=self.length,
            split_seed=self.split_seed,
            train_samples=self.train_samples,
        )

    def _tokens(self) -> Any:
        """The tokenizer: given, named, or that of the first network that has one."""
        if "tokenizer" in self.given:
            return self.given["tokenizer"]
        if self.tokenizer != "auto":
            return self.tokenizer
        places = (self._tokenizer_place(role) for role in ("teacher", "student"))
        return next((place for place in places if place is not None), FRESH_TOKENS)

    def _tokenizer_place(self, role: str) -> str | None:
        """The folder or hub name of the tokenizer that goes with a network's weights."""
        if role in self.given:
            place = getattr(self.given[role], "name_or_path", "")
            return place if place and Path(place).is_dir() else None
        if role == "teacher" and self.teacher_weights:
            return str(student_folder(Path(self.teacher_weights)))
        name = getattr(self, role)
        bare = name == "none" or name.startswith("config:") or is_shrink(name)
        return None if bare else folder_of(name)

    def train(self) -> Source:
        """The student's training texts."""
        return self.seen()

    @property
    def wanted(self) -> int | None:
        """As asked; of the built-in reviews 500 unless told otherwise."""
        built_in = self.data == "reviews" and "data" not in self.given
        if self.student_samples is None and built_in:
            return min(REVIEWS_SEEN, len(self.labelled.train))
        return self.student_samples

    # -- networks -----------------------------------------------------------------------------------------------

    def build_network(self, role: str, name: str, seed: int) -> nn.Module:
        """The classifier of texts called `name`."""
        made: nn.Module
        if role == "student" and self.derived:
            made = self.derive(seed)
        else:
            data = self.labelled
            made = build_encoder(
                name, tokenizer=data.tokenizer, classes=data.classes, length=self.length, seed=seed
            )
        if role == "student" and self.tuning == "head" and isinstance(made, Encoder):
            made.head_only()
        return made

    def given_network(self, role: str) -> nn.Module:
        """A network from Python, one of transformers' as an `Encoder`."""
        return wrapped(super().given_network(role), self.labelled.tokenizer, causal=False)

    def load_teacher(self, place: str) -> nn.Module:
        """The network in the folder of an earlier run or its student."""
        return load_text(student_folder(Path(place)))

    # -- the teacher --------------------------------------------------------------------------------------------

    def teacher_job(self, engine: Any) -> TeacherJob | None:
        """Training the teacher on all training texts; None where it is a classifier of these classes already."""
        job = super().teacher_job(engine)
        if job is None or has_head(self.teacher, self.classes):
            return None
        place = folder_of(self.teacher)
        whole = place is not None and not self.teacher.startswith("config:") and self.teacher_tuning == "all"
        lr = self.teacher_lr or (TUNING_LR if whole else FRESH_LR)
        key = job.key | ({"start": start_digest(place)} if place is not None else {})
        return replace(job, engine=replace(job.engine, recipe=replace(job.engine.recipe, lr=lr)), key=key)

    def teacher_options(self) -> dict[str, Any]:
        """The teacher's training has the tokenizer that was settled on, and tunes what it is told to."""
        tokens = self._tokens()
        return {"tuning": self.teacher_tuning, "tokenizer": tokens if isinstance(tokens, str) else "auto"}

    # -- checks and scores --------------------------------------------------------------------------------------

    def check(self, seed: int, teacher: bool) -> None:
        """Load the data, compare vocabularies, and run both networks on two blank texts."""
        for name in ("teacher_epochs", "teacher_batch_size"):
            require(f"--task.{name.replace('_', '-')}", getattr(self, name), 1)
        if self.teacher_lr is not None:
            require("--task.teacher-lr", self.teacher_lr, 0, ends="(]")
        data = self.labelled
        if data.train.labels is None:
            raise UserError(
                f"data '{data.name}' has no labels: pass --task.label-column with the column of them"
            )
        about = {"shape": (self.length,), "classes": self.classes, "data": data.name, "dtype": torch.int64}
        self._check_tokens("student")
        check(self.make_student(seed), role="student", name=self.student_name, **about)
        self.train()
        if not self.needs_teacher(teacher):
            return
        self._check_tokens("teacher")
        check(self._outside_teacher(), role="teacher", name=self.teacher_name, **about)

    def _check_tokens(self, role: str) -> None:
        """Raise UserError where a network's own tokenizer numbers its tokens otherwise than the one in use."""
        place = self._tokenizer_place(role)
        if place is not None:
            name = self.teacher_name if role == "teacher" else self.student_name
            same_tokens(self.labelled.tokenizer, place, f"{role} '{name}'")

    def cost(self, product: nn.Module) -> dict[str, float]:
        """Parameters, multiply-adds a text of `length` tokens, seconds for batches of 1 and 64, bytes on disk."""
        return metrics.costs(product, (self.length,), dtype=torch.int64)

    def summary(self) -> dict[str, Any]:
        """Name, tokens, classes and splits of the data."""
        data = self.labelled
        return {
            "name": data.name,
            "length": data.length,
            "tokens": len(data.tokenizer),
            "classes": data.classes,
            "splits": data.splits,
            "student sees": len(self.train()),
            "fingerprint": data.fingerprint,
            "teacher": self.teacher_name,
            "student": self.student_name,
        }

    def export(self, product: nn.Module, folder: Path, about: Mapping[str, Any]) -> None:
        """Write a transformers folder with the tokenizer, what Stillroom knows of it, and a model card."""
        data = self.labelled
        config = {
            "architecture": None if "student" in self.given else self.student,
            "network": self.student_name,
            "length": self.length,
            "classes": data.classes,
            "made_by": {"method": about["method"], "data": data.name, "seed": about["seed"]},
        }
        save_text(folder, product, data.tokenizer, config)
        text_card(config, about, _form(product)).write(folder, about)

    @classmethod
    def load(cls, folder: Path, module: nn.Module | None = None) -> nn.Module:
        """The network in `folder`."""
        return load_text(folder, module)

    def portable(
        self, product: nn.Module, folder: Path, about: Mapping[str, Any], absent: Collection[str] = ()
    ) -> Portable:
        """A network on token ids, and transformers' own folder where it is one of its classifiers."""
        from stillroom.exporting.networks import texts

        config = read_about(folder)
        card = text_card(config, about, _form(product))
        test = None if "data" in absent else self.labelled.test
        return texts(self, test, product, config, card, absent)

    # -- copies -------------------------------------------------------------------------------------------------

    def default_engine(self) -> Engine:
        """AdamW with a warm-up, which transformers need."""
        return Engine(epochs=20, batch_size=32, recipe=text_recipe())

    def quick(self) -> TextClassification:
        """A hundred reviews and two epochs for the teacher."""
        return self.but(
            data="reviews",
            train_samples=120,
            student_samples=100,
            teacher_epochs=2,
            length=32,
            student="bert:16x1",
            teacher="bert:32x1",
            tokenizer="bpe:300",
        )


def _form(product: nn.Module) -> str:
    """Whose folder a product is kept in."""
    if not isinstance(product, Encoder):
        return "module"
    return "sentence-transformers" if isinstance(product.network, MeanPooled) else "transformers"


def text_recipe(lr: float = 2e-3) -> Recipe:
    """The optimizer, schedule and clipping with which small transformers are trained here."""
    return Recipe(
        optimizer="adamw",
        lr=lr,
        weight_decay=0.01,
        decay_biases=False,
        schedule="linear",
        warmup=0.1,
        clip=1.0,
    )

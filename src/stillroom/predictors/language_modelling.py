"""The task of language models: text, a teacher and a student that predict its next token, and how well they do."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from stillroom import metrics
from stillroom.data import Source
from stillroom.data.texts import TextData, load_texts
from stillroom.data.tokens import read_tokenizer
from stillroom.engine import Engine
from stillroom.errors import UserError, require
from stillroom.exporting.forms import Portable
from stillroom.models.shrinking import is_shrink
from stillroom.models.text_files import load_text, read_about, wrapped
from stillroom.models.text_names import build_causal
from stillroom.models.text_places import folder_of, same_tokens
from stillroom.models.texts import Causal, check_packing
from stillroom.optim import Recipe
from stillroom.predictors.parts.language import folder as language_folder
from stillroom.predictors.parts.language import scores as language_scores
from stillroom.predictors.parts.language.prompts import EvenSource
from stillroom.predictors.parts.language.vocabularies import Align, Link, link, width_of
from stillroom.predictors.taught import TaughtTask
from stillroom.runtime import Runtime
from stillroom.seeds import seed_of
from stillroom.task import TeacherJob

SUBSET = 61
"""Keeps the seed of the student's rows apart from all others."""

ROWS_SEEN = 128
"""Of the built-in text: on all of it a student of this size has little to learn from its teacher."""


@dataclass(eq=False)
class LanguageModelling(TaughtTask):
    """Predict the next token: of Python's help topics, a character a token, unless told otherwise."""

    metric: ClassVar[str] = "nats_per_token"
    higher_is_better: ClassVar[bool] = False
    per_token: ClassVar[bool] = True
    per_sample_words: ClassVar[str] = "test passages"
    teacher_example: ClassVar[str] = "gpt:96x2 or a folder"

    data: str = "pydoc"
    """pydoc (Python's help topics), a folder or file of texts or tables, or the name of a set on the hub."""
    tokenizer: str = "auto"
    """characters, bpe:N, a folder or hub name; auto: the student's own, else the teacher's, else characters."""
    teacher: str = "gpt:96x2"
    """gpt:WIDTHxLAYERS or llama:WIDTHxLAYERS, trained here; a folder or transformers:NAME, as it is; or none."""
    student: str = "gpt:64x2"
    """Likewise; config:FOLDER takes no weights, shrink:depth=0.5,width=0.5 is cut out of the teacher."""
    teacher_weights: str = ""
    """Folder of an earlier run; empty: train the teacher here, or take its folder's weights."""
    text_column: str | None = None
    """Column of the texts, or PROMPTS,COMPLETIONS; None finds it."""
    length: int = 64
    """Tokens a row, >= 2."""
    packing: Literal["none", "blocks", "documents"] = "blocks"
    """A text a row, one stream cut into rows, or whole texts packed into rows that do not see each other."""
    train_samples: int | None = None
    """Training texts to use; None for all."""
    student_samples: int | None = None
    """How many rows the student sees; the teacher sees all. None: all, but of the built-in text 128."""
    split_seed: int = 0
    """Seed of the splits that the data do not come with."""
    subset_seed: int = 0
    """Seed of the choice of the student's rows."""
    score_samples: int = 512
    """Most rows of a split that a score is made of, >= 1."""
    teacher_steps: int = 300
    """Steps of the teacher's training, >= 1."""
    teacher_batch_size: int = 16
    """Rows a step of the teacher's training, >= 1."""
    teacher_lr: float = 3e-3
    """Learning rate of the teacher's training, > 0."""
    teacher_seed: int = 0
    """Seed of the teacher's training."""
    vary_teacher: bool = True
    """In comparisons over seeds, train a teacher for each seed; False keeps the one of `teacher_seed`."""

    # -- data -------------------------------------------------------------------------------------------------

    @property
    def texts(self) -> TextData:
        """The data with their splits, tokenised once."""
        return self.loaded(
            load_texts,
            self.data,
            tokenizer=self.given.get("tokenizer") or self._tokenizer,
            targets="next",
            text_column=self.text_column,
            length=self.length,
            packing=self.packing,
            split_seed=self.split_seed,
            train_samples=self.train_samples,
        )

    @property
    def _tokenizer(self) -> str:
        if self.tokenizer != "auto":
            return self.tokenizer
        for role, name in (("student", self.student), ("teacher", self.teacher)):
            bare = role in self.given or name == "none" or is_shrink(name)
            place = None if bare else folder_of(name)
            if place is not None and not name.startswith("config:"):
                return place
        return "characters"

    @property
    def tokens(self) -> Any:
        """The student's tokenizer, which made the data's ids."""
        return self.texts.tokenizer

    def train(self) -> Source:
        """The student's training rows."""
        source = self.texts.train
        if self.packing != "none":
            source = EvenSource(source, self.length)
        wanted = self._wanted
        if wanted is None:
            return source
        if not 1 <= wanted <= len(source):
            raise UserError(f"--task.student-samples is {wanted}: pass 1 to {len(source)} (all rows)")
        generator = torch.Generator().manual_seed(seed_of(self.subset_seed, SUBSET))
        return source.subset(torch.randperm(len(source), generator=generator)[:wanted].sort().values)

    @property
    def _wanted(self) -> int | None:
        built_in = self.data == "pydoc" and "data" not in self.given
        if self.student_samples is None and built_in:
            return min(ROWS_SEEN, len(self.texts.train))
        return self.student_samples

    def rows(self, split: str) -> tuple[Tensor, Tensor]:
        """x and y of the rows of a split that are scored, spread evenly over it."""
        source = self.texts.validation if split == "validation" else self.texts.test
        count = min(self.score_samples, len(source))
        x, y = source.fetch(torch.arange(count) * len(source) // count, view=None)
        assert y is not None
        return x, y

    # -- networks -----------------------------------------------------------------------------------------------

    def build_network(self, role: str, name: str, seed: int) -> nn.Module:
        """The causal language model called `name`."""
        if role == "student" and self.derived:
            return self.derive(seed)
        tokenizer = self._tokens_of(role)
        return build_causal(name, tokenizer=tokenizer, length=self.length, seed=seed)

    def given_network(self, role: str) -> nn.Module:
        """A network from Python, one of transformers' as a `Causal`."""
        return wrapped(super().given_network(role), self._tokens_of(role), causal=True)

    def _tokens_of(self, role: str) -> Any:
        return self.tokens if role == "student" else self.teacher_tokens

    @property
    def teacher_tokens(self) -> Any:
        """The teacher's own tokenizer, where it comes with one; else the student's."""
        place = self._teacher_place
        if place is None or "teacher" in self.given:
            return self.tokens
        if "_teacher_tokens" not in self.__dict__:
            self._teacher_tokens = read_tokenizer(place)
        return self._teacher_tokens

    @property
    def _teacher_place(self) -> str | None:
        """The folder or hub name that the teacher's weights come from."""
        if self.teacher_weights:
            return str(language_folder.student_of(Path(self.teacher_weights)))
        fresh = self.teacher == "none" or self.teacher.startswith("config:")
        return None if fresh else folder_of(self.teacher)

    @property
    def weights(self) -> str:
        """The folder or hub name of the teacher's weights; empty where it is trained here."""
        return self._teacher_place or ""

    def load_teacher(self, place: str) -> nn.Module:
        """The network with its weights in `place`."""
        return self.build_network("teacher", f"transformers:{place}", self.teacher_seed)

    def _outside_teacher(self) -> nn.Module:
        """Made once: a score tells the teacher from others by its network."""
        if "_outside" not in self.__dict__:
            self._outside = super()._outside_teacher()
        return self._outside

    def in_teachers_tokens(self) -> LanguageModelling:
        """A copy whose data are cut into the teacher's tokens."""
        made = self.but(tokenizer=self._teacher_place)
        made.given = {key: value for key, value in self.given.items() if key != "tokenizer"}
        return made

    @property
    def taught(self) -> bool:
        """Whether there is a teacher with weights to compare with."""
        return "teacher" in self.given or bool(self.weights) or "_taught" in self.__dict__

    def teacher_job(self, engine: Any) -> TeacherJob | None:
        """Training the teacher on all training rows, to predict the next token."""
        from stillroom.predictors.language_models import NextToken

        if "teacher" in self.given or self.weights or self.teacher == "none":
            return None
        every = len(self.texts.train)
        usual = {"subset_seed": 0, "teacher_seed": 0, "vary_teacher": True, "score_samples": 512}
        task = self.but(student=self.teacher, teacher="none", student_samples=every, **usual)
        task.given = {key: value for key, value in self.given.items() if key in ("data", "tokenizer")}
        recipe = Recipe("adamw", lr=self.teacher_lr, weight_decay=0.01, warmup=0.05, clip=1.0)
        engine = replace(
            engine,
            steps=self.teacher_steps,
            batch_size=self.teacher_batch_size,
            recipe=recipe,
            evaluate_every=0,
        )
        return TeacherJob(NextToken(), task, engine, self.teacher_seed, {"data": self.fingerprint()})

    def link(self, align: Align, special: tuple[str, ...], student: nn.Module, teacher: nn.Module) -> Link:
        """How the vocabularies of two networks are brought together; UserError where they are not to be."""
        sides = (self.tokens, width_of(student)), (self.teacher_tokens, width_of(teacher))
        return link(align, special, *sides)

    def default_engine(self) -> Engine:
        """The recipe of small transformers."""
        recipe = Recipe("adamw", lr=3e-3, weight_decay=0.01, warmup=0.05, clip=1.0)
        return Engine(epochs=20, batch_size=16, recipe=recipe, evaluate_every=10)

    # -- checks and scores --------------------------------------------------------------------------------------

    def check(self, seed: int, teacher: bool) -> None:
        """Load the data, and have both networks read two short rows."""
        names = ("score_samples", "teacher_steps", "teacher_batch_size")
        for name in names:
            require(f"--task.{name.replace('_', '-')}", getattr(self, name), 1)
        require("--task.teacher-lr", self.teacher_lr, 0, ends="(]")
        self.train()
        place = None if "student" in self.given or self.derived else folder_of(self.student)
        if place is not None and not self.student.startswith("config:"):
            same_tokens(self.tokens, place, f"student '{self.student}'")
        self._see(self.make_student(seed), "student", len(self.tokens))
        if self.needs_teacher(teacher):
            self._see(self._outside_teacher(), "teacher", 1)

    def _see(self, model: nn.Module, role: str, tokens: int) -> None:
        language_scores.check(model, role, tokens)
        if self.packing == "documents" and isinstance(model, Causal):
            check_packing(model, self.student_name if role == "student" else self.teacher_name)

    def score(self, product: nn.Module, split: str, runtime: Runtime) -> dict[str, Any]:
        """Nats a token, bits a byte, accuracy; beside a teacher, how far from it, on the split and on own texts."""
        return language_scores.score(self, product, split, runtime)

    def cost(self, product: nn.Module) -> dict[str, float]:
        """Parameters, multiply-adds and seconds of reading a row of `length` tokens, bytes on disk."""
        return metrics.costs(product, (self.length,), (1,), torch.int64)

    def summary(self) -> dict[str, Any]:
        """Name, tokenizer and splits of the data."""
        texts = self.texts
        return {
            "name": texts.name,
            "tokens": len(texts.tokenizer),
            "length": texts.length,
            "packing": self.packing,
            "splits": texts.splits,
            "student sees": f"{len(self.train())} of {len(texts.train)} rows",
            "fingerprint": texts.fingerprint,
            "teacher": self.teacher_name,
            "student": self.student_name,
        }

    def fingerprint(self) -> str:
        """The digest of the token ids."""
        return self.texts.fingerprint

    def figures(self, products: Mapping[str, Any], runtime: Runtime) -> list[dict[str, str]]:
        """What every arm writes after the same beginnings, drawn with the same random numbers."""
        from stillroom.predictors.parts.language.figures import writings

        return [writings(self, products, runtime)]

    def export(self, product: nn.Module, folder: Path, about: Mapping[str, Any]) -> None:
        """Write a transformers folder, with tokenizer and model card, to `folder`."""
        language_folder.export(product, self.tokens, folder, self.student_name, about)

    @classmethod
    def load(cls, folder: Path, module: nn.Module | None = None) -> nn.Module:
        """The language model in `folder`, in eval mode."""
        return load_text(folder, module)

    def portable(
        self, product: nn.Module, folder: Path, about: Mapping[str, Any], absent: Collection[str] = ()
    ) -> Portable:
        """The language model's graph, and transformers' own folder."""
        from stillroom.exporting.networks import texts

        card = language_folder.card(self.student_name, isinstance(product, Causal), about)
        test = None if "data" in absent else self.texts.test
        return texts(self, test, product, read_about(folder), card, absent)

    # -- copies -------------------------------------------------------------------------------------------------

    def baseline(self) -> Any:
        """Training on the text alone."""
        from stillroom.predictors.language_models import NextToken

        return NextToken()

    def quick(self) -> LanguageModelling:
        """A few topics, short rows, tiny networks."""
        return self.but(
            data="pydoc", tokenizer="characters", train_samples=6, student_samples=20, length=24,
            teacher="gpt:32x1", student="gpt:16x1", teacher_weights="", text_column=None, packing="blocks",
            teacher_steps=6, score_samples=8,
        )  # fmt: skip

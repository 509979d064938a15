"""Distilling whole texts: the teacher writes, once, and the student learns what was written."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

from stillroom.data import Source
from stillroom.errors import UserError, require
from stillroom.method import Batch, Update, Updates
from stillroom.predictors.language_modelling import LanguageModelling
from stillroom.predictors.language_models.next_token import LanguageMethod
from stillroom.predictors.parts.language.prompts import replaced, targets_of
from stillroom.predictors.parts.language.sampling import NO_BEAMS, Sampling, searchable
from stillroom.predictors.parts.language.vocabulary import Mixing, Tokens, distilled
from stillroom.predictors.parts.language.writing import Writing, written
from stillroom.task import Task


@dataclass(eq=False)
class SequenceKD(LanguageMethod):
    """Sequence-level distillation (Kim and Rush, EMNLP 2016, arXiv:1606.07947, eq. 4, mixed as in section 3.3).

    L = -log s(w | prompt), the mean over the tokens of w, with w what the teacher writes after a row's prompt, once
    and for all; a share 1 - `share` of the rows shows the data's own text instead. The teacher's vocabulary may be
    another one: the texts are what counts.
    """

    name: ClassVar[str] = "seq-kd"

    share: float = 1.0
    """Share of rows that show the teacher's text, drawn anew each step, in [0, 1]; the others show the data's."""
    prompt: int = 16
    """Tokens of a row that the teacher goes on from, where the data have no prompts, >= 1."""
    new_tokens: int = 128
    """Most tokens that it writes, up to the task's length, >= 1."""
    beams: int = 1
    """Width of the beam that looks for the likeliest text, >= 1; 1 draws tokens instead."""
    sample_temperature: float = 1.0
    """Temperature that it writes at, > 0."""
    top_k: int = 0
    """Write with the k most likely tokens alone; 0: with all."""
    top_p: float = 1.0
    """Write with the most likely tokens alone that together have this probability, in (0, 1]."""

    def check(self) -> None:
        """See the ranges of the fields."""
        super().check()
        require("--method.share", self.share, 0, 1)
        for name in ("prompt", "new_tokens", "beams"):
            require(f"--method.{name.replace('_', '-')}", getattr(self, name), 1)
        self._sampling.check()

    @property
    def _sampling(self) -> Sampling:
        return Sampling(self.sample_temperature, self.top_k, self.top_p)

    def bind(self, task: Task, seed: int) -> None:
        """Take the networks; raise UserError for rows and teachers that texts cannot be made of."""
        super().bind(task, seed)
        assert isinstance(task, LanguageModelling)
        if self.share and task.packing == "documents":
            raise UserError(
                "--task.packing is 'documents', whose rows hold several texts: pass blocks or none"
            )
        if self.share and self.beams > 1 and not searchable(self.teacher.module):
            raise UserError(NO_BEAMS)

    def source(self, task: Task) -> Source:
        """The data's rows; what the teacher wrote for each is looked up by its number."""
        source = task.train()
        if isinstance(task, LanguageModelling) and self.share > 0:
            how = Writing(self.prompt, self.new_tokens, self.beams, self._sampling, task.teacher_seed)
            self._texts = written(task, source, how)
        return source

    def updates(self, batch: Batch) -> Updates:
        """One step on the teacher's texts, and on the data's where they are mixed in."""
        x, y = batch.x, batch.y
        shown = batch.noise.uniform() < self.share
        if bool(shown.any()):
            ids = batch.index[shown].cpu()
            rows = self._texts.rows("text", ids).long().to(x.device)
            sizes = self._texts.rows("size", ids).long().to(x.device)
            x, y = replaced(x, y, rows, targets_of(rows, sizes), shown)
        loss = distilled(self._scores(x), Tokens(y), None, Mixing(alpha=0.0))
        yield Update("student", loss.value, items=loss.items)

    def quick(self) -> Self:
        """A few tokens."""
        return replace(self, prompt=min(self.prompt, 4), new_tokens=min(self.new_tokens, 6))

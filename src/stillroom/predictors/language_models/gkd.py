"""Distilling the next token's distribution, on given texts and on the student's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from stillroom.claim import Claim
from stillroom.errors import UserError, require
from stillroom.method import Batch, Update, Updates
from stillroom.predictors.language_modelling import LanguageModelling
from stillroom.predictors.language_models.next_token import LanguageMethod
from stillroom.predictors.parts.language.divergences import Divergence, Sorted
from stillroom.predictors.parts.language.heads import headed, scores
from stillroom.predictors.parts.language.prompts import prompt_sizes, prompts_of, replaced, targets_of
from stillroom.predictors.parts.language.sampling import Sampling, sampled
from stillroom.predictors.parts.language.vocabularies import Align
from stillroom.predictors.parts.language.vocabulary import Answer, Loss, Mixing, Tokens, distilled
from stillroom.task import Task
from stillroom.teacher import Dense


@dataclass(eq=False)
class GKD(LanguageMethod):
    """Generalised knowledge distillation (Agarwal et al., ICLR 2024, arXiv:2306.13649, eq. 1 and algorithm 1).

    L = (1 - alpha) CE(s, y) + alpha T^2 D_beta(t, s), the mean over tokens, with
    D_beta = [beta KL(t || m) + (1 - beta) KL(s || m)] / (beta (1 - beta)), m = beta t + (1 - beta) s: KL(t || s) at
    beta = 0, KL(s || t) at beta = 1. A share `on_policy` of the rows is written by the student after the row's
    prompt; of those the teacher alone is judge. With `on_policy` 0 and beta 0 this is word-level distillation.
    """

    name: ClassVar[str] = "gkd"

    beta: float = 0.0
    """Which divergence, in [0, 1]: 0 KL(teacher || student), 1 KL(student || teacher), between them Jensen-Shannon."""
    normalised: bool = True
    """Divide by beta (1 - beta); False is the paper's scale, which is 0 at both ends."""
    alpha: float = 0.9
    """Weight of the teacher's term, in [0, 1]; the labels get 1 - alpha."""
    temperature: float = 1.0
    """Temperature of both softmaxes, > 0."""
    on_policy: float = 0.25
    """Share of rows that the student writes itself, in [0, 1]: lambda of algorithm 1."""
    prompt: int = 16
    """Tokens of a row that it goes on from, where the data have no prompts, >= 1."""
    new_tokens: int = 48
    """Most tokens that it writes, up to the task's length, >= 1."""
    sample_temperature: float = 1.0
    """Temperature that it writes at, > 0."""
    top_k: int = 0
    """Write with the k most likely tokens alone; 0: with all."""
    top_p: float = 1.0
    """Write with the most likely tokens alone that together have this probability, in (0, 1]."""
    align: Align = "none"
    """none: vocabularies must be the same; strings: match their tokens by string and role; uld: compare sorted."""
    special: tuple[str, ...] = ()
    """With `strings`, further pairs of tokens that are one, STUDENT=TEACHER."""

    def check(self) -> None:
        """See the ranges of the fields."""
        super().check()
        for name in ("beta", "alpha", "on_policy"):
            require(f"--method.{name.replace('_', '-')}", getattr(self, name), 0, 1)
        require("--method.temperature", self.temperature, 0, ends="(]")
        for name in ("prompt", "new_tokens"):
            require(f"--method.{name.replace('_', '-')}", getattr(self, name), 1)
        self.sampling.check()
        if not self.normalised and self.beta in (0, 1):
            raise UserError(
                f"--method.beta is {self.beta:g} and the divergence is not normalised, so it is 0 for any student: "
                "drop --method.no-normalised, or pass a beta between 0 and 1"
            )

    @property
    def sampling(self) -> Sampling:
        """How the student writes."""
        return Sampling(self.sample_temperature, self.top_k, self.top_p)

    def bind(self, task: Task, seed: int) -> None:
        """Take the networks, and bring their vocabularies together."""
        super().bind(task, seed)
        assert isinstance(task, LanguageModelling)
        self._link = task.link(self.align, self.special, self.student, self.teacher.module)
        if task.packing == "documents" and (self.on_policy or self._link.translation):
            raise UserError(
                "--task.packing is 'documents', whose rows hold several texts: pass blocks or none, or "
                "--method.on-policy 0 without uld"
            )
        if self.align == "strings":
            self._see_readable(task)
        sort = self._link.translation is not None
        kind = Sorted(self.temperature) if sort else Divergence(self.beta, self.temperature, self.normalised)
        self._mixing = Mixing(self.alpha, kind)
        self._teacher_by_head, self._even = headed(self.teacher.module), task.packing != "none"

    def _see_readable(self, task: LanguageModelling) -> None:
        """UserError for a token of the student's texts that the teacher cannot be told."""
        alignment = self._link.alignment
        if alignment is None:
            return
        x = task.train().fetch(torch.arange(len(task.train())), view=None)[0]
        used = (x if x.ndim == 2 else x[:, 0]).unique()
        lost = [int(i) for i in used if i >= 0 and alignment.to_teacher[i] < 0]
        if lost:
            token = task.tokens.convert_ids_to_tokens(lost[0])
            raise UserError(
                f"the teacher has no token {token!r}, which is in the data ({len(lost)} such): pass --method.special "
                f"'{token}=ITS TOKEN', or --method.align uld"
            )

    def updates(self, batch: Batch) -> Updates:
        """Let the student write some rows, and step on labels and teacher."""
        x, y, labelled = self._texts(batch)
        answer, partner = self._answer(batch, x, y, labelled is None)
        tokens = Tokens(y, labelled, partner)
        loss = distilled(self._scores(x), tokens, answer, self._mixing, self._alignment(x))
        yield Update("student", loss.value, items=loss.items, logs=_logs(loss, self.alpha))

    def _alignment(self, x: Tensor) -> Any:
        alignment = self._link.alignment
        return None if alignment is None else alignment.to(x.device)

    def _texts(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        """x, y and which rows are labelled, some of them written by the student now; None where all are."""
        if self.on_policy == 0:
            return batch.x, batch.y, None
        own = batch.noise.uniform() < self.on_policy
        numbers = batch.noise.uniform(self.new_tokens)
        if not bool(own.any()):
            return batch.x, batch.y, ~own
        sizes = prompt_sizes(batch.x[own], batch.y[own], self.prompt)
        prompts = prompts_of(batch.x[own], sizes)
        stops = () if self._stop is None else (self._stop,)
        rows = sampled(self.student, prompts, numbers[own], self.sampling, stops, self._length)
        return *replaced(batch.x, batch.y, rows, targets_of(rows, sizes), own), ~own

    def _answer(
        self, batch: Batch, x: Tensor, y: Tensor, unchanged: bool
    ) -> tuple[Answer | None, Tensor | None]:
        """What the teacher says of x, and which of its rows belong to which position where that is another one."""
        if self.alpha == 0:
            return None, None
        if self._link.translation is not None:
            ids, partner = self._link.translation(x, y)
            return self._ask(ids), partner
        alignment = self._alignment(x)
        if alignment is not None:
            x = _with_ids(x, alignment.ids)
        elif unchanged and self._keeps(batch):
            return self.teacher(batch), None
        return self._ask(x), None

    def _keeps(self, batch: Batch) -> bool:
        """Whether the teacher remembers what it says of this batch: of rows that are all of one width."""
        return self.teacher.keeps and batch.view is None and self._even

    def _ask(self, x: Tensor) -> Answer:
        if not self._teacher_by_head:
            return Dense(self.teacher.answer(x))
        with torch.no_grad():
            self.teacher.module.eval()
            made = scores(self.teacher.module, x, True)
        return Dense(made) if isinstance(made, Tensor) else made

    def quick(self) -> Self:
        """A few tokens."""
        return replace(self, prompt=min(self.prompt, 4), new_tokens=min(self.new_tokens, 3))

    @classmethod
    def claims(cls) -> tuple[Claim, ...]:
        """The teacher's distribution helps, and so do texts of the student's own."""
        from stillroom.predictors.language_models.claims import on_help, on_shakespeare

        return (on_help(), on_shakespeare())


def _with_ids(x: Tensor, of: Callable[[Tensor], Tensor]) -> Tensor:
    """x [n, L] or packed [n, 2, L] with other token ids."""
    return of(x) if x.ndim == 2 else torch.stack([of(x[:, 0]), x[:, 1]], 1)


def _logs(loss: Loss, alpha: float) -> dict[str, Tensor]:
    """The terms that have a weight."""
    return {
        **({"loss/labels": loss.labels} if alpha < 1 else {}),
        **({"loss/teacher": loss.teacher} if alpha > 0 else {}),
    }

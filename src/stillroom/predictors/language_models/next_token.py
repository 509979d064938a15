"""What the methods of language models share, and the one without a teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from stillroom.engine import Engine
from stillroom.errors import UserError
from stillroom.method import Batch, Method, Update, Updates
from stillroom.predictors.language_modelling import LanguageModelling
from stillroom.predictors.parts.language.heads import headed, scores
from stillroom.predictors.parts.language.vocabulary import Mixing, Scores, Tokens, distilled
from stillroom.task import Task


@dataclass(eq=False)
class LanguageMethod(Method):
    """What the methods of language models share: the student's head, and their built-in problem."""

    per_token: ClassVar[bool] = True

    def suits(self, task: Task) -> None:
        """See the base; a language model is needed."""
        if not isinstance(task, LanguageModelling):
            raise UserError(
                f"method '{self.name}' trains language models, not what {type(task).__name__} asks for: pass "
                "task=LanguageModelling(...), or another method"
            )

    def bind(self, task: Task, seed: int) -> None:
        """Take the networks, and see whether the student's logits can be left to the loss."""
        super().bind(task, seed)
        assert isinstance(task, LanguageModelling)
        self._by_head = headed(self.student)
        self._length, self._stop = task.length, task.tokens.eos_token_id

    def _scores(self, x: Tensor) -> Scores:
        return scores(self.student, x, self._by_head)

    @classmethod
    def default_task(cls) -> LanguageModelling:
        """Python's help topics, a character a token: the teacher sees 5,087 rows of 64, the student 128 of them."""
        return LanguageModelling()

    @classmethod
    def default_engine(cls) -> Engine:
        """That of the problem."""
        return cls.default_task().default_engine()


@dataclass(eq=False)
class NextToken(LanguageMethod):
    """Cross-entropy of the next token, no teacher (Agarwal et al., 2024, arXiv:2306.13649, section 2: SFT)."""

    name: ClassVar[str] = "next-token"
    uses_teacher: ClassVar[bool] = False

    def updates(self, batch: Batch) -> Updates:
        """One step on the text."""
        loss = distilled(self._scores(batch.x), Tokens(batch.y), None, Mixing(alpha=0.0))
        yield Update("student", loss.value, items=loss.items)

"""What a teacher writes after the prompts of the training rows, once a prompt, kept on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from stillroom.data import Source
from stillroom.data.texts import PAD
from stillroom.models.files import weights_digest
from stillroom.predictors.parts.language.prompts import prompt_sizes, prompts_of
from stillroom.predictors.parts.language.sampling import Sampling, beams, sampled
from stillroom.runtime import Runtime
from stillroom.seeds import seed_of
from stillroom.store import Store, kept_store

if TYPE_CHECKING:
    from stillroom.predictors.language_modelling import LanguageModelling

TEXTS = 62
"""Keeps the numbers that texts are drawn with apart from all others."""
BLOCK = 64
"""Prompts at a time."""


@dataclass(frozen=True)
class Writing:
    """How the texts are written."""

    prompt: int
    """Tokens of a prompt where the data have none."""
    new: int
    """Most tokens written after it."""
    beams: int
    """Width of the beam; 1 draws tokens instead."""
    sampling: Sampling
    seed: int


def written(task: LanguageModelling, source: Source, how: Writing) -> Store:
    """A row for each of `source`: `text` int32 [L], prompt and what the teacher wrote, and `size` of the prompt.

    In the student's tokens; a teacher with others reads and writes the text. Kept under the teacher's weights, the
    prompts and all of `how`.
    """
    teacher = task.make_teacher().module
    teacher.to(Runtime().device)
    x, y = source.fetch(torch.arange(len(source)), view=None)
    assert y is not None
    sizes = prompt_sizes(x, y, how.prompt).clamp_max(task.length)
    prompts = prompts_of(x, sizes)
    key = {
        "teacher": weights_digest(teacher),
        "prompts": hashlib.sha256(prompts.numpy().tobytes()).hexdigest(),
        "how": asdict(how),
        "length": task.length,
    }
    writes = _Writer(task, teacher, how)

    def make(rows: range) -> dict[str, Tensor]:
        part = slice(rows.start, rows.stop)
        text = torch.full((len(rows), task.length), PAD, dtype=torch.int32)
        made = writes(prompts[part], rows)[:, : task.length]
        text[:, : made.shape[-1]] = made.int()
        return {"text": text, "size": sizes[part].int()}

    return kept_store("texts", key, len(source), make, block=BLOCK)


class _Writer:
    """A teacher that goes on with prompts in the student's tokens."""

    def __init__(self, task: LanguageModelling, teacher: nn.Module, how: Writing) -> None:
        self.task, self.teacher, self.how = task, teacher, how
        self.own, self.theirs = task.tokens, task.teacher_tokens

    def __call__(self, prompts: Tensor, rows: range) -> Tensor:
        """Prompts and texts int64 [n, L], padded on the right."""
        if self.own is self.theirs or self.own.get_vocab() == self.theirs.get_vocab():
            return self._write(prompts, rows, self.own.eos_token_id)
        asked = self._padded(prompts, lambda row: self.theirs(_text(self.own, row)).input_ids)
        there = (asked != PAD).sum(-1)
        said = self._write(asked, rows, self.theirs.eos_token_id)
        made = []
        for prompt, row, size in zip(prompts, said, there.tolist(), strict=True):
            more = row[size:]
            ids = self.own(_text(self.theirs, more), add_special_tokens=False).input_ids
            if self.theirs.eos_token_id in more and self.own.eos_token_id is not None:
                ids = [*ids, self.own.eos_token_id]
            made.append(torch.cat([prompt[prompt != PAD], torch.tensor(ids, dtype=torch.int64)]))
        return torch.nn.utils.rnn.pad_sequence(made, True, PAD)

    def _padded(self, prompts: Tensor, of: Callable[[Tensor], list[int]]) -> Tensor:
        rows = [torch.tensor(of(prompt) or [self.theirs.eos_token_id or 0]) for prompt in prompts]
        return torch.nn.utils.rnn.pad_sequence(rows, True, PAD)

    def _write(self, prompts: Tensor, rows: range, stop: int | None) -> Tensor:
        how, device = self.how, Runtime().device
        prompts = prompts[:, : int((prompts != PAD).sum(-1).max())].to(device)
        longest = max(self.task.length, prompts.shape[-1])
        if how.beams > 1:
            return beams(self.teacher, prompts, how.beams, how.new, stop, longest).cpu()
        numbers = torch.stack([self._numbers(row) for row in rows]).to(device)
        stops = () if stop is None else (stop,)
        return sampled(self.teacher, prompts, numbers, how.sampling, stops, longest).cpu()

    def _numbers(self, row: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed_of(TEXTS, self.how.seed, row))
        return torch.rand(self.how.new, generator=generator)


def _text(tokenizer: object, row: Tensor) -> str:
    decode = tokenizer.decode  # type: ignore[attr-defined]
    return decode(row[row != PAD].tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False)

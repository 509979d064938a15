"""Vocabularies: whether two are the same, told by their tokens' strings, and how two that are not are aligned.

Two models of one vocabulary size need not have one vocabulary: a student's id then means another word to the
teacher. So strings are compared, token by token, and special tokens (the beginning of a text, its end) by their
role where their strings differ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from stillroom.errors import UserError

ROLES = ("eos_token", "bos_token", "unk_token", "sep_token", "cls_token", "mask_token", "pad_token")
"""What a special token is for, as transformers' tokenizers call it; where one serves twice, the first counts."""

Strings = Sequence[str | None]
"""The tokens of a vocabulary by id; None for an id that no string has (the padding of a last layer)."""


def strings(tokenizer: Any, size: int) -> list[str | None]:
    """The token strings of a transformers tokenizer, for the ids 0 .. size - 1 of a model's logits."""
    found: list[str | None] = [None] * size
    for token, number in tokenizer.get_vocab().items():
        if number < size:
            found[number] = token
    return found


def roles(tokenizer: Any) -> dict[str, str]:
    """The special tokens that a transformers tokenizer has, by role."""
    found = {role: getattr(tokenizer, role, None) for role in ROLES}
    return {role: str(token) for role, token in found.items() if token is not None}


def first_difference(student: Strings, teacher: Strings) -> tuple[int, str | None, str | None] | None:
    """The first id whose strings differ, and both strings; None where all are the same."""
    for number, (a, b) in enumerate(zip_longest(student, teacher)):
        if a != b:
            return number, a, b
    return None


@dataclass(frozen=True, eq=False)
class Alignment:
    """The tokens that two vocabularies share, and on each side all others together as one bucket.

    Over shared tokens and bucket a divergence is exact. A bucket needs tokens on both sides: where one side only
    has others, its distribution is taken on the condition that the token is a shared one.
    """

    own: Tensor
    """The student's ids [K], int64, of the shared tokens."""
    theirs: Tensor
    """The teacher's ids [K] of the same tokens."""
    to_teacher: Tensor
    """The teacher's id [V] of each of the student's, -1 where it has none."""
    sizes: tuple[int, int]
    """Widths V and W of the student's and the teacher's logits."""

    @property
    def bucketed(self) -> bool:
        """Whether both sides have tokens that the other lacks."""
        return len(self.own) < min(self.sizes)

    def to(self, device: torch.device) -> Alignment:
        """A copy whose tables are on `device`."""
        return Alignment(self.own.to(device), self.theirs.to(device), self.to_teacher.to(device), self.sizes)

    def ids(self, x: Tensor) -> Tensor:
        """The teacher's ids for the student's, of any shape; negative ones (padding) stay as they are."""
        return torch.where(x < 0, x, self.to_teacher[x.clamp_min(0)])

    def teacher(self, logits: Tensor) -> Tensor:
        """The teacher's logits [n, W] over shared tokens and, where there is one, the bucket [n, K (+ 1)]."""
        shared = logits.index_select(-1, self.theirs)
        if not self.bucketed:
            return shared
        rest = logits.index_fill(-1, self.theirs, float("-inf")).logsumexp(-1, keepdim=True)
        return torch.cat([shared, rest], -1)

    def student(self, z: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """The student's logits [n, V] likewise, and what takes a gradient of theirs back to one [n, V]."""
        shared = z.index_select(-1, self.own)
        if not self.bucketed:
            return shared, lambda slope: torch.zeros_like(z).index_copy_(-1, self.own, slope)
        others = z.index_fill(-1, self.own, float("-inf"))
        rest = others.logsumexp(-1, keepdim=True)

        def back(slope: Tensor) -> Tensor:
            whole = (others - rest).exp_().mul_(slope[:, -1:])
            return whole.index_copy_(-1, self.own, slope[:, :-1])

        return torch.cat([shared, rest], -1), back


def same(student: Strings, teacher: Strings) -> Alignment | None:
    """What two vocabularies of equal strings need: nothing, or an alignment where a last layer is padded further.

    Raises UserError, naming the first token that differs, where the strings are not the same.
    """
    differs = first_difference(_trimmed(student), _trimmed(teacher))
    if differs is not None:
        number, own, their = differs
        raise UserError(
            f"the vocabularies differ: token {number} is {_said(own)} to the student and {_said(their)} to the "
            f"teacher ({_count(student)} and {_count(teacher)} tokens): pass --method.align strings (same strings, "
            "another order) or uld, or a teacher with the student's tokenizer"
        )
    if len(student) == len(teacher):
        return None
    return aligned(student, teacher, {})


def aligned(student: Strings, teacher: Strings, special: Mapping[str, str]) -> Alignment:
    """The tokens of equal string, and the student's special tokens of the teacher's by `special`.

    Raises UserError where the two share no more than a tenth of the smaller vocabulary.
    """
    where = {token: number for number, token in enumerate(teacher) if token is not None}
    named = {
        token: where[special[token]] for token in student if token in special and special[token] in where
    }
    if len(set(named.values())) < len(named):
        raise UserError(
            f"two of the student's special tokens {sorted(named)} are one to the teacher: pass --method.special "
            "with another map"
        )
    taken = set(named.values())
    to_teacher = torch.full((len(student),), -1, dtype=torch.int64)
    for number, token in enumerate(student):
        if token in named:
            to_teacher[number] = named[token]
        elif token in where and where[token] not in taken:
            to_teacher[number] = where[token]
    own = (to_teacher >= 0).nonzero().squeeze(-1)
    theirs = to_teacher[own]
    if len(own) * 10 < min(_count(student), _count(teacher)):
        raise UserError(
            f"the vocabularies share {len(own)} of {_count(student)} and {_count(teacher)} tokens: pass "
            "--method.align uld, or a teacher with the student's tokenizer"
        )
    return Alignment(own, theirs, to_teacher, (len(student), len(teacher)))


def special_map(
    student: Mapping[str, str], teacher: Mapping[str, str], said: Sequence[str]
) -> dict[str, str]:
    """The teacher's token for each special one of the student's: by role, then as `said` ("STUDENT=TEACHER")."""
    found: dict[str, str] = {}
    for role in ROLES:
        own, their = student.get(role), teacher.get(role)
        if own and their and own not in found and their not in found.values():
            found[own] = their
    for pair in said:
        own, equals, their = pair.partition("=")
        if not (own and equals and their):
            raise UserError(f"--method.special has {pair!r}: write STUDENT=TEACHER, like </s>=<|endoftext|>")
        found[own] = their
    return found


def _trimmed(tokens: Strings) -> Strings:
    """Without the ids at the end that no string has."""
    end = len(tokens)
    while end and tokens[end - 1] is None:
        end -= 1
    return tokens[:end]


def _count(tokens: Strings) -> int:
    return sum(token is not None for token in tokens)


def _said(token: str | None) -> str:
    return "no token" if token is None else repr(token)

"""A student's text read by a teacher that cuts text into other tokens.

The text is what both share. The teacher reads it in its own tokens, and the two are compared where both have just
finished a token at the same character: there they are asked the same question, what comes after this text.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stillroom.data.texts import IGNORED, PAD
from stillroom.errors import UserError


class Translation:
    """From a student's token ids to a teacher's."""

    def __init__(self, student: Any, teacher: Any) -> None:
        if not getattr(teacher, "is_fast", False):
            raise UserError(
                "the teacher's tokenizer does not tell where its tokens stand in a text: pass a teacher with a "
                "tokenizer.json"
            )
        self.student, self.teacher = student, teacher
        first = teacher("a").input_ids[:1]
        self.opening = first if first == [teacher.bos_token_id] else []

    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's ids [n, M], padded on the right, and of each counted position [n, L] the row of its answer.

        Rows number the positions of all texts, flattened; -1 where the teacher has no token that ends there.
        """
        read = [self._read(row[row >= 0].tolist()) for row in x.cpu()]
        width = max(1, *(len(ids) for ids, _ in read))
        ids = torch.full((len(x), width), PAD, dtype=torch.int64)
        partner = torch.full(x.shape, -1, dtype=torch.int64)
        for row, (theirs, at) in enumerate(read):
            ids[row, : len(theirs)] = torch.tensor(theirs, dtype=torch.int64)
            for position, other in enumerate(at):
                if other >= 0:
                    partner[row, position] = row * width + other
        partner = partner.to(x.device).masked_fill(y == IGNORED, -1)
        return ids.to(x.device), partner

    def _read(self, own: list[int]) -> tuple[list[int], list[int]]:
        """The teacher's ids of one text, and for each of the student's tokens the place of the teacher's."""
        text = self.text(own)
        found = self.teacher(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        theirs = [*self.opening, *found["input_ids"]]
        places = {end: at + len(self.opening) for at, (_, end) in enumerate(found["offset_mapping"])}
        special = set(self.student.all_special_ids)
        at = []
        for count, token in enumerate(own, 1):
            before = self.text(own[:count])
            whole = token not in special and text.startswith(before)
            at.append(places.get(len(before), -1) if whole else -1)
        return theirs or [self.teacher.eos_token_id or 0], at

    def text(self, own: list[int]) -> str:
        """The student's tokens as text, without its special ones."""
        return self.student.decode(own, skip_special_tokens=True, clean_up_tokenization_spaces=False)

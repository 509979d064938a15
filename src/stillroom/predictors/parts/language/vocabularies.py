"""How a student's and a teacher's vocabularies are brought together before training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from stillroom.models.probing import quietly
from stillroom.models.texts import Causal
from stillroom.predictors.parts.language.alignment import (
    Alignment,
    aligned,
    roles,
    same,
    special_map,
    strings,
)
from stillroom.predictors.parts.language.translation import Translation

Align = Literal["none", "strings", "uld"]


@dataclass(frozen=True, eq=False)
class Link:
    """What stands between the student's token ids and the teacher's: nothing, a table of tokens, or the text."""

    alignment: Alignment | None = None
    translation: Translation | None = None


def link(align: Align, special: tuple[str, ...], student: tuple[Any, int], teacher: tuple[Any, int]) -> Link:
    """The link between two (tokenizer, width of the logits).

    `none`: the strings of all tokens must be the same. `strings`: tokens of the same string, or of the same role or
    named in `special`, are one. `uld`: no token is. Raises UserError where the vocabularies do not allow it.
    """
    if align == "uld":
        return Link(translation=Translation(student[0], teacher[0]))
    if student[0] is teacher[0] and student[1] == teacher[1]:
        return Link()
    own, their = strings(*student), strings(*teacher)
    if align == "none":
        return Link(same(own, their))
    return Link(aligned(own, their, special_map(roles(student[0]), roles(teacher[0]), special)))


def width_of(model: nn.Module) -> int:
    """Logits a position."""
    if isinstance(model, Causal):
        return model.vocabulary
    place = next(model.parameters()).device
    with quietly(model):
        return model(torch.zeros(1, 2, dtype=torch.int64, device=place)).shape[-1]

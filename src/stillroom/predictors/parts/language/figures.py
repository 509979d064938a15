"""What language models write, as a picture for a run's page."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from stillroom.data.texts import PAD
from stillroom.predictors.parts.language.prompts import prompt_sizes, prompts_of
from stillroom.predictors.parts.language.sampling import Sampling, sampled
from stillroom.reports.class_figures import WIDTH
from stillroom.reports.drawing import INK, MUTED, draw
from stillroom.runtime import Runtime

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from stillroom.predictors.language_modelling import LanguageModelling

SHOWN, PROMPT, NEW = 2, 24, 120
"""Beginnings, tokens of each where the data have no prompts, tokens written after it."""
LETTERS, LINE = 52, 16
"""Letters a line, and its height."""


def writings(task: LanguageModelling, products: Mapping[str, Any], runtime: Runtime) -> dict[str, str]:
    """A figure: beginnings of the test split, and what each arm writes after them, from the same random numbers."""
    x, y = task.rows("test")
    x = (x if x.ndim == 2 else x[:, 0])[:SHOWN]
    prompts = prompts_of(x, prompt_sizes(x, y[:SHOWN], PROMPT).clamp_max(task.length - 1))
    numbers = torch.rand(len(prompts), NEW, generator=torch.Generator().manual_seed(0))
    lines: list[tuple[str, str]] = []
    for row in range(len(prompts)):
        lines.append(("beginning", _text(task.tokens, prompts[row])))
        for name, product in products.items():
            own = task.teacher_tokens is task.tokens or name != "teacher"
            if isinstance(product, nn.Module) and own:
                lines.append(
                    (name, _after(task, product, prompts[row : row + 1], numbers[row : row + 1], runtime))
                )
    return {
        "title": "What it writes",
        "caption": "Beginnings from the test split, and what each arm makes of them, drawn at temperature 1 with the "
        "same random numbers.",
        "svg": _drawn(lines),
    }


def _after(
    task: LanguageModelling, product: nn.Module, prompt: torch.Tensor, numbers: torch.Tensor, runtime: Runtime
) -> str:
    device = runtime.device
    stop = task.tokens.eos_token_id
    stops = () if stop is None else (stop,)
    row = sampled(product, prompt.to(device), numbers.to(device), Sampling(), stops, task.length)[0].cpu()
    return _text(task.tokens, row[int((prompt != PAD).sum()) :])


def _text(tokenizer: Any, row: torch.Tensor) -> str:
    text = tokenizer.decode(
        row[row != PAD].tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return "".join(c if c.isprintable() else " ↵ " if c == "\n" else "·" for c in text)


def _drawn(lines: list[tuple[str, str]]) -> str:
    wrapped = [(name, textwrap.wrap(text, LETTERS) or ["(nothing)"]) for name, text in lines]
    count = sum(len(rows) for _, rows in wrapped) + len(wrapped)

    def paint(axes: Axes) -> None:
        axes.set(xlim=(0, 100), ylim=(count, -1))
        axes.axis("off")
        at = 0.0
        for name, rows in wrapped:
            axes.text(0, at, name, color=MUTED, va="center", in_layout=False)
            for text in rows:
                colour = MUTED if name == "beginning" else INK
                axes.text(20, at, text, color=colour, va="center", in_layout=False)
                at += 1
            at += 0.6

    return draw(WIDTH, LINE * count, "what each arm writes", paint)

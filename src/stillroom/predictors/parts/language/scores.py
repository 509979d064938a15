"""How well a language model predicts: nats a token, bits a byte, and agreement with its teacher."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from stillroom.data.texts import IGNORED
from stillroom.errors import UserError, reason
from stillroom.models.probing import quietly
from stillroom.predictors.parts.language.divergences import Divergence
from stillroom.predictors.parts.language.heads import headed, scores
from stillroom.predictors.parts.language.prompts import prompt_sizes, prompts_of, targets_of
from stillroom.predictors.parts.language.sampling import Sampling, sampled
from stillroom.predictors.parts.language.vocabularies import link, width_of
from stillroom.predictors.parts.language.vocabulary import blocks
from stillroom.runtime import Runtime

if TYPE_CHECKING:
    from stillroom.predictors.language_modelling import LanguageModelling

ROWS = 64
"""Rows that are read at a time."""
WRITTEN = 48
"""Texts that a model writes to be judged by its teacher."""


class Reader(nn.Module):
    """What `model` makes of rows x and targets y [n, L]: nats, first choices, without all logits at once."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.by_head = model, headed(model)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """[n, 2, L]: -log p of each target, 0 where none counts, and the likeliest token."""
        flat = y.flatten()
        nats = torch.zeros(flat.shape, device=y.device)
        best = torch.zeros_like(flat)
        for part, logits in blocks(scores(self.model, x, self.by_head)):
            best[part] = logits.argmax(-1)
            wanted = flat[part].clamp_min(0).unsqueeze(-1)
            nats[part] = (logits.logsumexp(-1, keepdim=True) - logits.gather(-1, wanted)).squeeze(-1)
        nats.masked_fill_(flat == IGNORED, 0)
        # ids are exact in float32 up to 2^24
        return torch.stack([nats.view_as(y), best.view_as(y).float()], 1)


def read(model: nn.Module, x: Tensor, y: Tensor, runtime: Runtime) -> tuple[Tensor, Tensor]:
    """Nats [n, L] and first choices [n, L] int64, off the device."""
    made = runtime.apply(Reader(model), x, y, size=ROWS)
    return made[:, 0].double(), made[:, 1].long()


def score(task: LanguageModelling, product: nn.Module, split: str, runtime: Runtime) -> dict[str, Any]:
    """See `LanguageModelling.score`; on 'test' with the nats a token of each row.

    A teacher with a tokenizer of its own is scored on its own tokens, where bits a byte alone compare.
    """
    itself = task.taught and product is task.make_teacher().module
    if itself and task.teacher_tokens is not task.tokens:
        task = task.in_teachers_tokens()
    x, y = task.rows(split)
    counts = y != IGNORED
    tokens = int(counts.sum())
    if not tokens:
        raise UserError(
            f"the {split} split of data '{task.texts.name}' has no token to predict: pass longer texts"
        )
    nats, best = read(product, x, y, runtime)
    mean = float(nats.sum() / tokens)
    found: dict[str, Any] = {
        "nats_per_token": mean,
        "perplexity": math.exp(min(mean, 700.0)),
        "bits_per_byte": float(nats.sum()) / math.log(2) / max(1, text_bytes(task.tokens, y)),
        "accuracy": float((best == y)[counts].double().mean()),
    }
    choices = None if itself else first_choices(task, split, runtime)
    if choices is not None:
        found["agreement"] = float((best == choices)[counts].double().mean())
    if split == "test":
        if choices is not None and task.teacher_tokens is task.tokens and x.ndim == 2:
            found["kl_on_own_text"] = on_own_text(task, product, runtime)
        some = counts.sum(-1) > 0
        found["per_sample"] = (nats.sum(-1)[some] / counts.sum(-1)[some]).tolist()
    return found


def on_own_text(task: LanguageModelling, product: nn.Module, runtime: Runtime) -> float:
    """KL(product || teacher) in nats a token, over texts that the product writes after beginnings of the test split.

    What on-policy distillation lowers: how far from the teacher a model comes that reads what it wrote itself.
    The beginnings and the numbers that tokens are drawn with are the same for every arm.
    """
    x, y = (part[:WRITTEN] for part in task.rows("test"))
    sizes = prompt_sizes(x, y, task.length // 4).clamp_max(task.length - 1)
    numbers = torch.rand(len(x), task.length, generator=torch.Generator().manual_seed(0)).to(runtime.device)
    stop = task.tokens.eos_token_id
    device = runtime.device
    rows = sampled(
        product,
        prompts_of(x, sizes).to(device),
        numbers,
        Sampling(),
        () if stop is None else (stop,),
        task.length,
    )
    counts = targets_of(rows, sizes.to(device)).flatten() != IGNORED
    both = []
    for model in (product, task.make_teacher().to(device).module):
        with quietly(model):
            both.append(scores(model, rows, headed(model)))
    total = 0.0
    for (part, own), (_, said) in zip(blocks(both[0]), blocks(both[1]), strict=True):
        each = Divergence(1.0)(own, said)[0]
        total += float(each[counts[part]].double().sum())
    return total / max(1, int(counts.sum()))


def first_choices(task: LanguageModelling, split: str, runtime: Runtime) -> Tensor | None:
    """The teacher's likeliest token at each position [n, L], in the student's ids, -1 where the student has none.

    None where there is no teacher, or one whose tokens are not the student's. Asked once a split.
    """
    held = task.__dict__.setdefault("_choices", {})
    if not task.taught:
        return None
    if split not in held:
        held[split] = _choices(task, split, runtime)
    return held[split]


def _choices(task: LanguageModelling, split: str, runtime: Runtime) -> Tensor | None:
    teacher = task.make_teacher()
    teacher.to(runtime.device)
    tokens, width = len(task.tokens), width_of(teacher.module)
    alignment = None
    if task.teacher_tokens is not task.tokens:
        try:
            alignment = link("strings", (), (task.tokens, tokens), (task.teacher_tokens, width)).alignment
        except UserError:
            return None
        if alignment is None or len(alignment.own) < 0.95 * max(tokens, len(task.teacher_tokens)):
            return None
    x, y = task.rows(split)
    if alignment is None:
        return read(teacher.module, x, y, runtime)[1]
    ids = x.clone()
    ids[(..., slice(None)) if x.ndim == 2 else (slice(None), 0)] = alignment.ids(
        x if x.ndim == 2 else x[:, 0]
    )
    best = read(teacher.module, ids, torch.zeros_like(y), runtime)[1]
    back = torch.full((alignment.sizes[1],), -1, dtype=torch.int64)
    back[alignment.theirs] = alignment.own
    return back[best]


def text_bytes(tokenizer: Any, y: Tensor) -> int:
    """Bytes of the text that the counted targets spell, in UTF-8; special tokens spell none.

    A character that a row's end cuts in two counts as the sign that stands in for it.
    """
    rows = [row[row != IGNORED].tolist() for row in y]
    texts = [tokenizer.decode(r, skip_special_tokens=True, clean_up_tokenization_spaces=False) for r in rows]
    return sum(len(text.encode()) for text in texts)


def check(model: nn.Module, role: str, tokens: int) -> None:
    """Have `model` read two short rows; UserError unless it gives logits [2, 3, V] with V at least `tokens`."""
    x = torch.full((2, 3), getattr(model, "padding", 0), device=next(model.parameters()).device)
    name = type(model).__name__
    try:
        with quietly(model):
            logits = model(x)
    except Exception as error:
        raise UserError(
            f"{role} {name} fails on token ids of shape (2, 3) ({reason(error)}): pass --task.{role} with a "
            "language model"
        ) from error
    shape = tuple(getattr(logits, "shape", ()))
    if len(shape) != 3 or shape[:2] != (2, 3):
        raise UserError(
            f"{role} {name} gives {shape} for token ids (2, 3), a language model gives (2, 3, tokens): pass "
            f"--task.{role} with a language model"
        )
    if shape[-1] < tokens:
        raise UserError(
            f"{role} {name} has {shape[-1]} tokens, the data's tokenizer {tokens}: pass --task.tokenizer with the "
            f"{role}'s own"
        )

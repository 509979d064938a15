"""What these methods claim, on the built-in text and on Shakespeare."""

from __future__ import annotations

from stillroom.claim import Claim, Rule
from stillroom.engine import Engine
from stillroom.method import Method
from stillroom.optim import Recipe
from stillroom.predictors.language_modelling import LanguageModelling
from stillroom.predictors.language_models.gkd import GKD
from stillroom.predictors.language_models.next_token import NextToken
from stillroom.predictors.language_models.seq_kd import SequenceKD

SAYS = (
    "A small language model predicts better when it learns its teacher's distribution of the next token, on texts of "
    "its own too, than from the text alone, and than from texts that the teacher wrote."
)


def arms() -> dict[str, Method]:
    """The method, its ablations, and what it must beat."""
    return {
        "next-token": NextToken(),
        "seq-kd": SequenceKD(share=0.5),
        "gkd on data": GKD(on_policy=0.0),
        "gkd": GKD(),
        "gkd, all its own": GKD(on_policy=1.0),
        "gkd, reverse": GKD(beta=1.0),
        "gkd, JSD": GKD(beta=0.5),
    }


RULES = (
    Rule("gkd", "next-token"),
    Rule("gkd", "gkd on data"),
    Rule("gkd", "gkd on data", headline=False, metric="kl_on_own_text"),
    Rule("gkd, all its own", "gkd on data", headline=False, metric="kl_on_own_text"),
    Rule("gkd", "gkd, all its own", headline=False),
    Rule("gkd", "seq-kd", headline=False),
    Rule("gkd on data", "next-token", headline=False),
    Rule("gkd", "gkd, reverse", headline=False),
    Rule("gkd", "gkd, JSD", headline=False),
)


def on_help() -> Claim:
    """Few rows of the built-in text."""
    return Claim(
        name="gkd-help",
        says=SAYS,
        task=GKD.default_task(),
        engine=GKD.default_engine(),
        arms=arms(),
        rules=RULES,
        seeds=5,
        notes="Python's help topics by character; the student sees 128 rows of 64, its teacher all of them.",
    )


def on_shakespeare() -> Claim:
    """All of tiny_shakespeare for the teacher, a part of it for the student."""
    return Claim(
        name="gkd-shakespeare",
        says=SAYS,
        task=shakespeare(),
        engine=Engine(
            epochs=20,
            batch_size=16,
            recipe=Recipe("adamw", lr=3e-3, weight_decay=0.01, warmup=0.05, clip=1.0),
        ),
        arms=arms(),
        rules=RULES,
        seeds=5,
        data="tiny_shakespeare",
        notes="A character a token; the teacher learns from a million characters, the student from 16,000 of them.",
    )


def shakespeare() -> LanguageModelling:
    """The character models of the claim."""
    return LanguageModelling(
        data="tiny_shakespeare",
        student_samples=256,
        teacher_steps=1500,
        vary_teacher=False,
    )

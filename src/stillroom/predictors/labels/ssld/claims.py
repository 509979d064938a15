"""What SSLD claims, as comparisons: a label-free student against labels, and each of its parts against its absence."""

from __future__ import annotations

from stillroom.claim import Claim, Rule
from stillroom.engine import Engine
from stillroom.method import Method
from stillroom.optim import Recipe
from stillroom.predictors.baselines import KD, Plain
from stillroom.predictors.labels.ssld.method import SSLD
from stillroom.predictors.labels.ssld.task import PooledClassification

LABELS, HALF, OWN, RANDOM, MINED, WHOLE = (
    "labels",
    "kd",
    "labelled alone",
    "random pool",
    "mined pool",
    "ssld",
)
KL, JS, CE = "plain KL", "mixture JS", "soft labels"


def claims() -> tuple[Claim, ...]:
    """On digits, and on MNIST as the specification has it."""
    return (on_digits(), on_mnist())


def arms(top_k: int) -> dict[str, Method]:
    """All arms, in as many steps each: A to H of the specification, and soft cross-entropy."""
    mined = SSLD(top_k=top_k, stage2_share=0.0)
    return {
        LABELS: Plain(),
        HALF: KD(alpha=0.5, temperature=1.0),
        OWN: mined.variant(selection="none"),
        RANDOM: mined.variant(selection="random"),
        MINED: mined,
        WHOLE: SSLD(top_k=top_k),
        KL: mined.variant(loss="kl"),
        JS: mined.variant(loss="js-mixture"),
        CE: mined.variant(loss="ce"),
    }


JUNK = "junk_kept_out"
RULES = (
    Rule(MINED, LABELS),
    Rule(MINED, HALF),
    Rule(MINED, OWN, headline=False),
    Rule(OWN, HALF, headline=False),
    Rule(MINED, RANDOM, headline=False),
    Rule(MINED, RANDOM, headline=False, metric=JUNK, higher_is_better=True),
    Rule(WHOLE, MINED, headline=False),
    Rule(MINED, KL, headline=False),
    Rule(MINED, JS, headline=False),
    Rule(MINED, CE, headline=False),
)
"""Label-free training on mined images beats labels and half labels, or the claim is refuted; the parts beside it."""


def on_digits() -> Claim:
    """The built-in digits."""
    return Claim(
        name="ssld-digits",
        says="A student that reads no label, and only agrees with its teacher on labelled and mined images, beats one "
        "that is trained on the labels, and one on labels and teacher (ImageNet, MobileNetV3-large: 75.3 to 78.5, and "
        "79.0 after fine-tuning).",
        task=SSLD.default_task(),
        engine=SSLD.default_engine(),
        arms=arms(40),
        rules=RULES,
        seeds=10,
        notes="8x8 digits, 100 of them labelled; a residual teacher that was trained, with augmentation, on these 100; "
        "the pool is the other 700, 300 images of shuffled patches and 20 copies of validation and test images; 40 "
        "images a class are mined.",
    )


def on_mnist() -> Claim:
    """MNIST: 2,000 labelled digits, a pool of 20,000 images."""
    return Claim(
        name="ssld-mnist",
        says="A student that reads no label beats one that is trained on labels, with or without the teacher, in as "
        "many steps.",
        task=PooledClassification(
            data="mnist",
            train_samples=16_000,
            student_samples=2_000,
            pool_junk=6_000,
            pool_planted=50,
            teacher="resnet:8-16-32",
            teacher_epochs=40,
            student="mlp:64",
        ),
        engine=Engine(steps=6000, batch_size=128, evaluate_every=0, recipe=Recipe(lr=0.05, warmup=0.03)),
        arms=arms(800),
        rules=RULES,
        seeds=5,
        data="mnist",
        notes="A residual teacher of 20,000 weights, trained with augmentation on the 2,000 labelled digits, for each "
        "seed; the pool is 14,000 digits, 6,000 images of shuffled patches and 50 copies of validation and test "
        "images; 800 images a class are mined.",
    )

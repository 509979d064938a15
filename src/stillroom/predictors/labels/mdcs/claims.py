"""What Zhao et al. (ICCV 2023, arXiv:2308.09922) claim, as comparisons."""

from __future__ import annotations

from typing import Any

from stillroom.claim import Claim, Rule
from stillroom.engine import Engine
from stillroom.method import Method
from stillroom.optim import Recipe
from stillroom.predictors.labels.mdcs.method import MDCS, LogitAdjustment, RepeatedMDCS
from stillroom.predictors.labels.mdcs.task import LongTailed

SAME = (1.0, 1.0, 1.0)
"""Three experts that are not told apart: the balanced softmax for each."""
SAYS = (
    "Experts pushed to different parts of the class distribution, each distilling its weak view into its strong one, "
    "are better than as many alike (CIFAR100-LT, imbalance 100: 56.1 %)"
)


def all_claims() -> tuple[Claim, ...]:
    """On digits, on MNIST, on photographs, and the variance over trainings."""
    return (mechanism_on_digits(), mechanism_on_mnist(), better_on_cifar(), variance_on_digits())


def arms(**options: Any) -> dict[str, Method]:
    """The specification's: one network, experts alike, diversity, both, and what is left without each part."""
    one = {key: value for key, value in options.items() if key in ("scale", "augmentation")}
    return {
        "cross-entropy": LogitAdjustment(exponents=(0.0,), **one),
        "logit adjustment": LogitAdjustment(**one),
        "ensemble": MDCS(exponents=SAME, eta=0.0, **options),
        "diversity": MDCS(eta=0.0, **options),
        "mdcs": MDCS(**options),
        "no sampling": MDCS(sampling=False, **options),
        "consistency": MDCS(exponents=SAME, **options),
    }


SPECIALISED = tuple(
    Rule("mdcs", "ensemble", metric=f"{group}_specialisation", higher_is_better=True)
    for group in ("many", "few")
)
"""The first expert is ahead of the last on common classes, and the last of the first on rare ones."""

MECHANISM = (
    Rule("mdcs", "cross-entropy", metric="few_accuracy", higher_is_better=True),
    *SPECIALISED,
    *(
        Rule("mdcs", arm, headline=False)
        for arm in (
            "cross-entropy",
            "logit adjustment",
            "ensemble",
            "diversity",
            "no sampling",
            "consistency",
        )
    ),
    *(
        Rule("mdcs", arm, headline=False, metric="few_accuracy", higher_is_better=True)
        for arm in ("diversity",)
    ),
)


def mechanism_on_digits() -> Claim:
    """Rare classes are learnt and experts specialise, on the built-in data; accuracy is shown beside it."""
    return Claim(
        name="mdcs-digits",
        says="MDCS is better than cross-entropy on rare classes, and its experts specialise.",
        task=LongTailed(class_order="shuffled"),
        engine=MDCS.default_engine(),
        arms=arms(),
        rules=MECHANISM,
        seeds=10,
        notes="8x8 digits, 75 to 3 training images a class, another order of the classes and another choice of images "
        "for each seed; three experts of 12 and 24 channels behind a stem of 8, against one network of 16 and 32; 80 "
        "epochs, scale 16.",
    )


def mechanism_on_mnist() -> Claim:
    """The same with more images, as the specification has it."""
    return Claim(
        name="mdcs-mnist",
        says="MDCS is better than cross-entropy on rare classes, and its experts specialise.",
        task=LongTailed(data="mnist", image_size=14, imbalance=50.0, largest=300, class_order="shuffled"),
        engine=Engine(epochs=60, batch_size=64, recipe=Recipe(lr=0.05)),
        arms=arms(),
        rules=MECHANISM,
        seeds=5,
        data="mnist",
        notes="MNIST at 14x14, 300 to 6 training images a class (about 840), another order of the classes for each "
        "seed; three experts of 12 and 24 channels behind a stem of 8, against one network of 16 and 32; 60 epochs, "
        "scale 16.",
    )


def better_on_cifar() -> Claim:
    """Above the ensemble of experts alike, on photographs, where networks over-fit."""
    every = arms(augmentation="small-flip", scale=30.0)
    chosen = ("logit adjustment", "ensemble", "diversity", "mdcs")
    return Claim(
        name="mdcs-cifar10",
        says=f"{SAYS}.",
        task=LongTailed(
            data="cifar10_jpeg",
            image_size=16,
            student="resnet:8-16-32",
            imbalance=50.0,
            largest=800,
            class_order="shuffled",
        ),
        engine=Engine(epochs=60, batch_size=64, recipe=Recipe(lr=0.05)),
        arms={name: every[name] for name in chosen},
        rules=(
            Rule("mdcs", "ensemble"),
            *SPECIALISED,
            Rule("mdcs", "diversity", headline=False),
            Rule("mdcs", "logit adjustment", headline=False),
            Rule("diversity", "ensemble", headline=False),
        ),
        seeds=5,
        data="cifar10_jpeg",
        notes="CIFAR-10 at 16x16, 800 to 16 training images a class (about 2,250), another order of the classes for "
        "each seed; a residual network of one block a stage, whose last two stages are branched at 3/4 of their "
        "width (12-24; half as many channels as the paper, for time); 60 epochs.",
    )


def variance_on_digits() -> Claim:
    """Predictions of trainings from other seeds vary less, by E Var_r p_r(c | x) over three of them."""
    return Claim(
        name="mdcs-variance",
        says="Consistency self-distillation lowers the variance of predictions over independent trainings.",
        task=LongTailed(class_order="shuffled"),
        engine=MDCS.default_engine(),
        arms={
            "ensemble": RepeatedMDCS(exponents=SAME, eta=0.0),
            "diversity": RepeatedMDCS(eta=0.0),
            "mdcs": RepeatedMDCS(),
        },
        rules=(
            Rule("mdcs", "diversity", metric="variance"),
            Rule("mdcs", "ensemble", headline=False, metric="variance"),
        ),
        seeds=5,
        notes="As mdcs-digits; for each seed three models a method, on the same images. Accuracies are those of the "
        "mean of the three.",
    )

"""What FerKD claims, on scenes of the digits and of MNIST: adapted labels, faster convergence, mixing within images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from stillroom.claim import Claim, Rule
from stillroom.method import Method
from stillroom.predictors.labels.ferkd.method import FerKD
from stillroom.predictors.labels.ferkd.task import CropClassification

FKD: Mapping[str, Any] = {"low": 0.0, "middle": 0.0, "top": 1.0}
"""Thresholds that keep every stored label: fast knowledge distillation (Shen and Xing, ECCV 2022)."""
HARD: Mapping[str, Any] = {
    "low": 0.0,
    "middle": 2.0,
    "top": 2.0,
    "thresholds": "confidence",
    "smoothing": 0.0,
}
"""Thresholds that put the true label on every crop."""

PAPER = "ImageNet, ResNet-50: 81.2 against FKD's 80.1 and ReLabel's 78.9"
BASIS = (
    "48x48 scenes, {}; 24 stored crops of each, four a step; other scenes and another teacher for each seed. The "
    "thresholds are quantiles, because the paper's own could not be established. {}"
)
BLIND = "accuracy_without_object"


def adapting(**more: Any) -> dict[str, Method]:
    """The label adaptation and its ablations, nothing mixed."""
    own: dict[str, Any] = {"mix": "none", **more}
    return {
        "hard": FerKD(**HARD, **own),
        "fkd": FerKD(**FKD, **own),
        "ferkd": FerKD(**own),
        "drop only": FerKD(middle=FerKD.low, **own),
        "soften only": FerKD(low=0.0, top=1.0, **own),
        "random": FerKD(selection="random", **own),
    }


def mixing() -> dict[str, Method]:
    """Nothing, CutMix and SelfMix, on the stored labels and on the adapted ones."""
    return {
        how if mix == "none" else f"{how} + {mix}": FerKD(**options, mix=mix)
        for how, options in (("fkd", FKD), ("ferkd", {}))
        for mix in ("none", "cutmix", "selfmix")
    }


def adapting_claim(name: str, about: str, **base: Any) -> Claim:
    """Adapted labels against stored ones, and against as many adapted at random."""
    return Claim(
        name=f"ferkd-{name}",
        says="Dropping a teacher's least and most certain crops, and putting softened true labels on uncertain ones, "
        f"makes better students than its soft labels on all crops, and than as many crops at random ({PAPER}).",
        arms=adapting(),
        rules=(
            Rule("ferkd", "random"),
            Rule("ferkd", "fkd"),
            Rule("ferkd", "hard", headline=False),
            Rule("fkd", "hard", headline=False),
            Rule("ferkd", "drop only", headline=False),
            Rule("ferkd", "soften only", headline=False),
            Rule("ferkd", "fkd", headline=False, metric=BLIND, higher_is_better=True),
        ),
        notes=BASIS.format(
            about,
            "The last rule is about crops that show nothing of the object, where chance is one in ten.",
        ),
        **base,
    )


def quarter_claim(name: str, about: str, **base: Any) -> Claim:
    """The same after a quarter of the training."""
    return Claim(
        name=f"ferkd-{name}-quarter",
        says="Adapted labels converge faster: the students are better after a quarter of their training.",
        arms={arm: adapting(until=0.25)[arm] for arm in ("hard", "fkd", "ferkd", "random")},
        rules=(
            Rule("ferkd", "fkd"),
            Rule("ferkd", "random", headline=False),
            Rule("ferkd", "hard", headline=False),
        ),
        notes=BASIS.format(about, "The learning rate goes as in the whole training."),
        **base,
    )


def mixing_claim(name: str, about: str, **base: Any) -> Claim:
    """SelfMix against CutMix."""
    return Claim(
        name=f"ferkd-{name}-mixing",
        says="On soft labels, mixing crops of one image is better than mixing those of different ones.",
        arms=mixing(),
        rules=(
            Rule("ferkd + selfmix", "ferkd + cutmix"),
            Rule("fkd + selfmix", "fkd + cutmix", headline=False),
            Rule("ferkd + selfmix", "ferkd", headline=False),
            Rule("ferkd + selfmix", "fkd + selfmix", headline=False),
            Rule("fkd + selfmix", "fkd", headline=False),
        ),
        notes=BASIS.format(about, "A step mixes with a chance of one half."),
        **base,
    )


def claims_on(name: str, task: CropClassification, data: str, about: str, epochs: int) -> tuple[Claim, ...]:
    """The three claims on one kind of scenes."""
    engine = replace(FerKD.default_engine(), epochs=epochs)
    base: dict[str, Any] = {"task": task, "engine": engine, "seeds": 5, "data": data}
    return tuple(make(name, about, **base) for make in (adapting_claim, quarter_claim, mixing_claim))


def all_claims() -> tuple[Claim, ...]:
    """On the built-in digits, and on MNIST in the specification's setting."""
    mnist = CropClassification(
        train_samples=4000, scenes=True, scenes_each=1, item=20, flip=0.0, teacher_epochs=12
    )
    return (
        *claims_on(
            "digits",
            FerKD.default_task(),
            "",
            "two of each of 800 digits, tested on 900",
            FerKD.default_engine().epochs,
        ),
        *claims_on("mnist", mnist, "mnist", "one of each of 4,000 digits, tested on 2,000", 12),
    )

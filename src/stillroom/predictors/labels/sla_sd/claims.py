"""What the paper claims, as comparisons: on generated objects and on photographs."""

from __future__ import annotations

from stillroom.claim import Claim, Rule
from stillroom.engine import Engine
from stillroom.method import Method
from stillroom.optim import Recipe
from stillroom.predictors.baselines import Plain
from stillroom.predictors.labels.sla_sd.method import SLASD, DataAugmentation, LongPlain, MultiTask
from stillroom.predictors.labels.sla_sd.task import TransformedClassification

SAYS = (
    "Joint labels of class and rotation make a classifier better where rotations as augmentation or as a second task "
    "make it worse, and what the copies vote can be had in one pass (ResNet-32, CIFAR-10: 92.39 plain, 94.50 with four "
    "passes, 93.26 with one)."
)
NOTES = (
    "All arms answer in one pass but 'sla, 4 passes'. Arms with copies see four times the rows of 'plain' in a step; "
    "'plain, 4x epochs' has their compute. "
)
OPTIONAL = ("two tasks", "no stop-gradient")
"""Arms that are measured on the built-in pictures alone."""


def arms() -> dict[str, Method]:
    """The method, its parts, its ablation, and the arms of equal compute."""
    return {
        "plain": Plain(),
        "plain, 4x epochs": LongPlain(),
        "rotations as data": DataAugmentation(),
        "two tasks": MultiTask(),
        "sla": SLASD(mode="si", distil=False),
        "sla, 4 passes": SLASD(mode="ag", distil=False),
        "sla+sd": SLASD(),
        "no stop-gradient": SLASD(stop_gradient=False),
    }


def rules() -> tuple[Rule, ...]:
    """What the specification says would refute it decides: augmentation, single inference, equal compute."""
    return (
        Rule("sla, 4 passes", "rotations as data"),
        Rule("sla+sd", "sla"),
        Rule("sla+sd", "plain, 4x epochs"),
        Rule("sla, 4 passes", "plain, 4x epochs", headline=False),
        Rule("sla, 4 passes", "sla+sd", headline=False),
        Rule("sla+sd", "plain", headline=False),
        Rule("sla+sd", "rotations as data", headline=False),
        Rule("plain", "rotations as data", headline=False),
        Rule("plain", "two tasks", headline=False),
        Rule("sla+sd", "no stop-gradient", headline=False),
    )


def objects_claim() -> Claim:
    """On the built-in pictures."""
    return Claim(
        name="sla-sd-objects",
        says=SAYS,
        task=TransformedClassification(),
        engine=SLASD.default_engine(),
        arms=arms(),
        rules=rules(),
        seeds=5,
        notes=NOTES
        + "Generated 16x16 pictures of ten kinds of upright objects, a small residual network; another "
        "choice of 600 training pictures of 2,000 for each seed.",
    )


def cifar_claim() -> Claim:
    """On photographs, at the specification's size."""
    return Claim(
        name="sla-sd-cifar10",
        says=SAYS,
        task=TransformedClassification(
            data="cifar10_jpeg",
            image_size=16,
            student="resnet:16-32-64",
            augment="crop-flip",
            student_samples=1_500,
        ),
        engine=Engine(epochs=20, batch_size=64, recipe=Recipe(lr=0.1, weight_decay=1e-4)),
        arms={name: arm for name, arm in arms().items() if name not in OPTIONAL},
        rules=tuple(rule for rule in rules() if rule.worse not in OPTIONAL),
        seeds=5,
        data="cifar10_jpeg",
        notes=NOTES
        + "CIFAR-10 at 16x16 pixels, a residual network of three blocks, 20 epochs with crops and mirror "
        "images; another choice of 1,500 training images for each seed.",
    )

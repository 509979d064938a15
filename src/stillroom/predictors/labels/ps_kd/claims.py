"""What Kim et al. (ICCV 2021, arXiv:2006.12000) claim, as comparisons."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from stillroom.claim import Claim, Rule
from stillroom.engine import Engine
from stillroom.method import Method
from stillroom.optim import Recipe
from stillroom.predictors.baselines import Plain
from stillroom.predictors.labels.ps_kd.method import PSKD
from stillroom.predictors.parts.settings import cifar_task
from stillroom.predictors.parts.temperature import TemperatureScaled
from stillroom.predictors.parts.wrong_labels import WrongLabels

CALIBRATION, LIKELIHOOD = "expected_calibration_error", "negative_log_likelihood"
RANKING = "area_under_risk_coverage"

SAYS = (
    "PS-KD calibrates a classifier better than plain training, in calibration error and in likelihood, and costs at "
    "most a point of accuracy (CIFAR-100, PreAct ResNet-18: ECE 11.84 to 1.77 %, NLL 1.10 to 0.76, error 24.18 to "
    "20.82 %)."
)


def arms_of_claims() -> dict[str, Method]:
    """PS-KD, what it must beat, what it competes with, and its ablations."""
    return {
        "plain": Plain(),
        "label smoothing": Plain(label_smoothing=0.1),
        "temperature": TemperatureScaled(),
        "ps-kd": PSKD(),
        "snapshot": PSKD(past="snapshot"),
        "constant": PSKD(alpha=0.4, schedule="constant"),
        "current epoch": PSKD(past="current"),
    }


def rules_of_claims(arms: Mapping[str, Method]) -> list[Rule]:
    """What would refute it decides; the other numbers, and the other arms, stand beside it."""
    deciding = [Rule("ps-kd", "plain", metric=metric) for metric in (CALIBRATION, LIKELIHOOD)]
    ranking = [Rule("ps-kd", "plain", headline=False, metric=RANKING)]
    others = [arm for arm in arms if arm not in ("plain", "ps-kd")]
    beside = [
        Rule("ps-kd", arm, headline=False, metric=metric)
        for arm in others
        for metric in (CALIBRATION, LIKELIHOOD)
    ]
    return [*deciding, Rule("ps-kd", "plain", margin=0.01), *ranking, *beside]


def on_digits() -> Claim:
    """With a fifth of the labels wrong, which over-confident networks learn by heart."""
    arms = {arm: method for arm, method in arms_of_claims().items() if arm != "snapshot"}
    return Claim(
        name="ps-kd-digits-wrong-labels",
        says=SAYS,
        task=WrongLabels(teacher="none", student="mlp:64"),
        engine=PSKD.default_engine(),
        arms=arms,
        rules=rules_of_claims(arms),
        seeds=10,
        notes="8x8 digits, MLP 64-64-10, another choice of 200 training images for each seed, a fifth "
        "of whose labels is another class; validation and test labels are right. With right labels there is nothing "
        "to repair.",
    )


def on_cifar() -> Claim:
    """The paper's comparison, small: photographs with crops and mirror images."""
    return _cifar_claim("ps-kd-cifar10", arms_of_claims(), "crop-flip", "with random crops and mirror images")


def on_cifar_unaugmented() -> Claim:
    """Photographs as they are, which the network learns by heart: where it is most over-confident."""
    arms = {arm: arms_of_claims()[arm] for arm in ("plain", "label smoothing", "temperature", "ps-kd")}
    return _cifar_claim("ps-kd-cifar10-no-augmentation", arms, "none", "not augmented")


def _cifar_claim(
    name: str, arms: Mapping[str, Method], augment: Literal["none", "crop-flip"], how: str
) -> Claim:
    return Claim(
        name=name,
        says=SAYS,
        task=cifar_task(teacher="none", student_samples=2_000, augment=augment),
        engine=Engine(epochs=30, batch_size=128, recipe=Recipe(lr=0.1, nesterov=True)),
        arms=arms,
        rules=rules_of_claims(arms),
        seeds=5,
        data="cifar10_jpeg",
        notes=f"CIFAR-10 at 16x16 pixels, a small residual network, 30 epochs; another choice of 2,000 training images "
        f"for each seed, {how}. Calibration error in 15 bins.",
    )


def all_claims() -> tuple[Claim, ...]:
    """All of them."""
    return (on_digits(), on_cifar(), on_cifar_unaugmented())

"""FGSM, Carlini-Wagner and defensive distillation: how robust is a distilled classifier, and does it only seem so?

What for. Somebody distilled a classifier and wants to know what that did to its robustness. In: a teacher and a
student, or a classifier alone, and labelled images. Out: accuracy under FGSM over epsilon, the success of C&W and the
distance that it needs, and a diagnosis in words. Or the defence itself: a student made by defensive distillation.

The idea. Trained at temperature T, a network's logits come out about T times larger. Used at 1 its softmax is
saturated, the gradient of the cross-entropy vanishes in float32, and FGSM finds nothing to follow. An attack on the
logits (C&W, the margin, logits / T), in float64 or made on another network finds what FGSM does not.

Source. Sarkar, Das, Maitra, Some, Saha, Adhikary, Bose and Sen, "Evaluating Adversarial Robustness: A Comparison Of
FGSM, Carlini-Wagner Attacks, And The Role of Distillation as Defense Mechanism", 2024, arXiv:2404.04245; built from
FGSM (arXiv:1412.6572), C&W (arXiv:1608.04644) and defensive distillation (arXiv:1511.04508). There is no code.

Deviations. From C&W's published code: the rule that aborts is applied to each image and not to the batch's sum, so
that no image bears on another. From defensive distillation: no dropout, Adam. The diagnosis is not in the report; C&W
without a bound turns nearly every network, so its success says 'masked' only where gradients are zero as well.
"""

from __future__ import annotations

from stillroom.audits.fgsm_cw_defensive_distillation.attacks import (
    Pixels,
    cross_entropy,
    fgsm,
    input_gradient,
    lead,
    pgd,
)
from stillroom.audits.fgsm_cw_defensive_distillation.carlini_wagner import (
    Found,
    Search,
    carlini_wagner_l0,
    carlini_wagner_l2,
    carlini_wagner_linf,
)
from stillroom.audits.fgsm_cw_defensive_distillation.diagnosis import Audit, Plan, Verdict, judge
from stillroom.audits.fgsm_cw_defensive_distillation.distilling import (
    DefensiveDistillation,
    RobustnessAudit,
    at_temperature,
    soft_labels,
)
from stillroom.audits.fgsm_cw_defensive_distillation.robustness import Robustness

__all__ = [
    "Audit",
    "DefensiveDistillation",
    "Found",
    "Pixels",
    "Plan",
    "Robustness",
    "RobustnessAudit",
    "Search",
    "Verdict",
    "at_temperature",
    "carlini_wagner_l0",
    "carlini_wagner_l2",
    "carlini_wagner_linf",
    "cross_entropy",
    "fgsm",
    "input_gradient",
    "judge",
    "lead",
    "pgd",
    "soft_labels",
]

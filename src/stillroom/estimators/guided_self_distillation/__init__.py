"""GT-SD: a model distilled into a copy of itself, several times over, with the right share of the labels.

What for: a model that is regularised better, without another model and without a grid search. A kernel ridge
regressor or any other linear smoother (behind scikit-learn's interface: SelfDistilledKernelRidge and
SelfDistilledRegressor), or a network that is trained on the squared error of its probabilities.

The idea: every round's targets mix the labels (weight alpha) with the outputs of the model before. For kernel ridge
all rounds are closed forms of the first fit: outputs alone shrink small eigenvalues first and end at the zero
function, while a constant alpha > 0 ends at ridge regression with the ridge lambda / alpha. The fit is linear in its
targets, so the error on held-out samples is a parabola in alpha, whose minimum one further fit tells; for networks
the same formula is an estimate, from two trainings a round.

Source: Borup and Andersen, "Even your Teacher Needs Guidance: Ground-Truth Targets Dampen Regularization Imposed by
Self-Distillation", NeurIPS 2021, arXiv:2102.13088.

Deviations. From the authors' published code: its network keeps the teacher as a submodule of the student, here it
is frozen apart; it trains on fixed alphas alone, and validates on the test split. The second column of its README's
table is headed alpha = 0.25 and holds the numbers of 0.35. From the paper: alpha may leave [0, 1] where that is
asked for (`clip`); with held-out samples cut from the training data, the estimator fits once more on all (`refit`).
"""

from __future__ import annotations

from stillroom.estimators.guided_self_distillation.closed_form import (
    Allowance,
    FirstFit,
    GuidedSelfDistillation,
    Oracle,
    TunedRidge,
)
from stillroom.estimators.guided_self_distillation.kernel_ridge import BadKernel, SelfDistilledKernelRidge
from stillroom.estimators.guided_self_distillation.network import (
    FirstNetwork,
    FlippedLabels,
    GuidedSelfDistillationNet,
    MixedTargets,
)
from stillroom.estimators.guided_self_distillation.problem import Predictor, Regression
from stillroom.estimators.guided_self_distillation.regressors import SelfDistilledRegressor

__all__ = [
    "Allowance",
    "BadKernel",
    "FirstFit",
    "FirstNetwork",
    "FlippedLabels",
    "GuidedSelfDistillation",
    "GuidedSelfDistillationNet",
    "MixedTargets",
    "Oracle",
    "Predictor",
    "Regression",
    "SelfDistilledKernelRidge",
    "SelfDistilledRegressor",
    "TunedRidge",
]

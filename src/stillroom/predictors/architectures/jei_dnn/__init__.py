"""JEI-DNN: early exits and their gates, trained together on a frozen classifier.

What for: an answer that costs less where it is easy. A trained network gets small classifiers after its blocks and a
learnt gate at each; a sample leaves at the first gate that opens, and nothing after it is computed. A weight lambda
trades accuracy for cost; probabilities stay better calibrated, and conformal sets smaller, than with thresholds on
confidence.

The idea: a classifier at an early exit should be good on the samples that leave there, and a gate should know which
these are. So both are trained by turns: gates towards the exit where loss plus lambda times cost is least, classifiers
on each sample in the shares in which the gates let it leave.

Source: Regol, Chataoui and Coates, "Jointly-Learned Exit and Inference for a Dynamic Neural Network", ICLR 2024,
arXiv:2310.09163.

Deviations. The weights of the classifiers' loss are normalised without gradient (`stop_gradient`): in the published
code the ratio has one, and the weights cancel. That loss is summed over exits, as in the paper, where the code has
the mean. Gates and classifiers have an optimizer each, where the code has one for both, whose momentum moves the side
that rests. Turns are counted over the run, where the code starts each epoch with the gates; an epoch is a candidate
for being kept only if both sides have had a turn since the last candidate, which is every epoch where epochs are
long. Features are pooled, normalised by the backbone's own last LayerNorm if it has one, and standardised. The
conformal threshold is the quantile's order statistic itself; the code's rounding takes the next larger one. One
lambda in the paper is one run; here the networks of several lambdas, which share nothing but the backbone and the
order of the data, are trained side by side.
"""

from __future__ import annotations

from stillroom.predictors.architectures.jei_dnn.heads import Gates, Heads
from stillroom.predictors.architectures.jei_dnn.losses import (
    best_exit,
    conformal_sets,
    conformal_threshold,
    conformal_thresholds,
    cross_entropies,
    exit_probabilities,
    exit_weights,
    gate_loss,
    gate_targets,
    head_loss,
    leaving,
    positive_ratios,
    uncertainty,
    warm_up_weights,
)
from stillroom.predictors.architectures.jei_dnn.method import JEIDNN, ThresholdExits
from stillroom.predictors.architectures.jei_dnn.network import EarlyExit, Prediction, Settings
from stillroom.predictors.architectures.jei_dnn.task import EarlyExiting, blend

__all__ = [
    "JEIDNN",
    "EarlyExit",
    "EarlyExiting",
    "Gates",
    "Heads",
    "Prediction",
    "Settings",
    "ThresholdExits",
    "best_exit",
    "blend",
    "conformal_sets",
    "conformal_threshold",
    "conformal_thresholds",
    "cross_entropies",
    "exit_probabilities",
    "exit_weights",
    "gate_loss",
    "gate_targets",
    "head_loss",
    "leaving",
    "positive_ratios",
    "uncertainty",
    "warm_up_weights",
]

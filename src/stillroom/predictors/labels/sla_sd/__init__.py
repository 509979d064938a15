"""SLA+SD: joint labels of class and transformation, and their vote in one pass.

What for: a classifier that is more accurate with the same labelled images, where the class of an image outlives being
turned or recoloured. It costs as much as any other when it is used, or more where the vote itself is kept.

The idea: turned copies as augmentation force the features not to see the turn, and a second head that tells the turn
is little better. One head over all pairs of class and turn forces nothing. At an image's copies it answers as many
times, and the average is the better answer; a plain head learns it in the same step.

Source: Lee, Hwang and Shin, "Self-supervised Label Augmentation via Input Transformations", ICML 2020,
arXiv:1910.05872.

Deviations. None in the method; index, losses and gradients are those of the published code. Training is by epochs
with a cosine, where that code draws images anew for each of 80,000 steps and lowers the rate twice. Copies are made of
normalised images, as there; where channels have means of their own, colours change places after that. The multi-task
and augmented arms are the paper's equations, since the code leaves them out.
"""

from __future__ import annotations

from stillroom.predictors.labels.sla_sd.method import (
    SLASD,
    DataAugmentation,
    LongPlain,
    MultiTask,
    joint_loss,
    sla_sd_loss,
)
from stillroom.predictors.labels.sla_sd.network import JointNetwork, aggregated, joint_labels, matching
from stillroom.predictors.labels.sla_sd.task import TransformedClassification

__all__ = [
    "SLASD",
    "DataAugmentation",
    "JointNetwork",
    "LongPlain",
    "MultiTask",
    "TransformedClassification",
    "aggregated",
    "joint_labels",
    "joint_loss",
    "matching",
    "sla_sd_loss",
]

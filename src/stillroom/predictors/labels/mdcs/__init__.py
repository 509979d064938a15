"""MDCS: experts for common, middling and rare classes, each consistent with itself.

What for: classification where few classes have most of the examples and all classes count. One network with a shared
stem and three branches is trained in one stage; the mean of their logits is used as it is, and is balanced.

The idea: a term lambda log n added to an expert's logits in training says how common it is to take the classes for.
With another lambda for each branch one becomes good at common classes, one at rare ones, and one is balanced, so that
they err on different samples. Then each learns to say of a strongly augmented image what it says of the image weakly
augmented, where it is right about the latter, which makes it steadier.

Source: Zhao, Jiang, Hu, Zhang and Liu, "MDCS: More Diverse Experts with Consistency Self-distillation for Long-tailed
Recognition", ICCV 2023, arXiv:2308.09922.

Deviations. The ramp of the consistency loss is a share of the epochs, 5 %, which is the published 20 of 400. Built-in
and timm networks are cut where the paper cuts ResNets, before their last two stages; of networks whose widths cannot
be set stage by stage the branches keep their full width, with a warning. In accumulated or distributed steps |I_k| is
counted over the whole step. Small images have views of their own (shift, rotation, erasing, noise); RandAugment is
torchvision's, without the noise on its magnitude that the published one has. A class without a training image is an
error, where the published code has a logit of its own for log(0 + 1e-9).
"""

from __future__ import annotations

from stillroom.predictors.labels.mdcs.losses import (
    adjustment,
    confident,
    consistency_loss,
    divergences,
    diversity_loss,
    expert_divergence,
    prediction_variance,
)
from stillroom.predictors.labels.mdcs.method import MDCS, LogitAdjustment, RepeatedMDCS
from stillroom.predictors.labels.mdcs.repeated import Members
from stillroom.predictors.labels.mdcs.task import LongTailed

__all__ = [
    "MDCS",
    "LogitAdjustment",
    "LongTailed",
    "Members",
    "RepeatedMDCS",
    "adjustment",
    "confident",
    "consistency_loss",
    "divergences",
    "diversity_loss",
    "expert_divergence",
    "prediction_variance",
]

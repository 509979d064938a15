"""SSLD: a student that only agrees with a strong teacher, on labelled images and on images mined from a pool.

What for: a better small backbone where labels are few and images are many; no label is read by the student.

The idea: agreeing with a teacher needs no labels, so any image will do that the teacher is sure about. Take a large
unlabelled pool; throw out what is a copy of an image that is scored on; let the teacher, or a stronger network, score
the rest; add the best of each class to the training images; train on all of them for long, on the symmetrised KL
divergence between the two softmaxes; then go on at a low rate on the training images alone, which restores their
distribution. Fine-tuning the last layer at a larger resolution may follow. Who then fine-tunes the student on another
problem, in a loop of their own, finds the published rates by depth in `parameter_groups`
(`stillroom.predictors.parts.layer_rates`).

Source: Cui et al., "Beyond Self-Supervision: A Simple Yet Effective Network Distillation Alternative to Improve
Backbones", 2021, arXiv:2103.05959; and the authors' published code and documentation (PaddleClas, "SSLD").

Deviations. From the published code: probabilities are not raised by 1e-12 before their logarithm, which changes the
loss where the teacher is surer than that. From the published documentation: copies of evaluation images are found by
the correlation of downscaled pixels, not by SIFT, which finds cropped copies too; AutoAugment is TrivialAugment here
(`--task.augment trivial`). Stages two and three keep the distillation loss, which the documentation does not say in
words; in stage three the teacher sees the larger images, too.
"""

from __future__ import annotations

from stillroom.predictors.labels.ssld.method import SSLD, HeadStage, Stage, agreement_loss
from stillroom.predictors.labels.ssld.mining import Mined, mine
from stillroom.predictors.labels.ssld.task import PooledClassification

__all__ = ["SSLD", "HeadStage", "Mined", "PooledClassification", "Stage", "agreement_loss", "mine"]

"""FerKD: label random crops once, and decide for each how far its label is to be trusted.

What for. Fast distillation: the teacher is asked once about many random crops of every image, and any number of
students learn from what is stored, without the teacher. In: labelled images, a teacher. Out: a table of crops and
labels (`--method.save-table`, `--method.table`) and a student trained from it.

The idea. A random crop may show the whole object, part of it or none, and a teacher's soft label is then worth more or
less. What it says of its own certainty tells: crops of which it is least certain hold nothing, those of which it is
most certain teach nothing, and both are dropped; less certain ones get the softened true label, so that background
becomes context; the rest keep their soft labels. Several crops of an image are taken in a step, so that it is loaded
once for them, and only crops of the same image are mixed.

Source. Shen, "FerKD: Surgical Label Adaptation for Efficient Distillation", ICCV 2023, arXiv:2312.17473; the table,
its compression, the crops in a step and the epochs as in the published code of Shen and Xing, "A Fast Knowledge
Distillation Framework for Visual Recognition", ECCV 2022, arXiv:2112.01528 (train_FKD.py, utils_FKD.py,
generate_soft_label.py), which FerKD trains with.

Deviations. From the published code: crops are drawn from a seed and the image's number; boxes stay float32, so that a
replay is exact, where the code may halve them; float images are scaled without rounding to 8 bits; crops cover .08 to 1
of an image, where the code's default, .936, is one teacher's own (`--task.scale`); the learning rate changes with every
step, not every n epochs; an epoch of n crops has a quarter (for n = 4) of the images and as many crops as there are
images, so that epochs count as in plain training, and n of them go through all images. An image with fewer kept crops
than n gives them more than once. Not established by what we could read, and chosen here: the thresholds, which are
quantiles (5, 20 and 98 %), the smoothing (.1), that confidence is the largest probability whatever its class, and
SelfMix's chance (.5) and Beta(1, 1); its permutation is one an image, its box one a step.
"""

from __future__ import annotations

from stillroom.predictors.labels.ferkd.method import FerKD, first_single
from stillroom.predictors.labels.ferkd.mixing import cut_box, pasted, within_images
from stillroom.predictors.labels.ferkd.regions import (
    Thresholds,
    adapted,
    regions_of,
    rescued,
    shuffled,
    softened,
    thresholds,
)
from stillroom.predictors.labels.ferkd.task import CropClassification

__all__ = [
    "CropClassification",
    "FerKD",
    "Thresholds",
    "adapted",
    "cut_box",
    "first_single",
    "pasted",
    "regions_of",
    "rescued",
    "shuffled",
    "softened",
    "thresholds",
    "within_images",
]

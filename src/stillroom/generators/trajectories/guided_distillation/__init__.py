"""Guided distillation: one network that takes the guidance scale, in one pass a step and few steps.

What for. A classifier-free guided model asks its network twice a step, for tens of steps. Here such a teacher and its
training data go in; one network comes out that is told the guidance scale w, is asked once a step, and samples in 1
to 16 steps at every w of a trained range. A second student of the reversed way encodes images for style transfer;
editing and inpainting need the first alone.

The idea. Two regressions. Stage one: a copy of the teacher that also reads w learns what guidance composes of two
passes. Stage two: the number of steps is halved again and again, each student taught that one of its steps lands
where two of the last student's do, at the same w, which is now an input like any other.

Source. Meng, Rombach, Gao, Kingma, Ermon, Ho and Salimans, "On Distillation of Guided Diffusion Models", CVPR 2023,
arXiv:2210.03142; stage two is that of Salimans and Ho, 2022, arXiv:2202.00512. There is no public code.

Deviations. The scale form w = 1 + (the paper's w) throughout. Times of stage one are continuous for discrete
processes as well, from a thousandth of the way on. The grid of steps is uniform up to the largest time at which the
teacher was trained, which is not always T: a teacher that puts out eps is asked up to a noise level of 200. A student
that starts from a teacher of eps or score reads the same weights as v (as the velocity on flow), because eps says
nothing of x0 without signal: it then does not start as the teacher's function, and stage one teaches it all. A
teacher of the EDM process has noise levels up to 80, on which a uniform grid is useless: student and targets live on
the cosine process, the same network behind scaled inputs. Encoding starts at a noise level of 0.002, or at a discrete
process's first time, where a clean sample counts as x_t: at t = 0 itself the target is 0 / 0. For the
stochastic sampler every round is trained on double jumps, so that its target is two jumps of the last student's own
length; at the lower edge, where a jump is a single step, they are half as long (the paper says only that the training
is adapted). With `stage_one` off it is progressive distillation of the conditional network, an ablation. U-Nets and
transformers go out as pipelines whose `guidance_scale` is w.
"""

from __future__ import annotations

from stillroom.generators.trajectories.guided_distillation.editing import edit, encode, inpaint, transfer
from stillroom.generators.trajectories.guided_distillation.method import GuidedDistillation
from stillroom.generators.trajectories.guided_distillation.stages import (
    Halving,
    StageOne,
    budget,
    grid_times,
    halvings,
    largest_time,
    least_time,
    two_steps,
    well_conditioned,
)

__all__ = [
    "GuidedDistillation",
    "Halving",
    "StageOne",
    "budget",
    "edit",
    "encode",
    "grid_times",
    "halvings",
    "inpaint",
    "largest_time",
    "least_time",
    "transfer",
    "two_steps",
    "well_conditioned",
]

"""2-Rectified Flow++: one reflow, done well enough for one step.

What for. A diffusion model samples in tens of evaluations. Trained on pairs of noise and what the model makes of it,
the same network becomes a rectified flow that samples in one step, gets better with more, and can be run backwards
from an image to its noise. In: a diffusion teacher. Out: one network for 1 to N steps.

The idea. Straight lines between the pairs of a deterministic coupling practically never cross, so that one reflow is
enough and the best flow of it is nearly straight. What is hard is then known: to tell the image from noise alone
(t near 1) and the noise from an image alone (t near 0). So times are drawn from a U-shaped law; the diffusion model
is itself taken as the first rectified flow, D_flow(x, t) = D(x / (1 - t), t / (1 - t)), with all its weights; and
because E[x_0 | x_t] is a point, any distance that is 0 for equals alone has the same optimum as squared error: a
pseudo-Huber norm on the velocity and a perceptual metric on the denoised sample.

Source. Lee, Lin and Fanti, "Improving the Training of Rectified Flows", NeurIPS 2024, arXiv:2405.20320; the density,
the losses' constants and weights, the samplers and the inversion as in the authors' code (train.py, t_dist.py,
generate.py, network_edm.py).

Deviations. From the code: LPIPS is torchmetrics's with average pooling put in for maximal pooling, where the code has
piq's; the new update rule keeps the unit noise, where the code keeps it times 1 - 1e-5; bfloat16 needs no scaling of
the loss, which their half precision does; the noise of a pair is rounded to half precision before the teacher starts
from it, so that what is stored is an exact pair; samples are stored in half precision, not as 8-bit images. From the
paper, for small data: the perceptual metric is one of a frozen classifier's layers, without LPIPS's learned weights,
and of the images themselves, which a network of two layers does not pin down; points, latents and images without
labels have none, and fall back on the Huber norm alone; batches, rates and the average's decay are those of a small
machine (published: 512, 2e-4 after 5,000 steps of warm-up, .9999, 800,000 updates, 1 M pairs). A teacher whose
denoiser is asked for eps has no answer at the flow's last half percent, where alpha is too small; its flow starts at
t = 200/201.
"""

from __future__ import annotations

from stillroom.generators.flows.rfpp.claims import FewEvaluations
from stillroom.generators.flows.rfpp.features import (
    Lpips,
    NetworkDistance,
    feature_distance,
    feature_metric,
    lpips,
)
from stillroom.generators.flows.rfpp.flow import (
    EDGE,
    as_flow,
    crossing_noise,
    field_sampler,
    invert,
    loss_by_time,
    pseudo_huber,
    round_trip,
    start_of,
    straightness,
    training_times,
)
from stillroom.generators.flows.rfpp.method import CONFIGURATIONS, RectifiedFlowPlusPlus, configuration
from stillroom.generators.flows.rfpp.pairs import inverted_pairs, row_noise, sampled_pairs

__all__ = [
    "CONFIGURATIONS",
    "EDGE",
    "FewEvaluations",
    "Lpips",
    "NetworkDistance",
    "RectifiedFlowPlusPlus",
    "as_flow",
    "configuration",
    "crossing_noise",
    "feature_distance",
    "feature_metric",
    "field_sampler",
    "invert",
    "inverted_pairs",
    "loss_by_time",
    "lpips",
    "pseudo_huber",
    "round_trip",
    "row_noise",
    "sampled_pairs",
    "start_of",
    "straightness",
    "training_times",
]

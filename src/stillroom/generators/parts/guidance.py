"""One network for both passes of classifier-free guidance: what papers that make the scale an input share.

Meng et al., "On Distillation of Guided Diffusion Models", CVPR 2023, arXiv:2210.03142, section 3.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from stillroom.errors import UserError, require
from stillroom.generators.generation import Generation
from stillroom.generators.parts import times
from stillroom.generators.parts.base import GeneratorMethod
from stillroom.generators.parts.building import check_guided
from stillroom.generators.parts.process import Process
from stillroom.generators.parts.sampler import Sampler
from stillroom.method import Batch, Update, Updates
from stillroom.task import Task


def check_range(low: float, high: float) -> None:
    """Raise UserError unless 1 <= low < high, as a range of guidance scales to train on must be."""
    require("--method.guidance-low", low, 1)
    if high <= low:
        raise UserError(
            f"--method.guidance-high is {high:g}, not above guidance-low {low:g}: pass a larger one"
        )


def clean_error(process: Process, t: Tensor, said: Tensor, wanted: Tensor) -> Tensor:
    """max(SNR_t, 1) ||D - D'||^2, the sum over a sample's numbers, [n]; denoised samples [n, ...], times [n].

    The truncated-SNR weight of Salimans and Ho, 2022, arXiv:2202.00512, section 4.
    """
    return times.truncated_snr_weight(process, t) * (said - wanted).square().flatten(1).sum(1)


@dataclass(eq=False)
class GuidanceRegression(GeneratorMethod):
    """All weights learn D_phi^w at noised data, w an input (Meng et al., 2023, arXiv:2210.03142, section 3.1, eq. 3).

    min E max(SNR_t, 1) ||D(x_t, t, c, w) - D_phi(x_t, t, 0) - w (D_phi(x_t, t, c) - D_phi(x_t, t, 0))||^2 over data, t
    uniform up to the start, w uniform in its range for each sample. The student starts as the conditional teacher.
    """

    name: ClassVar[str] = "guidance-regression"
    listed: ClassVar[bool] = False

    guidance_low: float = 1.0
    """Least guidance scale w, >= 1."""
    guidance_high: float = 4.0
    """Largest guidance scale w, > guidance_low."""

    def check(self) -> None:
        """See the ranges of the fields."""
        super().check()
        check_range(self.guidance_low, self.guidance_high)

    def bind(self, task: Task, seed: int) -> None:
        """Give the student's network the scale as an input that says nothing yet."""
        super().bind(task, seed)
        assert isinstance(task, Generation)
        check_guided(self.reference.denoiser)
        self.student.accept_guidance()
        self.sampling = task.sampler(self.student)
        self.last = self.student.start

    def updates(self, batch: Batch) -> Updates:
        """One step towards the guided teacher."""
        process, noise = self.student.process, batch.noise
        # Not t = 0, where the weight is infinite and there is nothing to say.
        t = times.uniform(noise.uniform(), 1e-3 * process.T, self.last)
        w = times.uniform(noise.uniform(), self.guidance_low, self.guidance_high)
        x = process.add_noise(batch.x, t, noise.normal(*batch.x.shape[1:]))
        with torch.no_grad():
            teacher = self.reference.denoiser.on(process)
            wanted = teacher.guided(x, t, batch.y, w, self.reference.plan.interval).x0
        errors = clean_error(process, t, self.student(x, t, batch.y, w), wanted)
        yield Update("student", errors.mean(), items=len(batch))

    def product(self) -> Sampler:
        """The student, sampled as the task says, in one pass a step."""
        return self.sampling

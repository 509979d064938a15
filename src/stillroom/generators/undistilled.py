"""What this family is held against: a model trained on data, and a teacher that samples in too few steps.

Sources: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", NeurIPS 2022,
arXiv:2206.00364; Ho and Salimans, "Classifier-Free Diffusion Guidance", 2022, arXiv:2207.12598; Lipman et al.,
"Flow Matching for Generative Modeling", ICLR 2023, arXiv:2210.02747.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, fields
from typing import ClassVar

from torch import Tensor

from stillroom.engine import Engine
from stillroom.errors import require
from stillroom.generators.generation import Generation
from stillroom.generators.parts import times
from stillroom.generators.parts.base import GeneratorMethod
from stillroom.generators.parts.denoiser import Denoiser
from stillroom.generators.parts.estimate import true_value
from stillroom.generators.parts.sampler import FixedGuidance, Sampler
from stillroom.generators.parts.solvers import Solver
from stillroom.method import Batch, Fit, Method, Result, Update, Updates
from stillroom.models.names import weighty
from stillroom.optim import Recipe
from stillroom.task import Task, TeacherJob


def training_times(denoiser: Denoiser, u: Tensor) -> Tensor:
    """Times [n] for uniform numbers [n]: EDM's log-normal law of noise levels, or uniform up to the start."""
    if denoiser.process.name == "edm":
        return times.log_normal(u)
    return times.uniform(u, 1e-4, denoiser.start)


def denoising_loss(
    denoiser: Denoiser, x0: Tensor, t: Tensor, eps: Tensor, condition: Tensor | None
) -> Tensor:
    """The squared error of a denoiser, [n]: what the mean over the batch of is minimised by E[x_0 | x_t].

    The sum over a sample's numbers of the error of what the network puts out: of x0 with EDM's weight for edm
    (Karras et al., eq. 8), of the velocity for flow (Lipman et al., eq. 23), of v, eps or x0 else.
    """
    at = denoiser.estimate(denoiser.process.add_noise(x0, t, eps), t, condition)
    if denoiser.prediction == "edm":
        weight = times.edm_weight(denoiser.process.ratio(t), denoiser.sigma_data)
        return weight * (at.x0 - x0).square().flatten(1).sum(1)
    error = (at.value - true_value(at, x0, eps)).square().flatten(1).sum(1)
    return error * denoiser.process.sigma(t).square() if at.kind == "score" else error


@dataclass(eq=False)
class Diffusion(GeneratorMethod):
    """A diffusion or flow model trained on data (Karras et al., 2022, arXiv:2206.00364, eq. 8; section 5).

    min E w(t) ||D(alpha_t x_0 + sigma_t eps, t, c) - x_0||^2, with the condition dropped now and then so that
    guidance works (Ho and Salimans, 2022, arXiv:2207.12598, algorithm 1). The task's process and prediction say
    which model it is: EDM, DDPM's eps, v, or flow matching. This is how every teacher here is trained.
    """

    name: ClassVar[str] = "diffusion"
    uses_teacher: ClassVar[bool] = False
    role: ClassVar[str] = "a model of the same size trained on the data"

    drop: float = 0.1
    """Share of samples whose condition is not shown, in [0, 1)."""

    def check(self) -> None:
        """See the ranges of the fields."""
        super().check()
        require("--method.drop", self.drop, 0, 1, ends="[)")

    def bind(self, task: Task, seed: int) -> None:
        """Build the denoiser: with fresh weights, of the teacher's architecture unless a student's is named."""
        assert isinstance(task, Generation)
        folder = weighty(task.teacher)  # whose weights are not wanted here
        own = task.teacher if folder is None else f"config:{folder}"
        fresh = task if task.student else task.but(student=own)
        super().bind(fresh, seed)
        self.sampling = task.sampler(self.student)

    def updates(self, batch: Batch) -> Updates:
        """One step of denoising."""
        noise = batch.noise
        t = training_times(self.student, noise.uniform())
        condition = self.student.drop(batch.y, noise.uniform(), self.drop)
        errors = denoising_loss(self.student, batch.x, t, noise.normal(*batch.x.shape[1:]), condition)
        yield Update("student", errors.mean(), items=len(batch))

    def product(self) -> Sampler:
        """The denoiser, sampled as the task says."""
        return self.sampling

    def baseline(self, task: Task) -> Method | None:
        """None: this is what others are compared with."""
        return None


def training_of_teacher(task: Generation) -> TeacherJob:
    """How the teacher of `task` is trained: `Diffusion`, with the options that the task has for it."""
    # Not a copy of the task: whatever a task of its own scores a student by, the teacher is the same.
    plain = Generation(**{f.name: getattr(task, f.name) for f in fields(Generation)})
    plain = plain.but(student=task.teacher, teacher="none", vary_teacher=True, teacher_seed=0, guidance=1.0)
    plain = plain.but(solver="heun", steps=18, spacing="karras", features="pixels", score_samples=2000)
    plain.given = {key: value for key, value in task.given.items() if key == "data"}
    recipe = Recipe("adam", lr=task.teacher_lr, weight_decay=0.0, schedule="cosine", warmup=0.02, ema=0.998)
    steps, size = task.teacher_steps, task.teacher_batch_size
    engine = Engine(steps=steps, batch_size=size, recipe=recipe, evaluate_every=0)
    key = {"data": task.samples.fingerprint}
    return TeacherJob(Diffusion(drop=task.drop_condition), plain, engine, task.teacher_seed, key)


@dataclass(eq=False)
class FewSteps(Method):
    """The teacher itself in few steps: DDIM (Song et al., 2021, arXiv:2010.02502, eq. 12) or another solver."""

    name: ClassVar[str] = "few-steps"
    uses_engine: ClassVar[bool] = False
    role: ClassVar[str] = "the teacher asked as often"

    steps: int = 1
    """Steps from noise to data, >= 1."""
    solver: Solver = "ddim"
    """Solver; Heun's rule asks twice a step."""
    guidance: float | None = None
    """Guidance scale w, whatever is asked of it later; None: the task's."""

    def check(self) -> None:
        """See the ranges of the fields."""
        super().check()
        require("--method.steps", self.steps, 1)

    def run(self, task: Task, fit: Fit) -> Result:
        """Take the teacher, and change how it is sampled."""
        assert isinstance(task, Generation)
        sampler = task.make_teacher().module
        assert isinstance(sampler, Sampler)
        guidance = task.guidance if self.guidance is None else self.guidance
        made = copy.deepcopy(sampler).but(steps=self.steps, solver=self.solver, guidance=guidance)
        return Result(made if self.guidance is None else FixedGuidance(made.denoiser, made.plan), 0.0)

    def baseline(self, task: Task) -> Method | None:
        """None: this is what others are compared with."""
        return None

    @classmethod
    def default_task(cls) -> Generation:
        """The 8x8 digits by class."""
        return Generation()

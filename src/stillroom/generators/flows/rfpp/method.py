"""The method: pairs from the teacher, one round of reflow from the teacher's own weights, and what may follow it."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

from torch import Tensor

from stillroom.claim import Claim
from stillroom.data import Source
from stillroom.engine import Engine
from stillroom.errors import UserError, require
from stillroom.generators.flows.rfpp.features import FeatureKind, feature_metric
from stillroom.generators.flows.rfpp.flow import (
    Law,
    as_flow,
    field_sampler,
    pseudo_huber,
    squared_error,
    start_of,
    training_times,
)
from stillroom.generators.flows.rfpp.measured import Measured, drawn, measured, numbers
from stillroom.generators.flows.rfpp.pairs import HELD_OUT, inverted_pairs, sampled_pairs
from stillroom.generators.generation import Generation
from stillroom.generators.parts.base import GeneratorMethod, generator_engine
from stillroom.generators.parts.building import fresh_copy
from stillroom.generators.parts.denoiser import Denoiser
from stillroom.generators.parts.sampler import Sampler
from stillroom.method import Batch, Fit, Method, Result, Update, Updates
from stillroom.task import Task


@dataclass(eq=False)
class RectifiedFlowPlusPlus(GeneratorMethod):
    """One reflow of a diffusion teacher (Lee et al., 2024, arXiv:2405.20320, sections 3 and 4).

    min E (1 - t) H(u, eps - x_0) + (1 / t) LPIPS(x_t - t u, x_0) over stored pairs, x_t = (1 - t) x_0 + t eps, at
    times of a U-shaped density, from the teacher's weights behind D(x / (1 - t), t / (1 - t)). The fields make the
    paper's configurations A to G (table 1; see `configuration`): without a perceptual metric the loss is
    H(u, eps - x_0), or the squared error, alone.
    """

    name: ClassVar[str] = "rfpp"

    pairs: int = 20_000
    """Pairs of noise and sample that the teacher makes, >= 2 (published: 1 M for CIFAR-10, 5 M for ImageNet-64)."""
    times: Law = "u-shaped"
    """Law of the times: u-shaped for reflows; uniform; logit-normal, which suits first flows."""
    a: float = 4.0
    """How U-shaped the law is, in (0, 40]; near 0 it is uniform."""
    loss: Literal["huber", "squared"] = "huber"
    """Distance of the velocities: pseudo-Huber norm of the whole sample, or mean squared error."""
    huber: float = 0.00054
    """The Huber norm's constant c, as a multiple of the number of dimensions, > 0."""
    features: FeatureKind = "auto"
    """Perceptual metric: a classifier trained here, lpips, or none; auto: the classifier for labelled images."""
    feature_weight: float = 1.0
    """Weight of the perceptual metric, >= 0 (published: 1, of LPIPS)."""
    divide: bool = True
    """Weigh the perceptual metric by 1/t (configuration F; without: E)."""
    from_teacher: bool = True
    """Start from the teacher's weights; without, from random ones (configuration A)."""
    rounds: int = 1
    """Reflows, >= 1: each round's flow makes the next one's pairs; the updates are shared out evenly."""
    real_share: float = 0.0
    """Share of the updates, at the end, on real samples inverted by the first flow, in [0, 1) (configuration G)."""
    inversion_steps: int = 128
    """Evaluations of that inversion, >= 1."""
    steps: int = 1
    """Steps that the student samples with, >= 1."""
    solver: Literal["anchored", "euler", "heun", "anchored-heun"] = "anchored"
    """How it samples: anew from its noise in each step (the new rule), or along the flow; with Heun's correction."""

    def __post_init__(self) -> None:
        self._start: Denoiser | None = None
        self._source: Source | None = None
        self._measured: Measured | None = None

    def check(self) -> None:
        """See the ranges of the fields."""
        super().check()
        require("--method.pairs", self.pairs, 2)
        require("--method.a", self.a, 0, 40, ends="(]")
        require("--method.huber", self.huber, 0, ends="(]")
        require("--method.real-share", self.real_share, 0, 1, ends="[)")
        require("--method.feature-weight", self.feature_weight, 0)
        for name in ("rounds", "inversion_steps", "steps"):
            require(f"--method.{name.replace('_', '-')}", getattr(self, name), 1)

    # -- one round --------------------------------------------------------------------------------------------------

    def bind(self, task: Task, seed: int) -> None:
        """Take the teacher's network as a flow, or an earlier stage's; make the perceptual metric."""
        assert isinstance(task, Generation)
        if self._start is None:
            super().bind(task, seed)
            self.student = as_flow(self.student if self.from_teacher else fresh_copy(self.student, seed))
        else:
            self.student = self._start.copy()
        self.end = start_of(self.student)
        self.metric = feature_metric(self.features, task, seed)
        self.sampler = field_sampler(self.student, self.steps, self.solver)

    def source(self, task: Task) -> Source:
        """Pairs of noise and sample, x [n, 2, ...]: the teacher's, or what an earlier stage left."""
        assert isinstance(task, Generation)
        return self._source or sampled_pairs(task, _teacher(task), self.pairs)

    def updates(self, batch: Batch) -> Updates:
        """One step on a batch of pairs."""
        eps, x0 = batch.x.unbind(1)
        t = training_times(batch.noise.uniform(), self.times, self.a, self.end)
        condition = batch.y if self.student.conditional else None
        at = self.student.estimate(self.student.process.add_noise(x0, t, eps), t, condition)
        loss = velocity = self._distance(at.velocity, eps - x0)
        logs = {"loss/velocity": velocity.mean()}
        if self.metric is not None:
            features = self.metric(at.x0, x0)
            loss = (1 - t) * velocity + self.feature_weight * (features / t if self.divide else features)
            logs["loss/features"] = features.mean()
        yield Update("student", loss.mean(), items=len(batch), logs=logs)

    def _distance(self, said: Tensor, wanted: Tensor) -> Tensor:
        return pseudo_huber(said, wanted, self.huber) if self.loss == "huber" else squared_error(said, wanted)

    def product(self) -> Sampler:
        """The flow, sampled in `steps` steps and without guidance: the pairs have the teacher's in them."""
        return self.sampler

    # -- all rounds -------------------------------------------------------------------------------------------------

    def run(self, task: Task, fit: Fit) -> Result:
        """Reflow once or more, fine-tune on real data where asked to, and measure the flow before and after."""
        assert isinstance(task, Generation)
        counts = self._counts(fit.engine)
        maker = last = _teacher(task)
        first = field_sampler(as_flow(maker.denoiser), guidance=task.guidance)
        start, result, steps, making, kept = None, Result(None, 0.0), 0, 0.0, 0
        for name, count in counts.items():
            began = time.perf_counter()
            stage = replace(self)
            if name == "real":
                source = inverted_pairs(task, first, self.inversion_steps)
            else:
                source = sampled_pairs(task, maker, self.pairs)
            making, kept = making + time.perf_counter() - began, kept + source.store.bytes
            stage._start, stage._source = start, source
            result = fit(stage) if len(counts) == 1 else fit(stage, name, steps=count)
            steps += result.steps
            start = result.product.denoiser
            if name != "real":
                last, maker = maker, field_sampler(start, task.steps, "heun")
        held = sampled_pairs(task, last, max(2, min(500, self.pairs // 8)), HELD_OUT)
        self._measured = measured(task, first, field_sampler(result.product.denoiser), held)
        extra = numbers(self._measured) | {"seconds for pairs": making, "bytes of pairs": float(kept)}
        return Result(result.product, fit.seconds, steps, extra)

    def _counts(self, engine: Engine) -> dict[str, int]:
        """The updates of every stage, by its name; they sum to the Engine's."""
        total = engine.steps or engine.epochs * -(-self.pairs // engine.batch_size)
        real = max(1, round(self.real_share * total)) if self.real_share else 0
        reflows = total - real
        if reflows < self.rounds:
            raise UserError(
                f"{self.rounds} reflows and {real} updates on real samples do not fit into {total} updates: pass more "
                "--engine.steps"
            )
        each = [reflows // self.rounds + (k < reflows % self.rounds) for k in range(self.rounds)]
        names = ["reflow", *(f"reflow-{k + 1}" for k in range(1, self.rounds))]
        return dict(zip(names, each, strict=True)) | ({"real": real} if real else {})

    def figures(self) -> list[dict[str, str]]:
        """Loss by time, distance to the chord by time, and error of inversion: the teacher's flow and the student's."""
        return drawn(self._measured) if self._measured is not None else []

    # -- around -----------------------------------------------------------------------------------------------------

    def baseline(self, task: Task) -> Method | None:
        """The teacher in as many steps."""
        from stillroom.generators.undistilled import FewSteps

        return FewSteps(steps=self.steps)

    def quick(self) -> Self:
        """See the base; a few pairs."""
        return replace(self, pairs=min(self.pairs, 64), inversion_steps=min(self.inversion_steps, 4))

    @classmethod
    def default_engine(cls) -> Engine:
        """2,000 updates of Adam at a constant rate after a warm-up."""
        return generator_engine(2000, 256, lr=1e-3, warmup=0.04, schedule="constant", ema=0.998)

    @classmethod
    def claims(cls) -> tuple[Claim, ...]:
        """See claims.py."""
        from stillroom.generators.flows.rfpp.claims import claims

        return claims(cls.default_engine())


def _teacher(task: Generation) -> Sampler:
    module = task.make_teacher().module
    assert isinstance(module, Sampler)
    return module


CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "A": {"times": "uniform", "loss": "squared", "features": "none", "from_teacher": False},
    "B": {"times": "uniform", "loss": "squared", "features": "none"},
    "C": {"loss": "squared", "features": "none"},
    "D": {"features": "none"},
    "E": {"divide": False},
    "F": {},
    "G": {"real_share": 0.1},
}
"""The paper's configurations (table 1), in what they differ from the default, F."""


def configuration(letter: str, **changes: Any) -> RectifiedFlowPlusPlus:
    """The method as configured in the paper's table 1: A, the original recipe, to G; with further changes."""
    return RectifiedFlowPlusPlus(**(CONFIGURATIONS[letter] | changes))

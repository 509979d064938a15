"""Guided distillation as a method: its options, the order of its stages, its claim."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch

from stillroom.claim import Claim, Rule
from stillroom.engine import Engine
from stillroom.errors import UserError, require
from stillroom.generators.generation import Generation
from stillroom.generators.parts.base import GeneratorMethod, generator_engine
from stillroom.generators.parts.building import check_guided
from stillroom.generators.parts.guidance import check_range
from stillroom.generators.parts.sampler import FixedGuidance, Plan, Sampler
from stillroom.generators.sweep import GuidanceSweep
from stillroom.generators.trajectories.guided_distillation.editing import encode
from stillroom.generators.trajectories.guided_distillation.stages import (
    Direction,
    Halving,
    Sampling,
    StageOne,
    budget,
    halvings,
    largest_time,
    working,
)
from stillroom.generators.undistilled import FewSteps
from stillroom.method import Fit, Method, Result
from stillroom.plan import Plan as Steps
from stillroom.reports import generation_figures
from stillroom.runtime import Runtime
from stillroom.task import Task


@dataclass(eq=False)
class GuidedDistillation(GeneratorMethod):
    """Distillation of guided diffusion models (Meng et al., CVPR 2023, arXiv:2210.03142, sections 3.1 and 3.2).

    Stage one teaches one network what guidance composes of two passes, w an input; stage two halves its steps from
    `start_steps` to `end_steps`. The steps of the engine are those of all stages together.
    """

    name: ClassVar[str] = "guided-distillation"

    guidance_low: float = 1.0
    """Least guidance scale w that the student is trained at, >= 1; 1 is no guidance."""
    guidance_high: float = 4.0
    """Largest guidance scale w, > guidance_low (published: 5 for pixels, 14 for LAION's latents)."""
    start_steps: int = 64
    """Steps of the sampler that is halved first, end_steps times 2, 4, 8, ... (published: 1024, latents 512)."""
    end_steps: int = 4
    """Steps of the last student, >= 1."""
    sampling: Sampling = "deterministic"
    """DDIM, or jumps of two steps each followed by noise up one step."""
    direction: Direction = "decode"
    """decode: noise to data; encode: a student of the way up, for style transfer, whose own samples mean little."""
    stage_one: bool = True
    """Teach guidance first; without it the conditional network's steps are halved and w is ignored (an ablation)."""
    stage_one_share: float = 0.3
    """Share of all updates that stage one takes, in (0, 1); of the rest, rounds to 4 steps or fewer take double."""
    halving_rate: float = 0.3
    """Learning rate of each halving, which falls linearly to 0, as a multiple of the engine's, > 0."""

    def check(self) -> None:
        """See the ranges of the fields."""
        super().check()
        check_range(self.guidance_low, self.guidance_high)
        require("--method.end-steps", self.end_steps, 1)
        if not self.rounds:
            raise UserError(
                f"--method.start-steps is {self.start_steps} and end-steps {self.end_steps}: pass start-steps that are "
                f"end-steps times 2, 4, 8, ..., as {16 * self.end_steps}"
            )
        require("--method.stage-one-share", self.stage_one_share, 0, 1, ends="()")
        require("--method.halving-rate", self.halving_rate, 0, ends="(]")
        if self.direction == "encode" and self.sampling == "stochastic":
            raise UserError(
                "--method.direction encode goes a deterministic way: pass --method.sampling deterministic"
            )

    @property
    def rounds(self) -> list[int]:
        """Numbers of steps after each halving."""
        return halvings(self.start_steps, self.end_steps)

    def bind(self, task: Task, seed: int) -> None:
        """A trial of what the first stage needs, before anything is trained; stages bind themselves."""
        assert isinstance(task, Generation)
        check_guided(task.make_teacher().module.denoiser)  # type: ignore[arg-type]
        if self.stage_one:
            self._guidance().bind(task, seed)
        elif task.student or "student" in task.given:
            raise UserError(
                "--method.no-stage-one starts from the teacher's own network: drop --task.student"
            )

    # -- the stages ---------------------------------------------------------------------------------------------------

    def run(self, task: Task, fit: Fit) -> Result:
        """Stage one, then a halving after the other, each from the averaged weights of the one before."""
        assert isinstance(task, Generation)
        self.seen: list[tuple[int, float]] = []
        engine = fit.engine
        data = Steps(len(task.train()), engine.batch_size, engine.epochs, fit.seed, engine.steps)
        first, *rest = budget(data.steps, self.stage_one_share if self.stage_one else 0.0, self.rounds)
        model = (
            fit(self._guidance(), "guidance", steps=first).product if self.stage_one else self._plain(task)
        )
        self._look(task, self.start_steps, model)
        recipe = replace(engine.recipe, lr=engine.recipe.lr * self.halving_rate, schedule="linear")
        for steps, updates in zip(self.rounds, rest, strict=True):
            stage = Halving(
                model, steps, self.guidance_low, self.guidance_high, self.sampling, self.direction
            )
            model = fit(stage, f"{steps}-steps", steps=updates, recipe=recipe).product
            self._look(task, steps, model)
        told = "round trip" if self.direction == "encode" else task.metric.replace("_", " ")
        extra = {f"{told}, {steps} steps, validation": value for steps, value in self.seen}
        return Result(model, fit.seconds, first + sum(rest), extra)

    def _guidance(self) -> StageOne:
        return StageOne(self.guidance_low, self.guidance_high, self.start_steps)

    def _plain(self, task: Generation) -> Sampler:
        """The conditional teacher, which takes no w, in the steps that are halved first."""
        denoiser = working(task.make_teacher().module.denoiser.copy())  # type: ignore[operator]
        start = largest_time(denoiser.process, denoiser)
        return FixedGuidance(denoiser, Plan("ddim", self.start_steps, start=start))

    def _look(self, task: Generation, steps: int, model: Sampler) -> None:
        """Keep what the page shows of one stage: its score, or for encoding the error there and back."""
        runtime = Runtime()
        model.denoiser.to(runtime.device)
        if self.direction == "encode":
            value = self._round_trip(task, model, runtime)
        else:
            value = task.score(model, "validation", runtime)[task.metric]
        self.seen.append((steps, value))

    def _round_trip(self, task: Generation, model: Sampler, runtime: Runtime) -> float:
        """Mean squared error of up to 200 samples, encoded at w = 1 and decoded by the teacher in many steps."""
        source = task.space.validation
        x, condition = source.fetch(torch.arange(min(200, len(source))), view=None)
        x = x.to(runtime.device)
        condition = condition.to(runtime.device) if condition is not None and task.classes else None
        teacher = task.make_teacher().to(runtime.device).module
        assert isinstance(teacher, Sampler)
        decoder = teacher.but(solver="ddim", steps=4 * self.start_steps, guidance=1.0)
        with torch.no_grad():
            back = decoder(encode(model.at(1.0), x, condition), condition)
        return (back - x).square().mean().item()

    # -- what is shown and compared ---------------------------------------------------------------------------------

    def figures(self) -> list[dict[str, str]]:
        """The validation score after each stage, against the number of steps."""
        if not getattr(self, "seen", None):
            return []
        steps, values = zip(*self.seen, strict=True)
        told = "mean squared error there and back" if self.direction == "encode" else "validation score"
        svg = generation_figures.lines(
            [("student", steps, values)], "steps", told, "after each stage", log_x=True
        )
        note = "The first point is stage one, each further one a halving; lower is better."
        return [
            {
                "title": "Halvings",
                "caption": f"{told.capitalize()} of each stage's student. {note}",
                "svg": svg,
            }
        ]

    def baseline(self, task: Task) -> Method:
        """The guided teacher in as many evaluations: half the steps, two passes each."""
        return FewSteps(steps=max(1, self.end_steps // 2))

    def quick(self) -> Self:
        """See the base; two halvings."""
        return replace(self, start_steps=8, end_steps=2)

    @classmethod
    def default_task(cls) -> GuidanceSweep:
        """The 8x8 digits by class at w = 1 to 4, a v-predicting teacher on the cosine process."""
        made = GuidanceSweep(process="cosine", solver="ddim", spacing="uniform", steps=64, guidance=2.0)
        return made.but(sweep_samples=500)

    @classmethod
    def default_engine(cls) -> Engine:
        """3,000 updates of Adam over all stages."""
        return generator_engine(3000, 128, lr=1e-3)

    @classmethod
    def claims(cls) -> tuple[Claim, ...]:
        """One student in 4 evaluations against the guided teacher in 8 and in 4, and against no stage one."""
        few, equal = "teacher, 4 steps (8 evaluations)", "teacher, 2 steps (4 evaluations)"
        plain = "without stage one"
        arms: dict[str, Method] = {
            "guided distillation": cls(),
            few: FewSteps(steps=4),
            equal: FewSteps(steps=2),
            plain: cls(stage_one=False),
        }
        own = "guided distillation"
        return (
            Claim(
                name="guided-distillation-digits",
                says="One student that is told the guidance scale samples in 4 evaluations nearer to the guided "
                "teacher than that teacher's own DDIM in 4 evaluations and in 8, at every scale (ImageNet 64x64: 4 "
                "steps comparable to the teacher's hundreds).",
                task=cls.default_task(),
                engine=cls.default_engine(),
                arms=arms,
                rules=[Rule(own, equal), Rule(own, few), Rule(own, plain, headline=False)],
                seeds=5,
                notes="8x8 digits by class, a teacher for each seed; scored by the mean over w = 2, 3, 4 of the "
                "Frechet distance, in a classifier's features, to what the teacher makes of the same noise in 256 "
                "steps.",
            ),
        )

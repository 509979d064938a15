"""The task by which the arms are told apart, and the claims."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from stillroom.claim import Claim, Rule
from stillroom.engine import Engine
from stillroom.generators.flows.rfpp.flow import as_flow, field_sampler
from stillroom.generators.flows.rfpp.measured import SAMPLES, mean_straightness
from stillroom.generators.generation import Generation
from stillroom.generators.parts import scoring
from stillroom.generators.parts.sampler import Sampler
from stillroom.method import Method
from stillroom.runtime import Runtime

FOUR = (("four steps, Euler", "ddim", 4), ("four steps, new rule", "anchored", 4))
"""More steps, in which the rules differ."""


@dataclass(eq=False)
class FewEvaluations(Generation):
    """Generation, scored as the product samples; beside it in two evaluations, and by how straight its flow is."""

    def score(self, product: nn.Module, split: str, runtime: Runtime) -> dict[str, Any]:
        """See the base; on 'test' also the distances in more steps by Euler's and by the new rule, and S(u).

        In two steps both rules are one: from t = 1 Euler's first step is itself a mixture with the starting noise.
        """
        found = super().score(product, split, runtime)
        if split != "test" or not isinstance(product, Sampler):
            return found
        noise, truth, condition = self.draw(self.score_samples, split, runtime.device)
        judge = self.judge if self.samples.images else None
        for name, solver, steps in (("two steps", "ddim", 2), *FOUR):
            made = self.generate(product.but(solver=solver, steps=steps), noise, condition, runtime)
            found[f"{self.metric} in {name}"] = scoring.distance(judge, made, truth)
        flow = field_sampler(as_flow(product.denoiser), guidance=product.plan.guidance)
        some = None if condition is None else condition[:SAMPLES]
        return found | {"straightness": mean_straightness(flow, noise[:SAMPLES], some)}


def claims(engine: Engine) -> tuple[Claim, ...]:
    """The configurations against each other on images and on points, at equal updates from equal weights."""
    return _digits(engine), _checkerboard(engine)


def _digits(engine: Engine) -> Claim:
    return Claim(
        name="rfpp-digits",
        says="A U-shaped law of times, and then a Huber norm with a perceptual metric, make one reflow better at one "
        "step than uniform times and squared error do from the same weights (CIFAR-10, one step: FID 7.14 uniform, "
        "5.17 U-shaped, 3.38 with both; 12.21 from random weights).",
        task=FewEvaluations(),
        engine=engine,
        arms=_arms("F", "Huber, features"),
        rules=_rules("F: U-shaped, Huber, features"),
        seeds=5,
        notes="8x8 digits by class, a teacher for each seed, 35 evaluations a pair, equal updates; the perceptual "
        "metric is of a classifier that shares nothing with the one that scores. " + _REFUTED,
    )


def _checkerboard(engine: Engine) -> Claim:
    return Claim(
        name="rfpp-checkerboard",
        says="On points, where there is no perceptual metric, a U-shaped law of times and a Huber norm make one reflow "
        "better at one step than uniform times and squared error do from the same weights.",
        task=FewEvaluations(data="checkerboard", conditional=False, teacher="mlp:128x3"),
        engine=engine,
        arms=_arms("D", "Huber"),
        rules=_rules("D: U-shaped, Huber"),
        seeds=5,
        notes="Points of the plane, scored by sliced Wasserstein distance, a teacher for each seed, 35 evaluations a "
        "pair, equal updates. " + _REFUTED,
    )


_REFUTED = (
    "Refuted if an interval of C against B, or of the whole recipe against B or A, lies on the other side. Beside it: "
    "C against L says whether the law of first flows is the wrong one here; an interval of C or B against its 3-flow "
    "that favours the 3-flow speaks against one round being enough. A 3-flow shares the updates between its rounds."
)


def _arms(best: str, what: str) -> dict[str, Method]:
    from stillroom.generators.flows.rfpp.method import configuration

    return {
        "A: uniform, random weights": configuration("A"),
        "B: uniform": configuration("B"),
        "L: logit-normal": configuration("B", times="logit-normal"),
        "C: U-shaped": configuration("C"),
        f"{best}: U-shaped, {what}": configuration(best),
        "B, 3-flow": configuration("B", rounds=2),
        "C, 3-flow": configuration("C", rounds=2),
    }


def _rules(best: str) -> list[Rule]:
    uniform, shaped = "B: uniform", "C: U-shaped"
    headline = [Rule(shaped, uniform), Rule(best, uniform), Rule(best, "A: uniform, random weights")]
    beside = [
        (best, shaped),
        (shaped, "L: logit-normal"),
        (uniform, "A: uniform, random weights"),
        (shaped, "C, 3-flow"),
        (uniform, "B, 3-flow"),
    ]
    return headline + [Rule(a, b, headline=False) for a, b in beside]

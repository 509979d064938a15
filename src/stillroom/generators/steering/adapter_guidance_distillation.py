"""AGD: classifier-free guidance in one pass, by small adapters on a frozen model.

What for. A guided sampler asks its network twice a step. AGD leaves the network as it is and trains adapters of a few
per cent of its size that read the guidance scale: a conditional diffusion model and its own samples in, a file of
adapters out, with which one pass a step imitates every scale of a range and without which the model is untouched.

The idea. Adapters are asked where guided samplers are: the model's own guided trajectories are recorded once, input
and guided output at every step, and the adapted network learns the recorded output by plain mean squared error.
Guidance distillation on noised data never sees the states that a large guidance scale leads to.

Source. Perez Jensen and Sadat, "Efficient Distillation of Classifier-Free Guidance using Adapters", TMLR 2025,
arXiv:2503.07274 (section 4), and the authors' code, cristianpjensen/agd, whose names of losses are kept in the help.

Deviations. Adapters are cross-attention on every network; the authors' script for DiT has offsets, the same for all
tokens, which learnt half as well in our trials on a small DiT (an option, and an arm). Trajectories have 50
DDIM steps where the authors take 999 or 1000, DDPM's for DiT: both are options. The multiplier of the scale is 1 for
every adapter (the authors' script for DiT has 1000, which leaves nothing to interpolate between scales). Adapters sit
on every cross-attention of a U-Net; the authors' loop leaves out the last one of each upward block. Their flag
zero_init is turned round in the cross-attention adapter; here the last layer is always zero. The variance that some
DiTs learn beside the mean is not sampled with here and not learnt; theirs is learnt in the conditional half. The
learning rate rises from one step's share of it and falls to 0, where theirs goes from and to 1e-4 of it. Hidden width
and learning rate are for small networks; the fields name the published ones. UNet2DModel has no cross-attention: its
self-attention is adapted. The teacher of the default problem says v: one of this size that says eps left the range
of the data on the cosine process (one seed; the cause was not tested).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stillroom.claim import Claim, Rule
from stillroom.engine import Engine
from stillroom.errors import UserError, require
from stillroom.generators.generation import Generation
from stillroom.generators.parts.base import GeneratorMethod, generator_engine
from stillroom.generators.parts.building import check_guided
from stillroom.generators.parts.denoiser import Denoiser, denoiser_from
from stillroom.generators.parts.guidance import GuidanceRegression, check_range
from stillroom.generators.parts.guided_points import GuidedPoints
from stillroom.generators.parts.process import Process
from stillroom.generators.parts.sampler import Sampler
from stillroom.generators.parts.solvers import ddim_step
from stillroom.generators.parts.store import StoreSource
from stillroom.generators.sweep import GuidanceSweep
from stillroom.generators.undistilled import FewSteps
from stillroom.method import Batch, Fit, Method, Result, Update, Updates
from stillroom.models.denoisers.adapters import AdaptedNetwork, Architecture
from stillroom.models.denoisers.adapting import adapt, save_adapters
from stillroom.models.files import read_weights
from stillroom.models.probing import blank, quietly
from stillroom.reports import generation_figures as figures
from stillroom.runtime import Runtime
from stillroom.task import Task

Loss = Literal["mse", "l1", "sigma", "cosine"]
LOSSES = ("mse", "l1", "sigma", "cosine")


def regression(said: Tensor, wanted: Tensor, loss: Loss, weight: Tensor | None = None) -> Tensor:
    """The error of what the student says [n, ...], [n]: the mean over a sample's numbers, times `weight` [n].

    Squared, or absolute for 'l1'. 'mse' (section 4, the authors' l2) and 'l1' take no weight.
    """
    error = (said - wanted).abs() if loss == "l1" else (said - wanted).square()
    error = error.flatten(1).mean(1)
    return error if weight is None else weight * error


def noise_share(process: Process, t: Tensor) -> Tensor:
    """sigma / sqrt(alpha^2 + sigma^2), in [0, 1]: the weight of 'sigma' (the authors' noise), sqrt(1 - alpha-bar)."""
    alpha, sigma = process.alpha(t), process.sigma(t)
    return sigma / (alpha.square() + sigma.square()).sqrt()


def turn(conditional: Tensor, guided: Tensor) -> Tensor:
    """|1 - cos(F(c), F^w)| / 2 in [0, 1], [n]: the weight of 'cosine' (the authors' cos), how far guidance turns."""
    return 0.5 * (1 - F.cosine_similarity(conditional.flatten(1), guided.flatten(1), dim=-1)).abs()


@dataclass(eq=False)
class AdapterGuidanceDistillation(GeneratorMethod):
    """Adapters learn guidance on guided trajectories (Perez Jensen and Sadat, 2025, arXiv:2503.07274, section 4).

    min mean || F(x_t, t, c, w) - F^w(x_t, t, c) ||^2 over the steps of recorded trajectories of the guided model, in
    the network's own letter F, without a weight over t. Only adapters are trained; they start as the conditional model.
    """

    name: ClassVar[str] = "adapter-guidance-distillation"

    guidance_low: float = 1.0
    """Least guidance scale w, >= 1."""
    guidance_high: float = 6.0
    """Largest guidance scale w, > guidance_low (published: 6 for DiT, 12 for Stable Diffusion)."""
    trajectories: int = 400
    """Guided trajectories that are recorded, classes in turn, >= 1 (published: 1,000 for DiT)."""
    trajectory_steps: int = 50
    """Steps of each, all of them recorded, >= 1 (published: 999 or 1,000)."""
    trajectory_solver: Literal["ddim", "ddpm"] = "ddim"
    """How they are sampled: DDIM, or DDPM's ancestral steps (published, for DiT)."""
    inputs: Literal["trajectories", "noised"] = "trajectories"
    """What is learnt on: guided trajectories, or as many points of noised training data (the paper's ablation)."""
    architecture: Architecture = "cross_attention"
    """One vector a block for all tokens (published, for DiT), or tokens' cross-attention to scale, time, condition."""
    hidden: int = 12
    """Hidden width of an adapter, >= 1 (published: 256 for DiT, 320 for Stable Diffusion)."""
    scale_multiplier: float = 1.0
    """What w is multiplied by before it is encoded, > 0 (published: 1,000 for offsets, else 1)."""
    loss: Loss = "mse"
    """Squared or absolute error, or squared with weight sigma_t or half of 1 - cos(conditional, guided)."""
    conditions: str = ""
    """Safetensors file of `conditions` [n, ...], the prompts' embeddings, where the teacher has no classes."""
    blocks: tuple[str, ...] = ()
    """Module paths of the adapted blocks, * for any name in a path, ** for several; empty: attention."""

    def check(self) -> None:
        """See the ranges of the fields."""
        super().check()
        check_range(self.guidance_low, self.guidance_high)
        for name in ("trajectories", "trajectory_steps", "hidden"):
            require(f"--method.{name.replace('_', '-')}", getattr(self, name), 1)
        require("--method.scale-multiplier", self.scale_multiplier, 0, ends="(]")
        choices = {
            "loss": LOSSES,
            "trajectory_solver": ("ddim", "ddpm"),
            "inputs": ("trajectories", "noised"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                flag = f"--method.{name.replace('_', '-')} '{getattr(self, name)}'"
                raise UserError(f"{flag} is unknown: pass one of {', '.join(known)}")

    def bind(self, task: Task, seed: int) -> None:
        """Put adapters on the teacher's own network, of which there is no second copy."""
        assert isinstance(task, Generation)
        if task.student or "student" in task.given:
            raise UserError("adapters sit on the teacher's own network: drop --task.student")
        self.teacher = task.make_teacher()
        self.reference = self.teacher.module  # type: ignore[assignment]
        denoiser = self.reference.denoiser
        check_guided(denoiser)
        if denoiser.takes_guidance:
            raise UserError(
                "the teacher takes the guidance scale as an input already: pass the one before that"
            )
        self._embeddings(denoiser)
        x = blank(denoiser.network, task.space.shape, 2)
        time = denoiser.time(torch.full((2,), denoiser.start / 2, device=x.device)).to(x.dtype)
        condition = denoiser.embedded(denoiser.no_condition(2, x.device))
        assert condition is not None
        self.network = adapt(
            denoiser.network,
            (x, time, condition),
            blocks=self.blocks,
            architecture=self.architecture,
            hidden=self.hidden,
            multiplier=self.scale_multiplier,
            scales=(self.guidance_low, self.guidance_high),
        )
        self.student = denoiser_from(
            self.network, denoiser.config() | {"takes_guidance": True}, denoiser.null, denoiser.table
        )
        self.sampling = task.sampler(self.student)

    def _embeddings(self, denoiser: Denoiser) -> Tensor | None:
        """The prompts' embeddings from the file, where the teacher has no classes."""
        if denoiser.null is None:
            return None
        if not self.conditions or self.inputs == "noised":
            way = (
                "--method.conditions FILE"
                if self.inputs == "trajectories"
                else "--method.inputs trajectories"
            )
            raise UserError(
                f"the teacher's conditions are embeddings, which the data do not hold: pass {way}"
            )
        found = read_weights(Path(self.conditions)).get("conditions")
        if found is None or found.shape[1:] != denoiser.null.shape:
            have = "no 'conditions'" if found is None else f"conditions of {tuple(found.shape[1:])}"
            raise UserError(
                f"--method.conditions '{self.conditions}' has {have}: write a tensor 'conditions' [n, "
                f"{', '.join(map(str, denoiser.null.shape))}]"
            )
        return found.to(denoiser.null.dtype)

    def players(self) -> dict[str, nn.Module]:
        """The adapters alone."""
        return {"student": self.network.adapters}

    def source(self, task: Task) -> StoreSource:
        """The recorded points, each as likely as any other."""
        assert isinstance(task, Generation)
        teacher = task.make_teacher().module
        assert isinstance(teacher, Sampler)
        made = GuidedPoints(
            teacher.but(steps=self.trajectory_steps),
            task.space.shape,
            self.trajectories,
            self.trajectory_solver,
            self.guidance_low,
            self.guidance_high,
            self._embeddings(teacher.denoiser),
            task.space.train if self.inputs == "noised" else None,
        )
        store = made.keep(self._told_apart(task, made.embeddings))
        self.bytes = store.bytes
        t = store.rows("t")
        share = noise_share(teacher.denoiser.process, t)
        self.told = torch.stack([store.rows("time"), store.rows("scale"), share.to(t.dtype)])
        return StoreSource(store, ("input", "output"), "condition", made.embeddings)

    def _told_apart(self, task: Generation, embeddings: Tensor | None) -> dict[str, Any]:
        """What else determines the points: the noised data, the file of conditions."""
        file = "" if embeddings is None else hashlib.sha256(Path(self.conditions).read_bytes()).hexdigest()
        return {"data": task.fingerprint() if self.inputs == "noised" else "", "conditions": file}

    def updates(self, batch: Batch) -> Updates:
        """One step towards what was recorded."""
        self.told = self.told.to(batch.index.device)
        time, scale, share = self.told.index_select(1, batch.index)
        x, wanted = batch.x.unbind(1)
        condition = self.student.embedded(batch.y)
        weight = share if self.loss == "sigma" else None
        if self.loss == "cosine":
            with torch.no_grad():
                weight = turn(self.network.base(x, time, condition, None), wanted)
        said = self.network(x, time, condition, scale)
        yield Update("student", regression(said, wanted, self.loss, weight).mean(), items=len(batch))

    def product(self) -> Sampler:
        """The adapted model, sampled as the task says, in one pass a step."""
        return self.sampling

    def run(self, task: Task, fit: Fit) -> Result:
        """See the base; says how large the adapters and what was recorded are."""
        result = fit(self)
        result.extra |= {"trainable share": self.network.share, "bytes recorded": float(self.bytes)}
        return result

    def baseline(self, task: Task) -> Method:
        """The conditional model without guidance, asked as often."""
        assert isinstance(task, Generation)
        return FewSteps(steps=task.steps, guidance=1.0)

    def quick(self) -> Self:
        """See the base."""
        return replace(self, trajectories=min(16, self.trajectories), trajectory_steps=4)

    @classmethod
    def default_task(cls) -> AdapterSweep:
        """The 8x8 digits by class, with a small DiT that says v; guided DDIM in 50 steps is what is imitated."""
        return AdapterSweep(
            teacher="dit:64x4@2",
            process="cosine",
            prediction="v",
            solver="ddim",
            steps=50,
            spacing="uniform",
            guidance=2.0,
            teacher_steps=1500,
            teacher_batch_size=64,
            scales=(1.0, 2.0, 4.0, 6.0),
            reference_steps=50,
            against="mse",
            sweep_samples=100,
        )

    @classmethod
    def default_engine(cls) -> Engine:
        """AdamW without weight decay, a tenth of the steps to warm up, no average (published: 5,000, 64, 1e-4)."""
        return generator_engine(1000, 64, optimizer="adamw", lr=3e-3, warmup=0.1, ema=0.0)

    @classmethod
    def claims(cls) -> tuple[Claim, ...]:
        """Adapters imitate guidance in one pass; they are better for having seen guided trajectories."""
        agd, noised = "agd", "agd on noised data"
        arms: dict[str, Method] = {
            agd: cls(),
            noised: cls(inputs="noised"),
            "agd, offsets": cls(architecture="offset"),
            "all weights on noised data": GuidanceRegression(guidance_high=6.0),
            "no guidance": FewSteps(steps=50, guidance=1.0),
        }
        seen = [Rule(agd, noised, metric=f"distance at {w}") for w in (4, 6)]
        ends = [Rule(agd, noised, False, metric=f"error {place}") for place in ("near data", "near noise")]
        return (
            Claim(
                name="adapter-guidance-distillation-digits",
                says="Adapters of a few per cent make of one pass a step what guidance makes of two, and imitate "
                "strong guidance better for having seen guided trajectories (1 to 5 % of the parameters, FID as "
                "good as guidance's or better at half the evaluations).",
                task=cls.default_task().but(sweep_samples=200),
                engine=cls.default_engine(),
                arms=arms,
                rules=[
                    Rule(agd, "no guidance"),
                    *seen,
                    *(Rule(agd, arm, headline=False) for arm in arms if arm not in (agd, "no guidance")),
                    *ends,
                ],
                seeds=5,
                notes="8x8 digits by class, a DiT of 0.4 million parameters for each seed, adapters of 5 % of them, "
                "one recipe for all arms; scored by squared error, at w 2, 4 and 6, to guided DDIM in 50 steps (100 "
                "evaluations) from the same noise, and on the trajectories by the Frechet distance to its samples at w "
                "4 and 6. Architecture and learning rate were chosen on the recorded points of seed 100.",
            ),
        )


@dataclass(eq=False)
class AdapterSweep(GuidanceSweep):
    """A sweep over guidance scales, with the errors along the teacher's guided trajectories; adapters go out alone."""

    along_samples: int = 25
    """Samples whose guided trajectories errors are measured along, >= 1."""

    def check(self, seed: int, teacher: bool) -> None:
        """See the base."""
        require("--task.along-samples", self.along_samples, 1)
        super().check(seed, teacher)

    @torch.no_grad()
    def along(self, product: Sampler, split: str, runtime: Runtime) -> tuple[list[float], list[float]]:
        """Times [steps], and the mean squared error there to the guided teacher, in its letter, on its own way.

        The mean over the scales that count. A student that never saw guided states errs towards t = 0.
        """
        noise, condition = self.noise(split, runtime.device)
        noise = noise[: self.along_samples]
        condition = None if condition is None else condition[: len(noise)]
        scales = [scale for scale in self.scales if scale >= self.judged_from]
        teacher = self._teacher()
        teacher.to(runtime.device)
        times, errors = teacher.times(), torch.zeros(teacher.plan.steps, device=runtime.device)
        with quietly(teacher), quietly(product):
            for scale in scales:
                guided, asked = teacher.at(scale), product.at(scale)
                x = guided.scaled(noise)
                for k, (t, s) in enumerate(pairwise(times)):
                    each = t.to(x).expand(len(x))
                    at = guided.ask(x, each, condition)
                    errors[k] += (asked.ask(x, each, condition).read(at.kind) - at.value).square().mean()
                    x = ddim_step(at, s)
        return times[:-1].tolist(), (errors / len(scales)).tolist()

    def score(self, product: Any, split: str, runtime: Runtime) -> dict[str, Any]:
        """See the base; on 'test' also the error along guided trajectories, of the fifths nearest noise and data."""
        found = super().score(product, split, runtime)
        if split != "test":
            return found
        _, errors = self.along(product, split, runtime)
        part = max(1, len(errors) // 5)
        ends = {"near noise": errors[:part], "near data": errors[-part:]}
        return found | {f"error {place}": sum(some) / part for place, some in ends.items()}

    def figures(self, products: Mapping[str, Any], runtime: Runtime) -> list[dict[str, str]]:
        """See the base; and the error of every arm along guided trajectories."""
        found = super().figures(products, runtime)
        curves = [
            (name, *self.along(one, "validation", runtime))
            for name, one in products.items()
            if isinstance(one, Sampler) and name != "teacher"
        ]
        if curves:
            svg = figures.lines(curves, "t", "squared error", "error along guided trajectories", log_y=True)
            caption = "Error to the guided teacher at the states of its own guided sampling; t = 0 is data."
            found.append({"title": "Guidance: along its trajectories", "caption": caption, "svg": svg})
        return found

    def export(self, product: nn.Module, folder: Path, about: Mapping[str, Any]) -> None:
        """See the base; adapters are also written alone, to `adapters`, without the model that they sit on."""
        super().export(product, folder, about)
        network = product.denoiser.network if isinstance(product, Sampler) else None
        if isinstance(network, AdaptedNetwork):
            save_adapters(folder / "adapters", network)

"""Distribution matching into one step, as one writes it by hand, and the same job as a task for the Engine.

All arms start from the same weights: a teacher whose layers are moved a little from their first values, so that
none of them is zero, and its copies. Samples and labels are random: what is measured is the step.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness import Stopwatch
from problem import Spectator
from stillroom.data import TensorSource
from stillroom.engine import Engine
from stillroom.generators.generation import Generation
from stillroom.generators.matching.f_distill import FDistill
from stillroom.generators.parts.denoiser import Denoiser
from stillroom.generators.parts.matching import Heads, default_taps
from stillroom.generators.parts.sampler import Plan as Sampling
from stillroom.generators.parts.sampler import Sampler
from stillroom.method import Noise
from stillroom.models.denoisers import build_denoiser_network
from stillroom.optim import Recipe
from stillroom.plan import NOISE, Plan
from stillroom.seeds import seed_of, seeded
from stillroom.taps import module_at
from stillroom.teacher import Teacher

DEVIATION, LARGEST = 0.5, 80.0
"""EDM's deviation of the data and largest noise level."""
RATE, FAST, BETAS, AVERAGE = 1e-4, 5.0, (0.0, 0.99), 0.995
"""f-distill's defaults: the student's rate, the others' as a multiple of it, Adam's decays, the moving average's."""

State = dict[str, list[Tensor]]
"""Weights at the end, by player; `average` is the student's moving average."""


@dataclass(frozen=True)
class Job:
    """A network, a batch, a method, and how many steps of it."""

    network: str
    shape: tuple[int, ...]
    batch: int
    steps: int
    classes: int = 10
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    """Hyper-parameters of f-distill that are not its defaults."""

    def method(self) -> FDistill:
        """The method of all arms."""
        return FDistill(**self.options)

    @property
    def plan(self) -> Plan:
        """The order of the samples."""
        return Plan(8 * self.batch, self.batch, 0, self.seed, self.steps)

    @cached_property
    def source(self) -> TensorSource:
        """Samples for eight steps."""
        generator = torch.Generator().manual_seed(0)
        x = DEVIATION * torch.randn(8 * self.batch, *self.shape, generator=generator)
        return TensorSource(x, torch.randint(self.classes, (len(x),), generator=generator))

    @cached_property
    def weights(self) -> nn.Module:
        """The teacher's network."""
        network = build_denoiser_network(self.network, shape=self.shape, classes=self.classes, seed=0)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
        return network

    def copy(self) -> nn.Module:
        """The network, with the teacher's weights, to train."""
        return copy.deepcopy(self.weights)

    def denoiser(self) -> Denoiser:
        """Stillroom's denoiser around a copy of the network."""
        return Denoiser(self.copy(), "edm", "edm", classes=self.classes, sigma_data=DEVIATION)

    def heads(self) -> Heads:
        """The discriminator's first weights, as the method draws them."""
        feature = Feature(network := self.copy())
        x, t = torch.zeros(2, *self.shape), torch.zeros(2)
        seen = feature.early(lambda: network(x, t, torch.zeros(2, dtype=torch.int64), None))
        with seeded(self.seed):
            return Heads([seen])

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Samples and labels of all steps."""
        plan, x, y = self.plan, self.source.x, self.source.labels
        for epoch in range(plan.clock(0).epochs):
            for ids in plan.order(epoch).split(self.batch):
                yield x.index_select(0, ids), y.index_select(0, ids)

    def seed_of(self, step: int, draw: int) -> int:
        """The seed of one of the Engine's draws at a step."""
        return seed_of(self.seed, NOISE, step, draw)

    def draws(self, step: int) -> Noise:
        """The numbers that the Engine draws at that step."""
        return Noise(lambda draw: self.seed_of(step, draw), slice(None), self.batch, torch.device("cpu"))


class Own:
    """Numbers from torch's global generator: what one writes where nothing has to be repeated."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers [batch, *shape]."""
        return torch.randn(self.batch, *shape)

    def uniform(self) -> Tensor:
        """Uniform numbers [batch]."""
        return torch.rand(self.batch)


class Enough(Exception):
    """The feature is there, and the rest of the pass is not wanted."""


class Feature:
    """The output of the middle of a network, with the rest of the pass or without."""

    def __init__(self, network: nn.Module) -> None:
        self.seen: Tensor | None = None
        self.stop = False
        module_at(network, default_taps(network)[0]).register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, args: object, output: Tensor) -> None:
        self.seen = output
        if self.stop:
            raise Enough

    def take(self) -> Tensor:
        """The feature of the last pass, which is not kept."""
        seen, self.seen = self.seen, None
        assert seen is not None
        return seen

    def early(self, go: Callable[[], object]) -> Tensor:
        """The feature alone, of the pass that `go` begins."""
        self.stop = True
        with suppress(Enough):
            go()
        self.stop = False
        return self.take()


def denoised(network: nn.Module, x: Tensor, sigma: Tensor, y: Tensor) -> Tensor:
    """EDM's preconditioning (Karras et al., 2022, arXiv:2206.00364, table 1)."""
    s = sigma.view(-1, *[1] * (x.ndim - 1))
    scale = (s.square() + DEVIATION**2).sqrt()
    raw = network(x / scale, sigma.log() / 4, y, None)
    return DEVIATION**2 / scale.square() * x + s * DEVIATION / scale * raw


class Bare:
    """Networks, optimizers and the two kinds of steps; nothing is logged, checked or saved."""

    def __init__(self, job: Job) -> None:
        self.job, self.method = job, job.method()
        self.teacher = job.copy().eval().requires_grad_(False)
        self.student, self.fake = job.copy(), job.copy()
        self.feature = Feature(self.teacher)
        self.heads = job.heads()
        self.average = [p.detach().clone() for p in self.student.parameters()]
        self.bins = torch.ones(self.method.bins)
        self.largest = torch.full((job.batch,), LARGEST)
        self.optimizers = [
            self.adam(m, r) for m, r in ((self.student, 1), (self.fake, FAST), (self.heads, FAST))
        ]

    def adam(self, module: nn.Module, fast: float) -> torch.optim.AdamW:
        """The optimizer of all arms."""
        return torch.optim.AdamW(module.parameters(), RATE * fast, BETAS, weight_decay=0.0, fused=True)

    def noised(self, x: Tensor, noise: Any) -> tuple[Tensor, Tensor]:
        """x at noise levels of Karras's law, and the levels."""
        low, high = self.method.time_low ** (1 / 7), self.method.time_high ** (1 / 7)
        t = (high + noise.uniform() * (low - high)) ** 7
        return x + t.view(-1, *[1] * (x.ndim - 1)) * noise.normal(*x.shape[1:]), t

    def made(self, y: Tensor, noise: Any) -> Tensor:
        """The student's samples, in one step."""
        return denoised(self.student, LARGEST * noise.normal(*self.job.shape), self.largest, y)

    def follow(self, x: Tensor, y: Tensor, noise: Any) -> None:
        """A step of the fake network, and one of the discriminator."""
        _, second, third = self.optimizers
        with torch.no_grad():
            made = self.made(y, noise)
        at, t = self.noised(made, noise)
        F.mse_loss(denoised(self.fake, at, t, y), made).backward()
        second.step()
        second.zero_grad()
        if not self.method.adversarial:
            return
        real, s = self.noised(x, noise)
        with torch.no_grad():
            own = self.feature.early(lambda: denoised(self.teacher, at, t, y))
            truth = self.feature.early(lambda: denoised(self.teacher, real, s, y))
        (F.softplus(-self.heads([truth])).mean() + F.softplus(self.heads([own])).mean()).backward()
        third.step()
        third.zero_grad()

    def lead(self, y: Tensor, noise: Any) -> None:
        """A step of the student."""
        first, method = self.optimizers[0], self.method
        made = self.made(y, noise)
        at, t = self.noised(made, noise)
        with torch.no_grad():
            fake = denoised(self.fake, at, t, y)
        with torch.set_grad_enabled(method.adversarial):
            real = denoised(self.teacher, at, t, y)
        seen = self.feature.take()
        logits = self.heads([seen]) if method.adversarial else None
        with torch.no_grad():
            weight = 1.0 if logits is None or method.divergence == "rkl" else self.weight(logits, t)
            scale = weight / ((made - real).abs().flatten(1).mean(1) + 1e-6)
            goal = made - scale.view(-1, *[1] * (made.ndim - 1)) * (fake - real)
        loss = 0.5 * F.mse_loss(made, goal)
        if logits is not None:
            loss = loss + method.gan_weight * F.softplus(-logits).mean()
        torch.autograd.backward(loss, inputs=list(self.student.parameters()))
        first.step()
        first.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(self.average, list(self.student.parameters()), 1 - AVERAGE)

    def weight(self, logits: Tensor, t: Tensor) -> Tensor:
        """js's weight of the density ratio, which is made 1 in each bin of noise levels; its mean made 1."""
        method, n = self.method, len(t)
        clip, low, high = method.logit_clip, method.time_low, method.time_high
        ratio = logits.mean(1).clamp(-clip, clip).exp().clamp(method.ratio_low, method.ratio_high)
        place = ((t - low) / (high - low) * method.bins).long().clamp(0, method.bins - 1)
        total = (torch.bincount(place, ratio.double(), method.bins) / n).float()
        count = (torch.bincount(place, minlength=method.bins).double() / n).float()
        now = method.memory * self.bins + (1 - method.memory) * (total / count.clamp_min(1e-12))
        self.bins = torch.where(count > 0, now, self.bins)
        ratio = ratio / (self.bins[place] + 1e-6)
        h = ratio / (ratio + 1)
        return h / (h.double().mean().float() + 1e-6)

    def state(self) -> State:
        """The weights."""
        found = {"student": self.student, "fake": self.fake, "discriminator": self.heads}
        lists = {name: list(module.parameters()) for name, module in found.items()}
        return lists | {"average": self.average}


def bare(job: Job, watch: Stopwatch, engines: bool = False) -> State:
    """The loop by hand, with numbers of its own or with the Engine's."""
    loop, own = Bare(job), Own(job.batch)
    torch.manual_seed(0)
    watch.start()
    for step, (x, y) in zip(range(job.steps), job.batches(), strict=False):
        noise = job.draws(step) if engines else own
        if (step + 1) % loop.method.period:
            loop.follow(x, y, noise)
        else:
            loop.lead(y, noise)
    watch.stop()
    return loop.state()


# -- the Engine -------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Fixed(Generation):
    """A Job as a task; nothing is scored, so that what is measured is training."""

    job: Job | None = None

    def train(self) -> TensorSource:
        """The job's samples."""
        return self._job.source

    @property
    def _job(self) -> Job:
        assert self.job is not None
        return self.job

    @property
    def space(self) -> Any:
        """The shape of the samples."""
        return SimpleNamespace(shape=self._job.shape)

    def make_student(self, seed: int) -> Denoiser:
        """The teacher's weights."""
        return self._job.denoiser()

    def make_teacher(self) -> Teacher:
        """The job's teacher."""
        return Teacher(Sampler(self._job.denoiser(), Sampling()))

    def score(self, product: Any, split: str, runtime: Any) -> dict[str, Any]:
        """Nothing."""
        return {}


@dataclass
class Witness(Spectator):
    """Keeps the student's own weights as well, which the moving average replaces at the end."""

    method: FDistill | None = None
    raw: list[Tensor] = field(default_factory=list)

    def stepped(self, step: int, row: Any) -> None:
        """A step is done."""
        super().stepped(step, row)
        if step == self.steps and self.method is not None:
            self.raw = [p.detach().clone() for p in self.method.student.parameters()]


def ours(job: Job, watch: Stopwatch, saved: bool = True, **options: Any) -> State:
    """The Engine with its log, and, unless told otherwise, a folder and its last checkpoint."""
    recipe = Recipe("adamw", lr=RATE, betas=BETAS, weight_decay=0.0, schedule="constant", ema=AVERAGE)
    engine = Engine(steps=job.steps, batch_size=job.batch, recipe=recipe, evaluate_every=0, **options)
    method = job.method()
    witness = Witness(watch, method=method)
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder) if saved else None
        engine.fit(method, Fixed(job=job), job.seed, where, witness)
    found = {name: list(module.parameters()) for name, module in method.players().items()}
    found["average"] = found["student"]
    return found | {"student": witness.raw}


def apart(one: State, other: State) -> str:
    """'same bytes', or the largest absolute difference of all weights that both have."""
    pairs = [
        (a, b) for name in one.keys() & other.keys() for a, b in zip(one[name], other[name], strict=True)
    ]
    if all(torch.equal(a, b) for a, b in pairs):
        return "same bytes"
    return f"{max(float((a - b).detach().abs().max()) for a, b in pairs):.1e}"


def share_of_way(one: State, other: State, first: State) -> float:
    """Distance of two ends over the way from the first weights, of the player in which it is largest."""

    def distance(a: list[Tensor], b: list[Tensor]) -> float:
        return float(
            torch.cat([(x - y).detach().flatten() for x, y in zip(a, b, strict=True)]).double().norm()
        )

    names = one.keys() & other.keys()
    return max(distance(one[name], other[name]) / distance(other[name], first[name]) for name in names)

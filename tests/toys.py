"""Small tasks and methods for the tests of the Engine."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stillroom.data import TensorSource
from stillroom.method import Batch, Clock, Gather, Mean, Method, Noise, Update, Updates
from stillroom.optim import Recipe
from stillroom.runtime import Runtime
from stillroom.task import Task
from stillroom.teacher import Teacher


def linear_data(samples: int = 37, seed: int = 0) -> TensorSource:
    """Four numbers and the class that the largest of the first three makes."""
    x = torch.randn(samples, 4, generator=torch.Generator().manual_seed(seed))
    return TensorSource(x, x[:, :3].argmax(-1))


@dataclass(eq=False)
class Toy(Task):
    """Classify four numbers."""

    metric: ClassVar[str] = "accuracy"
    samples: int = 37
    student: str = "linear"

    def train(self) -> TensorSource:
        return linear_data(self.samples)

    def make_student(self, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return self.given["student"]() if "student" in self.given else nn.Linear(4, 3)

    def make_teacher(self) -> Teacher:
        return Teacher(self.make_student(99))

    def score(self, product: nn.Module, split: str, runtime: Runtime) -> dict[str, Any]:
        logits, y = runtime.predict(product, linear_data(64, seed=1))
        return {"accuracy": (logits.argmax(-1) == y).float().mean().item()}


@dataclass(eq=False)
class Fit(Method):
    """Cross-entropy on the toy data."""

    name: ClassVar[str] = "fit"
    listed: ClassVar[bool] = False
    uses_teacher: ClassVar[bool] = False
    hook: Callable[[Batch], None] | None = None

    def updates(self, batch: Batch) -> Updates:
        if self.hook:
            self.hook(batch)
        yield Update("student", F.cross_entropy(self.student(batch.x), batch.y), items=len(batch))


@dataclass(eq=False)
class Centred(Fit):
    """A loss that holds a mean over the batch and draws noise."""

    name: ClassVar[str] = "centred"

    def updates(self, batch: Batch) -> Updates:
        logits = self.student(batch.x + 0.1 * batch.noise.normal(4))
        mean = yield Mean(logits)
        yield Update("student", F.cross_entropy(logits - mean, batch.y), items=len(batch))


@dataclass(eq=False)
class Remembering(Fit):
    """Labels that are half of what the student said of the sample in the epoch before."""

    name: ClassVar[str] = "remembering"

    def bind(self, task: Task, seed: int) -> None:
        super().bind(task, seed)
        self.memory = torch.full((len(task.train()), 3), 1 / 3)

    def updates(self, batch: Batch) -> Updates:
        logits = self.student(batch.x)
        target = 0.5 * F.one_hot(batch.y, 3) + 0.5 * self.memory[batch.index]
        index = yield Gather(batch.index)
        self.memory[index] = yield Gather(logits.softmax(-1))
        yield Update("student", F.cross_entropy(logits, target), items=len(batch))

    def state(self) -> dict[str, torch.Tensor]:
        return {"memory": self.memory}

    def load_state(self, state: Any) -> None:
        self.memory = state["memory"]


def perceptron(inputs: int, width: int = 64) -> nn.Sequential:
    sizes = [inputs, width, width, width]
    layers = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.SiLU())]
    return nn.Sequential(*layers, nn.Linear(width, 2))


class Generator(nn.Module):
    """Noise [n, 2] to points [n, 2]."""

    def __init__(self) -> None:
        super().__init__()
        self.body = perceptron(2)

    def forward(self, z: Tensor) -> Tensor:
        return self.body(z)


class Score(nn.Module):
    """Denoised point [n, 2] for a noisy one and its noise level [n, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.body = perceptron(3)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        data = 2.0  # variance of the eight centres, a coordinate
        total = data + sigma**2
        out = self.body(torch.cat([x / total.sqrt(), sigma.log()], -1))
        return data / total * x + sigma * (data / total).sqrt() * out  # Karras et al., 2022, eq. 7


def eight_gaussians(radius: float = 2.0) -> Tensor:
    """The centres [8, 2]."""
    angles = torch.arange(8) * torch.pi / 4
    return radius * torch.stack([angles.cos(), angles.sin()], -1)


class ExactDenoiser(nn.Module):
    """E[x0 | x] under the mixture of Gaussians of standard deviation `spread` around the eight centres."""

    def __init__(self, spread: float = 0.15) -> None:
        super().__init__()
        self.spread = spread
        self.register_buffer("centres", eight_gaussians())

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        variance = self.spread**2 + sigma**2
        weight = (-(torch.cdist(x, self.centres) ** 2) / (2 * variance)).softmax(-1)
        near = weight @ self.centres
        return near + (self.spread**2 / variance) * (x - near)


@dataclass(eq=False)
class Mixture(Task):
    """A one-step generator for eight Gaussians."""

    metric: ClassVar[str] = "distance"
    higher_is_better: ClassVar[bool] = False
    samples: int = 256

    def train(self) -> TensorSource:
        return TensorSource(torch.zeros(self.samples, 2))

    def make_student(self, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return Generator()

    def make_teacher(self) -> Teacher:
        return Teacher(ExactDenoiser())

    def score(self, product: nn.Module, split: str, runtime: Runtime) -> dict[str, Any]:
        """Mean distance of samples to the nearest centre, and the share of centres that are reached."""
        z = torch.randn(1024, 2, generator=torch.Generator().manual_seed(5))
        points, _ = runtime.predict(product, TensorSource(z))
        distances = torch.cdist(points, eight_gaussians())
        return {
            "distance": distances.min(-1).values.mean().item(),
            "modes": float((distances.argmin(-1).bincount(minlength=8) > 25).sum()),
        }


@dataclass(eq=False)
class DistributionMatching(Method):
    """Distribution matching without its regression term (Yin et al., CVPR 2024, arXiv:2311.18828, eq. 7)."""

    name: ClassVar[str] = "matching"
    listed: ClassVar[bool] = False
    critic_steps: int = 5
    critic_rate: float = 2e-3

    def bind(self, task: Task, seed: int) -> None:
        super().bind(task, seed)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed + 1)
            self.critic = Score()

    def players(self) -> dict[str, nn.Module]:
        return {"generator": self.student, "critic": self.critic}

    def recipes(self, default: Recipe) -> dict[str, Recipe]:
        return {"critic": replace(default, lr=self.critic_rate)}

    def noisy(self, batch: Batch, fake: Tensor) -> tuple[Tensor, Tensor]:
        sigma = (batch.noise.normal(1) * 1.2 - 1.2).exp()
        return fake + sigma * batch.noise.normal(2), sigma

    def updates(self, batch: Batch) -> Updates:
        for _ in range(self.critic_steps):
            fake = self.student(batch.noise.normal(2)).detach()
            x, sigma = self.noisy(batch, fake)
            error = ((self.critic(x, sigma) - fake) / sigma).square().sum(-1).mean()
            yield Update("critic", error, items=len(batch))
        fake = self.student(batch.noise.normal(2))
        x, sigma = self.noisy(batch, fake)
        with torch.no_grad():
            real, own = self.teacher.module(x, sigma), self.critic(x, sigma)
            direction = (own - real) / (fake - real).abs().mean(-1, keepdim=True).clamp_min(1e-3)
        loss = 0.5 * (fake - (fake - direction).detach()).square().sum(-1).mean()
        yield Update("generator", loss, items=len(batch))


@dataclass(eq=False)
class GradientPenalty(Fit):
    """A loss with autograd.grad inside, and a parameter that is used outside every forward pass."""

    name: ClassVar[str] = "penalty"

    def bind(self, task: Task, seed: int) -> None:
        super().bind(task, seed)
        self.scale = nn.Parameter(torch.ones(()))
        self.unused = nn.Linear(2, 2)
        self.trained = nn.ModuleDict({"student": self.student, "unused": self.unused})
        self.trained.register_parameter("scale", self.scale)

    def players(self) -> dict[str, nn.Module]:
        return {"student": self.trained}

    def updates(self, batch: Batch) -> Updates:
        x = batch.x.clone().requires_grad_()
        logits = self.student(x) * self.scale
        slope = torch.autograd.grad(logits.logsumexp(-1).sum(), x, create_graph=True)[0]
        loss = F.cross_entropy(logits, batch.y) + 0.1 * slope.square().sum(-1).mean()
        yield Update("student", loss, items=len(batch))


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """A copy of a module's state."""
    return copy.deepcopy(module.state_dict())


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether two states are equal to the bit."""
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def apart(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """The largest difference between two states."""
    return max((a[k].double() - b[k].double()).abs().max().item() for k in a)


def batch_of(x: Tensor, y: Tensor | None = None, index: Tensor | None = None) -> Batch:
    """A batch outside of any run."""
    rows = slice(0, len(x))
    index = torch.arange(len(x)) if index is None else index
    return Batch(x, cast(Tensor, y), index, Clock(0, 10, 0, 1), Noise(lambda d: d, rows, len(x), x.device))


def updates_of(method: Method, batch: Batch) -> list[Update]:
    """What a method yields for one batch, its asks for the whole step answered, nothing stepped."""
    flow, answer, found = method.updates(batch), None, []
    while True:
        try:
            ask = flow.send(answer)
        except StopIteration:
            return found
        if isinstance(ask, Update):
            answer = None
            found.append(ask)
        else:
            answer = ask.values.detach().mean(0) if isinstance(ask, Mean) else ask.values.detach()

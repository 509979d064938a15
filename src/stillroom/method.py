"""A Method is one paper: its fields are the paper's hyper-parameters, its `updates` the paper's algorithm box.

A method never owns an optimizer. It *yields*, and the Engine answers:

    yield Update("student", loss, items=len(batch))     the Engine steps that player, then resumes the method,
                                                        which goes on with the stepped weights
    mean = yield Mean(values)                           the Engine hands back the mean over the whole step:
                                                        all micro-batches of all processes
    rows = yield Gather(values)                         the same for the rows themselves

so that one network or four, alternating or not, are the body of one generator, and neither accumulation nor
the number of processes changes what is computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

from stillroom.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from stillroom.claim import Claim
    from stillroom.data.source import Source
    from stillroom.engine import Engine
    from stillroom.optim import Recipe
    from stillroom.task import Task
    from stillroom.teacher import Teacher


@dataclass(frozen=True, slots=True)
class Update:
    """Step `player` down the gradient of `loss`.

    `loss` is a scalar, the mean over `items` samples (or tokens, or pairs); the Engine weights it by `items`
    over micro-batches and processes; a part of a step may have 0 items and a finite loss. The gradient reaches
    the parameters of `player` and nothing else.
    `logs` are further scalars, means over the same items, that end in the run's metrics.
    """

    player: str
    loss: Tensor
    items: int
    logs: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Mean:
    """Ask for the mean of `values` [n, ...] over its first axis and over the whole step, detached.

    Some losses hold a statistic of the batch. Taken over a micro-batch it would depend on how the batch was
    cut; asked for by a yield it does not. The answer has the shape `values.shape[1:]`.
    """

    values: Tensor


@dataclass(frozen=True, slots=True)
class Gather:
    """Ask for the rows `values` [n, ...], numbers of any type, of the whole step: [samples of the step, ...], detached.

    They come in the order of the step's samples, however these were cut. A memory by sample needs them: in the next
    epoch a sample may fall to another process.
    """

    values: Tensor


Ask = Update | Mean | Gather
Updates = Generator[Ask, Any, None]


@dataclass(frozen=True, slots=True)
class Clock:
    """Where the run is. Steps and epochs count from 0."""

    step: int
    steps: int
    epoch: int
    epochs: int

    @property
    def progress(self) -> float:
        """Share of the run that is done before this step, in [0, 1)."""
        return self.step / self.steps


class Noise:
    """Random numbers of one step, the same however the step is cut into micro-batches and processes.

    Each draw is made for the whole step from (seed, step, number of the draw), and the rows that belong to this
    micro-batch are handed out.
    """

    def __init__(self, seed: Callable[[int], int], rows: slice, total: int, device: torch.device) -> None:
        self._seed, self._rows, self._total, self._device = seed, rows, total, device
        self._draws = 0

    def _generator(self) -> torch.Generator:
        import torch

        generator = torch.Generator(self._device).manual_seed(self._seed(self._draws))
        self._draws += 1
        return generator

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers [rows, *shape], float32."""
        import torch

        whole = torch.randn(self._total, *shape, generator=self._generator(), device=self._device)
        return whole[self._rows]

    def uniform(self, *shape: int) -> Tensor:
        """Uniform numbers in [0, 1) [rows, *shape], float32."""
        import torch

        whole = torch.rand(self._total, *shape, generator=self._generator(), device=self._device)
        return whole[self._rows]

    def integers(self, high: int, *shape: int) -> Tensor:
        """Uniform integers in 0 .. high-1 [rows, *shape], int64."""
        import torch

        whole = torch.randint(high, (self._total, *shape), generator=self._generator(), device=self._device)
        return whole[self._rows]


@dataclass(slots=True)
class Batch:
    """What a method sees of the data: inputs, labels, who the samples are, and when it is."""

    x: Tensor
    """Inputs [n, ...]."""
    y: Tensor
    """Labels: int64 [n], or float32 [n, classes] where they are mixed; None where the data have none."""
    index: Tensor
    """Ids of the samples [n], int64: the same sample has the same id in every epoch and on every process."""
    clock: Clock
    noise: Noise
    view: int | None = None
    """Seed of the augmentation that made `x`; None where the data are not augmented."""

    def __len__(self) -> int:
        return len(self.x)


@dataclass
class Result:
    """What a method leaves behind."""

    product: Any
    """The distilled thing: a network, an estimator, a data set."""
    seconds: float
    """Wall-clock seconds, over all sessions of a resumed run."""
    steps: int = 0
    extra: dict[str, float] = field(default_factory=dict)


class Fit(Protocol):
    """What trains a method, or one stage of it, for `Method.run`; see `stillroom.fitter.Fitter`."""

    @property
    def engine(self) -> Engine:
        """The options of training; `steps` are those of all stages together."""
        ...

    @property
    def seed(self) -> int:
        """The run's seed."""
        ...

    @property
    def seconds(self) -> float:
        """Seconds that all fits took so far, over all sessions of a resumed run."""
        ...

    def __call__(self, method: Method, stage: str = "", **changes: Any) -> Result:
        """Train `method` and return its product; stages have names, and may change options of the Engine."""
        ...


@dataclass(eq=False)
class Method:
    """Base of all methods. A subclass is a dataclass with a docstring that names its source."""

    name: ClassVar[str]
    """What the command line calls it."""
    listed: ClassVar[bool] = True
    """False: not in the catalogue (a user's own method, a test's)."""
    uses_teacher: ClassVar[bool] = True
    """False: the method asks the task for no teacher, and none is trained for it."""
    uses_engine: ClassVar[bool] = True
    """False: the Engine trains nothing, `run` does the whole job."""
    per_token: ClassVar[bool] = False
    """True: a method of classification that also works where every token has a label, on language models."""
    role: ClassVar[str] = "the same student trained without it"
    """What a product of this method is called where another method is held against it."""

    def check(self) -> None:
        """Raise UserError for a hyper-parameter out of its range; here, for one that is not finite."""
        for name in (f.name for f in fields(self)):
            value = getattr(self, name)
            if isinstance(value, float) and not math.isfinite(value):
                raise UserError(f"--method.{name.replace('_', '-')} is {value}: pass a finite number")

    def suits(self, task: Task) -> None:
        """Raise UserError, before any training, where the method has no use for what `task` gives."""
        if task.per_token and not self.per_token:
            raise UserError(
                f"method '{self.name}' wants one label a sample, and {type(task).__name__} has one a token: pass a "
                "method of language models, or a problem of classification"
            )

    def bind(self, task: Task, seed: int) -> None:
        """Take the networks from the task, and make those that are the method's own.

        Called once, before the Engine places the players on their device. The Engine has seeded torch's global
        generator, so layers that are made here have weights that depend on the seed alone.
        """
        self.suits(task)
        self.student: nn.Module = task.make_student(seed)
        if self.uses_teacher:
            self.teacher: Teacher = task.make_teacher()

    def players(self) -> dict[str, nn.Module]:
        """The networks that are trained, by name. A network that is only read does not belong here."""
        return {"student": self.student}

    def source(self, task: Task) -> Source:
        """What the Engine trains on: the task's training data, unless a method makes its own out of them."""
        return task.train()

    def recipes(self, default: Recipe) -> dict[str, Recipe]:
        """How each player is trained where it is not by the Engine's own recipe."""
        return {}

    def updates(self, batch: Batch) -> Updates:
        """The algorithm box for one batch. The sequence of what is yielded must not depend on the data."""
        raise NotImplementedError(f"{type(self).__name__} has neither updates() nor run()")

    def state(self) -> dict[str, Tensor]:
        """Tensors of the method's own that a checkpoint must hold (a memory by sample, a running mean)."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` gave."""

    def product(self) -> nn.Module:
        """What is kept when the run is over."""
        return self.student

    def figures(self) -> list[dict[str, str]]:
        """Pictures for the page of a run that this method has just done: title, caption and svg of each."""
        return []

    def unbind(self) -> None:
        """Let go of what `bind` hung on networks that live on (hooks)."""

    def run(self, task: Task, fit: Fit) -> Result:
        """Do the whole job: one fit here, several in stages, or none where the Engine is left out."""
        return fit(self)

    def baseline(self, task: Task) -> Method | None:
        """What one would have without this method: the arm that is always run beside it."""
        return task.baseline()

    def quick(self) -> Self:
        """A copy whose own work (stages, samples that it makes) takes a moment, for tests and trials."""
        return self

    @classmethod
    def default_task(cls) -> Task:
        """The built-in problem on which the method shows what it does in about a minute."""
        raise NotImplementedError(f"{cls.__name__} has no default task")

    @classmethod
    def default_engine(cls) -> Engine:
        """The training options that go with the default task."""
        from stillroom.engine import Engine

        return Engine()

    @classmethod
    def claims(cls) -> tuple[Claim, ...]:
        """The paper's claims about this method, as executable comparisons."""
        return ()

    def variant(self, **changes: Any) -> Method:
        """A copy with other hyper-parameters, for the arms of a claim."""
        return replace(self, **changes)

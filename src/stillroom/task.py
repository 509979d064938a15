"""A Task is what is to be distilled: data, teacher, student, and how a result is scored.

A task is a dataclass whose fields are options (names, paths, sizes), so that it can be made from the command
line and written to a run's config. What a user holds in Python goes in through `using`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar
from weakref import WeakKeyDictionary

from stillroom.exporting.forms import Portable

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from stillroom.data.source import Source
    from stillroom.engine import Engine
    from stillroom.method import Method
    from stillroom.runtime import Runtime
    from stillroom.teacher import Teacher


T = TypeVar("T")


@dataclass(frozen=True)
class TeacherJob:
    """Training a teacher: `method` on `task`, whose student is the teacher, on `engine` with `seed`."""

    method: Method
    task: Task
    engine: Engine
    seed: int
    key: dict[str, Any]
    """What determines the outcome besides options and seed (the data's fingerprint)."""


@dataclass(eq=False)
class Task:
    """Base of all tasks."""

    metric: ClassVar[str]
    """The number that decides, a key of what `score` returns."""
    higher_is_better: ClassVar[bool] = True
    per_token: ClassVar[bool] = False
    """True: every token of a sample has a label, not the sample."""
    per_sample_words: ClassVar[str] = "test samples"
    """What the entries of a score's `per_sample` are."""

    def __post_init__(self) -> None:
        self.given: dict[str, Any] = {}
        """The objects that came in through `using`."""

    def loaded(self, load: Callable[..., T], named: str, **options: Any) -> T:
        """What `load(data, **options)` reads: of the data `named` once a process, of the user's own once a task."""
        if "data" not in self.given:
            return _of_name(load, named, **options)
        held = self.__dict__.setdefault("_loaded", {})
        key = (load, *options.items())
        if key not in held:
            held[key] = load(self.given["data"], **options)
        return held[key]

    def train(self) -> Source:
        """What the student learns from."""
        raise NotImplementedError

    def example(self) -> Tensor:
        """One input [1, ...], not augmented."""
        import torch

        return self.train().fetch(torch.tensor([0]), view=None)[0]

    def make_student(self, seed: int) -> nn.Module:
        """A fresh student; its initial weights depend on `seed` alone."""
        raise NotImplementedError

    def make_teacher(self) -> Teacher:
        """The frozen teacher."""
        raise NotImplementedError

    def teacher_job(self, engine: Engine) -> TeacherJob | None:
        """How to train the teacher, where it has to be trained; None where its weights come from outside."""
        return None

    @property
    def derived(self) -> bool:
        """Whether the student is made of the teacher, which then has to be there whatever the method."""
        return False

    def teach(self, network: nn.Module) -> None:
        """Take `network`, now trained, as the teacher."""
        raise NotImplementedError

    def default_engine(self) -> Engine | None:
        """The training options that go with the problem, whatever the method; None leaves them to the method."""
        return None

    def baseline(self) -> Method | None:
        """The method that does without distillation: the arm that is always run beside another."""
        return None

    def check(self, seed: int, teacher: bool) -> None:
        """Raise UserError, before any training, where data, student and teacher do not fit together."""

    def score(self, product: Any, split: str, runtime: Runtime) -> dict[str, Any]:
        """Numbers about `product` on 'validation' or 'test', `metric` among them."""
        raise NotImplementedError

    def cost(self, product: Any) -> dict[str, float]:
        """What using `product` costs: parameters, multiply-adds, seconds, bytes."""
        return {}

    def figures(self, products: Mapping[str, Any], runtime: Runtime) -> list[dict[str, str]]:
        """Pictures of the products, by arm, for a run's page: title, caption and svg of each.

        The method's own product comes first, then the baseline's and the teacher's, where there are any: figures that
        give arms the looks of the palette in order then show each as the page's tables do.
        """
        return []

    def remember(self, product: Any, **facts: Any) -> None:
        """Note what is known of `product` and not in it, for its scores, figures and files; while it lives."""
        notes = self.__dict__.setdefault("_notes", WeakKeyDictionary())
        notes.setdefault(product, {}).update(facts)

    def recall(self, product: Any, fact: str) -> Any:
        """The fact of `product` that was noted under this name; None where none was."""
        return self.__dict__.get("_notes", {}).get(product, {}).get(fact)

    def recalled(self, products: Mapping[str, Any], fact: str) -> dict[str, Any]:
        """The fact of each of the `products`, by arm, of which it was noted."""
        found = {name: self.recall(one, fact) for name, one in products.items()}
        return {name: value for name, value in found.items() if value is not None}

    def summary(self) -> dict[str, Any]:
        """What a run records of the data: name, sizes, how the splits were made, fingerprint."""
        return {}

    def fingerprint(self) -> str:
        """A digest of the data themselves, so that kept numbers notice changed data."""
        return ""

    def export(self, product: Any, folder: Path, about: Mapping[str, Any]) -> None:
        """Write `product` to `folder` so that it can be used without its training run."""
        raise NotImplementedError

    @classmethod
    def load(cls, folder: Path, module: nn.Module | None = None) -> Any:
        """What `export` wrote to `folder`, ready for use; `module` takes the weights of a user's own network."""
        raise NotImplementedError

    def portable(
        self, product: Any, folder: Path, about: Mapping[str, Any], absent: Collection[str] = ()
    ) -> Portable:
        """What `stillroom export` can make of `product`, which `export` wrote to `folder`, told `about` of the run.

        `absent` are names of what came from Python in the run and is not at hand now (data, teacher, student).
        """
        return Portable()

    def paired(self, seed: int) -> Task:
        """The copy that all arms of a comparison share at this seed: other samples, maybe another teacher."""
        return self

    def quick(self) -> Task:
        """A copy so small that it runs in a second, for tests and trials."""
        return self

    def but(self, **changes: Any) -> Self:
        """A copy with other options and the same objects from Python."""
        made = replace(self, **changes)
        made.given = self.given
        return made

    def using(self, **objects: Any) -> Task:
        """A copy that takes `objects` (modules, data) from Python in place of what its options name."""
        unknown = sorted(set(objects) - {f.name for f in fields(self)})
        if unknown:
            raise TypeError(f"{type(self).__name__} has no field '{unknown[0]}'")
        made = self.but()
        made.given = {**self.given, **objects}
        return made


@lru_cache(maxsize=4)
def _of_name(load: Callable[..., T], named: str, **options: Any) -> T:
    return load(named, **options)

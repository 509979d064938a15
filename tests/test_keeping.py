"""What a run keeps, and whether there is room for it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from stillroom import keeping
from stillroom.data import TensorSource
from stillroom.engine import Engine, Watcher
from stillroom.errors import UserError
from stillroom.keeping import GIB, Keep, chosen, foresee, see_room
from stillroom.method import Batch, Method
from stillroom.plan import Plan
from stillroom.predictors.baselines import KD, Plain
from stillroom.predictors.classification import Classification
from stillroom.runtime import Runtime
from stillroom.teacher import Teacher
from stillroom.teaching import teach
from stillroom.workflow import Job, execute
from toys import Toy, batch_of, linear_data

FIXED, MOVING = linear_data(100), TensorSource(torch.zeros(100, 4), augment=lambda x: x + torch.randn(4))
DISK = Engine(epochs=5, batch_size=10, keep_teacher="disk")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


# -- options ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"keep_teacher": True}, "--engine.keep-teacher is True: pass no or memory or disk"),
        ({"keep_precision": "int8"}, "--engine.keep-precision is 'int8': pass float16 or float32"),
        ({"keep_top_k": -1}, "--engine.keep-top-k is -1: pass 0 or more"),
        ({"keep_views": -1}, "--engine.keep-views is -1: pass 0 or more"),
        ({"keep_limit": 0.0}, "--engine.keep-limit is 0.0: pass a number above 0"),
    ],
)
def test_options_out_of_their_range_are_one_line(options: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError) as caught:
        Engine(**options).check()
    assert str(caught.value) == line


@pytest.mark.parametrize(
    ("where", "views", "source", "expected"),
    [
        ("no", 0, FIXED, None),
        ("no", 2, MOVING, None),
        ("memory", 0, FIXED, 0),
        ("memory", 0, MOVING, None),
        ("memory", 2, MOVING, 2),
        ("memory", 2, FIXED, 0),
        ("disk", 0, FIXED, 0),
        ("disk", 0, MOVING, 5),
        ("disk", 2, MOVING, 2),
        ("disk", 9, MOVING, 5),
    ],
)
def test_augmented_data_are_kept_on_disk_or_where_views_come_round(
    where: Any, views: int, source: TensorSource, expected: int | None
) -> None:
    engine = replace(DISK, keep_teacher=where, keep_views=views)
    plan = Plan(100, 10, 5, 0, 0, views)
    keep = chosen(engine, plan, source, Toy())
    assert (None if keep is None else keep.views) == expected
    assert keep is None or keep.where == where


def test_views_go_by_the_epochs_that_the_steps_make() -> None:
    keep = chosen(DISK, Plan(100, 10, 5, 0, limit=11), MOVING, Toy())
    assert keep is not None
    assert keep.views == 2


# -- room ---------------------------------------------------------------------------------------------------------


def test_what_is_predicted_is_what_is_written() -> None:
    for top_k, precision in ((0, "float16"), (0, "float32"), (2, "float16"), (2, "float32")):
        keep = Keep("disk", top_k=top_k, precision=precision)  # type: ignore[arg-type]
        teacher = Teacher(nn.Linear(4, 3))
        teacher.keep(FIXED, 16, keep)
        batch_x, y = FIXED.fetch(torch.arange(5), None)
        teacher(batch_of(batch_x, y))
        assert teacher.kept_bytes == 100 * keep.bytes_a_sample(teacher.ask(batch_x))


def test_above_the_limit_is_one_line_and_at_it_is_not() -> None:
    see_room(Keep("disk", limit=100 * 40 / GIB), 40, 100, "Net")
    with pytest.raises(UserError) as caught:
        see_room(Keep("disk", limit=1e-6, views=3), 40, 1_000, "Net")
    assert str(caught.value) == (
        "the answers of teacher 'Net' to 1,000 samples in 3 views take 0.000112 GiB, above --engine.keep-limit 1e-06: "
        "raise it, or pass --engine.keep-top-k, --engine.keep-views or --engine.keep-teacher no"
    )


def test_more_than_the_disk_has_is_one_line(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping.shutil, "disk_usage", lambda path: type("Free", (), {"free": 10_000})())
    with pytest.raises(
        UserError, match=r"^the answers of .* in 1 view take .* GiB, and '.*answers' has room for"
    ):
        see_room(Keep("disk"), 400, 100, "Net")
    (cache / "answers" / "some").mkdir(parents=True)
    (cache / "answers" / "some" / "logits.npy").write_bytes(bytes(40_000))  # which may be the very ones
    see_room(Keep("disk"), 400, 100, "Net")


# -- before anything is trained -----------------------------------------------------------------------------------


@dataclass(eq=False)
class Watched(Toy):
    """The toy; knows whether somebody trained on it."""

    metric: ClassVar[str] = "accuracy"

    def score(self, product: nn.Module, split: str, runtime: Runtime) -> dict[str, Any]:
        raise AssertionError("something was trained")


def test_a_run_without_room_is_refused_before_it_begins(tmp_path: Path) -> None:
    job = Job(KD(), Watched(), replace(DISK, keep_limit=1e-9), 0)
    with pytest.raises(UserError, match="above --engine.keep-limit 1e-09"):
        execute(job, tmp_path / "run")
    assert not (tmp_path / "run").exists()


class Denoiser(nn.Module):
    """Answers to a sample and a time."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x * t


@dataclass(eq=False)
class Denoised(Toy):
    metric: ClassVar[str] = "accuracy"

    def make_teacher(self) -> Teacher:
        return Teacher(Denoiser())


class OwnData(KD):
    def source(self, task: Any) -> TensorSource:
        return FIXED


@pytest.mark.parametrize(
    ("method", "task"),
    [(Plain(), Toy()), (KD(), Denoised()), (OwnData(), Toy())],
    ids=["plain", "denoiser", "own"],
)
def test_what_will_not_be_asked_for_is_not_looked_at(method: Method, task: Toy) -> None:
    foresee(replace(DISK, keep_limit=1e-9), task, method)
    foresee(replace(DISK, keep_limit=1e-9, keep_teacher="memory"), Toy(), KD())


def test_a_method_with_data_of_its_own_is_refused_when_it_asks() -> None:
    with pytest.raises(UserError, match="to 100 samples in 1 view take .* above --engine.keep-limit"):
        replace(DISK, keep_limit=1e-9).fit(OwnData(), Toy(), 0)


def test_a_run_says_what_keeping_cost(tmp_path: Path) -> None:
    task = Classification().quick()
    engine = Engine(epochs=2, batch_size=20, evaluate_every=0, keep_teacher="disk")
    first, _ = execute(Job(KD(), task, engine, 0), tmp_path / "first")
    second, _ = execute(Job(KD(), task, engine, 0), tmp_path / "second")
    costs, again = first.result["costs"], second.result["costs"]
    assert costs["bytes kept"] == again["bytes kept"] == 100 * (10 * 2 + 4 + 8)
    assert costs["keeping the teacher's answers"] > 0
    assert costs["distilled student"] > 0


def test_keeping_does_not_make_another_teacher(cache: Path) -> None:
    """Nor do views that come round: they are the student's."""
    task = Classification(teacher_augment="crop").quick()
    for options in (
        {},
        {"keep_teacher": "disk"},
        {"keep_teacher": "no"},
        {"keep_views": 1},
        {"keep_limit": 1.0},
    ):
        teach(task, Engine(**options).quick(), None, Watcher)
    assert len(list((cache / "teachers").iterdir())) == 1


def test_the_batch_is_the_augmented_one_where_answers_are_read_back() -> None:
    seen: list[Tensor] = []

    class Looks(KD):
        def updates(self, batch: Batch) -> Any:
            seen.append(batch.x)
            return super().updates(batch)

    class Moving(Toy):
        def train(self) -> TensorSource:
            return TensorSource(FIXED.x, FIXED.y, lambda x: x + torch.randn(4))

    for where in ("no", "disk", "disk"):
        replace(DISK, epochs=1, keep_teacher=where).fit(Looks(), Moving(), 0)
    assert all(
        torch.equal(a, b) and torch.equal(a, c)
        for a, b, c in zip(seen[:10], seen[10:20], seen[20:], strict=True)
    )

"""Tasks and their copies."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest
from torch import nn

from stillroom.config import to_plain
from stillroom.engine import Engine
from stillroom.runtime import Runtime
from stillroom.task import Task
from toys import Fit, Toy


def test_a_copy_has_other_options_and_the_same_objects() -> None:
    network = nn.Linear(4, 3)
    one = Toy().using(student=lambda: network)
    other = one.but(samples=5)
    assert (one.samples, other.samples) == (37, 5)
    assert other.make_student(0) is network
    assert type(other) is Toy


def test_objects_from_python_add_up_and_leave_the_original_alone() -> None:
    one = Toy()
    two = one.using(student=nn.Identity)
    three = two.using(samples=3)
    assert one.given == {}
    assert set(two.given) == {"student"}
    assert set(three.given) == {"student", "samples"}
    assert three.using(student=nn.Linear).given["student"] is nn.Linear
    assert two.given["student"] is nn.Identity


def test_objects_are_no_options() -> None:
    assert to_plain(Toy().using(student=nn.Identity)) == to_plain(Toy())


def test_an_object_for_no_field_is_refused() -> None:
    with pytest.raises(TypeError, match="^Toy has no field 'studnet'$"):
        Toy().using(studnet=nn.Identity)


def test_an_option_that_does_not_exist_is_refused() -> None:
    with pytest.raises(TypeError, match="sample"):
        Toy().but(sample=3)


def test_what_is_known_of_a_product_is_noted_as_long_as_it_lives() -> None:
    task, one, other = Toy(), nn.Linear(4, 3), nn.Linear(4, 3)
    assert task.recall(one, "rows") is None
    task.remember(one, rows=[1], alpha=0.5)
    task.remember(one, alpha=0.0)
    task.remember(other, rows=[2])
    assert (task.recall(one, "rows"), task.recall(one, "alpha"), task.recall(other, "alpha")) == (
        [1],
        0.0,
        None,
    )
    products = {"b": other, "a": one, "c": nn.Linear(4, 3)}
    assert list(task.recalled(products, "rows").items()) == [("b", [2]), ("a", [1])]
    assert task.recalled(products, "alpha") == {"a": 0.0}
    assert task.but(samples=5).recall(one, "rows") is None, "a copy scores by itself"
    gone = weakref.ref(other)
    del other, products
    gc.collect()
    assert gone() is None


def test_a_task_may_leave_out_all_but_its_problem() -> None:
    task = Task()
    assert task.higher_is_better
    assert task.teacher_job(Engine()) is None
    assert task.baseline() is None
    assert task.cost(None) == task.summary() == {}
    assert task.fingerprint() == ""
    assert task.paired(3) is task
    assert task.quick() is task
    task.check(0, teacher=True)


def test_what_a_task_must_say_is_asked_for(tmp_path: Path) -> None:
    task = Task()
    for ask in (
        task.train,
        lambda: task.make_student(0),
        task.make_teacher,
        lambda: task.teach(nn.Identity()),
        lambda: task.score(None, "test", Runtime()),
        lambda: task.export(None, tmp_path, {}),
    ):
        with pytest.raises(NotImplementedError):
            ask()


def test_a_fit_on_a_copy_trains_on_the_copy_s_data() -> None:
    seen: list[int] = []
    method = Fit(hook=lambda batch: seen.extend(batch.index.tolist()))
    Engine(epochs=1, batch_size=4).fit(method, Toy().but(samples=5), 0)
    assert sorted(seen) == [0, 1, 2, 3, 4]

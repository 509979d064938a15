"""Values of other types in the files of a run that somebody edited: each is a line, or does no harm."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stillroom import Run, checkpoint, commands
from stillroom.engine import Engine
from stillroom.errors import UserError
from stillroom.metrics import cost
from stillroom.models import load_student
from stillroom.predictors.baselines import Plain
from stillroom.predictors.classification import Classification
from stillroom.problems import named_problem
from stillroom.reports import class_figures, figures
from stillroom.workflow import Job, execute
from toys import Fit, Toy

ODD: list[Any] = [
    None,
    True,
    "x",
    -1,
    3.5,
    float("nan"),
    10**30,
    [],
    {},
    [1],
    {"a": 1},
    "../x",
    "a\nb\x1b[31m",
]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The ways to every value inside `value`, of a list to its first."""
    yield path
    for key in (
        list(value)
        if isinstance(value, dict)
        else range(min(1, len(value)))
        if isinstance(value, list)
        else ()
    ):
        yield from places(value[key], (*path, key))


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy with another value at `path`; without it, where `new` is Ellipsis."""
    if not path:
        return None if new is ... else new
    made = at = copy.deepcopy(value)
    for key in path[:-1]:
        at = at[key]
    if new is ...:
        del at[path[-1]]
    else:
        at[path[-1]] = new
    return made


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished run, whose files each test writes over."""
    folder = tmp_path_factory.mktemp("odd") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost.latency, "__defaults__", (1, 0.0, None))
        for module in (figures, class_figures):
            patch.setattr(
                module, "draw", lambda *_: '<svg viewBox="0 0 1 1"><title id="t">a figure</title></svg>'
            )
        execute(Job(Plain(), Classification(student_samples=60), Engine(epochs=2), seed=0), folder)
        yield folder


def _refused(use: Callable[[], object]) -> bool:
    said = ""
    try:
        use()
    except UserError as error:
        said = str(error)
    assert len(said.splitlines()) <= 1
    return bool(said)


def try_all(
    file: Path, use: Callable[[], object], each: int = len(ODD), without: tuple[str, ...] = ()
) -> int:
    """Write odd values (`each` of them, in turn) in every place of a JSON file and nothing in its place, and `use` it.

    Returns how often a line said that it will not do.
    """
    kept, refusals = file.read_text(), 0
    sound = {key: value for key, value in json.loads(kept).items() if key not in without}
    for number, path in enumerate(places(sound)):
        for new in [*(ODD[(number + 5 * i) % len(ODD)] for i in range(each)), ...]:
            file.write_text(json.dumps(changed(sound, path, new)))
            try:
                refusals += _refused(use)
            except Exception as error:
                raise AssertionError(f"{path} is {new!r}") from error
    file.write_text(kept)
    return refusals


def test_a_config(run: Path) -> None:
    def use() -> None:
        config = Run.open(run).config
        options = commands._run_options(Plain, named_problem([], config), config)
        Job(options.method, options.task, options.engine, options.seed).check()

    assert try_all(run / "config.json", use, each=6) > 100


def test_a_checkpoint_s_state(tmp_path: Path) -> None:
    """As an earlier version wrote it: without the sums that would tell at once."""
    engine = Engine(epochs=2, batch_size=8, log_every=4)
    engine.fit(Fit(), Toy(), 0, tmp_path)
    file = checkpoint.listing(tmp_path / "checkpoints")[-1] / "state.json"
    rows = (tmp_path / "metrics.jsonl").read_bytes()

    def use() -> None:
        (tmp_path / "metrics.jsonl").write_bytes(rows)
        engine.fit(Fit(), Toy(), 0, tmp_path)

    assert try_all(file, use, without=("sum", "sums")) > 30


def test_a_result(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its page is made, or is not."""

    def use() -> None:
        commands.report([str(run)], "")

    assert try_all(run / "result.json", use, each=1) > 20
    capsys.readouterr()
    assert commands.report([str(run)], "") == 0


def test_a_student_s_config(run: Path) -> None:
    assert try_all(run / "student" / "config.json", lambda: load_student(run / "student")) > 20

"""SIGKILL, fifty times in one run, wherever it happens to be: the end has the bits of an undisturbed run."""

from __future__ import annotations

import random
import time
from pathlib import Path

from reliability.forks import Child, Forks, below
from reliability.outcomes import same
from stillroom import checkpoint

LONG = ["--task.teacher-epochs", "6", "--engine.epochs", "24", "--engine.checkpoint-every", "2"]
LONG = [*LONG, "--engine.evaluate-every", "6"]
STEPS = 3 * 96
"""Of the teacher, the plain student and the distilled one."""
BY_CLOCK, AT_WRITES, AT_THE_END = 25, 10, 15


def folders(run: Path) -> list[Path]:
    """Where the arms and stages of a run keep their checkpoints."""
    places = ("checkpoints", "stages/*/checkpoints", "arms/*/checkpoints", "arms/*/stages/*/checkpoints")
    return [folder for place in places for folder in run.glob(place)]


def newest(run: Path) -> int:
    """Steps that all arms and stages have done by their newest checkpoints."""
    names = [checkpoint.listing(folder)[-1:] for folder in folders(run)]
    return sum(int(name[0].name.removeprefix(checkpoint.PREFIX)) for name in names if name)


def sound(run: Path) -> int:
    """`newest`, once every checkpoint that is there was read."""
    for folder in folders(run):
        for there in checkpoint.listing(folder):
            checkpoint.load(there)
    return newest(run)


def kill_by_clock(child: Child, run: Path, steps: int, seconds: float) -> None:
    """SIGKILL `seconds` after the run has got `steps` further, from outside."""
    wanted, end = newest(run) + steps, time.monotonic() + 20
    while newest(run) < wanted and time.monotonic() < end:
        time.sleep(0.001)
    time.sleep(seconds)
    child.kill()


def begun(run: Path) -> list[str | Path]:
    """The command that goes on with a run, or starts it."""
    return ["--resume", run] if (run / "config.json").is_file() else [*LONG, "--out", run]


def test_fifty_kills_and_the_same_bits(forks: Forks, tmp_path: Path) -> None:
    """25 by the clock, 10 at a random write of training, 15 at those of the student, the result and the page."""
    whole, run, cache, chance = tmp_path / "whole", tmp_path / "run", tmp_path / "cache", random.Random(0)
    assert forks.run("run", "nkd", *LONG, "--out", whole, cache=tmp_path / "other") == (0, "")
    reached = 0
    for number in range(BY_CLOCK):
        child = forks.start("run", "nkd", *begun(run), cache=cache)
        steps = chance.randint(0, 2 * STEPS // BY_CLOCK)
        kill_by_clock(child, run, min(steps, STEPS - 20 - reached), chance.uniform(0, 0.02 if steps else 0.2))
        assert child.wait() == -9, (number, child.said)
        assert reached <= sound(run) < STEPS
        reached = newest(run)
    for _ in range(AT_WRITES):
        kill = {"kind": "kill", "folders": below(run, cache), "at": chance.randint(1, 20)}
        assert forks.run("run", "nkd", *begun(run), cache=cache, fault=kill)[0] == -9
        assert reached <= sound(run)
        reached = newest(run)
    last = [run / name for name in (".student.part", "student", ".result.json.part", "result.json")]
    page = [run / name for name in (".report.html.part", "report.html")]
    for number in range(AT_THE_END):
        where, at = (last, 1 + number % 9) if number < AT_THE_END - 2 else (page, number - AT_THE_END + 3)
        kill = {"kind": "kill", "folders": below(*where), "at": at}
        assert forks.run("run", "nkd", *begun(run), cache=cache, fault=kill)[0] == -9, number
        assert sound(run) == STEPS
        assert not (run / "report.html").exists()
    assert forks.run("run", "nkd", "--resume", run, cache=cache) == (0, "")
    assert same(whole, run)
    assert not list(run.rglob("*.part*"))


STAGES = ["--task.data", "checkerboard", "--task.teacher", "mlp:16x1", "--task.student", "mlp:16x1"]
STAGES = [*STAGES, "--task.points", "200", "--task.teacher-steps", "20", "--task.score-samples", "60"]
STAGES = [
    *STAGES,
    "--task.steps",
    "4",
    "--method.pairs",
    "64",
    "--method.rounds",
    "2",
    "--method.features",
    "none",
]
STAGES = [*STAGES, "--engine.steps", "12", "--engine.batch-size", "16", "--engine.checkpoint-every", "2"]


def test_a_method_of_stages_is_killed_in_each(forks: Forks, tmp_path: Path) -> None:
    """Two reflows, each on samples that the last flow makes: kills fall on stages, kept samples and their hand-over."""
    whole, run, cache, chance = tmp_path / "whole", tmp_path / "run", tmp_path / "cache", random.Random(1)
    assert forks.run("run", "rfpp", *STAGES, "--out", whole, cache=tmp_path / "other") == (0, "")
    status, kills = -9, 0
    while status == -9:
        words = ["--resume", run] if (run / "config.json").is_file() else [*STAGES, "--out", run]
        kill = {"kind": "kill", "folders": below(run, cache), "at": chance.randint(5, 40)}
        status, said = forks.run("run", "rfpp", *words, cache=cache, fault=kill)
        kills += status == -9
        sound(run)
    assert (status, said) == (0, "")
    assert kills > 4
    assert same(whole, run)

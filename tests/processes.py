"""Jobs for two processes under torchrun (gloo); each leaves tensors in a file."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from stillroom.engine import Engine, Watcher
from stillroom.errors import UserError
from stillroom.method import Batch, Result, Update
from stillroom.method import Fit as FitCall
from stillroom.optim import Recipe
from stillroom.runtime import Runtime
from stillroom.sharding import local
from stillroom.task import Task
from toys import Centred, DistributionMatching, Fit, GradientPenalty, Mixture, Toy, weights_of

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]


def environment(cache: Path, **more: str) -> dict[str, str]:
    """That of a process on one thread with `cache`, in which the tests' own modules can be imported."""
    paths = [str(Path(__file__).parent), *sys.path]
    own = {"OMP_NUM_THREADS": "1", "STILLROOM_CACHE": str(cache), "PYTHONPATH": os.pathsep.join(paths)}
    return {**os.environ, **own, **more}


def in_two_processes(job: str, names: list[str], folder: Path, cache: Path) -> dict[str, dict[str, Tensor]]:
    """Run `job` (a function below) for `names` on two processes; returns the main process's tensors by name."""
    from safetensors.torch import load_file

    done = subprocess.run(
        [*TORCHRUN, __file__, job, str(folder), *names],
        env=environment(cache, ACCELERATE_USE_CPU="1"),
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {n: load_file(folder / f"{n}.safetensors") for n in names if not n.startswith("+")}


def every_method(names: list[str], folder: Path) -> None:
    """Each method of the catalogue, as its tests run it."""
    from stillroom import catalogue
    from test_every_method import state

    for name in names:
        _leave(state(catalogue.find(name)), folder / f"{name}.safetensors")


def whole_run(names: list[str], folder: Path) -> None:
    """A run of a generator from its teacher to its page, as the command line does it."""
    import torch

    from stillroom.generators.matching.f_distill import FDistill
    from stillroom.workflow import Job, execute

    for name in names:
        task = FDistill.default_task().but(data=name).quick()
        run, _ = execute(Job(FDistill(), task, FDistill.default_engine().quick(), 0), folder / name)
        _leave(dict(run.student().state_dict()), folder / f"{name}.safetensors")
        if torch.distributed.is_initialized():
            torch.distributed.barrier()


def toys(names: list[str], folder: Path) -> None:
    """Three epochs of the toy methods, with an uneven last batch and one that leaves a process without samples."""
    import toys as t
    from stillroom.engine import Engine

    for name in names:
        kind, samples, parts = name.split(":")
        method = {m.name: m for m in (t.Fit, t.Centred, t.Remembering, t.GradientPenalty)}[kind]()
        engine = Engine(epochs=3, batch_size=8, accumulate=int(parts))
        engine.fit(method, t.Toy(samples=int(samples)), 0, folder / name / "run")
        _leave(t.weights_of(method.players()["student"]), folder / f"{name}.safetensors")


def of_tokens(parts: int) -> dict[str, Tensor]:
    """A memory by token, of texts of all lengths, so that no two parts of a step have as many."""
    from stillroom.predictors.labels.ps_kd import PSKD
    from text_toys import uneven

    method, engine = PSKD(), Engine(epochs=3, batch_size=4, accumulate=parts)
    engine.fit(method, uneven(), 0)
    return weights_of(method.student)


def tokens(names: list[str], folder: Path) -> None:
    """That with so many micro-batches."""
    for name in names:
        _leave(of_tokens(int(name.split(":")[1])), folder / f"{name}.safetensors")


def seen(names: list[str], folder: Path) -> None:
    """The samples that each process is shown, step by step."""
    import torch

    import toys as t
    from stillroom.engine import Engine
    from stillroom.runtime import Runtime

    shown: list[int] = []

    def note(batch: Batch) -> None:
        shown.extend(batch.index.tolist())

    Engine(epochs=1, batch_size=8).fit(t.Fit(hook=note), t.Toy(), 0)
    rank = Runtime().rank
    gathered = Runtime().gather_rows(torch.tensor(shown))
    if rank == 0:
        _leave({"ids": gathered, "own": torch.tensor(shown)}, folder / f"{names[0]}.safetensors")


def kept_answers(names: list[str], folder: Path) -> None:
    """A run that makes its teacher's answers, or reads them; how many samples each process's teacher was asked."""
    import torch

    import test_kept as t
    from stillroom.runtime import Runtime

    for name in names:
        task = t.Taught(moving=name.endswith("moving"))
        weights = t.fitted(t.RUN, task)
        asked = Runtime().gather_rows(torch.tensor([task.asked.asked]))
        _leave({**weights, "asked": asked}, folder / f"{name}.safetensors")


# -- shards ---------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """A residual block, as transformers repeat them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


class Tower(nn.Module):
    """Three blocks between layers of odd sizes, with running statistics."""

    def __init__(self, width: int = 15) -> None:
        super().__init__()
        self.stem, self.norm = nn.Linear(4, width), nn.BatchNorm1d(width)
        self.blocks = nn.ModuleList([Block(width) for _ in range(3)])
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Plainer(Tower):
    """The same without running statistics, which would depend on the cut."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.Identity()


class Crash(Watcher):
    """Dies after a step, without a word."""

    def __init__(self, at: int) -> None:
        self.at = at

    def stepped(self, step: int, row: Mapping[str, Any] | None) -> None:
        if step == self.at:
            raise ConnectionAbortedError


RECIPES = {
    "sgd": Recipe(lr=0.1, clip=0.5, ema=0.9),
    "adamw": Recipe(optimizer="adamw", lr=1e-3, decay_biases=False, ema=0.5),
}
STEADY = Engine(epochs=2, batch_size=8, log_every=2, evaluate_every=2, checkpoint_every=2, keep_checkpoints=9)


def case(name: str) -> tuple[Any, Task, Engine]:
    """method:samples:micro-batches:recipe:precision, as what is fitted."""
    kind, samples, parts, recipe, precision = name.split(":")
    engine = replace(STEADY, accumulate=int(parts), recipe=RECIPES[recipe], precision=precision)
    if kind == "matching":
        matching = replace(engine, batch_size=64)
        return DistributionMatching(critic_steps=2), Mixture(samples=int(samples)), matching
    task = Toy(samples=int(samples)).using(student=Plainer)
    return {m.name: m for m in (Fit, Centred)}[kind](), task, engine


def sharded(names: list[str], folder: Path) -> None:
    """Each case with everything in shards."""
    for name in names:
        method, task, engine = case(name)
        product = replace(engine, shard="all").fit(method, task, 0).product
        _leave(weights_of(product), folder / f"{name}.safetensors")


def sharded_methods(names: list[str], folder: Path) -> None:
    """Methods of the catalogue, as its tests run them, with everything in shards."""
    from stillroom import catalogue
    from test_every_method import state

    for name in names:
        _leave(state(catalogue.find(name), shard="all", accumulate=2), folder / f"{name}.safetensors")


def resumed(names: list[str], folder: Path) -> None:
    """Fits that go on in `folder`/NAME/run, where one process has left one or nothing has happened yet.

    in: go on in shards. out: begin in shards, crash, go on without. left: begin in shards and crash.
    """
    for name in names:
        how, _, rest = name.partition("-")
        method, task, engine = case(rest)
        cut, run = replace(engine, shard="players"), folder / name / "run"
        if how != "in":
            with contextlib.suppress(ConnectionAbortedError):
                cut.fit(type(method)(), task, 0, run, Crash(7))
        if how == "left":
            _leave({}, folder / f"{name}.safetensors")
            continue
        product = (cut if how == "in" else engine).fit(method, task, 0, run).product
        _leave(weights_of(product), folder / f"{name}.safetensors")


def held(names: list[str], folder: Path) -> None:
    """How many numbers of weights and optimizer state a process holds, in shards or not."""
    import torch

    from stillroom.engine import _Fit

    for name in names:
        counts = []
        for shard in ("no", "all"):
            engine = replace(STEADY, epochs=1, shard=shard, recipe=RECIPES["adamw"])
            task = Toy().using(student=lambda: Tower(width=64))
            fit = _Fit(engine, WithTeacher(), task, 0, None, Watcher())
            fit._train()
            player = fit.players["student"]
            moments = [v for s in player.optimizer.state.values() for v in s.values() if v.ndim]
            own = [local(p) for p in fit.method.teacher.module.parameters()]
            parts = (player.parameters, moments, player.average, own)
            counts.append([sum(t.numel() for t in part) for part in parts])
        _leave({"counts": torch.tensor(counts)}, folder / f"{name}.safetensors")


@dataclass(eq=False)
class WithTeacher(Fit):
    """Asks its teacher."""

    name: ClassVar[str] = "with-teacher"
    uses_teacher: ClassVar[bool] = True

    def updates(self, batch: Batch) -> Any:
        logits = self.student(batch.x)
        error = (logits - self.teacher.answer(batch.x)).square().mean()
        yield Update("student", error, items=len(batch))


@dataclass(eq=False)
class Peeking(Fit):
    """Uses its student's weights outside the forward pass."""

    name: ClassVar[str] = "peeking"
    how: str = ""

    def updates(self, batch: Batch) -> Any:
        loss = nn.functional.cross_entropy(self.student(batch.x), batch.y)
        if self.how == "penalty":
            loss = loss + sum((p * p.new_ones(1)).square().sum() for p in self.student.parameters())
        if self.how == "copy":
            copy.deepcopy(self.student)
        yield Update("student", loss, items=len(batch))


def refused(names: list[str], folder: Path) -> None:
    """What cannot be done in shards, and what is said of it."""
    place = folder / "said.json"
    said = json.loads(place.read_text()) if place.is_file() else {}
    for name in names:
        method = GradientPenalty() if name == "second order" else Peeking(how=name)
        try:
            replace(STEADY, shard="all").fit(method, Toy().using(student=Plainer), 0)
        except UserError as error:
            said[name] = str(error)
        _leave({}, folder / f"{name}.safetensors")
    if Runtime().main:
        place.write_text(json.dumps(said))


def several(words: list[str], folder: Path) -> None:
    """Several of these jobs in one launch: +job, its names, +job, its names."""
    job = ""
    for word in words:
        if word.startswith("+"):
            job = word[1:]
        else:
            globals()[job]([word], folder)


# -- cells ----------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Mortal(Fit):
    """Kills its process before a cell is measured, once for each file in the folder `trap`."""

    name: ClassVar[str] = "mortal"
    trap: str = ""

    def run(self, task: Task, fit: FitCall) -> Result:
        for bullet in sorted(Path(self.trap).glob("*")) if self.trap else ():
            bullet.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().run(task, fit)


def on_ray(names: list[str], folder: Path) -> None:
    """Measure a grid on a local Ray of two workers, one of which is killed; leaves the scores."""
    from stillroom.claim import Grid, measure

    arms = {"plain": Fit(), "centred": Centred(), "mortal": Mortal(trap=str(folder / "trap"))}
    grid = Grid(arms, Toy(), Engine(epochs=2, batch_size=8), [0, 1], folder / "store")
    rows = list(measure(grid, workers=2, ray="local"))
    (folder / f"{names[0]}.json").write_text(json.dumps(rows))


def _leave(tensors: dict[str, Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    if os.environ.get("RANK") == "0":
        save_file({k: v.clone().contiguous() for k, v in tensors.items()}, path)


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    sys.path.insert(0, str(Path(__file__).parent))
    globals()[sys.argv[1]](sys.argv[3:], Path(sys.argv[2]))
    from stillroom.cli import end

    end(0)

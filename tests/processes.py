"""Jobs for two processes under torchrun (gloo); each leaves tensors in a file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from torch import Tensor


def in_two_processes(job: str, names: list[str], folder: Path, cache: Path) -> dict[str, dict[str, Tensor]]:
    """Run `job` (a function below) for `names` on two processes; returns the main process's tensors by name."""
    from safetensors.torch import load_file

    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "STILLROOM_CACHE": str(cache),
        "ACCELERATE_USE_CPU": "1",
    }
    done = subprocess.run(
        [*command, __file__, job, str(folder), *names],
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {name: load_file(folder / f"{name}.safetensors") for name in names}


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
        method = {m.name: m for m in (t.Fit, t.Centred, t.GradientPenalty)}[kind]()
        engine = Engine(epochs=3, batch_size=8, accumulate=int(parts))
        engine.fit(method, t.Toy(samples=int(samples)), 0, folder / name / "run")
        _leave(t.weights_of(method.players()["student"]), folder / f"{name}.safetensors")


def seen(names: list[str], folder: Path) -> None:
    """The samples that each process is shown, step by step."""
    import torch

    import toys as t
    from stillroom.engine import Engine
    from stillroom.method import Batch
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


def _leave(tensors: dict[str, Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    if os.environ.get("RANK") == "0":
        save_file({k: v.clone().contiguous() for k, v in tensors.items()}, path)


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    sys.path.insert(0, str(Path(__file__).parent))
    globals()[sys.argv[1]](sys.argv[3:], Path(sys.argv[2]))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()

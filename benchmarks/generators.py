"""Distillation of generators: steps, peers, memory, a student beside its teacher, growth.

    python benchmarks/generators.py [step|peers|memory|sampling|growth ...]

Arms start from the same weights, see the same samples and, unless they are said to draw their own, the same noise;
every table shows how far their weights are apart at the end. The Engine writes its log; the bare loop does not.
FASTGEN=folder (or an importable `fastgen`) adds NVIDIA's FastGen.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bare_dmd import Bare, Job, apart, bare, ours, share_of_way
from harness import Arm, Stopwatch, interleave, peak_memory, ratio, report_memory, rows, save, table
from peers import fastgen, installed
from stillroom.generators.parts.sampler import Sampler

Row = dict[str, Any]
DMD: dict[str, Any] = {"divergence": "rkl", "gan_weight": 0.0}
AS_FASTGEN: dict[str, Any] = {"logit_clip": 10.0, "time_low": 0.002, "time_high": 80.0}
"""What FastGen has fixed: its clip, and bins over the process's whole range."""

MLP = Job("mlp:192x4", (1, 8, 8), batch=128, steps=41)
UNET = Job("unet:32-64", (1, 16, 16), batch=32, steps=11)
METHODS: dict[str, dict[str, Any]] = {"f-distill": {}, "DMD": DMD}
BARE, OURS, PEER = "bare loop", "stillroom", "FastGen"


def compare(job: Job, title: str, arms: Mapping[str, Arm], base: str, repetitions: int) -> list[Row]:
    """Time `arms`, and compare their weights with Stillroom's; print a table, return its rows."""
    times, made = interleave(arms, repetitions)
    first = Bare(job).state()
    lines, kept = [], []
    for name, row in rows(times, base, job.steps).items():
        weights = {"apart": apart(made[name], made[OURS])}
        if weights["apart"] != "same bytes":
            weights["share"] = f"{share_of_way(made[name], made[OURS], first):.1e}"
        walls = [w.wall / b.wall for w, b in zip(times[name], times[base], strict=True)]
        row["wall_ratio"] = statistics.median(walls)
        lines.append((name, f"{row['cpu_ms']:.2f}", f"{row['wall_ms']:.2f}", ratio(row), f"{row['wall_ratio']:.3f}",
                      weights["apart"], weights.get("share", "")))  # fmt: skip
        about = {"job": title, "arm": name, "steps": job.steps, "repetitions": repetitions}
        kept.append({**about, **row, **weights})
    columns = ("arm", "CPU ms", "wall ms", f"CPU to {base} [quartiles]", "wall", "weights", "of their way")
    table(f"{title}: a step", columns, lines)
    return kept


def jobs() -> dict[str, tuple[Job, int]]:
    """Both methods on both networks, and how often each is repeated."""
    return {
        f"{name}, {job.network}, {job.shape[1]}x{job.shape[2]}, batch {job.batch}": (
            replace(job, options=options),
            repetitions,
        )
        for job, repetitions in ((MLP, 7), (UNET, 3))
        for name, options in METHODS.items()
    }


def step() -> Iterator[list[Row]]:
    """The Engine against the bare loop."""
    for title, (job, repetitions) in jobs().items():
        arms: dict[str, Arm] = {BARE: partial(bare, job, engines=True), OURS: partial(ours, job)}
        if job.network == MLP.network:
            arms["bare loop, numbers of its own"] = partial(bare, job)
        yield compare(job, title, arms, BARE, repetitions)


def peers() -> Iterator[list[Row]]:
    """Stillroom against FastGen."""
    if not installed("fastgen"):
        print("FastGen is not here: set FASTGEN to a clone of NVlabs/FastGen")
        return
    for title, (job, repetitions) in jobs().items():
        alike = replace(job, options=job.options | AS_FASTGEN)
        arms: dict[str, Arm] = {PEER: partial(fastgen, alike), OURS: partial(ours, alike)}
        if job.network == MLP.network:
            arms["FastGen, its default optimizers"] = partial(fastgen, alike, fused=False)
        yield [{**row, "fastgen": _commit()} for row in compare(alike, title, arms, PEER, repetitions)]


def _commit() -> str:
    folder = os.environ.get("FASTGEN", ".")
    done = subprocess.run(["git", "-C", folder, "rev-parse", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip()


# -- memory -------------------------------------------------------------------------------------------------------


def large() -> dict[str, Arm]:
    """Four steps whose activations outweigh what is imported."""
    job = replace(UNET, shape=(1, 28, 28), steps=4, options=AS_FASTGEN)
    found: dict[str, Arm] = {BARE: partial(bare, job, engines=True), OURS: partial(ours, job)}
    return found | ({PEER: partial(fastgen, job)} if installed("fastgen") else {})


def memory() -> Iterator[list[Row]]:
    """Peak memory of each arm in processes of its own."""
    found = {name: peak_memory(__file__, name, children=1) for name in large()}
    kept = []
    for name, row in found.items():
        base = found[BARE]
        ratios = {f"{key[:-3]}_ratio": value / base[key] for key, value in row.items()}
        kept.append({"arm": name, **row, **ratios})
    lines = [(r["arm"], *(f"{r[k]:.0f}" if k.endswith("mb") else f"{r[k]:.3f}" for k in
              ("peak_mb", "peak_ratio", "added_mb", "added_ratio"))) for r in kept]  # fmt: skip
    columns = ("arm", "peak MB", "ratio", "of it training MB", "ratio")
    table("Memory: f-distill, unet:32-64, batches of 32 x 1 x 28 x 28", columns, lines)
    yield kept


# -- sampling -----------------------------------------------------------------------------------------------------


def sampling(folder: str = "") -> Iterator[list[Row]]:
    """The default run of f-distill on the digits: what a sample costs and how far it is from data.

    All three samplers have the same network, so the student's is timed under the teacher's plan as well.
    """
    from stillroom.checkpoint import read_json
    from stillroom.generators.generation import Generation
    from stillroom.generators.parts.saving import load_sampler

    with tempfile.TemporaryDirectory() as made:
        run = Path(folder or f"{made}/run")
        if not folder:
            command = [sys.executable, "-W", "ignore", "-m", "stillroom", "run", "f-distill", "--seed", "100"]
            subprocess.run([*command, "--out", str(run)], check=True, stdout=subprocess.DEVNULL)
        arms = read_json(run / "result.json")["arms"]
        student = load_sampler(run / "student")
    teacher = Sampler(student.denoiser, Generation().plan)
    samplers = {name: teacher if name == "teacher" else student for name in arms}
    noise, labels = torch.randn(64, 1, 8, 8), torch.arange(64) % 10

    def arm(name: str) -> Arm:
        def go(watch: Stopwatch) -> None:
            with torch.inference_mode():
                samplers[name](noise, labels)
                watch.start()
                for _ in range(20):
                    samplers[name](noise, labels)
                watch.stop()

        return go

    times = rows(interleave({name: arm(name) for name in arms}, 15)[0], "teacher", 20 * len(noise))
    keys = ("frechet", "mmd", "precision", "recall")
    kept, lines = [], []
    for name, found in arms.items():
        test, row = found["test"], times[name]
        scores = {key: test[key] for key in (*keys, "frechet_floor", "mmd_floor")}
        kept.append({"arm": name, "evaluations": found["cost"]["evaluations"], **row, **scores})
        lines.append((name, str(found["cost"]["evaluations"]), f"{row['cpu_ms'] * 1e3:.1f}", ratio(row),
                      *(f"{test[key]:.3g}" for key in keys)))  # fmt: skip
    floors = [f"{test['frechet_floor']:.3g}", f"{test['mmd_floor']:.2g}"]
    lines.append(("other real digits (the floor)", "", "", "", *floors, "", ""))
    columns = ("sampler", "evaluations", "CPU us a sample", "to teacher [quartiles]", *keys)
    table("A one-step student and its teacher, digits, batches of 64", columns, lines)
    yield kept


# -- growth -------------------------------------------------------------------------------------------------------


SIDES, BATCHES = (8, 16, 28), (32, 64, 128, 256, 512)


def growth() -> Iterator[list[Row]]:
    """How a step of f-distill grows with the batch and the image's side."""
    for network, batch in ((MLP.network, 128), (UNET.network, 32)):
        few = 10 if network == MLP.network else 2
        base = Job(network, (1, 8, 8), batch, few)
        batches = {str(n): replace(base, batch=n) for n in BATCHES}
        sides = {f"{n}x{n}": replace(base, shape=(1, n, n)) for n in SIDES}
        yield _grow(f"batch, {network}, 8x8", batches)
        yield _grow(f"side, {network}, batch {batch}", sides)


def _grow(axis: str, points: Mapping[str, Job]) -> list[Row]:
    kept: list[Row] = []
    for point, job in points.items():
        arms: dict[str, Arm] = {BARE: partial(bare, job, engines=True), OURS: partial(ours, job)}
        times, made = interleave(arms, 3)
        row = rows(times, BARE, job.steps)[OURS]
        numbers = job.batch * torch.Size(job.shape).numel()
        about = {"axis": axis, "point": point, "numbers": numbers, "steps": job.steps, "repetitions": 3}
        row["us_per_sample"] = row["cpu_ms"] * 1e3 / job.batch
        kept.append({**about, **row, "apart": apart(made[BARE], made[OURS])})
    for row in kept:
        row["data_growth"] = row["numbers"] / kept[0]["numbers"]
        row["growth"] = row["cpu_ms"] / kept[0]["cpu_ms"]
    lines = [(r["point"], f"{r['cpu_ms']:.2f}", f"{r['us_per_sample']:.0f}", f"{r['data_growth']:.2f}",
              f"{r['growth']:.2f}", ratio(r), r["apart"]) for r in kept]  # fmt: skip
    columns = (axis, "CPU ms a step", "us a sample", "data x", "cost x", "to bare [quartiles]", "weights")
    table(f"Growing {axis}", columns, lines)
    return kept


PARTS: dict[str, Callable[[], Iterator[list[Row]]]] = {
    "step": step,
    "peers": peers,
    "memory": memory,
    "sampling": sampling,
    "growth": growth,
}


def main() -> None:
    """Measure, print, save; each part has a file of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; all where none is named"
    )
    parser.add_argument(
        "--run", default="", metavar="FOLDER", help="a run of f-distill that is there; empty: make one"
    )
    parser.add_argument("--memory", metavar="ARM", help="used by the benchmark itself")
    options = parser.parse_args()
    if options.memory:
        report_memory(large()[options.memory])
        return
    for part in options.parts or PARTS:
        found: list[Row] = []
        for rows_of_one in sampling(options.run) if part == "sampling" else PARTS[part]():
            found += rows_of_one
            save(f"generators-{part}", found)  # each time: some of these runs are long


if __name__ == "__main__":
    main()

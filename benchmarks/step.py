"""One step of `kd` by the Engine against a bare loop and against other packages: time, memory, equal weights.

    python benchmarks/step.py [--repetitions 21] [--no-memory]

The bare loop neither logs nor checks nor saves. The Engine writes its log here, and one row times its set-up and
last checkpoint as well. Every arm starts from the same weights and sees the same batches; the last columns show that
all students end with the weights of the bare loop.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from harness import Arm, interleave, peak_memory, ratio, report_memory, rows, save, table
from peers import ARMS as PEERS
from peers import installed
from problem import Problem, bare, difference, digits, fit, kd, noise

BARE, FUSED = "bare loop", "bare loop, fused optimizer"
NETWORKS = {"MLP": ("mlp:256", "mlp:12", 20), "CNN": ("cnn:32-64", "cnn:16-32-32", 4)}
"""Teacher, student, epochs."""


def ours(problem: Problem, watch: Any, **options: Any) -> Any:
    """The Engine."""
    return fit(problem, kd(), watch, **options)


def arms(problem: Problem) -> dict[str, Arm]:
    """All that is installed, by name."""
    found = {
        BARE: partial(bare, problem),
        FUSED: partial(bare, problem, fused=True),
        "stillroom": partial(ours, problem),
        "stillroom, with set-up and checkpoint": partial(ours, problem, whole=True),
        "stillroom, kept answers": partial(ours, problem, keep="memory"),
    }
    return found | {name: partial(arm, problem) for name, arm in PEERS.items() if installed(name)}


def measure(network: str, repetitions: int) -> list[dict[str, Any]]:
    """Time the arms on the digits, and compare their students."""
    teacher, student, epochs = NETWORKS[network]
    problem = digits(teacher, student, epochs)
    times, made = interleave(arms(problem), repetitions)
    found, fused = rows(times, BARE, problem.plan.steps), rows(times, FUSED)
    lines, kept = [], []
    for name, row in found.items():
        weights = {
            "to_bare": difference(made[name], made[BARE]),
            "to_fused": difference(made[name], made[FUSED]),
        }
        ms = (f"{row['cpu_ms']:.3f}", f"{row['wall_ms']:.3f}")
        lines.append((name, *ms, ratio(row), f"{fused[name]['ratio']:.3f}", *weights.values()))
        about = {"network": network, "arm": name, "steps": problem.plan.steps, "repetitions": repetitions}
        kept.append({**about, **row, "ratio_to_fused": fused[name]["ratio"], **weights})
    lines += [(name, "not installed", *[""] * 5) for name in PEERS if not installed(name)]
    columns = (
        "arm",
        "CPU ms",
        "wall ms",
        "ratio to bare [quartiles]",
        "to fused",
        "weights - bare",
        "- fused",
    )
    table(f"{network}: {teacher} teaches {student}, a step of 64 digits", columns, lines)
    return kept


def memory() -> list[dict[str, Any]]:
    """Peak memory of each arm in a process of its own, on a network with real activations."""
    names = [name for name in arms(large()) if name != "stillroom, with set-up and checkpoint"]
    found = {name: peak_memory(__file__, name) for name in names}
    base = found[BARE]
    kept = [
        {
            "network": "memory", "arm": name, **row,
            "peak_ratio": row["peak_mb"] / base["peak_mb"], "added_ratio": row["added_mb"] / base["added_mb"],
        }
        for name, row in found.items()
    ]  # fmt: skip
    lines = [
        (
            r["arm"],
            f"{r['peak_mb']:.0f}",
            f"{r['peak_ratio']:.3f}",
            f"{r['added_mb']:.0f}",
            f"{r['added_ratio']:.3f}",
        )
        for r in kept
    ]
    columns = ("arm", "peak MB", "ratio", "of it training MB", "ratio")
    table("Memory: cnn:64-128 teaches cnn:64-64, batches of 128 x 3 x 32 x 32", columns, lines)
    return kept


def large() -> Problem:
    """Four steps whose activations outweigh what is imported."""
    return noise((3, 32, 32), 512, 10, ("cnn:64-128", "cnn:64-64"), epochs=1, batch=128)


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=21)
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--memory", metavar="ARM", help="used by the benchmark itself")
    options = parser.parse_args()
    if options.memory:
        report_memory(arms(large())[options.memory])
        return
    found = [row for network in NETWORKS for row in measure(network, options.repetitions)]
    save("step", found if options.no_memory else found + memory())


if __name__ == "__main__":
    main()

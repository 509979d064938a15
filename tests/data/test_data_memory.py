"""A stream many times as large as the memory limit costs no more memory than a small one; killed, it leaves no trace.

Peak memory is what the kernel counts (ru_maxrss) in a process of its own: after a stream of 1,000 samples, and again
after one of 6,000 (295 MB of pixels, 1.18 GB as float32, under a limit of 16 MB), each loaded and gone through once
in the order of a plan.
"""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import IterableDataset

FEW, MANY, LIMIT = 1_000, 6_000, 16 * 2**20
SLACK = 64 * 2**20
"""Bytes that the longer stream may cost beyond the shorter one, which has 246 MB of pixels less.
What the libraries allocate varies by up to 50 MB from one process to the next.
"""


def _pixels(count: int = 64) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 128, 128, 3), dtype=np.uint8)


class Tensors(IterableDataset):
    """A torch stream of uint8 tensors, each its own memory."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[tuple[torch.Tensor, int]]:
        images = torch.from_numpy(_pixels()).permute(0, 3, 1, 2).contiguous()
        return ((images[i % 64] ^ (i // 64 % 256), i % 10) for i in range(self.count))


def _encoded() -> list[bytes]:
    from PIL import Image

    files = [io.BytesIO() for _ in range(64)]
    for pixels, file in zip(_pixels(), files, strict=True):
        Image.fromarray(pixels).save(file, "PNG", compress_level=0)
    return [file.getvalue() for file in files]


def _rows(count: int) -> Iterator[dict[str, object]]:
    files = _encoded()
    return ({"image": {"bytes": files[i % 64], "path": None}, "label": i % 10} for i in range(count))


def _stream(kind: str, count: int) -> object:
    if kind == "torch":
        return Tensors(count)
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    return datasets.IterableDataset.from_generator(_rows, features=features, gen_kwargs={"count": count})


def _used(kind: str, count: int) -> int:
    """Peak bytes of this process after loading and one epoch."""
    from stillroom.data import LazySource, load_images
    from stillroom.plan import Feeder, Plan

    data = load_images(_stream(kind, count), memory_limit=LIMIT)
    assert isinstance(data.train, LazySource)
    plan = Plan(len(data.train), 50, 1, 0)
    feeder = Feeder(plan, data.train, 0, 1, 1, torch.device("cpu"))
    assert sum(len(feeder.batches(step)[0][0]) for step in range(plan.steps)) == len(data.train)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _job(kind: str, *counts: str) -> None:
    print(json.dumps([_used(kind, int(count)) for count in counts]))


def _command(kind: str, *counts: int) -> list[str]:
    return [sys.executable, "-W", "ignore", __file__, kind, *map(str, counts)]


def _place(cache: Path) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "STILLROOM_CACHE": str(cache)}


@pytest.mark.parametrize("kind", ["torch", "datasets"])
def test_memory_is_flat(kind: str, tmp_path: Path) -> None:
    done = subprocess.run(
        _command(kind, FEW, MANY), env=_place(tmp_path), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    few, many = json.loads(done.stdout.splitlines()[-1])
    assert many - few < SLACK


def test_what_a_killed_process_left_goes_with_the_next_stream(tmp_path: Path) -> None:
    from stillroom.data.spool import Room, keep

    root = tmp_path / "streams"
    process = subprocess.Popen(_command("torch", 10**9), env=_place(tmp_path))
    try:
        end = time.monotonic() + 120
        while sum(file.stat().st_size for file in root.glob(".own-*/data.bin")) < 2**20:
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.05)
        keep(root, "other", lambda: iter([(torch.zeros(1, 2, 2), 0)]), Room("data 'd'", 10**9, None))
        assert len(list(root.glob(".own-*"))) == 1  # in use
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    keep(root, "another", lambda: iter([(torch.zeros(1, 2, 2), 0)]), Room("data 'd'", 10**9, None))
    assert sorted(path.name for path in root.glob("*") if path.is_dir()) == ["another", "other"]
    assert not list(root.glob("*own-*"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    _job(*sys.argv[1:])

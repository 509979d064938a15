"""A disk that is full, at every write of a run: one line, nothing that was there is lost, and the run goes on."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reliability.forks import QUICK, Forks, below
from reliability.outcomes import one_line, same


@pytest.fixture(scope="module")
def whole(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, list[str]]]:
    """An undisturbed run of each method, and its writes."""
    made = {}
    for method in ("nkd", "plain"):
        folder = tmp_path_factory.mktemp("whole")
        run, cache, log = folder / "run", folder / "cache", folder / "log"
        note = {"kind": "note", "folders": below(run, cache), "log": str(log)}
        assert forks.run("run", method, *QUICK, "--out", run, cache=cache, fault=note) == (0, "")
        made[method] = run, log.read_text().splitlines()
    return made


def resumed(forks: Forks, method: str, run: Path, cache: Path) -> None:
    words = ["--resume", run] if (run / "config.json").is_file() else [*QUICK, "--out", run]
    status, said = forks.run("run", method, *words, cache=cache)
    assert (status, said) == (0, ""), said


@pytest.mark.parametrize("method", ["plain", "nkd"])
def test_a_disk_that_is_full_from_any_write_on(
    method: str, forks: Forks, whole: dict[str, tuple[Path, list[str]]], tmp_path: Path
) -> None:
    """Every write of the plain run, and those of the other's teacher and cache, which it has not."""
    undisturbed, writes = whole[method]
    last = (
        next(i for i, write in enumerate(writes) if "arms/plain" in write) if method == "nkd" else len(writes)
    )
    for at in range(1, last + 1):
        run, cache = tmp_path / f"run-{at}", tmp_path / f"cache-{at}"
        full = {"kind": "full", "folders": below(run, cache), "at": at}
        status, said = forks.run("run", method, *QUICK, "--out", run, cache=cache, fault=full)
        assert status == 2, (writes[at - 1], status, said)
        assert "No space left on device" in one_line(said.splitlines()[-1]), writes[at - 1]
        resumed(forks, method, run, cache)
        assert same(undisturbed, run), writes[at - 1]


@pytest.mark.parametrize("most", [1200, 3000, 6000, 40_000])
def test_a_file_that_the_kernel_cuts_short(
    most: int, forks: Forks, whole: dict[str, tuple[Path, list[str]]], tmp_path: Path
) -> None:
    """The kernel's own limit on the size of a file: writes stop in the middle, in Python and in safetensors."""
    run, cache = tmp_path / "run", tmp_path / "cache"
    fault = {"kind": "limit", "at": most, "folders": []}
    status, said = forks.run("run", "nkd", *QUICK, "--out", run, cache=cache, fault=fault)
    assert status == 2
    assert "File too large" in one_line(said.splitlines()[-1])
    resumed(forks, "nkd", run, cache)
    assert same(whole["nkd"][0], run)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("room", [0, 20, 100, 200, 300])
def test_a_real_disk_that_fills_up(
    room: int, forks: Forks, whole: dict[str, tuple[Path, list[str]]], small_disk: Path
) -> None:
    """`room` kilobytes are left when the run starts; a run and its cache take more than 300."""
    filler, run, cache = small_disk / "filler", small_disk / "run", small_disk / "cache"
    with pytest.raises(OSError, match="No space"), open(filler, "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    os.truncate(filler, filler.stat().st_size - room * 1024)
    status, said = forks.run("run", "nkd", *QUICK, "--out", run, cache=cache)
    assert status == 2
    assert "No space left on device" in one_line(said.splitlines()[-1])
    filler.unlink()
    resumed(forks, "nkd", run, cache)
    assert same(whole["nkd"][0], run)


# -- what lies beside a run -------------------------------------------------------------------------------------


def test_a_cache_that_is_full_costs_no_run(
    forks: Forks, whole: dict[str, tuple[Path, list[str]]], tmp_path: Path
) -> None:
    """The teacher in hand is used and not kept, which is said."""
    run, cache = tmp_path / "run", tmp_path / "cache"
    full = {"kind": "full", "folders": below(cache), "at": 1}
    status, said = forks.run("run", "nkd", *QUICK, "--out", run, cache=cache, fault=full)
    assert status == 0
    assert "the teacher is not kept" in one_line(said)
    assert same(whole["nkd"][0], run)


def test_kept_samples_that_fill_the_disk(forks: Forks, small_disk: Path) -> None:
    """An array on disk is a file with holes: writing into one on a full disk is SIGBUS, unless it is filled first.

    Its size passes the check before writing, and another program takes the room after it.
    """
    child = forks.call("kept_samples", "crowded", cache=small_disk)
    assert child.wait() == 2, child.said
    assert "No space left on device" in one_line(child.said)
    (small_disk / "filler").unlink()
    assert forks.call("kept_samples", cache=small_disk).wait() == 0


@pytest.mark.parametrize("at", range(1, 6))
def test_evidence_is_the_old_or_the_new(at: int, forks: Forks, tmp_path: Path) -> None:
    """A claim that is recorded on a full disk leaves the entry that was there."""
    assert forks.call("evidence", str(tmp_path), "old").wait() == 0
    full = {"kind": "full", "folders": below(tmp_path), "at": at}
    child = forks.call("evidence", str(tmp_path), "new", fault=full)
    status = child.wait()
    entries: list[dict[str, Any]] = json.loads((tmp_path / "nkd-uskd.json").read_text())["claims"]
    assert (entries[0]["date"] == "new") or (status == 2 and entries[0]["date"] == "old")
    if status:
        assert "No space left on device" in one_line(child.said)
    assert forks.call("evidence", str(tmp_path), "new").wait() == 0
    assert json.loads((tmp_path / "nkd-uskd.json").read_text())["claims"][0]["date"] == "new"

"""Folders that cannot be written, were moved, have odd names, or come from another version."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from reliability.forks import QUICK, Forks
from reliability.outcomes import left, one_line, same
from stillroom import checkpoint


@pytest.fixture(scope="module")
def whole(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert forks.run("run", "plain", *QUICK, "--engine.checkpoint-every", "1", "--out", run) == (0, "")
    return run


def stopped(forks: Forks, run: Path) -> Path:
    """The same run, killed in the middle."""
    fault = {"kind": "kill", "at": 16, "folders": [str(run)]}
    words = [*QUICK, "--engine.checkpoint-every", "1", "--out", run]
    assert forks.run("run", "plain", *words, fault=fault)[0] == -9
    assert len(checkpoint.listing(run / "checkpoints")) > 0
    assert not (run / "result.json").exists()
    return run


@pytest.fixture
def read_only() -> Iterator[Callable[[Path], None]]:
    """Makes a folder one that cannot be written, by root neither."""
    mounted: list[Path] = []

    def make(folder: Path) -> None:
        if os.geteuid():
            folder.chmod(0o555)
            return
        bind = ["mount", "--bind", str(folder), str(folder)]
        if subprocess.run(bind, capture_output=True).returncode:
            pytest.skip("root that cannot mount can write everywhere")
        mounted.append(folder)
        subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)

    yield make
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_new_run_where_nothing_can_be_written(
    forks: Forks, tmp_path: Path, read_only: Callable[[Path], None]
) -> None:
    read_only(tmp_path)
    status, said = forks.run("run", "plain", *QUICK, "--out", tmp_path / "run")
    assert status == 2
    assert "cannot be written" in one_line(said)


def test_a_run_goes_on_once_it_can_be_written_again(
    forks: Forks, whole: Path, tmp_path: Path, read_only: Callable[[Path], None]
) -> None:
    run = stopped(forks, tmp_path / "run")
    shutil.copytree(run, tmp_path / "writable")
    read_only(run)
    status, said = forks.run("run", "plain", "--resume", run)
    assert status == 2
    assert f"go on with --resume {run}" in one_line(said)
    assert forks.run("run", "plain", "--resume", tmp_path / "writable") == (0, "")
    assert same(whole, tmp_path / "writable")


def test_a_page_that_cannot_be_written(
    forks: Forks, whole: Path, tmp_path: Path, read_only: Callable[[Path], None]
) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    read_only(run)
    status, said = forks.run("report", run)
    assert status == 2
    assert f"stillroom report {run}" in one_line(said)


def test_a_cache_that_cannot_be_written(
    forks: Forks, tmp_path: Path, read_only: Callable[[Path], None]
) -> None:
    """The teacher is trained, used, and not kept, which is said; a run that goes on has it from its own folder."""
    cache, run = tmp_path / "cache", tmp_path / "run"
    cache.mkdir()
    read_only(cache)
    status, said = forks.run("run", "nkd", *QUICK, "--out", run, cache=cache)
    assert status == 0
    assert "the teacher is not kept" in one_line(said)
    assert left(run)


def test_a_run_that_was_moved_goes_on(forks: Forks, whole: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "under another name"
    moved.parent.mkdir()
    stopped(forks, tmp_path / "run").rename(moved)
    assert forks.run("run", "plain", "--resume", moved) == (0, "")
    assert same(whole, moved)


@pytest.mark.parametrize(
    "name",
    ["a[/b]", "[red]", "line\nbreak", "bell\a\x1b[2J", "\u202eright to left", "-", "ü × 字"],
    ids=ascii,
)
def test_a_folder_of_any_name(name: str, forks: Forks, whole: Path, tmp_path: Path) -> None:
    """Killed and gone on with; what is said of it is a line that obeys nobody."""
    run = stopped(forks, tmp_path / name)
    status, said = forks.run("run", "plain", *QUICK, "--out", run)
    assert status == 2
    one_line(said)
    child = forks.start("run", "plain", "--resume", run)
    assert (child.wait(), child.said) == (0, "")
    page = [line for line in child.printed.splitlines() if line.startswith("page")]
    assert len(page) == 1 and page[0].endswith("/report.html") and page[0].isprintable()
    assert same(whole, run)


def test_a_folder_whose_name_is_no_text(forks: Forks, tmp_path: Path) -> None:
    """safetensors writes to it and cannot read it again: refused before anything is done."""
    run = tmp_path / os.fsdecode(b"caf\xe9")
    status, said = forks.run("run", "plain", *QUICK, "--out", run)
    assert status == 2
    assert "is no UTF-8" in one_line(said)
    assert not run.exists()


def test_another_version_is_said(forks: Forks, whole: Path, tmp_path: Path) -> None:
    """A run goes on, but its bits may not be those that the first version would have made."""
    run = stopped(forks, tmp_path / "run")
    newest = checkpoint.listing(run / "checkpoints")[-1]
    state, files = checkpoint.load(newest)
    rest = {key: value for key, value in state.items() if key not in ("files", "sums", "versions")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "made_with", lambda: {"torch": "1.13.1"})
        checkpoint.save(newest.parent, state["step"], files, rest, keep=2)
    status, said = forks.run("run", "plain", "--resume", run)
    assert status == 0
    assert "begun with torch 1.13.1 and goes on with" in one_line(said)
    assert same(whole, run)

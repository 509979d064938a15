"""Arrays on disk that several processes fill: each block once, whoever is killed, and damage made good."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stillroom import store as module
from stillroom.errors import UserError
from stillroom.store import Store, filled


def rows(ids: range) -> dict[str, Tensor]:
    x = torch.tensor(list(ids), dtype=torch.float32)
    return {"x": x.view(-1, 1).expand(-1, 3).half(), "label": x.long(), "on": x > 10}


class Asked:
    """Makes rows and notes which."""

    def __init__(self, die_at: int = -1) -> None:
        self.ranges: list[range] = []
        self.die_at = die_at

    def __call__(self, ids: range) -> dict[str, Tensor]:
        if ids.start == self.die_at:
            raise ConnectionAbortedError
        self.ranges.append(ids)
        return rows(ids)


def whole(store: Store) -> None:
    assert store.rows("label").tolist() == list(range(25))
    assert store.rows("x")[:, 0].tolist() == [float(i) for i in range(25)]
    assert store.stored("x").dtype == torch.float16
    assert store.stored("on", torch.tensor([10, 11])).tolist() == [False, True]


def test_blocks_are_made_once(tmp_path: Path) -> None:
    make = Asked()
    whole(filled(tmp_path / "a", 25, 10, make, "things", {"for": "a test"}))
    whole(filled(tmp_path / "a", 25, 10, make, "things"))
    assert make.ranges == [range(10), range(10, 20), range(20, 25)]
    assert Store(tmp_path / "a").about["made of"] == {"for": "a test"}
    assert Store(tmp_path / "a").bytes == 25 * (6 + 8 + 1)


def test_a_making_that_died_goes_on(tmp_path: Path) -> None:
    with pytest.raises(ConnectionAbortedError):
        filled(tmp_path / "a", 25, 10, Asked(die_at=20), "things")
    make = Asked()
    whole(filled(tmp_path / "a", 25, 10, make, "things"))
    assert make.ranges == [range(20, 25)]


def test_a_making_that_died_before_its_first_block_starts_again(tmp_path: Path) -> None:
    with pytest.raises(ConnectionAbortedError):
        filled(tmp_path / "a", 25, 10, Asked(die_at=0), "things")
    (tmp_path / "a" / "x.npy").write_bytes(b"half of a heade")
    whole(filled(tmp_path / "a", 25, 10, rows, "things"))


def test_a_block_that_changed_on_disk_is_made_anew(tmp_path: Path) -> None:
    filled(tmp_path / "a", 25, 10, rows, "things")
    path = tmp_path / "a" / "x.npy"
    data = bytearray(path.read_bytes())
    data[-6 * 10] ^= 1  # in row 15
    path.write_bytes(data)
    make = Asked()
    whole(filled(tmp_path / "a", 25, 10, make, "things"))
    assert make.ranges == [range(10, 20)]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("x.npy", b"x"),
        ("x.npy", None),
        ("about.json", b'{"count": 25, '),
        ("about.json", b"[]"),
        ("_blocks.npy", b""),
    ],
)
def test_other_damage_is_one_line(tmp_path: Path, file: str, content: bytes | None) -> None:
    filled(tmp_path / "a", 25, 10, rows, "things")
    path = tmp_path / "a" / file
    path.write_bytes(path.read_bytes()[:-20] if content is None else content)
    with pytest.raises(
        UserError, match=r"^the kept samples '.*' are damaged \(.*\): remove that folder.*$"
    ) as caught:
        filled(tmp_path / "a", 25, 10, rows, "things")
    assert "\n" not in str(caught.value)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    import numpy as np

    filled(tmp_path / "a", 25, 10, rows, "things")
    np.save(tmp_path / "a" / "x.npy", np.array([object()] * 25), allow_pickle=True)
    with pytest.raises(UserError, match="are damaged"):
        Store(tmp_path / "a")


def test_a_disk_without_room_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: type("Free", (), {"free": 100})())
    with pytest.raises(UserError, match=r"^25 things take 0.0 GB and '.*' has 0.0 GB free: ask for fewer"):
        filled(tmp_path / "a", 25, 10, rows, "things")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="room cannot be taken beforehand")
def test_room_that_others_took_meanwhile_is_one_line_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"^'.*' cannot be written \(No space left on device\): make room"):
        filled(tmp_path / "a", 25, 10, rows, "things")
    monkeypatch.undo()
    monkeypatch.setattr(module.os, "pwrite", full)
    with pytest.raises(UserError, match=r"^'.*' cannot be written \(No space left on device\): make room"):
        filled(tmp_path / "a", 25, 10, rows, "things")
    monkeypatch.undo()
    whole(filled(tmp_path / "a", 25, 10, rows, "things"))


def test_rows_that_do_not_fit_the_array_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rows of"):
        filled(tmp_path / "a", 25, 10, lambda ids: {"x": torch.zeros(len(ids), 1 + ids.start)}, "things")


# -- several processes ------------------------------------------------------------------------------------------

MAKER = """
import sys, time, torch
from pathlib import Path
from stillroom.store import filled
folder, log, me, hang = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
def make(ids):
    with log.open("a") as file:
        file.write(f"{me} {ids.start}\\n")
    time.sleep(600 if ids.start == hang else 0.05)
    return {"x": torch.arange(ids.start, ids.stop)}
filled(folder, 40, 4, make, "things")
"""


def maker(folder: Path, log: Path, name: str, hang: int = -1) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", MAKER, str(folder), str(log), name, str(hang)])


def made(log: Path) -> list[tuple[str, int]]:
    lines = log.read_text().splitlines() if log.exists() else []
    return [(name, int(start)) for name, start in (line.split() for line in lines)]


def test_two_processes_share_the_blocks_out(tmp_path: Path) -> None:
    makers = [maker(tmp_path / "a", tmp_path / "log", name) for name in "ab"]
    assert [process.wait(60) for process in makers] == [0, 0]
    assert Counter(start for _, start in made(tmp_path / "log")) == dict.fromkeys(range(0, 40, 4), 1)
    assert Store(tmp_path / "a").rows("x").tolist() == list(range(40))


def test_what_a_killed_process_was_making_is_made_by_another(tmp_path: Path) -> None:
    stuck = maker(tmp_path / "a", tmp_path / "log", "stuck", hang=8)
    while ("stuck", 8) not in made(tmp_path / "log"):
        time.sleep(0.02)
    other = maker(tmp_path / "a", tmp_path / "log", "other")
    while ("other", 36) not in made(tmp_path / "log"):
        time.sleep(0.02)
    time.sleep(0.2)
    assert other.poll() is None  # it waits for the block that is being made
    stuck.send_signal(signal.SIGKILL)
    stuck.wait()
    assert other.wait(60) == 0
    assert ("other", 8) in made(tmp_path / "log")
    assert Store(tmp_path / "a").rows("x").tolist() == list(range(40))

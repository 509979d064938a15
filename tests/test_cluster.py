"""A Ray cluster: what a node must be like, addresses that lead nowhere, and a local cluster of two workers."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from processes import Mortal, environment
from stillroom import cluster
from stillroom.claim import Grid, measure
from stillroom.cluster import Cluster, Home
from stillroom.engine import Engine
from stillroom.errors import UserError
from stillroom.method import Method
from toys import Centred, Fit, Toy

GRID = Grid({"plain": Fit()}, Toy(), Engine(), [0])


def test_a_node_like_this_one_is_a_home() -> None:
    Home.of(GRID).enter(GRID)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"code": "x"}, "has another Stillroom or other versions"),
        ({"data": "x"}, "has other data under the same name"),
    ],
)
def test_a_node_that_would_give_other_numbers_is_refused(change: dict[str, str], says: str) -> None:
    with pytest.raises(UserError, match=rf"^node '{socket.gethostname()}' of the Ray cluster {says}.*: "):
        replace(Home.of(GRID), **change).enter(GRID)


def test_a_node_without_the_data_says_which_node(monkeypatch: pytest.MonkeyPatch) -> None:
    home = Home.of(GRID)

    def gone(self: Toy) -> str:
        raise UserError("data folder '/data' does not exist: pass another")

    monkeypatch.setattr(Toy, "fingerprint", gone)
    with pytest.raises(
        UserError, match=rf"^node '{socket.gethostname()}' of the Ray cluster: data folder '/data'"
    ):
        home.enter(GRID)


def test_a_node_works_in_this_machine_s_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    home = replace(Home.of(GRID), cache="/shared/cache")
    monkeypatch.setenv("STILLROOM_CACHE", "/elsewhere")
    home.enter(GRID)
    assert Home.of(GRID).cache == "/shared/cache"


# -- addresses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["nonsense", "host", "ray://", ":1", "host:port"])
def test_what_is_no_address_is_said_to_be_none(address: str) -> None:
    with pytest.raises(UserError, match=f"^--ray '{address}' is no address: pass HOST:PORT"):
        Cluster(address)


@pytest.mark.parametrize("before", ["", "ray://"])
def test_an_address_that_nobody_answers_at_is_refused_at_once(before: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"{before}127.0.0.1:{free.getsockname()[1]}"  # bound, but nobody listens
        with pytest.raises(
            UserError, match=rf"^--ray '{address}' cannot be joined \(Connection refused\): start"
        ):
            Cluster(address)


def test_an_address_at_which_something_else_answers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray itself would try for two minutes."""
    pytest.importorskip("ray")
    monkeypatch.setattr(cluster, "TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(
            UserError, match=rf"^--ray '{address}' cannot be joined \(what answers there is no Ray\)"
        ):
            Cluster(address)


def test_without_ray_the_way_to_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r'^--ray needs Ray: pip install "stillroom\[cluster\]"$'):
        Cluster("local")


# -- a cluster --------------------------------------------------------------------------------------------------


def test_a_local_cluster_measures_what_this_process_does_though_a_worker_is_killed(
    tmp_path: Path, shared_cache: Path
) -> None:
    pytest.importorskip("ray")
    (tmp_path / "trap").mkdir()
    arms: dict[str, Method] = {
        "plain": Fit(),
        "centred": Centred(),
        "mortal": Mortal(trap=str(tmp_path / "trap")),
    }
    alone = dict(measure(Grid(arms, Toy(), Engine(epochs=2, batch_size=8), [0, 1])))
    (tmp_path / "trap" / "bullet").touch()
    job = f"import processes, pathlib; processes.on_ray(['rows'], pathlib.Path({str(tmp_path)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", job],
        env=environment(shared_cache),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert not list((tmp_path / "trap").iterdir())
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert sorted(seed for seed, _ in rows) == [0, 1]
    for seed, cells in rows:
        assert {a: c["test"] for a, c in cells.items()} == {a: c["test"] for a, c in alone[seed].items()}
    assert len(list((tmp_path / "store").iterdir())) == 6

"""A name of the hub without a hub: one line within seconds, whether nobody answers or the line is dead."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from reliability.outcomes import one_line
from stillroom.cli import main

SECONDS = 15
"""A refused connection takes none, a dead line two waits of five; left alone, both take most of a minute."""


@pytest.fixture(params=["refused", "dead", "offline mode"])
def no_hub(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A hub that is not there: a port that nobody listens at, one that takes calls and says nothing, or none asked."""
    import huggingface_hub
    from huggingface_hub import constants

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        if request.param == "dead":
            listening.listen(64)
        where = f"http://127.0.0.1:{listening.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", where)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", where + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", request.param == "offline mode")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        for name in ("HF_HUB_CACHE", "HF_HOME"):
            monkeypatch.setenv(name, str(tmp_path / "hub"))
        monkeypatch.setattr(huggingface_hub.HfApi, "endpoint", where, raising=False)
        yield


@pytest.mark.parametrize(
    "words",
    [
        ["--task.data", "somebody/pictures"],
        [
            "--task.teacher",
            "timm:resnet18",
            "--task.teacher-weights",
            "pretrained",
            "--task.image-size",
            "32",
        ],
    ],
    ids=["data", "timm"],
)
def test_one_line_within_seconds(
    words: list[str], no_hub: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "timm:resnet18" in words:
        pytest.importorskip("timm")
    began = time.monotonic()
    assert main(["run", "nkd", *words, "--out", str(tmp_path / "run")]) == 2
    assert time.monotonic() - began < SECONDS
    line = one_line(capsys.readouterr().err)
    assert "somebody/pictures" in line or "timm:resnet18" in line
    assert not (tmp_path / "run").exists()

"""Small finished runs that the tests of exporting share."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from stillroom import catalogue
from stillroom.run import Run
from stillroom.workflow import Job, execute


def finished(folder: Path, method: str, **task: Any) -> Run:
    """A quick run of a method on its default task with other options."""
    kind = catalogue.find(method).load()
    job = Job(kind().quick(), kind.default_task().quick().but(**task), kind.default_engine().quick(), seed=0)
    return execute(job, folder)[0]


@pytest.fixture(scope="session")
def classified(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """NKD on the digits, mlp:256 into mlp:12."""
    return finished(tmp_path_factory.mktemp("nkd") / "run", "nkd")


@pytest.fixture
def run(classified: Run, tmp_path: Path) -> Run:
    """A copy of it, to be written into and damaged."""
    shutil.copytree(classified.path, tmp_path / "run")
    return Run(tmp_path / "run")

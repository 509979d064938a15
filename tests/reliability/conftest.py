"""One parent of runs for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from reliability.forks import Forks


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    with Forks(tmp_path_factory.mktemp("heard"), tmp_path_factory.mktemp("forks-cache")) as started:
        yield started

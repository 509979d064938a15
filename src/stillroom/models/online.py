"""The hub of models where it answers, its cache on this disk where it does not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

PATIENCE = 5.0
"""Seconds in which a hub that is there begins to answer."""


@contextmanager
def hub_or_cache() -> Iterator[None]:
    """Inside, the libraries of the hub ask it where it answers at all, and else its cache.

    Left alone they ask a hub that is not there six times a file, with waits between, for most of a minute.
    Raises OSError where neither has what is asked for.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalEntryNotFoundError

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not _answers(constants.ENDPOINT)
    try:
        yield
    except LocalEntryNotFoundError as error:
        raise OSError("the hub does not answer, and its cache on this disk has none") from error
    finally:
        constants.HF_HUB_OFFLINE = before


def _answers(endpoint: str) -> bool:
    from huggingface_hub import get_session

    try:
        get_session().head(endpoint, timeout=PATIENCE)
    except Exception:  # of the http library, which changes between releases of huggingface_hub
        return False
    return True

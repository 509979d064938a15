"""The hub of models and the library transformers, as the rooms that need them take them: quiet, and quick to answer."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from stillroom.errors import UserError

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


def asked(place: str | Path) -> AbstractContextManager[None]:
    """Inside, `place` can be read: a folder as it is, a name by `hub_or_cache`."""
    return nullcontext() if Path(place).is_dir() else hub_or_cache()


def _answers(endpoint: str) -> bool:
    from huggingface_hub import get_session

    try:
        get_session().head(endpoint, timeout=PATIENCE)
    except Exception:  # of the http library, which changes between releases of huggingface_hub
        return False
    return True


def transformers() -> Any:
    """The library; UserError where it is not installed."""
    try:
        import transformers as library
    except ImportError:
        raise UserError('transformers is not installed: pip install "stillroom[text]"') from None
    return library


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, transformers and the hub print nothing but errors: no table of new weights, no warning, no bars."""
    said = transformers().utils.logging
    level, bars = said.get_verbosity(), said.is_progress_bar_enabled()
    hub = logging.getLogger("huggingface_hub")
    before = hub.level
    said.set_verbosity_error()
    said.disable_progress_bar()
    hub.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        hub.setLevel(before)
        said.set_verbosity(level)
        if bars:
            said.enable_progress_bar()

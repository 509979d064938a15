"""Where what is kept between runs lies: trained teachers, their answers, samples that they made, streams, cells."""

from __future__ import annotations

import os
from pathlib import Path


def cache() -> Path:
    """The folder: $STILLROOM_CACHE, or `stillroom` in the user's cache folder."""
    base = os.environ.get("STILLROOM_CACHE")
    return (
        Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "stillroom"
    )

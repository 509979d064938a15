"""python -m stillroom."""

from __future__ import annotations

from stillroom.cli import program

program()

"""Classifiers by name or folder, smaller ones made of them, and the folder that a student is kept in."""

from __future__ import annotations

from stillroom.models.contract import check
from stillroom.models.files import load_student, read_config, save_student
from stillroom.models.names import build
from stillroom.models.places import middle
from stillroom.models.shrinking import shrink
from stillroom.models.wrapping import describe, library_module

__all__ = [
    "build",
    "check",
    "describe",
    "library_module",
    "load_student",
    "middle",
    "read_config",
    "save_student",
    "shrink",
]

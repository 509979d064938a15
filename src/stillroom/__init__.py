"""Stillroom: distillation, in every sense of the word, in one toolkit."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stillroom.catalogue import entries as methods
    from stillroom.claim import Claim
    from stillroom.condensing import condense
    from stillroom.engine import Engine
    from stillroom.errors import UserError
    from stillroom.exporting.writing import export
    from stillroom.method import Batch, Gather, Mean, Method, Result, Update
    from stillroom.optim import Recipe
    from stillroom.run import Run
    from stillroom.task import Task
    from stillroom.teacher import Teacher
    from stillroom.workflow import distill

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "Claim",
    "Engine",
    "Gather",
    "Mean",
    "Method",
    "Recipe",
    "Result",
    "Run",
    "Task",
    "Teacher",
    "Update",
    "UserError",
    "condense",
    "distill",
    "export",
    "methods",
]

_HOMES = {
    "catalogue": ("entries as methods",),
    "claim": ("Claim",),
    "condensing": ("condense",),
    "engine": ("Engine",),
    "errors": ("UserError",),
    "exporting.writing": ("export",),
    "method": ("Batch", "Gather", "Mean", "Method", "Result", "Update"),
    "optim": ("Recipe",),
    "run": ("Run",),
    "task": ("Task",),
    "teacher": ("Teacher",),
    "workflow": ("distill",),
}


def __getattr__(name: str) -> Any:
    """Public names are imported when they are asked for, so that `import stillroom` costs nothing."""
    for module, names in _HOMES.items():
        for entry in names:
            own, _, public = entry.partition(" as ")
            if name == (public or own):
                return getattr(importlib.import_module(f"stillroom.{module}"), own)
    raise AttributeError(f"module 'stillroom' has no attribute '{name}'")

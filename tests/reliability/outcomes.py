"""What a run has to say and to leave, whatever happened to it on the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CLOCKED = ("seconds", "costs", "cost", "finished", "command", "machine")
"""Of result.json, what is read off a clock or says how the run was called."""


def one_line(said: str) -> str:
    """The line that `said` is; AssertionError where it is more, or no line of ours."""
    lines = said.splitlines()
    assert len(lines) == 1 and lines[0].startswith("stillroom: "), said
    assert ": " in lines[0].removeprefix("stillroom: "), f"no way out: {said}"
    assert lines[0].isprintable(), ascii(said)
    return lines[0]


def left(run: Path) -> dict[str, Any]:
    """All that a finished run leaves and that a clock has no part in, by path below it."""
    found: dict[str, Any] = {"result": _unclocked(json.loads((run / "result.json").read_text()))}
    for file in sorted([*run.rglob("metrics.jsonl"), *run.glob("student/*.safetensors")]):
        found[str(file.relative_to(run))] = file.read_bytes()
    assert (run / "report.html").stat().st_size > 1000
    assert any(name.startswith("student/") for name in found), "the run left no student"
    return found


def same(one: Path, other: Path) -> bool:
    """Whether two runs ended with the same bits."""
    return left(one) == left(other)


def _unclocked(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _unclocked(v) for key, v in value.items() if not key.startswith(CLOCKED)}
    return [_unclocked(v) for v in value] if isinstance(value, list) else value

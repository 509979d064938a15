"""The table of faults names tests, and each of them is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| fault")]
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def functions_in(file: Path) -> set[str]:
    return {
        node.name
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef)
    }


def test_each_row_names_tests_that_are_there() -> None:
    assert len(ROWS) > 40
    for row in ROWS:
        named = NAMED.findall(row.split("|")[3])
        assert named, f"no test: {row}"
        for file, name in named:
            assert (ROOT / file).is_file() and name in functions_in(ROOT / file), f"{file}::{name}"


def test_each_test_of_a_fault_is_named() -> None:
    """But those that show that something harmless is no fault."""
    harmless = {
        "test_a_mask_of_infinities_is_no_fault",
        "test_a_checkpoint_of_an_earlier_version_is_read",
        "test_a_link_where_no_run_writes_is_left_alone",
    }
    named = {name for row in ROWS for _, name in NAMED.findall(row)}
    for file in Path(__file__).parent.glob("test_*.py"):
        if file != Path(__file__):
            there = {name for name in functions_in(file) if name.startswith("test_")}
            assert there - named - harmless == set(), file.name

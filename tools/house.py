"""The rules of the house that no general linter knows: `python tools/house.py` prints a line each, exit status 1.

Sizes of files and functions, no device word outside the Engine, nothing that unpickles, no paper that imports
another paper, no loose ends, no torch where start-up must be fast, a docstring on all that is public.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from stillroom import catalogue

ROOT = Path(__file__).resolve().parents[1]
FILE_LINES, FUNCTION_LINES = 400, 45
DATA_ONLY = {"_cards.py"}
KNOW_DEVICES = {"engine.py", "runtime.py"}
TORCHLESS = {"cli.py", "catalogue.py", "_cards.py", "errors.py"}
MAY_IMPORT_TORCH = {"models", "data", "metrics"}
"""Folders whose `__init__.py` may: whoever imports them needs it anyway."""

DEVICE = re.compile(r"(?<![a-z])cuda|\bmps\b|\.to\((?:device=)?[\"']cpu[\"']\)")
UNPICKLES = re.compile(
    r"(?<![a-z])(?:cloud|c)?pickle\b|torch\.load\((?!.*weights_only=True\b)|weights_only=False"
)
LOOSE_END = re.compile(r"\b(?:TODO|FIXME)\b")

Finding = tuple[int, str]
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class File:
    """A file of the package, read once for all rules."""

    path: Path
    source: Path
    """The folder that holds the package `stillroom`."""

    @cached_property
    def text(self) -> str:
        """What is in it."""
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def tree(self) -> ast.Module:
        """Its syntax tree; SyntaxError where there is none."""
        return ast.parse(self.text)

    @cached_property
    def place(self) -> Path:
        """Where it is in the package: `predictors/labels/nkd_uskd.py`."""
        return self.path.relative_to(self.source / "stillroom")

    @cached_property
    def module(self) -> str:
        """Its dotted name; of a package's `__init__.py` the package's."""
        parts = self.path.relative_to(self.source).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @cached_property
    def code(self) -> list[str]:
        """Its lines without comments and docstrings, in which words are only words."""
        lines = self.text.splitlines()
        for token in tokenize.generate_tokens(io.StringIO(self.text).readline):
            if token.type == tokenize.COMMENT:
                row, column = token.start
                lines[row - 1] = lines[row - 1][:column]
        for node in ast.walk(self.tree):
            text = node.value if isinstance(node, ast.Expr) else None
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                end = text.end_lineno or text.lineno
                lines[text.lineno - 1 : end] = [""] * (end - text.lineno + 1)
        return lines


# -- the rules ------------------------------------------------------------------------------------------------


def long_file(file: File) -> Iterator[Finding]:
    """A file is read in five minutes."""
    lines = len(file.text.splitlines())
    if lines > FILE_LINES and file.path.name not in DATA_ONLY:
        yield lines, f"the file has {lines} lines, more than {FILE_LINES}: split it"


def long_function(file: File) -> Iterator[Finding]:
    """A function fits on a screen."""
    for node in ast.walk(file.tree):
        if isinstance(node, Function):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION_LINES:
                yield node.lineno, f"'{node.name}' has {lines} lines, more than {FUNCTION_LINES}: split it"


def device_word(file: File) -> Iterator[Finding]:
    """Only the Engine knows a device."""
    if file.place.as_posix() not in KNOW_DEVICES:
        for line, word in _words(file.code, DEVICE):
            yield line, f"the device word '{word}' stands outside the Engine: ask the Runtime"


def unpickling(file: File) -> Iterator[Finding]:
    """Reading a file never runs what is in it."""
    for line, word in _words(file.code, UNPICKLES):
        yield line, f"'{word}' can run what a file says: use safetensors or JSON"


def loose_end(file: File) -> Iterator[Finding]:
    """What is not done is in an issue and not in the code."""
    for line, word in _words(file.text.splitlines(), LOOSE_END):
        yield line, f"a {word} is left: do it, or open an issue"


def paper_imports_paper(file: File) -> Iterator[Finding]:
    """What two papers share is in the family's `parts/`; the baselines are everybody's."""
    own = next((paper for paper in PAPERS if _within(file.module, paper)), None)
    if own is None:
        return
    for node in ast.walk(file.tree):
        for name in _imported(node, file):
            other = next((paper for paper in PAPERS if _within(name, paper)), own)
            if other not in (own, *BASELINES):
                yield node.lineno, f"the paper imports the paper '{other}': move what they share to parts/"
                break


def torch_at_start_up(file: File) -> Iterator[Finding]:
    """`--help` and `list` answer before torch could be imported."""
    place = file.place
    package = place.name == "__init__.py" and place.parts[0] not in MAY_IMPORT_TORCH
    if not package and place.as_posix() not in TORCHLESS:
        return
    for node in _at_import(file.tree):
        if any(_within(name, "torch") for name in _imported(node, file)):
            yield node.lineno, "torch is imported at the top: import it inside the function that needs it"


def undocumented(file: File) -> Iterator[Finding]:
    """Whatever has a public name says what it is."""
    for node in _public(file.tree):
        if ast.get_docstring(node) is None:
            yield node.lineno, f"'{node.name}' is public and has no docstring: write one"


RULES: tuple[Callable[[File], Iterator[Finding]], ...] = (
    long_file,
    long_function,
    device_word,
    unpickling,
    loose_end,
    paper_imports_paper,
    torch_at_start_up,
    undocumented,
)

PAPERS = {catalogue.module_of(card) for card in catalogue.cards()}
BASELINES = [catalogue.module_of(card) for card in catalogue.BASELINES]


# -- how they look --------------------------------------------------------------------------------------------


def _words(lines: list[str], pattern: re.Pattern[str]) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(lines, 1):
        found = pattern.search(line)
        if found:
            yield number, found[0]


def _within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def _imported(node: ast.AST, file: File) -> list[str]:
    """The dotted names that an import statement can bring in; none for other nodes."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    base = node.module or ""
    if node.level:
        up = node.level - (file.path.name == "__init__.py")
        above = file.module.split(".")
        base = ".".join([*above[: len(above) - up], *([base] if base else [])])
    return [base, *(f"{base}.{alias.name}" for alias in node.names)]


def _at_import(tree: ast.AST) -> Iterator[ast.AST]:
    """The statements that run when the module is imported."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, Function | ast.Lambda):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            continue
        yield node
        yield from _at_import(node)


def _public(tree: ast.Module | ast.ClassDef) -> Iterator[Function | ast.ClassDef]:
    """Public classes and functions and the public methods of those classes; stubs of overloads say nothing."""
    for node in tree.body:
        if not isinstance(node, Function | ast.ClassDef) or node.name.startswith("_"):
            continue
        marks = [ast.unparse(mark) for mark in node.decorator_list]
        if any(mark.endswith(("overload", ".setter", ".deleter")) for mark in marks):
            continue
        yield node
        if isinstance(node, ast.ClassDef) and not any("Protocol" in ast.unparse(base) for base in node.bases):
            yield from _public(node)


# -- all of it ------------------------------------------------------------------------------------------------


def findings(root: Path = ROOT) -> list[str]:
    """What the rules find in `root/src`, a line each, by file and line."""
    source = root / "src"
    found = []
    for path in sorted((source / "stillroom").rglob("*.py")):
        file = File(path, source)
        odd = sorted({finding for rule in RULES for finding in rule(file)})
        found += [f"{path.relative_to(root)}:{line}: {says}" for line, says in odd]
    return found


def main(root: Path = ROOT) -> int:
    """Print the findings; returns the exit status."""
    found = findings(root)
    for line in found:
        print(line)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

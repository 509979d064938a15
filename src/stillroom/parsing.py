"""From words on the command line to a dataclass of options; a mistake is one line. Imports no torch."""

from __future__ import annotations

import contextlib
import difflib
import io
import os
import re
from collections.abc import Sequence
from typing import Any, TypeVar

from stillroom.errors import UserError

T = TypeVar("T")


def leading(args: list[str]) -> list[str]:
    """The words before the first option."""
    end = next((i for i, arg in enumerate(args) if arg.startswith("-")), len(args))
    return args[:end]


def parse(kind: type[T], args: Sequence[str], prog: str, default: T | None = None) -> T:
    """`args` as an instance of the dataclass `kind`; a mistake is one line, in a UserError."""
    import tyro

    extra: dict[str, Any] = {} if default is None else {"default": default}
    if "-h" in args or "--help" in args:
        tyro.cli(kind, args=args, prog=prog, **extra)
    caught = io.StringIO()
    try:
        with _wide(), contextlib.redirect_stderr(caught), contextlib.redirect_stdout(caught):
            value, unknown = tyro.cli(kind, args=args, prog=prog, return_unknown_args=True, **extra)
    except SystemExit:
        raise UserError(f"{_one_line(caught.getvalue())}: see {prog} --help") from None
    if unknown and not unknown[0].startswith("-"):
        raise UserError(f"the word '{unknown[0]}' belongs to no option: see {prog} --help")
    if unknown:
        raise UserError(_unknown(unknown[0], default if default is not None else value, prog))
    return value


@contextlib.contextmanager
def _wide() -> Any:
    """Messages are laid out for the width of the terminal; here they are read, not shown."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "1000"
    try:
        yield
    finally:
        os.environ.pop("COLUMNS")
        if before is not None:
            os.environ["COLUMNS"] = before


def _one_line(box: str) -> str:
    """The message inside tyro's box: what stands between its first two rules."""
    lines = [re.sub(r"[│╭╮╰╯─]", " ", line).strip() for line in box.splitlines()]
    rules = [i for i, line in enumerate(lines) if line and set(line) == {"-"}]
    if not rules:
        return " ".join(line for line in lines if line) or "the options cannot be read"
    end = rules[1] if len(rules) > 1 else len(lines)
    found = " ".join(line for line in lines[rules[0] + 1 : end] if line)
    found = re.sub(r"invalid literal for int\(\) with base 10: ('.*?')", r"\1 is no whole number", found)
    found = re.sub(r"could not convert string to float: ('.*?')", r"\1 is no number", found)
    return found.removeprefix("Error parsing ").rstrip(".")


def _unknown(word: str, options: Any, prog: str) -> str:
    from stillroom.options import describe

    flag = word.split("=")[0].replace("_", "-")
    known = [option.flag for option in describe(options)]
    near = difflib.get_close_matches(flag, known, n=1, cutoff=0.7)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"there is no option '{word}': {hint}see {prog} --help"


def value_of(flag: str, args: list[str]) -> str:
    """The value of a flag that is needed before the other options can be read; empty where it is not there."""
    for i, arg in enumerate(args):
        if arg == flag and i + 1 < len(args):
            return args[i + 1]
        if arg.startswith(f"{flag}="):
            return arg.split("=", 1)[1]
    return ""

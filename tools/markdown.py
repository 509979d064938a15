"""Pieces of Markdown that the generated pages are made of."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def prose(text: str) -> str:
    """Plain text as Markdown on one line: signs are signs, `code` stays code, arXiv numbers are links."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()))
    plain = [re.sub(r"[\\*_<|~\[\]]|^[#>]", r"\\\g<0>", part) for part in parts[::2]]
    parts[::2] = [re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[\g<0>](https://arxiv.org/abs/\1)", p) for p in plain]
    parts[1::2] = [part.replace("|", "\\|") for part in parts[1::2]]
    return "".join(parts)


def paragraphs(texts: Iterable[str]) -> list[str]:
    """Paragraphs of a docstring: indented ones as code, lists as lists, the rest as running text."""
    found = []
    for text in texts:
        if text.startswith("    "):
            found += [fenced(textwrap.dedent(text), "text"), ""]
        elif text.startswith("- "):
            items = re.split(r"\n(?=- )", text)
            found += [*(f"- {prose(item[2:])}" for item in items), ""]
        else:
            found += [prose(text[:1].upper() + text[1:]), ""]
    return found


def fenced(code: str, language: str) -> str:
    """A block of code."""
    return f"```{language}\n{code.rstrip()}\n```"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], right: str = "") -> list[str]:
    """A table whose columns at the positions in `right` are numbers."""
    rule = ["---:" if str(i) in right else "---" for i in range(len(head))]
    return [f"| {' | '.join(row)} |" for row in [head, rule, *rows]] + [""]


def coded(values: Iterable[Any]) -> str:
    """Words of code in a row."""
    return ", ".join(f"`{value}`" for value in values)


def text(lines: Iterable[str]) -> str:
    """Lines as a file."""
    return "\n".join(lines).rstrip() + "\n"


def changed(plain: Mapping[str, Any], usual: Mapping[str, Any]) -> list[str]:
    """`name=value` of all that is not as usual, the Engine's recipe among its own options."""
    found = []
    for name, value in plain.items():
        if isinstance(value, dict):
            found += changed(value, usual.get(name, {}))
        elif name not in usual or value != usual[name]:
            found.append(f"{name}={value}")
    return found

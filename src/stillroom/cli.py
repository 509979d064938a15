"""The command line: `stillroom list | show | run | compare | claims | report | export`.

Options are made from the dataclasses of the methods, tasks and the Engine, so a new field is a new flag. This
file imports no torch: `--help`, `list` and an unknown name answer at once.
"""

from __future__ import annotations

import atexit
import contextlib
import difflib
import importlib
import io
import os
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from stillroom.errors import Interrupted, NonFinite, UserError
from stillroom.parsing import leading, parse

HELP = """\
usage: stillroom COMMAND [options]

Distillation, in every sense of the word: seventy-six published systems behind one engine.

  list                    the systems: which work, which are planned
  show NAME               what a system is for, its source, options and evidence
  run METHOD              distil, and compare with the plain student
  compare METHOD ...      several methods on one task over paired seeds
  claims [NAME ...]       measure what the papers claim; verdicts go to evidence/
  report DIR              make the page of a run again
  export DIR --to FORM    write its product for use elsewhere: onnx, torch-export, timm, ...

`stillroom COMMAND --help` tells the options; `stillroom run METHOD --help` those of a method.
Start with: stillroom run nkd
"""

PATIENCE = 10.0
"""Seconds that a process which is not the main one waits before it says why it failed."""


@dataclass
class ListOptions:
    """The seventy-six systems, each with its methods: which work, which are planned."""

    family: str = ""
    """Only systems of this family, e.g. predictors or predictors/labels."""
    json: bool = False
    """Print JSON."""


def program() -> None:
    """Run the command of this process, and end it."""
    status = main(sys.argv[1:])
    if "WORLD_SIZE" in os.environ:
        end(status)
    sys.exit(status)


def end(status: int) -> NoReturn:
    """End one of several processes at once, when all that it has to leave is left.

    While Python takes itself apart a thread of gloo may let go of a tensor, and torch then aborts a process that has
    done all its work (pytorch/pytorch, pull request 179291).
    """
    atexit._run_exitfuncs()
    if "torch" in sys.modules:
        from torch import distributed

        if distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()
    with contextlib.suppress(OSError):  # nobody listens any more
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def main(argv: Sequence[str]) -> int:
    """Run one command; returns the exit status."""
    args = list(argv)
    for stream in (sys.stdout, sys.stderr):  # a terminal that lacks a letter of a name is no reason to fail
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            return _dispatch(args)
    except NonFinite as error:
        return _say(error, 1)
    except UserError as error:
        return _say(error, 2)
    except Interrupted as stopped:
        return _say(stopped, 130)
    except KeyboardInterrupt:
        return _say("stopped before anything was saved", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception:
        _let_main_speak()
        raise


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(f"stillroom: warning: {message}", file=sys.stderr)


def _say(message: object, status: int) -> int:
    _let_main_speak()
    print(f"stillroom: {message}", file=sys.stderr)
    return status


def _let_main_speak() -> None:
    """Of several processes that fail, one says why: the launcher ends the others when the main one has.

    One that waits longer than that failed alone, and speaks for itself.
    """
    if os.environ.get("RANK", "0") != "0":
        time.sleep(PATIENCE)


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if args[0] == "--version":
        from stillroom import __version__

        print(__version__)
        return 0
    command, rest = args[0], args[1:]
    if command == "list":
        return _list(parse(ListOptions, rest, "stillroom list") if rest else ListOptions())
    heavy = ("show", "run", "compare", "claims", "report", "export")
    if command not in heavy:
        near = difflib.get_close_matches(command, ["list", *heavy], n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise UserError(f"there is no command '{command}': {hint}`stillroom --help` lists them")
    _check_names(command, rest)
    home = importlib.import_module(
        "stillroom.comparing" if command in ("compare", "claims") else "stillroom.commands"
    )
    run: Callable[[list[str], str], int] = getattr(home, command)
    return run(rest, shlex.join(["stillroom", *args]))


def _check_names(command: str, rest: list[str]) -> None:
    """Answer an unknown or planned name before torch is imported."""
    from stillroom import catalogue

    if command in ("run", "compare"):
        for name in leading(rest):
            catalogue.find(name)
    elif command in ("show", "claims"):
        for name in leading(rest):
            catalogue.find_card(name)


def _list(options: ListOptions) -> int:
    import json

    from stillroom import catalogue

    cards = [c for c in catalogue.cards() if c.family.startswith(options.family)]
    if not cards:
        families = sorted({c.family for c in catalogue.cards()})
        raise UserError(f"there is no family '{options.family}': the families are {', '.join(families)}")
    rows = [
        {
            "slug": c.slug,
            "title": c.title,
            "paper": c.paper,
            "source": c.source,
            "family": c.family,
            "gist": c.gist,
            "status": "works" if catalogue.works(c) else "planned",
            "methods": list(catalogue.names(c)) if catalogue.works(c) else [],
        }
        for c in cards
    ]
    if options.json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
    else:
        _print_cards(rows)
    return 0


def _print_cards(rows: list[dict[str, Any]]) -> None:
    """Columns by hand: laying out a table of this length takes longer than all the rest of `list`."""
    import shutil
    import textwrap

    from rich.console import Console

    from stillroom import catalogue

    indent = 4 + max(len(row["slug"]) for row in rows) + len("planned ")
    room = max(30, shutil.get_terminal_size().columns - indent)
    lines, family = [], None
    for row in rows:
        if row["family"] != family:
            family = row["family"]
            lines.append(f"[bold]{family}[/bold]")
        runs = f" (run: {', '.join(row['methods'])})" if row["methods"] else ""
        gist = textwrap.wrap(row["gist"] + runs, room)
        mark = "[green]works[/green]  " if row["status"] == "works" else "[dim]planned[/dim]"
        lines.append(f"  {row['slug']:<{indent - 11}} {mark} {gist[0]}")
        lines += [" " * indent + more for more in gist[1:]]
    no_systems = {card.slug for card in catalogue.BASELINES}
    systems = [row for row in rows if row["slug"] not in no_systems]
    done = sum(row["status"] == "works" for row in systems)
    lines.append(f"\n{done} of {len(systems)} systems work. `stillroom show NAME` tells more.")
    Console(highlight=False, soft_wrap=True).print("\n".join(lines))


if __name__ == "__main__":
    program()

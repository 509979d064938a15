"""The commands that need torch: show, run, report, export."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.markup import escape

from stillroom import catalogue, tracking
from stillroom.config import from_plain
from stillroom.console import console, result_table, watcher
from stillroom.engine import Engine
from stillroom.errors import Interrupted, UserError, printable, reason, refused
from stillroom.fitter import unwatched
from stillroom.method import Method
from stillroom.parsing import leading, parse, value_of
from stillroom.problems import PROBLEM, named_problem, problem_of
from stillroom.reports.run_page import write_run_page
from stillroom.run import Run
from stillroom.runtime import Runtime
from stillroom.showing import show_system
from stillroom.workflow import Job, execute, free_folder

TRACK = "Trackers that are told of the run: tensorboard, wandb (offline unless WANDB_MODE is set), mlflow."


def _first(args: list[str], usage: str) -> tuple[str, list[str]]:
    names = leading(args)
    if not names and args and args[0] in ("-h", "--help"):
        known = ", ".join(entry.name for entry in catalogue.entries())
        console().print(
            f"usage: {usage} [options]\n\nmethods: {known}\noptions: {usage} --help", markup=False
        )
        raise SystemExit(0)
    if not names:
        raise UserError(f"a name is missing: {usage}")
    if len(names) > 1:
        raise UserError(f"'{names[1]}' is one name too many: {usage}")
    return names[0], args[1:]


# -- run ------------------------------------------------------------------------------------------------------


def _run_options(method: type[Method], problem: str, config: dict[str, Any] | None) -> Any:
    """The options of `run METHOD` as a dataclass instance, its defaults the method's, or a stored run's."""
    (task, engine), own, seed = problem_of(method, problem), method(), 0
    if config is not None:
        task, engine = from_plain(type(task), config["task"]), from_plain(Engine, config["engine"])
        own, seed = from_plain(method, config["options"]), config["seed"]
    about = tyro.conf.arg
    fields: list[Any] = [
        ("method", method, field(default_factory=lambda: own)),
        ("task", type(task), field(default_factory=lambda: task)),
        ("engine", Engine, field(default_factory=lambda: engine)),
        ("problem", Annotated[str, about(help=PROBLEM)], problem),
        ("seed", Annotated[int, about(help="Seed of initial weights, data order and noise.")], seed),
        (
            "out",
            Annotated[Path | None, about(help="New folder for the run; None: runs/METHOD-1, -2, ...")],
            None,
        ),
        ("resume", Annotated[Path | None, about(help="Folder of an earlier run to go on with.")], None),
        ("track", Annotated[tuple[tracking.Name, ...], about(help=TRACK)], ()),
    ]
    made = make_dataclass("RunOptions", fields)
    made.__doc__ = f"Run {method.name}. {(method.__doc__ or '').splitlines()[0]}"
    return made()


def run(args: list[str], command: str) -> int:
    """`stillroom run METHOD`."""
    name, rest = _first(args, "stillroom run METHOD")
    method = catalogue.find(name).load()
    resumed = value_of("--resume", rest)
    folder = Path(resumed) if resumed else None
    config = Run.open(folder).config if folder else None
    if config and config.get("from Python"):
        raise UserError(
            f"run '{folder}' took objects from Python: resume it with stillroom.distill(..., resume=True)"
        )
    if config and config["method"] != name:
        raise UserError(
            f"run '{folder}' is a run of '{config['method']}': stillroom run {config['method']} --resume {folder}"
        )
    defaults = _run_options(method, named_problem(rest, config), config)
    options = parse(type(defaults), rest, f"stillroom run {name}", defaults)
    if folder and options.out is not None:
        raise UserError(f"--out {options.out} and --resume {folder} exclude each other: drop one of them")
    out = Runtime().share(folder or options.out or free_folder(name))
    job = Job(options.method, options.task, options.engine, options.seed)
    return _run(job, out, folder is not None, command, options.track)


def _run(job: Job, out: Path, resume: bool, command: str, track: Sequence[str]) -> int:
    first = os.environ.get("RANK", "0") == "0"
    to = console()
    if resume and Run.open(out).finished:
        if first:
            to.print(printable(f"run '{out}' is already finished"), markup=False)
        finished = Run.open(out)
        if first and not (out / "report.html").is_file():  # stopped between its result and its page
            _write_page(finished)
    else:
        watch = (lambda arm: watcher(arm, to)) if first else unwatched
        try:
            finished, _ = execute(job, out, resume, command, watch, track)
        except Interrupted:
            raise Interrupted(
                f"stopped, state saved: go on with stillroom run {job.method.name} --resume {out}"
            ) from None
        except KeyboardInterrupt:
            if not (out / "config.json").is_file():
                raise
            way = f"go on from the last checkpoint with stillroom run {job.method.name} --resume {out}"
            raise Interrupted(f"stopped at once: {way}") from None
    if first:
        with _as_left(finished):
            result = finished.result
            to.print(f"\n[bold]{escape(result['verdict']['text'])}[/bold]\n")
            to.print(result_table(result))
        there = printable(str(out))
        to.print(f"\npage     {there}/report.html\nstudent  {there}/student", markup=False)
    return 0


def report(args: list[str], command: str) -> int:
    """`stillroom report DIR`."""
    name, rest = _first(args, "stillroom report DIR")
    parse(_Nothing, rest, "stillroom report DIR")
    console().print(f"page     {_write_page(Run.open(Path(name)))}", markup=False)
    return 0


def export(args: list[str], command: str) -> int:
    """`stillroom export RUN`."""
    from stillroom.exporting.command import run_export

    return run_export(args)


def _write_page(run: Run) -> Path:
    way = f"make room or make it writable, then stillroom report {run.path}"
    with _as_left(run), refused(run.path, way):
        assert run.result
        return write_run_page(run.path)


@contextmanager
def _as_left(run: Run) -> Iterator[None]:
    """What can go wrong inside is that somebody has edited what a run left."""
    try:
        yield
    except (UserError, OSError):
        raise
    except Exception as error:  # of Python's or of the template's, by what was edited
        raise UserError(
            f"'{run.path / 'result.json'}' is not as the run left it ({type(error).__name__}: {reason(error)}): "
            f"restore it, or remove it and go on with --resume {run.path}"
        ) from error


@dataclass
class _Nothing:
    """Make the page of a run again."""


# -- show -----------------------------------------------------------------------------------------------------


def show(args: list[str], command: str) -> int:
    """`stillroom show NAME`."""
    name, rest = _first(args, "stillroom show NAME")
    parse(_Nothing, rest, "stillroom show NAME")
    show_system(name, console())
    return 0

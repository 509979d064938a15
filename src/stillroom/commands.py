"""The commands that need torch: show, run, compare, claims, report."""

from __future__ import annotations

import difflib
import importlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.markup import escape

from stillroom import catalogue, tracking
from stillroom.claim import Claim, Grid, Rule, conclude, measure, prove, store_for
from stillroom.config import from_plain
from stillroom.console import comparison_tables, console, result_table, watcher
from stillroom.engine import Engine
from stillroom.errors import Interrupted, UserError, printable, reason, refused
from stillroom.evidence import check_writable, record
from stillroom.fitter import unwatched
from stillroom.method import Method
from stillroom.parsing import leading, parse
from stillroom.reports.run_page import write_run_page
from stillroom.run import Run
from stillroom.runtime import Runtime
from stillroom.showing import show_system
from stillroom.task import Task
from stillroom.workflow import Job, execute, free_folder

PROBLEM = f"Another kind of data for the methods of classification: {', '.join(catalogue.PROBLEMS)}."
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


def _problem(method: type[Method], name: str) -> tuple[Task, Engine]:
    """The problem called `name`, or where that is empty the method's own, and the training options that go with it."""
    own = method.default_task()
    if not name:
        return own, method.default_engine()
    if f"{type(own).__module__}:{type(own).__qualname__}" not in catalogue.PROBLEMS.values():
        raise UserError(f"--problem is {name} and method '{method.name}' has one problem of its own: drop it")
    if name not in catalogue.PROBLEMS:
        near = difflib.get_close_matches(name, catalogue.PROBLEMS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"there is no problem '{name}': {hint}pass {' or '.join(catalogue.PROBLEMS)}")
    home, _, kind = catalogue.PROBLEMS[name].partition(":")
    task = getattr(importlib.import_module(home), kind)()
    return task, task.default_engine() or method.default_engine()


def _named_problem(args: list[str], config: dict[str, Any] | None) -> str:
    """The name after --problem, or that of a stored run's problem."""
    stored = None if config is None else config.get("problem")
    known = {place: name for name, place in catalogue.PROBLEMS.items()}
    return _value_of("--problem", args) or known.get(str(stored), "")


def _run_options(method: type[Method], problem: str, config: dict[str, Any] | None) -> Any:
    """The options of `run METHOD` as a dataclass instance, its defaults the method's, or a stored run's."""
    (task, engine), own, seed = _problem(method, problem), method(), 0
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
    resumed = _value_of("--resume", rest)
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
    defaults = _run_options(method, _named_problem(rest, config), config)
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


def _value_of(flag: str, args: list[str]) -> str:
    """The value of a flag that is needed before the other options can be read; empty where it is not there."""
    for i, arg in enumerate(args):
        if arg == flag and i + 1 < len(args):
            return args[i + 1]
        if arg.startswith(f"{flag}="):
            return arg.split("=", 1)[1]
    return ""


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


# -- compare and claims -----------------------------------------------------------------------------------------


@dataclass
class Spread:
    """Over what a comparison is spread."""

    seeds: int = 5
    """How many paired seeds, >= 1; an interval needs 4, and 5 or more where differences are often equal."""
    first_seed: int = 0
    """The first of them."""
    workers: int = 1
    """Processes on this machine, each on one thread."""
    ray: str = ""
    """Ray cluster that does the work: an address, auto, or local (one of `workers` processes); empty: none."""

    def check(self) -> range:
        """The seeds; UserError for numbers out of range."""
        for name, value in (("seeds", self.seeds), ("workers", self.workers)):
            if value < 1:
                raise UserError(f"--{name} is {value}: pass 1 or more")
        return range(self.first_seed, self.first_seed + self.seeds)


@contextmanager
def _stoppable() -> Iterator[None]:
    """A measurement that is stopped says that it can go on."""
    try:
        with refused(Path(), "make room or make it writable, then the same command goes on from there"):
            yield
    except (Interrupted, KeyboardInterrupt):
        raise Interrupted("stopped: what is measured is kept, the same command goes on from there") from None


def compare(args: list[str], command: str) -> int:
    """`stillroom compare METHOD METHOD ...`."""
    names = leading(args)
    if not names:
        raise UserError("compare needs the names of methods: stillroom compare plain kd nkd")
    arms = {name: catalogue.find(name).load()() for name in names}
    first = type(arms[names[-1]])
    defaults = _compare_options(first, _value_of("--problem", args))
    prog = f"stillroom compare {' '.join(names)}"
    options = parse(type(defaults), args[len(names) :], prog, defaults)
    seeds = options.spread.check()
    grid = Grid(arms, options.task, options.engine, seeds, store_for(arms, options.task, options.engine))
    to = console()
    cells = {}
    with _stoppable():
        for seed, row in measure(grid, options.spread.workers, options.spread.ray):
            cells[seed] = row
            to.print(f"seed {seed}: {len(cells)} of {len(seeds)} seeds done")
    rules = [Rule(b, a) for i, a in enumerate(names) for b in names[i + 1 :]]
    for table in comparison_tables(conclude(grid, rules, cells, options.task)):
        to.print()
        to.print(table)
    return 0


def _compare_options(method: type[Method], problem: str) -> Any:
    task, engine = _problem(method, problem)
    fields: list[Any] = [
        ("problem", Annotated[str, tyro.conf.arg(help=PROBLEM)], problem),
        ("task", type(task), field(default_factory=lambda: task)),
        ("engine", Engine, field(default_factory=lambda: engine)),
        ("spread", Annotated[Spread, tyro.conf.arg(name="")], field(default_factory=Spread)),
    ]
    made = make_dataclass("CompareOptions", fields)
    made.__doc__ = "Several methods on one task over paired seeds; later names are held against earlier ones."
    return made()


@dataclass
class ClaimOptions:
    """Measure what the papers claim and record the verdicts in evidence/."""

    seeds: int | None = None
    """Paired seeds of each claim, >= 1; None takes the claim's own number."""
    first_seed: int = 0
    """The first of them."""
    workers: int = 1
    """Processes on this machine, each on one thread."""
    ray: str = ""
    """Ray cluster that does the work: an address, auto, or local (one of `workers` processes); empty: none."""
    only: str = ""
    """The name of a single claim."""
    data_root: Path | None = None
    """Folder with the data sets that some claims need; claims whose data are not there are passed over."""
    evidence: Path = Path("evidence")
    """Where the verdicts go."""
    quick: bool = False
    """Two seeds of a tiny problem, to see that the claims run; nothing is recorded."""


def claims(args: list[str], command: str) -> int:
    """`stillroom claims [NAME ...]`."""
    names = leading(args)
    options = parse(ClaimOptions, args[len(names) :], "stillroom claims", ClaimOptions())
    Spread(1 if options.seeds is None else options.seeds, options.first_seed, options.workers).check()
    if options.data_root is not None and not options.data_root.is_dir():
        raise UserError(
            f"--data-root '{options.data_root}' is no folder: pass the one that holds the data sets"
        )
    chosen = [catalogue.find_card(name) for name in names] or list(catalogue.cards())
    planned = [card.slug for card in chosen if names and not catalogue.works(card)]
    if planned:
        raise UserError(f"system '{planned[0]}' is planned, not built yet: `stillroom list` shows what works")
    todo = [
        (card, claim) for card in chosen if catalogue.works(card) for claim in _claims_of(card, options.only)
    ]
    if not todo:
        raise UserError(f"no claim is named '{options.only}': stillroom show NAME lists a system's claims")
    if not options.quick:
        check_writable(options.evidence)
    for card, claim in todo:
        with _stoppable():
            _prove(card, claim, options)
    return 0


def _claims_of(card: catalogue.Card, only: str) -> list[Claim]:
    found = [claim for method in catalogue.methods_of(card) for claim in method.claims()]
    return [claim for claim in found if not only or claim.name == only]


def _command(card: catalogue.Card, claim: Claim, seeds: range) -> str:
    """The command that measures this again, on anybody's machine."""
    words = ["stillroom claims", card.slug, f"--only {claim.name} --seeds {len(seeds)}"]
    words += [f"--first-seed {seeds[0]}"] if seeds[0] else []
    return " ".join(words + (["--data-root DIR"] if claim.data else []))


def _prove(card: catalogue.Card, claim: Claim, options: ClaimOptions) -> None:
    to = console()
    to.print(f"\n[bold]{card.slug}: {claim.name}[/bold]\n{claim.says}")
    if options.quick:
        claim = claim.quick()
    number = 2 if options.quick else options.seeds or claim.seeds
    seeds = range(options.first_seed, options.first_seed + number)
    try:
        claim.at(options.data_root)
    except UserError as missing:
        to.print(f"passed over: {missing}")
        return
    done: list[int] = []

    def seen(seed: int) -> None:
        done.append(seed)
        to.print(f"seed {seed}: {len(done)} of {number} seeds done")

    entry = prove(claim, options.data_root, options.workers, seeds, seen, options.ray)
    entry["command"] = _command(card, claim, seeds)
    for table in comparison_tables(entry):
        to.print()
        to.print(table)
    to.print(f"\n{claim.name}: [bold]{entry['verdict']}[/bold]")
    if options.quick:
        to.print("a quick trial: nothing is recorded")
    else:
        to.print(f"recorded in {record(options.evidence, card, entry)}")


# -- show -----------------------------------------------------------------------------------------------------


def show(args: list[str], command: str) -> int:
    """`stillroom show NAME`."""
    name, rest = _first(args, "stillroom show NAME")
    parse(_Nothing, rest, "stillroom show NAME")
    show_system(name, console())
    return 0

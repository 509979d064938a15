"""The commands that measure over seeds: compare and claims."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from stillroom import catalogue, facts, tuning
from stillroom.checkpoint import write_json
from stillroom.claim import Claim, Rule, conclude, measure, prove
from stillroom.config import to_plain
from stillroom.console import comparison_tables, console
from stillroom.engine import Engine
from stillroom.errors import Interrupted, UserError, refused
from stillroom.evidence import check_writable, record
from stillroom.method import Method
from stillroom.parsing import leading, parse, value_of
from stillroom.problems import PROBLEM, problem_of


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
def stoppable() -> Iterator[None]:
    """A measurement that is stopped says that it can go on."""
    try:
        with refused(Path(), "make room or make it writable, then the same command goes on from there"):
            yield
    except (Interrupted, KeyboardInterrupt):
        raise Interrupted("stopped: what is measured is kept, the same command goes on from there") from None


@dataclass
class Tuning:
    """What every arm may try before it is compared."""

    tune: tuple[str, ...] = ()
    """Options and values, chosen on the validation split: lr=0.02,0.05 for every arm, kd.alpha=0.5,0.9 for one."""
    tune_seeds: int = 3
    """Seeds of that choice, >= 1, from 100 on."""

    def check(self, spread: Spread) -> range:
        """The seeds; UserError where they are none, or among those of the comparison."""
        if self.tune_seeds < 1:
            raise UserError(f"--tune-seeds is {self.tune_seeds}: pass 1 or more")
        seeds = range(tuning.FIRST_SEED, tuning.FIRST_SEED + self.tune_seeds)
        if self.tune and set(seeds) & set(spread.check()):
            raise UserError(
                f"--first-seed {spread.first_seed} compares on seeds of the tuning ({seeds[0]} to {seeds[-1]}): pass "
                "another"
            )
        return seeds


def compare(args: list[str], command: str) -> int:
    """`stillroom compare METHOD METHOD ...`."""
    names = leading(args)
    if not names:
        raise UserError("compare needs the names of methods: stillroom compare plain kd nkd")
    arms = {name: catalogue.find(name).load()() for name in names}
    first = type(arms[names[-1]])
    defaults = _compare_options(first, value_of("--problem", args))
    prog = f"stillroom compare {' '.join(names)}"
    options = parse(type(defaults), args[len(names) :], prog, defaults)
    seeds, tuning_seeds = options.spread.check(), options.tuning.check(options.spread)
    choices = tuning.choices(options.tuning.tune, arms)
    if options.out is not None:
        check_writable(options.out.parent, "--out")
    to, where = console(), (options.spread.workers, options.spread.ray)
    with stoppable():
        tuned = tuning.tune(arms, options.task, options.engine, choices, tuning_seeds, *where)
        for line in tuning.lines(tuned):
            to.print(line, markup=False)
        settings = {arm: one.setting for arm, one in tuned.items()}
        grid = tuning.grid_of(settings, options.task, options.engine, seeds)
        cells = {}
        for seed, row in measure(grid, *where):
            cells[seed] = row
            to.print(f"seed {seed}: {len(cells)} of {len(seeds)} seeds done")
    rules = [Rule(b, a) for i, a in enumerate(names) for b in names[i + 1 :]]
    entry = conclude(grid, rules, cells, options.task)
    for table in comparison_tables(entry):
        to.print()
        to.print(table)
    if options.out is not None:
        write_json(options.out, entry | tuning.described(tuned, tuning_seeds) | _setting(options, command))
        to.print(f"recorded in {options.out}", markup=False)
    return 0


def _setting(options: Any, command: str) -> dict[str, Any]:
    """What else a comparison's record says: on what, with what, when."""
    return {
        "task": to_plain(options.task),
        "engine": to_plain(options.engine),
        "command": command,
        "versions": facts.versions(),
        "machine": facts.machine(),
        "date": facts.now()[:10],
    }


def _compare_options(method: type[Method], problem: str) -> Any:
    task, engine = problem_of(method, problem)
    about = tyro.conf.arg
    fields: list[Any] = [
        ("problem", Annotated[str, about(help=PROBLEM)], problem),
        ("task", type(task), field(default_factory=lambda: task)),
        ("engine", Engine, field(default_factory=lambda: engine)),
        ("spread", Annotated[Spread, about(name="")], field(default_factory=Spread)),
        ("tuning", Annotated[Tuning, about(name="")], field(default_factory=Tuning)),
        ("out", Annotated[Path | None, about(help="JSON file for all that was found.")], None),
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
        with stoppable():
            _prove(card, claim, options)
    return 0


def _claims_of(card: catalogue.Card, only: str = "") -> list[Claim]:
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
        to.print(f"recorded in {record(options.evidence, card, entry, _claims_of(card))}")

"""Claims with a known answer, measured, stopped and gone on with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from stillroom.checkpoint import read_json, write_json
from stillroom.claim import Claim, Grid, Rule, compare, conclude, measure, prove, store_for
from stillroom.config import to_plain
from stillroom.engine import Engine
from stillroom.errors import UserError
from stillroom.method import Fit as FitCall
from stillroom.method import Method, Result
from stillroom.runtime import Runtime
from stillroom.task import Task
from stillroom.words import pair_words
from toys import Centred, Fit, Toy

WOBBLE = (0.0, 5.0, -3.0, 9.0, 2.0, -7.0, 4.0, 1.0)
"""What a seed does to the scores of all arms alike."""
SPREAD = (0.3, -0.1, 0.2, 0.1, -0.2, 0.05, 0.15, -0.3)
"""What a seed does to the scores of some arms."""

MEASURED: list[tuple[float, int]] = []
"""The (level, seed) of every cell that was measured in this test, in order."""


@dataclass(eq=False)
class Known(Task):
    """A problem whose score is what the method says."""

    metric: ClassVar[str] = "gain"
    seed: int = -1
    data: str = "built-in"
    small: bool = False

    def paired(self, seed: int) -> Task:
        return self.but(seed=seed)

    def quick(self) -> Task:
        return self.but(small=True)

    def score(self, product: Callable[[int], float], split: str, runtime: Runtime) -> dict[str, Any]:
        assert split == "test"
        gain = product(self.seed)
        return {"gain": gain, "loss": 10 - gain, "samples": 10, "table": [1, 2], "name": "x"}


@dataclass(eq=False)
class Worse(Known):
    """The same, where less is better."""

    higher_is_better: ClassVar[bool] = False


@dataclass(eq=False)
class Scores(Method):
    """Scores `level`, give or take what the seed does."""

    name: ClassVar[str] = "scores"
    listed: ClassVar[bool] = False
    uses_teacher: ClassVar[bool] = False
    level: float = 0.0
    spread: float = 0.0
    before: ClassVar[Callable[[int], None] | None] = None
    """Called with the seed before a cell is measured."""

    def __post_init__(self) -> None:
        self.runs = 0

    def run(self, task: Task, fit: FitCall) -> Result:
        assert isinstance(task, Known)
        assert self.runs == 0, "arms of another seed share this method"
        self.runs += 1
        MEASURED.append((self.level, task.seed))
        if type(self).before:
            type(self).before(task.seed)
        return Result(lambda seed: self.level + WOBBLE[seed] + self.spread * SPREAD[seed], 1.5)


def claim(arms: Mapping[str, Method], task: Task | None = None, *rules: Rule, **more: Any) -> Claim:
    return Claim(
        "known", "What is known.", task or Known(), Engine(), arms, rules or (Rule("new", "old"),), **more
    )


def proven(
    what: Claim, seeds: range = range(6), seen: Callable[[int], None] = lambda seed: None
) -> dict[str, Any]:
    return prove(what, None, 1, seeds, seen)


@pytest.fixture(autouse=True)
def _fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    MEASURED.clear()
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "cache"))


# -- verdicts ---------------------------------------------------------------------------------------------------


def test_a_rule_may_go_by_another_number_of_the_score() -> None:
    """The one that gains more loses less: by loss it is better, by its negative it would not be."""
    arms = {"old": Scores(2.0), "new": Scores(3.0, spread=0.1)}
    rules = (
        Rule("new", "old"),
        Rule("new", "old", headline=False, metric="loss"),
        Rule("new", "old", headline=False, metric="loss", higher_is_better=True),
    )
    entry = proven(claim(arms, None, *rules))
    assert [row["verdict"] for row in entry["comparisons"]] == ["holds", "holds", "refuted"]
    assert [row.get("metric") for row in entry["comparisons"]] == [None, "loss", "loss"]
    scores, others = entry["arms"]["new"]["scores"], entry["arms"]["new"]["others"]["loss"]
    assert others == pytest.approx([10 - score for score in scores])
    assert pair_words(entry["comparisons"][1]) == "new > old by loss"
    with pytest.raises(
        ValueError, match="compares by 'speed', which arm '(old|new)' lacks; it has gain, loss"
    ):
        proven(claim(arms, None, Rule("new", "old", metric="speed")))


def test_an_arm_that_is_not_compared_by_a_number_may_lack_it() -> None:
    class Partly(Known):
        def score(self, product: Callable[[int], float], split: str, runtime: Runtime) -> dict[str, Any]:
            found = super().score(product, split, runtime)
            return {"gain": found["gain"]} if found["gain"] < 0 else found

    arms = {"old": Scores(100.0), "new": Scores(101.0), "silent": Scores(-100.0)}
    rules = Rule("new", "old", metric="loss"), Rule("new", "silent")
    entry = proven(replace(claim(arms, None, *rules), task=Partly()))
    assert "others" not in entry["arms"]["silent"]
    assert entry["arms"]["new"]["others"].keys() == {"loss"}


@pytest.mark.parametrize(
    ("gain", "verdict"), [(1.0, "holds"), (-1.0, "refuted"), (0.02, "inconclusive"), (0.0, "inconclusive")]
)
@pytest.mark.parametrize("sign", [1, -1])
def test_the_verdict_is_that_of_the_known_scores(gain: float, verdict: str, sign: int) -> None:
    """The seeds move all arms by far more than the gain: only the pairs tell. Where less is better, signs turn."""
    arms = {"old": Scores(2.0), "new": Scores(2.0 + sign * gain, spread=1.0)}
    entry = proven(claim(arms, Known() if sign == 1 else Worse()))
    assert entry["verdict"] == verdict
    (found,) = entry["comparisons"]
    assert found["differences"] == pytest.approx([gain + sign * s for s in SPREAD[:6]])
    assert found["mean"] == pytest.approx(gain + sign * sum(SPREAD[:6]) / 6)
    assert found["wins"] == sum(gain + sign * s > 0 for s in SPREAD[:6])
    low, high = found["interval"]
    assert low < found["mean"] < high


def test_arms_that_are_equal_decide_nothing() -> None:
    entry = proven(claim({"old": Scores(1.0), "new": Scores(1.0)}))
    (found,) = entry["comparisons"]
    assert found["differences"] == [0.0] * 6
    assert (found["wins"], found["ties"], found["verdict"]) == (0, 6, "inconclusive")


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_too_few_seeds_decide_nothing(seeds: int) -> None:
    entry = proven(claim({"old": Scores(0.0), "new": Scores(1.0, spread=1.0)}), range(seeds))
    assert entry["verdict"] == "inconclusive"
    assert entry["comparisons"][0]["interval"] is None


def test_a_claim_of_several_rules_needs_them_all_and_asides_have_no_say() -> None:
    arms = {"low": Scores(0.0), "mid": Scores(1.0, 0.1), "high": Scores(2.0, 0.2)}
    rules = [Rule("high", "mid"), Rule("mid", "low"), Rule("low", "high", headline=False)]
    entry = proven(claim(arms, None, *rules))
    assert [c["verdict"] for c in entry["comparisons"]] == ["holds", "holds", "refuted"]
    assert [c["headline"] for c in entry["comparisons"]] == [True, True, False]
    assert entry["verdict"] == "holds"
    assert proven(claim(arms, None, *rules, Rule("low", "mid")))["verdict"] == "refuted"
    unclear = {**arms, "noisy": Scores(2.0, 3.0)}
    assert proven(claim(unclear, None, *rules, Rule("noisy", "high")))["verdict"] == "inconclusive"


@pytest.mark.parametrize(
    ("margin", "verdict"), [(0.0, "refuted"), (0.5, "refuted"), (1.0, "inconclusive"), (2.0, "holds")]
)
@pytest.mark.parametrize("sign", [1, -1])
def test_a_margin_is_what_the_better_arm_may_be_worse_by(margin: float, verdict: str, sign: int) -> None:
    scores = {
        "a": [sign * (w - 1 + s) for w, s in zip(WOBBLE, SPREAD, strict=True)],
        "b": [sign * w for w in WOBBLE],
    }
    found = compare(Rule("a", "b", margin=margin), scores, higher_is_better=sign > 0)
    assert found["verdict"] == verdict
    plain = compare(Rule("a", "b"), scores, higher_is_better=sign > 0)
    assert all(found[key] == plain[key] for key in ("differences", "mean", "interval", "wins"))
    assert pair_words(found) == ("a > b" if margin == 0 else f"a > b or at most {margin:g} worse")


def test_pairs_are_compared_seed_by_seed() -> None:
    scores = {"a": [3.0, 1.0, 2.0], "b": [1.0, 2.0, 2.0]}
    found = compare(Rule("a", "b"), scores, higher_is_better=True)
    assert found["differences"] == [2.0, -1.0, 0.0]
    assert (found["wins"], found["ties"]) == (1, 1)
    assert found["mean"] == pytest.approx(1 / 3)
    turned = compare(Rule("a", "b"), scores, higher_is_better=False)
    assert turned["differences"] == [-2.0, 1.0, 0.0]
    with pytest.raises(ValueError, match="shorter|longer"):
        compare(Rule("a", "b"), {"a": [1.0], "b": [1.0, 2.0]}, higher_is_better=True)


# -- what is recorded -------------------------------------------------------------------------------------------


def test_an_entry_holds_what_was_measured_and_on_what() -> None:
    entry = proven(claim({"old": Scores(0.5), "new": Scores(1.5, 1.0)}, notes="Smaller."), range(1, 6))
    assert entry["seeds"] == [1, 2, 3, 4, 5]
    assert entry["arms"]["old"]["scores"] == [0.5 + WOBBLE[seed] for seed in range(1, 6)]
    assert entry["arms"]["old"]["mean"] == pytest.approx(0.5 + sum(WOBBLE[1:6]) / 5)
    assert entry["arms"]["old"]["std"] == pytest.approx(torch.tensor(WOBBLE[1:6]).std().item())
    assert entry["arms"]["new"]["options"]["level"] == 1.5
    assert entry["arms"]["new"]["method"] == "scores"
    assert entry["arms"]["new"]["seconds"] == 1.5
    assert (entry["name"], entry["says"], entry["notes"]) == ("known", "What is known.", "Smaller.")
    assert (entry["metric"], entry["higher_is_better"]) == ("gain", True)
    assert entry["task"] == to_plain(Known())
    assert entry["engine"] == to_plain(Engine())
    assert {"versions", "machine", "seconds", "date"} <= entry.keys()


def test_one_seed_has_no_spread() -> None:
    assert proven(claim({"old": Scores(0.5), "new": Scores(1.5)}), range(1))["arms"]["old"]["std"] == 0.0


def test_scores_of_a_cell_are_its_numbers(tmp_path: Path) -> None:
    grid = Grid({"new": Scores(1.0)}, Known(), Engine(), [1], tmp_path / "store")
    cell = grid.cells(1)["new"]
    assert cell == {"score": 6.0, "test": {"gain": 6.0, "loss": 4.0, "samples": 10}, "seconds": 1.5}
    assert read_json(tmp_path / "store" / "new-1.json") == cell


def test_conclusions_follow_the_order_of_seeds_and_not_that_of_measuring() -> None:
    grid = Grid({"old": Scores(0.0), "new": Scores(1.0)}, Known(), Engine(), [3, 1])
    cells = dict(reversed(list(measure(grid))))
    assert conclude(grid, [Rule("new", "old")], cells, Known())["arms"]["old"]["scores"] == [
        WOBBLE[3],
        WOBBLE[1],
    ]


# -- stopped and gone on with -----------------------------------------------------------------------------------


@dataclass(eq=False)
class Stopped(Scores):
    """Dies in its third seed."""

    name: ClassVar[str] = "stopped"


def test_a_stopped_measurement_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(seed: int) -> None:
        if seed == 2:
            raise ConnectionAbortedError

    arms: dict[str, Method] = {"old": Scores(0.0), "new": Stopped(1.0, 1.0)}
    grid = Grid(arms, Known(), Engine(), range(4), tmp_path / "store")
    monkeypatch.setattr(Stopped, "before", crash)
    seen: list[int] = []
    with pytest.raises(ConnectionAbortedError):
        for seed, _ in measure(grid):
            seen.append(seed)
    assert seen == [0, 1]
    assert MEASURED == [(0.0, 0), (1.0, 0), (0.0, 1), (1.0, 1), (0.0, 2), (1.0, 2)]
    MEASURED.clear()
    monkeypatch.setattr(Stopped, "before", None)
    rows = dict(measure(grid))
    assert MEASURED == [
        (1.0, 2),
        (0.0, 3),
        (1.0, 3),
    ]  # neither seeds 0 and 1 nor the other arm of seed 2 again
    assert rows == dict(measure(replace(grid, store=None)))


def test_more_seeds_measure_only_the_new_ones() -> None:
    what = claim({"old": Scores(0.0), "new": Scores(1.0)})
    for seeds in (range(2), range(1, 4)):
        proven(what, seeds)
    assert [seed for _, seed in MEASURED] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_prove_reads_what_is_stored_and_tells_of_every_seed() -> None:
    what = claim({"old": Scores(0.0), "new": Scores(1.0)})
    seen: list[int] = []
    first = proven(what, range(3), seen.append)
    assert seen == [0, 1, 2]
    store = store_for(what.arms, what.task, what.engine)
    assert sorted(p.name for p in store.iterdir()) == [
        f"{arm}-{s}.json" for arm in ("new", "old") for s in range(3)
    ]
    cell = read_json(store / "new-1.json")
    write_json(store / "new-1.json", cell | {"score": 100.0})
    again = proven(what, range(3), seen.append)
    assert again["arms"]["new"]["scores"] == [first["arms"]["new"]["scores"][0], 100.0, 1.0 + WOBBLE[2]]


def test_the_store_belongs_to_all_that_determines_a_score() -> None:
    arms: dict[str, Method] = {"old": Scores(0.0), "new": Scores(1.0)}
    own = store_for(arms, Known(), Engine())
    assert own == store_for({"old": Scores(0.0), "new": Scores(1.0)}, Known(), Engine())
    others = [
        store_for({**arms, "new": Scores(2.0)}, Known(), Engine()),
        store_for({**arms, "third": Scores(1.0)}, Known(), Engine()),
        store_for({"old": Scores(0.0), "newer": Scores(1.0)}, Known(), Engine()),
        store_for(arms, Known(data="other"), Engine()),
        store_for(arms, Known(), Engine(epochs=3)),
    ]
    assert len({own, *others}) == 6


def test_the_store_notices_changed_data_and_changed_code(monkeypatch: pytest.MonkeyPatch) -> None:
    arms = {"old": Scores(0.0), "new": Scores(1.0)}
    own = store_for(arms, Known(), Engine())
    monkeypatch.setattr(Known, "fingerprint", lambda self: "changed")
    data = store_for(arms, Known(), Engine())
    monkeypatch.setattr("stillroom.facts.source_digest", lambda: "changed")
    assert len({own, data, store_for(arms, Known(), Engine())}) == 3


def test_a_method_is_checked_before_anything_is_measured() -> None:
    class Checked(Scores):
        def check(self) -> None:
            raise UserError("--method.level is wrong: pass another")

    with pytest.raises(UserError, match="level is wrong"):
        list(measure(Grid({"new": Checked()}, Known(), Engine(), [0])))
    assert MEASURED == []


# -- real fits --------------------------------------------------------------------------------------------------

SHORT = Engine(epochs=2, batch_size=8, evaluate_every=1)
ARMS: dict[str, Method] = {"plain": Fit(), "centred": Centred()}


def scores(rows: Iterator[tuple[int, dict[str, Any]]]) -> dict[int, dict[str, Any]]:
    return {seed: {arm: cell["test"] for arm, cell in cells.items()} for seed, cells in rows}


def test_a_cell_is_the_fit_of_its_arm_on_the_seed_s_own_task() -> None:
    rows = dict(measure(Grid(ARMS, Toy(), SHORT, [3])))
    for arm, method in ARMS.items():
        product = SHORT.fit(method.variant(), Toy().paired(3), 3).product
        assert rows[3][arm]["score"] == Toy().score(product, "test", Runtime())["accuracy"]
        assert not hasattr(method, "student")  # the arm's own method was never bound


def test_two_workers_measure_what_one_does(tmp_path: Path) -> None:
    seeds = [0, 1]
    alone = scores(measure(Grid(ARMS, Toy(), SHORT, seeds)))
    together = scores(measure(Grid(ARMS, Toy(), SHORT, seeds, tmp_path / "store"), workers=2))
    assert together == alone
    assert len(list((tmp_path / "store").iterdir())) == 4


def test_measuring_runs_on_one_thread_and_gives_the_others_back(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    monkeypatch.setattr(Scores, "before", lambda seed: threads.append(torch.get_num_threads()))
    torch.set_num_threads(2)
    try:
        list(measure(Grid({"new": Scores()}, Known(), Engine(), [0, 1])))
        assert threads == [1, 1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


# -- claims -----------------------------------------------------------------------------------------------------


def test_a_rule_about_no_arm_is_refused() -> None:
    with pytest.raises(ValueError, match="claim 'known' has a rule about 'newer', which is no arm of it"):
        claim({"old": Scores(), "new": Scores()}, None, Rule("newer", "old"))


def test_a_claim_on_built_in_data_is_where_it_is() -> None:
    what = claim({"old": Scores(), "new": Scores()})
    assert what.at(None) is what


def test_a_claim_on_other_data_is_taken_to_them(tmp_path: Path) -> None:
    what = claim({"old": Scores(), "new": Scores()}, data="cifar")
    (tmp_path / "cifar").mkdir()
    there = what.at(tmp_path)
    assert isinstance(there.task, Known)
    assert there.task.data == str(tmp_path / "cifar")
    assert (there.arms, there.rules) == (what.arms, what.rules)
    for root in (None, tmp_path / "elsewhere"):
        with pytest.raises(
            UserError, match="^claim 'known' needs the data set 'cifar', not found at .*--data-root"
        ):
            what.at(root)


def test_evidence_does_not_say_where_the_data_were(tmp_path: Path) -> None:
    (tmp_path / "cifar").mkdir()
    what = claim({"old": Scores(0.0), "new": Scores(1.0)}, data="cifar")
    entry = prove(what, tmp_path, 1, range(2), lambda seed: None)
    assert entry["task"]["data"] == "built-in"


def test_a_quick_claim_is_the_same_comparison_on_a_small_problem() -> None:
    what = replace(
        claim({"old": Scores(), "new": Scores()}, data="cifar"), engine=Engine(epochs=50, batch_size=7)
    )
    quick = what.quick()
    assert (quick.arms, quick.rules, quick.data) == (what.arms, what.rules, "")
    assert isinstance(quick.task, Known)
    assert quick.task.small
    assert quick.engine == Engine(epochs=2, batch_size=7, evaluate_every=0)

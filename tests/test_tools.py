"""The tools of `make lint`: generated pages are fresh, and the house's own rules catch what they are for."""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from stillroom import catalogue, claim
from stillroom._cards import CARDS
from stillroom.predictors.baselines import KD, Plain
from stillroom.predictors.labels import nkd_uskd
from stillroom.predictors.labels.nkd_uskd import NKD, USKD

TOOLS = Path(__file__).parents[1] / "tools"


def _tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"tools_{name}", TOOLS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


pages, house = _tool("pages"), _tool("house")

# -- pages ----------------------------------------------------------------------------------------------------

README = """# Stillroom

<!-- families -->
<!-- /families -->

Between the tables.

<!-- evidence -->
what was there before
<!-- /evidence -->

At the end.
"""
PAGE, INDEX, CLAIMS = Path("docs/systems/nkd-uskd.md"), Path("docs/systems/README.md"), Path("docs/claims.md")


@pytest.fixture(scope="module")
def entry() -> dict[str, Any]:
    """Evidence on NKD's first claim in which normalising does harm and KD comes out about as good as NKD."""
    levels = {"plain": 0.8, "kd": 0.9, "nkd": 0.9}
    arms = {
        "plain": Plain(),
        "kd T=1": KD(temperature=1.0),
        "un-normalised": NKD(normalised=False),
        "nkd": NKD(),
    }
    rules = [claim.Rule("nkd", other) for other in arms if other != "nkd"]
    task = NKD.default_task().but(student_samples=123)

    def measured(grid: claim.Grid, arm: str, seed: int) -> claim.Cell:
        method: Any = grid.arms[arm]
        score = levels[method.name] + 0.01 * seed + (0.001 * (-1) ** seed if method.name == "kd" else 0.0)
        score += 0.0 if getattr(method, "normalised", True) else 0.05 + 0.001 * seed
        return {"score": score, "test": {}, "seconds": 2.0}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(claim.Grid, "_measured", measured)
        patch.setattr(claim, "store_for", lambda arms, task, engine: None)
        tried = replace(NKD.claims()[0], arms=arms, rules=rules, task=task)
        return claim.prove(tried, None, 1, range(6), lambda seed: None)


@pytest.fixture
def root(tmp_path: Path, entry: dict[str, Any]) -> Path:
    """A repository with evidence and a README, its pages made."""
    (tmp_path / "evidence").mkdir()
    (tmp_path / "evidence" / "nkd-uskd.json").write_text(json.dumps({"claims": [entry]}))
    (tmp_path / "README.md").write_text(README)
    assert pages.main([], tmp_path) == 0
    return tmp_path


def _check(root: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    """The status of a check and its lines, after seeing that it changed nothing."""
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    capsys.readouterr()
    status = pages.main(["--check"], root)
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
    return status, capsys.readouterr().out.splitlines()


def test_fresh_pages_pass(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _check(root, capsys) == (0, [])


def test_stale_missing_and_orphaned_pages_are_told_and_mended(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / PAGE).write_text((root / PAGE).read_text() + "by hand\n")
    (root / INDEX).unlink()
    (root / INDEX).with_name("gone.md").write_text("a system that is no more")
    (root / "README.md").write_text((root / "README.md").read_text().replace("| all | 76 |", "| all | 77 |"))
    status, lines = _check(root, capsys)
    assert status == 1
    assert [line.split(":")[0] for line in lines] == [
        "README.md is stale",
        "docs/systems/README.md is missing",
        "docs/systems/gone.md is orphaned",
        "docs/systems/nkd-uskd.md is stale",
    ]
    assert pages.main([], root) == 0
    assert _check(root, capsys) == (0, [])
    assert not (root / INDEX).with_name("gone.md").exists()


def test_other_evidence_makes_every_place_that_shows_it_stale(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "evidence" / "nkd-uskd.json").unlink()
    faults = [line.split(":")[0] for line in _check(root, capsys)[1]]
    stale = [f"{path} is stale" for path in ("README.md", CLAIMS, INDEX, PAGE)]
    assert faults == [*stale, "evidence/nkd-uskd.html is orphaned"]


def test_evidence_cut_short_is_one_line(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "evidence" / "nkd-uskd.json").write_text('{"claims": [')
    status, lines = _check(root, capsys)
    assert status == 1
    assert len(lines) == 1
    assert "nkd-uskd.json' is cut short" in lines[0]


def test_a_comparison_has_a_page_with_what_was_tried(
    root: Path, entry: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    tuned = {"chosen": "lr 0.1", "tried": {"lr 0.05": 0.7, "lr 0.1": 0.75}, "engine": {}}
    tuning = {"seeds": [100, 101], "split": "validation", "arms": {"nkd": tuned}}
    file = root / "evidence" / "comparisons" / "the-shelf.json"
    file.parent.mkdir()
    file.write_text(json.dumps(entry | {"command": "stillroom compare ...", "tuning": tuning}))
    assert _check(root, capsys) == (
        1,
        ["docs/comparisons/the-shelf.md is missing: run `python tools/pages.py`"],
    )
    assert pages.main([], root) == 0
    text = (root / "docs/comparisons/the-shelf.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith("| `nkd` | lr 0.1 |"))
    assert "**+10.0 points (+10.0 to +10.0 points)**" in row
    assert "lr 0.05: 70.0 %; lr 0.1: 75.0 %" in text
    assert "seeds 100 to 101, which are not compared" in text
    file.unlink()
    assert _check(root, capsys)[1] == [
        "docs/comparisons/the-shelf.md is orphaned: run `python tools/pages.py`"
    ]


def test_the_readme_keeps_what_is_outside_the_marks(root: Path) -> None:
    text = (root / "README.md").read_text()
    assert "what was there before" not in text
    assert text.startswith("# Stillroom\n\n<!-- families -->\n")
    assert "\n<!-- /families -->\n\nBetween the tables.\n\n<!-- evidence -->\n" in text
    assert text.endswith("\n<!-- /evidence -->\n\nAt the end.\n")
    assert f"| all | 76 | {sum(catalogue.works(card) for card in CARDS)} |" in text


def test_a_readme_without_marks_is_left_alone(root: Path) -> None:
    (root / "README.md").write_text("# Stillroom\n")
    assert pages.main([], root) == 0
    assert (root / "README.md").read_text() == "# Stillroom\n"


@pytest.mark.parametrize("path", [PAGE, CLAIMS], ids=str)
def test_every_verdict_is_shown_as_it_came_out(root: Path, path: Path) -> None:
    rows = [line for line in (root / path).read_text().splitlines() if line.startswith("|")]
    parts = [part for row in rows for part in row.split("<br>")]
    verdicts = {
        rule: next(re.search(r"(holds|inconclusive|refuted)\b", part)[0] for part in parts if rule in part)
        for rule in ("nkd > plain", "nkd > kd T=1", "nkd > un-normalised")
    }
    assert verdicts == {
        "nkd > plain": "holds",
        "nkd > kd T=1": "inconclusive",
        "nkd > un-normalised": "refuted",
    }


def test_the_readme_says_of_each_claim_how_it_came_out_and_counts_them(root: Path) -> None:
    rows = (root / "README.md").read_text().splitlines()
    own = next(row for row in rows if row.startswith("| [NKD / USKD]"))
    assert own.split(" | ")[1:] == ["–", "–", "nkd-digits", "nkd-cifar10, uskd-digits, uskd-cifar10 |"]
    counts = next(row for row in rows if re.match(r"\| all \| \d+ \| \d+ \| \d+ \| \d+ \|", row)).split(" | ")
    assert counts[1:4] == ["0", "0", "1"]


def test_a_page_shows_algorithm_options_and_deviations(root: Path) -> None:
    text = (root / PAGE).read_text()
    for method in (NKD, USKD):
        assert inspect.getsource(method.updates) in text
        assert f'class {method.__name__}(Method):\n    """{method.__doc__.splitlines()[0]}' in text
    assert "| `--method.gamma` | `1.5` | Weight of the non-target term, >= 0. |" in text
    assert "`--method.normalised`, `--method.no-normalised`" in text
    deviations = nkd_uskd.__doc__.split("\n\nDeviations. ")[1]
    assert text.split("## Deviations from the paper\n\n")[1] == pages.prose(deviations) + "\n"
    assert "[arXiv:2303.13005](https://arxiv.org/abs/2303.13005)" in text


def test_a_page_shows_the_numbers_and_what_they_were_measured_on(root: Path, entry: dict[str, Any]) -> None:
    text = (root / PAGE).read_text()
    measured, waiting = NKD.claims()[:2]
    assert f"### {measured.name}: refuted" in text
    assert "| plain | `plain` | 82.5 % ± 1.9 % | 2.0 |" in text
    assert "| un-normalised | `nkd`, `normalised=False` |" in text
    assert re.search(r"- seeds: 0 to 5, paired\n- task: .*`student_samples=123`", text)
    assert f"- measured on {entry['date']}" in text
    assert f"torch {entry['versions']['torch']}" in text
    assert f"### {waiting.name}: not measured yet" in text
    assert f"`stillroom claims nkd-uskd --only {waiting.name}` measures it." in text


def test_there_is_a_page_for_what_works_and_a_row_for_all(root: Path) -> None:
    made = {path.stem for path in (root / "docs/systems").iterdir()} - {"README"}
    assert made == {card.slug for card in catalogue.cards() if catalogue.works(card)}
    index = (root / INDEX).read_text()
    rows = [line for line in index.splitlines() if line.startswith("|")]
    for card in catalogue.cards():
        assert sum(pages.prose(card.gist) in row for row in rows) == 1
    assert sum("| planned |" in row for row in rows) == sum(not catalogue.works(card) for card in CARDS)


def test_the_same_inputs_give_the_same_bytes(root: Path) -> None:
    assert pages.wanted(root) == pages.wanted(root)


def test_prose_is_not_taken_for_markdown() -> None:
    assert pages.prose("N_i * S_i in [0, 1)\nor `a_b|c`") == r"N\_i \* S\_i in \[0, 1) or `a_b\|c`"
    assert pages.prose("# one") == r"\# one"
    assert pages.paragraphs(["- one\n  more\n- two", "    x = a_b"]) == [
        "- one more",
        "- two",
        "",
        "```text\nx = a_b\n```",
        "",
    ]


# -- the house ------------------------------------------------------------------------------------------------


def _findings(root: Path, place: str, code: str) -> list[str]:
    """What the house says of one file, without the name of the file."""
    path = root / "src" / "stillroom" / place
    path.parent.mkdir(parents=True)
    path.write_text(code)
    found = house.findings(root)
    assert house.main(root) == (1 if found else 0)
    return [line.removeprefix(f"src/stillroom/{place}:") for line in found]


LONG = 'def long() -> None:\n    """Too long."""\n' + "    print()\n" * 44

BAD = {
    "a long file": ("task.py", "x = 1\n" * 401, "401: the file has 401 lines"),
    "a long function": ("task.py", LONG, "1: 'long' has 46 lines"),
    "a long method": (
        "a.py",
        "class _A:\n" + LONG.replace("\n", "\n    ").join(["    ", ""]),
        "2: 'long' has",
    ),
    "cuda": ("task.py", 'device = "cuda:0"\n', "1: the device word 'cuda'"),
    "is_cuda": ("data/a.py", "def _f(x):\n    return x.is_cuda\n", "2: the device word 'cuda'"),
    "mps": ("metrics/engine.py", "from torch.backends import mps\n", "1: the device word 'mps'"),
    "the cpu by name": (
        "task.py",
        'def _f(x):\n    return x.to("cpu")\n',
        "2: the device word '.to(\"cpu\")'",
    ),
    "pickle": ("run.py", "import pickle\n", "1: 'pickle' can run"),
    "numpy's pickle": ("run.py", "np.load(path, allow_pickle=True)\n", "1: 'pickle' can run"),
    "torch.load": ("run.py", "x = torch.load(path)\n", "1: 'torch.load(' can run"),
    "weights_only": ("run.py", "x = load(path, weights_only=False)\n", "1: 'weights_only=False' can run"),
    "to do": ("run.py", "x = 1  # TODO: more\n", "1: a TODO is left"),
    "to fix": ("run.py", '"""FIXME."""\n', "1: a FIXME is left"),
    "paper from paper": (
        "predictors/labels/ferkd.py",
        "from stillroom.predictors.labels.nkd_uskd import NKD\n",
        "1: the paper imports the paper 'stillroom.predictors.labels.nkd_uskd'",
    ),
    "paper from package": (
        "predictors/labels/ferkd.py",
        "def _f():\n    from stillroom.predictors.labels import nkd_uskd\n",
        "2: the paper imports the paper 'stillroom.predictors.labels.nkd_uskd'",
    ),
    "paper from beside": (
        "predictors/labels/ferkd.py",
        "from .nkd_uskd import NKD\n",
        "1: the paper imports the paper 'stillroom.predictors.labels.nkd_uskd'",
    ),
    "paper in a package": (
        "predictors/labels/ferkd/core.py",
        "import stillroom.predictors.labels.mdcs.parts\n",
        "1: the paper imports the paper 'stillroom.predictors.labels.mdcs'",
    ),
    "baselines from paper": (
        "predictors/baselines.py",
        "from stillroom.predictors.labels.nkd_uskd import NKD\n",
        "1: the paper imports the paper 'stillroom.predictors.labels.nkd_uskd'",
    ),
    "torch in the cli": ("cli.py", "import torch\n", "1: torch is imported at the top"),
    "torch in a package": (
        "predictors/__init__.py",
        "from torch import nn\n",
        "1: torch is imported at the top",
    ),
    "torch in a try": (
        "errors.py",
        "try:\n    import torch.nn\nexcept ImportError:\n    pass\n",
        "2: torch is",
    ),
    "no docstring": ("task.py", "def public(): ...\n", "1: 'public' is public and has no docstring"),
    "class": ("task.py", "class Public:\n    x = 1\n", "1: 'Public' is public"),
    "method": ("task.py", 'class A:\n    """A."""\n\n    async def go(self): ...\n', "4: 'go' is public"),
}


@pytest.mark.parametrize(("place", "code", "says"), BAD.values(), ids=BAD)
def test_each_rule_triggers(tmp_path: Path, place: str, code: str, says: str) -> None:
    found = _findings(tmp_path, place, code)
    assert len(found) == 1
    assert found[0].startswith(says)


def test_torchs_own_files_may_be_read_as_tensors_alone(tmp_path: Path) -> None:
    assert not _findings(tmp_path / "a", "run.py", "x = torch.load(path, weights_only=True)\n")
    assert len(_findings(tmp_path / "b", "run.py", "x = torch.load(path, weights_only=None)\n")) == 1


NESTED = '''"""Words such as cuda, mps and pickle are only words here, and so is torch.load(x)."""

from typing import Protocol, overload


class Shape(Protocol):
    """What has a size."""

    def size(self) -> int: ...


@overload
def double(x: int) -> int: ...
@overload
def double(x: str) -> str: ...
def double(x):
    """Twice x."""

    def inner():  # not .to("cpu")
        return x + x

    return inner()


class _Private:
    def method(self): ...


class Public:
    """Has a property."""

    def __init__(self): ...
    def _own(self): ...

    @property
    def x(self):
        """A number."""

    @x.setter
    def x(self, value): ...
'''

GOOD = {
    "what needs no docstring": ("task.py", NESTED),
    "a long table": ("_cards.py", "x = 1\n" * 500),
    "a function of 45 lines": ("task.py", LONG.removesuffix("    print()\n")),
    "a device in the engine": ("engine.py", 'device = "cuda"\n'),
    "a device in the runtime": ("runtime.py", 'device = "mps"\n'),
    "torch for types": (
        "cli.py",
        "from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    import torch\n\n\ndef _f():\n    import torch\n",
    ),
    "torch in models": ("models/__init__.py", "import torch\n"),
    "a paper and the baselines": (
        "predictors/labels/ferkd.py",
        "from stillroom.predictors.baselines import KD\nfrom stillroom.predictors.parts import losses\n",
    ),
    "a paper and itself": (
        "predictors/labels/ferkd/core.py",
        "from .crops import Crops\nfrom . import boxes\n",
    ),
    "no paper": ("workflow.py", "from stillroom.predictors.labels.nkd_uskd import NKD\n"),
}


@pytest.mark.parametrize(("place", "code"), GOOD.values(), ids=GOOD)
def test_no_rule_triggers_where_it_should_not(tmp_path: Path, place: str, code: str) -> None:
    assert _findings(tmp_path, place, code) == []

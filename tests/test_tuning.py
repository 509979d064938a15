"""Every arm tries its settings on the validation split and on seeds of their own, and the best one is compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stillroom import tuning
from stillroom.cli import main
from stillroom.engine import Engine
from stillroom.errors import UserError
from stillroom.predictors.baselines import KD, Plain
from stillroom.predictors.classification import Classification
from stillroom.tuning import Choice, choices, settings, tune

ARMS = {"plain": Plain(), "kd": KD()}
TASK = Classification(teacher_epochs=2, train_samples=120, student_samples=100)


def test_choices_are_of_the_recipe_or_of_one_arm() -> None:
    assert choices(["lr=0.02,5e-2", "kd.alpha=0.5,1"], ARMS) == [
        Choice("", "lr", (0.02, 0.05)),
        Choice("kd", "alpha", (0.5, 1)),
    ]
    assert choices(["schedule=cosine,linear"], ARMS) == [Choice("", "schedule", ("cosine", "linear"))]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("lr", "--tune 'lr' names no choice: pass OPTION=VALUE,VALUE"),
        ("lr=0.1,", "names no choice"),
        ("nkd.gamma=1,2", "is about 'nkd', which is not compared: pass one of plain, kd"),
        ("alpha=0.5", "names no option of the recipe: pass one of optimizer, lr"),
    ],
)
def test_what_is_no_choice_is_one_line(text: str, says: str) -> None:
    with pytest.raises(UserError) as error:
        choices([text], ARMS)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_an_arm_tries_every_combination_of_its_own() -> None:
    wanted = choices(["lr=0.02,0.05", "kd.alpha=0.5,0.9"], ARMS)
    assert [one.words for one in settings("plain", Plain(), Engine(), wanted)] == ["lr 0.02", "lr 0.05"]
    tried = settings("kd", KD(), Engine(), wanted)
    assert [(one.engine.recipe.lr, one.method.alpha) for one in tried] == [
        (0.02, 0.5), (0.02, 0.9), (0.05, 0.5), (0.05, 0.9),
    ]  # fmt: skip
    assert settings("kd", KD(), Engine(), [])[0].words == "as it comes"


@pytest.mark.parametrize("text", ["kd.alpha=high", "kd.colour=1", "lr=fast"])
def test_a_value_that_does_not_fit_is_one_line(text: str) -> None:
    with pytest.raises(UserError, match="--tune cannot set"):
        settings("kd", KD(), Engine(), choices([text], ARMS))


def test_the_best_on_the_validation_split_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, Any]] = []
    own = Classification.score

    def score(task: Classification, product: Any, split: str, runtime: Any) -> dict[str, Any]:
        if task.teacher != "none":  # which a teacher's own training has
            seen.append((split, task.subset_seed))
        return own(task, product, split, runtime)

    monkeypatch.setattr(Classification, "score", score)
    found = tune(
        ARMS, TASK, Engine(epochs=3), choices(["kd.temperature=1,1000", "lr=0.05,1e-9"], ARMS), [100, 101]
    )
    assert set(seen) == {("validation", 100), ("validation", 101)}
    for arm, one in found.items():
        assert one.tried[one.setting.words] == max(one.tried.values())
        assert one.setting.engine.recipe.lr == 0.05, arm
    assert set(found["kd"].tried) == {f"temperature {t}, lr {lr}" for t in (1, 1000) for lr in (0.05, 1e-9)}


def test_teachers_are_those_of_the_comparison_whatever_an_arm_tries(tmp_path: Path) -> None:
    wanted = choices(["lr=0.05,0.01"], ARMS)
    tries = {one.words: one for one in settings("kd", KD(), Engine(), wanted)}
    grid = tuning.grid_of(tries, TASK, Engine(), [0])
    jobs = [grid.teacher(arm, 1234) for arm in tries]
    assert all(job is not None and job.engine.recipe.lr == 0.05 for job in jobs)


def test_the_command_tunes_compares_and_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "found.json"
    words = "compare plain kd --seeds 2 --tune lr=0.05,1e-9 kd.alpha=0.5,0.9 --tune-seeds 1 --engine.epochs 3"
    words += " --task.train-samples 120 --task.student-samples 100 --task.teacher-epochs 2"
    assert main([*words.split(), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "plain: lr 0.05, the best of 2 on the validation split" in said
    entry = json.loads(out.read_text())
    assert entry["tuning"]["seeds"] == [100]
    assert len(entry["tuning"]["arms"]["kd"]["tried"]) == 4
    assert entry["arms"]["kd"]["scores"] and entry["command"].startswith("stillroom compare plain kd")
    # the same arms in their chosen settings score the same without a choice
    alone = f"compare plain --seeds 2 --engine.epochs 3 --out {tmp_path / 'alone.json'}"
    assert main([*alone.split(), *words.split()[-6:]]) == 0
    again = json.loads((tmp_path / "alone.json").read_text())
    assert again["arms"]["plain"]["scores"] == entry["arms"]["plain"]["scores"]
    assert "tuning" not in again


def test_seeds_of_the_tuning_are_not_compared_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "plain", "kd", "--tune", "lr=0.1,0.2", "--first-seed", "98", "--seeds", "5"]) == 2
    assert "--first-seed 98 compares on seeds of the tuning (100 to 102)" in capsys.readouterr().err

"""Long-tailed subsets: the published counts, who is chosen, and accuracy by how common a class is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.errors import UserError
from stillroom.predictors.parts.long_tail import (
    balanced_accuracy,
    long_tailed,
    shot_accuracies,
    shots,
    tail_counts,
    tail_order,
)

REFERENCE = json.loads((Path(__file__).parents[1] / "labels" / "reference_mdcs.json").read_text())["counts"]
NAMES = [str(c) for c in range(10)]


def test_the_counts_are_the_specification_s() -> None:
    assert tail_counts(5000, 100, 10) == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]


@pytest.mark.parametrize("key", REFERENCE)
def test_the_counts_are_the_published_code_s(key: str) -> None:
    share, classes = key.split()
    assert tail_counts(50_000 // int(classes), 1 / float(share), int(classes)) == REFERENCE[key]


def test_an_imbalance_of_1_keeps_all_classes_alike_and_one_class_is_no_tail() -> None:
    assert tail_counts(7, 1, 4) == [7, 7, 7, 7]
    assert tail_counts(7, 100, 1) == [7]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(5, 40), min_size=2, max_size=8), st.floats(1, 5), st.integers(0, 99))
def test_a_subset_has_its_counts_and_the_largest_that_there_is_room_for(
    there: list[int], imbalance: float, seed: int
) -> None:
    labels = torch.repeat_interleave(torch.arange(len(there)), torch.tensor(there))
    names, order = [str(c) for c in range(len(there))], tail_order(len(there), seed)
    ids = long_tailed(labels, names, imbalance, None, order, seed)
    found = labels[ids].bincount(minlength=len(there))[order].tolist()
    assert found == tail_counts(found[0], imbalance, len(there))
    assert ids.tolist() == sorted(set(ids.tolist()))
    more = tail_counts(found[0] + 1, imbalance, len(there))
    assert any(n > there[c] for n, c in zip(more, order, strict=True))


def test_another_seed_chooses_others_and_the_same_the_same() -> None:
    labels = torch.arange(10).repeat(30)
    ids = [long_tailed(labels, NAMES, 10.0, 20, None, seed).tolist() for seed in (0, 0, 1)]
    assert ids[0] == ids[1] != ids[2]
    assert tail_order(10) == list(range(10))
    assert tail_order(10, 1) == tail_order(10, 1) != tail_order(10, 2)
    assert sorted(tail_order(10, 1)) == list(range(10))


def test_classes_that_lack_samples_or_would_keep_none_are_one_line() -> None:
    labels = torch.arange(10).repeat(30)
    with pytest.raises(
        UserError, match=r"class '0' has 30 training samples and would need 31; pass at most 30"
    ):
        long_tailed(labels, NAMES, 2.0, 31)
    with pytest.raises(
        UserError, match=r"imbalance is 31: of 30 .* none is left in class '9'; pass at most 30"
    ):
        long_tailed(labels, NAMES, 31.0)
    assert labels[long_tailed(labels, NAMES, 30.0)].bincount()[9] == 1
    with pytest.raises(UserError, match=r"--task.imbalance is 0.9"):
        long_tailed(labels, NAMES, 0.9)


def test_the_bounds_of_many_medium_and_few() -> None:
    assert shots([101, 100, 20, 19, 0]) == {"many": [0], "medium": [1, 2], "few": [3, 4]}
    assert shots([5, 5], many_above=9, few_below=2) == {"many": [], "medium": [0, 1], "few": []}


def test_accuracies_are_means_over_classes_and_empty_groups_are_left_out() -> None:
    y = torch.tensor([0, 0, 0, 0, 1, 1, 2])
    logits = torch.nn.functional.one_hot(torch.tensor([0, 0, 0, 1, 1, 0, 2]), 4).float()
    found = shot_accuracies(logits, y, {"many": [0, 1], "medium": [], "few": [2, 3]}, prefix="x_")
    assert found == {
        "x_balanced_accuracy": pytest.approx((0.75 + 0.5 + 1) / 3),
        "x_many_accuracy": pytest.approx(0.625),
        "x_few_accuracy": 1.0,
    }
    assert balanced_accuracy([0.5, None, 1.0]) == 0.75

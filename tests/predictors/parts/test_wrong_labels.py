"""Wrong labels: as many as asked for, of other classes, in training alone."""

from __future__ import annotations

import pytest
import torch

from stillroom.errors import UserError
from stillroom.predictors.classification import Classification
from stillroom.predictors.parts.label_noise import flipped
from stillroom.predictors.parts.wrong_labels import WrongLabels


def test_a_share_of_the_labels_is_another_class_each_as_likely() -> None:
    labels = torch.arange(60_000) % 4
    other = flipped(labels, 4, 0.3, seed=1)
    steps = (other - labels) % 4
    shares = steps.bincount(minlength=4) / len(labels)
    torch.testing.assert_close(shares, torch.tensor([0.7, 0.1, 0.1, 0.1]), rtol=0, atol=0.01)
    assert torch.equal(flipped(labels, 4, 0.0, seed=1), labels)
    assert torch.equal(flipped(labels, 4, 0.3, seed=1), other)
    assert not torch.equal(flipped(labels, 4, 0.3, seed=2), other)


def test_only_the_student_s_labels_are_wrong_and_another_seed_wrongs_others() -> None:
    task, clean = WrongLabels(teacher="none"), Classification(teacher="none")
    ids = torch.arange(200)
    x, y = task.train().fetch(ids, None)
    same_x, right = clean.train().fetch(ids, None)
    assert torch.equal(x, same_x)
    assert torch.equal(y, task.train().labels)
    assert 20 < int((y != right).sum()) < 60
    assert torch.equal(task.images.test.labels, clean.images.test.labels)
    assert torch.equal(task.images.validation.labels, clean.images.validation.labels)
    wrong = [
        (t.train().labels != c.train().labels) for t, c in ((p, clean.paired(4)) for p in (task.paired(4),))
    ]
    assert not torch.equal(wrong[0], y != right)
    assert torch.equal(task.train().subset(ids[5:9]).fetch(torch.tensor([0]), None)[1], y[5:6])


def test_a_share_out_of_range_is_one_line() -> None:
    with pytest.raises(
        UserError, match=r"--task.wrong-labels is 1: pass a number from 0 to 1 \(itself excluded\)"
    ):
        WrongLabels(teacher="none", wrong_labels=1).check(0, False)

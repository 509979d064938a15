"""Classification metrics against scikit-learn, by hand, and at their limits."""

from __future__ import annotations

import json
import math

import pytest
import sklearn.metrics as reference
import torch
from torch import Tensor

from stillroom import metrics
from stillroom.errors import UserError


def sample(n: int = 200, classes: int = 7, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(classes, (n,), generator=generator)
    logits = 2 * torch.randn(n, classes, generator=generator)
    logits[torch.arange(n), y] += 1.5
    return logits, y


def logits_of(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64).log()


# Top-1 confidences 0.9, 0.8, 0.6 and 0.7; the second and the third are wrong.
FOUR = logits_of((0.9, 0.1), (0.8, 0.2), (0.4, 0.6), (0.3, 0.7))
LABELS = torch.tensor([0, 1, 0, 1])


def test_accuracy_and_top_k_agree_with_scikit_learn() -> None:
    logits, y = sample()
    assert metrics.accuracy(logits, y) == pytest.approx(reference.accuracy_score(y, logits.argmax(1)))
    for k in (1, 2, 5):
        wanted = reference.top_k_accuracy_score(y, logits, k=k, labels=range(7))
        assert metrics.top_k(logits, y, k) == pytest.approx(wanted)
    assert metrics.top_k(logits, y, 1) == metrics.accuracy(logits, y)
    assert metrics.top_k(logits, y, 7) == metrics.top_k(logits, y, 99) == 1


def test_likelihood_and_brier_agree_with_scikit_learn() -> None:
    logits, y = sample()
    p = logits.double().softmax(1).numpy()
    assert metrics.negative_log_likelihood(logits, y) == pytest.approx(
        reference.log_loss(y, p, labels=range(7))
    )
    wanted = reference.brier_score_loss(y, p, labels=range(7), scale_by_half=False)
    assert metrics.brier(logits, y) == pytest.approx(wanted)


def test_confusion_and_recall_agree_with_scikit_learn() -> None:
    logits, y = sample()
    assert (
        metrics.confusion(logits, y)
        == reference.confusion_matrix(y, logits.argmax(1), labels=range(7)).tolist()
    )
    wanted = reference.recall_score(y, logits.argmax(1), average=None)
    assert metrics.per_class_accuracy(logits, y) == pytest.approx(list(wanted))


def test_constant_logits_score_the_first_classes_only() -> None:
    logits, y = torch.zeros(100, 100), torch.arange(100)
    assert metrics.accuracy(logits, y) == pytest.approx(0.01)
    assert [metrics.top_k(logits[:9], y[:9], k) for k in (3, 9)] == pytest.approx([3 / 9, 1])


def test_calibration_error_by_hand() -> None:
    # bins of width 1/2: one bin of all four, |0.5 - 0.75|
    assert metrics.expected_calibration_error(FOUR, LABELS, bins=2) == pytest.approx(0.25)
    # bins of width 1/4: {0.6, 0.7} with accuracy 0.5 and {0.8, 0.9} with 0.5: (2 * 0.15 + 2 * 0.35) / 4
    assert metrics.expected_calibration_error(FOUR, LABELS, bins=4) == pytest.approx(0.25)
    # fifteen bins separate them: (|1 - 0.9| + |0 - 0.8| + |0 - 0.6| + |1 - 0.7|) / 4
    assert metrics.expected_calibration_error(FOUR, LABELS) == pytest.approx(0.45)


def test_bins_are_weighted_by_their_samples() -> None:
    logits = logits_of((0.9, 0.1), (0.9, 0.1), (0.9, 0.1), (0.4, 0.6))
    y = torch.tensor([0, 0, 0, 0])
    assert metrics.expected_calibration_error(logits, y, bins=4) == pytest.approx((3 * 0.1 + 0.6) / 4)


def test_a_perfectly_calibrated_classifier_has_no_error() -> None:
    # ten samples at each confidence, of which exactly that share is right
    rows, labels = [], []
    for tenths in (6, 7, 8, 9, 10):
        rows += [(tenths / 10, 1 - tenths / 10)] * 10
        labels += [0] * tenths + [1] * (10 - tenths)
    logits, y = logits_of(*rows), torch.tensor(labels)
    assert metrics.expected_calibration_error(logits, y, bins=10) == pytest.approx(0, abs=1e-12)
    assert metrics.expected_calibration_error(logits.flip(0), y, bins=10) > 0.1


def test_bins_are_open_below_and_closed_above() -> None:
    # confidence exactly 1/2 belongs to the first of two bins, 1 to the last
    diagram = metrics.reliability(logits_of((0.5, 0.5), (1, 0)), torch.tensor([0, 0]), bins=2)
    assert diagram == {"confidence": [0.5, 1.0], "accuracy": [1.0, 1.0], "count": [1, 1]}


def test_reliability_by_hand() -> None:
    diagram = metrics.reliability(FOUR, LABELS, bins=4)
    assert diagram["count"] == [0, 0, 2, 2]
    assert diagram["accuracy"] == [None, None, 0.5, 0.5]
    assert diagram["confidence"][:2] == [None, None]
    assert diagram["confidence"][2:] == pytest.approx([0.65, 0.85])


def test_the_area_under_risk_coverage_by_hand() -> None:
    # by confidence 0.9 right, 0.8 wrong, 0.7 right, 0.6 wrong: errors among the first k are 0, 1, 1, 2
    area = (0 + 1 / 2 + 1 / 3 + 2 / 4) / 4
    assert metrics.area_under_risk_coverage(FOUR, LABELS) == pytest.approx(area)
    # with both errors last: 0, 0, 1/3, 2/4
    excess = area - (1 / 3 + 2 / 4) / 4
    assert metrics.excess_area_under_risk_coverage(FOUR, LABELS) == pytest.approx(excess)


def test_the_area_under_risk_coverage_at_its_limits() -> None:
    sure = logits_of((0.9, 0.1), (0.8, 0.2), (0.7, 0.3), (0.6, 0.4))
    right = torch.zeros(4, dtype=torch.int64)
    assert (
        metrics.area_under_risk_coverage(sure, right)
        == metrics.excess_area_under_risk_coverage(sure, right)
        == 0
    )
    assert metrics.area_under_risk_coverage(sure, 1 - right) == 1
    assert metrics.excess_area_under_risk_coverage(sure, 1 - right) == pytest.approx(0)
    best, worst = torch.tensor([0, 0, 0, 1]), torch.tensor([1, 0, 0, 0])
    assert metrics.excess_area_under_risk_coverage(sure, best) == pytest.approx(0)
    assert metrics.area_under_risk_coverage(sure, best) == pytest.approx(1 / 16)
    assert metrics.area_under_risk_coverage(sure, worst) == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)


def test_samples_of_equal_confidence_count_in_every_order_alike() -> None:
    even, y = torch.tensor([[1.0, 0.0]]).expand(5, 2), torch.tensor([1, 0, 0, 1, 0])
    for order in ([0, 1, 2, 3, 4], [1, 2, 4, 0, 3], [0, 3, 1, 2, 4]):
        assert metrics.area_under_risk_coverage(even, y[order]) == pytest.approx(0.4)
    logits, labels = sample()
    tied = logits.round()
    area = metrics.area_under_risk_coverage(tied, labels)
    assert metrics.area_under_risk_coverage(tied.flip(0), labels.flip(0)) == pytest.approx(area, abs=1e-12)
    assert metrics.area_under_risk_coverage(logits, labels) != area


def test_likelihood_and_brier_by_hand() -> None:
    assert metrics.negative_log_likelihood(FOUR, LABELS) == pytest.approx(
        -math.log(0.9 * 0.2 * 0.4 * 0.7) / 4
    )
    assert metrics.brier(FOUR, LABELS) == pytest.approx(2 * (0.1**2 + 0.8**2 + 0.6**2 + 0.3**2) / 4)
    certain = torch.tensor([[100.0, 0.0]])
    assert metrics.brier(certain, torch.tensor([0])) == pytest.approx(0, abs=1e-12)
    assert metrics.brier(certain, torch.tensor([1])) == pytest.approx(2)


def test_everything_is_computed_in_float64() -> None:
    logits, y = sample(2000)
    exact = metrics.negative_log_likelihood(logits.double(), y)
    assert metrics.negative_log_likelihood(logits, y) == exact
    assert metrics.negative_log_likelihood(logits.bfloat16(), y) == pytest.approx(exact, rel=1e-2)


def test_shifting_logits_changes_nothing() -> None:
    logits, y = sample()
    shifted = logits.double() + 1e4
    assert metrics.expected_calibration_error(shifted, y) == pytest.approx(
        metrics.expected_calibration_error(logits, y)
    )


def test_confusion_has_labels_in_rows() -> None:
    assert metrics.confusion(torch.eye(3)[[1, 1, 2]], torch.tensor([0, 1, 2])) == [
        [0, 1, 0],
        [0, 1, 0],
        [0, 0, 1],
    ]


def test_a_class_without_samples_has_no_accuracy() -> None:
    assert metrics.per_class_accuracy(torch.eye(3)[[0, 1]], torch.tensor([0, 0])) == [0.5, None, None]


def test_agreement() -> None:
    a, b = torch.eye(4), torch.eye(4)[[0, 1, 3, 3]]
    assert metrics.agreement(a, b) == metrics.agreement(b, 9 * a) == 0.75
    assert metrics.agreement(a, a) == 1
    with pytest.raises(UserError, match=r"logits \(4, 4\) and \(2, 4\) cannot be compared"):
        metrics.agreement(a, b[:2])


def test_the_report_holds_them_all_and_is_strict_json() -> None:
    logits, y = sample()
    report = metrics.classification_report(logits.requires_grad_(), y)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["samples"] == 200
    assert report["top_5"] == metrics.top_k(logits, y, 5)
    for name in set(report) - {"samples", "top_5"}:
        assert report[name] == getattr(metrics, name)(logits, y), name
    assert set(report) >= {"accuracy", "brier", "expected_calibration_error", "negative_log_likelihood"}
    assert set(report) >= {"reliability", "per_class_accuracy", "confusion"}


def test_the_report_of_few_classes_has_no_top_5() -> None:
    assert "top_5" not in metrics.classification_report(FOUR, LABELS)


def test_an_infinite_likelihood_is_none_in_the_report() -> None:
    logits = torch.tensor([[0.0, -math.inf], [0.0, 0.0]])
    assert metrics.negative_log_likelihood(logits, torch.tensor([1, 0])) == math.inf
    report = metrics.classification_report(logits, torch.tensor([1, 0]))
    assert report["negative_log_likelihood"] is None
    json.dumps(report, allow_nan=False)


@pytest.mark.parametrize(
    ("logits", "y", "part"),
    [
        (torch.zeros(2, 3, 1), torch.zeros(2).long(), "logits have shape (2, 3, 1)"),
        (torch.zeros(0, 3), torch.zeros(0).long(), "logits have shape (0, 3)"),
        (torch.zeros(2, 3), torch.zeros(3).long(), "labels have shape (3,)"),
        (torch.zeros(2, 3), torch.zeros(2, 1).long(), "labels have shape (2, 1)"),
        (torch.zeros(2, 3), torch.zeros(2), "type torch.float32"),
        (torch.zeros(2, 3), torch.tensor([0, 3]), "labels run from 0 to 3, the logits have 3 classes"),
        (torch.zeros(2, 3), torch.tensor([-1, 2]), "labels run from -1 to 2"),
        (
            torch.tensor([[0, math.nan], [0, 0]]),
            torch.zeros(2).long(),
            "logits of 1 of 2 samples are not finite",
        ),
        (
            torch.tensor([[0, math.inf], [0, 0]]),
            torch.zeros(2).long(),
            "logits of 1 of 2 samples are not finite",
        ),
    ],
)
def test_what_does_not_belong_together_is_refused(logits: Tensor, y: Tensor, part: str) -> None:
    for metric in (metrics.accuracy, metrics.top_k, metrics.brier, metrics.confusion, metrics.reliability):
        with pytest.raises(UserError) as caught:
            metric(logits, y)
        assert part in str(caught.value)
        assert "\n" not in str(caught.value)


def test_bins_and_k_must_be_positive() -> None:
    with pytest.raises(UserError, match="0 bins"):
        metrics.reliability(FOUR, LABELS, bins=0)
    with pytest.raises(UserError, match="top-0"):
        metrics.top_k(FOUR, LABELS, 0)


def test_small_integer_labels_are_fine() -> None:
    logits, y = sample(300, 40)
    assert metrics.confusion(logits, y.to(torch.uint8)) == metrics.confusion(logits, y)

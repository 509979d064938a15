"""How good and how well calibrated a classifier is: logits and labels in, plain numbers out.

Everything is computed in float64 on the logits' device. All functions raise UserError for shapes that do not
belong together, labels out of range, no samples at all, and logits that give no probabilities (NaN,
infinity), so that a diverged network is never scored as if it had answered.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from stillroom.errors import UserError


def accuracy(logits: Tensor, y: Tensor) -> float:
    """Share of samples, in [0, 1], whose label `[N]` is where logits `[N, C]` are largest.

    Of equal logits the first counts.
    """
    log_probs, y = _checked(logits, y)
    return _mean(log_probs.argmax(1) == y)


def top_k(logits: Tensor, y: Tensor, k: int = 5) -> float:
    """Share of samples, in [0, 1], whose label `[N]` is among the `k` largest of logits `[N, C]`.

    Of equal logits the class with the lower index comes first, so that constant logits do not score 1.
    """
    if k < 1:
        raise UserError(f"top-{k} accuracy does not exist: pass a positive k")
    log_probs, y = _checked(logits, y)
    ranked = log_probs.argsort(dim=1, descending=True, stable=True)[:, :k]
    return _mean((ranked == y[:, None]).any(1))


def reliability(logits: Tensor, y: Tensor, bins: int = 15) -> dict[str, list]:
    """The reliability diagram of Guo et al. (ICML 2017, arXiv:1706.04599), section 2.

    Samples are put into `bins` intervals (m-1)/M < confidence <= m/M of the largest probability. Gives `bins`
    entries each of `confidence` and `accuracy` (means in [0, 1], None where a bin is empty) and `count`.
    """
    if bins < 1:
        raise UserError(f"{bins} bins hold no samples: pass a positive number of bins")
    log_probs, y = _checked(logits, y)
    top, predicted = log_probs.max(1)
    confidence, correct = top.exp(), (predicted == y).double()
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64, device=confidence.device)[1:-1]
    index = torch.bucketize(confidence, edges)
    count = torch.bincount(index, minlength=bins)

    def means(values: Tensor) -> list[float | None]:
        sums = torch.zeros_like(count, dtype=torch.float64).index_add_(0, index, values)
        return [None if math.isnan(mean) else mean for mean in (sums / count).tolist()]

    return {"confidence": means(confidence), "accuracy": means(correct), "count": count.tolist()}


def expected_calibration_error(logits: Tensor, y: Tensor, bins: int = 15) -> float:
    """Mean distance, in [0, 1], between accuracy and confidence over equal-width bins of confidence.

    Eq. 3 of Guo et al. (ICML 2017, arXiv:1706.04599): each bin counts with its share of the samples.
    """
    diagram = reliability(logits, y, bins)
    rows = zip(diagram["confidence"], diagram["accuracy"], diagram["count"], strict=True)
    return math.fsum(count * abs(right - sure) for sure, right, count in rows if count) / len(y)


def negative_log_likelihood(logits: Tensor, y: Tensor) -> float:
    """Mean of -log p(label) in nats; infinite where a label's logit is -infinity."""
    log_probs, y = _checked(logits, y)
    return -log_probs.gather(1, y[:, None]).mean().item()


def brier(logits: Tensor, y: Tensor) -> float:
    """Mean squared distance, in [0, 2], between the probabilities and the one-hot label, summed over classes.

    The score P of Brier (Monthly Weather Review 78, 1950), not halved for two classes.
    """
    log_probs, y = _checked(logits, y)
    target = one_hot(y, log_probs.shape[1])
    return (log_probs.exp() - target).square().sum(1).mean().item()


def area_under_risk_coverage(logits: Tensor, y: Tensor) -> float:
    """AURC, in [0, 1]: the mean error among the k most confident samples, over k = 1 .. n; 0 without errors.

    Geifman, Uziel and El-Yaniv (ICLR 2019, arXiv:1805.08206), with the largest probability as confidence. Samples of
    equal confidence count as if their order were drawn: with one confidence for all it is the error, and the order of
    the samples never matters.
    """
    log_probs, y = _checked(logits, y)
    confidence, predicted = log_probs.max(1)
    order = confidence.argsort(descending=True)
    _, group, sizes = confidence[order].unique_consecutive(return_inverse=True, return_counts=True)
    wrong = (predicted != y)[order].double()
    shares = torch.zeros_like(sizes, dtype=torch.float64).index_add_(0, group, wrong) / sizes
    seen = torch.arange(1, len(y) + 1, dtype=torch.float64, device=wrong.device)
    return (shares[group].cumsum(0) / seen).mean().item()


def excess_area_under_risk_coverage(logits: Tensor, y: Tensor) -> float:
    """E-AURC, in [0, 1]: AURC less that of the best order of the same answers, which has all errors last.

    With r errors among n samples that one is (1/n) sum_{j=1..r} j / (n - r + j), of which Geifman et al. (2019)
    take the limit for large n.
    """
    area = area_under_risk_coverage(logits, y)
    wrong = len(y) - round(accuracy(logits, y) * len(y))
    best = math.fsum(j / (len(y) - wrong + j) for j in range(1, wrong + 1)) / len(y)
    return area - best


def confusion(logits: Tensor, y: Tensor) -> list[list[int]]:
    """Counts `[C][C]`: row the label, column the prediction."""
    log_probs, y = _checked(logits, y)
    classes = log_probs.shape[1]
    counts = torch.bincount(y * classes + log_probs.argmax(1), minlength=classes * classes)
    return counts.reshape(classes, classes).tolist()


def per_class_accuracy(logits: Tensor, y: Tensor) -> list[float | None]:
    """Share of each class's samples, in [0, 1], predicted right; None for a class without samples."""
    rows = confusion(logits, y)
    return [row[label] / sum(row) if sum(row) else None for label, row in enumerate(rows)]


def agreement(a_logits: Tensor, b_logits: Tensor) -> float:
    """Share of samples, in [0, 1], to which two classifiers' logits, both `[N, C]`, give the same class.

    The top-1 agreement of Stanton et al. (NeurIPS 2021, arXiv:2106.05945).
    """
    if a_logits.shape != b_logits.shape:
        raise UserError(
            f"logits {tuple(a_logits.shape)} and {tuple(b_logits.shape)} cannot be compared: "
            "pass both classifiers' logits of the same samples and classes"
        )
    return _mean(_log_probs(a_logits).argmax(1) == _log_probs(b_logits).argmax(1).to(a_logits.device))


def classification_report(logits: Tensor, y: Tensor) -> dict[str, Any]:
    """All of the above for logits `[N, C]` and labels `[N]`, ready for strict JSON.

    `top_5` is left out where five classes or fewer make it 1; an infinite likelihood is None.
    """
    likelihood = negative_log_likelihood(logits, y)
    report: dict[str, Any] = {"samples": len(y), "accuracy": accuracy(logits, y)}
    if logits.shape[1] > 5:
        report["top_5"] = top_k(logits, y, 5)
    return report | {
        "negative_log_likelihood": likelihood if math.isfinite(likelihood) else None,
        "brier": brier(logits, y),
        "expected_calibration_error": expected_calibration_error(logits, y),
        "area_under_risk_coverage": area_under_risk_coverage(logits, y),
        "excess_area_under_risk_coverage": excess_area_under_risk_coverage(logits, y),
        "reliability": reliability(logits, y),
        "per_class_accuracy": per_class_accuracy(logits, y),
        "confusion": confusion(logits, y),
    }


def _mean(hits: Tensor) -> float:
    return hits.double().mean().item()


def _log_probs(logits: Tensor) -> Tensor:
    """Log-probabilities `[N, C]` in float64; UserError for logits that have none."""
    if logits.ndim != 2 or 0 in logits.shape:
        raise UserError(f"logits have shape {tuple(logits.shape)}: pass [samples, classes], both positive")
    log_probs = logits.detach().double().log_softmax(1)
    broken = int(log_probs.isnan().any(1).sum())
    if broken:
        raise UserError(
            f"logits of {broken} of {len(logits)} samples are not finite: "
            "the network diverged, lower its learning rate"
        )
    return log_probs


def _checked(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    log_probs = _log_probs(logits)
    if y.shape != logits.shape[:1] or y.is_floating_point() or y.is_complex():
        raise UserError(
            f"labels have shape {tuple(y.shape)} and type {y.dtype}, logits {tuple(logits.shape)}: "
            f"pass {len(logits)} class numbers"
        )
    y = y.detach().to(log_probs.device, torch.int64)
    if y.min() < 0 or y.max() >= logits.shape[1]:
        raise UserError(
            f"labels run from {int(y.min())} to {int(y.max())}, the logits have {logits.shape[1]} classes: "
            "pass labels from 0 to classes - 1"
        )
    return log_probs, y

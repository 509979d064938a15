"""What the field measures: how good a classifier is, how well calibrated, and what it costs."""

from __future__ import annotations

from stillroom.metrics.classification import (
    accuracy,
    agreement,
    area_under_risk_coverage,
    brier,
    classification_report,
    confusion,
    excess_area_under_risk_coverage,
    expected_calibration_error,
    negative_log_likelihood,
    per_class_accuracy,
    reliability,
    top_k,
)
from stillroom.metrics.cost import costs, file_size, latency, multiply_adds, parameters, seconds_of
from stillroom.metrics.generation import (
    frechet,
    mmd,
    mode_counts,
    mode_distance,
    modes_covered,
    precision_recall,
    sliced_wasserstein,
    wasserstein,
)

__all__ = [
    "accuracy",
    "agreement",
    "area_under_risk_coverage",
    "brier",
    "classification_report",
    "confusion",
    "costs",
    "excess_area_under_risk_coverage",
    "expected_calibration_error",
    "file_size",
    "frechet",
    "latency",
    "mmd",
    "mode_counts",
    "mode_distance",
    "modes_covered",
    "multiply_adds",
    "negative_log_likelihood",
    "parameters",
    "per_class_accuracy",
    "precision_recall",
    "reliability",
    "seconds_of",
    "sliced_wasserstein",
    "top_k",
    "wasserstein",
]

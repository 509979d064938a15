"""Soft labels in few values, and back: what is lost, and how many bytes they take."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from stillroom.predictors.parts.compression import bytes_of, compress, recover


def some_labels(count: int, classes: int, seed: int = 0) -> Tensor:
    return (3 * torch.randn(count, classes, generator=torch.Generator().manual_seed(seed))).softmax(-1)


@pytest.mark.parametrize("precision", ["float16", "float32"])
@pytest.mark.parametrize("kind", ["marginal-smoothing", "marginal-renormalised", "smoothing", "hard", "full"])
def test_what_comes_back_is_a_distribution_with_the_same_largest_class(kind: Any, precision: Any) -> None:
    q = torch.cat([some_labels(200, 12), F.one_hot(torch.arange(12), 12).float()])
    rows = compress(q, kind, 5, precision)
    made = recover(rows, kind, 12)
    torch.testing.assert_close(made.sum(-1), torch.ones(len(q)), rtol=0, atol=2e-6)
    assert made.min() >= 0
    assert (made.argmax(-1) == q.argmax(-1)).float().mean() > 0.99
    assert sum(row[0].numel() * row.element_size() for row in rows.values()) == bytes_of(
        kind, 12, 5, precision
    )


def test_top_five_of_six_classes_loses_nothing_and_of_seven_the_difference_of_two() -> None:
    q = some_labels(50, 6)
    torch.testing.assert_close(
        recover(compress(q, "marginal-smoothing", 5, "float32"), "marginal-smoothing", 6), q
    )
    seven = some_labels(50, 7)
    made = recover(compress(seven, "marginal-smoothing", 5, "float32"), "marginal-smoothing", 7)
    assert (made - seven).abs().max() > 1e-3
    small = seven.topk(7).indices[:, 5:]
    torch.testing.assert_close(
        made.gather(-1, small), seven.gather(-1, small).mean(-1, keepdim=True).expand(-1, 2)
    )


def test_more_values_than_classes_keep_the_whole_label() -> None:
    q = some_labels(9, 4)
    for kind in ("marginal-smoothing", "marginal-renormalised"):
        torch.testing.assert_close(recover(compress(q, kind, 5, "float32"), kind, 4), q)


def test_half_precision_is_near_and_many_classes_have_wider_numbers() -> None:
    q = some_labels(20, 12)
    for kind in ("full", "marginal-smoothing"):
        exact, half = (recover(compress(q, kind, 5, p), kind, 12) for p in ("float32", "float16"))
        assert 0 < (exact - half).abs().max() < 2e-3
    assert compress(some_labels(1, 2**15 + 1), "hard")["classes"].dtype == torch.int32
    assert bytes_of("marginal-smoothing", 1000) == 20  # 500 crops: 10 kB of labels an image

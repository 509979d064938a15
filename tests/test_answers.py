"""Whole answers and the largest of them: what is lost, and what is not."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from stillroom.answers import Answer, Dense, TopK, decode, encode, top_k
from stillroom.errors import UserError

CLASSES = 11
SHAPES = [(6, CLASSES), (3, 4, CLASSES)]


def scores(shape: tuple[int, ...], scale: float = 3.0, seed: int = 0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(softmax(p) || softmax(q)) [...] in float64."""
    p, q = p.double().log_softmax(-1), q.double().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


def back(answer: Answer, kept: str, classes: int = CLASSES) -> Answer:
    rows = encode(answer, kept)  # type: ignore[arg-type]
    assert {len(row) for row in rows.values()} == {len(answer.logits)}
    return decode(rows, classes, tuple(answer.features))


# -- the largest scores -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("k", [1, 3, CLASSES - 1, CLASSES, 2 * CLASSES])
def test_masses_sum_to_one_and_the_largest_stays(shape: tuple[int, ...], k: int) -> None:
    z = scores(shape)
    answer = top_k(Dense(z), k)
    assert answer.values.shape == answer.indices.shape == (*shape[:-1], min(k, CLASSES))
    total = answer.values.exp().sum(-1) + answer.rest.exp()
    torch.testing.assert_close(total, torch.ones_like(total))
    torch.testing.assert_close(answer.logits.exp().sum(-1), torch.ones_like(total))
    assert torch.equal(answer.logits.argmax(-1), z.argmax(-1))
    torch.testing.assert_close(answer.values, z.log_softmax(-1).gather(-1, answer.indices))


@pytest.mark.parametrize("shape", SHAPES)
def test_all_scores_lose_nothing(shape: tuple[int, ...]) -> None:
    z = scores(shape)
    answer = top_k(Dense(z), CLASSES)
    torch.testing.assert_close(answer.logits, z.log_softmax(-1))
    assert (answer.rest == -math.inf).all()


def test_what_is_lost_is_the_rest_mass_times_how_far_the_rest_is_from_even() -> None:
    z = scores((50, CLASSES))
    p = z.double().softmax(-1)
    for k in range(1, CLASSES):
        answer = top_k(Dense(z), k)
        others = p.scatter(-1, answer.indices, 0.0)
        r = others.sum(-1)
        torch.testing.assert_close(answer.rest.double().exp(), r, atol=1e-7, rtol=1e-5)
        share = others / r.unsqueeze(-1)
        entropy = torch.special.entr(share).sum(-1)
        expected = r * (math.log(CLASSES - k) - entropy)
        torch.testing.assert_close(kl(z, answer.logits), expected, atol=1e-6, rtol=1e-4)
        assert (expected <= r * math.log(CLASSES - k) + 1e-12).all()


def test_a_larger_k_is_never_further_from_the_truth() -> None:
    """And by exactly the distance between the two: KL(p || q_k) = KL(p || q_k+1) + KL(q_k+1 || q_k)."""
    z = scores((50, CLASSES))
    cut = [top_k(Dense(z), k).logits for k in range(1, CLASSES + 1)]
    for less, more in pairwise(cut):
        assert (kl(z, more) <= kl(z, less) + 1e-6).all()
        torch.testing.assert_close(kl(z, less), kl(z, more) + kl(more, less), atol=1e-5, rtol=1e-4)


def test_nothing_is_lost_where_the_rest_are_equal() -> None:
    z = torch.tensor([[5.0, 2.0, 1.0, 1.0, 1.0, 1.0]])
    torch.testing.assert_close(top_k(Dense(z), 2).logits, z.log_softmax(-1))


def test_the_gradient_of_a_cross_entropy_is_off_by_at_most_twice_the_rest_mass() -> None:
    z, student = scores((50, CLASSES)), scores((50, CLASSES), seed=1)
    answer = top_k(Dense(z), 3)

    def gradient(target: Tensor) -> Tensor:
        s = student.clone().requires_grad_()
        loss = -(target.softmax(-1) * s.log_softmax(-1)).sum()
        return torch.autograd.grad(loss, s)[0]

    off = gradient(answer.logits) - gradient(z)
    torch.testing.assert_close(off, z.softmax(-1) - answer.logits.exp(), atol=1e-6, rtol=1e-5)
    assert (off.abs().sum(-1) <= 2 * answer.rest.exp() + 1e-6).all()


def test_at_a_higher_temperature_the_rest_come_out_larger_together() -> None:
    z = scores((50, CLASSES))
    answer = top_k(Dense(z), 3)
    for temperature in (1.5, 4.0):
        shares = [
            (logits / temperature).softmax(-1).gather(-1, answer.indices).sum(-1)
            for logits in (z, answer.logits)
        ]
        assert (shares[1] <= shares[0] + 1e-6).all()


# -- as it is kept ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_single_precision_keeps_scores_to_the_bit(shape: tuple[int, ...]) -> None:
    z = scores(shape, 100.0)
    assert torch.equal(back(Dense(z), "float32").logits, z)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_half_precision_is_a_share_of_the_distance_from_the_largest(
    shape: tuple[int, ...], scale: float
) -> None:
    z = scores(shape, scale) + 40
    found = back(Dense(z), "float16").logits
    away = z.amax(-1, keepdim=True) - z
    assert ((found - z).abs() <= 2**-11 * away + 2**-17).all()  # 2^-17: single precision around 64
    assert torch.equal(found.argmax(-1), z.argmax(-1))


def test_scores_beyond_half_precision_stay_finite() -> None:
    z = torch.tensor([[3.0, -1e6, 2.0], [1e6, 0.0, -5.0]])
    found = back(Dense(z), "float16", 3).logits
    assert found.isfinite().all()
    torch.testing.assert_close(found.softmax(-1), z.softmax(-1), atol=1e-3, rtol=0)


@pytest.mark.parametrize("kept", ["float16", "float32"])
@pytest.mark.parametrize("k", [1, 4, CLASSES])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_largest_come_back_with_masses_that_sum_to_one(kept: str, k: int, shape: tuple[int, ...]) -> None:
    answer = top_k(Dense(scores(shape)), k)
    found = back(answer, kept)
    assert isinstance(found, TopK)
    assert torch.equal(found.indices, answer.indices)
    total = found.values.exp().sum(-1) + found.rest.exp()
    torch.testing.assert_close(total, torch.ones_like(total), atol=1e-6, rtol=0)
    bound = 2e-6 if kept == "float32" else 2**-10 * answer.logits.abs().max().item()
    assert (found.values - answer.values).abs().max() <= bound
    assert torch.equal(found.logits.argmax(-1), answer.logits.argmax(-1))
    if k == CLASSES:
        assert (found.rest == -math.inf).all()


def test_classes_of_a_vocabulary_come_back() -> None:
    z = scores((2, 3, 50_000), 1.0)
    answer = top_k(Dense(z), 5)
    found = back(answer, "float16", 50_000)
    assert isinstance(found, TopK)
    assert torch.equal(found.indices, answer.indices)
    assert encode(answer, "float16")["indices"].element_size() == 4


def test_features_come_back_and_what_is_too_large_for_half_precision_is_named() -> None:
    features = {"body.0": scores((6, 5)), "body.1": scores((6, 2, 3, 3))}
    answer = Dense(scores((6, CLASSES)), features)
    for kept, bound in (("float32", 0.0), ("float16", 2**-10 * 20)):
        found = back(answer, kept)
        assert list(found.features) == list(features)
        assert all((found.features[p] - features[p]).abs().max() <= bound for p in features)
    large = Dense(scores((6, CLASSES)), {"body.0": torch.full((6, 1), 1e5)})
    with pytest.raises(
        UserError, match=r"^the teacher's feature 'body.0' reaches 1e\+05, more than half precision"
    ):
        encode(large, "float16")

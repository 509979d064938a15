"""Losses over a vocabulary: closed forms against autograd, limits of every weight, blocks, buckets, precision."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from stillroom.predictors.parts.language.divergences import Divergence, Sorted
from stillroom.predictors.parts.language.vocabulary import Head, Mixing, Tokens, blocks, distilled
from stillroom.predictors.parts.losses import forward_kl
from stillroom.teacher import Dense

N, L, H, V = 2, 5, 7, 11


class TopK:
    """A kept answer, as `stillroom.teacher` has it."""

    def __init__(self, logits: Tensor, k: int) -> None:
        log_p = logits.log_softmax(-1)
        self.values, self.indices = log_p.topk(k)
        self.rest = log_p.scatter(-1, self.indices, -math.inf).logsumexp(-1)


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def problem(counted: bool = True) -> tuple[Head, Tensor, Tensor]:
    """A student's head, a teacher's logits and labels, the first two of which do not count."""
    head = Head(random(N, L, H), random(V, H, seed=1), random(V, seed=2))
    for part in (head.hidden, head.weight, head.bias):
        assert part is not None
        part.requires_grad_()
    y = torch.randint(V, (N, L), generator=torch.Generator().manual_seed(3))
    if counted:
        y[0, :2] = -100
    return head, random(N, L, V, seed=4, scale=2.0), y


def reference(z: Tensor, v: Tensor, beta: float, normalised: bool = True) -> Tensor:
    """The generalised Jensen-Shannon divergence as it is written, in logarithms, of the last axis."""
    log_s, log_t = z.log_softmax(-1), v.log_softmax(-1)
    if beta in (0, 1):
        near, far = (log_t, log_s) if beta == 0 else (log_s, log_t)
        return (near.exp() * (near - far)).sum(-1)
    log_m = torch.logaddexp(log_t + math.log(beta), log_s + math.log1p(-beta))
    of_t, of_s = ((log.exp() * (log - log_m)).sum(-1) for log in (log_t, log_s))
    jsd = beta * of_t + (1 - beta) * of_s
    return jsd / (beta * (1 - beta)) if normalised else jsd


def gradients(value: Tensor, head: Head) -> list[Tensor]:
    return list(torch.autograd.grad(value, [head.hidden, head.weight, head.bias]))  # type: ignore[list-item]


def close(a: Any, b: Any, tolerance: float = 1e-10) -> bool:
    return all((x - y).abs().max() < tolerance for x, y in zip(a, b, strict=True))


# -- closed forms -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.0, 1e-6, 0.3, 1 - 1e-6, 1.0])
@pytest.mark.parametrize("beta", [0.0, 1e-3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_value_and_gradient_are_those_of_autograd(alpha: float, beta: float, temperature: float) -> None:
    """From head and from ready logits, in blocks of three tokens, some of which do not count."""
    head, teacher, y = problem()
    mixing = Mixing(alpha, Divergence(beta, temperature))
    wanted = y != -100
    z = head.logits()
    soft = reference(z / temperature, teacher / temperature, beta)[wanted].mean() * temperature**2
    hard = F.cross_entropy(z[wanted], y[wanted])
    right = (1 - alpha) * hard + alpha * soft
    truth = gradients(right, head)
    for student in (head, head.logits()):
        loss = distilled(student, Tokens(y), Dense(teacher), mixing, block=3 * V)
        assert loss.items == int(wanted.sum()) == 8
        assert abs(float(loss.value - right)) < 1e-10
        assert close(gradients(loss.value, head), truth)
    if alpha < 1:
        assert abs(float(loss.labels - hard)) < 1e-10
    if alpha > 0:
        assert abs(float(loss.teacher - soft)) < 1e-10


def test_a_teacher_by_head_is_one_by_logits() -> None:
    head, _, y = problem()
    teacher = Head(random(N, L, 5, seed=6), random(V, 5, seed=7))
    for beta in (0.0, 0.5):
        mixing = Mixing(0.7, Divergence(beta, 2.0))
        one = distilled(head, Tokens(y), teacher, mixing, block=30)
        two = distilled(head, Tokens(y), Dense(teacher.logits()), mixing)
        assert torch.equal(one.value, two.value) or abs(float(one.value - two.value)) < 1e-12
        assert close(gradients(one.value, head), gradients(two.value, head))


def test_gradients_of_the_paper_scale_are_those_of_differences() -> None:
    z, v = random(3, V, seed=1), random(3, V, seed=2)
    tokens, mixing = Tokens(torch.tensor([1, -100, 4])), Mixing(0.6, Divergence(0.3, 1.5, normalised=False))
    asked = z.clone().requires_grad_()
    (slope,) = torch.autograd.grad(distilled(asked, tokens, Dense(v), mixing).value, asked)
    for row, column in ((0, 0), (0, 1), (1, 3), (2, 4), (2, 10)):
        step = torch.zeros_like(z)
        step[row, column] = 1e-6
        up, down = (distilled(z + sign * step, tokens, Dense(v), mixing).value for sign in (1, -1))
        assert float(slope[row, column]) == pytest.approx(float(up - down) / 2e-6, abs=1e-8)


def test_forward_kl_is_the_one_of_classifiers() -> None:
    """The same constants: sum over tokens, mean over items, T^2."""
    z, v = random(6, V, seed=1), random(6, V, seed=2)
    loss = distilled(z, Tokens(torch.zeros(6, dtype=torch.int64)), Dense(v), Mixing(1.0, Divergence(0, 3.0)))
    assert abs(float(loss.value - forward_kl(z, v, 3.0))) < 1e-12


def test_a_teacher_equal_to_the_student_costs_nothing() -> None:
    z = random(4, V).float()
    for beta in (0.0, 1e-6, 0.5, 1 - 1e-6, 1.0):
        value, slope = Divergence(beta)(z, z + 3.0)
        assert value.abs().max() < 1e-6 and slope.abs().max() < 1e-6


def test_a_vocabulary_ten_times_as_large_is_not_weighted_less() -> None:
    """Sums over tokens, not means: a tenth of the mass moved costs the same among 10 tokens and among 1,000."""
    costs = []
    for width in (10, 1000):
        teacher = torch.full((1, width), -1e4, dtype=torch.float64)
        teacher[0, :2] = torch.tensor([0.9, 0.1]).log().double()
        student = teacher.clone()
        student[0, :2] = torch.tensor([0.8, 0.2]).log().double()
        costs.append(float(Divergence(0.0)(student, teacher)[0]))
    assert costs[0] == pytest.approx(costs[1], abs=1e-12)
    assert costs[0] == pytest.approx(0.9 * math.log(0.9 / 0.8) + 0.1 * math.log(0.1 / 0.2), abs=1e-7)


# -- limits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("end", "beside"), [(0.0, 1e-9), (1.0, 1 - 1e-9)])
def test_nothing_jumps_at_the_ends_of_beta(end: float, beside: float) -> None:
    z, v = random(5, V, seed=1), random(5, V, seed=2)
    there, here = Divergence(end)(z, v), Divergence(beside)(z, v)
    assert close(there, here, 1e-6)
    assert close(there, (reference(z, v, end), there[1]), 1e-12)


@pytest.mark.parametrize("beta", [1e-6, 1e-4, 0.5, 1 - 1e-4, 1 - 1e-6])
def test_single_precision_is_enough_beside_the_ends(beta: float) -> None:
    """No logarithm of a ratio near 1 is taken: relative errors stay where those of a KL divergence are."""
    z, v = random(5, 400, seed=1), random(5, 400, seed=2)
    value, slope = Divergence(beta)(z.float(), v.float())
    exact_value, exact_slope = Divergence(beta)(z, v)
    assert ((value - exact_value) / exact_value).abs().max() < 1e-4
    assert (slope - exact_slope).abs().max() < 1e-5


def test_the_paper_scale_vanishes_towards_both_ends_like_beta_times_a_kl() -> None:
    z, v = random(5, V, seed=1), random(5, V, seed=2)
    small = 1e-8
    low = Divergence(small, normalised=False)(z, v)[0] / small
    high = Divergence(1 - small, normalised=False)(z, v)[0] / small
    assert close([low, high], [reference(z, v, 0), reference(z, v, 1)], 1e-5)


def test_half_way_it_is_four_times_jensen_shannon_and_symmetric() -> None:
    z, v = random(5, V, seed=1), random(5, V, seed=2)
    mean = ((z.softmax(-1) + v.softmax(-1)) / 2).log()
    shannon = sum((log.exp() * (log - mean)).sum(-1) for log in (z.log_softmax(-1), v.log_softmax(-1))) / 2
    assert close([Divergence(0.5)(z, v)[0], Divergence(0.5)(v, z)[0]], [4 * shannon, 4 * shannon], 1e-12)
    assert bool((Divergence(0.5, normalised=False)(z, v)[0] <= math.log(2)).all())


def test_far_apart_and_impossible_tokens_stay_finite() -> None:
    """Probabilities that are 0 in single precision, and a teacher that rules tokens out."""
    z = torch.tensor([[0.0, 300.0, -300.0, 5.0]])
    v = torch.tensor([[300.0, -math.inf, 0.0, -math.inf]])
    y = torch.zeros(1, dtype=torch.int64)
    for beta in (0.0, 1e-6, 0.5, 1 - 1e-6, 1.0):
        student = z.clone().requires_grad_()
        loss = distilled(student, Tokens(y), Dense(v), Mixing(1.0, Divergence(beta)))
        (slope,) = torch.autograd.grad(loss.value, student)
        assert torch.isfinite(loss.value) and torch.isfinite(slope).all()
        if 0 < beta < 1:  # the largest value that a Jensen-Shannon divergence can take
            most = -(beta * math.log(beta) + (1 - beta) * math.log1p(-beta)) / (beta * (1 - beta))
            assert float(loss.value) == pytest.approx(most, rel=1e-3)


@pytest.mark.parametrize(("weight", "term"), [(0.0, "labels"), (1.0, "teacher")])
def test_at_the_ends_of_alpha_one_term_is_all(weight: float, term: str) -> None:
    head, teacher, y = problem()
    loss = distilled(head, Tokens(y), Dense(teacher), Mixing(weight))
    assert torch.equal(loss.value, getattr(loss, term))
    other = distilled(head, Tokens(y), Dense(-teacher), Mixing(weight))
    assert torch.equal(loss.value, other.value) == (weight == 0)


# -- what counts ------------------------------------------------------------------------------------------------------


def test_blocks_cut_anywhere_give_one_loss() -> None:
    head, teacher, y = problem()
    made = [
        distilled(head, Tokens(y), Dense(teacher), Mixing(0.5, Divergence(0.3)), block=size)
        for size in (1, 4 * V, 10**6)
    ]
    slopes = [gradients(loss.value, head) for loss in made]
    assert close(slopes[0], slopes[1], 1e-12) and close(slopes[0], slopes[2], 1e-12)


def test_items_weight_the_parts_of_a_batch_as_the_whole() -> None:
    """A row with three tokens and one with five: means, weighted by items, are the mean over all eight."""
    head, teacher, y = problem()
    whole = distilled(head, Tokens(y), Dense(teacher), Mixing(0.5))
    parts = [
        distilled(
            Head(head.hidden[[i]], head.weight, head.bias), Tokens(y[[i]]), Dense(teacher[[i]]), Mixing(0.5)
        )
        for i in range(N)
    ]
    assert [p.items for p in parts] == [3, 5]
    mean = sum(p.items * p.value for p in parts) / 8
    assert close([mean], [whole.value], 1e-12)
    assert close(gradients(mean, head), gradients(whole.value, head), 1e-12)


def test_a_batch_in_which_nothing_counts_is_0_with_a_gradient() -> None:
    head, teacher, y = problem()
    loss = distilled(head, Tokens(torch.full_like(y, -100)), Dense(teacher), Mixing(0.5))
    assert (loss.items, float(loss.value)) == (0, 0.0)
    assert all(float(g.abs().max()) == 0 for g in gradients(loss.value, head))


def test_rows_without_labels_are_judged_by_the_teacher_alone() -> None:
    head, teacher, y = problem()
    labelled = torch.tensor([True, False])
    loss = distilled(head, Tokens(y, labelled), Dense(teacher), Mixing(0.4))
    wanted = y != -100
    z = head.logits()
    hard = F.cross_entropy(z[0][wanted[0]], y[0][wanted[0]], reduction="sum")
    soft = reference(z, teacher, 0.0)[wanted].sum()
    right = (0.6 * hard + 0.4 * soft) / 8
    assert close([loss.value], [right])
    assert close(gradients(loss.value, head), gradients(right, head))


def test_a_gradient_can_be_asked_for_once() -> None:
    head, teacher, y = problem()
    value = distilled(head, Tokens(y), Dense(teacher), Mixing(0.5)).value
    value.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        value.backward()


# -- kept answers and buckets -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_largest_and_the_rest_are_a_distribution_of_their_own(beta: float, temperature: float) -> None:
    """KL over k tokens and one bucket, against autograd through the buckets written out."""
    head, teacher, y = problem()
    kept = TopK(teacher, 3)
    mixing = Mixing(0.8, Divergence(beta, temperature))
    loss = distilled(head, Tokens(y), kept, mixing, block=4 * V)
    p = head.logits().softmax(-1)
    top = p.gather(-1, kept.indices)
    small = torch.cat([top, 1 - top.sum(-1, keepdim=True)], -1).log() / temperature
    said = torch.cat([kept.values, kept.rest.unsqueeze(-1)], -1) / temperature
    wanted = y != -100
    soft = reference(small, said, beta)[wanted].mean() * temperature**2
    right = 0.2 * F.cross_entropy(head.logits()[wanted], y[wanted]) + 0.8 * soft
    assert close([loss.value], [right], 1e-9)
    assert close(gradients(loss.value, head), gradients(right, head), 1e-8)


@pytest.mark.parametrize("beta", [0.0, 0.4])
def test_all_tokens_kept_are_the_dense_answer(beta: float) -> None:
    head, teacher, y = problem()
    mixing = Mixing(1.0, Divergence(beta))
    kept, dense = (distilled(head, Tokens(y), a, mixing) for a in (TopK(teacher, V), Dense(teacher)))
    assert close([kept.value], [dense.value], 1e-9)
    assert close(gradients(kept.value, head), gradients(dense.value, head), 1e-9)


def test_fewer_kept_tokens_never_cost_more() -> None:
    """Putting tokens together can only lose what tells the two apart."""
    head, teacher, y = problem()
    costs = [float(distilled(head, Tokens(y), TopK(teacher, k), Mixing(1.0)).value) for k in range(1, V + 1)]
    assert all(a <= b + 1e-12 for a, b in pairwise(costs))
    assert costs[0] < costs[-1]


# -- sorted probabilities ---------------------------------------------------------------------------------------------


def test_sorted_probabilities_do_not_care_which_token_is_which() -> None:
    z, v = random(3, V, seed=1).requires_grad_(), random(3, V, seed=2)
    shuffled = v[:, torch.randperm(V, generator=torch.Generator().manual_seed(0))]
    value, slope = Sorted()(z.detach(), v)
    assert close(Sorted()(z.detach(), shuffled), (value, slope), 1e-15)
    right = (
        (z.softmax(-1).sort(descending=True).values - v.softmax(-1).sort(descending=True).values)
        .abs()
        .sum(-1)
    )
    (truth,) = torch.autograd.grad(right.sum(), z)
    assert close([value, slope], [right, truth], 1e-12)
    assert float(Sorted()(v, shuffled)[0].abs().max()) < 1e-12


@pytest.mark.parametrize("other", [4, 30])
def test_sorted_probabilities_of_two_sizes_are_filled_with_zeros(other: int) -> None:
    z, v = random(3, V, seed=1).requires_grad_(), random(3, other, seed=2)
    value, slope = Sorted(2.0)(z.detach(), v)
    wide = max(V, other)
    s, t = (F.pad((x / 2).softmax(-1), (0, wide - x.shape[-1])) for x in (z, v))
    right = (s.sort(descending=True).values - t.sort(descending=True).values).abs().sum(-1)
    (truth,) = torch.autograd.grad(right.sum(), z)
    assert close([value, slope], [right, truth], 1e-12)


def test_a_token_without_a_partner_is_not_compared_but_counts() -> None:
    head, _, y = problem()
    teacher = random(4, 6, seed=9)  # four answers of a teacher with six tokens
    partner = torch.full((N, L), -1)
    partner[0, 3], partner[1, 0] = 2, 1
    loss = distilled(head, Tokens(y, partner=partner), Dense(teacher), Mixing(0.5, Sorted()), block=2 * V)
    z = head.logits()
    pairs = [(z[0, 3], teacher[2]), (z[1, 0], teacher[1])]
    soft = sum(
        (
            a.softmax(-1).sort(descending=True).values
            - F.pad(b.softmax(-1), (0, V - 6)).sort(descending=True).values
        )
        .abs()
        .sum()
        for a, b in pairs
    )
    wanted = y != -100
    right = 0.5 * F.cross_entropy(z[wanted], y[wanted]) + 0.5 * soft / 8
    assert close([loss.value], [right])
    assert close(gradients(loss.value, head), gradients(right, head))


# -- precision and memory ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_bfloat16_is_near_and_leaves_gradients_in_single_precision(beta: float) -> None:
    hidden, weight = (
        random(*s, seed=i).float().requires_grad_() for i, s in enumerate([(1, 40, 16), (50, 16)])
    )
    teacher = Dense(random(1, 40, 50, seed=5).float())
    y = torch.randint(50, (1, 40), generator=torch.Generator().manual_seed(0))
    mixing = Mixing(0.5, Divergence(beta))
    full = distilled(Head(hidden, weight), Tokens(y), teacher, mixing)
    exact = torch.autograd.grad(full.value, [hidden, weight])
    with torch.autocast("cpu", torch.bfloat16):
        half = distilled(Head(hidden, weight), Tokens(y), teacher, mixing)
        ready = distilled(F.linear(hidden, weight), Tokens(y), teacher, mixing)
    rough = torch.autograd.grad(half.value, [hidden, weight])
    assert half.value.dtype == torch.float32 and all(g.dtype == torch.float32 for g in rough)
    assert float(half.value) == pytest.approx(float(full.value), rel=0.02)
    assert float(ready.value) == pytest.approx(float(half.value), rel=1e-3)
    for a, b in zip(rough, exact, strict=True):
        assert F.cosine_similarity(a.flatten(), b.flatten(), 0) > 0.999


def test_logits_are_made_a_block_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """No call of the head, the student's or the teacher's, sees more than a block of tokens."""
    seen = []
    whole = F.linear

    def watched(x: Tensor, *more: Any) -> Tensor:
        seen.append(len(x))
        return whole(x, *more)

    head, _, y = problem()
    teacher = Head(random(N, L, 5, seed=6), random(V, 5, seed=7))
    monkeypatch.setattr(F, "linear", watched)
    distilled(head, Tokens(y), teacher, Mixing(0.5), block=3 * V).value.backward()
    assert sorted(seen) == [2, 2, 3, 3, 3, 3]  # 8 tokens in blocks of 3, both heads


def test_blocks_of_logits_for_scoring_are_all_of_them() -> None:
    head, _, _ = problem()
    made = torch.empty(N * L, V, dtype=torch.float64)
    for part, logits in blocks(head, size=3 * V):
        assert len(logits) <= 3
        made[part] = logits
    assert torch.equal(made.view(N, L, V), head.logits()) or close(
        [made.view(N, L, V)], [head.logits()], 1e-14
    )


# -- against another library ------------------------------------------------------------------------------------------


def test_values_are_those_of_trl() -> None:
    """`GKDTrainer.generalized_jsd_loss` of TRL 1.16.0 (torch 2.14) on these tensors, float32: equal to 2e-7.

    TRL has neither T^2 nor the division by beta (1 - beta), and takes the two KL divergences at beta 0 and 1.
    """
    grid = torch.arange(24, dtype=torch.float32).view(2, 3, 4)
    student, teacher = (grid * 1.7).sin() * 2, (grid * 0.9).cos() * 3
    y = torch.tensor([[-100, 1, 2], [3, -100, 0]])
    for (beta, temperature), value in TRL.items():
        between = 0 < beta < 1
        divergence = Divergence(beta, temperature, normalised=not between)
        loss = distilled(student, Tokens(y), Dense(teacher), Mixing(1.0, divergence))
        assert float(loss.value) / temperature**2 == pytest.approx(value, abs=2e-7 * max(1.0, value))


TRL = {
    (0.0, 1.0): 1.885499358177185, (0.0, 2.0): 0.658270001411438,
    (0.001, 1.0): 0.001877396833151579, (0.001, 2.0): 0.0006573029095306993,
    (0.1, 1.0): 0.14221268892288208, (0.1, 2.0): 0.057175103574991226,
    (0.5, 1.0): 0.3464454412460327, (0.5, 2.0): 0.15390460193157196,
    (0.9, 1.0): 0.15497241914272308, (0.9, 2.0): 0.0618659146130085,
    (0.999, 1.0): 0.0022185426205396652, (0.999, 2.0): 0.0007350390078499913,
    (1.0, 1.0): 2.233950614929199, (1.0, 2.0): 0.7364456653594971,
}  # fmt: skip
"""Its values by (beta, temperature)."""

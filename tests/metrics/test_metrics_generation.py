"""Metrics of generators against closed forms, POT, scipy, brute force, and by hand."""

from __future__ import annotations

import math
import sys

import numpy as np
import ot
import pytest
import scipy.linalg
import scipy.optimize
import torch
from torch import Tensor

from stillroom.errors import UserError
from stillroom.metrics import generation
from stillroom.metrics.generation import (
    frechet,
    mmd,
    mode_counts,
    mode_distance,
    modes_covered,
    precision_recall,
    sliced_wasserstein,
    unit_directions,
    wasserstein,
)

METRICS = [sliced_wasserstein, wasserstein, mmd, frechet, precision_recall]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def close(value: float, tolerance: float = 1e-10) -> object:
    return pytest.approx(value, rel=tolerance, abs=tolerance)


# What all have in common.


@pytest.mark.parametrize("metric", METRICS)
def test_order_of_samples_shape_and_precision_do_not_matter(metric) -> None:
    real, fake = normal(40, 6).float(), 1.3 * normal(50, 6, seed=1).float()
    score = metric(real, fake)
    assert metric(real, fake) == score
    assert metric(real.reshape(40, 2, 3), fake.reshape(50, 1, 6).double()) == score
    backwards = metric(real.flip(0), fake.flip(0))
    assert backwards == pytest.approx(score, rel=1e-9)
    values = score.values() if isinstance(score, dict) else [score]
    assert all(type(value) is float for value in values)


@pytest.mark.parametrize("metric", METRICS)
def test_a_far_away_set_scores_worse_than_held_out_real_samples(metric) -> None:
    real, held_out, far = normal(60, 3), normal(60, 3, seed=1), normal(60, 3, seed=2) + 3
    floor, score = metric(real, held_out), metric(real, far)
    if isinstance(floor, dict):
        assert all(score[name] < floor[name] for name in floor)
    else:
        assert score > floor


@pytest.mark.parametrize("metric", METRICS)
def test_samples_that_cannot_be_compared_are_refused(metric) -> None:
    real = normal(10, 3)
    with pytest.raises(UserError, match="samples of 3 and 4 numbers each cannot be compared"):
        metric(real, normal(10, 4))
    with pytest.raises(UserError, match=r"generated samples have shape \(1, 3\): pass 2 or more"):
        metric(real, real[:1])
    with pytest.raises(UserError, match=r"real samples have shape \(10, 0\)"):
        metric(real[:, :0], real)
    broken = real.clone()
    broken[2:4, 1] = torch.tensor([math.nan, math.inf])
    with pytest.raises(UserError, match="2 of 10 generated samples are not finite"):
        metric(real, broken)


def test_gradients_and_the_global_generator_are_left_alone() -> None:
    state = torch.get_rng_state()
    real = normal(20, 3).requires_grad_()
    for metric in METRICS:
        metric(real, real)
    assert torch.equal(torch.get_rng_state(), state)


def test_scores_do_not_depend_on_the_size_of_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    real, fake = normal(30, 3), normal(23, 3, seed=1) + 0.5
    whole = mmd(real, fake), precision_recall(real, fake), mode_counts(real, fake).tolist()
    for chunk in (1, 70):
        monkeypatch.setattr(generation, "CHUNK", chunk)
        assert mmd(real, fake) == close(whole[0])
        assert (precision_recall(real, fake), mode_counts(real, fake).tolist()) == whole[1:]


# Sliced Wasserstein.


def test_directions_are_unit_fixed_and_uniform() -> None:
    unit = unit_directions(3, 20000)
    assert unit.shape == (3, 20000) and unit.dtype == torch.float64
    assert torch.allclose(unit.norm(dim=0), torch.ones(20000, dtype=torch.float64))
    assert torch.equal(unit, unit_directions(3, 20000)) and not torch.equal(
        unit, unit_directions(3, 20000, 1)
    )
    assert torch.allclose(unit @ unit.T / 20000, torch.eye(3, dtype=torch.float64) / 3, atol=0.01)
    assert unit.mean(1).abs().max() < 0.02


@pytest.mark.parametrize(("n", "m"), [(50, 50), (50, 75), (31, 64), (2, 7)])
def test_sliced_wasserstein_agrees_with_pot(n: int, m: int) -> None:
    real, fake = normal(n, 5), 1.5 * normal(m, 5, seed=1) + 0.3
    unit = unit_directions(5, 40, seed=3)
    wanted = ot.sliced_wasserstein_distance(real, fake, projections=unit, p=2)
    assert sliced_wasserstein(real, fake, 40, seed=3) == close(float(wanted))
    assert sliced_wasserstein(fake, real, 40, seed=3) == close(float(wanted))


def test_sliced_wasserstein_of_a_shift() -> None:
    real, shift = normal(30, 4), torch.tensor([1.0, -2.0, 0.0, 0.5], dtype=torch.float64)
    wanted = (shift @ unit_directions(4, 256)).square().mean().sqrt().item()
    assert sliced_wasserstein(real, real.flip(0) + shift) == close(wanted)
    assert wanted == pytest.approx(shift.norm().item() / 2, rel=0.1)  # mean cos^2 = 1 / width


def test_sliced_wasserstein_in_one_dimension_by_hand() -> None:
    assert sliced_wasserstein(column(0, 1), column(3, 5)) == close(math.sqrt((9 + 16) / 2))
    # Levels 1/3, 1/2 and 2/3 split the unit interval: 0 to 0, 0 to 3, 1 to 3, 1 to 6.
    wanted = 0 / 3 + 9 / 6 + 4 / 6 + 25 / 3
    assert sliced_wasserstein(column(1, 0), column(6, 0, 3)) == close(math.sqrt(wanted))
    assert sliced_wasserstein(column(0, 1), column(0, 1, 1, 0)) == 0
    with pytest.raises(UserError, match="directions is 0: pass 1 or more"):
        sliced_wasserstein(normal(4, 2), normal(4, 2), directions=0)


# Wasserstein.


def test_wasserstein_of_a_shift_is_its_length() -> None:
    real = normal(60, 2)
    moved = (real + torch.tensor([3.0, 4.0]))[torch.randperm(60, generator=torch.Generator().manual_seed(0))]
    assert wasserstein(real, moved) == close(5)
    assert wasserstein(real, moved, order=1) == close(5)
    assert wasserstein(real, real.flip(0)) == 0


def test_wasserstein_by_hand_and_by_order() -> None:
    real, fake = column(0, 1), column(6, 0, 3)
    assert wasserstein(real, fake) == close(math.sqrt(9 / 6 + 4 / 6 + 25 / 3))
    assert wasserstein(real, fake, order=1) == close(3 / 6 + 2 / 6 + 5 / 3)
    assert wasserstein(column(0, 1), column(2, 5), order=3) == close(((8 + 64) / 2) ** (1 / 3))


def test_wasserstein_is_the_best_assignment_and_above_the_sliced_one() -> None:
    real, fake = normal(40, 3), normal(40, 3, seed=1) + 0.2
    cost = torch.cdist(real, fake).square().numpy()
    wanted = math.sqrt(cost[scipy.optimize.linear_sum_assignment(cost)].mean())
    assert wasserstein(real, fake) == close(wanted)
    assert sliced_wasserstein(real, fake) < wanted


def test_wasserstein_compares_the_first_samples_up_to_the_limit() -> None:
    real, fake = normal(30, 2), normal(20, 2, seed=1)
    assert wasserstein(real, fake, limit=25) == wasserstein(real[:25], fake)
    assert wasserstein(real, fake, limit=5) == wasserstein(real[:5], fake[:5]) != wasserstein(real, fake)


def test_wasserstein_refuses_what_it_cannot_do(monkeypatch: pytest.MonkeyPatch) -> None:
    real = normal(5, 2)
    with pytest.raises(UserError, match="order is 0.5"):
        wasserstein(real, real, order=0.5)
    with pytest.raises(UserError, match="limit is 1"):
        wasserstein(real, real, limit=1)
    monkeypatch.setitem(sys.modules, "ot", None)
    with pytest.raises(UserError, match=r'POT: pip install "stillroom\[diffusion\]"'):
        wasserstein(real, real)


# Maximum mean discrepancy.


def test_mmd_by_hand() -> None:
    real, fake = column(0, 2), column(1, 1, 1)
    one, four = math.exp(-1 / 8), math.exp(-4 / 8)
    assert mmd(real, fake, [2]) == close(four + 1 - 2 * one)
    mixed = (mmd(real, fake, [0.5]) + mmd(real, fake, [1]) + mmd(real, fake, [2])) / 3
    assert mmd(real, fake, [0.5, 1, 2]) == close(mixed)


def test_mmd_bandwidths_come_from_the_first_real_samples_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    real, fake = 7 * normal(31, 3), normal(25, 3, seed=1)
    median = torch.pdist(real).median().item()
    assert mmd(real, fake) == close(mmd(real, fake, [median / 2, median, 2 * median]))
    assert mmd(real, 100 * fake) == close(mmd(real, 100 * fake, [median / 2, median, 2 * median]))
    assert mmd(real / 7, fake / 7) == close(mmd(real, fake))
    monkeypatch.setattr(generation, "MEDIAN_OF", 3)
    real, fake = column(0, 1, 5, 900, -900), column(3, 4)
    assert mmd(real, fake) == close(mmd(real, fake, [2, 4, 8]))


def test_mmd_is_unbiased() -> None:
    scores = [mmd(normal(8, 2, seed=2 * k), normal(12, 2, seed=2 * k + 1), [1]) for k in range(400)]
    error = np.std(scores) / math.sqrt(len(scores))
    assert abs(np.mean(scores)) < 3 * error < 0.02
    assert min(scores) < 0 < max(scores)
    # Two normal distributions a shift apart have a closed form: k integrates to (1 + 2)^-1 at 0 in the plane.
    scores = [mmd(normal(8, 2, seed=2 * k), normal(12, 2, seed=2 * k + 1) + 1, [1]) for k in range(400)]
    wanted = 2 / 3 * (1 - math.exp(-2 / 6))
    assert np.mean(scores) == pytest.approx(wanted, abs=4 * np.std(scores) / 20)


def test_mmd_of_far_sets_and_of_a_set_with_itself() -> None:
    real = normal(20, 2)
    within = torch.exp(-torch.pdist(real).square() / 2).mean().item()
    assert mmd(real, real + 1e6, [1]) == close(2 * within)
    assert mmd(real, real, [1]) == close(2 * within - 2 * (20 * 19 * within + 20) / 400)


def test_mmd_refuses_bandwidths_that_make_no_kernel() -> None:
    real = normal(10, 2)
    with pytest.raises(UserError, match="a bandwidth is 0: pass a number above 0"):
        mmd(real, real, [1, 0])
    with pytest.raises(UserError, match="bandwidths is empty"):
        mmd(real, real, [])
    with pytest.raises(UserError, match="median distance between real samples is 0.*pass bandwidths"):
        mmd(torch.ones(10, 2), real)
    assert mmd(torch.ones(10, 2), torch.ones(5, 2), [1]) == close(0)


# Fréchet distance.


def with_moments(rows: Tensor, mean: Tensor, root: Tensor) -> Tensor:
    """Rows moved so that their mean is `mean` and their covariance exactly `root` @ `root`.T."""
    centred = rows - rows.mean(0)
    own = torch.linalg.cholesky(centred.T @ centred / (len(rows) - 1))
    return torch.linalg.solve_triangular(own, centred.T, upper=False).T @ root.T + mean


def test_frechet_of_gaussians_with_diagonal_covariance() -> None:
    mean = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    deviations = torch.tensor([[1.0, 2.0, 3.0], [0.5, 2.0, 1e-4]], dtype=torch.float64)
    real = with_moments(normal(30, 3), torch.zeros(3), deviations[0].diag())
    fake = with_moments(normal(50, 3, seed=1), mean, deviations[1].diag())
    wanted = mean.square().sum() + (deviations[0] - deviations[1]).square().sum()
    assert frechet(real, fake) == close(wanted.item())


def test_frechet_agrees_with_a_matrix_square_root() -> None:
    real, fake = normal(80, 6) @ normal(6, 6, seed=2), normal(60, 6, seed=1) @ normal(6, 6, seed=3) + 0.4
    first, second = np.cov(real.T), np.cov(fake.T)
    root = scipy.linalg.sqrtm(first @ second).real
    shift = (real.mean(0) - fake.mean(0)).square().sum().item()
    wanted = shift + np.trace(first) + np.trace(second) - 2 * np.trace(root)
    assert frechet(real, fake) == close(wanted, 1e-8)
    assert frechet(fake, real) == close(wanted, 1e-8)


def test_frechet_with_fewer_rows_than_features() -> None:
    real, fake = normal(5, 40), normal(7, 40, seed=1)
    score = frechet(real, fake)
    roots = [scipy.linalg.sqrtm(np.cov(rows.T) + 1e-14 * np.eye(40)).real for rows in (real, fake)]
    shift = (real.mean(0) - fake.mean(0)).square().sum().item()
    overlap = np.linalg.svd(roots[0] @ roots[1], compute_uv=False).sum()
    wanted = shift + np.trace(np.cov(real.T)) + np.trace(np.cov(fake.T)) - 2 * overlap
    assert math.isfinite(score) and score == pytest.approx(wanted, rel=1e-4)
    # Spreads along different axes do not overlap at all.
    assert frechet(torch.tensor([[1.0, 0], [-1, 0]]), torch.tensor([[0, 2.0], [0, -2]])) == close(2 + 8)


@pytest.mark.parametrize(("n", "width"), [(50, 4), (5, 40)])
def test_frechet_of_equal_sets_and_of_shifts(n: int, width: int) -> None:
    real = normal(n, width)
    assert 0 <= frechet(real, real.flip(0)) < 1e-10
    assert frechet(real, real + 2) == close(4 * width)
    assert frechet(real + 1e4, real + 1e4 + 2) == close(4 * width, 1e-7)


# Precision, recall, density, coverage.


def brute_force(real: Tensor, fake: Tensor, k: int) -> dict[str, float]:
    def radii(rows: list) -> list[float]:
        own = range(len(rows))
        return [sorted(math.dist(rows[i], rows[j]) for j in own if j != i)[k - 1] for i in own]

    table = [[math.dist(x, y) for y in fake.tolist()] for x in real.tolist()]
    real_radii, fake_radii = radii(real.tolist()), radii(fake.tolist())
    n, m = range(len(real)), range(len(fake))
    return {
        "precision": sum(any(table[i][j] <= real_radii[i] for i in n) for j in m) / len(m),
        "recall": sum(any(table[i][j] <= fake_radii[j] for j in m) for i in n) / len(n),
        "density": sum(table[i][j] <= real_radii[i] for i in n for j in m) / (k * len(m)),
        "coverage": sum(min(table[i]) <= real_radii[i] for i in n) / len(n),
    }


@pytest.mark.parametrize("neighbours", [1, 3, 5])
def test_precision_and_recall_agree_with_brute_force(neighbours: int) -> None:
    real, fake = normal(30, 2), 0.6 * normal(22, 2, seed=1) + 1
    scores = precision_recall(real, fake, neighbours)
    assert scores == brute_force(real, fake, neighbours)
    assert len(set(scores.values())) == 4 and 0 < scores["recall"] < 1
    if neighbours == 3:
        assert precision_recall(real, fake) == scores


def test_precision_and_recall_by_hand() -> None:
    # Balls to the nearest neighbour: 0 [-1, 1], 1 [0, 2], 3 [1, 5], 10 [3, 17];
    # 2 [1, 3], 3 [2, 4], 20 [19, 21], 21 [20, 22], 22 [21, 23].
    assert precision_recall(column(0, 1, 3, 10), column(2, 3, 20, 21, 22), 1) == {
        "precision": 2 / 5,  # 2 and 3
        "recall": 2 / 4,  # 1 and 3
        "density": 4 / 5,  # 2 in the balls of 1 and 3, 3 in those of 3 and 10
        "coverage": 3 / 4,  # all but the ball of 0
    }


def test_what_collapses_is_precise_and_what_scatters_recalls() -> None:
    real = normal(100, 2)
    collapsed = precision_recall(real, 1e-3 * normal(100, 2, seed=1))
    assert collapsed["precision"] == 1 and collapsed["recall"] < 0.05 and collapsed["coverage"] < 0.2
    assert collapsed["density"] > 1
    scattered = precision_recall(real, 6 * normal(100, 2, seed=1))
    assert scattered["precision"] < 0.4 and scattered["recall"] > 0.9 and scattered["density"] < 0.4


def test_the_real_set_itself_is_perfect_even_with_repeats() -> None:
    real = normal(20, 3).repeat(3, 1)
    scores = precision_recall(real, real, 2)
    assert scores["precision"] == scores["recall"] == scores["coverage"] == 1
    real = normal(20, 3) + 1e5  # a difference of squares would miss what is exactly on the spot
    scores = precision_recall(real, real)
    assert scores == {"precision": 1, "recall": 1, "density": pytest.approx(4 / 3), "coverage": 1}


def test_neighbours_must_exist() -> None:
    for neighbours in (0, 4):
        with pytest.raises(UserError, match=f"neighbours is {neighbours}: pass a number from 1 to 3"):
            precision_recall(normal(9, 2), normal(4, 2), neighbours)


# Modes.


def test_mode_counts_by_hand() -> None:
    centres = torch.tensor([[0.0, 0], [4, 0], [0, 40]])
    samples = torch.tensor([[0.1, 0], [1.9, 0], [2, 0], [2.1, 0], [4, 1], [7, 0]])
    counts = mode_counts(samples, centres)
    assert counts.dtype == torch.int64 and counts.tolist() == [3, 3, 0]
    assert mode_counts(samples, centres, radius=1).tolist() == [1, 1, 0]
    assert mode_counts(samples, centres, radius=2).tolist() == [3, 2, 0]
    assert mode_counts(samples, centres, radius=0).tolist() == [0, 0, 0]


def test_mode_counts_flatten_and_take_single_rows() -> None:
    assert mode_counts(torch.ones(1, 2, 2), torch.zeros(1, 4)).tolist() == [1]
    with pytest.raises(UserError, match=r"centres have shape \(0, 2\): pass 1 or more"):
        mode_counts(normal(3, 2), torch.zeros(0, 2))
    with pytest.raises(UserError, match="samples of 3 and 2 numbers"):
        mode_counts(normal(3, 3), torch.zeros(4, 2))
    with pytest.raises(UserError, match="radius is -1"):
        mode_counts(normal(3, 2), torch.zeros(4, 2), radius=-1)


def test_modes_covered_from_a_fifth_of_their_due_share() -> None:
    counts = torch.tensor([70, 20, 5, 4, 1])  # each is due 20 of 100, a fifth of which is 4
    assert modes_covered(counts) == 4 / 5
    assert modes_covered(counts, share=0.25) == 3 / 5
    assert modes_covered(counts, share=1) == 2 / 5
    assert modes_covered(counts, total=120) == 3 / 5
    assert modes_covered(torch.full((3,), 7), share=1) == 1


def test_modes_covered_with_weights() -> None:
    counts = torch.tensor([90, 5, 5])
    weights = torch.tensor([1.0, 3, 6])  # due 10, 30, 60; a fifth of it 2, 6, 12
    assert modes_covered(counts, weights=weights) == 1 / 3
    assert modes_covered(counts, weights=torch.tensor([90, 5, 5]), share=1) == 1
    assert modes_covered(counts, weights=torch.tensor([1.0, 0, 1])) == 1 / 2  # due 50, nothing, 50
    assert modes_covered(torch.zeros(3, dtype=torch.int64)) == 0


def test_modes_covered_refuses_what_makes_no_share() -> None:
    counts = torch.tensor([3, 1])
    for weights in ([1.0], [0.0, 0.0], [-1.0, 2.0], [math.nan, 1.0]):
        with pytest.raises(UserError, match=r"weights .* do not fit 2 modes"):
            modes_covered(counts, weights=torch.tensor(weights))
    for share in (0, 1.5):
        with pytest.raises(UserError, match=f"share is {share}"):
            modes_covered(counts, share=share)
    with pytest.raises(UserError, match="total is 3, the modes hold 4 samples"):
        modes_covered(counts, total=3)
    with pytest.raises(UserError, match=r"counts have shape \(0,\)"):
        modes_covered(counts[:0])


def test_mode_distance_is_the_mass_that_would_have_to_move() -> None:
    assert mode_distance(torch.tensor([5, 5])) == 0
    assert mode_distance(torch.tensor([9, 1])) == pytest.approx(0.4)
    assert mode_distance(torch.tensor([9, 1]), torch.tensor([90.0, 10])) == pytest.approx(0)
    assert mode_distance(torch.tensor([7, 0]), torch.tensor([0.0, 2])) == 1
    with pytest.raises(UserError, match="no samples were counted in any mode"):
        mode_distance(torch.tensor([0, 0]))

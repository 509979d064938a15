"""How far two sets of samples are apart, for generators: real and generated samples in, plain numbers out.

Every metric takes `real` `[n, ...]` and `fake` `[m, ...]`, flattens what follows the first dimension, computes
in float64 on the real samples' device and is deterministic. All raise UserError for fewer than two samples,
samples of different widths, and samples that are not finite, so that a diverged generator is never scored.

A number means little alone, because finite samples of equal distributions do not score perfectly. The floor
of every metric is the metric itself on real samples against other, held-out real samples, as many as there
are generated ones. Print it next to the score.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from stillroom.errors import UserError, require

MEDIAN_OF = 1000  # samples whose half a million pairs settle the median to well under a percent
CHUNK = 2**22  # distances held at a time: 32 MiB


def unit_directions(width: int, count: int, seed: int = 0) -> Tensor:
    """`count` directions uniform on the unit sphere, float64 `[width, count]`; the same for the same `seed`."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(width, count, generator=generator, dtype=torch.float64)
    return normal / normal.norm(dim=0)


def sliced_wasserstein(real: Tensor, fake: Tensor, directions: int = 256, seed: int = 0) -> float:
    """The sliced 2-Wasserstein distance, in the samples' unit (Bonneel et al., JMIV 51, 2015).

    The root of the mean, over `directions` fixed `unit_directions`, of the squared 2-Wasserstein distance of
    the projections. That is exact for empirical distributions, with equal or unequal numbers of samples.
    UserError unless `directions` is positive.
    """
    real, fake = _pair(real, fake)
    require("directions", directions, 1)
    unit = unit_directions(real.shape[1], directions, seed).to(real.device)
    real_sorted, fake_sorted = (rows.matmul(unit).T.sort(dim=1).values for rows in (real, fake))
    n, m = len(real), len(fake)
    # A quantile function is a step a sample: the k-th smallest (from 0) for levels in (k/n, (k+1)/n]. Between
    # two neighbouring jumps of either both are constant. Levels are whole numbers of 1/(nm) to stay exact.
    jumps = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]).unique().to(real.device)
    share = jumps.diff(prepend=jumps.new_zeros(1)).double() / (n * m)
    gap = real_sorted[:, (jumps - 1) // m] - fake_sorted[:, (jumps - 1) // n]
    return gap.square().matmul(share).mean().sqrt().item()


def wasserstein(real: Tensor, fake: Tensor, order: float = 2, limit: int = 2000) -> float:
    """The exact Wasserstein distance of `order` >= 1 with Euclidean cost, in the samples' unit.

    W_p = (min over couplings of the mean of |x - y|^p)^(1/p): Peyré and Cuturi (arXiv:1803.00567), chapter 2.
    Time grows faster than the square of the number of samples: of more than `limit` samples only the first
    `limit` of each set are compared, so shuffle sorted sets first. UserError for an `order` below 1, a
    `limit` below 2, and where POT is not installed.
    """
    real, fake = _pair(real, fake)
    require("order", order, 1)
    require("limit", limit, 2)
    ot = _optimal_transport()
    cost = _distances(real[:limit], fake[:limit]).pow(order)
    n, m = cost.shape
    least = ot.emd2(cost.new_full((n,), 1 / n), cost.new_full((m,), 1 / m), cost, numItermax=10_000_000)
    return max(float(least), 0.0) ** (1 / order)


def mmd(real: Tensor, fake: Tensor, bandwidths: Sequence[float] | None = None) -> float:
    """The unbiased squared maximum mean discrepancy, Lemma 6 of Gretton et al. (JMLR 13, 2012).

    The kernel is the mean over `bandwidths` b, in the samples' unit, of exp(-|x - y|^2 / (2 b^2)). Unless
    given they are 1/2, 1 and 2 times the median distance between real samples (the first 1000): they do not
    depend on `fake`, so that all generators of the same data share a kernel. At most 2, and 0 in expectation
    for equal distributions, so often a little below 0. UserError for bandwidths that are not positive, and
    for real samples so much alike that their median distance is 0.
    """
    real, fake = _pair(real, fake)
    widths = _median_widths(real) if bandwidths is None else bandwidths
    if not widths:
        raise UserError("bandwidths is empty: pass at least one positive number")
    for width in widths:
        require("a bandwidth", width, 0, ends="(]")
    n, m = len(real), len(fake)
    # A sample's kernel with itself is 1: it is taken out of the sums over pairs of one set.
    within_real = (_kernel_sum(real, real, widths) - n) / (n * (n - 1))
    within_fake = (_kernel_sum(fake, fake, widths) - m) / (m * (m - 1))
    return within_real + within_fake - 2 * _kernel_sum(real, fake, widths) / (n * m)


def frechet(real_features: Tensor, fake_features: Tensor) -> float:
    """The Fréchet distance of the Gaussians fitted to feature rows, eq. 6 of Heusel et al. (arXiv:1706.08500).

    |m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)), as published without a root: in the features' unit squared.
    Covariances have n - 1 in the denominator and may be singular (fewer rows than features). The floor of
    this metric depends strongly on the number of rows: compare scores of equal numbers only.
    """
    real, fake = _pair(real_features, fake_features)
    shift = (real.mean(0) - fake.mean(0)).square().sum()
    # With C = R'R and C' = S'S the trace of the root is the sum of the singular values of R S', whose squares
    # are the eigenvalues of the symmetric R C' R'. The covariances themselves, which would halve the number
    # of exact digits, are never formed.
    factors = [torch.linalg.qr(_centred(rows), mode="r").R for rows in (real, fake)]
    spread = sum(factor.square().sum() for factor in factors)
    overlap = torch.linalg.svdvals(factors[0] @ factors[1].T).sum()
    return max((shift + spread - 2 * overlap).item(), 0.0)


def precision_recall(real: Tensor, fake: Tensor, neighbours: int = 3) -> dict[str, float]:
    """Precision, recall, density and coverage by k nearest neighbours, k = `neighbours`.

    Each sample of `real` `[n, ...]` and `fake` `[m, ...]` carries a closed ball that reaches to its k-th
    nearest neighbour, itself not counted, in its own set.

    - `precision`: share of fakes, in [0, 1], inside any real sample's ball, and `recall`: share of real
      samples inside any fake's ball (eq. 1 and 2 of Kynkäänniemi et al., arXiv:1904.06991);
    - `density`: mean number of real balls around a fake over k, 0 or more and 1 in expectation for equal
      distributions (eq. 3 of Naeem et al., arXiv:2002.09797);
    - `coverage`: share of real balls, in [0, 1], that hold any fake (eq. 4 there).

    UserError unless `neighbours` is at least 1 and below both numbers of samples.
    """
    real, fake = _pair(real, fake)
    require("neighbours", neighbours, 1, min(len(real), len(fake)) - 1)
    real_radius, fake_radius = _radii(real, neighbours), _radii(fake, neighbours)
    inside_any = torch.zeros(len(fake), dtype=torch.bool, device=fake.device)
    recalled = covered = balls = 0
    for part, distances in _distance_chunks(real, fake):
        inside = distances <= real_radius[part, None]
        inside_any |= inside.any(0)
        balls += int(inside.sum())
        covered += int(inside.any(1).sum())
        recalled += int((distances <= fake_radius).any(1).sum())
    return {
        "precision": int(inside_any.sum()) / len(fake),
        "recall": recalled / len(real),
        "density": balls / (neighbours * len(fake)),
        "coverage": covered / len(real),
    }


def mode_counts(samples: Tensor, centres: Tensor, radius: float | None = None) -> Tensor:
    """How many of `samples` `[n, ...]` belong to each of `centres` `[modes, ...]`: int64 `[modes]`.

    Each sample belongs to its nearest centre, the first of equally near ones; with a `radius` (in the
    samples' unit) a sample further than that from its nearest centre belongs to none. UserError where widths
    differ, there are no samples or no centres, some are not finite, or `radius` is negative.
    """
    samples, centres = _rows("samples", samples, 1), _rows("centres", centres, 1).to(samples.device)
    _same_width(samples, centres)
    if radius is not None:
        require("radius", radius, 0)
    counts = torch.zeros(len(centres), dtype=torch.int64, device=centres.device)
    for _, distances in _distance_chunks(samples, centres):
        nearest, index = distances.min(1)
        if radius is not None:
            index = index[nearest <= radius]
        counts += index.bincount(minlength=len(centres))
    return counts


def modes_covered(
    counts: Tensor, share: float = 0.2, weights: Tensor | None = None, total: int | None = None
) -> float:
    """Share of modes, in [0, 1], whose `counts` `[modes]` reach `share`, in (0, 1], of what is due to them.

    A mode is due its part of `weights` `[modes]` (uniform unless given; need not sum to 1) of `total` samples.
    `total` is the sum of `counts` unless given: pass the number of samples drawn where `mode_counts` left
    some out. A mode of weight 0 is due nothing and is not counted. UserError for a `share` out of range,
    weights of another shape, negative, not finite or all 0, and a `total` below the sum of counts.
    """
    require("share", share, 0, 1, ends="(]")
    found = int(counts.sum())
    drawn = found if total is None else total
    if drawn < found:
        raise UserError(f"total is {drawn}, the modes hold {found} samples: pass the number of samples drawn")
    due = _due_shares(counts, weights)
    wanted = due > 0
    # An empty mode is never covered, not even where no sample was drawn and nothing is due.
    reached = (counts > 0) & (counts.double() >= share * due * drawn * (1 - 1e-12))
    return (reached & wanted).sum().item() / wanted.sum().item()


def mode_distance(counts: Tensor, weights: Tensor | None = None) -> float:
    """Total variation distance, in [0, 1], between the modes' `counts` `[modes]` and what is due to them.

    Modes are due their part of `weights` `[modes]` (uniform unless given). UserError where nothing was counted, and
    for weights that `modes_covered` does not take.
    """
    due = _due_shares(counts, weights)
    total = int(counts.sum())
    if not total:
        raise UserError("no samples were counted in any mode: pass 1 or more")
    return 0.5 * (counts.double() / total - due).abs().sum().item()


def _pair(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    """Both sets as float64 rows `[n, width]` and `[m, width]` on the real samples' device."""
    real, fake = _rows("real samples", real, 2), _rows("generated samples", fake, 2).to(real.device)
    _same_width(real, fake)
    return real, fake


def _rows(name: str, samples: Tensor, least: int) -> Tensor:
    if samples.ndim == 0 or len(samples) < least or samples.numel() == 0:
        raise UserError(
            f"{name} have shape {tuple(samples.shape)}: pass {least} or more, [n, ...], not empty"
        )
    rows = samples.detach().reshape(len(samples), -1).double()
    broken = int((~rows.isfinite()).any(1).sum())
    if broken:
        raise UserError(
            f"{broken} of {len(rows)} {name} are not finite: pass finite ones, a network may have diverged"
        )
    return rows


def _same_width(rows: Tensor, others: Tensor) -> None:
    if rows.shape[1] != others.shape[1]:
        raise UserError(
            f"samples of {rows.shape[1]} and {others.shape[1]} numbers each cannot be compared: "
            "pass samples of the same shape"
        )


def _distance_chunks(rows: Tensor, others: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Euclidean distances `[k, m]` of a slice of `rows` `[n, width]` to all `others` `[m, width]`, in turn.

    Memory does not grow with `n`. The distance of equal rows is exactly 0, and that of two rows is the same
    from either side.
    """
    step = max(1, CHUNK // len(others))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        yield part, _distances(rows[part], others)


def _distances(rows: Tensor, others: Tensor) -> Tensor:
    # The faster form by a matrix product cancels: equal rows would come out 1e-8 apart.
    return torch.cdist(rows, others, compute_mode="donot_use_mm_for_euclid_dist")


def _median_widths(real: Tensor) -> list[float]:
    median = torch.pdist(real[:MEDIAN_OF]).median().item()
    if median == 0:
        raise UserError("the median distance between real samples is 0, most are alike: pass bandwidths")
    return [median / 2, median, 2 * median]


def _kernel_sum(rows: Tensor, others: Tensor, widths: Sequence[float]) -> float:
    total = 0.0
    for _, distances in _distance_chunks(rows, others):
        squares = distances.square()
        total += sum((squares * (-0.5 / width**2)).exp().sum().item() for width in widths)
    return total / len(widths)


def _centred(rows: Tensor) -> Tensor:
    return (rows - rows.mean(0)) / (len(rows) - 1) ** 0.5


def _optimal_transport() -> Any:
    try:
        import ot
    except ImportError as error:
        raise UserError('exact transport needs POT: pip install "stillroom[diffusion]"') from error
    return ot


def _due_shares(counts: Tensor, weights: Tensor | None) -> Tensor:
    """The modes' weights as float64 shares that sum to 1."""
    if counts.ndim != 1 or len(counts) == 0:
        raise UserError(f"counts have shape {tuple(counts.shape)}: pass one count a mode, [modes]")
    if weights is None:
        return torch.full_like(counts, 1 / len(counts), dtype=torch.float64)
    weights = weights.detach().to(counts.device).double()
    usable = weights.shape == counts.shape and bool(weights.isfinite().all() and (weights >= 0).all())
    if not usable or weights.sum() == 0:
        raise UserError(
            f"weights {weights.tolist()} do not fit {len(counts)} modes: pass that many numbers of 0 or more"
        )
    return weights / weights.sum()


def _radii(rows: Tensor, neighbours: int) -> Tensor:
    """Distance `[n]` of each row to its `neighbours`-th nearest other row."""
    # The smallest distance is the row's to itself, exactly 0: one further along the order is the k-th other.
    return torch.cat(
        [part.kthvalue(neighbours + 1, dim=1).values for _, part in _distance_chunks(rows, rows)]
    )

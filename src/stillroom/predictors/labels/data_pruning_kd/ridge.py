"""Why a teacher of all data helps on few: ridge regression distilled into itself (arXiv:2403.07854, its theory).

Data are y = X^T w* + noise, X [d, n] with a sample a column. The teacher is ridge regression on the first t samples,
the student on the first s <= t of them, with targets (1 - alpha) y + alpha X^T w_t. Both are linear in the noise, so
the expected error over it is a closed form; an average over draws of X does the rest.
"""

from __future__ import annotations

import torch
from torch import Tensor


def ridge_map(x: Tensor, penalty: float) -> Tensor:
    """(X X^T + penalty I)^{-1} X [d, n], which takes targets [n] to the weights; X [d, n], penalty > 0."""
    return torch.linalg.solve(x @ x.T + penalty * torch.eye(len(x), dtype=x.dtype, device=x.device), x)


def ridge(x: Tensor, y: Tensor, penalty: float) -> Tensor:
    """The weights [d] of ridge regression on X [d, n], y [n]."""
    return ridge_map(x, penalty) @ y


def distilled_ridge(x: Tensor, y: Tensor, teacher: Tensor, alpha: float, penalty: float) -> Tensor:
    """The student's weights [d]: ridge regression on (1 - alpha) y + alpha X^T w_t; `teacher` w_t [d]."""
    return ridge(x, (1 - alpha) * y + alpha * (x.T @ teacher), penalty)


def student_map(x: Tensor, kept: int, seen: int, alpha: float, penalty: float) -> Tensor:
    """The matrix [d, seen] that takes the targets of the first `seen` samples to the student's weights.

    The teacher is fitted to all `seen`, the student to the first `kept` <= seen of them. X [d, n], n >= seen.
    """
    if not 1 <= kept <= seen <= x.shape[1]:
        raise ValueError(f"{kept} of {seen} of {x.shape[1]} samples: each has to hold the one before")
    own, teacher = ridge_map(x[:, :kept], penalty), ridge_map(x[:, :seen], penalty)
    whole = alpha * own @ (x[:, :kept].T @ teacher)
    whole[:, :kept] += (1 - alpha) * own
    return whole


def expected_error(
    x: Tensor, truth: Tensor, noise: float, kept: int, seen: int, alpha: float, penalty: float
) -> Tensor:
    """E ||w_s - w*||^2 over noise of standard deviation `noise`, X fixed: bias squared plus variance, a scalar.

    X [d, n], `truth` w* [d].
    """
    m = student_map(x, kept, seen, alpha, penalty)
    bias = m @ (x[:, :seen].T @ truth) - truth
    return bias.square().sum() + noise**2 * m.square().sum()

"""The closed forms of self-distillation (Borup and Andersen, NeurIPS 2021, arXiv:2102.13088, section 3).

Symbols: kernel matrix K = V diag(d) V^T of n training points, ridge lambda > 0, targets Y, a_k = d_k / (d_k + lambda).
Model t (t = 1, 2, ..., the first fit is t = 1) has the training outputs Y_t = V diag(b_t) V^T Y. The weight of the
original targets, alpha in the paper, is called `mix` here, because scikit-learn's `alpha` is the ridge.

`mixed`, `best_mix` and `mixing_loss` take NumPy arrays or tensors alike.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

TINY = 1e-20
"""Squared distance, as a share of the squared norms, below which two fits count as the same."""


def mixed(targets: Any, previous: Any, mix: Any) -> Any:
    """What the next model is fitted to: mix * targets + (1 - mix) * previous outputs; arrays of one shape."""
    return mix * targets + (1 - mix) * previous


def shrinkage(eigenvalues: Numbers, ridge: float) -> Numbers:
    """a = d / (d + ridge) [n], in [0, 1): the first fit's spectrum. Eigenvalues d >= 0, ridge > 0."""
    return eigenvalues / (eigenvalues + ridge)


def next_spectrum(first: Numbers, before: Numbers, mix: float) -> Numbers:
    """b_t = a (mix + (1 - mix) b_{t-1}) [n], from the first fit's spectrum a and the last one's."""
    return first * (mix + (1 - mix) * before)


def spectrum_after(first: Numbers, mix: float, steps: int) -> Numbers:
    """b_t [n] for a constant mix, without the models before: (1 - mix)^{t-1} a^t + mix sum_i (1 - mix)^i a^{i+1}.

    The sum runs over i = 0 .. t-2; `steps` is t >= 1.
    """
    powers = np.arange(steps - 1)[:, None]
    series = ((1 - mix) ** powers * first ** (powers + 1)).sum(0)
    return (1 - mix) ** (steps - 1) * first**steps + mix * series


def limit_spectrum(eigenvalues: Numbers, ridge: float, mix: float) -> Numbers:
    """b [n] after infinitely many steps: d / (d + ridge / mix), ridge regression with a larger ridge; 0 at mix 0.

    mix in [0, 1].
    """
    return mix * eigenvalues / (mix * eigenvalues + ridge)


def best_mix(targets: Any, first: Any, distilled: Any) -> float | None:
    """The mix that minimises the squared error to held-out `targets`; it may lie outside of [0, 1].

    <targets - g, f_1 - g> / ||f_1 - g||^2 over all entries, where f_1 is what the first fit says of the held-out
    inputs and g what the model says that was fitted to the last model's outputs alone. Exact for any fit that is
    linear in its targets, since then f = mix f_1 + (1 - mix) g. None where f_1 and g are the same. On training points
    it would be at least 1 and useless.
    """
    apart = first - distilled
    bottom = float((apart * apart).sum())
    if bottom <= TINY * float((first * first).sum() + (distilled * distilled).sum()):
        return None
    return float(((targets - distilled) * apart).sum()) / bottom


def mixing_loss(targets: Any, first: Any, distilled: Any, mix: Any) -> Any:
    """Squared error, summed over outputs and averaged over samples, of mix * first + (1 - mix) * distilled.

    Arrays [n, outputs], a single mix: a parabola in it.
    """
    error = mixed(first, distilled, mix) - targets
    return (error * error).sum(-1).mean()

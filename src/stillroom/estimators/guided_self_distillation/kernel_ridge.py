"""Self-distilled kernel ridge regression, all steps in closed form, behind scikit-learn's interface."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from numbers import Real
from typing import Any, Literal, Self

import numpy as np
from scipy.linalg import eigh
from sklearn.metrics.pairwise import pairwise_kernels
from sklearn.utils import Tags  # type: ignore[attr-defined]
from sklearn.utils.validation import check_is_fitted, validate_data  # type: ignore[attr-defined]

from stillroom.errors import UserError
from stillroom.estimators.guided_self_distillation.formulas import (
    Numbers,
    limit_spectrum,
    mixed,
    next_spectrum,
    shrinkage,
)
from stillroom.estimators.guided_self_distillation.regressors import Held, Mix, SelfDistilled

ROUNDING = 1e-6
"""Largest share of a kernel matrix's largest number (eigenvalue) that a wrong sign or half may have."""


class BadKernel(UserError, ValueError):
    """A kernel matrix that is not symmetric positive semi-definite."""


class SelfDistilledKernelRidge(SelfDistilled):
    """Kernel ridge regression that is refitted to a mix of the targets and its own last predictions, `steps` times.

    Borup and Andersen, NeurIPS 2021, arXiv:2102.13088, section 3. All steps come from one eigendecomposition. With
    a constant `mix` the models converge to kernel ridge regression with the ridge alpha / mix: `limit()`.

    Parameters are those of `sklearn.kernel_ridge.KernelRidge` (alpha > 0 is the ridge; gamma, degree, coef0 and
    kernel_params of the kernel, which may be a name, a function or "precomputed"), and: `steps`, models in all, the
    first fit included, or "limit"; `mix`, weight of the original targets in steps 2, 3, ... (the paper's alpha): a
    number, one a step, or "estimated" from held-out samples in closed form; `clip`, keep mixes in [0, 1];
    `validation_fraction`, share of samples held out for the estimate unless `fit` is given some; `refit`, fit on all
    samples once the mixes are estimated; `random_state` of the choice of held-out samples.

    Attributes: `dual_coef_` [n] or [n, outputs] of the last step; of every step `dual_coefs_`, `mixes_`,
    `free_mixes_` (before clipping), `fitted_` (predictions for the training points), `spectra_` (the diagonal of B,
    [steps, n]); `eigenvalues_` [n], descending, with `eigenvectors_`; `validation_curves_` [steps - 1, 3], numbers
    (a, b, c) of the held-out error a + b mix + c mix^2; `X_fit_`, `y_fit_`, `n_steps_`.
    """

    def __init__(
        self,
        alpha: float = 1.0,
        *,
        kernel: str | Callable[..., Any] = "rbf",
        gamma: float | None = None,
        degree: float = 3,
        coef0: float = 1,
        kernel_params: dict[str, Any] | None = None,
        steps: int | Literal["limit"] = 5,
        mix: Mix = "estimated",
        clip: bool = True,
        validation_fraction: float = 0.25,
        refit: bool = True,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.alpha, self.kernel, self.gamma, self.degree, self.coef0 = alpha, kernel, gamma, degree, coef0
        self.kernel_params, self.steps, self.mix, self.clip = kernel_params, steps, mix, clip
        self.validation_fraction, self.refit, self.random_state = validation_fraction, refit, random_state

    def fit(self, X: Any, y: Any, validation: Held | None = None) -> Self:
        """Fit to X [n, features] and y [n] or [n, outputs]; `validation` (X, y) are the samples to estimate mix from.

        With kernel "precomputed", X is the kernel matrix [n, n], and held-out inputs are [m, n]. ValueError for a
        kernel matrix that is not symmetric positive semi-definite.
        """
        X, y = validate_data(self, X, y, accept_sparse=self._sparse(), multi_output=True, y_numeric=True)
        if not isinstance(self.alpha, Real) or not 0 < self.alpha < np.inf:
            raise ValueError(f"alpha is {self.alpha!r}: pass a number above 0, the ridge")
        self._fit(X, y, validation)
        return self

    def predict(self, X: Any) -> Numbers:
        """The last step's predictions [n] or [n, outputs] for X [n, features] (precomputed: kernel [n, n_fit])."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, accept_sparse=self._sparse())
        return self._kernel(X, self.X_fit_) @ self.dual_coef_

    def limit(self, mix: float | None = None) -> Self:
        """The model after infinitely many steps with a constant `mix` in [0, 1] (None: this model's), fitted.

        Kernel ridge regression with the ridge alpha / mix; the zero function at mix 0.
        """
        check_is_fitted(self)
        made = copy.copy(self)
        made.set_params(steps="limit", mix=self.mix if mix is None else mix)
        made._take(self.y_fit_, made._known_mixes())
        return made

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()  # type: ignore[misc]
        tags.input_tags.sparse = self.kernel != "precomputed"
        tags.input_tags.pairwise = self.kernel == "precomputed"
        return tags

    def _known_mixes(self) -> list[float] | None:
        if self.steps != "limit":
            return super()._known_mixes()
        if not isinstance(self.mix, int | float) or not 0 <= self.mix <= 1:
            raise ValueError(f"mix is {self.mix!r} and steps 'limit': pass one constant mix from 0 to 1")
        return [float(self.mix)]

    def _kernel(self, x: Any, other: Any) -> Numbers:
        if callable(self.kernel):
            options = self.kernel_params or {}
        else:
            options = {"gamma": self.gamma, "degree": self.degree, "coef0": self.coef0}
        return pairwise_kernels(x, other, metric=self.kernel, filter_params=True, **options)

    def _estimate(self, x: Any, y: Numbers, held_x: Any, held_y: Numbers) -> list[float]:
        values, vectors = _decomposed(self._kernel(x, x))
        seen, projected = self._kernel(held_x, x) @ vectors, vectors.T @ y
        inverse = 1 / (values + self.alpha)
        first = seen @ (inverse[:, None] * projected)
        spectrum = shrinkage(values, self.alpha)
        mixes, before = [1.0], spectrum
        while len(mixes) < self.steps:
            distilled = seen @ ((inverse * before)[:, None] * projected)
            mix = self._estimated(held_y, first, distilled)
            if mix is None:  # Every mix gives the same model from here on.
                return mixes
            mixes.append(mix)
            before = next_spectrum(spectrum, before, mix)
        return mixes

    def _all_steps(self, x: Any, y: Numbers, mixes: Sequence[float]) -> None:
        self.X_fit_ = x
        self.eigenvalues_, self.eigenvectors_ = _decomposed(self._kernel(x, x))
        self._take(y, mixes)

    def _take(self, y: Numbers, mixes: Sequence[float] | None) -> None:
        """All steps for targets y, from the decomposition that is there."""
        assert mixes is not None
        values, vectors = self.eigenvalues_, self.eigenvectors_
        projected = vectors.T @ y.reshape(len(y), -1)
        if self.steps == "limit":
            weights = [mixes[0] / (mixes[0] * values + self.alpha)]
            self.spectra_ = limit_spectrum(values, self.alpha, mixes[0])[None]
        else:
            weights, before = [], np.ones_like(values)
            for mix in mixes:
                weights.append(mixed(1.0, before, mix) / (values + self.alpha))
                before = values * weights[-1]
            self.spectra_ = values * np.stack(weights)
        self.y_fit_, self.mixes_, self.n_steps_ = y, np.array(mixes), len(mixes)
        shape = (len(mixes), *y.shape)
        self.dual_coefs_ = np.stack([vectors @ (w[:, None] * projected) for w in weights]).reshape(shape)
        self.fitted_ = np.stack([vectors @ (b[:, None] * projected) for b in self.spectra_]).reshape(shape)
        self.dual_coef_ = self.dual_coefs_[-1]

    def _stages(self, x: Any) -> Iterator[Numbers]:
        kernel = self._kernel(x, self.X_fit_)
        yield from (kernel @ coefficients for coefficients in self.dual_coefs_)


def _decomposed(kernel: Any) -> tuple[Numbers, Numbers]:
    """Eigenvalues [n] >= 0, descending, and eigenvectors [n, n] of a kernel matrix; BadKernel for any other matrix."""
    kernel = np.asarray(kernel, dtype=np.float64)
    apart = np.abs(kernel - kernel.T).max()
    if apart > ROUNDING * np.abs(kernel).max():
        raise BadKernel(
            f"the kernel matrix is not symmetric, K and its transpose are up to {apart:.3g} apart: pass a kernel "
            "that is, such as (K + K.T) / 2"
        )
    values, vectors = (np.asarray(part) for part in eigh(kernel))
    if values[0] < -ROUNDING * np.abs(values).max():
        raise BadKernel(
            f"the kernel matrix is not positive semi-definite, its smallest eigenvalue is {values[0]:.3g} and its "
            f"largest {values[-1]:.3g}: pass another kernel, or add {-values[0]:.3g} to its diagonal"
        )
    return values[::-1].clip(0), vectors[:, ::-1]

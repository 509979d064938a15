"""What self-distilled regressors share, and the one for any linear smoother, behind scikit-learn's interface."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from numbers import Integral, Real
from typing import Any, Literal, Self

import numpy as np
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin, clone
from sklearn.linear_model import Ridge
from sklearn.model_selection import train_test_split
from sklearn.utils import Tags, get_tags  # type: ignore[attr-defined]
from sklearn.utils.metaestimators import _safe_split  # type: ignore[attr-defined]
from sklearn.utils.validation import check_is_fitted, validate_data  # type: ignore[attr-defined]

from stillroom.estimators.guided_self_distillation.formulas import (
    Numbers,
    best_mix,
    mixed,
    mixing_loss,
)

Mix = Literal["estimated"] | float | Sequence[float]
Held = tuple[Any, Any]
"""Held-out inputs and targets."""

LINEAR = 1e-4
"""Relative distance to mix * f_1 + (1 - mix) * g above which a fit is taken for not linear in its targets."""


class SelfDistilled(MultiOutputMixin, RegressorMixin, BaseEstimator):
    """What both regressors share: the mixes, how they are estimated, and the predictions of every step."""

    steps: Any
    mix: Any
    clip: bool
    validation_fraction: float
    refit: bool
    random_state: Any

    def _known_mixes(self) -> list[float] | None:
        """The mixes of all steps, the first of them 1; None where they are to be estimated."""
        if not isinstance(self.steps, Integral) or self.steps < 1:
            raise ValueError(f"steps is {self.steps!r}: pass a whole number of 1 or more")
        steps = int(self.steps)
        if isinstance(self.mix, str):
            if self.mix != "estimated":
                raise ValueError(
                    f"mix is {self.mix!r}: pass 'estimated', a number, or one number a later step"
                )
            return [1.0] if steps == 1 else None
        mixes = [self.mix] * (steps - 1) if isinstance(self.mix, Real) else list(self.mix)
        if len(mixes) != steps - 1:
            raise ValueError(
                f"mix has {len(mixes)} numbers: pass one for each of the {steps - 1} steps after 1"
            )
        return [1.0, *(self._in_range(float(mix)) for mix in mixes)]

    def _in_range(self, mix: float) -> float:
        if not np.isfinite(mix) or (self.clip and not 0 <= mix <= 1):
            raise ValueError(f"mix is {mix:g}: pass a number from 0 to 1, or clip=False for one beyond")
        return mix

    def _estimated(self, targets: Numbers, first: Numbers, distilled: Numbers) -> float | None:
        """This step's mix from what is held out [m, outputs]; notes its free value and the loss as a parabola."""
        free = best_mix(targets, first, distilled)
        if free is None:
            return None
        ends = [float(mixing_loss(targets, first, distilled, mix)) for mix in (0.0, 0.5, 1.0)]
        self._free.append(free)
        self._curves.append(
            [ends[0], 4 * ends[1] - 3 * ends[0] - ends[2], 2 * (ends[0] + ends[2]) - 4 * ends[1]]
        )
        return float(np.clip(free, 0, 1)) if self.clip else free

    def _halves(self, x: Any, y: Numbers) -> tuple[Held, Held]:
        """Training and held-out samples, cut by `validation_fraction`."""
        if not 0 < self.validation_fraction < 1:
            raise ValueError(
                f"validation_fraction is {self.validation_fraction}: pass a number between 0 and 1"
            )
        if len(y) < 2:
            raise ValueError("n_samples=1, and estimating mix holds samples out: pass more, or a fixed mix")
        rows = train_test_split(
            np.arange(len(y)), test_size=self.validation_fraction, random_state=self.random_state
        )
        train = _safe_split(self, x, y, rows[0])
        return train, _safe_split(self, x, y, rows[1], rows[0])

    def _fit(self, x: Any, y: Any, validation: Held | None) -> None:
        """Estimate the mixes where they are asked for, then fit all steps with them."""
        targets = np.asarray(y, dtype=np.float64).reshape(len(y), -1)
        mixes = self._known_mixes()
        self._free, self._curves = [], []
        if mixes is None:
            inside = validation is None
            if inside and not self.refit and get_tags(self).input_tags.pairwise:
                raise ValueError(
                    "refit=False needs held-out samples beside a precomputed kernel: pass validation"
                )
            train, held = (
                self._halves(x, targets) if inside else ((x, targets), self._read(validation, targets))
            )
            mixes = self._estimate(*train, *held)
            if inside and not self.refit:
                x, targets = train
        self.mixes_ = np.array(mixes)
        self.free_mixes_ = np.array([1.0, *self._free]) if self._curves else self.mixes_.copy()
        self.validation_curves_ = np.array(self._curves).reshape(-1, 3)
        self.n_steps_ = len(mixes)
        self._all_steps(x, targets if np.ndim(y) > 1 else targets[:, 0], mixes)

    def _read(self, validation: Any, targets: Numbers) -> Held:
        x, y = validation
        x = validate_data(self, x, reset=False, accept_sparse=self._sparse())
        y = np.asarray(y, dtype=np.float64).reshape(len(y), -1)
        if y.shape != (x.shape[0], targets.shape[1]):
            raise ValueError(
                f"validation targets have shape {list(y.shape)}: pass [{x.shape[0]}, {targets.shape[1]}]"
            )
        return x, y

    def _sparse(self) -> list[str] | bool:
        """The sparse matrices that are taken."""
        return ["csr", "csc"] if get_tags(self).input_tags.sparse else False

    def _estimate(self, x: Any, y: Numbers, held_x: Any, held_y: Numbers) -> list[float]:
        raise NotImplementedError

    def _all_steps(self, x: Any, y: Numbers, mixes: Sequence[float]) -> None:
        raise NotImplementedError

    def _stages(self, x: Any) -> Iterator[Numbers]:
        raise NotImplementedError

    def staged_predict(self, X: Any) -> Iterator[Numbers]:
        """The predictions of every step for X [n, features], the first fit's first: each [n] or [n, outputs]."""
        check_is_fitted(self)
        yield from self._stages(validate_data(self, X, reset=False, accept_sparse=self._sparse()))


class SelfDistilledRegressor(SelfDistilled):
    """Any linear smoother, refitted to a mix of the targets and its own last predictions, `steps` times.

    Borup and Andersen, NeurIPS 2021, arXiv:2102.13088, section 3, for fits that are linear in their targets (ridge,
    kernel ridge, splines, nearest neighbours, Gaussian processes with fixed parameters): then the estimated mix is
    exact, at one fit more a step. For others it is an approximation, and `fit` warns.

    `estimator` is a regressor with fit and predict (None: Ridge()); the other parameters are those of
    SelfDistilledKernelRidge. Attributes: `estimators_`, the fitted one of every step; `mixes_`, `free_mixes_`,
    `fitted_`, `validation_curves_`, `n_steps_` as there.
    """

    def __init__(
        self,
        estimator: Any = None,
        *,
        steps: int = 5,
        mix: Mix = "estimated",
        clip: bool = True,
        validation_fraction: float = 0.25,
        refit: bool = True,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.estimator, self.steps, self.mix, self.clip = estimator, steps, mix, clip
        self.validation_fraction, self.refit, self.random_state = validation_fraction, refit, random_state

    def fit(self, X: Any, y: Any, validation: Held | None = None) -> Self:
        """Fit to X [n, features] and y [n] or [n, outputs]; mix is estimated from `validation` (X, y) where given."""
        X, y = validate_data(self, X, y, accept_sparse=self._sparse(), multi_output=True, y_numeric=True)
        self._fit(X, y, validation)
        return self

    def predict(self, X: Any) -> Numbers:
        """The last step's predictions [n] or [n, outputs] for X [n, features]."""
        check_is_fitted(self)
        return self.estimators_[-1].predict(validate_data(self, X, reset=False, accept_sparse=self._sparse()))

    def __sklearn_tags__(self) -> Tags:
        tags, inner = super().__sklearn_tags__(), get_tags(self._base())  # type: ignore[misc]
        tags.input_tags.sparse, tags.input_tags.pairwise = inner.input_tags.sparse, inner.input_tags.pairwise
        return tags

    def _base(self) -> Any:
        return Ridge() if self.estimator is None else self.estimator

    def _fitted_to(self, x: Any, targets: Numbers) -> Any:
        return clone(self._base()).fit(x, targets if targets.shape[1] > 1 else targets[:, 0])

    def _estimate(self, x: Any, y: Numbers, held_x: Any, held_y: Numbers) -> list[float]:
        def says(model: Any, inputs: Any) -> Numbers:
            return model.predict(inputs).reshape(inputs.shape[0], -1)

        model = first = self._fitted_to(x, y)
        mixes = [1.0]
        while len(mixes) < self.steps:
            before = says(model, x)
            alone = self._fitted_to(x, before)
            ends = says(first, held_x), says(alone, held_x)
            mix = self._estimated(held_y, *ends)
            if mix is None:
                return mixes
            if len(mixes) == 1:
                between = self._fitted_to(x, mixed(y, before, 0.5))
                _warn_unless_linear(self._base(), says(between, held_x), mixed(*ends, 0.5))
            mixes.append(mix)
            model = self._fitted_to(x, mixed(y, before, mix)) if mix else alone
        return mixes

    def _all_steps(self, x: Any, y: Numbers, mixes: Sequence[float]) -> None:
        targets = y.reshape(len(y), -1)
        self.estimators_, fitted = [], []
        before = targets
        for mix in mixes:
            model = self._fitted_to(x, mixed(targets, before, mix))
            before = np.asarray(model.predict(x)).reshape(targets.shape)
            self.estimators_.append(model)
            fitted.append(before.reshape(y.shape))
        self.fitted_ = np.stack(fitted)

    def _stages(self, x: Any) -> Iterator[Numbers]:
        yield from (model.predict(x) for model in self.estimators_)


def _warn_unless_linear(estimator: Any, got: Numbers, expected: Numbers) -> None:
    scale = float(np.abs(expected).max())
    if float(np.abs(got - expected).max()) > LINEAR * scale:
        warnings.warn(
            f"{type(estimator).__name__} is not linear in its targets, so the estimated mix is an approximation: "
            "pass a linear smoother for an exact one",
            stacklevel=5,
        )

"""Pictures of self-distillation: the spectrum step by step, the error over rounds, and where the mix comes from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import clone

from stillroom.estimators.guided_self_distillation.formulas import Numbers
from stillroom.estimators.guided_self_distillation.kernel_ridge import SelfDistilledKernelRidge
from stillroom.reports.generation_figures import lines

if TYPE_CHECKING:
    from stillroom.estimators.guided_self_distillation.problem import Predictor, Regression

Figure = dict[str, str]
SHOWN = (0.0, 0.25, 0.5, 0.75)
"""Fixed mixes whose errors are drawn beside the estimate's."""


def spectrum(spectra: Numbers) -> Figure:
    """The diagonals of B [steps, n] over the eigenvectors of the kernel matrix, largest eigenvalue first."""
    places = np.arange(1, spectra.shape[1] + 1)
    series = [("first fit" if t == 0 else f"round {t}", places, row) for t, row in enumerate(spectra)]
    svg = lines(
        series, "eigenvector of the kernel matrix", "share of the targets kept", "Spectrum", log_x=True
    )
    caption = (
        "Share of the targets that each eigenvector of the kernel matrix keeps, the diagonal of B, by round."
    )
    return {"title": "What each round keeps", "caption": caption, "svg": svg}


def errors(arms: Sequence[tuple[str, Sequence[float]]]) -> Figure:
    """Squared errors on the validation split over rounds, a line a mix; round 0 is the first fit."""
    series = [(label, np.arange(len(values)), np.asarray(values)) for label, values in arms]
    svg = lines(series, "round", "squared error, validation", "Squared error over rounds")
    caption = "Squared error on the validation split after each round, by the weight of the original targets."
    return {"title": "Error over rounds", "caption": caption, "svg": svg}


def curves(parabolas: Sequence[Sequence[float]], free: Sequence[float], used: Sequence[float]) -> Figure:
    """The held-out error a + b mix + c mix^2 of each round, and its minimum, with the mix that was used."""
    low, high = min(0.0, *free) - 0.1, max(1.0, *free) + 0.1
    mixes, series = np.linspace(low, high, 41), []
    for t, (parabola, best, taken) in enumerate(zip(parabolas, free, used, strict=True), 1):
        series.append((f"round {t}", mixes, np.polynomial.polynomial.polyval(mixes, parabola)))
        label = f"round {t}: {best:.2f}" + ("" if taken == best else f", used {taken:.2f}")
        series.append((label, np.array([best]), np.polynomial.polynomial.polyval(np.array([best]), parabola)))
    svg = lines(series, "weight of the targets", "squared error, validation", "Error against the mix")
    caption = "Error on the held-out samples against the weight of the targets; the marks are the estimates, unclipped."
    return {"title": "Where the weight comes from", "caption": caption, "svg": svg}


def pictures(task: Regression, product: Predictor) -> list[Figure]:
    """All three for a product of the closed form; of a user's own estimator, what needs no further fit."""
    model = product.model
    held = task.part("validation")
    own = [("this run", _errors(product, *held))]
    if not isinstance(model, SelfDistilledKernelRidge):
        found = _curve(model, [])
        return [errors(own), *found]
    x, y = task.part("train")
    x, y = product.inputs(x), product.targets(y)
    seen = product.inputs(held[0]), product.targets(held[1])
    rounds = max(1, model.n_steps_ - 1)

    def other(mix: Any) -> Predictor:
        made = clone(model).set_params(steps=rounds + 1, mix=mix)
        return task.predictor(made.fit(x, y, validation=seen))

    fixed = [(f"weight {mix:g}", _errors(other(mix), *held)) for mix in SHOWN]
    return [spectrum(model.spectra_), errors([*own, *fixed]), *_curve(other("estimated").model, [])]


def _errors(product: Any, x: Numbers, y: Numbers) -> list[float]:
    return [float(((stage - y) ** 2).sum(1).mean()) for stage in product.staged_predict(x)]


def _curve(model: Any, found: list[Figure]) -> list[Figure]:
    """The parabolas of the first three rounds, where the model's mixes were estimated."""
    rounds = min(3, len(model.validation_curves_), len(model.mixes_) - 1)
    if rounds < 1:
        return found
    chosen = slice(1, rounds + 1)
    return [
        *found,
        curves(model.validation_curves_[:rounds], model.free_mixes_[chosen], model.mixes_[chosen]),
    ]

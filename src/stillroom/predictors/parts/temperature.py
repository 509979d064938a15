"""Temperature scaling: the calibration that a trained classifier gets afterwards, from held-out labels.

Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, arXiv:1706.04599, section 4.2. It changes no answer
and no order of a sample's classes, only how sure they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from stillroom.errors import UserError
from stillroom.method import Fit, Result
from stillroom.predictors.baselines import Plain
from stillroom.predictors.labelled import LabelledTask
from stillroom.predictors.parts.classifier import last_layer
from stillroom.runtime import Runtime
from stillroom.task import Task

COLDEST, WARMEST = 1e-2, 1e2
"""Temperatures between which one is looked for: where all held-out samples are right, colder is always better."""


def fitted_temperature(logits: Tensor, y: Tensor) -> float:
    """The T in [0.01, 100] with the least negative log-likelihood of softmax(logits / T). logits [n, C], y [n].

    The likelihood is convex in 1 / T, whose derivative, the mean of sum_i p_i z_i - z_y, is brought to 0 by
    bisection, in float64.
    """
    z = logits.detach().double()
    wanted = z.gather(1, y[:, None].to(z.device)).mean()
    low, high = math.log(1 / WARMEST), math.log(1 / COLDEST)
    for _ in range(60):
        middle = (low + high) / 2
        slope = ((z * math.exp(middle)).softmax(1) * z).sum(1).mean() - wanted
        low, high = (low, middle) if slope > 0 else (middle, high)
    return math.exp(-(low + high) / 2)


def divide_logits(layer: nn.Module, temperature: float) -> None:
    """Divide the output of a linear layer by `temperature` > 0, in its weights: the network stays what it was."""
    assert isinstance(layer, nn.Linear)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.div_(temperature)


@dataclass(eq=False)
class TemperatureScaled(Plain):
    """Plain training, and the logits divided by one number, fitted on the validation split (Guo et al., section 4.2).

    The arm that needs no other training: "On Calibration of Modern Neural Networks", 2017, arXiv:1706.04599.
    """

    name: ClassVar[str] = "temperature-scaled"
    listed: ClassVar[bool] = False

    def bind(self, task: Task, seed: int) -> None:
        """See the base; finds the last layer, in which the temperature goes."""
        super().bind(task, seed)
        self.layer = last_layer(self.student, task.example())

    def run(self, task: Task, fit: Fit) -> Result:
        """Train, then fit the temperature."""
        assert isinstance(task, LabelledTask)
        result = fit(self)
        logits, y = Runtime(fit.engine.precision).predict(result.product, task.labelled.validation)
        if y is None:
            raise UserError("the validation split has no labels to fit a temperature on: pass labelled data")
        temperature = fitted_temperature(logits, y)
        divide_logits(result.product.get_submodule(self.layer), temperature)
        return replace(result, extra={"temperature": temperature})

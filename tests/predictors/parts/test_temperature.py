"""Temperature scaling finds the temperature that is there, and leaves the answers as they are."""

from __future__ import annotations

import pytest
import torch

from stillroom import metrics
from stillroom.engine import Engine
from stillroom.errors import UserError
from stillroom.fitter import Fitter
from stillroom.predictors.baselines import Plain
from stillroom.predictors.classification import Classification
from stillroom.predictors.parts.temperature import COLDEST, TemperatureScaled, fitted_temperature
from stillroom.runtime import Runtime


def test_labels_drawn_from_warmer_probabilities_give_the_temperature_back() -> None:
    generator = torch.Generator().manual_seed(0)
    z = 3 * torch.randn(20_000, 5, generator=generator, dtype=torch.float64)
    y = torch.multinomial((z / 2.5).softmax(-1), 1, generator=generator).squeeze(-1)
    assert fitted_temperature(z, y) == pytest.approx(2.5, rel=0.03)
    assert fitted_temperature(z / 2.5, y) == pytest.approx(1.0, rel=0.03)


def test_it_is_the_least_likelihood_of_a_fine_grid() -> None:
    generator = torch.Generator().manual_seed(1)
    z, y = torch.randn(300, 4, generator=generator), torch.randint(4, (300,), generator=generator)
    z[torch.arange(300), y] += 0.5
    found = fitted_temperature(z, y)
    least = metrics.negative_log_likelihood(z / found, y)
    assert all(metrics.negative_log_likelihood(z / (found * f), y) > least for f in (0.9, 0.99, 1.01, 1.1))


def test_where_all_are_right_it_is_as_cold_as_it_may_be() -> None:
    assert fitted_temperature(torch.eye(3), torch.arange(3)) == pytest.approx(COLDEST)


def test_the_arm_is_plain_training_with_its_logits_divided() -> None:
    task, engine = Classification(teacher="none", student="cnn:4-8").quick(), Engine(epochs=8)
    plain = Plain().run(task, Fitter(engine, task, 3)).product
    result = TemperatureScaled().run(task, Fitter(engine, task, 3))
    before, y = Runtime().predict(plain, task.images.validation)
    after, _ = Runtime().predict(result.product, task.images.validation)
    temperature = result.extra["temperature"]
    assert temperature != pytest.approx(1, abs=0.01)
    torch.testing.assert_close(after, before / temperature, rtol=1e-4, atol=1e-5)
    assert metrics.negative_log_likelihood(after, y) < metrics.negative_log_likelihood(before, y)


def test_a_network_without_a_last_linear_layer_is_refused() -> None:
    task = Classification(teacher="none").using(
        student=torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10), torch.nn.Softplus())
    )
    with pytest.raises(UserError, match="no linear layer's"):
        TemperatureScaled().bind(task, 0)

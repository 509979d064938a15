"""The parts that matching papers share, against closed forms and against NVIDIA's FastGen on the same numbers.

FastGen's numbers (snapshot of November 2026, float64 with its casts to float32 undone) are for inputs made by rule:
x = sin(i), real = cos(.9 i), fake = .5 sin(.4 i + 1), i = 1 .. 24 in shape (3, 2, 2, 2).
"""

from __future__ import annotations

import pytest
import torch

from stillroom.errors import UserError
from stillroom.generators.parts.denoiser import Denoiser
from stillroom.generators.parts.estimate import Estimate
from stillroom.generators.parts.matching import (
    Heads,
    Tapped,
    default_taps,
    denoising_error,
    discriminator_loss,
    generator_loss,
    matching_direction,
    surrogate,
)
from stillroom.generators.parts.process import NAMED
from stillroom.models.denoisers import build_denoiser_network

I = torch.arange(1, 25, dtype=torch.float64)  # noqa: E741 - the index of the rule
X, REAL, FAKE = (v.view(3, 2, 2, 2) for v in (I.sin(), (0.9 * I).cos(), 0.5 * (0.4 * I + 1).sin()))


@pytest.mark.parametrize(
    ("weight", "loss", "first"),
    [
        (1.0, 3.179914874323655, [-0.008718527957870379, 0.048307574379431624, 0.08850229550510431]),
        (
            torch.tensor([0.5, 1.0, 1.5], dtype=torch.float64),
            5.211973873765383,
            [-0.004359263978935185, 0.024153787189715812, 0.04425114775255216],
        ),
    ],
)
def test_loss_and_gradient_are_fastgens(
    weight: float | torch.Tensor, loss: float, first: list[float]
) -> None:
    x = X.clone().requires_grad_()
    got = surrogate(x, matching_direction(x, REAL, FAKE, weight))
    got.backward()
    assert got.item() == pytest.approx(loss, abs=1e-12)
    assert x.grad is not None
    assert x.grad.flatten()[:3].tolist() == pytest.approx(first, abs=1e-14)


def test_the_surrogates_gradient_is_the_direction() -> None:
    x, direction = X.clone().requires_grad_(), FAKE.clone().requires_grad_()
    surrogate(x, direction).backward()
    assert x.grad is not None
    assert torch.allclose(x.grad, FAKE / 24)
    assert direction.grad is None


def test_gan_losses_are_fastgens() -> None:
    i = torch.arange(1, 5, dtype=torch.float64)
    fake = torch.stack([3 * i.sin(), 2 * i.cos()], 1)
    real = torch.stack([3 * (i + 1).sin(), 2 * (i + 1).cos()], 1)
    assert generator_loss(fake).item() == pytest.approx(1.0193160048277479, abs=1e-14)
    assert discriminator_loss(real, fake).item() == pytest.approx(2.460853599039016, abs=1e-14)


@pytest.mark.parametrize(("kind", "value"), [("x0", 0.23957823017463734), ("eps", 0.6420301056898324)])
def test_the_fake_networks_loss_is_fastgens(kind: str, value: float) -> None:
    """x0 = sin(i), the network's output cos(.9 i), eps = .5 sin(.4 i + 1), t = .1, 1, 7."""
    t = torch.tensor([0.1, 1, 7], dtype=torch.float64)
    process = NAMED["edm"]
    at = Estimate(process, process.add_noise(X, t, FAKE), t, kind, REAL)  # type: ignore[arg-type]
    assert denoising_error(at, X, FAKE).item() == pytest.approx(value, abs=1e-13)


@pytest.mark.parametrize("name", ["mlp:16x3", "unet:8-16", "dit:16x2@2"])
def test_features_come_from_the_middle_with_a_gradient(name: str) -> None:
    if not name.startswith("mlp"):
        pytest.importorskip("diffusers")
    network = build_denoiser_network(name, shape=(1, 8, 8), classes=3, seed=0).requires_grad_(False)
    denoiser = Denoiser(network, "edm", "edm", classes=3).eval()
    x, t, c = torch.randn(4, 1, 8, 8).requires_grad_(), torch.ones(4), torch.tensor([0, 1, 2, 3])
    for guidance in (1.0, 2.0):
        tapped = Tapped(denoiser, (), guidance)
        real, features = tapped(x, t, c)
        logits = Heads(features)(features)
        assert logits.shape == (4, 1)
        assert torch.autograd.grad(logits.sum(), x)[0].abs().sum() > 0
        wanted = denoiser(x, t, c) if guidance == 1 else denoiser.guided(x, t, c, guidance).x0
        assert torch.allclose(real, wanted)
        tapped.remove()
    assert default_taps(network)


def test_an_unknown_network_or_path_is_one_line() -> None:
    with pytest.raises(UserError, match="the middle of Linear is not known: pass --method.taps"):
        default_taps(torch.nn.Linear(2, 2))
    network = build_denoiser_network("mlp:16x2", shape=(2,), classes=0, seed=0)
    with pytest.raises(UserError, match=r"--method.taps 'block.1' is no module of ResidualMLP.*blocks.1"):
        Tapped(Denoiser(network, "edm", "edm"), ("block.1",))

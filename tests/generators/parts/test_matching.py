"""The parts that matching papers share, against closed forms and against NVIDIA's FastGen on the same numbers.

FastGen's numbers (snapshot of November 2026, float64 with its casts to float32 undone) are for inputs made by rule:
x = sin(i), real = cos(.9 i), fake = .5 sin(.4 i + 1), i = 1 .. 24 in shape (3, 2, 2, 2).
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from stillroom.errors import UserError
from stillroom.generators.parts.denoiser import Denoiser
from stillroom.generators.parts.estimate import Estimate
from stillroom.generators.parts.matching import (
    Heads,
    RatioBins,
    Tapped,
    Trace,
    approximate_r1,
    clipped_ratio,
    default_taps,
    denoising_error,
    discriminator_loss,
    divergence_weight,
    generator_loss,
    matching_direction,
    surrogate,
)
from stillroom.generators.parts.process import NAMED
from stillroom.generators.parts.sampler import Plan, Sampler
from stillroom.method import Clock
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


def test_the_fake_networks_loss_on_a_flow_is_fastgens() -> None:
    """The velocity's target is eps - x0, whatever the time."""
    t, process = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64), NAMED["flow"]
    at = Estimate(process, process.add_noise(X, t, FAKE), t, "velocity", REAL)
    assert denoising_error(at, X, FAKE).item() == pytest.approx(1.856434815591247, abs=1e-12)


def test_the_approximate_penalty_is_fastgens_on_equal_logits() -> None:
    """Feature t x, head tanh(mean): real x_t; its second logit from clean images, and ours from noised ones."""
    t = torch.tensor([0.1, 1, 7], dtype=torch.float64)
    noised = NAMED["edm"].add_noise(X, t, 0.3 * (0.5 * I).sin().view(3, 2, 2, 2))
    moved = 0.1 * I.cos().view(3, 2, 2, 2)

    def logit(x: Tensor) -> Tensor:
        return (t * x.flatten(1).mean(1)).tanh().unsqueeze(1)

    assert approximate_r1(logit(noised), logit(X + moved)).item() == pytest.approx(
        0.005057633637191768, abs=1e-14
    )
    found = approximate_r1(logit(noised), logit(noised + moved)).item()
    assert found == pytest.approx(0.00012926206662774008, abs=1e-15)


# -- f-divergences and their ratio ------------------------------------------------------------------------------

DIVERGENCES = {
    "rkl": lambda r: -r.log(),
    "sf": lambda r: (r + 1) * (0.5 + 0.5 / r).log(),
    "js": lambda r: r * r.log() - (r + 1) * ((r + 1) / 2).log(),
    "sh": lambda r: (1 - r.sqrt()) ** 2,
    "kl": lambda r: r * r.log(),
    "jf": lambda r: (r - 1) * r.log(),
    "neyman": lambda r: (1 - r) ** 2 / r,
    "chi2": lambda r: (r - 1) ** 2,
}
FACTORS = {"sh": 2.0, "neyman": 0.5}
"""Where h is the table's up to a factor, as FastGen has it."""


@pytest.mark.parametrize("name", DIVERGENCES)
def test_the_weight_is_r_squared_f_second(name: str) -> None:
    r = torch.tensor([0.15, 0.5, 1.0, 2.0, 7.0], dtype=torch.float64, requires_grad=True)
    first = torch.autograd.grad(DIVERGENCES[name](r).sum(), r, create_graph=True)[0]
    second = torch.autograd.grad(first.sum(), r)[0]
    wanted = FACTORS.get(name, 1.0) * r.detach().square() * second
    assert torch.allclose(divergence_weight(r.detach(), name), wanted, rtol=1e-10)  # type: ignore[arg-type]


def test_an_unknown_divergence_is_one_line() -> None:
    with pytest.raises(UserError, match=r"^--method.divergence 'tv' is unknown: pass one of rkl, sf, js"):
        divergence_weight(torch.ones(1), "tv")  # type: ignore[arg-type]


def normalised(bins: RatioBins, ratio: Tensor, t: Tensor) -> Tensor:
    """What `bins` makes of the ratios of one whole step."""
    flow = bins(ratio, t)
    try:
        flow.send(next(flow).values.mean(0))
    except StopIteration as done:
        return done.value
    raise AssertionError("asks once")


def rule(call: int) -> tuple[Tensor, Tensor]:
    """Logits [16, 2] and noise levels [16] of two steps; the first has both clips, the second both ends."""
    i = torch.arange(1, 17, dtype=torch.float64)
    logits = torch.stack([4 * (1.3 * i + call).sin(), 3 * (0.7 * i - call).cos()], 1)
    if call:
        t = 0.002 + 79.998 * (0.5 + 0.5 * (2.1 * i).sin())
        t[0], t[1] = 0.002, 80.0
        return logits, t
    logits[3], logits[7] = torch.tensor([14.0, 16.0]), torch.tensor([-20.0, -9.0])
    return logits, 0.002 + 79.998 * (i - 0.5) / 16 * 0.8


@pytest.mark.parametrize(
    ("name", "memory", "first", "second"),
    [
        (
            "kl",
            0.0,
            [1.6936159, 0.3063849, 0.0117807, 1.9882201],
            [3.1013995, 0.4289426, 0.2288255, 0.1572427],
        ),
        (
            "kl",
            0.5,
            [2.2232397, 0.402197, 0.0152575, 2.5750027],
            [2.7770393, 0.6294118, 0.1244255, 0.2307312],
        ),
        (
            "js",
            0.0,
            [1.5398004, 0.5743564, 0.0285147, 1.6294351],
            [2.3015989, 0.9136683, 0.566785, 0.4135712],
        ),
        ("js", 0.5, [1.7494576, 0.8337811, 0.04846, 1.8094116], [2.3886861, 1.2892937, 0.3774954, 0.6356406]),
        (
            "sf",
            0.5,
            [0.4277537, 1.1269117, 1.7265378, 0.3819762],
            [0.3643039, 0.8675683, 1.2849585, 1.1667884],
        ),
        (
            "neyman",
            0.5,
            [0.0589315, 0.3257577, 8.587162, 0.050881],
            [0.0408574, 0.1802679, 0.9118929, 0.4917529],
        ),
        ("sh", 0.5, [1.7496851, 0.744194, 0.1449468, 1.8830229], [2.2108863, 1.0525503, 0.467983, 0.6372774]),
        (
            "jf",
            0.5,
            [1.7145342, 0.6508037, 0.4247798, 1.9200105],
            [1.9230336, 0.8075083, 0.5452072, 0.6004247],
        ),
    ],
)
def test_two_steps_of_the_pipeline_are_fastgens(
    name: str, memory: float, first: list[float], second: list[float]
) -> None:
    """Clip, exp, clip, mean 1 in every bin, h, mean 1 over all; to the digits of the float32 that it is done in."""
    bins = RatioBins(10, 0.002, 80.0, memory)
    for call, wanted in enumerate((first, second)):
        logits, t = rule(call)
        ratio = normalised(bins, clipped_ratio(logits, 10, 0.1, 20), t)
        h = divergence_weight(ratio, name)  # type: ignore[arg-type]
        assert (h / (h.mean() + 1e-6))[:4].tolist() == pytest.approx(wanted, rel=1e-5, abs=1e-6)
    kept = {
        0.0: [
            6.0048096,
            10.0592474,
            1.9544018,
            1.3020943,
            4.0776515,
            1.2095919,
            0.1,
            5.1671987,
            1,
            3.8304475,
        ],
        0.5: [
            6.2046678,
            5.5296237,
            1.4772009,
            1.1510471,
            2.5388258,
            2.0581529,
            0.55,
            3.0835994,
            1,
            2.4152238,
        ],
    }
    assert bins.level.tolist() == pytest.approx(kept[memory], rel=1e-5)


def test_both_normalisers_make_means_one() -> None:
    ratio = torch.rand(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 5 + 0.1
    bins, place = RatioBins(10, 0.0, 10.0, 0.0), torch.arange(400) % 7
    made = normalised(bins, ratio, place + 0.5)
    for k in range(7):
        assert made[place == k].mean().item() == pytest.approx(1, abs=1e-5)
    assert torch.equal(bins.level[7:], torch.ones(3, dtype=torch.float64))  # empty bins keep what they had
    assert bins.place(torch.tensor([-1.0, 0.0, 9.99, 10.0, 99.0])).tolist() == [0, 0, 9, 9, 9]


def test_parts_of_a_step_are_normalised_as_the_whole() -> None:
    ratio = torch.rand(12, generator=torch.Generator().manual_seed(0)) + 0.1
    t, whole, cut = torch.linspace(0, 1, 12), RatioBins(3, 0.0, 1.0, 0.5), RatioBins(3, 0.0, 1.0, 0.5)
    wanted = normalised(whole, ratio, t)
    flows = [cut(ratio[:5], t[:5]), cut(ratio[5:], t[5:])]
    mean, parts = torch.cat([next(flow).values for flow in flows]).mean(0), []
    for flow in flows:
        with pytest.raises(StopIteration) as done:
            flow.send(mean)
        parts.append(done.value.value)
    assert torch.allclose(torch.cat(parts), wanted)
    assert torch.equal(cut.level, whole.level)


def test_an_exact_discriminator_gives_the_ratio() -> None:
    """Large logits are real: E_q exp(d) = 1 and E_p exp(-d) = 1 at the loss's minimum d = log p / q."""
    x = torch.linspace(-12, 12, 40_001, dtype=torch.float64)
    means, spreads = x.new_tensor([[0.3], [-0.2]]), x.new_tensor([[1.1], [0.9]])
    p, q = torch.distributions.Normal(means, spreads).log_prob(x).exp()
    d, step = (p / q).log(), x[1] - x[0]
    assert ((q * d.exp()).sum() * step).item() == pytest.approx(1, abs=1e-9)
    assert ((p * (-d).exp()).sum() * step).item() == pytest.approx(1, abs=1e-9)
    d, soft = d.requires_grad_(), torch.nn.functional.softplus
    loss = (p * soft(-d) + q * soft(d)).sum() * step
    assert torch.autograd.grad(loss, d)[0].abs().max() < 1e-12  # and so `discriminator_loss` is least there
    one = torch.tensor([[0.7, -0.4]])
    assert discriminator_loss(one, -one).item() == pytest.approx(2 * soft(-one).mean().item())


def test_the_ratio_is_clipped_twice_and_has_no_gradient() -> None:
    logits = torch.tensor([[9.0, 11.0], [-9.0, -11.0], [1.0, 3.0]], requires_grad=True)
    made = clipped_ratio(logits, 3.0, 0.1, 15.0)
    assert made.tolist() == pytest.approx([15.0, 0.1, math.exp(2)], rel=1e-6)
    assert clipped_ratio(logits, 3.0, 0.01, 99.0)[:2].tolist() == pytest.approx(
        [math.exp(3), math.exp(-3)], rel=1e-6
    )
    assert not made.requires_grad


# -- the discriminator and what is shown ------------------------------------------------------------------------


def test_a_trace_is_the_same_however_a_step_is_cut() -> None:
    values, whole, cut = (
        torch.tensor([3.0, 1.0, 8.0]),
        *(Trace(a="mean", b="least", c="largest") for _ in "ab"),
    )
    for name in "abc":
        whole.note(Clock(50, 100, 0, 1), name, values)
        for part in values.split([1, 2]):
            cut.note(Clock(50, 100, 0, 1), name, part)
        assert whole.curve(name)[0].tolist() == cut.curve(name)[0].tolist() == [52.5]
    assert [float(cut.curve(name)[1]) for name in "abc"] == [4.0, 1.0, 8.0]
    assert [float(whole.curve(name)[1]) for name in "abc"] == [4.0, 1.0, 8.0]
    other = Trace(a="mean", b="least", c="largest")
    assert len(other.curve("b")[0]) == 0
    other.load_state(cut.state())
    assert float(other.curve("a")[1]) == 4.0


@pytest.mark.parametrize("name", ["mlp:16x3", "unet:8-16", "dit:16x2@2"])
def test_features_come_from_the_middle_with_a_gradient(name: str) -> None:
    if not name.startswith("mlp"):
        pytest.importorskip("diffusers")
    network = build_denoiser_network(name, shape=(1, 8, 8), classes=3, seed=0).requires_grad_(False)
    denoiser = Denoiser(network, "edm", "edm", classes=3).eval()
    x, t, c = torch.randn(4, 1, 8, 8).requires_grad_(), torch.ones(4), torch.tensor([0, 1, 2, 3])
    for guidance in (1.0, 2.0):
        tapped = Tapped(Sampler(denoiser, Plan(guidance=guidance)), ())
        real, features = tapped(x, t, c)
        logits = Heads(features)(features)
        assert logits.shape == (4, 1)
        assert torch.autograd.grad(logits.sum(), x)[0].abs().sum() > 0
        wanted = denoiser(x, t, c) if guidance == 1 else denoiser.guided(x, t, c, guidance).x0
        assert torch.allclose(real, wanted)
        tapped.remove()
    assert default_taps(network)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("paths", [(), ("blocks.0", "blocks.2")])
def test_features_alone_are_the_same_and_end_the_pass(paths: tuple[str, ...], guidance: float) -> None:
    network = build_denoiser_network("mlp:16x4", shape=(1, 8, 8), classes=3, seed=0).requires_grad_(False)
    tapped = Tapped(Sampler(Denoiser(network, "edm", "edm", classes=3), Plan(guidance=guidance)), paths)
    seen: list[tuple[str, int]] = []
    for name in ("blocks.0", "blocks.2", "blocks.3"):
        module = network.get_submodule(name)
        module.register_forward_hook(lambda _, args, out, name=name: seen.append((name, len(out))))
    x, t, c = torch.randn(4, 1, 8, 8).requires_grad_(), torch.ones(4), torch.tensor([0, 1, 2, 3])
    network(x, t, c, None)  # a pass of somebody else's, whose features nobody took
    seen.clear()
    features = tapped.features(x, 3 * t, c)
    # a hook that came later is not called where the pass ends, and guidance needs no second half
    assert seen == [("blocks.0", 4)]
    assert torch.autograd.grad(features[-1].sum(), x)[0].abs().sum() > 0
    seen.clear()
    real, whole = tapped(x, 3 * t, c)
    assert [name for name, _ in seen] == ["blocks.0", "blocks.2", "blocks.3"]
    assert real.shape == x.shape
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(features, whole, strict=True))
    tapped.remove()
    network(x, t, c, None)


def test_an_unknown_network_or_path_is_one_line() -> None:
    with pytest.raises(UserError, match="the middle of Linear is not known: pass --method.taps"):
        default_taps(torch.nn.Linear(2, 2))
    network = build_denoiser_network("mlp:16x2", shape=(2,), classes=0, seed=0)
    with pytest.raises(UserError, match=r"--method.taps 'block.1' is no module of ResidualMLP.*blocks.1"):
        Tapped(Sampler(Denoiser(network, "edm", "edm"), Plan()), ("block.1",))

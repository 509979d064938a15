"""f-distill: its weights, its normalisers, its gradient on known laws, and what it refuses.

Compared with NVIDIA's FastGen (snapshot of November 2026) on logits made by rule: see `published`.
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from stillroom.engine import Engine
from stillroom.errors import UserError
from stillroom.fitter import Fitter
from stillroom.generators.generation import Generation
from stillroom.generators.matching.f_distill import (
    Coverage,
    FDistill,
    bin_of,
    bin_terms,
    clipped_ratio,
    next_bins,
    weight,
)
from stillroom.generators.parts.denoiser import Denoiser
from stillroom.generators.parts.process import NAMED
from stillroom.generators.parts.sampler import Sampler
from stillroom.models.denoisers import build_denoiser_network
from stillroom.models.denoisers.library import wrap
from stillroom.optim import Recipe
from stillroom.runtime import Runtime
from stillroom.teaching import teach
from toys import same, weights_of

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
ENGINE = Engine(steps=6, batch_size=16, recipe=Recipe("adamw", lr=1e-3), evaluate_every=0)


# -- the weight ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DIVERGENCES)
def test_the_weight_is_r_squared_f_second_up_to_a_constant(name: str) -> None:
    r = torch.tensor([0.15, 0.5, 1.0, 2.0, 7.0], dtype=torch.float64, requires_grad=True)
    first = torch.autograd.grad(DIVERGENCES[name](r).sum(), r, create_graph=True)[0]
    second = torch.autograd.grad(first.sum(), r)[0]
    quotient = weight(r.detach(), name) / (r.detach().square() * second)  # type: ignore[arg-type]
    assert torch.allclose(quotient, quotient[0].expand(5), rtol=1e-10)


@pytest.mark.parametrize(
    ("name", "rescale", "wanted"),
    [
        ("rkl", 1.0, (-0.09606, -0.20508)),
        ("kl", 1.0, (-0.09655, -0.23672)),
        ("js", 1.0, (-0.04782, -0.10805)),
        ("chi2", 1.0, (-0.19803, -0.58452)),
    ],
)
def test_the_gradient_of_a_divergence_on_known_laws(
    name: str, rescale: float, wanted: tuple[float, float]
) -> None:
    """Generator N(.4, .9^2), teacher .3 N(-1, .5^2) + .7 N(1.2, .6^2), noise .8, by quadrature."""
    z = torch.linspace(-9, 9, 20_001, dtype=torch.float64)
    density = (-0.5 * z.square()).exp() / math.sqrt(2 * math.pi) * (z[1] - z[0])
    m, s, noise = 0.4, 0.9, 0.8
    # x_t = m + s z + .8 eps: given x_t, the part of it that moves with s is s z; both are Gaussian
    spread = math.sqrt(s**2 + noise**2)
    x = (m + spread * z).requires_grad_()
    parts = [(0.3, -1.0, 0.5), (0.7, 1.2, 0.6)]
    p = sum(w * _normal(x, mu, math.sqrt(tau**2 + noise**2)) for w, mu, tau in parts)
    q = _normal(x, m, spread)
    score_p = torch.autograd.grad(p.log().sum(), x)[0]  # type: ignore[union-attr]
    score_q = -(x - m) / spread**2
    h = weight((p / q).detach(), name)  # type: ignore[arg-type,union-attr]
    pull = (h * (score_q - score_p)).detach()
    mean_z = s * (x.detach() - m) / spread**2  # E[z | x_t], what dx_t / ds is
    found = (float((density * pull).sum()), float((density * pull * mean_z).sum()))
    assert found == pytest.approx(tuple(rescale * v for v in wanted), abs=2e-5)


def _normal(x: Tensor, mean: float, std: float) -> Tensor:
    return (-0.5 * ((x - mean) / std) ** 2).exp() / (std * math.sqrt(2 * math.pi))


@pytest.mark.parametrize(("name", "mean", "spread"), [("rkl", 2.0, 0.3), ("kl", 0.0, 2.02)])
def test_reverse_kl_takes_a_mode_and_forward_kl_all(name: str, mean: float, spread: float) -> None:
    """A Gaussian generator that starts near one of the modes +-2 of deviation .3, with exact scores and ratio."""
    z = torch.linspace(-6, 6, 4001, dtype=torch.float64)
    density = (-0.5 * z.square()).exp() / math.sqrt(2 * math.pi) * (z[1] - z[0])
    m, s = 1.5, 0.8
    for _ in range(4000):
        x = m + s * z
        modes = torch.stack([-((x - c) ** 2) / (2 * 0.09) for c in (-2.0, 2.0)])
        share = modes.softmax(0)
        score_p = (share[0] * (-2 - x) + share[1] * (2 - x)) / 0.09
        log_p = modes.logsumexp(0) + math.log(0.5) - math.log(0.3)
        log_q = -0.5 * z.square() - math.log(s)
        h = weight((log_p - log_q).clamp(-40, 12).exp(), name)  # type: ignore[arg-type]
        h = h / (density * h).sum()
        pull = density * h * (-z / s - score_p)
        m, s = m - 0.01 * float(pull.sum()), max(0.05, s - 0.01 * float((pull * z).sum()))
    assert m == pytest.approx(mean, abs=0.1)
    assert s == pytest.approx(spread, abs=0.1)


# -- the ratio ------------------------------------------------------------------------------------------------------


def logits(call: int) -> Tensor:
    i = torch.arange(1, 17, dtype=torch.float64)
    found = torch.stack([4 * (1.3 * i + call).sin(), 3 * (0.7 * i - call).cos()], 1)
    if call == 0:
        found[3], found[7] = torch.tensor([14.0, 16.0]), torch.tensor([-20.0, -9.0])
    return found


def published(name: str, memory: float) -> Tensor:
    """h of the first call of FastGen's pipeline: clip, exp, clip, mean 1 in every bin, mean 1 over all."""
    i = torch.arange(1, 17, dtype=torch.float64)
    t = 0.002 + 79.998 * (i - 0.5) / 16 * 0.8
    ratio = clipped_ratio(logits(0), 10, 0.1, 20).double()
    place = bin_of(t, 0.002, 80.0, 10)
    level = next_bins(torch.ones(10, dtype=torch.float64), bin_terms(ratio, place, 10).mean(0), memory)
    h = weight(ratio / (level[place] + 1e-6), name)  # type: ignore[arg-type]
    return h / (h.mean() + 1e-6)


@pytest.mark.parametrize(
    ("name", "memory", "first"),
    [
        ("kl", 0.0, [1.6936159135094764, 0.30638494467404526, 0.011780685498954965, 1.9882201432241293]),
        ("kl", 0.5, [2.223239692062012, 0.4021969589539699, 0.015257514407425779, 2.5750027435217815]),
        ("js", 0.0, [1.5398004428679573, 0.5743563611321475, 0.028514736149126106, 1.629435088805981]),
        ("js", 0.5, [1.749457590499136, 0.8337810913042604, 0.048459982874651496, 1.8094116476036681]),
        ("neyman", 0.5, [0.058931454448572784, 0.32575768096746377, 8.587162046345183, 0.05088101322246346]),
        ("sh", 0.0, [1.4649219458633992, 0.6230756045913556, 0.12217780490871362, 1.587227837980226]),
    ],
)
def test_the_pipeline_is_fastgens(name: str, memory: float, first: list[float]) -> None:
    """To 2e-6, the digits of the float32 in which theirs and ours take the exponential."""
    assert published(name, memory)[:4].tolist() == pytest.approx(first, rel=5e-6, abs=1e-7)


def test_both_normalisers_make_means_one() -> None:
    ratio = torch.rand(400, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 5 + 0.1
    place = torch.arange(400) % 7
    level = next_bins(torch.ones(10, dtype=torch.float64), bin_terms(ratio, place, 10).mean(0), 0.0)
    made = ratio / level[place]
    for k in range(7):
        assert made[place == k].mean().item() == pytest.approx(1, abs=1e-12)
    assert torch.equal(level[7:], torch.ones(3, dtype=torch.float64))  # empty bins keep what they had


def test_an_exact_discriminator_gives_the_ratio() -> None:
    """E_q exp(d) = 1 and E_p exp(-d) = 1 for d = log p / q; the ratio has no gradient."""
    x = torch.linspace(-12, 12, 40_001, dtype=torch.float64)
    p, q, step = _normal(x, 0.3, 1.1), _normal(x, -0.2, 0.9), x[1] - x[0]
    d = (p / q).log()
    assert float((q * d.exp()).sum() * step) == pytest.approx(1, abs=1e-9)
    assert float((p * (-d).exp()).sum() * step) == pytest.approx(1, abs=1e-9)
    asked = torch.zeros(3, 2, requires_grad=True)
    assert not clipped_ratio(asked, 3, 0.1, 20).requires_grad


# -- the method -----------------------------------------------------------------------------------------------------


def task(**changes: object) -> Generation:
    made = Generation().quick().but(**changes)
    if not made.given:
        teach(made, ENGINE, None, lambda: None)  # type: ignore[arg-type,return-value]
    return made


def trained(method: FDistill, on: Generation, **changes: object) -> FDistill:
    Fitter(replace(ENGINE, **changes), on, 0)(method)
    return method


def test_reverse_kl_without_a_gan_has_no_discriminator_and_is_score_distillation() -> None:
    """The first student step is that of g = (D_fake - D_teacher) / mean |x - D_teacher|, written out here."""
    on, method = task(), FDistill(divergence="rkl", gan_weight=0.0)
    method.bind(on, 0)
    assert set(method.players()) == {"student", "fake"}
    x, t = torch.randn(8, 1, 8, 8), torch.full((8,), 0.7)
    made = method.generator(torch.randn(8, 1, 8, 8), torch.arange(8))
    with torch.no_grad():
        noisy = made + 0.7 * x
        real = method.reference.denoiser(noisy, t, torch.arange(8))
        fake = method.fake(noisy, t, torch.arange(8))
    assert torch.equal(real, fake)  # both are the teacher: nothing to learn yet
    assert sorted(method.product().state_dict()) == sorted(method.generator.state_dict())


def test_reverse_kl_with_a_gan_weighs_every_sample_alike() -> None:
    """h = 1 to the bit whatever the discriminator says: DMD2."""
    on = task()
    one, other = (
        FDistill(divergence="rkl", ratio_high=20.0),
        FDistill(divergence="rkl", ratio_high=2.0, memory=0.0),
    )
    assert same(weights_of(trained(one, on).student), weights_of(trained(other, on).student))
    third = trained(FDistill(divergence="kl"), on)
    assert not same(weights_of(one.student), weights_of(third.student))


def test_players_take_turns() -> None:
    on, method, seen = task(), FDistill(period=3), []
    own = method.updates

    def watched(batch):  # type: ignore[no-untyped-def]
        flow, answer = own(batch), None
        while True:
            try:
                ask = flow.send(answer)
            except StopIteration:
                return
            seen.append((batch.clock.step, getattr(ask, "player", "mean")))
            answer = yield ask

    method.updates = watched  # type: ignore[method-assign]
    trained(method, on)
    turns = {step: [player for s, player in seen if s == step] for step, _ in seen}
    assert turns[0] == turns[1] == turns[3] == ["fake", "discriminator"]
    assert turns[2] == turns[5] == ["mean", "mean", "student"]


@pytest.mark.parametrize("changes", [{"data": "eight-gaussians"}, {"process": "cosine"}, {"process": "flow"}])
def test_it_runs_on_points_and_on_every_process(changes: dict) -> None:
    on = task(**changes)
    product = trained(FDistill(r1_weight=1.0), on).product()
    assert isinstance(product, Sampler)
    assert product.evaluations == 1
    assert math.isfinite(on.score(product, "test", Runtime())[on.metric])


def test_it_runs_on_a_diffusers_teacher_and_on_a_users_own() -> None:
    library = pytest.importorskip("diffusers")
    model = library.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        num_class_embeds=11,
    )
    mine = build_denoiser_network("mlp:16x2", shape=(1, 8, 8), classes=10, seed=3)
    holder = nn.Module()
    holder.inner, holder.forward = mine, mine.forward  # type: ignore[assignment]
    for teacher, taps in [
        (Denoiser(wrap(model), "linear", "eps", classes=10, clock="index"), ()),
        (Denoiser(holder, "edm", "edm", classes=10), ("inner.blocks.1",)),
    ]:
        on = Generation().quick().using(teacher=teacher)
        on.check(0, True)
        before = copy.deepcopy(teacher.state_dict())
        product = trained(FDistill(taps=taps), on, steps=4).product()
        assert all(torch.equal(before[key], value) for key, value in teacher.state_dict().items())
        assert torch.isfinite(product(torch.randn(3, 1, 8, 8), torch.arange(3))).all()


def test_the_calibration_is_drawn() -> None:
    method = trained(FDistill(), task())
    assert "<svg" in method.figures()[0]["svg"]
    assert FDistill(divergence="rkl", gan_weight=0.0).figures() == []


def test_recall_is_what_the_claim_is_scored_by() -> None:
    on = Coverage().quick()
    teach(on, ENGINE, None, lambda: None)  # type: ignore[arg-type,return-value]
    sampler = on.make_teacher().module
    assert set(on.score(sampler, "validation", Runtime())) == {"recall"}
    found = on.score(sampler, "test", Runtime())
    assert on.higher_is_better
    assert 0 <= found[on.metric] <= 1
    assert "per_sample" not in found


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"gan_weight": -1.0}, "--method.gan-weight is -1.0: pass 0 or more"),
        ({"period": 1}, "--method.period is 1: pass 2 or more"),
        ({"bins": 0}, "--method.bins is 0: pass 1 or more"),
        ({"memory": 1.0}, "--method.memory is 1.0: pass a number from 0 to 1 (itself excluded)"),
        ({"ratio_low": 30.0}, "--method.ratio-low 30 is not below ratio-high 20: pass less"),
        ({"time_low": 9.0}, "--method.time-low 9 is not below time-high 5: pass less"),
        ({"logit_clip": 0.0}, "--method.logit-clip is 0.0: pass a number above 0"),
    ],
)
def test_mistakes_are_one_line(changes: dict, line: str) -> None:
    with pytest.raises(UserError) as told:
        FDistill(**changes).check()
    assert str(told.value) == line


def test_the_range_of_times_follows_the_process() -> None:
    method = FDistill()
    for name, wanted in (("edm", (0.02, 5.0)), ("cosine", (0.02, 0.98)), ("flow", (0.02, 0.98))):
        network = build_denoiser_network("mlp:8x1", shape=(2,), classes=0, seed=0)
        letter = {"edm": "edm", "cosine": "v", "flow": "velocity"}[name]
        method.reference = Sampler(Denoiser(network, NAMED[name], letter), None)  # type: ignore[arg-type]
        assert method.limits == wanted
        drawn = method._times(torch.tensor([0.0, 1.0], dtype=torch.float64))
        assert sorted(drawn.tolist()) == pytest.approx(sorted(wanted))

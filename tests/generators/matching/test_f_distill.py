"""f-distill: its gradient on known laws, its equality with DMD2, its turns, and what it refuses."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stillroom.engine import Engine, Watcher
from stillroom.errors import UserError
from stillroom.fitter import Fitter
from stillroom.generators.generation import Generation
from stillroom.generators.matching.f_distill import Coverage, FDistill
from stillroom.generators.parts.denoiser import Denoiser
from stillroom.generators.parts.matching import divergence_weight
from stillroom.generators.parts.process import NAMED
from stillroom.generators.parts.sampler import Plan, Sampler
from stillroom.generators.undistilled import FewSteps
from stillroom.method import Batch, Clock, Mean, Noise, Update, Updates
from stillroom.models.denoisers import build_denoiser_network
from stillroom.models.denoisers.library import wrap
from stillroom.optim import Recipe
from stillroom.runtime import Runtime
from stillroom.teaching import teach
from toys import same, weights_of

ENGINE = Engine(steps=6, batch_size=16, recipe=Recipe("adamw", lr=1e-3), evaluate_every=0)


# -- the theorem ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("rkl", (-0.09606, -0.20508)),
        ("kl", (-0.09655, -0.23672)),
        ("js", (-0.04782, -0.10805)),
        ("chi2", (-0.19803, -0.58452)),
    ],
)
def test_the_gradient_of_a_divergence_on_known_laws(name: str, wanted: tuple[float, float]) -> None:
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
    h = divergence_weight((p / q).detach(), name)  # type: ignore[arg-type,union-attr]
    pull = (h * (score_q - score_p)).detach()
    mean_z = s * (x.detach() - m) / spread**2  # E[z | x_t], what dx_t / ds is
    found = (float((density * pull).sum()), float((density * pull * mean_z).sum()))
    assert found == pytest.approx(wanted, abs=2e-5)


def _normal(x: Tensor, mean: float, std: float) -> Tensor:
    return (-0.5 * ((x - mean) / std) ** 2).exp() / (std * math.sqrt(2 * math.pi))


@pytest.mark.parametrize(
    ("name", "mean", "spread"), [("rkl", 2.0, 0.3), ("neyman", 2.0, 0.3), ("kl", 0.0, 2.02)]
)
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
        h = divergence_weight((log_p - log_q).clamp(-40, 12).exp(), name)  # type: ignore[arg-type]
        h = h / (density * h).sum()
        pull = density * h * (-z / s - score_p)
        m, s = m - 0.01 * float(pull.sum()), max(0.05, s - 0.01 * float((pull * z).sum()))
    assert m == pytest.approx(mean, abs=0.1)
    assert s == pytest.approx(spread, abs=0.1)


# -- the method -----------------------------------------------------------------------------------------------------


def task(**changes: Any) -> Generation:
    made = Generation().quick().but(**changes)
    teach(made, ENGINE, None, Watcher)
    return made


def trained(method: FDistill, on: Generation, **changes: Any) -> FDistill:
    Fitter(replace(ENGINE, **changes), on, 0)(method)
    return method


@dataclass(eq=False)
class Plain(FDistill):
    """DMD2 as its paper has it, and DMD where the GAN's weight is 0: written out, with nothing of a ratio in it."""

    name: ClassVar[str] = "plain-dmd2"
    listed: ClassVar[bool] = False

    def updates(self, batch: Batch) -> Updates:
        own, c, shape = batch.noise, batch.y, batch.x.shape[1:]
        live = batch.clock.step % 2 == 1
        with torch.set_grad_enabled(live):
            made = self.student(80.0 * own.normal(*shape), torch.tensor(80.0), c)
        x, t = self.noisy(made, own, shape)
        adversarial = self.gan_weight > 0
        if not live:
            yield Update("fake", (self.fake(x, t, c) - made).square().mean(), items=len(batch))
            if adversarial:
                real, s = self.noisy(batch.x, own, shape)
                fakes, reals = self.judged(x, t, c)[1], self.judged(real, s, c)[1]
                loss = F.softplus(-reals).mean() + F.softplus(fakes).mean()
                yield Update("discriminator", loss, items=len(batch))
            return
        with torch.no_grad():
            fake = self.fake(x, t, c)
        real, logits = self.judged(x, t, c) if adversarial else (self.real.denoiser(x, t, c), None)
        scale = (made - real).abs().flatten(1).mean(1) + 1e-6
        goal = (made - (1 / scale).view(-1, 1, 1, 1) * (fake - real)).detach()
        loss = 0.5 * (made - goal).square().mean()
        if logits is not None:
            yield Mean(torch.zeros(len(batch)))
            loss = loss + self.gan_weight * F.softplus(-logits).mean()
        yield Update("student", loss, items=len(batch))

    def noisy(self, x0: Tensor, own: Noise, shape: torch.Size) -> tuple[Tensor, Tensor]:
        low, high = 0.02 ** (1 / 7), 5.0 ** (1 / 7)
        t = (high + own.uniform() * (low - high)) ** 7.0
        return x0 + t.view(-1, 1, 1, 1) * own.normal(*shape), t

    def judged(self, x: Tensor, t: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        assert self.tapped is not None
        real, features = self.tapped(x, t, c)
        return real, self.discriminator(features)


@pytest.mark.parametrize("gan_weight", [0.0, 0.01])
def test_reverse_kl_is_score_distillation_to_the_bit(gan_weight: float) -> None:
    """Plain DMD without a GAN, DMD2 with one: whatever the discriminator says of the ratio."""
    on = task()
    ours = trained(FDistill(divergence="rkl", gan_weight=gan_weight, memory=0.5, ratio_high=2.0), on)
    plain = trained(Plain(divergence="rkl", gan_weight=gan_weight), on)
    assert set(ours.players()) == {"student", "fake"} | ({"discriminator"} if gan_weight else set())
    for name, module in ours.players().items():
        assert same(weights_of(module), weights_of(plain.players()[name])), name
    other = trained(FDistill(divergence="kl", gan_weight=gan_weight), on)
    assert not same(weights_of(ours.student), weights_of(other.student))


def test_a_weightless_gan_changes_nothing_of_reverse_kl() -> None:
    on = task()
    tiny = trained(FDistill(divergence="rkl", gan_weight=1e-30), on)
    none = trained(FDistill(divergence="rkl", gan_weight=0.0), on)
    assert same(weights_of(tiny.student), weights_of(none.student))


def stepped(method: FDistill, on: Generation, step: int) -> list[Any]:
    """What `method` yields at `step` for eight samples, with means answered."""
    method.bind(on, 0)
    noise = Noise(lambda draw: draw, slice(0, 8), 8, torch.device("cpu"))
    x, y = on.train().fetch(torch.arange(8), None)
    assert y is not None
    flow, answer, asks = method.updates(Batch(x, y, torch.arange(8), Clock(step, 6, 0, 1), noise)), None, []
    while True:
        try:
            asks.append(flow.send(answer))
        except StopIteration:
            method.unbind()
            return asks
        answer = asks[-1].values.mean(0) if isinstance(asks[-1], Mean) else None


@pytest.mark.parametrize("divergence", ["js", "kl", "neyman"])
def test_no_gradient_flows_through_the_weight(divergence: Any) -> None:
    """The heads that make the ratio get none; the student's is that of a constant h, a mean of 1 over samples."""
    method = FDistill(divergence=divergence, gan_weight=0.0)
    update = stepped(method, task(), 1)[-1]
    heads = torch.autograd.grad(update.loss, list(method.discriminator.parameters()), retain_graph=True)
    assert all(not g.any() for g in heads)
    assert update.logs["h/least"] < 1 < update.logs["h/largest"]


def test_the_gan_reaches_the_student_through_the_frozen_teacher() -> None:
    """The teacher and the fake network agree at first: all that moves the student is the discriminator."""
    on, found = task(), {}
    for gan_weight in (0.01, 0.02):
        method = FDistill(gan_weight=gan_weight)
        loss = stepped(method, on, 1)[-1].loss
        found[gan_weight] = torch.autograd.grad(loss, list(method.student.parameters()), allow_unused=True)
    pairs = [(a, b) for a, b in zip(found[0.01], found[0.02], strict=True) if a is not None]
    assert any(a.any() for a, _ in pairs)
    assert all(torch.allclose(2 * a, b, rtol=1e-4, atol=1e-9) for a, b in pairs)


def test_the_penalty_counts_and_is_zero_without_a_move() -> None:
    on = task()
    plain, still, moved = (
        stepped(FDistill(r1_weight=weight, r1_noise=noise), on, 0)[-1].loss.item()
        for weight, noise in ((0.0, 0.1), (50.0, 1e-9), (50.0, 0.5))
    )
    assert still == pytest.approx(plain, abs=1e-6)
    assert moved > plain + 1e-5


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


@pytest.mark.parametrize(
    "changes",
    [
        {"data": "eight-gaussians"},
        {"process": "cosine"},
        {"process": "flow"},
        {"process": "linear", "prediction": "eps"},
        {"conditional": False},
        {"guidance": 2.0},
    ],
)
def test_it_runs_on_points_on_every_process_and_guided(changes: dict) -> None:
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


def test_calibration_weights_and_accuracy_are_drawn_as_far_as_there_are_any() -> None:
    on = task()
    drawn = trained(FDistill(), on).figures()
    assert [figure["title"] for figure in drawn] == ["Density ratio", "Weights", "Discriminator"]
    assert all("<svg" in figure["svg"] for figure in drawn)
    reverse = trained(FDistill(divergence="rkl"), on).figures()
    assert [figure["title"] for figure in reverse] == ["Density ratio", "Discriminator"]
    assert trained(FDistill(divergence="rkl", gan_weight=0.0), on).figures() == []


def test_what_persists_comes_back() -> None:
    on, method, other = task(), FDistill(), FDistill()
    trained(method, on)
    kept = {name: value.clone() for name, value in method.state().items()}
    other.bind(on, 1)
    other.load_state(kept)
    assert same(kept, other.state())
    assert not torch.equal(kept["level"], torch.ones(10))
    other.unbind()


def test_the_teacher_is_left_without_hooks_and_its_guidance_is_the_tasks() -> None:
    on, method = task(guidance=2.0), FDistill()
    trained(method, on)
    assert method.real.plan.guidance == 2.0
    network = on.make_teacher().module.denoiser.network
    assert not any(module._forward_hooks for module in network.modules())


def test_its_opponent_asks_the_teacher_once() -> None:
    opponent = FDistill().baseline(task())
    assert isinstance(opponent, FewSteps)
    assert opponent.steps == 1


@pytest.mark.parametrize("data", ["digits", "eight-gaussians"])
def test_recall_is_what_the_claim_is_scored_by(data: str) -> None:
    on = Coverage().quick().but(data=data)
    teach(on, ENGINE, None, Watcher)
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
        (
            {"divergence": "tv"},
            "--method.divergence 'tv' is unknown: pass one of rkl, sf, js, sh, kl, jf, neyman, chi2",
        ),
    ],
)
def test_mistakes_are_one_line(changes: dict, line: str) -> None:
    with pytest.raises(UserError) as told:
        FDistill(**changes).check()
    assert str(told.value) == line


def test_mistakes_that_show_at_the_task_are_one_line() -> None:
    flow = task(process="flow")
    with pytest.raises(UserError, match=r"^--method.time-low is 2 and process 'flow' is matched up to 0.98"):
        FDistill(time_low=2.0).bind(flow, 0)
    with pytest.raises(UserError, match=r"^--method.taps 'block.0' is no module of ResidualMLP.*blocks.0"):
        FDistill(taps=("block.0",)).bind(flow, 0)


def test_the_range_of_times_follows_the_process() -> None:
    method = FDistill()
    for name, wanted in (("edm", (0.02, 5.0)), ("cosine", (0.02, 0.98)), ("flow", (0.02, 0.98))):
        network = build_denoiser_network("mlp:8x1", shape=(2,), classes=0, seed=0)
        letter = {"edm": "edm", "cosine": "v", "flow": "velocity"}[name]
        method.reference = Sampler(Denoiser(network, NAMED[name], letter), Plan())
        assert method.limits == wanted
        drawn = method._times(torch.tensor([0.0, 1.0], dtype=torch.float64))
        assert sorted(drawn.tolist()) == pytest.approx(sorted(wanted))

"""AGD: what is recorded, a base that stays what it was, a closed form, and all kinds of teachers."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import pipelines
from stillroom.engine import Engine, Watcher
from stillroom.errors import UserError
from stillroom.fitter import Fitter
from stillroom.generators.parts import guided_points
from stillroom.generators.parts.denoiser import Denoiser
from stillroom.generators.parts.guided_points import GuidedPoints
from stillroom.generators.parts.process import NAMED, along
from stillroom.generators.parts.sampler import Plan, Sampler
from stillroom.generators.parts.solvers import ancestral_step
from stillroom.generators.steering.adapter_guidance_distillation import (
    AdapterGuidanceDistillation,
    AdapterSweep,
    noise_share,
    regression,
    turn,
)
from stillroom.generators.undistilled import FewSteps
from stillroom.models.denoisers import build_denoiser_network
from stillroom.models.denoisers.adapters import AdaptedNetwork, Told
from stillroom.models.denoisers.adapting import load_adapters, weights_digest
from stillroom.models.denoisers.library import wrap
from stillroom.optim import Recipe
from stillroom.runtime import Runtime
from stillroom.seeds import seed_of
from stillroom.teaching import teach
from stillroom.workflow import Job, execute
from toys import batch_of, same, updates_of, weights_of

ENGINE = Engine(steps=6, batch_size=16, recipe=Recipe("adamw", lr=1e-2), evaluate_every=0)
SMALL = {"trajectories": 12, "trajectory_steps": 4}


def task(**changes: Any) -> AdapterSweep:
    usual = {"teacher": "mlp:16x2", "sweep_samples": 50, "score_samples": 50, "along_samples": 8}
    made = AdapterGuidanceDistillation.default_task().quick().but(**(usual | changes))
    teach(made, ENGINE, None, Watcher)
    return made


def method(**options: Any) -> AdapterGuidanceDistillation:
    return AdapterGuidanceDistillation(**(SMALL | options))


def trained(made: AdapterGuidanceDistillation, on: Any, **changes: Any) -> AdapterGuidanceDistillation:
    made.check()
    on.check(0, True)
    Fitter(replace(ENGINE, **changes), on, 0)(made)
    return made


def teacher(process: str = "cosine", prediction: str = "eps", classes: int = 3, **plan: Any) -> Sampler:
    """A perceptron on points with no weight at zero."""
    network = build_denoiser_network("mlp:16x2", shape=(2,), classes=classes, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    denoiser = Denoiser(network, process, prediction, classes=classes)
    spacing: Any = "karras" if process == "edm" else "uniform"
    return Sampler(denoiser.requires_grad_(False), Plan("ddim", spacing=spacing, **plan)).eval()


def points(made: Sampler, count: int = 5, solver: Any = "ddim", **options: Any) -> dict[str, Tensor]:
    """All points, by trajectory and step."""
    steps = made.plan.steps
    found = GuidedPoints(made, (2,), count, solver, 1.0, 6.0, **options).make(range(count * steps))
    return {name: value.float().unflatten(0, (count, steps)) for name, value in found.items()}


# -- what is recorded -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("process", "prediction"), [("cosine", "eps"), ("cosine", "v"), ("flow", "velocity"), ("edm", "x0")]
)
def test_recorded_states_follow_the_sampler(process: str, prediction: str) -> None:
    """Each input is what DDIM makes of the one before and its recorded output: the rest is half precision."""
    made = teacher(process, prediction, steps=20)
    found, times, law = points(made), made.times(), NAMED[process]
    assert found["input"].shape == found["output"].shape == (5, 20, 2)
    for k, (t, s) in enumerate(pairwise(times)):
        if s == 0:
            break
        a, b, c, d = (float(f(u)) for u in (t, s) for f in (law.alpha, law.sigma))
        if prediction == "eps":
            of_x, of_y = c / a, d - c * b / a
        elif prediction == "v":
            of_x, of_y = c * a + d * b, d * a - c * b
        elif prediction == "velocity":
            of_x, of_y = 1.0, float(s - t)
        else:
            of_x, of_y = d / b, c - a * d / b
        x, y = found["input"][:, k], found["output"][:, k]
        wanted = of_x * x + of_y * y
        bound = 2**-11 * (abs(of_x) * x.abs() + abs(of_y) * y.abs() + wanted.abs()) + 1e-5
        assert ((found["input"][:, k + 1] - wanted).abs() <= 1.1 * bound).all(), k


def test_ancestral_trajectories_follow_their_own_noise() -> None:
    made = teacher(steps=6)
    found, times = points(made, solver="ddpm"), made.times()
    draws = [torch.Generator().manual_seed(seed_of(guided_points.POINT, i)) for i in range(5)]
    w = torch.stack([1 + 5 * torch.rand((), generator=draw) for draw in draws])
    assert torch.equal(found["scale"], w.unsqueeze(1).expand(5, 6))

    def noise() -> Tensor:
        return torch.stack([torch.randn(2, generator=draw) for draw in draws])

    x = made.scaled(noise())
    for k, (t, s) in enumerate(pairwise(times)):
        assert torch.allclose(found["input"][:, k], x, rtol=1e-3, atol=1e-3)
        with torch.no_grad():
            at = made.denoiser.guided(x, t.float().expand(5), torch.tensor([0, 1, 2, 0, 1]), w)
        x = ancestral_step(at, s, noise())


@pytest.mark.parametrize(("process", "prediction"), [("cosine", "eps"), ("edm", "edm"), ("flow", "x0")])
def test_outputs_are_guided_in_the_networks_own_letter(process: str, prediction: str) -> None:
    made = teacher(process, prediction, steps=5)
    network, found = made.denoiser.network, points(made)
    labels = found["condition"].long()
    assert labels.tolist() == [[i % 3] * 5 for i in range(5)]
    assert (found["scale"] == found["scale"][:, :1]).all()
    assert found["scale"].min() >= 1
    assert found["scale"].max() <= 6
    for k in range(5):
        x, time, w = found["input"][:, k], found["time"][:, k], found["scale"][:, k]
        none = torch.full((5,), 3)
        without, with_it = network(x, time, none, None), network(x, time, labels[:, k], None)
        wanted = without + along(w, x) * (with_it - without)
        assert torch.allclose(found["output"][:, k], wanted, rtol=2e-3, atol=2e-2)


def test_at_scale_one_the_target_is_the_conditional_output() -> None:
    made = teacher(steps=8)
    found = GuidedPoints(made, (2,), 4, "ddim", 1.0, 1.0).make(range(32))
    with torch.no_grad():
        said = made.denoiser.network(found["input"].float(), found["time"], found["condition"], None)
    assert torch.allclose(found["output"].float(), said, rtol=1e-3, atol=2e-3)
    assert found["input"].dtype == found["output"].dtype == torch.float16


def test_what_a_trajectory_draws_is_its_own() -> None:
    made = teacher(steps=4)
    recorder = GuidedPoints(made, (2,), 6, "ddpm", 1.0, 6.0)
    whole, part = recorder.make(range(24)), recorder.make(range(8, 16))
    assert all(
        torch.allclose(whole[name][8:16].float(), value.float(), atol=1e-3) for name, value in part.items()
    )
    assert torch.equal(whole["scale"][8:16], part["scale"])


def test_a_guidance_interval_is_recorded_as_it_is_sampled() -> None:
    made = teacher(steps=6).but(interval=(0.5, 2.0))
    found = points(made)
    level = made.denoiser.process.ratio(found["t"][0])
    outside = (level < 0.5) | (level > 2.0)
    assert outside.any()
    assert not outside.all()
    for k in range(6):
        x, time, c = found["input"][:, k], found["time"][:, k], found["condition"][:, k].long()
        conditional = made.denoiser.network(x, time, c, None)
        near = torch.allclose(found["output"][:, k], conditional, rtol=2e-3, atol=5e-3)
        assert near == bool(outside[k])


def test_noised_inputs_are_data_of_the_class_at_the_same_times_and_scales() -> None:
    from stillroom.data import TensorSource

    made = teacher(steps=10)
    labels = torch.arange(300) % 3
    data = TensorSource(10.0 * (labels.unsqueeze(1) + 1).float().expand(300, 2), labels)
    on, off = points(made, 6), points(made, 6, data=data)
    for name in ("scale", "time", "t", "condition"):
        assert torch.equal(on[name], off[name])
    last = off["t"][0, -1]
    alpha, sigma = NAMED["cosine"].alpha(last), NAMED["cosine"].sigma(last)
    clean = 10.0 * (off["condition"][:, -1] + 1)
    noise = (off["input"][:, -1] - alpha * clean.unsqueeze(1)) / sigma
    assert noise.abs().max() < 4
    assert noise.std() > 0.5
    assert not torch.allclose(on["input"], off["input"], atol=0.1)


def test_points_are_kept_and_told_apart() -> None:
    on = task()
    sources = [
        method(**options).source(on) for options in ({}, {"inputs": "noised"}, {"trajectory_solver": "ddpm"})
    ]
    assert [len(source) for source in sources] == [48] * 3
    assert len({source.store.folder for source in sources}) == 3
    assert method().source(on).store.folder == sources[0].store.folder
    x, y = sources[0].subset(torch.tensor([5, 40])).fetch(torch.tensor([1]), None)
    assert torch.equal(x[0, 0], sources[0].store.rows("input")[40])
    assert torch.equal(x[0, 1], sources[0].store.rows("output")[40])
    assert y is not None
    assert y.tolist() == [40 // 4 % 10]


# -- losses ------------------------------------------------------------------------------------------------------------


def test_losses_by_hand() -> None:
    said, wanted = torch.tensor([[1.0, 3.0], [0.0, 0.0]]), torch.tensor([[0.0, 1.0], [2.0, 0.0]])
    assert regression(said, wanted, "mse").tolist() == [2.5, 2.0]
    assert regression(said, wanted, "l1").tolist() == [1.5, 1.0]
    assert regression(said, wanted, "sigma", torch.tensor([0.5, 2.0])).tolist() == [1.25, 4.0]
    turned = (
        torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]),
        torch.tensor([[3.0, 0.0], [0.0, 2.0], [-1.0, 0.0]]),
    )
    assert turn(*turned).tolist() == pytest.approx([0.0, 0.5, 1.0])
    t = torch.tensor([0.1, 0.7])
    assert torch.allclose(noise_share(NAMED["linear"], t), NAMED["linear"].sigma(t))
    assert noise_share(NAMED["edm"], torch.tensor([1.0])).item() == pytest.approx(0.5**0.5)
    assert noise_share(NAMED["flow"], torch.tensor([0.5])).item() == pytest.approx(0.5**0.5)


@pytest.mark.parametrize("loss", ["mse", "l1", "sigma", "cosine"])
def test_each_loss_is_what_it_says_at_the_start(loss: Any) -> None:
    """At the start the student is the conditional model, so the loss is known from what was recorded."""
    on, made = task(), method(loss=loss)
    source = made.source(on)
    made.bind(on, 0)
    index = torch.arange(40)
    x, y = source.fetch(index, None)
    found = updates_of(made, batch_of(x, y, index))[0].loss
    rows = {name: source.store.rows(name) for name in ("time", "t")}
    with torch.no_grad():
        said = made.network.base(x[:, 0], rows["time"][:40], y, None)
    error = (said - x[:, 1]).flatten(1)
    squares = error.square().mean(1)
    cosine = nn.functional.cosine_similarity(said.flatten(1), x[:, 1].flatten(1))
    wanted = {
        "mse": squares,
        "l1": error.abs().mean(1),
        "sigma": NAMED["cosine"].sigma(rows["t"][:40]) * squares,
        "cosine": 0.5 * (1 - cosine) * squares,
    }
    assert found.item() == pytest.approx(wanted[loss].mean().item(), rel=1e-5)


# -- the closed form ---------------------------------------------------------------------------------------------------


class Linear(nn.Module):
    """F(x, t, c) = W x + b, and v more where there is a condition (label 0; 1 is none)."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Linear(3, 3)
        self.register_buffer("v", torch.tensor([0.7, -1.2, 0.4]))

    def forward(self, x: Tensor, time: Tensor, condition: Tensor, guidance: Tensor | None) -> Tensor:
        return self.block(x) + (condition == 0).to(x.dtype).unsqueeze(-1) * self.v

    def embed_time(self, time: Tensor) -> Tensor:
        return time.unsqueeze(-1)

    def embed_condition(self, condition: Tensor) -> Tensor:
        return condition.unsqueeze(-1).double()


class Affine(nn.Module):
    """An offset V (w, 1): the scalar encoder replaced by the scale and a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.V = nn.Parameter(torch.zeros(3, 2))

    def forward(self, h: Tensor, told: Told) -> Tensor:
        pair = torch.stack([told.scale, torch.ones_like(told.scale)], -1)
        return (pair @ self.V.T).unsqueeze(1)


def test_the_optimum_of_a_linear_toy_is_its_offset() -> None:
    """The best offset is (w - 1) v exactly: V must become [v, -v]."""
    base = Linear().double()
    denoiser = Denoiser(base, "cosine", "eps", classes=1).double()
    on = AdapterSweep(teacher="none").using(teacher=denoiser, data=torch.randn(60, 3))
    made = method(blocks=("block",))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(on), "space", property(lambda self: type("Space", (), {"shape": (3,)})()))
        made.bind(on, 0)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 3, generator=generator, dtype=torch.float64)
    w = 1 + 5 * torch.rand(64, generator=generator, dtype=torch.float64)
    y = torch.zeros(64, dtype=torch.int64)
    with torch.no_grad():
        none = torch.ones_like(y)
        without, with_it = base(x, w, none, None), base(x, w, y, None)
        wanted = without + w.unsqueeze(1) * (with_it - without)
    made.told = torch.stack([torch.rand(64).double(), w, torch.ones(64).double()])
    made.network.adapters["block"] = Affine().double()
    V = made.network.adapters["block"].V
    optimiser = torch.optim.LBFGS([V], max_iter=100, tolerance_grad=1e-12, tolerance_change=1e-14)

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = updates_of(made, batch_of(torch.stack([x, wanted], 1), y))[0].loss
        loss.backward()
        return loss

    optimiser.step(closure)
    assert V[:, 0].tolist() == pytest.approx(base.v.tolist(), abs=1e-5)
    assert V[:, 1].tolist() == pytest.approx((-base.v).tolist(), abs=1e-5)


# -- the base and the student -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mlp:16x2", "dit:16x1@2"])
def test_an_untrained_student_is_the_conditional_model_at_every_scale(kind: str) -> None:
    on, made = task(teacher=kind), method()
    made.bind(on, 0)
    noise, _, condition = on.draw(12, "validation", torch.device("cpu"))
    plain = FewSteps(steps=on.steps, guidance=1.0).run(on, Fitter(ENGINE, on, 0)).product
    product = made.product().eval()
    assert product.evaluations == on.steps
    assert on.make_teacher().module.at(2.0).evaluations == 2 * on.steps
    with torch.no_grad():
        for scale in (1.0, 2.0, 6.0):
            assert torch.equal(product.at(scale)(noise, condition), plain(noise, condition))


def test_training_leaves_the_base_as_it_was() -> None:
    on = task(teacher="dit:16x1@2")
    network = on.make_teacher().module.denoiser.network
    noise, _, condition = on.draw(12, "validation", torch.device("cpu"))
    guided = on.make_teacher().module.at(4.0)
    with torch.no_grad():
        digest, before = weights_digest(network), guided(noise, condition)
    made = trained(method(), on)
    assert made.network.base is network
    assert weights_digest(network) == digest
    assert all(p.grad is None and not p.requires_grad for p in network.parameters())
    with torch.no_grad():
        assert torch.equal(guided(noise, condition), before)
        product = made.product()
        samples = [product.at(scale)(noise, condition) for scale in (1.0, 4.0)]
        assert not torch.equal(*samples)
    assert list(made.players()) == ["student"]
    own = {id(p) for p in made.players()["student"].parameters()}
    assert not own & {id(p) for p in network.parameters()}
    for adapter in made.network.adapters.values():
        last = list(adapter.parameters())[-2]
        assert last.any()


def test_training_brings_the_student_nearer_to_guidance() -> None:
    """After a moment of training the error to the guided teacher has more than halved."""
    on = task(data="eight-gaussians", teacher="mlp:48x2", teacher_steps=200, scales=(1.0, 2.0, 4.0), steps=10)
    on = on.but(reference_steps=10, sweep_samples=100, prediction="eps")
    teach(on, ENGINE, None, Watcher)
    start = method(trajectories=100, trajectory_steps=10)
    start.bind(on, 0)
    before = on.score(start.product(), "validation", Runtime())["reference_mse"]
    engine = replace(ENGINE, steps=250, batch_size=128, recipe=Recipe("adamw", lr=5e-3, weight_decay=0.0))
    made = method(trajectories=100, trajectory_steps=10)
    Fitter(engine, on, 0)(made)
    after = on.score(made.product(), "validation", Runtime())["reference_mse"]
    assert after < 0.5 * before


def test_the_schedule_is_near_the_authors() -> None:
    """Theirs, for 200 steps: LinearLR from 1e-4 over a tenth, then cosine to 1e-4 of the learning rate."""
    recipe = AdapterGuidanceDistillation.default_engine().recipe
    theirs = {0: 0.0001, 10: 0.50005, 20: 1.0, 65: 0.853568, 110: 0.50005, 155: 0.146532, 199: 0.000176}
    for step, factor in theirs.items():
        assert recipe.factor(step, 200) == pytest.approx(factor, abs=1 / 20 if step < 20 else 2e-4)
    assert (recipe.optimizer, recipe.weight_decay, recipe.ema) == ("adamw", 0.0, 0.0)


# -- teachers of all kinds ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({"data": "eight-gaussians", "process": "edm", "prediction": "auto", "spacing": "karras"}, {}),
        ({"process": "flow", "prediction": "auto"}, {"architecture": "offset", "loss": "cosine"}),
        ({"teacher": "unet:8-16", "process": "linear"}, {"inputs": "noised", "loss": "sigma"}),
        ({"teacher": "dit:16x1@2"}, {"trajectory_solver": "ddpm"}),
    ],
)
def test_it_runs_on_points_and_on_every_network(changes: dict[str, Any], options: dict[str, Any]) -> None:
    on = task(**changes)
    made = trained(method(**options), on)
    found = on.score(made.product(), "test", Runtime())
    assert {"error near noise", "error near data"} <= set(found)
    assert all(math.isfinite(v) for v in found.values() if isinstance(v, float))


class Mine(nn.Module):
    """A user's own network of points, of convolutions and an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.classes, self.clock = nn.Embedding(4, 6), nn.Linear(1, 5)
        self.stem, self.tail = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 1, 3, padding=1)
        self.mix = nn.Linear(6, 4)

    def forward(self, x: Tensor, time: Tensor, condition: Tensor, guidance: Tensor | None) -> Tensor:
        known = self.mix(self.classes(condition) + time.unsqueeze(-1))
        return self.tail(torch.tanh(self.stem(x) + known.unsqueeze(-1).unsqueeze(-1)))

    def embed_time(self, time: Tensor) -> Tensor:
        return self.clock(time.unsqueeze(-1))

    def embed_condition(self, condition: Tensor) -> Tensor:
        return self.classes(condition)


def test_a_users_own_network_and_data() -> None:
    images, labels = torch.rand(90, 1, 8, 8), torch.arange(90) % 3
    own = Denoiser(Mine(), "cosine", "v", classes=3)
    on = AdapterGuidanceDistillation.default_task().quick().using(teacher=own, data=(images, labels))
    on = on.but(features="pixels", sweep_samples=50)
    product = trained(method(blocks=("st*",), architecture="cross_attention"), on).product()
    network = product.denoiser.network
    assert isinstance(network, AdaptedNetwork)
    assert list(network.sites.blocks) == ["stem"]
    assert network.sites.blocks["stem"] == (1, 4)
    assert torch.isfinite(product.at(3.0)(torch.randn(3, 1, 8, 8), torch.arange(3))).all()
    with pytest.raises(UserError, match=r"^--method.blocks is empty and Mine is none of ours"):
        method().bind(on, 0)


def test_a_pipelines_folder_is_a_teacher(tmp_path: Path) -> None:
    library = pytest.importorskip("diffusers")
    model = library.DiTTransformer2DModel(
        num_attention_heads=1,
        attention_head_dim=16,
        in_channels=1,
        out_channels=2,  # the second half are learnt variances
        num_layers=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=10,
    )
    model.save_pretrained(tmp_path / "transformer")
    library.DDIMScheduler(prediction_type="epsilon").save_pretrained(tmp_path / "scheduler")
    on = task(teacher_weights=str(tmp_path))
    made = trained(method(), on)
    assert list(made.network.sites.blocks) == [f"model.transformer_blocks.{i}.attn1" for i in range(2)]
    assert made.source(on).fetch(torch.tensor([0]), None)[0].shape == (1, 2, 1, 8, 8)


def test_prompts_come_from_a_file(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    text = Denoiser(wrap(pipelines.text_unet()), "linear", "eps", clock="index", null=torch.zeros(5, 12))
    on = task(conditional=False).using(teacher=text)
    prompts = torch.randn(7, 5, 12)
    save_file({"conditions": prompts}, tmp_path / "prompts.safetensors")
    made = method(conditions=str(tmp_path / "prompts.safetensors"))
    trained(made, on)
    y = made.source(on).fetch(torch.tensor([0, 4, 4 * 8]), None)[1]
    assert y is not None
    assert torch.equal(y, prompts[[0, 1, 1]])
    product = made.product()
    with torch.no_grad():
        samples = [product.at(w)(torch.ones(2, 1, 8, 8), prompts[:2]) for w in (1.0, 6.0)]
    assert not torch.equal(*samples)
    save_file({"conditions": prompts[:, :2].contiguous()}, tmp_path / "short.safetensors")
    for options, line in (
        (
            {},
            r"^the teacher's conditions are embeddings, which the data do not hold: pass --method.conditions FILE$",
        ),
        (
            {"conditions": str(tmp_path / "prompts.safetensors"), "inputs": "noised"},
            r"pass --method.inputs trajec",
        ),
        ({"conditions": str(tmp_path / "short.safetensors")}, r"has conditions of \(2, 12\): write a tensor"),
        ({"conditions": str(tmp_path / "none.safetensors")}, r"none.safetensors' cannot be read"),
    ):
        with pytest.raises(UserError, match=line):
            method(**options).bind(on, 0)


# -- what is delivered -------------------------------------------------------------------------------------------------


def test_a_run_leaves_adapters_that_go_alone(tmp_path: Path) -> None:
    on = task(teacher="dit:16x1@2")
    run, product = execute(Job(method(), on, ENGINE, 0), tmp_path / "run")
    student = run.student()
    assert isinstance(student, Sampler)
    noise, _, condition = on.draw(5, "test", torch.device("cpu"))
    with torch.no_grad():
        wanted = student.at(4.0)(noise, condition)
        assert torch.allclose(product.at(4.0)(noise, condition), wanted, atol=1e-6)
        teacher = on.make_teacher().module
        moved = load_adapters(teacher.denoiser.network, run.path / "student" / "adapters")
        assert torch.allclose(
            Sampler(replace_network(teacher.denoiser, moved), teacher.plan).at(4.0)(noise, condition),
            wanted,
            atol=1e-6,
        )
    about = json.loads((run.path / "student" / "adapters" / "adapters.json").read_text())
    assert about["scales"] == [1.0, 6.0]
    assert about["base_digest"] == weights_digest(teacher.denoiser.network)
    text = (run.path / "report.html").read_text()
    assert "along its trajectories" in text
    assert "trainable share" in json.dumps(json.loads((run.path / "result.json").read_text())["arms"])


def replace_network(denoiser: Denoiser, network: nn.Module) -> Denoiser:
    return Denoiser(
        network,
        denoiser.own,
        denoiser.prediction,
        classes=denoiser.classes,
        clock=denoiser.clock,
        takes_guidance=True,
    )


def test_errors_along_trajectories_are_zero_for_guidance_itself() -> None:
    on = task()
    two_passes = FewSteps(steps=on.steps).run(on, Fitter(ENGINE, on, 0)).product
    plain = FewSteps(steps=on.steps, guidance=1.0).run(on, Fitter(ENGINE, on, 0)).product
    times, errors = on.along(two_passes, "validation", Runtime())
    assert times == sorted(times, reverse=True)
    assert max(errors) == 0
    assert min(on.along(plain, "validation", Runtime())[1]) > 0


def test_its_opponent_and_its_claims() -> None:
    opponent = AdapterGuidanceDistillation().baseline(task())
    assert isinstance(opponent, FewSteps)
    assert (opponent.steps, opponent.guidance) == (3, 1.0)
    (claim,) = AdapterGuidanceDistillation.claims()
    assert (claim.task.metric, claim.seeds) == ("reference_mse", 5)
    headline = [(rule.worse, rule.metric) for rule in claim.rules if rule.headline]
    noised = "agd on noised data"
    assert headline == [("no guidance", ""), (noised, "distance at 4"), (noised, "distance at 6")]
    on = task(sweep_samples=60, scales=(1.0, 2.0, 4.0, 6.0))
    found = on.score(on.make_teacher().module, "test", Runtime())
    assert {rule.metric for rule in claim.rules} - {""} <= set(found)


def test_the_default_adapters_are_a_few_per_cent() -> None:
    pytest.importorskip("diffusers")
    on = AdapterGuidanceDistillation.default_task()
    for architecture in ("offset", "cross_attention"):
        made = AdapterGuidanceDistillation(architecture=architecture)
        made.bind(on, 0)
        assert 0.01 < made.network.share < 0.06


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"guidance_low": 0.5}, "--method.guidance-low is 0.5: pass 1 or more"),
        ({"guidance_high": 1.0}, "--method.guidance-high is 1, not above guidance-low 1: pass a larger one"),
        ({"trajectories": 0}, "--method.trajectories is 0: pass 1 or more"),
        ({"hidden": 0}, "--method.hidden is 0: pass 1 or more"),
        ({"scale_multiplier": 0.0}, "--method.scale-multiplier is 0.0: pass a number above 0"),
        ({"loss": "l2"}, "--method.loss 'l2' is unknown: pass one of mse, l1, sigma, cosine"),
    ],
)
def test_mistakes_are_one_line(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError) as told:
        AdapterGuidanceDistillation(**changes).check()
    assert str(told.value) == line


def test_mistakes_that_show_at_the_task_are_one_line() -> None:
    with pytest.raises(UserError, match=r"^adapters sit on the teacher's own network: drop --task.student$"):
        method().bind(task(student="mlp:8x1"), 0)
    made = method()
    made.bind(task(), 0)
    with pytest.raises(UserError, match=r"^the teacher takes the guidance scale as an input already"):
        method().bind(task().using(teacher=made.student), 0)
    bare = Denoiser(build_denoiser_network("mlp:8x1", shape=(1, 8, 8), classes=0, seed=0), "cosine", "v")
    with pytest.raises(UserError, match=r"^guidance is distilled and the teacher is unconditional"):
        method().bind(task().using(teacher=bare), 0)


def test_the_same_seed_twice_and_another() -> None:
    on = task()
    first, again = (weights_of(trained(method(), on).network.adapters) for _ in range(2))
    assert same(first, again)

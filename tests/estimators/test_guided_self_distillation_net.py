"""GT-SD for networks: the loss, the rounds, the estimate and the wrong labels."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stillroom import distill
from stillroom.engine import Engine, Watcher
from stillroom.errors import UserError
from stillroom.estimators.guided_self_distillation import (
    Allowance,
    FirstNetwork,
    FlippedLabels,
    GuidedSelfDistillationNet,
    MixedTargets,
)
from stillroom.estimators.guided_self_distillation import network as net
from stillroom.estimators.guided_self_distillation.formulas import best_mix
from stillroom.fitter import Fitter
from stillroom.method import Method, Result
from stillroom.runtime import Runtime
from toys import batch_of, same, updates_of, weights_of

AUTHORS = {
    1.0: (0.22888453406891987, [0.02147419105843527, 0.006985540572798575, -0.010828979338240114]),
    0.35: (0.12514024147647454, [0.0191871012731656, 0.01762792917302909, 0.007737605996893182]),
    0.0: (0.06927793008054246, [0.017955591388789622, 0.023358446111614757, 0.017734998100426495]),
}
"""The authors' training step on the tensors below: its loss, and the gradient of the weight's first row; float64."""


def linear(k: float) -> nn.Linear:
    layer = nn.Linear(3, 4).double()
    with torch.no_grad():
        layer.weight.copy_(torch.sin(torch.arange(12, dtype=torch.float64) * k + 0.3).view(4, 3))
        layer.bias.copy_(torch.cos(torch.arange(4, dtype=torch.float64) * k))
    return layer


def inputs() -> tuple[Tensor, Tensor]:
    return torch.sin(torch.arange(15, dtype=torch.float64) * 0.7).view(5, 3), torch.tensor([0, 3, 1, 2, 3])


class Recording(Fitter):
    """Keeps what was fitted, by stage."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.methods: dict[str, Any] = {}
        self.products: dict[str, nn.Module] = {}

    def __call__(self, method: Method, stage: str = "", **changes: Any) -> Result:
        result = super().__call__(method, stage, **changes)
        self.methods[stage], self.products[stage] = method, copy.deepcopy(result.product)
        return result


def run(method: GuidedSelfDistillationNet, task: Any = None, **options: Any) -> tuple[Recording, Result]:
    task = task or method.default_task().quick()
    fitter = Recording(replace(method.default_engine(), epochs=20, evaluate_every=0), task, 0, **options)
    return fitter, method.run(task, fitter)


# -- the loss ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mix", AUTHORS)
def test_the_loss_has_the_authors_numbers(mix: float) -> None:
    x, y = inputs()
    student, teacher = linear(1.3), None if mix == 1 else linear(2.1)(x)
    loss = net.mixed_loss(student(x), y, teacher, mix) + 1e-4 * net.sum_of_norms(student)
    loss.backward()
    assert student.weight.grad is not None
    assert loss.item() == pytest.approx(AUTHORS[mix][0], rel=1e-12)
    torch.testing.assert_close(student.weight.grad[0].tolist(), AUTHORS[mix][1], rtol=1e-11, atol=0)


def test_the_update_is_that_loss() -> None:
    x, y = inputs()
    method = MixedTargets(mix=0.35, before=linear(2.1))
    method.student, method.teacher = linear(1.3), net.Teacher(linear(2.1))
    (update,) = updates_of(method, batch_of(x, y))
    assert update.player == "student"
    assert update.items == 5
    assert update.loss.item() == pytest.approx(AUTHORS[0.35][0], rel=1e-12)


def test_the_loss_is_affine_in_mix_and_takes_soft_labels() -> None:
    x, y = inputs()
    z, v = linear(1.3)(x), linear(2.1)(x)
    at = {mix: net.mixed_loss(z, y, v, mix) for mix in (0.0, 0.3, 1.0)}
    torch.testing.assert_close(at[0.3], 0.3 * at[1.0] + 0.7 * at[0.0])
    torch.testing.assert_close(at[1.0], net.mixed_loss(z, y, None, 0.123))
    torch.testing.assert_close(net.mixed_loss(z, F.one_hot(y, 4).double(), v, 0.3), at[0.3])
    assert net.mixed_loss(v, y, v, 0.0) == 0


def test_norms_are_not_squared_and_frozen_parameters_have_none() -> None:
    layer = linear(1.3)
    expected = layer.weight.square().sum().sqrt() + layer.bias.square().sum().sqrt()
    torch.testing.assert_close(net.sum_of_norms(layer), expected)
    torch.testing.assert_close(net.sum_of_norms(linear(1.3).requires_grad_(False).requires_grad_()), expected)
    layer.weight.requires_grad_(False)
    torch.testing.assert_close(net.sum_of_norms(layer), layer.bias.norm())
    zero = nn.Parameter(torch.zeros(3))
    holder = nn.Module()
    holder.p = zero
    net.sum_of_norms(holder).backward()
    assert torch.isfinite(zero.grad).all()  # type: ignore[arg-type]


# -- the teacher ------------------------------------------------------------------------------------------------


def batchnorm_net() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))


def test_the_teacher_is_no_part_of_the_student_and_stays_as_it_was() -> None:
    """The authors' module holds its teacher, so that .train() would move its running statistics."""
    task = GuidedSelfDistillationNet.default_task().quick().using(student=batchnorm_net)
    fitter, _ = run(GuidedSelfDistillationNet(rounds=1, mix=0.5), task)
    stage, first = fitter.methods["round-1"], fitter.products["first"]
    assert same(weights_of(stage.teacher.module), weights_of(first))
    assert same(weights_of(stage.before), weights_of(first))
    assert set(stage.student.state_dict()) == set(first.state_dict())
    own = {id(p) for p in stage.student.parameters()}
    assert not own & {id(p) for p in stage.teacher.module.parameters()}
    stage.student.train()
    assert not stage.teacher.module.training
    assert not any(p.requires_grad for p in stage.teacher.module.parameters())


def test_the_teacher_sees_the_student_s_augmented_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[Tensor]] = {"student": [], "teacher": []}
    ask = net.Teacher.ask

    def watched(self: Any, x: Tensor) -> Any:
        seen["teacher"].append(x.clone())
        return ask(self, x)

    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                seen["student"].append(x.clone())
            return self.body(x)

    monkeypatch.setattr(net.Teacher, "ask", watched)
    task = GuidedSelfDistillationNet.default_task().quick().but(augment="crop").using(student=Watched)
    Fitter(Engine(epochs=2, evaluate_every=0), task, 0)(MixedTargets(0.0, before=Watched()), "one")
    assert len(seen["teacher"]) == len(seen["student"]) > 2
    assert all(torch.equal(a, b) for a, b in zip(seen["student"], seen["teacher"], strict=True))
    plain = task.train().fetch(torch.arange(len(task.train())), None)[0]
    shown = torch.cat(seen["teacher"])
    assert any((row != plain).flatten(1).any(1).all() for row in shown)


def test_every_student_starts_afresh() -> None:
    method = GuidedSelfDistillationNet(rounds=1)
    task = method.default_task().quick()
    starts = []
    for seed in (1, 2):
        stage = MixedTargets()
        stage.bind(task, seed)
        starts.append(weights_of(stage.student))
    assert not same(*starts)
    fitter, _ = run(method)
    assert not same(
        weights_of(fitter.products["first"]), weights_of(fitter.products["round-1-without-labels"])
    )


# -- the estimate -----------------------------------------------------------------------------------------------


def test_the_estimate_is_the_formula_on_held_out_probabilities() -> None:
    method = GuidedSelfDistillationNet(rounds=2, shortcut=0.0)
    task = FlippedLabels(teacher="none", student="mlp:64").quick()
    fitter, result = run(method, task)
    source = task.images.validation
    x, y = source.fetch(torch.arange(len(source)), None)
    with torch.no_grad():
        shares = {name: p.eval()(x).double().softmax(-1) for name, p in fitter.products.items()}
    for t in (1, 2):
        expected = best_mix(F.one_hot(y, 10).double(), shares["first"], shares[f"round-{t}-without-labels"])
        assert expected is not None
        assert result.extra[f"free mix {t}"] == pytest.approx(expected, abs=1e-5)
        used = result.extra[f"mix {t}"]
        assert used == pytest.approx(min(1, max(0, expected)), abs=1e-5)
        if used:
            assert fitter.methods[f"round-{t}-mixed"].mix == used
    assert same(
        weights_of(fitter.methods["round-2-without-labels"].before),
        weights_of(fitter.products.get("round-1-mixed", fitter.products["round-1-without-labels"])),
    )
    error = (shares["first"] - F.one_hot(y, 10)).square().sum(-1).mean().item()
    assert result.extra["validation error 0"] == pytest.approx(error, abs=1e-5)


def test_a_small_estimate_keeps_the_network_without_labels() -> None:
    fitter, result = run(GuidedSelfDistillationNet(rounds=1, shortcut=1.0))
    assert list(fitter.methods) == ["first", "round-1-without-labels"]
    assert result.extra["mix 1"] == 0
    assert same(weights_of(result.product), weights_of(fitter.products["round-1-without-labels"]))


@pytest.mark.parametrize(("mix", "stages"), [(0.5, 3), ("estimated", 5)])
def test_the_engine_s_steps_are_those_of_all_stages(mix: Any, stages: int) -> None:
    method = GuidedSelfDistillationNet(rounds=2, mix=mix, shortcut=0.0)
    task = method.default_task().quick()
    fitter = Recording(Engine(steps=4 * stages, evaluate_every=0, batch_size=50), task, 0)
    assert method.run(task, fitter).steps <= 4 * stages
    assert fitter.steps in (4 * stages, 4 * (stages - 1), 4 * (stages - 2))  # an estimate of 0 saves a stage


def test_the_best_network_is_kept_where_asked() -> None:
    fitter, result = run(GuidedSelfDistillationNet(rounds=2, mix=0.0, keep="best"))
    errors = [result.extra[f"validation error {t}"] for t in range(3)]
    kept = list(fitter.products.values())[errors.index(min(errors))]
    assert same(weights_of(result.product), weights_of(kept))
    assert len({round(error, 9) for error in errors}) == 3


class Crash(Watcher):
    """Dies in the middle of a stage."""

    def __init__(self, at: int) -> None:
        self.at = at

    def stepped(self, step: int, row: Any) -> None:
        if step == self.at:
            raise ConnectionAbortedError


@pytest.mark.parametrize("stage", ["round-1-without-labels", "round-1-mixed", "round-2-without-labels"])
def test_a_killed_run_finds_the_same_estimates(stage: str, tmp_path: Path) -> None:
    method = GuidedSelfDistillationNet(rounds=2, shortcut=0.0)
    task = FlippedLabels(teacher="none", student="mlp:64").quick()
    whole = run(method, task)[1]
    with pytest.raises(ConnectionAbortedError):
        run(method, task, folder=tmp_path, watch=lambda name: Crash(5) if name == stage else Watcher())
    again = run(method, task, folder=tmp_path)[1]
    assert again.extra == whole.extra
    assert same(weights_of(again.product), weights_of(whole.product))


def test_the_baseline_is_the_first_stage() -> None:
    method = GuidedSelfDistillationNet(rounds=1, mix=0.5)
    task = method.default_task().quick()
    fitter, _ = run(method, task)
    baseline = method.baseline(task)
    assert isinstance(baseline, FirstNetwork)
    assert baseline.baseline(task) is None
    assert same(weights_of(run(baseline, task)[1].product), weights_of(fitter.products["first"]))


def test_its_pictures_show_rounds_and_estimates() -> None:
    method = GuidedSelfDistillationNet(rounds=1)
    run(method)
    assert [one["title"] for one in method.figures()] == ["Error over rounds", "Where the weight comes from"]
    assert GuidedSelfDistillationNet().figures() == []


def test_a_users_network_and_data(tmp_path: Path) -> None:
    x = torch.randn(120, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    data = (x, (x.mean((1, 2, 3)) > 0).long())
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    method = GuidedSelfDistillationNet(rounds=1)
    student, made = distill(None, network, data, method, out=tmp_path / "run", epochs=3)
    assert not student.training
    assert student(x).shape == (120, 2)
    assert {"first-network", "guided-self-distillation-net"} == set(made.result["arms"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mix": 1.5}, "--method.mix is 1.5"),
        ({"shortcut": -0.1}, "--method.shortcut"),
        ({"rounds": -1}, "--method.rounds"),
    ],
)
def test_a_mistake_in_the_options_is_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        GuidedSelfDistillationNet(**options).check()


# -- wrong labels -----------------------------------------------------------------------------------------------


def test_only_training_labels_are_wrong() -> None:
    task = FlippedLabels(teacher="none", student="mlp:8", validation_samples=50)
    right = FlippedLabels(teacher="none", student="mlp:8", label_flips=0.0)
    assert 0.1 < (task.images.train.labels != right.images.train.labels).float().mean() < 0.3
    assert torch.equal(task.images.test.labels, right.images.test.labels)
    assert len(task.images.validation) == 50
    ids = torch.arange(60)
    assert torch.equal(task.train().fetch(ids, None)[1], task.train().labels[:60])
    assert torch.equal(task.train().subset(ids).labels, task.train().labels[:60])
    assert task.paired(1).fingerprint() != task.fingerprint()
    with pytest.raises(UserError, match="--task.label-flips is 1.0"):
        task.but(label_flips=1.0).check(0, False)


def test_an_allowance_is_counted_in_the_score() -> None:
    task = FlippedLabels(teacher="none", student="mlp:8").quick()
    own = GuidedSelfDistillationNet(rounds=0)
    fitter = Fitter(own.default_engine().quick(), task, 0)
    plain = own.run(task, fitter).product
    allowed = Allowance(own, 0.005).quick().run(task, Fitter(own.default_engine().quick(), task, 0)).product
    scores = [task.score(product, "test", Runtime())["accuracy"] for product in (plain, allowed)]
    assert scores[1] - scores[0] == pytest.approx(0.005)

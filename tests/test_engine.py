"""The Engine: what it owes a method that yields its losses."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from stillroom.checkpoint import listing
from stillroom.engine import Engine, Watcher
from stillroom.errors import Interrupted, NonFinite, UserError
from stillroom.method import Batch, Method, Update, Updates
from stillroom.optim import Recipe
from stillroom.plan import Plan
from toys import (
    Centred,
    DistributionMatching,
    Fit,
    GradientPenalty,
    Mixture,
    Remembering,
    Toy,
    apart,
    linear_data,
    same,
    weights_of,
)

SMALL = Engine(epochs=3, batch_size=8, evaluate_every=1, log_every=3)
METHODS = [Fit, Centred, Remembering, GradientPenalty]


def fitted(method: Method, engine: Engine = SMALL, task: Any = None, **more: Any) -> dict[str, torch.Tensor]:
    return weights_of(engine.fit(method, task or Toy(), more.pop("seed", 0), **more).product)


class Crash(Watcher):
    """Dies like a machine that loses power: without a word to anybody."""

    def __init__(self, at: int) -> None:
        self.at = at

    def stepped(self, step: int, row: Mapping[str, Any] | None) -> None:
        if step == self.at:
            raise ConnectionAbortedError


# -- the loop is a plain loop -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(lr=0.1),
        Recipe(optimizer="adamw", lr=0.01, schedule="linear", warmup=0.2),
        Recipe(optimizer="adam", lr=0.01, schedule="step", clip=0.05, betas=(0.8, 0.9)),
        Recipe(lr=0.1, nesterov=True, schedule="constant", decay_biases=False),
    ],
)
def test_weights_are_those_of_a_bare_loop_to_the_bit(recipe: Recipe) -> None:
    engine = replace(SMALL, recipe=recipe)
    network, data, plan = Toy().make_student(0), linear_data(), Plan(37, 8, 3, 0)
    optimizer = recipe.build(list(network.parameters()))
    for step in range(plan.steps):
        start, end = plan.rows(step)
        ids = plan.order(step // plan.steps_per_epoch)[start:end]
        loss = F.cross_entropy(network(data.x[ids]), data.y[ids])
        optimizer.zero_grad()
        loss.backward()
        if recipe.clip:
            nn.utils.clip_grad_norm_(network.parameters(), recipe.clip)
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * recipe.factor(step, plan.steps)
        optimizer.step()
    assert same(fitted(Fit(), engine), weights_of(network))


def test_an_epoch_shows_every_sample_once_in_an_order_of_its_own() -> None:
    seen: list[tuple[int, list[int]]] = []
    fitted(Fit(hook=lambda b: seen.append((b.clock.epoch, b.index.tolist()))))
    epochs = [[i for epoch, ids in seen if epoch == e for i in ids] for e in range(3)]
    assert all(sorted(ids) == list(range(37)) for ids in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert [len(ids) for epoch, ids in seen if epoch == 0] == [8, 8, 8, 8, 5]


def test_the_clock_counts_steps_and_progress() -> None:
    clocks = []
    fitted(Fit(hook=lambda b: clocks.append(b.clock)))
    assert [c.step for c in clocks] == list(range(15))
    assert clocks[0].progress == 0
    assert clocks[-1].progress == pytest.approx(14 / 15)
    assert clocks[-1].epoch == 2


def test_same_seed_same_bits_other_seed_others() -> None:
    assert same(fitted(Centred()), fitted(Centred()))
    assert not same(fitted(Centred()), fitted(Centred(), seed=1))


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    fitted(Fit(hook=lambda b: torch.rand(3)))
    assert torch.equal(before, torch.get_rng_state())


def test_dropout_is_a_function_of_the_seed() -> None:
    task = Toy().using(student=lambda: nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.5), nn.Linear(16, 3)))
    first = fitted(Fit(), task=task)
    torch.rand(5)
    assert same(first, fitted(Fit(), task=task))


# -- accumulation -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("parts", [2, 3, 5])
def test_accumulation_changes_nothing(method: type[Method], parts: int) -> None:
    """37 samples in batches of 8 leave a last batch of 5, so the parts are uneven and once a single sample."""
    cut = replace(SMALL, accumulate=parts)
    assert apart(fitted(method()), fitted(method(), cut)) < 1e-6


def test_players_alternate_under_accumulation() -> None:
    engine = Engine(epochs=2, batch_size=64, recipe=Recipe(optimizer="adam", lr=1e-3, weight_decay=0))
    whole = fitted(DistributionMatching(), engine, Mixture())
    parts = fitted(DistributionMatching(), replace(engine, accumulate=3), Mixture())
    assert apart(whole, parts) < 1e-5


@dataclass(eq=False)
class Tokens(Fit):
    """Counts items that are not samples: a loss over the samples of class 0 and 1 alone."""

    name: ClassVar[str] = "tokens"

    def updates(self, batch: Batch) -> Updates:
        kept = (batch.y < 2).float()
        items = int(kept.sum())
        each = F.cross_entropy(self.student(batch.x), batch.y, reduction="none")
        yield Update("student", (each * kept).sum() / max(1, items), items=items)


def test_losses_are_weighted_by_their_items() -> None:
    """With a weight per micro-batch instead the two differ by more than 1e-3."""
    task = Toy(samples=40)
    assert apart(fitted(Tokens(), task=task), fitted(Tokens(), replace(SMALL, accumulate=2), task)) < 1e-6


# -- what a method may not do -----------------------------------------------------------------------------------


@dataclass(eq=False)
class Wrong(Fit):
    name: ClassVar[str] = "wrong"
    how: str = ""

    def updates(self, batch: Batch) -> Updates:
        loss = F.cross_entropy(self.student(batch.x), batch.y)
        if self.how == "player":
            yield Update("teacher", loss, items=1)
        if self.how == "vector":
            yield Update("student", torch.stack([loss, loss]), items=1)
        if self.how == "detached":
            yield Update("student", loss.detach(), items=1)
        if self.how == "items":
            yield Update("student", loss, items=-1)
        if self.how == "no_grad":
            with torch.no_grad():
                yield Update("student", loss, items=1)
        if self.how == "data" and (batch.index[0] % 2):
            yield Update("student", loss, items=1)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("player", "yields player 'teacher'"),
        ("vector", "no scalar with a gradient"),
        ("detached", "no scalar with a gradient"),
        ("items", "over -1 items"),
        ("no_grad", "inside torch.no_grad"),
        ("data", "sequence of players may not depend on the data"),
    ],
)
def test_a_wrong_yield_is_named(how: str, says: str) -> None:
    with pytest.raises(ValueError, match=f"method 'wrong'.*{says}"):
        fitted(Wrong(how=how), replace(SMALL, accumulate=4 if how == "data" else 1))


@dataclass(eq=False)
class Watching(DistributionMatching):
    """Looks, after each yield, at which gradients exist."""

    name: ClassVar[str] = "watching"

    def updates(self, batch: Batch) -> Updates:
        flow = super().updates(batch)
        before = weights_of(self.student), weights_of(self.critic)
        for number, ask in enumerate(flow):
            yield ask
            after = weights_of(self.student), weights_of(self.critic)
            moved = [not same(a, b) for a, b in zip(before, after, strict=True)]
            assert moved == ([True, False] if number == self.critic_steps else [False, True])
            assert all(
                p.grad is None for p in [*self.student.parameters(), *self.teacher.module.parameters()]
            )
            before = after


def test_only_the_stepped_player_moves_and_the_method_goes_on_with_its_new_weights() -> None:
    engine = Engine(epochs=1, batch_size=64, recipe=Recipe(optimizer="adam", lr=1e-3))
    fitted(Watching(critic_steps=3), engine, Mixture())


def test_each_player_has_its_own_learning_rate() -> None:
    """A generator without a learning rate stays; its critic learns."""
    engine = Engine(epochs=1, batch_size=64, recipe=Recipe(optimizer="sgd", lr=1e-30, weight_decay=0))
    method = DistributionMatching(critic_rate=1e-3)
    start, critic = weights_of(Mixture().make_student(0)), None
    end = fitted(method, engine, Mixture())
    critic = weights_of(method.critic)
    method.bind(Mixture(), 0)
    assert same(start, end)
    assert not same(critic, weights_of(method.critic))


def test_distribution_matching_makes_a_one_step_generator() -> None:
    """The eight modes themselves lie 0.19 from their centres in the mean, what an untrained generator makes 1.9."""
    engine = Engine(epochs=700, batch_size=256, log_every=100, evaluate_every=0)
    engine = replace(
        engine, recipe=Recipe(optimizer="adam", lr=1e-3, betas=(0.0, 0.99), weight_decay=0, schedule="linear")
    )
    result = engine.fit(DistributionMatching(), Mixture(), 0)
    from stillroom.runtime import Runtime

    score = Mixture().score(result.product, "test", Runtime())
    assert score["distance"] < 0.55
    assert score["modes"] == 8


# -- killed and resumed -----------------------------------------------------------------------------------------

RESUMED = Engine(epochs=3, batch_size=8, log_every=4, checkpoint_every=2, recipe=Recipe(lr=0.05, ema=0.9))


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[dict[str, torch.Tensor], bytes]]:
    made = {}
    for method in METHODS:
        folder = tmp_path_factory.mktemp(method.name)
        made[method.name] = fitted(method(), RESUMED, folder=folder), (folder / "metrics.jsonl").read_bytes()
    return made


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("at", range(1, 15))
def test_killed_and_resumed_ends_with_the_same_bits(
    method: type[Method], at: int, tmp_path: Path, unbroken: dict[str, Any]
) -> None:
    with pytest.raises(ConnectionAbortedError):
        fitted(method(), RESUMED, folder=tmp_path, watcher=Crash(at))
    weights, metrics = unbroken[method.name]
    assert same(fitted(method(), RESUMED, folder=tmp_path), weights)
    assert (tmp_path / "metrics.jsonl").read_bytes() == metrics


def test_alternating_players_resume_to_the_same_bits(tmp_path: Path) -> None:
    engine = Engine(epochs=2, batch_size=64, checkpoint_every=1, recipe=Recipe(optimizer="adam", lr=1e-3))
    whole = fitted(DistributionMatching(), engine, Mixture())
    with pytest.raises(ConnectionAbortedError):
        fitted(DistributionMatching(), engine, Mixture(), folder=tmp_path, watcher=Crash(5))
    assert same(whole, fitted(DistributionMatching(), engine, Mixture(), folder=tmp_path))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_leaves(number: int, tmp_path: Path) -> None:
    def hook(batch: Batch) -> None:
        if batch.clock.step == 6:
            os.kill(os.getpid(), number)

    handler = signal.getsignal(number)
    with pytest.raises(Interrupted):
        fitted(Fit(hook=hook), RESUMED, folder=tmp_path)
    assert listing(tmp_path / "checkpoints")[-1].name == "step-00000007"
    assert signal.getsignal(number) is handler
    assert same(fitted(Fit(), RESUMED, folder=tmp_path), fitted(Fit(), RESUMED))


def test_checkpoints_are_safetensors_and_json_and_few(tmp_path: Path) -> None:
    fitted(Fit(), RESUMED, folder=tmp_path)
    found = listing(tmp_path / "checkpoints")
    assert [c.name for c in found] == ["step-00000014", "step-00000015"]
    names = sorted(p.name for p in found[-1].iterdir())
    assert names == [
        "state.json",
        "student.ema.safetensors",
        "student.optimizer.safetensors",
        "student.safetensors",
    ]


def test_what_a_killed_writer_left_is_cleared(tmp_path: Path) -> None:
    part = tmp_path / "checkpoints" / ".part-1"
    part.mkdir(parents=True)
    (part / "student.safetensors").write_bytes(b"half")
    fitted(Fit(), RESUMED, folder=tmp_path)
    assert not part.exists()


def test_another_network_s_checkpoint_is_refused(tmp_path: Path) -> None:
    fitted(Fit(), RESUMED, folder=tmp_path)
    other = Toy().using(student=lambda: nn.Sequential(nn.Linear(4, 3)))
    with pytest.raises(UserError, match="belongs to another network"):
        fitted(Fit(), RESUMED, other, folder=tmp_path)


def test_a_checkpoint_with_an_average_is_not_resumed_without_one(tmp_path: Path) -> None:
    fitted(Fit(), RESUMED, folder=tmp_path)
    with pytest.raises(UserError, match="has averaged weights"):
        fitted(Fit(), replace(RESUMED, recipe=Recipe(lr=0.05)), folder=tmp_path)


# -- averages, precision, compile, non-finite -------------------------------------------------------------------


def test_the_product_has_averaged_weights_and_the_checkpoint_both(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    decay, states = 0.9, []
    raw = Engine(
        epochs=1, batch_size=8, checkpoint_every=1, keep_checkpoints=9, recipe=Recipe(lr=0.05, ema=decay)
    )
    averaged = fitted(Fit(), raw, folder=tmp_path)
    states = [load_file(c / "student.safetensors") for c in listing(tmp_path / "checkpoints")]
    expected = weights_of(Toy().make_student(0))
    for state in states:
        expected = {k: decay * expected[k] + (1 - decay) * state[k] for k in expected}
    assert apart(averaged, expected) < 1e-6
    assert apart(averaged, states[-1]) > 1e-4
    assert same(load_file(listing(tmp_path / "checkpoints")[-1] / "student.ema.safetensors"), averaged)


def test_bfloat16_is_near_float32_and_weights_stay_float32() -> None:
    low = fitted(Fit(), replace(SMALL, precision="bfloat16"))
    assert all(w.dtype == torch.float32 for w in low.values())
    assert 0 < apart(low, fitted(Fit())) < 0.02


def test_compile_is_asked_of_every_player(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: asked.append(type(self).__name__))
    fitted(DistributionMatching(), Engine(epochs=1, batch_size=256, compile=True), Mixture())
    assert asked == ["Generator", "Score"]


@dataclass(eq=False)
class Explodes(Fit):
    name: ClassVar[str] = "explodes"

    def updates(self, batch: Batch) -> Updates:
        loss = F.cross_entropy(self.student(batch.x), batch.y)
        yield Update("student", loss * (float("nan") if batch.clock.step == 9 else 1.0), items=len(batch))


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_last_good_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(
        NonFinite, match=r"loss/student is nan at step 9 of method 'explodes'.*step-00000008'"
    ):
        fitted(Explodes(), RESUMED, folder=tmp_path)
    assert listing(tmp_path / "checkpoints")[-1].name == "step-00000008"


def test_an_option_out_of_range_is_one_clear_line() -> None:
    for changes, says in (
        ({"epochs": 0}, "--engine.epochs is 0"),
        ({"batch_size": -1}, "--engine.batch-size is -1"),
        ({"checkpoint_seconds": 0.0}, "--engine.checkpoint-seconds is 0.0"),
        ({"recipe": Recipe(momentum=1.0)}, "--engine.momentum is 1.0"),
    ):
        with pytest.raises(UserError, match=says):
            fitted(Fit(), replace(SMALL, **changes))

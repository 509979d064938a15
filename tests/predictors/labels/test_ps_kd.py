"""PS-KD: the specification's identities, what is remembered, and the numbers of the authors' code."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import stillroom
from stillroom import metrics
from stillroom.checkpoint import read_json
from stillroom.cli import main
from stillroom.data import TensorSource
from stillroom.engine import Engine, Watcher
from stillroom.errors import UserError
from stillroom.method import Clock, Update
from stillroom.optim import Recipe
from stillroom.predictors.baselines import Plain
from stillroom.predictors.labels.ps_kd import PSKD, as_distributions, refined_targets, weight_of_past
from stillroom.predictors.parts.losses import soft_cross_entropy
from text_toys import uneven
from toys import Toy, apart, batch_of, linear_data, same, updates_of, weights_of

REFERENCE = json.loads((Path(__file__).parent / "reference_ps_kd.json").read_text())
SHORT = Engine(epochs=4, batch_size=10, recipe=Recipe(lr=0.5), log_every=1)


def grid(a: float, b: float, c: float, rows: int, columns: int) -> Tensor:
    """sin(a i + b j + c), float64 [rows, columns]."""
    i, j = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in (rows, columns)), indexing="ij")
    return (a * i + b * j + c).sin()


def tensors() -> tuple[Tensor, Tensor, Tensor]:
    """Logits, past and labels of six samples and ten classes."""
    past = (2 * grid(0.8, -1.3, 0.1, 6, 10)).softmax(-1)
    return (2 * grid(1.7, 0.9, 0.3, 6, 10)).requires_grad_(), past, (3 * torch.arange(6) + 1) % 10


class Given(nn.Module):
    """A student that answers with the logits that it was given."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits


def bound(logits: Tensor, held: Tensor | None = None, **options: Any) -> PSKD:
    """The method with a student that answers `logits`, and `held` in its memory."""
    method = PSKD(**options)
    x = torch.zeros(len(logits), 1)
    task = Toy().using(student=lambda: Given(logits.detach()))
    task.train = lambda: TensorSource(x, torch.arange(len(x)) % 3)  # type: ignore[method-assign]
    method.bind(task, 0)
    if held is not None and method.stored is not None:
        method.stored.write(torch.arange(len(held)), held)
    return method


def loss_of(method: PSKD, y: Tensor, epoch: int = 4, epochs: int = 5) -> Update:
    batch = batch_of(torch.zeros(len(y), 1), y)
    batch.clock = Clock(epoch, epochs, epoch, epochs)
    (update,) = updates_of(method, batch)
    return update


def fitted(method: Any, task: Toy | None = None, engine: Engine = SHORT, **options: Any) -> Any:
    return engine.fit(method, task or Toy(), 0, **options).product


# -- against the authors' code ----------------------------------------------------------------------------------


def test_a_loss_and_its_gradient_have_the_published_code_s_numbers() -> None:
    z, past, y = tensors()
    loss = soft_cross_entropy(z, refined_targets(as_distributions(y, 10), past, 0.48))
    grad = torch.autograd.grad(loss, z)[0]
    torch.testing.assert_close(loss.item(), REFERENCE["loss"], rtol=1e-7, atol=0)
    torch.testing.assert_close(grad, torch.tensor(REFERENCE["grad"], dtype=torch.float64), rtol=0, atol=1e-8)


def test_a_training_has_the_published_code_s_losses_weights_and_memory() -> None:
    """Five epochs of the authors' train() on the same linear network, in another order of the samples each epoch."""
    x, y = (2 * grid(1.3, 0.7, 0.2, 12, 4)).float(), (5 * torch.arange(12) + 1) % 6
    network = nn.Linear(4, 6)
    with torch.no_grad():
        network.weight.copy_(grid(0.9, 1.7, 0.1, 6, 4))
        network.bias.copy_(grid(0.4, 1.0, 0.5, 1, 6)[0])
    task = Toy().using(student=lambda: network)
    task.train = lambda: TensorSource(x, y)  # type: ignore[method-assign]
    method = PSKD()
    method.bind(task, 0)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5, momentum=0.9)
    losses = []
    for epoch in range(5):
        for rows in ((torch.arange(12) * 5 + 3 * epoch) % 12).split(4):
            batch = batch_of(x[rows], y[rows], rows)
            batch.clock = Clock(0, 15, epoch, 5)
            (update,) = updates_of(method, batch)
            optimizer.zero_grad()
            update.loss.backward()
            optimizer.step()
            losses.append(update.loss.item())
    assert method.stored is not None
    found = (losses, network.weight, network.bias, method.stored.read(torch.arange(12)))
    for name, value in zip(("losses", "weight", "bias", "memory"), found, strict=True):
        expected = torch.tensor(REFERENCE[name])
        torch.testing.assert_close(torch.as_tensor(value).detach(), expected, rtol=1e-5, atol=1e-6)


def test_calibration_and_ranking_have_the_published_code_s_numbers() -> None:
    z = 3 * grid(1.7, 0.9, 0.3, 60, 10)
    y = torch.where(torch.arange(60) % 3 == 0, (7 * torch.arange(60)) % 10, z.argmax(1))
    expected = REFERENCE["metrics"]
    assert 100 * metrics.expected_calibration_error(z, y, bins=10) == pytest.approx(expected["ece"], rel=1e-9)
    assert 1000 * metrics.area_under_risk_coverage(z, y) == pytest.approx(expected["aurc"], rel=1e-9)
    assert 1000 * metrics.excess_area_under_risk_coverage(z, y) == pytest.approx(expected["eaurc"], rel=1e-9)


# -- the loss ---------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(alpha=st.floats(0, 1))
def test_the_gradient_is_p_minus_the_refined_target(alpha: float) -> None:
    """And summed over the wrong classes it is that of cross-entropy, times 1 - alpha (1 - P_y) / (1 - p_y)."""
    z, past, y = tensors()
    one_hot, p = F.one_hot(y, 10), z.detach().softmax(-1)
    target = refined_targets(as_distributions(y, 10), past, alpha)
    grad = 6 * torch.autograd.grad(soft_cross_entropy(z, target), z)[0]
    torch.testing.assert_close(grad, p - (1 - alpha) * one_hot - alpha * past, rtol=0, atol=1e-6)
    wrong = (grad * (1 - one_hot)).sum(-1)
    mine, before = ((q * one_hot).sum(-1) for q in (p, past))
    torch.testing.assert_close(wrong, (1 - mine) - alpha * (1 - before), rtol=0, atol=1e-6)
    rescaled = (1 - mine) * (1 - alpha * (1 - before) / (1 - mine))
    torch.testing.assert_close(wrong, rescaled, rtol=0, atol=1e-6)


def test_the_prediction_of_this_step_rescales_the_gradient_and_does_nothing_else() -> None:
    z, _, y = tensors()
    method = bound(z, past="current", alpha=0.6, schedule="constant")
    grad = torch.autograd.grad(loss_of(method, y).loss, method.student.logits)[0]
    plain = (z.detach().softmax(-1) - F.one_hot(y, 10)) / 6
    torch.testing.assert_close(grad, 0.4 * plain, rtol=0, atol=1e-7)


def test_a_uniform_past_is_label_smoothing() -> None:
    z, _, y = tensors()
    method = bound(z, torch.full((6, 10), 0.1), alpha=0.3)
    torch.testing.assert_close(
        loss_of(method, y).loss, F.cross_entropy(z, y, label_smoothing=0.3), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize(("alpha", "near"), [(0.0, 1e-6), (1.0, 1 - 1e-6)])
def test_at_the_ends_of_alpha_are_the_label_and_the_past_alone(alpha: float, near: float) -> None:
    z, past, y = tensors()
    expected = F.cross_entropy(z, y) if alpha == 0 else F.cross_entropy(z, past.float().double())
    at, beside = (loss_of(bound(z, past, alpha=a), y).loss for a in (alpha, near))
    torch.testing.assert_close(at, expected, rtol=1e-7, atol=0)
    torch.testing.assert_close(beside, expected, rtol=0, atol=1e-4)
    assert beside != at


def test_alpha_rises_once_an_epoch_from_a_share_to_the_whole() -> None:
    rising = [weight_of_past(0.8, Clock(e, 4, e, 4)) for e in range(4)]
    assert rising == pytest.approx([0.2, 0.4, 0.6, 0.8])
    z, past, y = tensors()
    for epoch, alpha in enumerate(rising):
        update = loss_of(bound(z, past), y, epoch, 4)
        expected = soft_cross_entropy(z, refined_targets(as_distributions(y, 10), past, alpha))
        torch.testing.assert_close(update.loss, expected, rtol=1e-6, atol=0)
        assert update.logs["alpha"].item() == pytest.approx(alpha)
        constant = loss_of(bound(z, past, schedule="constant"), y, epoch, 4)
        assert constant.logs["alpha"].item() == pytest.approx(0.8)


@pytest.mark.parametrize("past", ["stored", "snapshot"])
def test_without_a_past_the_labels_are_hard_however_large_alpha_is(past: Any) -> None:
    z, _, y = tensors()
    first = loss_of(bound(z, past=past, alpha=1.0, schedule="constant"), y, 0)
    torch.testing.assert_close(first.loss, F.cross_entropy(z, y))
    assert first.logs["target on the label"].item() == 1


def test_mixed_labels_are_blended_as_they_are_and_one_hot_ones_mean_the_class() -> None:
    z, past, y = tensors()
    soft = 0.7 * F.one_hot(y, 10).double() + 0.3 * F.one_hot((y + 2) % 10, 10).double()
    update = loss_of(bound(z, past, alpha=0.5), soft)
    torch.testing.assert_close(update.loss, F.cross_entropy(z, 0.5 * soft + 0.5 * past), rtol=1e-6, atol=0)
    torch.testing.assert_close(loss_of(bound(z), soft, 0).loss, F.cross_entropy(z, soft))
    hard, one_hot = (loss_of(bound(z, past), labels).loss for labels in (y, F.one_hot(y, 10).float()))
    assert hard == one_hot


def test_no_gradient_reaches_the_past() -> None:
    _, past, y = tensors()
    past.requires_grad_()
    assert not refined_targets(as_distributions(y, 10), past, 0.5).requires_grad


# -- what is remembered -----------------------------------------------------------------------------------------


def test_at_alpha_zero_the_weights_are_those_of_cross_entropy_to_the_bit() -> None:
    plain = weights_of(fitted(Plain()))
    assert same(plain, weights_of(fitted(PSKD(alpha=0.0))))
    assert not same(plain, weights_of(fitted(PSKD(alpha=1e-3))))


def test_after_an_epoch_the_memory_is_what_the_student_said_of_each_sample_in_training() -> None:
    """Of shuffled samples, the last batch of an epoch smaller; with dropout, so that no second pass says the same."""
    said: dict[int, Tensor] = {}
    data = linear_data()
    seen = {tuple(row.tolist()): i for i, row in enumerate(data.x)}

    def student() -> nn.Module:
        network = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 3))

        def note(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            if module.training:
                ids = [seen[tuple(row.tolist())] for row in args[0]]
                said.update(zip(ids, output.detach().softmax(-1), strict=True))

        network.register_forward_hook(note)
        return network

    method = PSKD()
    for steps in (4, 8, 10):  # one epoch, two, and a part of the third
        said.clear()
        fitted(method, Toy().using(student=student), replace(SHORT, steps=steps))
        assert sorted(said) == list(range(37))
        assert method.stored is not None
        ids = torch.arange(37)
        assert torch.equal(method.stored.read(ids), torch.stack([said[i] for i in range(37)]))


def test_a_sample_that_is_not_visited_keeps_its_row_and_without_one_its_label() -> None:
    z, past, y = tensors()
    method = bound(z, past[:3])
    assert method.stored is not None
    assert method.stored.known(torch.arange(6)).tolist() == [True] * 3 + [False] * 3
    target = refined_targets(as_distributions(y, 10), torch.cat([past[:3], F.one_hot(y[3:], 10)]), 0.8)
    batch = batch_of(torch.zeros(6, 1), y)
    batch.clock = Clock(4, 5, 4, 5)
    flow = method.updates(batch)
    next(flow)
    flow.send(torch.tensor([0, 4]))
    update = flow.send(method.student.logits.detach()[[0, 4]].softmax(-1))
    assert isinstance(update, Update)
    torch.testing.assert_close(update.loss, soft_cross_entropy(z, target), rtol=1e-6, atol=0)
    kept = method.stored.read(torch.arange(6))
    torch.testing.assert_close(kept[[1, 2]], past[[1, 2]].float())
    torch.testing.assert_close(kept[[0, 4]], z.detach()[[0, 4]].softmax(-1).float())
    assert not method.stored.known(torch.tensor([3, 5])).any()


def test_rows_go_by_the_sample_not_by_its_place_in_the_batch() -> None:
    z, past, y = tensors()
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    method = bound(z[order], past)
    batch = batch_of(torch.zeros(6, 1), y[order], order)
    batch.clock = Clock(4, 5, 4, 5)
    (update,) = updates_of(method, batch)
    torch.testing.assert_close(update.loss, loss_of(bound(z, past), y).loss)


def test_a_snapshot_is_the_student_as_the_epoch_before_left_it() -> None:
    """Without augmentation or dropout: what it says is what the weights at the end of the epoch before say."""
    method, ends = PSKD(past="snapshot", alpha=0.9), {}

    class Look(Watcher):
        def stepped(self, step: int, row: Any) -> None:
            assert method.before is not None
            if step % 4 == 0:
                ends[step // 4] = weights_of(method.student)
            elif step > 4:
                assert same(weights_of(method.before.network), ends[step // 4])
                assert not same(weights_of(method.before.network), weights_of(method.student))

    fitted(method, watcher=Look())
    assert method.before is not None
    assert method.before.epoch == 3
    assert not method.before.network.training
    x, past = linear_data().x, method.before.logits(linear_data().x)
    assert not past.requires_grad
    torch.testing.assert_close(past, F.linear(x, ends[3]["weight"], ends[3]["bias"]))
    assert not same(weights_of(method.student), weights_of(fitted(PSKD(alpha=0.9))))
    assert set(method.players()) == {"student"}


class Crash(Watcher):
    """Dies in the third epoch."""

    def stepped(self, step: int, row: Any) -> None:
        if step == 10:
            raise ConnectionAbortedError


VARIANTS: list[dict[str, Any]] = [
    {"memory": "float16"},
    {"top_k": 1},
    {"memory": "float16", "top_k": 2},
    {"past": "snapshot"},
    {"past": "current"},
]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_every_variant_goes_on_with_the_same_bits_and_does_not_see_how_a_batch_is_cut(
    options: dict[str, Any], tmp_path: Path
) -> None:
    engine = replace(SHORT, checkpoint_every=1)
    whole = weights_of(fitted(PSKD(**options), engine=engine))
    assert not same(whole, weights_of(fitted(PSKD())))
    with pytest.raises(ConnectionAbortedError):
        fitted(PSKD(**options), engine=engine, folder=tmp_path, watcher=Crash())
    assert same(whole, weights_of(fitted(PSKD(**options), engine=engine, folder=tmp_path)))
    assert apart(whole, weights_of(fitted(PSKD(**options), engine=replace(engine, accumulate=3)))) < 1e-5


def test_a_checkpoint_of_another_memory_is_refused(tmp_path: Path) -> None:
    engine = replace(SHORT, checkpoint_every=1)
    with pytest.raises(ConnectionAbortedError):
        fitted(PSKD(), engine=engine, folder=tmp_path, watcher=Crash())
    for options in ({"top_k": 2}, {"memory": "float16"}, {"past": "snapshot"}):
        with pytest.raises(UserError, match="does not belong to this run"):
            fitted(PSKD(**options), engine=engine, folder=tmp_path)  # type: ignore[arg-type]


# -- a label for every token --------------------------------------------------------------------------------------


def test_a_step_on_tokens_is_one_on_as_many_samples() -> None:
    task = uneven()
    method = PSKD(alpha=0.7, schedule="constant")
    method.bind(task, 0)
    method.student.eval()
    rows = torch.tensor([11, 2, 5])
    x, y = task.train().fetch(rows, None)
    assert (y == -100).any()
    assert y.shape[-1] < task.length, "rows of a batch are shorter than they may be"
    with torch.no_grad():
        logits = method.student(x)
    past = (0.1 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))).softmax(-1)
    assert method.stored is not None
    known = (rows.unsqueeze(1) * task.length + torch.arange(y.shape[-1]))[:2]
    method.stored.write(known[y[:2] != -100], past[:2][y[:2] != -100])  # nothing is known of the third
    batch = batch_of(x, y, rows)
    (update,) = updates_of(method, batch)
    labels = F.one_hot(y.clamp_min(0), logits.shape[-1]).float()
    target = torch.cat([0.3 * labels[:2] + 0.7 * past[:2], labels[2:]])
    each = -(target * logits.log_softmax(-1)).sum(-1)[y != -100]
    assert update.items == len(each)
    torch.testing.assert_close(update.loss.detach(), each.mean(), rtol=1e-6, atol=0)
    said = method.stored.read(rows[2] * task.length + torch.arange(y.shape[-1])[y[2] != -100])
    torch.testing.assert_close(said, logits[2].softmax(-1)[y[2] != -100])


def test_after_an_epoch_every_counted_token_is_remembered_and_no_other() -> None:
    task, method = uneven(), PSKD()
    product = Engine(epochs=1, batch_size=4, recipe=Recipe(lr=1e-9)).fit(method, task, 0).product
    _, y = task.train().fetch(torch.arange(13), None)
    places = (torch.arange(13).unsqueeze(1) * task.length + torch.arange(y.shape[-1]))[y != -100]
    assert method.stored is not None
    known = method.stored.known(torch.arange(13 * task.length))
    assert known.nonzero().squeeze(1).tolist() == places.tolist()
    with torch.no_grad():
        x, _ = task.train().fetch(torch.arange(13), None)
        said = product.eval()(x).softmax(-1)[y != -100]
    torch.testing.assert_close(method.stored.read(places), said, rtol=0, atol=1e-5)
    (figure,) = method.figures()
    assert figure["caption"].startswith("Training tokens by the probability of their label")


@pytest.mark.parametrize("past", ["stored", "snapshot", "current"])
def test_on_tokens_neither_a_cut_nor_a_crash_is_seen(past: Any, tmp_path: Path) -> None:
    engine = Engine(epochs=4, batch_size=4, recipe=Recipe(lr=0.5), checkpoint_every=1)
    whole = weights_of(engine.fit(PSKD(past=past), uneven(), 0).product)
    parts = weights_of(replace(engine, accumulate=4).fit(PSKD(past=past), uneven(), 0).product)
    assert apart(whole, parts) < 1e-5
    with pytest.raises(ConnectionAbortedError):
        engine.fit(PSKD(past=past), uneven(), 0, folder=tmp_path, watcher=Crash())
    again = weights_of(engine.fit(PSKD(past=past), uneven(), 0, folder=tmp_path).product)
    assert same(whole, again)


def test_a_language_model_is_trained_from_the_command_line_beside_the_one_without(tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = "run ps-kd --problem language-modelling --task.student gpt:16x1 --task.student-samples 20"
    assert main([*words.split(), "--engine.epochs", "2", "--out", str(out)]) == 0
    result = read_json(out / "result.json")
    assert set(result["arms"]) == {"next-token", "ps-kd"}
    assert result["metric"] == "nats_per_token"
    assert "What became of the labels" in [figure["title"] for figure in result["figures"]]


def test_other_methods_say_that_tokens_are_not_for_them(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["run", "kd", "--problem", "language-modelling"]) != 0
    says = "there is no problem 'language-modelling' for method 'kd': pass image-classification or text-classification"
    assert capsys.readouterr().err.strip().endswith(says)
    assert main(["compare", "plain", "ps-kd", "--problem", "language-modelling"]) != 0
    says = "method 'plain' wants one label a sample, and LanguageModelling has one a token: pass a method of language"
    assert says in capsys.readouterr().err
    with pytest.raises(UserError, match="method 'uskd' wants one label a sample"):
        stillroom.distill("none", "gpt:16x1", "pydoc", "uskd", task=uneven(), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


# -- in use -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 1.1}, "--method.alpha is 1.1: pass a number from 0 to 1"),
        ({"alpha": -0.1}, "--method.alpha is -0.1"),
        ({"alpha": float("nan")}, "--method.alpha is nan"),
        ({"top_k": -1}, "--method.top-k is -1"),
        ({"limit": 0.0}, "--method.limit is 0.0"),
        ({"top_k": 3}, "--method.top-k is 3 of 3 classes: pass at most 2, or 0 for all"),
        (
            {"limit": 1e-7},
            "the predictions of 37 samples and 3 classes take 4.48e-07 GiB, above --method.limit 1e-07",
        ),
    ],
)
def test_options_out_of_range_are_one_line(options: dict[str, Any], message: str) -> None:
    method = PSKD(**options)
    with pytest.raises(UserError) as caught:
        method.check()
        method.bind(Toy(), 0)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unlabelled_data_are_refused_and_mixing_is_warned_of() -> None:
    task = Toy()
    task.train = lambda: TensorSource(torch.zeros(4, 4))  # type: ignore[method-assign]
    with pytest.raises(UserError, match="the data have none: pass labelled data"):
        PSKD().bind(task, 0)
    mixed = PSKD.default_task().quick().but(cutmix=1.0)
    with pytest.warns(UserWarning, match="with another partner: pass --method.past snapshot"):
        PSKD().bind(mixed, 0)


@pytest.mark.parametrize("past", ["stored", "snapshot"])
@pytest.mark.filterwarnings("ignore:stored predictions are of the mixture")
def test_it_trains_on_mixed_labels(past: Any) -> None:
    task = PSKD.default_task().quick().but(mixup=1.0)
    product = Engine(epochs=3).fit(PSKD(past=past), task, 0).product
    assert all(torch.isfinite(value).all() for value in weights_of(product).values())


def test_a_user_s_own_network_and_tensors_leave_a_page_with_calibration_and_labels(tmp_path: Path) -> None:
    x = torch.rand(80, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    y = (x.mean((1, 2, 3)) > 0.5).long()
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    student, run = stillroom.distill(None, network, (x, y), "ps-kd", alpha=0.5, epochs=2, out=tmp_path / "r")
    assert student(x[:3]).shape == (3, 2)
    result = read_json(run.path / "result.json")
    assert [figure["title"] for figure in result["figures"]] == ["What became of the labels"]
    test = result["arms"]["ps-kd"]["test"]
    assert {"area_under_risk_coverage", "excess_area_under_risk_coverage", "reliability"} <= set(test)
    page = (run.path / "report.html").read_text(encoding="utf-8")
    assert "accuracy over confidence" in page
    assert "risk-coverage area" in page


def test_the_claims_say_what_would_refute_them() -> None:
    for claim in PSKD.claims():
        deciding = [(r.worse, r.metric, r.margin) for r in claim.rules if r.headline]
        assert ("plain", "", 0.01) in deciding
        assert {metric for _, metric, _ in deciding} == {
            "expected_calibration_error",
            "negative_log_likelihood",
            "",
        }
        assert claim.seeds >= 5

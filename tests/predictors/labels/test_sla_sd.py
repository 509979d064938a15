"""SLA+SD: transformations, indices, losses and gradients against the authors' code, and the three ways to ask."""

from __future__ import annotations

import json
import warnings
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import stillroom
from stillroom.cli import main
from stillroom.data.objects import KINDS, draw_objects
from stillroom.engine import Engine
from stillroom.errors import UserError
from stillroom.fitter import Fitter
from stillroom.method import Method, Update
from stillroom.optim import Recipe
from stillroom.predictors.classification import Classification
from stillroom.predictors.labels.sla_sd import (
    SLASD,
    DataAugmentation,
    JointNetwork,
    LongPlain,
    MultiTask,
    TransformedClassification,
    aggregated,
    joint_labels,
    joint_loss,
    matching,
    sla_sd_loss,
)
from stillroom.predictors.labels.sla_sd.claims import cifar_claim, objects_claim
from stillroom.predictors.parts.transformations import SETS, Transformation, check_fit, transformed
from toys import batch_of, same, updates_of, weights_of

REFERENCE = json.loads((Path(__file__).parent / "reference_sla_sd.json").read_text())
TIGHT = {"rtol": 1e-9, "atol": 1e-9}
"""The reference numbers were computed in float64 and have twelve digits."""
every_set = pytest.mark.parametrize("name", SETS)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exactly(value: Tensor, expected: Any) -> None:
    torch.testing.assert_close(value.detach(), torch.tensor(expected, dtype=torch.float64), **TIGHT)


# -- transformations --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REFERENCE["transforms"])
def test_the_copies_are_the_published_code_s(name: str) -> None:
    image = torch.arange(12.0).view(1, 3, 2, 2)
    copies = transformed(torch.cat([image, image + 100]), SETS[name])
    assert copies.flatten(1).int().tolist() == REFERENCE["transforms"][name]


@every_set
def test_row_j_of_an_image_is_its_j_th_copy_and_the_first_is_the_image(name: str) -> None:
    x, group = drawn(3, 3, 4, 4), SETS[name]
    copies = transformed(x, group)
    assert copies.shape == (3 * len(group), 3, 4, 4)
    for j, one in enumerate(group):
        assert torch.equal(copies[j :: len(group)], one(x))
    assert torch.equal(copies[:: len(group)], x)
    assert group[0].name == "identity"


@every_set
def test_every_set_is_a_group_that_composes_as_its_images_do(name: str) -> None:
    x, group = drawn(1, 3, 4, 4), SETS[name]
    assert len({one.name for one in group}) == len(set(group)) == len(group)
    for last, first in product(group, group):
        assert last.after(first) in group
        assert torch.equal(last.after(first)(x), last(first(x)))
    for one in group:
        assert any(other.after(one) == Transformation() for other in group)


def test_a_quarter_turn_four_times_is_nothing_and_goes_against_the_clock() -> None:
    turn, x = SETS["rotations"][1], drawn(2, 1, 3, 3)
    assert torch.equal(turn(turn(turn(turn(x)))), x)
    assert not torch.equal(turn(turn(x)), x)
    assert torch.equal(turn(x)[..., 0, 0], x[..., 0, -1])  # the right upper corner comes to the left


@pytest.mark.parametrize(
    ("name", "shape", "says"),
    [
        (
            "colours-3",
            (1, 8, 8),
            "exchanges the channels of colour images, and data 'x' has 1: pass rotations",
        ),
        ("rotations-colours-6", (4, 8, 8), "data 'x' has 4"),
        ("rotations", (3, 8, 6), "data 'x' are 8 x 6: pass --task.image-size, or half-turns"),
    ],
)
def test_images_without_such_copies_are_refused(name: str, shape: tuple[int, ...], says: str) -> None:
    with pytest.raises(UserError, match=says):
        check_fit(name, shape, "x")
    check_fit("none", shape, "x")


def test_half_turns_need_no_square() -> None:
    check_fit("half-turns", (3, 8, 6), "x")
    assert transformed(drawn(2, 3, 8, 6), SETS["half-turns"]).shape == (4, 3, 8, 6)


@pytest.mark.parametrize(
    ("name", "data", "warned"),
    [
        ("rotations", "digits", True),
        ("half-turns", "ylecun/mnist", True),
        ("rotations-colours-3", "svhn", True),
        ("colours-3", "svhn", False),
        ("rotations", "fashion_mnist", False),
        ("rotations", "objects", False),
        ("none", "digits", False),
    ],
)
def test_turned_characters_are_warned_about(name: str, data: str, warned: bool) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_fit(name, (3, 8, 8), data)
    assert [("6 and 9" in str(one.message)) for one in caught] == [True] * warned


# -- against the authors' code ----------------------------------------------------------------------------------


def weights(rows: int, columns: int, pace: float) -> nn.Parameter:
    at = torch.arange(rows * columns, dtype=torch.float64)
    return nn.Parameter((pace * at + 0.4).cos().view(rows, columns))


def network(copies: str, inputs: int = 12, classes: int = 3) -> JointNetwork:
    """An encoder tanh(A x) and linear heads u and w, as the reference has them."""
    plain = nn.Sequential(
        nn.Flatten(), nn.Linear(inputs, 3, bias=False), nn.Tanh(), nn.Linear(3, classes, bias=False)
    ).double()
    plain[1].weight, plain[3].weight = weights(3, inputs, 0.7), weights(classes, 3, 2.3)
    example = torch.ones(1, 3, 2, inputs // 6, dtype=torch.float64)
    made = JointNetwork(plain, example, copies).double()
    made.joint = nn.Linear(3, classes * made.copies, bias=False).double()
    made.joint.weight = weights(classes * made.copies, 3, 1.1)
    return made


def images() -> tuple[Tensor, Tensor]:
    return (1.3 * torch.arange(36, dtype=torch.float64) + 0.2).sin().view(3, 3, 2, 2), torch.tensor([2, 0, 1])


def only(method: Method, x: Tensor, y: Tensor) -> Update:
    updates = updates_of(method, batch_of(x, y))
    assert [one.player for one in updates] == ["student"]
    return updates[0]


def bound(**options: Any) -> tuple[SLASD, JointNetwork]:
    method = SLASD(**options)
    method.network = network(method.transformations)
    return method, method.network


@pytest.mark.parametrize("copies", ["rotations", "colours-3"])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("large", [False, True])
def test_losses_and_gradients_are_the_published_code_s(copies: Any, temperature: float, large: bool) -> None:
    expected = REFERENCE["losses"][f"sd {copies} T={temperature} large={large}"]
    scale = "sum" if large else "mean"
    method, made = bound(transformations=copies, temperature=temperature, loss_scale=scale)
    x, y = images()
    update = only(method, x, y)
    exactly(update.loss, expected["loss"])
    leaves = {"a": made.network[1].weight, "w": made.joint.weight, "u": made.network[3].weight}
    for (name, _), grad in zip(
        leaves.items(), torch.autograd.grad(update.loss, [*leaves.values()]), strict=True
    ):
        exactly(grad, expected[f"grad_{name}"])
    exactly(made(x), expected["vote"])
    exactly(made.network(x), expected["single"])
    assert joint_labels(y, made.copies, 3).tolist() == expected["labels"]


@pytest.mark.parametrize("copies", ["rotations", "colours-3"])
def test_label_augmentation_alone_is_the_published_code_s(copies: Any) -> None:
    expected = REFERENCE["losses"][f"sla {copies}"]
    method, made = bound(transformations=copies, distil=False, mode="ag")
    x, y = images()
    update = only(method, x, y)
    exactly(update.loss, expected["loss"])
    for leaf, name in ((made.network[1].weight, "a"), (made.joint.weight, "w")):
        exactly(torch.autograd.grad(update.loss, leaf, retain_graph=True)[0], expected[f"grad_{name}"])
    assert torch.autograd.grad(update.loss, made.network[3].weight, allow_unused=True)[0] is None
    exactly(made(x), expected["vote"])
    exactly(made.asked("si")(x), expected["si"])


# -- indices ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("copies", [1, 2, 4, 6])
def test_the_vote_is_the_explicit_double_loop(copies: int) -> None:
    joint, y = drawn(5 * copies, 3 * copies), torch.tensor([2, 0, 1, 1, 2])
    found, own, labels = aggregated(joint, copies), matching(joint, copies), joint_labels(y, copies, 3)
    for b, i in product(range(5), range(3)):
        rows = [joint[b * copies + j, i * copies + j] for j in range(copies)]
        torch.testing.assert_close(found[b, i], torch.stack(rows).mean())
        torch.testing.assert_close(own[b, i], torch.stack(rows))
    assert labels.tolist() == [int(y[b]) * copies + j for b, j in product(range(5), range(copies))]


def test_entries_of_other_transformations_have_no_say() -> None:
    joint = drawn(4, 12)
    before = aggregated(joint, 4)
    joint[1, 2] += 7.0  # copy 1, class 0 with transformation 2
    assert torch.equal(aggregated(joint, 4), before)
    joint[1, 5] += 8.0  # copy 1, class 1 with transformation 1
    torch.testing.assert_close(aggregated(joint, 4) - before, torch.tensor([[0.0, 2.0, 0.0]]).double())


def test_logits_are_averaged_not_probabilities() -> None:
    joint = 3 * drawn(4, 12)
    probabilities = matching(joint, 4).softmax(1).mean(-1)
    assert (aggregated(joint, 4).softmax(-1) - probabilities).abs().max() > 0.01


def test_a_mixed_label_s_loss_is_the_mix_of_losses() -> None:
    joint, first, second = drawn(12, 12), torch.tensor([0, 1, 2]), torch.tensor([2, 2, 0])
    mixed = 0.7 * F.one_hot(first, 3).double() + 0.3 * F.one_hot(second, 3).double()
    expected = 0.7 * joint_loss(joint, first, 4) + 0.3 * joint_loss(joint, second, 4)
    torch.testing.assert_close(joint_loss(joint, mixed, 4), expected)
    torch.testing.assert_close(
        joint_loss(joint, F.one_hot(first, 3).double(), 4), joint_loss(joint, first, 4)
    )


def test_heads_that_do_not_see_the_transformation_all_say_the_same() -> None:
    made = network("rotations")
    made.joint.weight = nn.Parameter(made.joint.weight[::4].repeat_interleave(4, 0))
    x = drawn(3, 3, 1, 1).expand(3, 3, 2, 2)
    joint = made.both(transformed(x, SETS["rotations"]))[1]
    own = matching(joint, 4)
    for j in range(4):
        torch.testing.assert_close(own[..., j], made(x))
    assert made(x).std() > 0.1


# -- the loss ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_distillation_moves_the_plain_head_alone_by_its_closed_form(temperature: float) -> None:
    """T (softmax(u f / T) - softmax(s / T)) f / B for u, and exactly nothing for w."""
    made, (x, y) = network("rotations"), images()
    with torch.no_grad():
        f = made.network[:3](x)
        s = made(x)
    plain, joint = made.both(transformed(x, SETS["rotations"]))
    term = sla_sd_loss(plain[::4], joint, y, 4, temperature)["loss/distillation"]
    grads = torch.autograd.grad(term, [made.network[3].weight, made.joint.weight], allow_unused=True)
    gap = (plain[::4].detach() / temperature).softmax(-1) - (s / temperature).softmax(-1)
    torch.testing.assert_close(grads[0], temperature * gap.T @ f / 3)
    assert gap.abs().max() > 0.01
    assert grads[1] is None


def test_without_the_stop_the_vote_is_pulled_as_well_and_the_loss_is_the_same() -> None:
    single, joint, y = drawn(3, 3).requires_grad_(), drawn(12, 12, seed=1).requires_grad_(), images()[1]
    stopped, free = (sla_sd_loss(single, joint, y, 4, stop_gradient=stop) for stop in (True, False))
    for name, value in free.items():
        torch.testing.assert_close(stopped[name], value)
    pulled = torch.autograd.grad(free["loss/distillation"], joint)[0]
    assert pulled.abs().max() > 1e-3
    assert (pulled[1, [0, 2, 3]] == 0).all()


def test_the_divergence_is_that_of_the_plain_head_from_the_vote() -> None:
    single, joint, y = drawn(3, 3), drawn(12, 12, seed=1), images()[1]
    p, q = aggregated(joint, 4).softmax(-1), single.softmax(-1)
    found = sla_sd_loss(single, joint, y, 4)["loss/distillation"]
    torch.testing.assert_close(found, (p * (p / q).log()).sum(-1).mean())
    assert (found - (q * (q / p).log()).sum(-1).mean()).abs() > 0.01


def test_one_transformation_is_plain_training_and_the_vote_is_single_inference() -> None:
    joint, y = drawn(5, 3), torch.tensor([2, 0, 1, 1, 2])
    torch.testing.assert_close(joint_loss(joint, y, 1), F.cross_entropy(joint, y))
    assert torch.equal(aggregated(joint, 1), joint)
    made, (x, _) = network("none"), images()
    assert torch.equal(made(x), made.asked("si")(x))


def test_the_plain_head_sees_images_as_they_are_alone() -> None:
    method, made = bound()
    x, y = images()
    logs = only(method, x, y).logs
    torch.testing.assert_close(logs["loss/labels"], F.cross_entropy(made.network(x), y))
    expected = F.kl_div(made.network(x).log_softmax(-1), made(x).softmax(-1), reduction="batchmean")
    torch.testing.assert_close(logs["loss/distillation"], expected)


def test_weights_at_their_limits() -> None:
    x, y = images()
    one = only(bound()[0], x, y)
    none, near = (only(bound(beta=beta)[0], x, y) for beta in (0.0, 1e-6))
    torch.testing.assert_close(one.loss - none.loss, one.logs["loss/labels"])
    torch.testing.assert_close(near.loss - none.loss, 1e-6 * one.logs["loss/labels"], rtol=1e-6, atol=0)
    total = only(bound(loss_scale="sum")[0], x, y)
    torch.testing.assert_close(total.loss - one.loss, 3 * one.logs["loss/joint"])
    torch.testing.assert_close(one.loss, torch.stack(list(one.logs.values())).sum())


# -- what it is held against ------------------------------------------------------------------------------------


def plain_task(student: str = "cnn:4-8", **options: Any) -> TransformedClassification:
    """Sixty noise images of three classes."""
    data = (drawn(60, 3, 6, 6).float(), torch.arange(60) % 3)
    made = TransformedClassification(student=student, **options).using(data=data)
    assert isinstance(made, TransformedClassification)
    return made


def test_augmentation_gives_every_copy_its_image_s_label() -> None:
    method, task = DataAugmentation(), plain_task()
    method.bind(task, 0)
    x, y = task.train().fetch(torch.arange(8), None)
    turned = [F.cross_entropy(method.student(torch.rot90(x, k, (2, 3))), y) for k in range(4)]
    torch.testing.assert_close(only(method, x, y).loss, torch.stack(turned).mean())


def test_two_tasks_tell_label_and_turn_by_two_heads() -> None:
    method, task = MultiTask(), plain_task()
    method.bind(task, 0)
    x, y = task.train().fetch(torch.arange(8), None)
    update = only(method, x, y)
    turned = [torch.rot90(x, k, (2, 3)) for k in range(4)]
    labels = [F.cross_entropy(method.student(one), y) for one in turned]
    which = []
    for k, one in enumerate(turned):
        method.student(one)
        which.append(F.cross_entropy(method.head(method.features.take()), torch.full_like(y, k)))
    torch.testing.assert_close(update.loss, torch.stack(labels).mean() + torch.stack(which).mean())
    before = set(weights_of(task.make_student(0)))
    assert set(method.product().state_dict()) == before
    method.unbind()
    assert not any(part._forward_pre_hooks for part in method.student.modules())


@pytest.mark.parametrize("steps", [0, 5])
def test_plain_training_of_equal_compute_has_four_times_the_steps(steps: int) -> None:
    task, engine = plain_task(), Engine(epochs=2, batch_size=16, steps=steps, evaluate_every=0)
    assert LongPlain().run(task, Fitter(engine, task, 0)).steps == (4 * steps or 8 * 3)
    with pytest.raises(UserError, match="--method.times is 0"):
        LongPlain(times=0).check()


def test_claims_say_what_would_refute_them() -> None:
    for claim in (objects_claim(), cifar_claim()):
        decisive = {(rule.better, rule.worse) for rule in claim.rules if rule.headline}
        assert decisive == {
            ("sla, 4 passes", "rotations as data"),
            ("sla+sd", "sla"),
            ("sla+sd", "plain, 4x epochs"),
        }
        assert claim.seeds >= 5


# -- what is kept -----------------------------------------------------------------------------------------------


def fitted(mode: Any, **options: Any) -> tuple[SLASD, TransformedClassification, nn.Module]:
    method, task = SLASD(mode=mode, **options), plain_task()
    engine = Engine(epochs=2, batch_size=16, evaluate_every=0, recipe=Recipe(lr=0.1))
    return method, task, method.run(task, Fitter(engine, task, 0)).product


def test_the_mode_says_what_is_kept_of_the_same_training() -> None:
    (method, task, plain), (_, _, single), (_, _, vote) = (fitted(mode) for mode in ("sd", "si", "ag"))
    assert plain is method.student
    assert set(plain.state_dict()) == set(task.make_student(0).state_dict())
    assert not any(part._forward_pre_hooks for part in plain.modules())
    assert same(weights_of(single), weights_of(vote))
    assert same(weights_of(single.network), weights_of(plain))
    x = task.images.test.fetch(torch.arange(5), None)[0]
    joint = [single.both(torch.rot90(x, k, (2, 3)))[1].unflatten(-1, (3, 4))[..., k] for k in range(4)]
    torch.testing.assert_close(vote(x), torch.stack(joint).mean(0))
    torch.testing.assert_close(single(x), joint[0])
    assert torch.equal(vote.asked("sd")(x), plain(x))


def test_both_heads_and_the_encoder_are_trained_together() -> None:
    method, task, product = fitted("ag")
    fresh = SLASD(mode="ag")
    with torch.random.fork_rng():
        fresh.bind(task, 0)
    moved = {
        name
        for name, value in weights_of(product).items()
        if not torch.equal(value, fresh.network.state_dict()[name])
    }
    assert moved == set(product.state_dict())
    assert list(method.players()) == ["student"]


def test_the_three_accuracies_and_what_they_cost_are_scored_whatever_is_kept() -> None:
    from stillroom.runtime import Runtime

    found = []
    for mode in ("sd", "ag"):
        method, task, product = fitted(mode)
        test, cost = task.score(product, "test", Runtime()), task.cost(product)
        names = {"sd": "plain_head", "si": "joint_head", "ag": "vote"}
        assert test["accuracy"] == test[f"{names[mode]}_accuracy"]
        assert cost["multiply_adds"] == cost[f"{names[mode]}_multiply_adds"]
        one = cost["plain_head_multiply_adds"]
        assert cost["joint_head_multiply_adds"] == one + 8 * 12
        assert cost["vote_multiply_adds"] == 4 * (one + 8 * 12)
        assert "vote_accuracy" not in task.score(product, "validation", Runtime())
        figures = task.figures({"sla-sd": product}, Runtime())
        assert [figure["title"] for figure in figures] == ["Three ways to ask the network", "Copies"]
        assert "4 passes" in figures[0]["caption"]
        found.append({name: test[f"{name}_accuracy"] for name in names.values()})
        plain = task.make_student(1)
        assert "vote_accuracy" not in task.score(plain, "test", Runtime())
        assert task.figures({"plain": plain}, Runtime()) == []
        del method
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"temperature": 0.0}, "--method.temperature is 0.0"),
        ({"beta": -1.0}, "--method.beta is -1.0"),
        ({"distil": False}, "--method.distil is False, so nothing trains the plain head"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        SLASD(**options).check()


def test_a_vote_needs_a_task_that_can_keep_it_and_all_need_images() -> None:
    from stillroom.predictors.text_classification import TextClassification

    task = Classification(data="digits", teacher="none", student="cnn:4-8")
    with pytest.raises(UserError, match="--method.mode is ag, and Classification keeps plain classifiers"):
        SLASD(mode="ag", transformations="none").bind(task, 0)
    SLASD(transformations="none").bind(task, 0)
    with pytest.raises(UserError, match="transforms images, TextClassification has none"):
        SLASD().bind(TextClassification(), 0)


def test_digits_are_warned_about_and_have_no_colours() -> None:
    task = TransformedClassification(data="digits", student="cnn:4-8")
    with pytest.warns(UserWarning, match="a turned character of 'digits' may be another one"):
        SLASD().bind(task, 0)
    with pytest.raises(UserError, match="data 'digits' has 1: pass rotations"):
        SLASD(transformations="colours-6").bind(task, 0)


def test_data_without_labels_and_networks_without_a_last_layer_are_refused() -> None:
    class Halved(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) / 2

    bare = plain_task().using(data=drawn(60, 3, 6, 6).float())
    with pytest.raises(UserError, match="has no labels"):
        bare.check(0, teacher=False)
    odd = plain_task().using(student=Halved(nn.Flatten(), nn.Linear(108, 3)))
    with pytest.raises(UserError, match="logits of Halved are no linear layer's"):
        SLASD().bind(odd, 0)


# -- runs -------------------------------------------------------------------------------------------------------

QUICK = ["--task.train-samples", "120", "--task.student-samples", "60", "--task.student", "cnn:4-8"]
QUICK = [*QUICK, "--engine.epochs", "2", "--engine.batch-size", "20"]


def test_a_vote_from_the_command_line_comes_back(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert main(["run", "sla-sd", *QUICK, "--method.mode", "ag", "--out", str(out)]) == 0
    result = json.loads((out / "result.json").read_text())
    assert list(result["arms"]) == ["plain", "sla-sd"]
    assert "trained without it, in one pass against 4" in result["verdict"]["text"]
    test = result["arms"]["sla-sd"]["test"]
    assert test["accuracy"] == test["vote_accuracy"]
    network = stillroom.Run(out).student()
    assert isinstance(network, JointNetwork)
    task = TransformedClassification(student="cnn:4-8")
    x, y = task.images.test.fetch(torch.arange(1500), None)
    with torch.no_grad():
        share = (network(x).argmax(-1) == y).float().mean().item()
    card = (out / "student" / "README.md").read_text()
    assert "4 passes" in card
    assert "TransformedClassification.load" in card
    assert abs(share - test["accuracy"]) < 0.2  # other normalisation: 120 images' mean and deviation
    assert "Three ways to ask the network" in (out / "report.html").read_text()


def test_the_plain_student_from_the_command_line_is_any_classifier(tmp_path: Path) -> None:
    out = tmp_path / "run"
    turns = ["--method.transformations", "half-turns-colours-3", "--task.mixup", "0.4"]
    assert main(["run", "sla-sd", *QUICK, *turns, "--out", str(out)]) == 0
    student = stillroom.Run(out).student()
    assert type(student).__name__ == "CNN"
    assert json.loads((out / "student" / "config.json").read_text())["architecture"] == "cnn:4-8"


class Own(nn.Module):
    """A user's network."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.answer = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.answer(self.body(x).flatten(1))


def folder_of_images(folder: Path) -> str:
    """Dark and bright noise, 20 of each, 10 by 8 pixels."""
    rng = np.random.default_rng(0)
    for kind, level in (("dark", 80), ("bright", 180)):
        (folder / kind).mkdir(parents=True)
        for number in range(20):
            pixels = (level + rng.integers(0, 60, (8, 10, 3))).astype(np.uint8)
            Image.fromarray(pixels).save(folder / kind / f"{number}.png")
    return str(folder)


def test_a_user_s_own_network_and_folder(tmp_path: Path) -> None:
    data = folder_of_images(tmp_path / "pictures")
    options: dict[str, Any] = {"epochs": 2, "batch_size": 10, "mode": "ag"}
    with pytest.raises(UserError, match="are 8 x 10: pass --task.image-size, or half-turns"):
        stillroom.distill(None, Own(), data, "sla-sd", out=tmp_path / "no", **options)
    vote, run = stillroom.distill(
        None, Own(), data, "sla-sd", transformations="half-turns", out=tmp_path / "run", **options
    )
    x = torch.rand(3, 3, 8, 10)
    with pytest.raises(UserError, match="network of your own: pass student"):
        run.student()
    again = run.student(Own())
    torch.testing.assert_close(again(x), vote(x))
    plain = again.asked("sd")
    assert isinstance(plain, Own)
    config = tmp_path / "run" / "student" / "config.json"
    config.write_text(config.read_text().replace("half-turns", "mirrors"))
    with pytest.raises(UserError, match="no joint head that is known"):
        run.student(Own())


def test_a_network_of_timm_from_the_command_line(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    data, out = folder_of_images(tmp_path / "pictures"), tmp_path / "run"
    line = ["--task.data", data, "--task.student", "timm:test_resnet", "--task.image-size", "32"]
    line = [*line, "--method.mode", "si", "--engine.epochs", "1", "--engine.batch-size", "14"]
    assert main(["run", "sla-sd", *line, "--out", str(out)]) == 0
    network = stillroom.Run(out).student()
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(network(x), network.both(x)[1][:, ::4])
    assert network.path == "fc"


# -- the built-in pictures --------------------------------------------------------------------------------------


def test_pictures_are_balanced_and_a_function_of_their_seed() -> None:
    (x, y), (again, _), (other, _) = (draw_objects(40, seed) for seed in (1, 1, 2))
    assert x.shape == (40, 3, 16, 16)
    assert x.dtype == torch.uint8
    assert y.bincount().tolist() == [4] * 10
    assert torch.equal(x, again)
    assert not torch.equal(x, other)


def test_no_kind_is_another_kind_turned_or_mirrored_and_none_is_its_own_turn() -> None:
    ends = np.linspace(-1, 1, 65)[1::2]
    u, v = np.meshgrid(ends, ends[::-1])
    shapes = {kind: np.logical_or.reduce(parts(u, v)) for kind, parts in KINDS.items()}

    def alike(a: Any, b: Any) -> float:
        return (a & b).sum() / (a | b).sum()

    for (first, a), (second, b), turns in product(shapes.items(), shapes.items(), range(4)):
        turned = [np.rot90(b, turns), np.rot90(b[:, ::-1], turns)]
        if first != second or turns:
            assert max(alike(a, one) for one in turned) < 0.8, (first, second, turns)


def test_the_built_in_task_shows_the_student_six_hundred_unless_told() -> None:
    assert len(TransformedClassification().train()) == 600
    assert len(TransformedClassification(student_samples=50).train()) == 50
    assert len(TransformedClassification(data="digits").train()) == 200
    assert TransformedClassification().images.classes == list(KINDS)

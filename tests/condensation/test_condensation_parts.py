"""Augmentation, class batches, selections, sets and their folder, and what networks learn from them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stillroom.condensation.image_condensation import ImageCondensation
from stillroom.condensation.parts.classes import ClassBatches, members
from stillroom.condensation.parts.evaluation import Lesson, trained_on
from stillroom.condensation.parts.selection import AllImages, RandomImages, first_images, k_centres
from stillroom.condensation.parts.siamese import (
    STRATEGY,
    TRANSFORMS,
    augment,
    color,
    crop,
    cutout,
    flip,
    rotate,
    scale,
    siamese,
    transforms_of,
)
from stillroom.condensation.parts.synthetic import SyntheticSet
from stillroom.data import TensorSource
from stillroom.engine import Engine
from stillroom.errors import UserError
from stillroom.fitter import Fitter
from stillroom.models import build
from stillroom.predictors.baselines import Plain
from stillroom.predictors.classification import Classification
from stillroom.runtime import Runtime
from stillroom.workflow import Job, execute
from toys import same, weights_of


def waves(*shape: int, k: float = 1.0) -> Tensor:
    return (
        torch.sin(k * torch.arange(1, math.prod(shape) + 1, dtype=torch.float64) ** 1.3).view(shape).float()
    )


# -- augmentation -------------------------------------------------------------------------------------------------

FIRST, SECOND = (0.1, 0.8, 0.3), (0.95, 0.02, 0.6)
PUBLISHED: dict[tuple[str, tuple[float, float, float]], list[list[float]]] = {
    ("color", FIRST): [[24.0577049, 281.2913513, 0.5834161639], [5.2197961807, 77.9980926, -1.0694483518]],
    ("color", SECOND): [
        [-14.748781204, 212.2713165, 1.0714151859],
        [0.5302155017, 109.5838698, -0.4798530042],
    ],
    ("crop", FIRST): [[7.1960334777, 183.6034850, 0.5964449048], [-0.3521890640, 68.0200729, -0.2918303310]],
    ("crop", SECOND): [
        [-7.6940860748, 179.4708404, -0.3009071350],
        [-5.4383325576, 70.9012756, 0.2260708957],
    ],
    ("cutout", FIRST): [[5.0216140747, 215.7162017, 0.9695205092], [1.7053802013, 77.1539764, -0.8430514335]],
    ("cutout", SECOND): [
        [6.9699521064, 223.5837097, 0.9695205092],
        [2.1052241325, 82.1877593, -0.8430514335],
    ],
    ("flip", FIRST): [[-3.3195745944, 237.6849670, 0.8991625905], [6.9003419876, 90.4196929, -0.8430514335]],
    ("flip", SECOND): [[9.5109863281, 237.6849670, 0.9695205092], [3.2053315639, 90.4196929, -0.8430514335]],
    ("scale", FIRST): [[4.4657511710, 155.8462677, 0.8753755688], [-0.9313549399, 50.5812988, -0.2910916209]],
    ("scale", SECOND): [[4.0395340919, 133.5691375, 0.6152176856], [0.8282022476, 46.4304504, -0.1132494285]],
    ("rotate", FIRST): [
        [3.9364197254, 138.8780364, 0.7802093029],
        [-2.4966106414, 53.2659378, -0.7214193940],
    ],
    ("rotate", SECOND): [
        [8.8634862899, 142.7293701, 0.9124844670],
        [-3.8909409046, 52.8582038, -0.3001253902],
    ],
}
"""The published transforms with these numbers in place of their draws, on waves [2, 3, 8, 8] and [2, 1, 10, 7]: the
sum against other waves, the sum of sizes, and one pixel."""


@pytest.mark.parametrize(("name", "u"), PUBLISHED)
def test_transforms_are_those_of_the_published_code(name: str, u: tuple[float, float, float]) -> None:
    for shape, wanted in zip([(2, 3, 8, 8), (2, 1, 10, 7)], PUBLISHED[name, u], strict=True):
        y = TRANSFORMS[name](waves(*shape), torch.tensor([u, u]))
        seen = [float((y * waves(*shape, k=1.7)).sum()), float(y.abs().sum()), float(y[1, 0, 2, 3])]
        assert seen == pytest.approx(wanted, abs=3e-4)


X = waves(1, 3, 8, 8)


def u(*numbers: float) -> Tensor:
    return torch.tensor([[*numbers, 0.0, 0.0, 0.0][:3]])


def test_in_the_middle_of_their_ranges_transforms_change_nothing() -> None:
    one = (1 - 1 / 1.2) / (1.2 - 1 / 1.2)
    assert torch.allclose(color(X, u(0.5, 0.5, 0.5)), X, atol=1e-6)
    assert torch.equal(crop(X, u(0.5, 0.5)), X)
    assert torch.equal(flip(X, u(0.5)), X)
    assert torch.allclose(scale(X, u(one, one)), X, atol=1e-5)
    assert torch.allclose(rotate(X, u(0.5)), X, atol=1e-5)


def test_a_shift_is_at_most_an_eighth_and_leaves_zeros() -> None:
    moved = crop(X, u(0.0, 0.999))
    assert torch.equal(moved[..., 1:, :-1], X[..., :-1, 1:])
    assert not moved[..., 0, :].any()
    assert not moved[..., -1].any()


def test_a_hole_has_half_the_side_and_may_reach_over_the_edge() -> None:
    ones = torch.ones(1, 1, 8, 8)
    middle, corner = cutout(ones, u(0.5, 0.5)), cutout(ones, u(0.0, 0.0))
    assert (middle == 0).sum() == 16
    assert not middle[..., 2:6, 2:6].any()
    assert (corner == 0).sum() == 4
    assert not corner[..., :2, :2].any()


def test_saturation_leaves_grey_alone_and_flip_mirrors_left_and_right() -> None:
    grey = X[:, :1]
    assert torch.allclose(color(grey, u(0.5, 0.9, 0.5)), grey, atol=1e-6)
    assert torch.equal(flip(X, u(0.1))[..., 0], X[..., -1])


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_are_differentiable(name: str) -> None:
    x = X[:, :, :4, :4].double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: TRANSFORMS[name](x, u(0.3, 0.7, 0.2).double()), x)


def test_each_image_has_its_own_transform_and_stays_in_its_place() -> None:
    x, names = waves(5, 3, 8, 8), ("flip", "cutout", "color")
    kinds, numbers = torch.tensor([2, 0, 1, 0, 2]), torch.rand(5, 3)
    made = augment(x, kinds, numbers, names)
    for row in range(5):
        alone = TRANSFORMS[names[int(kinds[row])]](x[row : row + 1], numbers[row : row + 1])
        assert torch.allclose(made[row], alone[0], atol=1e-6)


def test_a_group_shares_one_transform_and_its_numbers() -> None:
    one = waves(2, 1, 3, 8, 8)
    drawn = torch.tensor([[0.1, 0.9, 0.2, 0.7], [0.9, 0.3, 0.1, 0.8]])
    three, five = (siamese(one.expand(2, n, 3, 8, 8), drawn, transforms_of(STRATEGY)) for n in (3, 5))
    assert all(torch.equal(three[:, 0], made[:, i]) for made in (three, five) for i in range(3))
    assert torch.allclose(three[0, 0], color(one[0], drawn[:1, 1:])[0], atol=1e-6)
    assert torch.allclose(three[1, 0], rotate(one[1], drawn[1:, 1:])[0], atol=1e-6)
    assert torch.equal(siamese(one, drawn, ()), one)


def test_an_unknown_transform_is_refused() -> None:
    assert transforms_of("none") == ()
    with pytest.raises(
        UserError, match=r"--method.strategy 'crop_spin' names 'spin': join some of color, crop"
    ):
        transforms_of("crop_spin")


# -- classes ------------------------------------------------------------------------------------------------------

LABELS = torch.tensor([1, 0, 1, 2, 0, 1, 1, 0, 1, 2])
SOURCE = TensorSource(torch.arange(10.0).view(10, 1, 1, 1).expand(10, 1, 2, 2), LABELS)


def batches(images: int) -> ClassBatches:
    return ClassBatches(SOURCE, members(LABELS, 3), images)


def test_a_sample_is_a_class_with_images_of_its_own() -> None:
    x, y = batches(3).fetch(torch.tensor([2, 0, 1]), 7)
    assert x.shape == (3, 3, 1, 2, 2)
    assert y.tolist() == [2, 0, 1]
    assert all((LABELS[x[i, :, 0, 0, 0].long()] == y[i]).all() for i in range(3))


def test_draws_are_without_repetition_as_long_as_there_are_images() -> None:
    x, _ = batches(5).fetch(torch.arange(3), 3)
    counts = [rows[:, 0, 0, 0].unique(return_counts=True)[1].tolist() for rows in x]
    assert counts[1] == [1] * 5
    assert sorted(counts[0]) == [1, 2, 2]
    assert sorted(counts[2]) == [2, 3]


def test_a_draw_depends_on_view_and_class_alone() -> None:
    source = batches(3)
    whole, _ = source.fetch(torch.arange(3), 5)
    assert torch.equal(source.fetch(torch.tensor([1]), 5)[0], whole[1:2])
    views = torch.stack([source.fetch(torch.tensor([1]), view)[0] for view in range(8)])
    assert len(views.flatten(1).unique(dim=0)) > 4
    assert torch.equal(source.subset(torch.tensor([2, 1])).fetch(torch.tensor([1]), 5)[0], whole[1:2])
    assert not source.fixed


# -- selections ---------------------------------------------------------------------------------------------------


def test_k_centres_take_the_middle_first_and_then_the_farthest() -> None:
    x = torch.tensor([[0.0], [1.0], [2.0], [3.0], [10.0], [4.0]])
    assert k_centres(x, 3).tolist() == [3, 4, 0]
    assert sorted(k_centres(x, 6).tolist()) == list(range(6))
    assert sorted(k_centres(torch.zeros(3, 2), 3).tolist()) == [0, 1, 2]


@pytest.mark.parametrize("start", ["real", "smart"])
def test_first_images_are_different_real_ones_class_by_class(start: Any) -> None:
    chosen = first_images(SOURCE, 3, 2, start, 0)[:, 0, 0, 0].long()
    assert LABELS[chosen].tolist() == [0, 0, 1, 1, 2, 2]
    assert len(chosen.unique()) == 6


def test_first_images_are_a_function_of_the_seed() -> None:
    made = [first_images(SOURCE, 3, 2, "real", seed) for seed in (0, 0, 1, 2)]
    assert torch.equal(made[0], made[1])
    assert not all(torch.equal(made[0], other) for other in made[2:])
    noise = first_images(SOURCE, 3, 2, "noise", 0)
    assert noise.shape == (6, 1, 2, 2)
    assert len(noise.unique()) == 24


# -- the task -----------------------------------------------------------------------------------------------------


def tiny(**options: Any) -> ImageCondensation:
    task = ImageCondensation(networks=("mlp:8", "convnet:4x1"), repeats=1, eval_epochs=3, train_samples=100)
    return task.but(**options)


def chosen(method: Any, task: ImageCondensation, seed: int = 0) -> SyntheticSet:
    return method.run(task, Fitter(Engine(), task, seed)).product


def test_random_images_are_images_of_the_training_split_and_all_images_are_all() -> None:
    task = tiny(ipc=3)
    few, everything = chosen(RandomImages(), task), chosen(AllImages(), task)
    assert len(few) == 30
    assert few.labels.bincount().tolist() == [3] * 10
    x, y = task.train().fetch(torch.arange(100), None)
    assert torch.equal(everything.images.detach(), x)
    for image, label in zip(few.images.detach(), few.labels, strict=True):
        rows = (x == image).flatten(1).all(1)
        assert rows.any()
        assert y is not None
        assert (y[rows] == label).all()


def test_a_class_with_too_few_images_is_named() -> None:
    counts = tiny().images.train.labels.bincount()  # type: ignore[union-attr]
    small = int(counts.argmin())
    tiny(ipc=int(counts.min())).check(0, False)
    with pytest.raises(
        UserError,
        match=rf"--task.ipc is 11 and class '{small}' has {counts.min()} training images: pass {counts.min()} or less",
    ):
        tiny(ipc=11).check(0, False)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"ipc": 0}, "--task.ipc is 0: pass 1 or more"),
        ({"eval_lr": 0.0}, "--task.eval-lr is 0.0: pass a number above 0"),
        ({"networks": ()}, "--task.networks is empty: pass each architecture once"),
        ({"networks": ("mlp:8", "mlp:8")}, "--task.networks is mlp:8 mlp:8: pass each architecture once"),
        ({"networks": ("convnet:8x5",)}, "allow 3: pass a smaller depth"),
        ({"strategy": "spin"}, "--task.strategy 'spin' names 'spin'"),
    ],
)
def test_what_cannot_work_is_refused_at_once(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        tiny(**options).check(0, False)


def test_data_that_cannot_be_condensed_are_refused() -> None:
    x, y = waves(60, 4, 8, 8), torch.arange(60) % 3
    with pytest.raises(UserError, match="data 'tensors' has no labels: pass --task.label-column"):
        tiny(train_samples=None).using(data=x[:, :3]).check(0, False)
    with pytest.raises(UserError, match="data 'tensors' has 4 channels: pass grey or RGB images"):
        tiny(train_samples=None).using(data=(x, y)).check(0, False)


def test_networks_that_are_no_fresh_ones_are_refused() -> None:
    with pytest.raises(
        UserError, match="networks has a Linear: pass names, or functions that make fresh networks"
    ):
        tiny().using(networks=[nn.Linear(2, 2)]).check(0, False)  # type: ignore[attr-defined]


def test_digits_are_not_mirrored_and_photographs_are() -> None:
    assert "flip" not in ImageCondensation().transforms
    assert ImageCondensation(data="somewhere").transforms == STRATEGY
    assert ImageCondensation(strategy="crop").transforms == "crop"


def test_networks_are_fresh_alike_for_all_arms_and_trained_once() -> None:
    task, runtime = tiny(), Runtime()
    few = chosen(RandomImages(), task)
    score = task.score(few, "test", runtime)
    assert task.score(few, "test", runtime) == score
    assert len(task.__dict__["_learned"]) == 1
    again = tiny()
    assert again.score(few, "test", runtime)["per_sample"] == score["per_sample"]
    networks = [tiny(repeats=2, eval_seed=seed).learned(few)["mlp:8"] for seed in (0, 1)]
    states = [weights_of(network) for pair in networks for network in pair]
    assert not any(same(states[0], other) for other in states[1:])


def test_a_score_is_of_real_test_images_and_of_the_first_network() -> None:
    task, runtime = tiny(repeats=2), Runtime()
    few = chosen(RandomImages(), task)
    score = task.score(few, "test", runtime)
    x, y = task.images.test.fetch(torch.arange(900), None)
    assert y is not None
    hits = torch.stack([(n(x).argmax(-1) == y).double() for n in task.learned(few)["mlp:8"]])
    assert score["accuracy"] == score["mlp:8_accuracy"] == pytest.approx(hits.mean().item())
    assert score["per_sample"] == hits.mean(0).tolist()
    assert score["accuracy_deviation"] == pytest.approx((hits[0].mean() - hits[1].mean()).abs().item() / 2)
    assert (score["images"], score["samples"], score["share_of_images"]) == (10, 900, 0.1)
    validation = task.score(few, "validation", runtime)
    assert set(validation) == {"accuracy", "mlp:8_accuracy", "convnet:4x1_accuracy"}


def test_a_lesson_is_as_long_as_it_says() -> None:
    lesson = Lesson(epochs=7, most_steps=30, batch_size=4, lr=0.01, strategy="none")
    assert [lesson.engine(n).steps for n in (4, 9, 100)] == [7, 21, 30]
    recipe = lesson.engine(4).recipe
    assert (recipe.lr, recipe.momentum, recipe.weight_decay) == (0.01, 0.9, 5e-4)
    assert [recipe.factor(step, 10) for step in (0, 4, 5, 9)] == pytest.approx([1, 1, 0.1, 0.1])


def test_networks_learn_from_the_set_with_its_augmentation() -> None:
    source = TensorSource(waves(4, 1, 8, 8), torch.arange(4))

    def make(seed: int) -> nn.Module:
        return build("mlp:16", shape=(1, 8, 8), classes=4, seed=seed)

    lesson = Lesson(150, 150, 4, 0.05, "none")
    network = trained_on(source, make, lesson, 3)
    assert not network.training
    assert (network(source.x).argmax(-1) == source.y).all()
    plain, turned = (
        trained_on(source, make, Lesson(5, 5, 4, 0.05, strategy), 3) for strategy in ("none", "rotate")
    )
    assert not same(weights_of(plain), weights_of(turned))


# -- the folder ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, SyntheticSet]:
    job = Job(RandomImages(), tiny(ipc=2), Engine(), 0)
    return execute(job, tmp_path_factory.mktemp("out") / "run")


def test_a_folder_is_a_data_set_for_everybody(run: tuple[Any, SyntheticSet]) -> None:
    import datasets

    folder, made = run[0].path / "student", run[1]
    there = datasets.load_dataset(str(folder))
    assert {split: len(rows) for split, rows in there.items()} == {"train": 20, "validation": 97, "test": 900}
    assert there["train"]["label"] == made.labels.tolist()
    assert there["train"].features["label"].names == [str(c) for c in range(10)]
    pixels = torch.from_numpy(np.asarray(there["train"][3]["image"]).copy()).long()
    assert torch.equal(pixels, (made.pixels()[3, 0] * 255).round().long())


def test_a_folder_comes_back_to_the_bit(run: tuple[Any, SyntheticSet]) -> None:
    back = run[0].student()
    assert not back.training
    assert same(weights_of(back), weights_of(run[1]))
    assert (back.classes, back.mean, back.std) == (run[1].classes, run[1].mean, run[1].std)
    assert torch.equal(back.pixels(), run[1].pixels())
    x, y = back.source().fetch(torch.arange(20), None)
    assert x.shape == (20, 1, 8, 8)
    assert y.tolist() == back.labels.tolist()


def test_a_folder_is_data_for_our_own_classifiers(run: tuple[Any, SyntheticSet]) -> None:
    task = Classification(data=str(run[0].path / "student"), teacher="none", student="mlp:8")
    sizes = [len(s) for s in (task.images.train, task.images.validation, task.images.test)]
    assert sizes == [20, 97, 900]
    task.check(0, False)
    network = Engine(epochs=60, batch_size=20, evaluate_every=0).fit(Plain(), task, 0).product
    assert task.score(network, "test", Runtime())["accuracy"] > 0.3  # chance is 0.1


def test_the_real_images_stay_at_home_where_asked(tmp_path: Path, run: tuple[Any, SyntheticSet]) -> None:
    task = tiny(export_real=False, ipc=2)
    task.export(run[1], tmp_path, run[0].result | {"options": {}})
    assert [file.name for file in (tmp_path / "data").iterdir()] == ["train-00000-of-00001.parquet"]
    assert "validation" not in (tmp_path / "README.md").read_text().split("---")[1]


def test_the_card_says_how_good_it_is(run: tuple[Any, SyntheticSet]) -> None:
    text = (run[0].path / "student" / "README.md").read_text()
    test = run[0].result["arms"]["random-images"]["test"]
    assert f"| random-images | {test['mlp:8_accuracy']:.1%} | {test['convnet:4x1_accuracy']:.1%} |" in text
    assert "tags: [dataset-distillation, stillroom]" in text


def test_a_foreign_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a folder that Stillroom wrote"):
        ImageCondensation.load(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"images.safetensors' is missing"):
        ImageCondensation.load(tmp_path)


def test_tensors_of_any_range_are_shown_in_full() -> None:
    x = 40 * waves(30, 3, 8, 8)
    task = tiny(train_samples=None, networks=("mlp:4",)).using(data=(x, torch.arange(30) % 3))
    assert isinstance(task, ImageCondensation)
    made = chosen(RandomImages(), task)
    assert made.limits[0] < -30
    assert made.limits[1] > 30
    pixels = made.pixels()
    assert 0 <= pixels.min() < 0.1
    assert 0.9 < pixels.max() <= 1


def test_pictures_show_each_arm() -> None:
    task, runtime = tiny(ipc=2), Runtime()
    sets = {"one": chosen(RandomImages(), task), "other": chosen(RandomImages(), task, 1)}
    grid, bars = task.figures(sets, runtime)
    assert grid["svg"].count("<image") == 4
    assert "one, image 2 of each class" in grid["svg"]
    assert "convnet:4x1" in bars["svg"]

"""FerKD: regions, SelfMix, scenes, tables, epochs; and the numbers of FKD's code, of crops and compression too."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stillroom import distill
from stillroom.cli import main
from stillroom.engine import Engine, Watcher
from stillroom.errors import UserError
from stillroom.fitter import Fitter
from stillroom.method import Batch, Clock, Noise, Update
from stillroom.optim import Recipe
from stillroom.predictors.baselines import Plain
from stillroom.predictors.classification import Classification
from stillroom.predictors.labels.ferkd import (
    CropClassification,
    FerKD,
    Thresholds,
    adapted,
    cut_box,
    first_single,
    regions_of,
    rescued,
    shuffled,
    softened,
    thresholds,
    within_images,
)
from stillroom.predictors.labels.ferkd.adapting import facts_of
from stillroom.predictors.labels.ferkd.regions import EASIEST, HARD, HARDEST, IMPORTANT
from stillroom.predictors.labels.ferkd.table import Labelling
from stillroom.predictors.parts.compression import compress, recover
from stillroom.predictors.parts.crops import (
    Cropping,
    covered,
    draw_crops,
    pixels_of,
    replay,
)
from stillroom.predictors.parts.losses import soft_cross_entropy
from stillroom.predictors.text_classification import TextClassification
from stillroom.runtime import Runtime
from stillroom.teacher import Teacher
from stillroom.teaching import teach
from stillroom.workflow import Job, execute
from toys import apart, same, weights_of

REFERENCE = json.loads((Path(__file__).parent / "reference_ferkd.json").read_text())
FKD: dict[str, Any] = {"low": 0.0, "middle": 0.0, "top": 1.0}
CROPPING = Cropping((12, 12))


def labels_of_reference() -> tuple[Tensor, Tensor]:
    """Soft labels and a student's logits [3, 12] of the reference."""
    b, i = torch.meshgrid(torch.arange(3.0), torch.arange(12.0), indexing="ij")
    return (3 * (1.7 * b + 0.9 * i + 0.3).sin()).softmax(-1), 2.5 * (0.8 * b - 1.3 * i + 0.1).cos()


def some_labels(count: int, classes: int, seed: int = 0) -> Tensor:
    return (3 * torch.randn(count, classes, generator=torch.Generator().manual_seed(seed))).softmax(-1)


# -- against the authors' code -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["hard", "smoothing", "marginal-smoothing", "marginal-renormalised"])
def test_labels_come_back_as_from_the_published_code(kind: Any) -> None:
    q, z = labels_of_reference()
    expected = REFERENCE["labels"][kind]
    made = recover(compress(q, kind, 5, "float32"), kind, 12)
    torch.testing.assert_close(made, torch.tensor(expected["recovered"]), rtol=0, atol=1e-6)
    torch.testing.assert_close(
        soft_cross_entropy(z, made), torch.tensor(expected["loss"]), rtol=1e-6, atol=1e-6
    )


def test_ten_values_come_back_as_from_the_published_code() -> None:
    q, _ = labels_of_reference()
    made = recover(compress(q, "marginal-smoothing", 10, "float32"), "marginal-smoothing", 12)
    expected = torch.tensor(REFERENCE["labels"]["marginal-smoothing 10"]["recovered"])
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "size"), [("same", (37, 53)), ("double", (74, 106)), ("half more", (55, 79))]
)
def test_a_box_is_the_published_code_s_pixels_at_every_resolution(name: str, size: tuple[int, int]) -> None:
    for row in REFERENCE["boxes"]:
        rows, columns = pixels_of(torch.tensor(row["box"]), *size)
        found = [rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start]
        assert found == row[name]


def test_replayed_crops_are_the_published_code_s() -> None:
    y, x = np.mgrid[0:37, 0:53]
    image = torch.tensor((127.5 + 100 * np.sin(0.3 * y) * np.cos(0.2 * x)).astype(np.float32))[None]
    for number, expected in enumerate(REFERENCE["replayed"]):
        box = torch.tensor(REFERENCE["boxes"][number]["box"])
        made = replay(image, box, number % 2 == 1, (12, 12))[0]
        torch.testing.assert_close(made, torch.tensor(expected), rtol=0, atol=2e-3)  # of a range of 200


def test_single_crops_begin_where_the_published_script_begins_them() -> None:
    # its loop: for epoch in range(0, epochs, n): single crops from the first epoch >= epochs - n on
    for epochs in range(1, 40):
        for n in range(1, 6):
            assert first_single(epochs, n) == next(e for e in range(0, epochs, n) if e >= epochs - n)


# -- regions -------------------------------------------------------------------------------------------------


def confidences(images: int = 50, crops: int = 8) -> Tensor:
    return torch.rand(images, crops, generator=torch.Generator().manual_seed(0))


def test_regions_cover_all_crops_disjointly_and_follow_the_thresholds() -> None:
    c = confidences()
    regions = regions_of(c, Thresholds(0.1, 0.3, 0.9))
    rule = {
        HARDEST: c < 0.1,
        HARD: (c >= 0.1) & (c < 0.3),
        IMPORTANT: (c >= 0.3) & (c <= 0.9),
        EASIEST: c > 0.9,
    }
    assert sum(mask.int() for mask in rule.values()).eq(1).all()
    for region, mask in rule.items():
        assert torch.equal(regions == region, mask)


def test_a_confidence_at_a_threshold_is_on_the_side_that_the_rule_says() -> None:
    at = Thresholds(0.25, 0.5, 0.75)
    regions = regions_of(torch.tensor([[0.25, 0.5, 0.75]]), at)
    assert regions.tolist() == [[HARD, IMPORTANT, IMPORTANT]]


def test_quantiles_are_taken_once_over_the_whole_table() -> None:
    c = confidences(200, 25)
    regions = regions_of(c, thresholds(c, 0.05, 0.2, 0.98, "quantiles"))
    shares = [float((regions == r).float().mean()) for r in range(4)]
    assert shares == pytest.approx([0.05, 0.15, 0.78, 0.02], abs=1e-3)
    assert thresholds(c, 0.05, 0.2, 0.98, "confidence") == Thresholds(0.05, 0.2, 0.98)


@pytest.mark.parametrize("scale", ["quantiles", "confidence"])
def test_thresholds_at_their_ends_give_fkd_exactly(scale: Any) -> None:
    c, q = confidences(), some_labels(8, 5)
    regions = regions_of(c, thresholds(c, 0.0, 0.0, 1.0, scale))
    assert (regions == IMPORTANT).all()
    y = torch.zeros(8, dtype=torch.int64)
    assert torch.equal(adapted(q, y, regions[0], 0.1), q)


def test_a_middle_above_one_gives_smoothed_hard_labels_exactly() -> None:
    c, q = confidences(), some_labels(8, 5)
    regions = regions_of(c, thresholds(c, 0.0, 1.5, 1.5, "confidence"))
    y = torch.arange(8) % 5
    made = adapted(q, y, regions[0], 0.1)
    torch.testing.assert_close(made, 0.9 * F.one_hot(y, 5) + 0.1 / 4 * (1 - F.one_hot(y, 5)))


def test_a_softened_label_sums_to_one_and_points_to_the_truth_whatever_the_teacher_says() -> None:
    y = torch.tensor([0, 3, 2])
    wrong = F.one_hot((y + 1) % 5, 5).float()
    made = adapted(wrong, y, torch.tensor([HARD, HARD, IMPORTANT]), 0.1)
    torch.testing.assert_close(made.sum(-1), torch.ones(3))
    assert made.argmax(-1).tolist() == [0, 3, 3]
    torch.testing.assert_close(softened(y, 5, 0.0), F.one_hot(y, 5).float())
    torch.testing.assert_close(softened(y, 5, 1e-6), softened(y, 5, 0.0), rtol=0, atol=1e-5)


def test_an_image_of_which_all_would_go_keeps_its_most_confident_crop() -> None:
    at = Thresholds(0.2, 0.4, 0.8)
    c = torch.tensor([[0.1, 0.15, 0.05], [0.9, 0.95, 0.1], [0.1, 0.5, 0.9]])
    regions = rescued(regions_of(c, at), c, at)
    assert regions[0].tolist() == [HARDEST, HARD, HARDEST]
    assert regions[1].tolist() == [EASIEST, IMPORTANT, HARDEST]
    assert regions[2].tolist() == [HARDEST, IMPORTANT, EASIEST]


def test_the_control_has_as_many_crops_of_each_region_at_other_places() -> None:
    c = confidences()
    regions = regions_of(c, Thresholds(0.1, 0.3, 0.9))
    control = shuffled(regions, 0)
    assert torch.equal(regions.flatten().bincount(), control.flatten().bincount())
    assert not torch.equal(regions, control)
    assert torch.equal(control, shuffled(regions, 0)) and not torch.equal(control, shuffled(regions, 1))


# -- mixing --------------------------------------------------------------------------------------------------


def coloured(images: int = 5, crops: int = 4) -> tuple[Tensor, Tensor]:
    """Crops of one colour an image, and labels that number the crops."""
    x = torch.arange(images, dtype=torch.float32).view(-1, 1, 1, 1, 1).expand(-1, crops, 1, 12, 12).clone()
    labels = F.one_hot(torch.arange(crops), crops).float().expand(images, -1, -1).clone()
    return x, labels


def test_selfmix_never_mixes_two_images() -> None:
    x, labels = coloured()
    for seed in range(20):
        order = torch.rand(5, 4, generator=torch.Generator().manual_seed(seed)).argsort(-1)
        mixed, _ = within_images(x, labels, order, cut_box(np.random.default_rng(seed), 1.0, 12, 12))
        assert torch.equal(mixed, x)


def test_the_label_s_share_is_that_of_the_pixels_exactly() -> None:
    x = torch.zeros(3, 4, 1, 12, 12) + torch.arange(4.0).view(1, 4, 1, 1, 1)  # a crop's pixels are its number
    labels = coloured(3)[1]
    areas = set()
    for seed in range(40):
        order = torch.rand(3, 4, generator=torch.Generator().manual_seed(seed)).argsort(-1)
        box = cut_box(np.random.default_rng(seed), 1.0, 12, 12)
        areas.add(box.share)
        mixed, soft = within_images(x, labels, order, box)
        pixels = torch.stack([(mixed == k).float().mean((2, 3, 4)) for k in range(4)], -1)
        torch.testing.assert_close(soft, pixels, rtol=0, atol=1e-6)
    assert len(areas) > 20


def test_selfmix_of_one_crop_is_the_identity() -> None:
    x, labels = torch.rand(1, 1, 1, 40, 56), torch.tensor([[[0.3, 0.7]]])
    mixed, soft = within_images(
        x, labels, torch.zeros(1, 1, dtype=torch.int64), cut_box(np.random.default_rng(1), 1.0, 40, 56)
    )
    assert torch.equal(mixed, x) and torch.equal(soft, labels)


def test_the_box_is_that_of_cutmix() -> None:
    for seed in range(30):
        random = np.random.default_rng(seed)
        side = np.sqrt(1 - random.beta(0.7, 0.7))
        row, column = random.integers(20), random.integers(30)
        box = cut_box(np.random.default_rng(seed), 0.7, 20, 30)
        edges = [
            np.clip(m + s * (int(n * side) // 2), 0, n) for m, n in ((row, 20), (column, 30)) for s in (-1, 1)
        ]
        assert [box.rows.start, box.rows.stop, box.columns.start, box.columns.stop] == edges
        assert box.share == 1 - (edges[1] - edges[0]) * (edges[3] - edges[2]) / 600


class Constant(nn.Module):
    """Gives the mean of each image as every logit's multiple, and keeps what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 4))

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x
        return x.mean((1, 2, 3)).unsqueeze(1) * self.weight


def batch(x: Tensor, labels: Tensor, part: slice | None = None, step: int = 0, epoch: int = 0) -> Batch:
    part = part or slice(0, len(x))
    noise = Noise(lambda draw: 100 * step + draw, part, len(x), x.device)
    return Batch(x[part], labels[part], torch.arange(10, 10 + len(x))[part], Clock(step, 50, epoch, 8), noise)


def method(**options: Any) -> FerKD:
    made = FerKD(**options)
    made.student, made.seed = Constant(), 3
    return made


def step(made: FerKD, *batches: Batch) -> list[Update]:
    """The updates of the parts of one step, their asks answered with all rows."""
    flows, answers = [made.updates(b) for b in batches], None
    while True:
        asks = [flow.send(answers) for flow in flows]
        if isinstance(asks[0], Update):
            return asks
        answers = torch.cat([ask.values for ask in asks])


def test_the_loss_is_one_soft_cross_entropy_over_all_crops() -> None:
    x, labels = torch.rand(3, 4, 1, 12, 12), some_labels(12, 4).view(3, 4, 4)
    made = method(mix="none", temperature=2.0)
    update = step(made, batch(x, labels))[0]
    z = x.flatten(0, 1).mean((1, 2, 3)).unsqueeze(1) * made.student.weight
    log_p = (z / 2).log_softmax(-1)
    torch.testing.assert_close(update.loss, -(labels.flatten(0, 1) * log_p).sum(-1).mean())
    assert update.logs == {} and update.items == 3


@pytest.mark.parametrize("mix", ["selfmix", "cutmix"])
def test_mixing_is_the_same_however_a_step_is_cut(mix: Any) -> None:
    x, labels = torch.rand(5, 4, 1, 12, 12), some_labels(20, 4).view(5, 4, 4)
    made = method(mix=mix, mix_chance=1.0)
    whole = step(made, batch(x, labels))[0].loss
    parts = step(made, batch(x, labels, slice(0, 2)), batch(x, labels, slice(2, 5)))
    torch.testing.assert_close((2 * parts[0].loss + 3 * parts[1].loss) / 5, whole)
    assert step(made, batch(x, labels, step=1))[0].loss != whole


def test_cutmix_crosses_images_where_selfmix_does_not_and_single_crops_are_not_mixed() -> None:
    x, labels = coloured()
    for mix, crosses in (("selfmix", False), ("cutmix", True)):
        made, mixed = method(mix=mix, mix_chance=1.0), 0
        for number in range(6):
            step(made, batch(x, labels, step=number))
            mixed += int((made.student.seen != x.flatten(0, 1)).any())
        assert (mixed > 0) is crosses
    made = method(mix_chance=1.0)
    made._alone = 4
    other = torch.rand(5, 4, 1, 12, 12)
    step(made, batch(other, labels, step=1, epoch=4))
    assert torch.equal(made.student.seen, other.flatten(0, 1))
    step(made, batch(other, labels, step=1, epoch=3))
    assert not torch.equal(made.student.seen, other.flatten(0, 1))


def test_a_step_mixes_with_the_chance_that_is_asked_for() -> None:
    x, labels = torch.rand(2, 4, 1, 12, 12), some_labels(8, 4).view(2, 4, 4)
    for chance, low, high in ((0.0, 0, 0), (0.5, 60, 140)):
        made, mixed = method(mix_chance=chance), 0
        for number in range(200):
            step(made, batch(x, labels, step=number))
            mixed += int(not torch.equal(made.student.seen, x.flatten(0, 1)))
        assert low <= mixed <= high


# -- scenes --------------------------------------------------------------------------------------------------


def taught(**changes: Any) -> CropClassification:
    """The quick problem with its teacher."""
    task = CropClassification().quick().but(**changes)
    teach(task, Engine(epochs=2, batch_size=64), None, Watcher)
    return task


def fitted(made: FerKD, task: CropClassification, folder: Path | None = None, **changes: Any) -> Any:
    engine = replace(Engine(epochs=4, batch_size=64, evaluate_every=0, recipe=Recipe(lr=0.05)), **changes)
    return made.run(task, Fitter(engine, task, 0, folder))


def test_a_scene_shows_its_image_where_it_says_and_is_a_function_of_its_number() -> None:
    task = CropClassification(eval_scenes=40, train_samples=50, scenes_each=2)
    whole, objects = task._whole()
    assert whole.shape == (1, 48, 48) and len(whole.train) == 100
    assert task.images.shape == (1, 28, 28)
    x = whole.train.fetch(torch.arange(100), None)[0]
    boxes = (48 * objects["train"]).round().int().tolist()
    inside = torch.stack([x[i, 0, t : t + h, w : w + v].mean() for i, (t, w, h, v) in enumerate(boxes)])
    assert (inside > x.mean((1, 2, 3))).float().mean() > 0.95
    torch.testing.assert_close(x.mean(), torch.tensor(0.0), rtol=0, atol=1e-3)
    torch.testing.assert_close(x.std(), torch.tensor(1.0), rtol=0, atol=1e-2)
    again = CropClassification(eval_scenes=40, train_samples=50, scenes_each=2).whole
    assert torch.equal(again.train.fetch(torch.arange(100), None)[0], x)
    other = task.paired(1).whole
    assert not torch.equal(other.train.fetch(torch.arange(100), None)[0], x)
    assert other.fingerprint != whole.fingerprint


def test_blind_crops_show_nothing_of_the_object() -> None:
    task = CropClassification().quick()
    whole, objects = task._whole()
    blind = task.blind()
    assert blind is not None and len(blind) > 30
    boxes, _ = draw_crops(46, range(len(whole.test)), 32, (48, 48), task.cropping)
    assert (covered(boxes, objects["test"].unsqueeze(1)).amin(-1) == 0).sum() == len(blind)
    score = task.score(task.make_student(0), "test", Runtime())
    assert 0 <= score["accuracy_without_object"] <= 1
    assert "accuracy_without_object" not in task.score(task.make_student(0), "validation", Runtime())


def test_mirrored_characters_are_warned_of_and_the_built_in_ones_are_not_mirrored() -> None:
    assert CropClassification().cropping.flip == 0
    with pytest.warns(UserWarning, match="mirrored character"):
        CropClassification().quick().but(flip=0.5).check(0, teacher=False)


# -- tables --------------------------------------------------------------------------------------------------


class Asked(nn.Module):
    """Counts the crops that it is asked about."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.crops, self.sizes = network, 0, set()

    def forward(self, x: Tensor) -> Tensor:
        self.crops += len(x)
        self.sizes.add(tuple(x.shape[-2:]))
        return self.network(x)


def asked_task(**changes: Any) -> tuple[CropClassification, Asked]:
    """A task whose teacher says how often it was asked, never the same one twice."""
    task = CropClassification().quick().but(teacher="cnn:4", **changes)
    network = Asked(task.but(student="cnn:4").make_student(asked_task.count))
    asked_task.count += 1
    return task.using(teacher=Teacher(network)), network


asked_task.count = 5000


def test_the_teacher_is_asked_once_about_each_crop_and_never_again_for_another_student() -> None:
    task, network = asked_task()
    made = FerKD(stored=6, crops=2)
    first = fitted(made, task)
    assert network.crops == 300 * 6
    assert first.extra["labelling seconds"] > 0 and first.extra["table bytes"] > 0
    other = fitted(FerKD(stored=6, crops=3, low=0.1, mix="none"), task.but(student="cnn:4-4"))
    assert network.crops == 300 * 6
    assert other.extra["labelling seconds"] == 0
    fitted(FerKD(stored=7, crops=2), task)
    assert network.crops == 300 * 13


def test_the_table_holds_what_the_teacher_says_of_the_replayed_crops() -> None:
    task, network = asked_task()
    table = FerKD(stored=5, crops=2, precision="float32").prepared(task).table
    source = task.seen().source
    ids = torch.tensor([3, 299])
    boxes, flips = table.places(ids)
    whole, _ = source.fetch(ids, None)
    for row in range(2):
        crops = torch.stack(
            [replay(whole[row], boxes[row, k], bool(flips[row, k]), (16, 16), "bicubic") for k in range(5)]
        )
        q = network(crops).softmax(-1)
        torch.testing.assert_close(table.labels(ids[[row] * 5], torch.arange(5)), q, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(table.confidence[ids[row]], q.amax(-1))


def test_a_teacher_with_its_own_size_sees_crops_at_that_size() -> None:
    task, network = asked_task(teacher_size=20)
    fitted(FerKD(stored=4, crops=2), task)
    assert network.sizes == {(20, 20)}


def test_a_saved_table_trains_the_same_student_without_a_teacher(tmp_path: Path) -> None:
    task = taught()
    first = fitted(FerKD(stored=6, crops=2, save_table=str(tmp_path / "table")), task)
    alone = CropClassification().quick().but(teacher="none")
    made = FerKD(table=str(tmp_path / "table"), crops=2)
    assert not made.uses_teacher and FerKD.uses_teacher
    made.check()
    made.bind(alone, 0)
    assert same(weights_of(first.product), weights_of(fitted(made, alone).product))
    files = sorted(path.name for path in (tmp_path / "table").iterdir())
    assert files == ["crops-00000.safetensors", "crops-00001.safetensors", "table.json"]


def test_a_table_of_other_images_is_refused(tmp_path: Path) -> None:
    folder = str(tmp_path / "table")
    FerKD(stored=4, crops=2, save_table=folder).prepared(taught())
    fewer = CropClassification().quick().but(teacher="none", student_samples=200)
    with pytest.raises(UserError, match="is of 300 images and 10 classes, the data have 200 and 10"):
        FerKD(table=folder, crops=2).bind(fewer, 0)
    other = CropClassification().quick().but(teacher="none", subset_seed=1)
    with pytest.raises(UserError, match="other labels, or in another order"):
        FerKD(table=folder, crops=2).bind(other, 0)
    with pytest.raises(UserError, match="--method.crops is 5: pass a number from 1 to 4"):
        FerKD(table=folder, crops=5).check()
    with pytest.raises(UserError, match="is there already: pass a new folder"):
        FerKD(save_table=folder).check()
    with pytest.raises(UserError, match="holds no table"):
        FerKD(table=str(tmp_path)).check()
    (tmp_path / "table" / "table.json").write_text("[]")
    with pytest.raises(UserError, match="is no table's"):
        FerKD(table=folder).check()


def test_a_table_takes_the_bytes_that_were_foreseen() -> None:
    held = FerKD(stored=4, crops=2).prepared(taught())
    how = Labelling(4, 0, "full", 5, "float16", 1.0)
    assert held.table.store.bytes == how.bytes(300, 10)
    with pytest.raises(UserError, match=r"takes .* GiB, above --method.table-limit 0\.001"):
        FerKD(stored=500, table_limit=0.001).bind(taught(), 0)


def test_the_facts_of_a_table_are_what_its_crops_show() -> None:
    task = taught()
    held = FerKD(stored=8, crops=2, **FKD).prepared(task)
    objects = task.objects()
    assert objects is not None
    facts = facts_of(held, objects)
    boxes, _ = held.table.places(torch.arange(300))
    assert facts["visible in kept"] == pytest.approx(float(covered(boxes, objects.unsqueeze(1)).mean()))
    assert facts["share kept"] == 1.0
    assert "rank correlation" not in facts_of(held, None)


# -- training ------------------------------------------------------------------------------------------------


class Crash(Watcher):
    """Dies after a step."""

    def __init__(self, at: int) -> None:
        self.at = at

    def stepped(self, step: int, row: Any) -> None:
        if step == self.at:
            raise ConnectionAbortedError


@pytest.mark.parametrize("mix", ["selfmix", "cutmix"])
def test_passes_of_several_and_of_single_crops_survive_cuts_and_a_crash(mix: Any, tmp_path: Path) -> None:
    task, made = taught(), lambda: FerKD(stored=6, crops=2, mix=mix, mix_chance=1.0)
    engine = Engine(epochs=4, batch_size=64, evaluate_every=0, checkpoint_every=1, recipe=Recipe(lr=0.05))
    first = weights_of(made().run(task, Fitter(engine, task, 0)).product)
    cut = made().run(task, Fitter(replace(engine, accumulate=3), task, 0)).product
    assert apart(first, weights_of(cut)) < 1e-5
    whole = 4 * 5  # 150 rows of two crops, 32 a step
    for at in (7, whole // 2, whole - 3):
        folder = tmp_path / str(at)
        with pytest.raises(ConnectionAbortedError):
            made().run(task, Fitter(engine, task, 0, folder, lambda arm, at=at: Crash(at)))
        assert same(first, weights_of(made().run(task, Fitter(engine, task, 0, folder)).product))


def test_a_run_has_as_many_steps_and_crops_as_plain_training_and_ends_with_single_ones() -> None:
    task, shown = taught(), []

    class Noted(FerKD):
        def updates(self, batch: Batch) -> Any:
            shown.append((batch.clock.epoch, tuple(batch.x.shape[:2])))
            yield from super().updates(batch)

    made = Noted(stored=6, crops=4)
    done = fitted(made, task, epochs=8)
    plain = Engine(epochs=8, batch_size=64, evaluate_every=0).fit(Plain(), task, 0)
    assert done.steps == plain.steps == 8 * 5
    assert made._alone == 4
    assert {shape[1] for _, shape in shown} == {4}
    assert sum(shape[0] * shape[1] for _, shape in shown) == 8 * 300


def test_single_epochs_change_what_is_learnt_and_can_be_left_out() -> None:
    task = taught()
    with_them, without = (fitted(FerKD(stored=6, crops=2, single=s), task).product for s in (True, False))
    assert not same(weights_of(with_them), weights_of(without))


def test_a_run_that_is_cut_short_takes_the_first_steps_of_the_whole_one(tmp_path: Path) -> None:
    task = taught()
    part = fitted(FerKD(stored=6, crops=2, until=0.5), task, tmp_path / "part")
    assert part.steps == 10
    engine = Engine(
        epochs=4,
        batch_size=64,
        evaluate_every=0,
        checkpoint_every=1,
        keep_checkpoints=99,
        recipe=Recipe(lr=0.05),
    )
    FerKD(stored=6, crops=2).run(task, Fitter(engine, task, 0, tmp_path / "whole"))
    from safetensors.torch import load_file

    halfway = load_file(tmp_path / "whole" / "checkpoints" / "step-00000010" / "student.safetensors")
    assert same(weights_of(part.product), halfway)


def test_each_ablation_makes_another_student() -> None:
    task, common = taught(), {"stored": 6, "crops": 2, "mix": "none"}
    arms = [
        FerKD(**common),
        FerKD(**common, **FKD),
        FerKD(**common, selection="random"),
        FerKD(**common, middle=0.05),
        FerKD(**common, low=0.0, top=1.0),
        FerKD(**common, smoothing=0.0),
        FerKD(**common, temperature=2.0),
    ]
    states = [weights_of(fitted(arm, task).product) for arm in arms]
    for i, one in enumerate(states):
        assert not any(same(one, other) for other in states[i + 1 :])


def test_the_page_shows_the_regions_and_crops_of_each() -> None:
    made = FerKD(stored=6, crops=2)
    fitted(made, taught())
    figures = made.figures()
    assert [f["title"] for f in figures] == ["How sure the teacher is of its crops", "Crops of each kind"]
    assert "rank correlation" in figures[0]["caption"] and "softened below" in figures[0]["caption"]
    for name in ("softened", "kept"):
        assert name in figures[0]["svg"] and name in figures[1]["svg"]


# -- what a user brings --------------------------------------------------------------------------------------


def network(classes: int = 3) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes)
    )


def pictures(count: int = 90) -> tuple[Tensor, Tensor]:
    y = torch.arange(count) % 3
    x = torch.rand(count, 3, 32, 24, generator=torch.Generator().manual_seed(0))
    return x + y.view(-1, 1, 1, 1) / 3, y


def test_a_user_s_own_networks_and_images_work_from_python(tmp_path: Path) -> None:
    teacher = network()
    student, run = distill(
        teacher,
        network(),
        pictures(),
        "ferkd",
        stored=5,
        crops=2,
        epochs=4,
        batch_size=16,
        out=tmp_path / "run",
    )
    assert student(torch.rand(2, 3, 32, 24)).shape == (2, 3)
    assert (run.path / "report.html").is_file()
    extra = run.result["arms"]["ferkd"]["extra"]
    assert "rank correlation" not in extra and extra["share kept"] > 0.5
    assert same(weights_of(run.student(network())), weights_of(student))


def test_the_command_line_makes_a_table_and_uses_it_without_a_teacher(
    tmp_path: Path, monkeypatch: Any
) -> None:
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    for number in range(60):
        folder = tmp_path / "images" / ("bright" if number % 2 else "dark")
        folder.mkdir(parents=True, exist_ok=True)
        shade = np.random.default_rng(number).integers(0, 120, (30, 30, 3)) + 120 * (number % 2)
        Image.fromarray(shade.astype(np.uint8)).save(folder / f"{number}.png")
    common = ["run", "ferkd", "--task.data", "./images", "--task.student", "cnn:4", "--task.input-size", "20"]
    common += [
        "--engine.epochs",
        "4",
        "--engine.batch-size",
        "16",
        "--method.stored",
        "5",
        "--method.crops",
        "2",
    ]
    first = [
        "--task.teacher",
        "cnn:8",
        "--task.teacher-epochs",
        "2",
        "--method.save-table",
        "table",
        "--out",
        "one",
    ]
    assert main([*common, *first]) == 0
    assert main([*common, "--task.teacher", "none", "--method.table", "table", "--out", "two"]) == 0
    one, two = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("one", "two"))
    assert one["arms"]["ferkd"]["test"] == two["arms"]["ferkd"]["test"]
    assert "teacher" in one["arms"] and "teacher" not in two["arms"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"low": 0.3, "middle": 0.2}, "--method.middle is 0.2: pass a number from 0.3 to 1"),
        ({"top": 1.2}, "--method.top is 1.2: pass a number from 0.2 to 1"),
        ({"low": -0.1}, "--method.low is -0.1"),
        ({"crops": 25}, "--method.crops is 25: pass a number from 1 to 24"),
        ({"crops": 0}, "--method.crops is 0"),
        ({"smoothing": 1.0}, "--method.smoothing is 1.0"),
        ({"until": 0.0}, "--method.until is 0.0"),
        ({"mix_alpha": 0.0}, "--method.mix-alpha is 0.0"),
        ({"temperature": 0.0}, "--method.temperature is 0.0"),
    ],
)
def test_options_out_of_range_are_told_in_one_line(changes: Any, says: str) -> None:
    with pytest.raises(UserError) as error:
        FerKD(**changes).check()
    assert says in str(error.value)
    FerKD(thresholds="confidence", middle=1.5, top=1.5).check()


@pytest.mark.parametrize(
    ("task", "says"),
    [
        (
            CropClassification().using(data=(torch.rand(60, 1, 8, 8), torch.arange(60) % 3)),
            "images of 8 x 8 pixels are too small",
        ),
        (CropClassification(scale=(0.5, 0.2)), "--task.scale is 0.5"),
        (CropClassification(scale=(0.1, 1.2)), "--task.scale is 1.2"),
        (
            CropClassification(scenes=True).using(data=(torch.rand(60, 3, 20, 20), torch.arange(60) % 3)),
            "labelled grey images",
        ),
        (CropClassification().using(data=torch.rand(60, 1, 30, 30)), "has no labels"),
        (CropClassification(normalise="imagenet"), "scenes are grey"),
    ],
)
def test_problems_that_cannot_work_are_told_before_training(task: CropClassification, says: str) -> None:
    with pytest.raises(UserError, match=says):
        task.but(teacher="none").check(0, teacher=False)


def test_small_images_are_told_what_crops_they_allow() -> None:
    with pytest.raises(UserError, match=r"2\.0 pixels at the narrowest: .*, or --task.scale 0\.334 1"):
        Cropping((8, 8)).see_room(8, 8)
    Cropping((8, 8), scale=(0.334, 1.0)).see_room(8, 8)
    with pytest.raises(UserError, match="pass images that are larger$"):
        Cropping((4, 4)).see_room(4, 4)


@pytest.mark.parametrize(("name", "value"), [("augment", "crop"), ("mixup", 0.5), ("cutmix", 1.0)])
def test_what_would_change_the_images_after_labelling_is_refused(name: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"--task.{name} is {value}"):
        FerKD().bind(CropClassification().quick().but(**{name: value}), 0)


def test_a_task_without_images_is_refused() -> None:
    with pytest.raises(UserError, match="cuts crops out of images, and a TextClassification has none"):
        FerKD().bind(TextClassification().quick(), 0)


def test_any_task_of_images_will_do(tmp_path: Path) -> None:
    """Crops are cut at the images' own size; teacher, student and splits are the task's."""
    task = Classification(
        data="objects", student="cnn:4-8", teacher="cnn:8-16", student_samples=60, teacher_epochs=1
    )
    run, product = execute(Job(FerKD().quick(), task, Engine(epochs=1, batch_size=16), 0), tmp_path / "run")
    x = task.images.test.fetch(torch.arange(8), None)[0]
    with torch.no_grad():
        assert torch.equal(run.student()(x), product.eval()(x))
    crops, source = FerKD().whole(task)
    assert crops.cropping.size == (16, 16)
    assert len(source) == 60
    assert torch.equal(source.labels, task.train().labels)
    digits = FerKD().whole(Classification())[1]
    assert torch.equal(digits.labels, Classification().train().labels)

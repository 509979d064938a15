"""Answers that are kept: the very answers, to the very samples, or none."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from processes import in_two_processes
from stillroom import kept
from stillroom.answers import Dense, TopK
from stillroom.data import MixedSource, Source, TensorSource
from stillroom.engine import Engine, Watcher
from stillroom.errors import UserError
from stillroom.keeping import Keep
from stillroom.method import Batch
from stillroom.plan import view_of
from stillroom.predictors.baselines import KD
from stillroom.teacher import Teacher
from toys import Toy, batch_of, linear_data, same, weights_of

DISK = Keep("disk", views=3)
EXACT = replace(DISK, precision="float32")
SAMPLES = 150
SOURCE = linear_data(SAMPLES)
MOVING = TensorSource(SOURCE.x, SOURCE.y, lambda x: x + 0.5 * torch.randn(4))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "answers"


class Network(nn.Module):
    """Four numbers to three classes; counts the samples that it was asked about."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.body = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        self.asked, self.die_after = 0, 10**9

    def forward(self, x: Tensor) -> Tensor:
        self.asked += len(x)
        if self.asked > self.die_after:
            raise ConnectionAbortedError
        return self.body(x)


def batch(ids: list[int], source: Source = SOURCE, view: int | None = None) -> Batch:
    index = torch.tensor(ids)
    x, y = source.fetch(index, view)
    return replace(batch_of(x, y, index), view=view)


def keeping(network: nn.Module, source: Source = SOURCE, keep: Keep = DISK) -> Teacher:
    teacher = Teacher(network)
    teacher.keep(source, 16, keep)
    return teacher


def folders(cache: Path) -> list[Path]:
    return sorted(cache.iterdir()) if cache.is_dir() else []


SOME = [149, 3, 77, 0, 148, 64]

# -- the answers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("source", "view"), [(SOURCE, None), (MOVING, 7)])
def test_single_precision_is_what_the_teacher_says_of_the_samples_in_order(
    source: Source, view: int | None
) -> None:
    """To the bit where it is asked about the same samples at once; to rounding where about others."""
    teacher, online = keeping(Network(), source, EXACT), Teacher(Network())
    for ids in (list(range(64)), list(range(64, 128)), list(range(128, 150))):
        asked = batch(ids, source, view)
        assert torch.equal(teacher(asked).logits, online(asked).logits)
    asked = batch(SOME, source, view)
    torch.testing.assert_close(teacher(asked).logits, online(asked).logits, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("source", "view"), [(SOURCE, None), (MOVING, 7)])
def test_half_precision_is_a_share_of_the_distance_from_the_largest(source: Source, view: int | None) -> None:
    teacher, online = keeping(Network(), source), Teacher(Network())
    asked = batch(SOME, source, view)
    found, own = teacher(asked).logits, online(asked).logits
    assert ((found - own).abs() <= 2**-11 * (own.amax(-1, keepdim=True) - own) + 1e-6).all()


def test_each_view_is_asked_about_once_and_read_back_by_later_teachers() -> None:
    first = Network()
    teacher = keeping(first, MOVING)
    found = [teacher(batch(SOME, MOVING, view)).logits for view in (1, 2, 1, 2)]
    assert first.asked == 2 * SAMPLES + 4 + 64  # and some to see that the answers are a sample's own
    later = Network()
    teacher = keeping(later, MOVING)
    again = [teacher(batch(SOME, MOVING, view)).logits for view in (1, 2, 1, 2)]
    assert later.asked == 4
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[1])


def test_who_makes_the_answers_does_not_matter(cache: Path) -> None:
    """Another batch size, another first batch: the same bits."""
    one = keeping(Network(), keep=EXACT)
    one(batch([5, 3]))
    found = one(batch(SOME)).logits
    shutil.rmtree(cache)
    other = Teacher(Network())
    other.keep(SOURCE, 50, EXACT)
    assert torch.equal(other(batch(SOME)).logits, found)


@pytest.mark.parametrize("limit", [0, 2**30])
def test_rows_are_read_from_disk_or_held(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "IN_MEMORY", limit)
    monkeypatch.setattr("stillroom.store.IN_MEMORY", limit)
    teacher, online = keeping(Network(), MOVING, EXACT), Teacher(Network())
    for view in (1, 2, 1):
        asked = batch(SOME, MOVING, view)
        torch.testing.assert_close(teacher(asked).logits, online(asked).logits)


def test_the_largest_scores_are_kept_alone() -> None:
    teacher, online = keeping(Network(), keep=replace(EXACT, top_k=2)), Teacher(Network())
    asked = batch(SOME)
    found, own = teacher(asked), online(asked).logits
    assert isinstance(found, TopK)
    assert found.classes == 3
    torch.testing.assert_close(found.values, own.log_softmax(-1).topk(2).values, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(found.logits, own.log_softmax(-1), atol=1e-6, rtol=1e-6)  # one other class
    assert teacher.kept_bytes == SAMPLES * (2 * 4 + 4 + 2 * 2 + 8)


class Words(nn.Module):
    """Tokens [n, L] to scores [n, L, 9]."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            self.table = nn.Embedding(9, 9)

    def forward(self, x: Tensor) -> Tensor:
        return 3 * self.table(x.clamp_min(0))


class Text:
    """Rows of tokens."""

    fixed, labels = True, None
    x = torch.randint(-1, 9, (30, 5), generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.x)

    def subset(self, ids: Tensor) -> Text:
        raise NotImplementedError

    def fetch(self, ids: Tensor, view: int | None) -> tuple[Tensor, None]:
        return self.x[ids], None


@pytest.mark.parametrize("where", ["disk", "memory"])
@pytest.mark.parametrize("k", [0, 4])
def test_answers_at_every_position_are_kept(where: Any, k: int) -> None:
    source = Text()
    teacher = keeping(Words(), source, Keep(where, top_k=k, precision="float32"))
    asked = replace(batch_of(source.x[[29, 2]], index=torch.tensor([29, 2])))
    found, own = teacher(asked), Teacher(Words())(asked)
    assert isinstance(found, TopK if k else Dense)
    assert found.logits.shape == (2, 5, 9)
    if not k:
        assert torch.equal(found.logits, own.logits)
    assert torch.equal(found.logits.argmax(-1), own.logits.argmax(-1))


def test_a_large_answer_is_asked_for_a_few_samples_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "NUMBERS", 21)
    sizes: list[int] = []

    class Noting(Network):
        def forward(self, x: Tensor) -> Tensor:
            sizes.append(len(x))
            return super().forward(x)

    keeping(Noting())(batch([1]))
    assert max(sizes[2:]) == 7


# -- features -----------------------------------------------------------------------------------------------------


class Convolved(nn.Module):
    """Images [n, 1, 4, 4] to three classes."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            self.early = nn.Conv2d(1, 5, 3)
            self.head = nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.early(x).relu().flatten(1))


IMAGES = TensorSource(torch.randn(40, 1, 4, 4, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("where", ["memory", "disk"])
@pytest.mark.parametrize("whole", [False, True])
def test_features_are_kept_beside_the_scores(where: Any, whole: bool) -> None:
    network = Convolved()
    teacher = Teacher(network)
    teacher.watch("early", whole=whole)
    asked = batch([39, 0, 20], IMAGES)
    own = teacher(asked)
    expected = network.early(asked.x).detach()
    torch.testing.assert_close(own.features["early"], expected if whole else expected.mean((2, 3)))
    teacher.keep(IMAGES, 16, Keep(where, precision="float32"))
    found = teacher(asked)
    torch.testing.assert_close(found.features["early"], own.features["early"], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(found.logits, own.logits, atol=1e-6, rtol=1e-6)
    teacher.unwatch()
    assert not network.early._forward_hooks


def test_whole_and_pooled_features_are_kept_apart(cache: Path) -> None:
    for whole in (False, True):
        teacher = Teacher(Convolved())
        teacher.keep(IMAGES, 16, DISK)
        teacher.watch("early", whole=whole)
        assert teacher(batch([0], IMAGES)).features["early"].ndim == (4 if whole else 2)
    teacher = Teacher(Convolved())
    teacher.keep(IMAGES, 16, DISK, features=["early"])
    assert teacher(batch([0], IMAGES)).features["early"].ndim == 2
    assert len(folders(cache)) == 2


def test_a_path_that_is_none_is_told_with_those_near_it() -> None:
    with pytest.raises(
        UserError, match=r"teacher's module path 'erly' is no module .* the nearest are early"
    ):
        Teacher(Convolved()).watch("erly")


# -- what is noticed ----------------------------------------------------------------------------------------------


def flipped(seed: int) -> TensorSource:
    return TensorSource(SOURCE.x, SOURCE.y, lambda x: (x + 0.5 * torch.randn(4)).roll(seed))


def one_label_changed() -> TensorSource:
    y = SOURCE.y.clone()
    y[70] = (y[70] + 1) % 3
    return TensorSource(SOURCE.x, y)


@pytest.mark.parametrize(
    ("network", "source", "keep", "view"),
    [
        (Network(1), SOURCE, DISK, None),
        (Network(), one_label_changed(), DISK, None),
        (Network(), linear_data(SAMPLES, seed=1), DISK, None),
        (Network(), SOURCE.subset(torch.arange(SAMPLES).flip(0)), DISK, None),
        (Network(), SOURCE.subset(torch.arange(SAMPLES - 1)), DISK, None),
        (Network(), SOURCE, replace(DISK, data="other pixels"), None),
        (Network(), SOURCE, replace(DISK, precision="float32"), None),
        (Network(), SOURCE, replace(DISK, top_k=2), None),
        (Network(), SOURCE, replace(DISK, forward="bfloat16"), None),
        (Network(), MOVING, DISK, 1),
        (Network(), flipped(1), DISK, 7),
    ],
)
def test_answers_of_another_teacher_or_to_other_data_are_kept_apart(
    network: Network, source: Source, keep: Keep, view: int | None, cache: Path
) -> None:
    keeping(Network())(batch([0]))
    keeping(Network(), MOVING)(batch([0], MOVING, 7))
    before = len(folders(cache))
    found = keeping(network, source, keep)(batch([5, 9], source, view)).logits
    assert len(folders(cache)) == before + 1
    asked = batch([5, 9], source, view)
    torch.testing.assert_close(found.argmax(-1), network(asked.x).argmax(-1))


def test_one_weight_of_a_teacher_is_enough() -> None:
    network, other = Network(), Network()
    assert kept.teacher_digest(network) == kept.teacher_digest(other)
    other.body[2].bias.data[1] += 1e-6
    assert kept.teacher_digest(network) != kept.teacher_digest(other)
    assert kept.teacher_digest(nn.Conv2d(1, 1, 3)) != kept.teacher_digest(nn.Conv2d(1, 1, 3, stride=2))


def test_a_teacher_whose_code_changed_is_refused(cache: Path) -> None:
    class Changed(Network):
        def forward(self, x: Tensor) -> Tensor:
            return 1.5 * super().forward(x)

    Changed.__name__ = "Network"
    keeping(Network())(batch([0]))
    folder = folders(cache)[0]
    with pytest.raises(UserError) as caught:
        keeping(Changed())(batch([0]))
    assert str(caught.value) == (
        f"the kept answers '{folder}' are not what teacher 'Network' says now: remove that folder, they are then "
        "made anew"
    )


class Restless(TensorSource):
    """Samples of which one, or each, is another at every look."""

    one = False

    def fetch(self, ids: Tensor, view: int | None) -> tuple[Tensor, Tensor | None]:
        x, y = super().fetch(ids, view)
        noise = torch.randn(x.shape)
        return x + (noise * (ids == 5).view(-1, 1) if self.one else noise), y


def test_a_sample_that_is_not_the_one_that_was_answered_is_refused() -> None:
    source = Restless(SOURCE.x, SOURCE.y)
    source.one = True
    with pytest.raises(
        UserError, match=r"^sample 5 is not the one that the kept answers '.*' are about: remove"
    ):
        keeping(Network(), source)(batch([5], source))


@pytest.mark.parametrize("kind", ["batch", "chance", "data"])
def test_what_is_no_function_of_a_sample_is_not_kept(kind: str, cache: Path) -> None:
    class Odd(Network):
        def forward(self, x: Tensor) -> Tensor:
            z = super().forward(x)
            if kind == "data":
                return z
            return z - z.mean(0) if kind == "batch" else z + torch.randn(z.shape)

    teacher = keeping(Odd(), Restless(SOURCE.x, SOURCE.y) if kind == "data" else SOURCE)
    with pytest.warns(
        UserWarning, match="^what teacher 'Odd' says of a sample changes with its batch or from look"
    ):
        first = teacher(batch([0, 1])).logits
    assert first.shape == (2, 3)
    assert not folders(cache)
    asked = teacher.module.asked
    teacher(batch([0, 1]))
    assert teacher.module.asked == asked + 2
    assert teacher.kept_bytes == 0


def test_mixed_samples_are_a_function_of_view_and_sample_and_kept() -> None:
    images = TensorSource(torch.randn(40, 1, 4, 4), torch.randint(3, (40,)))
    source = MixedSource(images, 3, 0.4, 1.0)
    teacher, online = keeping(Convolved(), source, EXACT), Teacher(Convolved())
    asked = batch([3, 39], source, 11)
    torch.testing.assert_close(teacher(asked).logits, online(asked).logits)
    assert teacher.kept_bytes > 0


def test_views_are_kept_where_they_are_asked_for_alone(cache: Path) -> None:
    for where in ("memory", "disk"):
        network = Network()
        teacher = keeping(network, MOVING, Keep(where))
        for _ in range(2):
            teacher(batch([0, 1], MOVING, 7))
        assert network.asked == 4
    assert not folders(cache)
    network = Network()
    teacher = keeping(network, MOVING, Keep("memory", views=2))
    for view in (7, 8, 7, 8):
        teacher(batch([0, 1], MOVING, view))
    assert network.asked == 2 * SAMPLES
    assert teacher.kept_bytes == 2 * SAMPLES * 3 * 4


def test_answers_too_many_for_memory_are_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "HELD", SAMPLES * 3 * 4 - 1)
    network = Network()
    teacher = keeping(network, keep=Keep())
    with pytest.warns(
        UserWarning, match="^the answers of teacher 'Network' to 150 samples take .* in memory"
    ):
        teacher(batch([0, 1]))
    assert network.asked == 16 + 2
    teacher(batch([0, 1]))
    assert network.asked == 16 + 4


# -- killed and damaged -----------------------------------------------------------------------------------------


def test_a_making_that_was_killed_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "ROWS", 8)
    network = Network()
    network.die_after = 80
    with pytest.raises(ConnectionAbortedError):
        keeping(network)(batch([0]))
    later = Network()
    found = keeping(later)(batch(SOME)).logits
    done = (80 - 4 - 8) // 16 * 16  # blocks of 16: as many sixteenths of 150 as 8 at once make
    assert later.asked == 4 + SAMPLES - done
    torch.testing.assert_close(found, Teacher(Network())(batch(SOME)).logits, atol=1e-2, rtol=0)


def test_a_damaged_answer_is_made_anew(cache: Path) -> None:
    expected = keeping(Network())(batch(SOME)).logits
    path = folders(cache)[0] / "logits.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    network = Network()
    assert torch.equal(keeping(network)(batch(SOME)).logits, expected)
    assert 4 < network.asked < SAMPLES
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"^the kept samples '.*' are damaged .* remove that folder"):
        keeping(Network())(batch(SOME))


# -- whole runs ---------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Taught(Toy):
    """The toy with a network for a teacher, its data augmented on demand."""

    metric: ClassVar[str] = "accuracy"
    moving: bool = False

    def train(self) -> TensorSource:
        return MOVING if self.moving else SOURCE

    def make_teacher(self) -> Teacher:
        self.asked = Network()
        return Teacher(self.asked)


RUN = Engine(epochs=3, batch_size=40, keep_teacher="disk", evaluate_every=0)


def fitted(engine: Engine, task: Taught, **more: Any) -> dict[str, Tensor]:
    return weights_of(engine.fit(KD(), task, more.pop("seed", 0), **more).product)


@pytest.mark.parametrize("options", [{}, {"keep_top_k": 1}, {"accumulate": 2}, {"keep_precision": "float32"}])
@pytest.mark.parametrize("moving", [False, True])
def test_the_run_that_reads_ends_like_the_run_that_wrote(options: dict[str, Any], moving: bool) -> None:
    engine, passes = replace(RUN, **options), 3 if moving else 1
    writer, reader = Taught(moving=moving), Taught(moving=moving)
    wrote, read = fitted(engine, writer), fitted(engine, reader)
    assert same(wrote, read)
    assert writer.asked.asked == passes * SAMPLES + 4 + 64
    assert reader.asked.asked == 4
    online = fitted(replace(engine, keep_teacher="no"), Taught(moving=moving))
    far = max((online[k] - read[k]).abs().max() for k in online)
    assert far < (1e-5 if "keep_precision" in options else 0.3 if "keep_top_k" in options else 1e-3)
    assert (far > 1e-6) == ("keep_precision" not in options)


def test_a_second_student_of_another_kind_reads_the_same_answers() -> None:
    fitted(RUN, Taught())
    task = Taught().using(student=lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)))
    fitted(replace(RUN, batch_size=7, epochs=1), task, seed=4)
    assert task.asked.asked == 4


@pytest.mark.parametrize("moving", [False, True])
def test_a_run_that_was_killed_in_an_epoch_ends_like_one_that_was_not(moving: bool, tmp_path: Path) -> None:
    class Crash(Watcher):
        def stepped(self, step: int, row: Mapping[str, Any] | None) -> None:
            if step == 6:
                raise ConnectionAbortedError

    expected = fitted(RUN, Taught(moving=moving))
    shutil.rmtree(tmp_path / "cache")
    engine = replace(RUN, checkpoint_every=5)
    with pytest.raises(ConnectionAbortedError):
        fitted(engine, Taught(moving=moving), folder=tmp_path / "run", watcher=Crash())
    assert same(fitted(engine, Taught(moving=moving), folder=tmp_path / "run"), expected)


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_views_that_come_round_are_asked_about_once(where: Any) -> None:
    engine = replace(RUN, epochs=6, keep_teacher=where, keep_views=2)
    task = Taught(moving=True)
    fitted(engine, task)
    assert task.asked.asked == 2 * SAMPLES + (4 + 64 if where == "disk" else 0)
    seen: list[int | None] = []

    class Looks(KD):
        def updates(self, batch: Batch) -> Any:
            seen.append(batch.view)
            return super().updates(batch)

    engine.fit(Looks(), Taught(moving=True), 0)
    assert seen[::4] == [view_of(0, epoch % 2) for epoch in range(6)]


def test_what_one_fit_kept_is_not_read_by_the_next_about_other_samples() -> None:
    """A teacher from outside lives through several fits."""
    teacher = Teacher(Network())

    class Given(Taught):
        def train(self) -> TensorSource:
            return linear_data(SAMPLES, seed=self.samples)

        def make_teacher(self) -> Teacher:
            return teacher

    fitted(replace(RUN, keep_teacher="memory"), Given(samples=1))
    expected = fitted(replace(RUN, keep_teacher="no"), Given(samples=2))
    fresh = Teacher(Network())
    teacher = fresh
    assert same(fitted(replace(RUN, keep_teacher="no"), Given(samples=2)), expected)


def test_two_processes_share_the_making_and_end_like_two_that_read(tmp_path: Path) -> None:
    names = ["first", "second", "first-moving", "second-moving"]
    found = in_two_processes("kept_answers", names, tmp_path, tmp_path / "cache")
    for first, second, passes in (("first", "second", 1), ("first-moving", "second-moving", 3)):
        asked, again = found[first].pop("asked"), found[second].pop("asked")
        # the samples once, and some by each that finds nothing there yet
        assert int(asked.sum()) - passes * SAMPLES in (4 + 4 + 64, 2 * (4 + 64))
        assert again.tolist() == [4, 4]
        assert same(found[first], found[second])
        alone = fitted(RUN, Taught(moving=passes == 3))
        assert max((alone[k] - found[first][k]).abs().max() for k in alone) < 1e-5

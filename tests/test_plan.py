"""Which samples each step sees, on which process, in which micro-batch."""

from __future__ import annotations

import itertools

import pytest
import torch

from stillroom.data import TensorSource
from stillroom.plan import Feeder, Plan, view_of

SPLITS = list(itertools.product([1, 2, 3, 5, 9], [1, 2, 3, 7]))
"""Numbers of processes and of micro-batches."""


def source(samples: int, moving: bool = False) -> TensorSource:
    """Sample i is the number i; a moving one has noise added in every view."""
    x = torch.arange(float(samples)).view(-1, 1, 1, 1)
    return TensorSource(x, torch.arange(samples), (lambda image: image + torch.rand(1)) if moving else None)


def feeder(plan: Plan, rank: int = 0, ranks: int = 1, parts: int = 1, moving: bool = False) -> Feeder:
    return Feeder(plan, source(plan.samples, moving), rank, ranks, parts, torch.device("cpu"))


# -- the plan ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("samples", "size", "steps"), [(37, 8, 5), (40, 8, 5), (1, 8, 1), (7, 8, 1), (8, 8, 1), (5, 1, 5)]
)
def test_an_epoch_has_as_many_steps_as_its_samples_fill(samples: int, size: int, steps: int) -> None:
    plan = Plan(samples, size, 3, 0)
    assert plan.steps_per_epoch == steps
    assert plan.steps == 3 * steps
    rows = [plan.rows(step) for step in range(plan.steps)]
    covered = [
        list(itertools.chain(*(range(*r) for r in rows[e * steps : (e + 1) * steps]))) for e in range(3)
    ]
    assert covered == [list(range(samples))] * 3
    assert all(0 < end - start <= size for start, end in rows)


def test_the_clock_counts_steps_and_epochs_from_zero() -> None:
    plan = Plan(37, 8, 3, 0)
    clocks = [plan.clock(step) for step in range(plan.steps)]
    assert [c.epoch for c in clocks] == [0] * 5 + [1] * 5 + [2] * 5
    assert [c.step for c in clocks] == list(range(15))
    assert {(c.steps, c.epochs) for c in clocks} == {(15, 3)}
    assert [c.progress for c in clocks] == [step / 15 for step in range(15)]


def test_the_order_is_a_permutation_by_seed_and_epoch() -> None:
    orders = {(s, e): Plan(50, 8, 2, s).order(e) for s in (0, 1) for e in (0, 1)}
    assert all(torch.equal(order.sort().values, torch.arange(50)) for order in orders.values())
    assert len({tuple(order.tolist()) for order in orders.values()}) == 4
    assert torch.equal(Plan(50, 5, 9, 1).order(1), orders[1, 1])  # neither size nor number of epochs matters


def test_the_order_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    Plan(50, 8, 2, 0).order(0)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("ranks", "parts"), SPLITS)
def test_cuts_cover_every_row_once_and_in_order(ranks: int, parts: int) -> None:
    plan = Plan(45, 20, 1, 0)
    for step, rows in enumerate((20, 20, 5)):
        cuts = [plan.cut(step, rank, ranks, parts) for rank in range(ranks)]
        covered = [row for cut in cuts for part in cut for row in range(part.start, part.stop)]
        assert covered == list(range(rows))
        assert all(len(cut) <= parts for cut in cuts)
        shares = [sum(part.stop - part.start for part in cut) for cut in cuts]
        assert max(shares) - min(shares) <= 1
        sizes = [part.stop - part.start for cut in cuts for part in cut]
        assert min(sizes) >= 1
        for cut in cuts:
            assert not cut or max(p.stop - p.start for p in cut) - min(p.stop - p.start for p in cut) <= 1


# -- the feeder -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ranks", "parts"), SPLITS)
def test_every_sample_is_fed_once_an_epoch(ranks: int, parts: int) -> None:
    plan = Plan(45, 20, 2, 3)
    feeders = [feeder(plan, rank, ranks, parts) for rank in range(ranks)]
    for epoch in range(2):
        seen = []
        for step in range(3 * epoch, 3 * epoch + 3):
            for each in feeders:
                batches, counts = each.batches(step)
                seen += [batch for batch in batches if counts]
        ids = torch.cat([batch.index for batch in seen])
        assert torch.equal(ids, plan.order(epoch))
        assert torch.equal(torch.cat([b.x for b in seen]).flatten(), ids.float())
        assert torch.equal(torch.cat([b.y for b in seen]), ids)


@pytest.mark.parametrize(("ranks", "parts"), SPLITS)
def test_noise_does_not_depend_on_the_cut(ranks: int, parts: int) -> None:
    plan = Plan(45, 20, 1, 3)
    (whole,), _ = feeder(plan).batches(1)
    expected = whole.noise.normal(3), whole.noise.uniform(2)
    found: list[tuple[torch.Tensor, torch.Tensor]] = []
    for rank in range(ranks):
        batches, counts = feeder(plan, rank, ranks, parts).batches(1)
        found += [(b.noise.normal(3), b.noise.uniform(2)) for b in batches if counts]
    for one, all_rows in zip(zip(*found, strict=True), expected, strict=True):
        assert torch.equal(torch.cat(one), all_rows)


def test_noise_is_another_in_every_step_and_run() -> None:
    drawn = []
    for seed, step in ((0, 0), (0, 1), (1, 0)):
        (batch,), _ = feeder(Plan(40, 20, 1, seed)).batches(step)
        drawn.append(batch.noise.normal())
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(drawn, 2))


def test_a_process_without_rows_takes_part_with_a_sample_that_does_not_count() -> None:
    plan = Plan(22, 20, 1, 0)
    assert [feeder(plan, rank, 3).batches(1)[1] for rank in range(3)] == [True, True, False]
    (extra,), _ = feeder(plan, 2, 3, parts=4).batches(1)
    assert extra.index.tolist() == plan.order(0)[20:21].tolist()


def test_samples_that_stay_the_same_have_no_view() -> None:
    (batch,), _ = feeder(Plan(20, 20, 1, 0)).batches(0)
    assert batch.view is None


def test_a_view_belongs_to_an_epoch_of_a_run() -> None:
    def view(seed: int, step: int) -> int | None:
        return feeder(Plan(40, 20, 2, seed), moving=True).batches(step)[0][0].view

    assert view(0, 0) == view(0, 1)
    assert len({view(0, 0), view(0, 2), view(1, 0)}) == 3
    assert (view(0, 0), view(0, 3), view(1, 2)) == (view_of(0, 0), view_of(0, 1), view_of(1, 1))


def test_one_sample_of_one_epoch_is_replayed_alone() -> None:
    plan = Plan(37, 8, 3, 5)
    feeding = feeder(plan, parts=2, moving=True)
    for step in (14, 0, 7):
        for batch in feeding.batches(step)[0]:
            for image, label, i in zip(batch.x, batch.y, batch.index.tolist(), strict=True):
                x, y = source(37, moving=True).fetch(torch.tensor([i]), view_of(5, step // 5))
                assert torch.equal(x[0], image) and y is not None and int(y) == int(label)


def test_what_a_sample_looks_like_does_not_depend_on_the_cut() -> None:
    plan = Plan(40, 20, 1, 0)
    (whole,), _ = feeder(plan, moving=True).batches(0)
    parts = [b for rank in range(2) for b in feeder(plan, rank, 2, 3, moving=True).batches(0)[0]]
    assert torch.equal(torch.cat([b.x for b in parts]), whole.x)
    assert not torch.equal(whole.x.flatten(), whole.index.float())


def test_going_back_an_epoch_gives_the_same_batches() -> None:
    """A resumed run starts in the middle."""
    plan = Plan(37, 8, 3, 0)
    one = feeder(plan)
    forward = [one.batches(step)[0][0].index for step in range(plan.steps)]
    assert all(torch.equal(one.batches(step)[0][0].index, forward[step]) for step in (14, 3, 7, 0))
    assert torch.equal(feeder(plan).batches(7)[0][0].index, forward[7])


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("parts", [1, 2, 3, 5])
def test_all_processes_have_as_many_micro_batches_with_their_fillers(ranks: int, parts: int) -> None:
    plan = Plan(37, 8, 1, 0)
    for step in range(plan.steps):
        counts = []
        for rank in range(ranks):
            one = feeder(plan, rank, ranks, parts)
            there = len(one.batches(step)[0])
            fillers = one.fillers(step, there)
            assert all(len(batch) == 1 for batch in fillers)
            counts.append(there + len(fillers))
        assert len(set(counts)) == 1

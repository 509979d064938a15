"""What is remembered by sample comes back whole, cut down, and after a resume."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stillroom.predictors.parts.memory import CHUNK, Distributions, Rows


def drawn(samples: int, classes: int) -> Tensor:
    return (2 * torch.randn(samples, classes, generator=torch.Generator().manual_seed(0))).softmax(-1)


def test_rows_come_back_by_id_and_others_stay_as_they_are() -> None:
    rows = Rows(5, 2, 3)
    first = torch.arange(12.0).view(2, 2, 3).requires_grad_()
    rows.write(torch.tensor([3, 0]), first)
    assert torch.equal(rows.read(torch.tensor([0, 3])), first.detach().flip(0))
    assert not rows.read(torch.tensor([3])).requires_grad
    assert rows.known(torch.arange(5)).tolist() == [True, False, False, True, False]
    rows.write(torch.tensor([3]), first[1:])
    assert torch.equal(rows.read(torch.tensor([3, 0])), first.detach()[[1, 1]])
    rows.write(torch.tensor([], dtype=torch.int64), first[:0])
    counts = Rows(4, dtype=torch.int32)
    counts.write(torch.tensor([2]), counts.read(torch.tensor([2])) + 1)
    assert counts.read(torch.arange(4)).tolist() == [0, 0, 1, 0]


def test_whole_distributions_in_float32_are_kept_to_the_bit() -> None:
    memory, p = Distributions(6, 10), drawn(6, 10)
    memory.write(torch.arange(6).flip(0), p)
    assert torch.equal(memory.read(torch.arange(6)), p.flip(0))


def test_half_precision_is_near_and_sums_to_one() -> None:
    memory, p = Distributions(6, 1000, "float16"), drawn(6, 1000)
    memory.write(torch.arange(6), p)
    read = memory.read(torch.arange(6))
    torch.testing.assert_close(read, p, rtol=2e-3, atol=1e-6)
    torch.testing.assert_close(read.sum(-1), torch.ones(6))
    assert not torch.equal(read, p)


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_of_the_likeliest_classes_the_rest_is_spread_evenly(precision: str) -> None:
    memory, p = Distributions(6, 10, precision, top_k=3), drawn(6, 10)  # type: ignore[arg-type]
    memory.write(torch.arange(6), p)
    read = memory.read(torch.arange(6))
    largest = p.topk(3).indices
    torch.testing.assert_close(read.gather(-1, largest), p.gather(-1, largest), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(read.sum(-1), torch.ones(6))
    rest = torch.ones_like(p, dtype=torch.bool).scatter(-1, largest, False)
    others = read[rest].view(6, 7)
    torch.testing.assert_close(others, others.mean(-1, keepdim=True).expand(6, 7))
    torch.testing.assert_close(others.sum(-1), 1 - p.gather(-1, largest).sum(-1), rtol=0, atol=2e-3)


def test_a_distribution_on_one_class_is_kept_in_all_forms() -> None:
    p = torch.eye(4)
    for precision, top_k in (("float32", 0), ("float16", 0), ("float32", 1), ("float16", 3)):
        memory = Distributions(4, 4, precision, top_k)  # type: ignore[arg-type]
        memory.write(torch.arange(4), p)
        assert torch.equal(memory.read(torch.arange(4)), p)


@pytest.mark.parametrize(("precision", "top_k"), [("float32", 0), ("float16", 0), ("float16", 3)])
def test_its_size_is_what_its_state_takes_and_the_state_brings_it_back(precision: str, top_k: int) -> None:
    memory, p = Distributions(7, 10, precision, top_k), drawn(5, 10)  # type: ignore[arg-type]
    memory.write(torch.arange(5), p)
    state = {key: value.clone() for key, value in memory.state().items()}
    taken = sum(value.numel() * value.element_size() for value in state.values())
    assert taken == Distributions.size(7, 10, precision, top_k)  # type: ignore[arg-type]
    other = Distributions(7, 10, precision, top_k)  # type: ignore[arg-type]
    other.load_state(state)
    ids = torch.arange(7)
    assert torch.equal(other.read(ids[:5]), memory.read(ids[:5]))
    assert torch.equal(other.known(ids), memory.known(ids))
    for wrong in (Distributions(8, 10, precision, top_k), Distributions(7, 10, precision, 5)):  # type: ignore[arg-type]
        with pytest.raises((ValueError, KeyError)):
            wrong.load_state(state)


def test_one_class_of_each_is_read_in_pieces_and_nan_where_nothing_was_written() -> None:
    samples = CHUNK + 3
    memory, p = Distributions(samples, 3), drawn(samples - 1, 3)
    memory.write(torch.arange(samples - 1), p)
    classes = torch.arange(samples) % 3
    found = memory.at(classes)
    assert torch.equal(found[:-1], p.gather(-1, classes[:-1, None]).squeeze(-1))
    assert found[-1].isnan()

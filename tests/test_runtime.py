"""A single process: placing, precision, sums that are no sums, and predictions. For two, see test_processes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from stillroom.data import TensorSource
from stillroom.method import Update
from stillroom.runtime import Runtime, backward
from toys import batch_of, linear_data


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return Runtime()


def test_alone_a_process_is_the_first_of_one(runtime: Runtime) -> None:
    assert (runtime.rank, runtime.size, runtime.main) == (0, 1, True)
    runtime.barrier()
    tensor = torch.tensor([1.0, 2.0])
    assert runtime.sum(tensor) is tensor
    assert tensor.tolist() == [1.0, 2.0]
    assert runtime.agree(True, False, True) == (True, False, True)
    assert torch.equal(runtime.gather_rows(torch.arange(3)), torch.arange(3))


# -- precision --------------------------------------------------------------------------------------------------


def test_precision_is_that_of_forward_passes() -> None:
    layer, x = nn.Linear(3, 2), torch.ones(1, 3)
    for precision, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        with Runtime(precision).autocast():
            assert layer(x).dtype == dtype
    assert layer(x).dtype == torch.float32


def test_two_precisions_live_side_by_side() -> None:
    low, full = Runtime("bfloat16"), Runtime("float32")
    with low.autocast(), full.autocast():
        pass
    assert (low.precision, full.precision) == ("bfloat16", "float32")


# -- placing ----------------------------------------------------------------------------------------------------


def test_a_batch_in_its_place_is_not_copied(runtime: Runtime) -> None:
    batch = batch_of(torch.zeros(2, 3), None)
    x, index = batch.x, batch.index
    placed = runtime.place(batch)
    assert placed.x is x
    assert placed.index is index
    assert placed.y is None


# -- random numbers ---------------------------------------------------------------------------------------------


def test_seeding_makes_global_draws_repeat_and_private_ones_leave_no_trace(runtime: Runtime) -> None:
    before = torch.get_rng_state()
    with runtime.private_random():
        runtime.seed(3)
        first = torch.rand(4)
        runtime.seed(3)
        assert torch.equal(torch.rand(4), first)
        runtime.seed(4)
        assert not torch.equal(torch.rand(4), first)
    assert torch.equal(torch.get_rng_state(), before)


# -- means ------------------------------------------------------------------------------------------------------


def test_a_mean_is_over_the_rows_of_all_parts(runtime: Runtime) -> None:
    parts = [torch.tensor([[1.0, 10.0]]), torch.tensor([[2.0, 20.0], [6.0, 0.0]])]
    assert torch.equal(runtime.mean(parts), torch.tensor([3.0, 10.0]))
    assert runtime.mean([torch.tensor([1.0, 2.0])]).shape == ()
    assert runtime.mean([torch.ones(4, 2, 3)]).shape == (2, 3)


def test_a_mean_is_detached_and_has_the_type_of_its_values(runtime: Runtime) -> None:
    values = torch.ones(3, 2, dtype=torch.bfloat16, requires_grad=True)
    mean = runtime.mean([values])
    assert not mean.requires_grad
    assert mean.dtype == torch.bfloat16


def test_a_mean_does_not_depend_on_the_cut_and_is_taken_in_double_precision(runtime: Runtime) -> None:
    values = torch.rand(1000, generator=torch.Generator().manual_seed(0)) + 4096
    whole = runtime.mean([values])
    assert whole == values.double().mean().float()
    for parts in (2, 3, 7):
        assert torch.equal(runtime.mean(list(values.tensor_split(parts))), whole)


def test_rows_are_those_of_all_parts_in_order_and_keep_their_type(runtime: Runtime) -> None:
    rows = runtime.rows([torch.tensor([3, 1]), torch.tensor([], dtype=torch.int64), torch.tensor([2])])
    assert torch.equal(rows, torch.tensor([3, 1, 2]))
    assert not runtime.rows([torch.ones(2, 3, requires_grad=True)]).requires_grad


# -- gradients --------------------------------------------------------------------------------------------------


def parameters(*gradients: list[float] | None) -> list[nn.Parameter]:
    made = []
    for gradient in gradients:
        parameter = nn.Parameter(torch.zeros(2))
        parameter.grad = None if gradient is None else torch.tensor(gradient)
        made.append(parameter)
    return made


def test_summed_gradients_become_means_over_items(runtime: Runtime) -> None:
    one, untouched, other = some = parameters([6.0, 3.0], None, [0.0, 1.5])
    runtime.reduce_gradients(some, 3)
    assert one.grad is not None
    assert one.grad.tolist() == [2.0, 1.0]
    assert untouched.grad is None
    assert other.grad is not None
    assert other.grad.tolist() == [0.0, 0.5]


def test_no_items_no_division(runtime: Runtime) -> None:
    (one,) = some = parameters([4.0, 0.0])
    runtime.reduce_gradients(some, 0)
    assert one.grad is not None
    assert one.grad.tolist() == [4.0, 0.0]


def test_a_player_that_nothing_touched_keeps_no_gradient(runtime: Runtime) -> None:
    """As in a plain loop, where such a step does nothing."""
    some = parameters(None, None)
    runtime.reduce_gradients(some, 3)
    assert all(parameter.grad is None for parameter in some)


def test_running_statistics_of_one_process_stay_as_they_are(runtime: Runtime) -> None:
    norm = nn.BatchNorm1d(2)
    norm.running_mean.fill_(3.0)
    runtime.average_buffers(norm)
    assert norm.running_mean.tolist() == [3.0, 3.0]


@pytest.mark.parametrize("weight", [1.0, 0.0, 2.5])
def test_only_the_asked_parameters_get_a_gradient_and_it_is_weighted(weight: float) -> None:
    own, other = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.tensor(3.0))
    backward(Update("student", own * other, 1), [own], weight)
    assert own.grad == 3.0 * weight
    assert other.grad is None
    backward(Update("student", own * other, 1), [own], weight)
    assert own.grad == 6.0 * weight  # micro-batches add up


# -- predictions ------------------------------------------------------------------------------------------------


class Halves(nn.Module):
    """Twice the input; in training, nonsense. Notes how many samples it sees at once."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []
        self.graphs: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        self.graphs.append(torch.is_grad_enabled())
        return x * float("nan") if self.training else 2 * x


@pytest.mark.parametrize("size", [1, 10, 36, 37, 512])
def test_predictions_are_in_the_order_of_the_source_whatever_the_cut(runtime: Runtime, size: int) -> None:
    source, module = linear_data(), Halves()
    outputs, y = runtime.predict(module, source, size)
    assert torch.equal(outputs, 2 * source.x)
    assert y is not None
    assert torch.equal(y, source.y)
    assert sum(module.sizes) == 37
    assert max(module.sizes) == min(size, 37)
    assert not any(module.graphs)


def test_predictions_are_of_unaugmented_samples(runtime: Runtime) -> None:
    x = torch.rand(5, 1, 2, 2)
    outputs, y = runtime.predict(Halves(), TensorSource(x, augment=lambda image: image + 1))
    assert torch.equal(outputs, 2 * x)
    assert y is None


def test_predictions_are_float32_in_any_precision() -> None:
    source, layer = linear_data(), nn.Linear(4, 3)
    outputs, _ = Runtime("bfloat16").predict(layer, source)
    assert outputs.dtype == torch.float32
    full, _ = Runtime().predict(layer, source)
    assert 0 < (outputs - full).abs().max() < 0.1


def modes(module: nn.Module) -> Iterator[bool]:
    return (part.training for part in module.modules())


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_put_back(runtime: Runtime, training: bool) -> None:
    module = nn.Sequential(nn.Linear(4, 3), nn.Dropout()).train(training)
    runtime.predict(module, linear_data())
    assert set(modes(module)) == {training}


def test_the_modes_of_parts_are_put_back(runtime: Runtime) -> None:
    """A method may hold its student's normalisation in eval mode; scoring on the way is not to end that."""
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).train()
    module[1].eval()
    before = list(modes(module))
    runtime.predict(module, linear_data())
    assert list(modes(module)) == before

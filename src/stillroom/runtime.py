"""Where a run runs: device, precision and processes. Beside the Engine, no other file knows a device.

Accelerate launches and places (`torchrun` and `accelerate launch` both work); autocast is torch's own, because
Accelerate keeps one precision a process for ever and a claim may want two.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, parse_flag_from_env
from torch import Tensor, nn

from stillroom.data.source import Source
from stillroom.method import Batch, Update
from stillroom.models.probing import quietly

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

T = TypeVar("T")
Precision = Literal["float32", "bfloat16"]


class Runtime:
    """This process among its peers."""

    def __init__(self, precision: Precision = "float32") -> None:
        # Without being told so, Accelerate takes each process of a launch on CPUs for the only one.
        self._state = PartialState(
            cpu=not torch.accelerator.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU")
        )
        self.precision = precision
        self.device = self._state.device or torch.device("cpu")
        self.rank: int = self._state.process_index
        self.size: int = self._state.num_processes
        self.main: bool = self._state.is_main_process

    def autocast(self) -> AbstractContextManager[object]:
        """The precision of forward passes."""
        if self.precision == "bfloat16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    def place(self, batch: Batch) -> Batch:
        """The batch on this process's device."""
        if batch.x.device != self.device:
            batch.x = batch.x.to(self.device, non_blocking=True)
            batch.index = batch.index.to(self.device, non_blocking=True)
            if batch.y is not None:
                batch.y = batch.y.to(self.device, non_blocking=True)
        return batch

    def seed(self, value: int) -> None:
        """Seed torch's global generators, from which dropout and the like draw."""
        torch.default_generator.manual_seed(value)
        if self.device.type == "cuda":
            torch.cuda.default_generators[self.device.index or 0].manual_seed(value)

    def barrier(self) -> None:
        """Wait for all processes."""
        self._state.wait_for_everyone()

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of `tensor` over all processes, in place."""
        if self.size > 1:
            torch.distributed.all_reduce(tensor)
        return tensor

    def share(self, value: T) -> T:
        """The main process's `value`, on every process."""
        held: list[Any] = [value]
        return broadcast_object_list(held)[0] if self.size > 1 else value

    def agree(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag, whether any process raises it. A meeting point: all processes must ask."""
        if self.size == 1:
            return flags
        return tuple(bool(x) for x in self.sum(torch.tensor(flags, dtype=torch.float32, device=self.device)))

    def private_random(self) -> AbstractContextManager[object]:
        """Whatever is drawn inside leaves torch's global generators as they were."""
        devices = [self.device] if self.device.type == "cuda" else []
        return torch.random.fork_rng(devices=devices)

    def mesh(self) -> DeviceMesh:
        """All processes in a row, for what is cut over them."""
        return _mesh(self.device.type, self.size)

    def reduce_gradients(
        self, parameters: list[nn.Parameter], items: float, shards: Sequence[Tensor] = ()
    ) -> None:
        """Turn summed gradients (loss x items) into means over all items of all processes, by one all-reduce.

        A parameter that no process touched keeps no gradient, as in a plain loop; one that only some touched
        counts as zero on the others. `shards` are gradients that are means over processes already, as FSDP leaves
        them, of parameters that are not among `parameters`.
        """
        if self.size == 1:
            there = [p.grad for p in parameters if p.grad is not None]
            if there:
                torch._foreach_div_(there, max(1.0, float(items)))
            return
        touched = [0.0 if p.grad is None else 1.0 for p in parameters]
        pieces = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        header = torch.tensor([float(items), *touched], device=self.device)
        flat = self.sum(torch.cat([header, *(piece.reshape(-1).float() for piece in pieces)]))
        # Reading the counts back waits for the device: only where this process has something to learn.
        used = [1.0] * len(parameters) if all(touched) else flat[1 : len(header)].tolist()
        count = flat[0].clamp_min(1)
        if shards:
            torch._foreach_mul_(list(shards), self.size / count)
        means = (flat[len(header) :] / count).split([p.numel() for p in parameters])
        for parameter, touch, mean in zip(parameters, used, means, strict=True):
            if touch:
                parameter.grad = mean.view_as(parameter).to(parameter.dtype)

    def average_buffers(self, module: nn.Module) -> None:
        """Make running statistics equal on all processes, by their mean."""
        if self.size == 1:
            return
        buffers = [b for b in module.buffers() if b.is_floating_point()]
        if not buffers:
            return
        flat = self.sum(torch.cat([b.reshape(-1).float() for b in buffers])) / self.size
        for buffer, mean in zip(buffers, flat.split([b.numel() for b in buffers]), strict=True):
            buffer.copy_(mean.view_as(buffer))

    def mean(self, values: list[Tensor]) -> Tensor:
        """The mean over the first axis of all `values` of all processes."""
        rows = torch.cat([value.detach() for value in values]).double()
        total = rows.sum(0)
        flat = self.sum(torch.cat([total.reshape(-1), total.new_tensor([float(len(rows))])]))
        return (flat[:-1] / flat[-1]).view(total.shape).to(values[0].dtype)

    def rows(self, values: list[Tensor]) -> Tensor:
        """The rows of all `values` [n_i, ...] of all processes, in the order of these and of their ranks."""
        own = torch.cat([value.detach() for value in values])
        if self.size == 1:
            return own
        counts = torch.zeros(self.size, dtype=torch.int64, device=self.device)
        counts[self.rank] = len(own)
        sizes = self.sum(counts).tolist()
        first = sum(sizes[: self.rank])
        whole = own.new_zeros(sum(sizes), *own.shape[1:])
        whole[first : first + len(own)] = own
        return self.sum(whole)

    def gather_rows(self, rows: Tensor) -> Tensor:
        """Rows [n_i, ...] of all processes in the order of their ranks, on every process, off the device."""
        if self.size == 1:
            return rows.cpu()
        return torch.cat(gather_object([rows.cpu()]))

    def predict(self, module: nn.Module, source: Source, size: int = 512) -> tuple[Tensor, Tensor | None]:
        """Outputs of `module` in eval mode for the whole source, in its order, with its labels, off the device.

        Each process does a contiguous share. The mode of the module is put back.
        """
        outputs, labels = [], []
        with quietly(module), self.autocast():
            for ids, counts in self._shares(len(source), size):
                x, y = source.fetch(ids, view=None)
                outputs.append(module(x.to(self.device)).float()[:counts])
                labels.append(None if y is None else y[:counts])
        known = labels and labels[0] is not None
        y = self.gather_rows(torch.cat([label.to(self.device) for label in labels])) if known else None
        return self.gather_rows(torch.cat(outputs)), y

    def apply(self, module: nn.Module, *inputs: Tensor | None, size: int = 500) -> Tensor:
        """Outputs of `module` in eval mode for rows of `inputs` [n, ...] (None stays None), off the device.

        Each process does a contiguous share. The mode of the module is put back.
        """
        rows = next(len(x) for x in inputs if x is not None)
        outputs = []
        with quietly(module), self.autocast():
            for ids, counts in self._shares(rows, size):
                part = slice(int(ids[0]), int(ids[-1]) + 1)
                made = module(*(x if x is None else x[part].to(self.device) for x in inputs))
                outputs.append(made.float()[:counts])
        return self.gather_rows(torch.cat(outputs))

    def _shares(self, rows: int, size: int) -> Iterator[tuple[Tensor, int]]:
        """Ids of this process's share of `rows`, `size` at a time, and how many of them count.

        All processes get as many parts, because a network that is cut is gathered by all of them: who has no rows
        left is given row 0 to no account.
        """
        shares = torch.arange(rows).tensor_split(self.size)
        most, own = shares[0].split(size), shares[self.rank].split(size)
        own = own if len(own[0]) or not rows else ()
        for ids in own:
            yield ids, len(ids)
        for _ in range(len(most) - len(own)):
            yield torch.tensor([0]), 0


@cache
def _mesh(device: str, size: int) -> DeviceMesh:
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(device, (size,))


def backward(update: Update, parameters: list[nn.Parameter] | None, weight: float) -> None:
    """Gradients of weight x loss with respect to `parameters` only: the rest of the graph is not charged.

    None stands for all that the loss depends on, which is faster and the same where nothing else is trained.
    """
    loss = update.loss if weight == 1.0 else update.loss * weight
    torch.autograd.backward(loss, inputs=parameters)

"""What a network costs to keep and to run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from stillroom.models.files import METADATA, portable_state
from stillroom.models.probing import blank, quietly


def parameters(module: nn.Module) -> int:
    """Number of parameters, frozen ones included and shared ones counted once; buffers are none."""
    return sum(parameter.numel() for parameter in module.parameters())


def multiply_adds(module: nn.Module, shape: Sequence[int], dtype: torch.dtype | None = None) -> int:
    """Multiply-additions of one forward pass of one sample `[1, *shape]`, in evaluation mode.

    Convolutions, matrix products and attention count; biases, normalisation and activations do not.
    A convolution's padding is counted as if it were data. `dtype` is the samples' (None: the module's own).
    """
    with quietly(module), _unfused(), FlopCounterMode(display=False) as counter:
        module(blank(module, shape, 1, dtype))
    return counter.get_total_flops() // 2


def latency(
    module: nn.Module,
    shape: Sequence[int],
    batch: int = 1,
    seconds: float = 0.2,
    dtype: torch.dtype | None = None,
) -> float:
    """Median seconds of a forward pass of `[batch, *shape]` in evaluation mode, on the module's own device.

    Passes are timed for about `seconds`, at least five of them, after two that are not. `dtype` is the samples'
    (None: the module's own).
    """
    times: list[float] = []
    with quietly(module):
        x = blank(module, shape, batch, dtype)
        for _ in range(2):
            _timed(module, x)
        while len(times) < 5 or sum(times) < seconds:
            times.append(_timed(module, x))
    return statistics.median(times)


def seconds_of(call: Callable[[], object], seconds: float = 0.2) -> float:
    """Median seconds of `call`, timed for about `seconds` and at least three times, after one that is not."""
    call()
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def file_size(module: nn.Module) -> int:
    """Bytes of the `model.safetensors` that `save_student` would write, header included; nothing is written.

    The file is made in memory, which takes a few times its size for a moment.
    """
    return len(save(portable_state(module), metadata=METADATA))


def costs(
    module: nn.Module,
    shape: Sequence[int],
    batches: Sequence[int] = (1, 64),
    dtype: torch.dtype | None = None,
) -> dict[str, float]:
    """All of the above for samples of `shape`, the latency for each of `batches`: what a run records of a network."""
    return {
        "parameters": parameters(module),
        "multiply_adds": multiply_adds(module, shape, dtype),
        **{f"latency_{batch}": latency(module, shape, batch, dtype=dtype) for batch in batches},
        "file_bytes": file_size(module),
    }


@contextmanager
def _unfused() -> Iterator[None]:
    """Have attention and recurrent layers run as matrix products: the counter sees none of the fused kernels.

    Without this a ViT's attention, a TransformerEncoderLayer and an LSTM count as nothing on the CPU.
    """
    before = torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled
    torch.backends.mha.set_fastpath_enabled(False)
    setattr(torch.backends.mkldnn, "enabled", False)  # noqa: B010 - typed as a property of the module's class
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before[0])
        torch.backends.mkldnn.enabled = before[1]


def _timed(module: nn.Module, x: Tensor) -> float:
    start = time.perf_counter()
    module(x)
    if x.device.type != "cpu":
        torch.accelerator.synchronize(x.device)
    return time.perf_counter() - start

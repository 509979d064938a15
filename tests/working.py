"""Readers and transforms that can be sent to worker processes, and transforms that fail there.

Tests are modules that a worker cannot import by name: what they send is here.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from stillroom.errors import UserError


def numbered(numbers: Iterable[int]) -> Iterator[Tensor]:
    """A reader: images [1, 2, 2] of their number."""
    return (torch.full((1, 2, 2), float(number)) for number in numbers)


def noisy(image: Tensor) -> Tensor:
    """Noise of the process-wide generator added."""
    return image + torch.rand(image.shape)


@dataclass
class Traced:
    """Leaves the number of each process that it works in as a file in `folder`."""

    folder: Path

    def __call__(self, image: Tensor) -> Tensor:
        (self.folder / str(os.getpid())).touch()
        return noisy(image)

    def processes(self) -> set[int]:
        """The numbers of these processes, this one left out."""
        return {int(file.name) for file in self.folder.iterdir()} - {os.getpid()}


@dataclass
class Deadly:
    """Kills the worker that meets an image whose first value is one of `at`, the first `times` times for each."""

    folder: Path
    at: tuple[float, ...]
    times: int = 1

    def __call__(self, image: Tensor) -> Tensor:
        value = float(image.flatten()[0])
        died = len(list(self.folder.glob(f"{value}-*")))
        if get_worker_info() and value in self.at and died < self.times:
            (self.folder / f"{value}-{died}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return noisy(image)


@dataclass
class Faulty:
    """Fails at the image whose first value is `at`."""

    at: float
    for_user: bool

    def __call__(self, image: Tensor) -> Tensor:
        if float(image.flatten()[0]) == self.at:
            if self.for_user:
                raise UserError("sample 3 is bad: remove it")
            raise ZeroDivisionError("in the user's transform")
        return noisy(image)

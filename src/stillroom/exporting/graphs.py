"""A network as a graph in one file: ONNX, run back by ONNX Runtime, or a torch.export program."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stillroom.errors import UserError, reason
from stillroom.exporting.agreement import Call, answer, shorter
from stillroom.exporting.forms import Graph

OPSET = 20
"""The ONNX operator set that is written."""
ONE_FILE = 1_900_000_000
"""Bytes of weights up to which they stand in the model's own file: protobuf ends at 2 GB."""
ONNX, PROGRAM = "model.onnx", "model.pt2"
LARGEST = re.compile(r"(\w+) = Dim\('\w+', (?:min=\d+, )?max=(\d+)\)")
"""How torch.export says that a network goes up to a length, or has another branch for larger batches."""

Axes = tuple[dict[int, Any], ...]


def write_onnx(folder: Path, graph: Graph) -> dict[str, Any]:
    """Write model.onnx, with any batch size and with what a reader must know in its metadata; returns its facts."""
    _needs("onnx", "onnxscript", "onnxruntime")
    rows = _example(graph)
    # not left to the exporter of ONNX, which fixes the batch size rather than refuse
    program, axes, largest = _program(graph, rows, "ONNX")
    with _hushed():
        try:
            made = torch.onnx.export(
                program,
                tuple(rows.values()),
                dynamo=True,
                opset_version=OPSET,
                input_names=list(rows),
                output_names=[graph.output],
                dynamic_shapes=axes,
                custom_translation_table={torch.ops.prims.hypot.default: _hypot()},
                verbose=False,
            )
        except Exception as error:
            raise _unexportable(graph, "ONNX", error) from error
        assert made is not None
        made.model.metadata_props.update({key: json.dumps(value) for key, value in graph.about.items()})
        size = sum(p.numel() * p.element_size() for p in graph.network.parameters())
        made.save(folder / ONNX, external_data=size > ONE_FILE)
    largest.pop("batch", None)  # of two branches ONNX keeps one, which computes the same
    return {"opset": OPSET, **_described(graph, rows), **({"largest": largest} if largest else {})}


def run_onnx(path: Path, graph: Graph, threads: int) -> Call:
    """The model in a file, as ONNX Runtime computes it on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    used = {entry.name for entry in session.get_inputs()}

    def call(rows: Mapping[str, Tensor]) -> Tensor:
        feed = {name: values.numpy() for name, values in rows.items() if name in used}
        return torch.from_numpy(session.run([graph.output], feed)[0])

    return call


def write_program(folder: Path, graph: Graph) -> dict[str, Any]:
    """Write model.pt2, a torch.export program that takes any batch size; returns its facts."""
    rows = _example(graph)
    program, _, largest = _program(graph, rows, "a torch.export program")
    with _hushed():
        about = {"about.json": json.dumps(dict(graph.about))}
        torch.export.save(program, folder / PROGRAM, extra_files=about)
    return {**_described(graph, rows), **({"largest": largest} if largest else {})}


def run_program(path: Path, graph: Graph, threads: int) -> Call:
    """The program in a file, on as many threads as torch has."""
    with _hushed():
        module = torch.export.load(path).module()

    def call(rows: Mapping[str, Tensor]) -> Tensor:
        with torch.no_grad():
            return module(*rows.values())

    return call


def _program(graph: Graph, rows: Mapping[str, Tensor], what: str) -> tuple[Any, Axes, dict[str, int]]:
    """The network as torch.export sees it, its free axes, and how long those may be that are not free for ever.

    A network that takes another branch for large batches is exported for those of the small one; UserError where it
    cannot become `what`.
    """
    largest: dict[str, int] = {}
    while True:
        axes = _any_length(graph, rows, largest)
        try:
            with _hushed():
                made = torch.export.export(
                    graph.network, tuple(rows.values()), dynamic_shapes=axes, strict=False
                )
            return made, axes, largest
        except Exception as error:
            found = {name: int(most) for name, most in LARGEST.findall(str(error)) if name not in largest}
            if not found:
                raise _unexportable(graph, what, error) from error
            largest |= found


WRITERS: dict[str, tuple[str, Callable[[Path, Graph], dict[str, Any]], Callable[..., Call]]] = {
    "onnx": (ONNX, write_onnx, run_onnx),
    "torch-export": (PROGRAM, write_program, run_program),
}
"""By form: the file, what writes it, and what runs it."""


def _example(graph: Graph) -> dict[str, Tensor]:
    """Two samples: from one, torch.export takes a size of 1 for a size that is always 1."""
    return {name: values.contiguous() for name, values in graph.draw(2).items()}


def _any_length(graph: Graph, rows: Mapping[str, Tensor], largest: Mapping[str, int]) -> Axes:
    """For each input the axes that may have any length, or one up to `largest`; the same name is the same length."""
    named: dict[str, Any] = {name: torch.export.Dim(name, max=most) for name, most in largest.items()}

    def dim(name: str) -> Any:
        return named.setdefault(name, torch.export.Dim(name))

    return tuple(
        {0: dim("batch"), **{a: dim(n) for a, n in graph.axes.get(name, {}).items()}} for name in rows
    )


def _described(graph: Graph, rows: Mapping[str, Tensor]) -> dict[str, Any]:
    """Shapes and types of what goes in, and the shape of what comes out; names stand for any length."""
    inputs = {}
    for name, values in rows.items():
        free = {0: "batch", **graph.axes.get(name, {})}
        shape = [free.get(axis, size) for axis, size in enumerate(values.shape)]
        inputs[name] = {"shape": shape, "type": str(values.dtype).removeprefix("torch.")}
    whole, cut = (answer(graph, given).shape for given in (rows, shorter(graph, rows)))
    names = {name for axes in graph.axes.values() for name in axes.values()}
    said = [size if size == less else "/".join(sorted(names)) for size, less in zip(whole, cut, strict=True)]
    return {"inputs": inputs, "output": {graph.output: ["batch", *said[1:]]}}


def _unexportable(graph: Graph, what: str, error: Exception) -> UserError:
    name, text = type(graph.network).__name__, str(error)
    if "specialized" in text or "Constraints violated" in text or "ConstraintViolation" in text:
        return UserError(
            f"{name} fixes the size of a batch, so it cannot become {what}: let its forward read x.shape[0], not "
            "len(x), or pass --to hub-folder"
        )
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__  # the exporter of ONNX says last what it was that failed
    others = "torch-export or hub-folder" if what == "ONNX" else "hub-folder"
    return UserError(f"{name} cannot become {what} ({reason(error)}): pass --to {others}")


def _hypot() -> Callable[..., Any]:
    """sqrt(a^2 + b^2), which torch's exporter does not know and the processes of diffusion models use."""
    from onnxscript import opset20 as op

    def hypot(a: Any, b: Any) -> Any:
        return op.Sqrt(op.Add(op.Mul(a, a), op.Mul(b, b)))

    return hypot


def _needs(*packages: str) -> None:
    import importlib.util

    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise UserError(f'{package} is not installed: pip install "stillroom[export]"')


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """The exporters report to everybody: what they print, warn and log stays inside."""
    loggers = [
        logging.getLogger(name) for name in ("torch.onnx", "torch.export", "torch._export", "onnxscript")
    ]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)

"""`stillroom.export`: a finished run's product in a form that is used elsewhere, checked, and whole or not at all."""

from __future__ import annotations

import importlib
import os
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from stillroom import facts
from stillroom.checkpoint import write_json
from stillroom.config import from_plain
from stillroom.errors import UserError, require
from stillroom.exporting import agreement, latency
from stillroom.exporting.card import Card
from stillroom.exporting.forms import Graph, Portable, check_fits, check_name
from stillroom.exporting.graphs import WRITERS
from stillroom.exporting.hub_folder import write_hub_folder
from stillroom.exporting.libraries import library_of, write_diffusers, write_timm, write_transformers
from stillroom.run import Run

if TYPE_CHECKING:
    from torch import nn

    from stillroom.task import Task

EXPORT = "export.json"


@dataclass(frozen=True)
class Source:
    """What is exported, and of which run."""

    run: Run
    product: Any
    portable: Portable
    about: Mapping[str, Any]

    @property
    def student(self) -> Path:
        """The run's student folder."""
        return self.run.path / "student"

    @property
    def named(self) -> str:
        """What messages call it."""
        return f"run '{self.run.path}' of '{self.about['method']}'"


def export(
    run: Run | str | Path,
    to: str,
    out: str | Path | None = None,
    *,
    module: nn.Module | None = None,
    data: Any = None,
    force: bool = False,
    latency: bool = True,
    batches: Sequence[int] = (1, 64),
) -> Path:
    """Write the product of a finished run as `to` into the new folder `out`; returns the folder.

    `to` is onnx, torch-export, diffusers, transformers, timm or hub-folder; what fits depends on the product. What
    can be run again is: on the run's own test samples it has to agree with the product to 1e-4 of the largest
    output, else nothing is left. A card and export.json, with how far it agrees, lie beside it; `latency` adds times
    and sizes on this machine at `batches`. `module` is a network of your own that takes the student's weights,
    `data` the data that the run was given in Python. `out` is RUN/exports/TO unless told otherwise; `force` replaces
    an export that is there. Raises UserError for a run that is not finished and for a form that does not fit.
    """
    check_name(to)
    for batch in batches:
        require("--batches", batch, 1)
    run = run if isinstance(run, Run) else Run.open(Path(run))
    folder = Path(out) if out is not None else run.path / "exports" / to
    about = {**run.result, "options": run.config["options"]}
    _check_free(folder, force)
    found = _source(run, about, module, data)
    check_fits(to, found.portable, found.named)
    part = folder.parent / f".{folder.name}.part-{os.getpid()}"
    try:
        part.mkdir(parents=True)
    except OSError as error:
        raise UserError(
            f"--out '{folder}' cannot be written ({error.strerror}): pass another folder"
        ) from None
    try:
        _write(part, to, found, batches if latency else ())
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def _check_free(folder: Path, force: bool) -> None:
    """Raise UserError where something is in the way that may not be replaced."""
    if folder.is_file():
        raise UserError(f"--out '{folder}' is a file: pass a folder")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not force:
        raise UserError(
            f"--out '{folder}' is not empty: pass --force to replace an export, or another folder"
        )
    if not (folder / EXPORT).is_file():
        raise UserError(f"--out '{folder}' holds no export (no {EXPORT}) to replace: pass another folder")


def _source(run: Run, about: Mapping[str, Any], module: nn.Module | None, data: Any) -> Source:
    """The product, read back, and what its task says that it can become."""
    config = run.config
    given = set(config.get("from Python", {}))
    at_hand = {name for name, value in (("student", module), ("data", data)) if value is not None}
    try:
        product = run.student(module)
    except UserError:
        if module is None and given & {"student", "teacher"}:
            raise UserError(
                f"run '{run.path}' has a network of your own, which no name builds again: export it from Python with "
                "stillroom.export(run, to=..., module=network)"
            ) from None
        raise
    home, _, name = str(config["problem"]).partition(":")
    kind = getattr(importlib.import_module(home), name)
    task = from_plain(kind, config["task"])
    if data is not None:
        task = task.but(data=data) if isinstance(data, str) else task.using(data=data)
    return Source(run, product, _portable(task, product, run, about, given - at_hand), about)


def _portable(task: Task, product: Any, run: Run, about: Mapping[str, Any], absent: set[str]) -> Portable:
    """What the task says; data that are gone, or are others by now, are no reason not to export, and are said."""
    student, known = run.path / "student", about["data"].get("fingerprint")
    try:
        found = task.portable(product, student, about, absent)
    except UserError as error:
        if "data" in absent:
            raise
        warnings.warn(
            f"the data of run '{run.path}' cannot be read, random numbers stand in ({error})", stacklevel=4
        )
        return task.portable(product, student, about, absent | {"data"})
    if found.graph is None or "data" in absent or not known or task.fingerprint() == known:
        return found
    changed = f"the data of run '{run.path}' changed since it was made: the export is held against them"
    warnings.warn(changed, stacklevel=4)
    return replace(
        found, graph=replace(found.graph, source=f"{found.graph.source}, which changed since the run")
    )


def _write(folder: Path, to: str, found: Source, batches: Sequence[int]) -> None:
    """All files of one form, the card and export.json last."""
    portable, about = found.portable, found.about
    facts_of, card = _form(folder, to, found)
    times: dict[str, Any] = {}
    if batches and portable.graph is not None:
        times = _times(found, portable.graph, tuple(WRITERS) if to in WRITERS else (), batches)
        card = card.but(sections=[*card.sections, ("Times and sizes", latency.section(times))])
    card.write(folder, about)
    write_json(
        folder / EXPORT,
        {
            "form": to,
            "method": about["method"],
            "seed": about["seed"],
            **facts_of,
            **({"latency": times} if times else {}),
            "versions": facts.versions(),
            "machine": facts.machine(),
            "made": facts.now(),
            "files": {
                str(p.relative_to(folder)): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()
            },
        },
    )


def _times(found: Source, graph: Graph, forms: Sequence[str], batches: Sequence[int]) -> dict[str, Any]:
    """Times and sizes of the product and of the run's other arms, as far as they are at hand."""
    names = {arm["role"]: name for name, arm in found.about["arms"].items()}
    try:
        others, gone = found.portable.beside(), []
    except UserError as error:  # a teacher's folder that was moved
        others, gone = {}, [f"the other arms: {error}"]
    here = {names[role]: network for role, network in others.items() if role in names}
    times = latency.measure(latency.beside(graph, here, found.about["method"]), forms, batches)
    left_out = [*times.get("left_out", ()), *gone]
    return {**times, **({"left_out": left_out} if left_out else {})}


def _form(folder: Path, to: str, found: Source) -> tuple[dict[str, Any], Card]:
    """Write the form's own files; returns what export.json says of them, and the card."""
    base = found.portable.card or Card(title=f"Made by {found.about['method']}")
    if to in WRITERS:
        return _graph(folder, to, found, base)
    if to == "hub-folder":
        return write_hub_folder(folder, found, base, _library)
    return _library(folder, found, base)


def _graph(folder: Path, to: str, found: Source, base: Card) -> tuple[dict[str, Any], Card]:
    graph = found.portable.graph
    assert graph is not None
    file, write, run = WRITERS[to]
    facts_of = write(folder, graph)
    call = run(folder / file, graph, torch.get_num_threads())
    measured = agreement.agreement(graph, call, facts_of.get("largest", {}).get("batch"))
    agreement.check(measured, f"{file} of {found.named}")
    names = ", ".join(facts_of["inputs"])
    if to == "onnx":
        feed = ", ".join(f"'{name}': {name}" for name in facts_of["inputs"])
        code = [
            "import onnxruntime",
            f"session = onnxruntime.InferenceSession('{file}')",
            f"{graph.output} = session.run(['{graph.output}'], {{{feed}}})[0]  # numpy arrays",
        ]
    else:
        code = [
            "import torch",
            f"network = torch.export.load('{file}').module()",
            f"# network({names}) on tensors",
        ]
    card = base.but(
        code=code,
        ending=[graph.note] if graph.note else [],
        sections=[*base.sections, ("The graph", _described(facts_of, measured))],
    )
    return {**facts_of, "about": dict(graph.about), "agreement": measured}, card


def _described(facts_of: Mapping[str, Any], measured: Mapping[str, Any]) -> list[str]:
    """Inputs, outputs and agreement, for the card."""
    lines = [
        f"- input `{name}`: {one['type']} [{', '.join(map(str, one['shape']))}]"
        for name, one in facts_of["inputs"].items()
    ]
    lines += [
        f"- output `{name}`: [{', '.join(map(str, shape))}]" for name, shape in facts_of["output"].items()
    ]
    lines += [f"- `{name}` may be up to {most}" for name, most in facts_of.get("largest", {}).items()]
    if "opset" in facts_of:
        lines.append(
            f"- ONNX opset {facts_of['opset']}; classes and normalisation are in the file's metadata"
        )
    return [*lines, f"- {said(measured)}"]


def said(measured: Mapping[str, Any]) -> str:
    """How far it agrees, in words."""
    return (
        f"differs from {measured['against']} by at most {measured['relative_difference']:.1e} of the largest output, "
        f"on batches of {', '.join(map(str, measured['batches']))} of {measured['inputs']}"
    )


def _library(folder: Path, found: Source, base: Card) -> tuple[dict[str, Any], Card]:
    """The folder of the product's own library."""
    portable, library = found.portable, found.portable.library
    labels, graph = list(portable.labels), portable.graph
    if library == "diffusers":
        measured = write_diffusers(folder, found.student, found.product, labels)
        code = [
            "from diffusers import DiffusionPipeline",
            "pipeline = DiffusionPipeline.from_pretrained('.')",
        ]
        if (folder / "pipeline.py").is_file():
            code[1] = code[1][:-1] + ", trust_remote_code=True)  # the folder's own pipeline.py"
        front = {"library_name": "diffusers"}
    else:
        held = library_of(found.product)
        assert held is not None and graph is not None
        if library == "timm":
            measured = write_timm(folder, held, graph, labels)
            code = ["import timm", "network = timm.create_model('local-dir:.', pretrained=True)"]
        else:
            measured, name = write_transformers(folder, held, graph, labels, found.student)
            code = [f"from transformers import {name}", f"network = {name}.from_pretrained('.')"]
            if (folder / "tokenizer_config.json").is_file():
                code[0] += ", AutoTokenizer"
                code += ["tokenizer = AutoTokenizer.from_pretrained('.')"]
        front = {"library_name": library}
    lines = [f"- {said(measured)}"] if measured else ["- not run again: no comparison was possible"]
    if measured:
        agreement.check(measured, f"the {library} folder of {found.named}")
    card = base.but(
        code=code,
        front={**base.front, **front},
        ending=[],
        sections=[*base.sections, ("Read back", lines)],
    )
    return {"library": library, "agreement": measured}, card

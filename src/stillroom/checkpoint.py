"""Checkpoints: safetensors and JSON, written whole or not at all, never unpickled.

A checkpoint is a folder `step-00000120/` that appears by one rename, so whatever kills the process, what is
there is complete. Raw weights, averaged weights and optimizer state are separate files.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import zlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stillroom.errors import UserError
from stillroom.facts import versions
from stillroom.sharding import local, own_part

PREFIX = "step-"


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all: a reader sees the old one or the new one.

    Bytes in a path that are no text are written as escapes, which JSON reads back.
    """
    part = path.with_name(f".{path.name}.part")
    with open(part, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def write_json(path: Path, value: Any) -> None:
    """`write_text` of readable JSON; NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The value in a JSON file; UserError where it is missing, cut short or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"'{path}' does not exist: '{path.parent}' is not a folder that Stillroom wrote"
        ) from None
    except (
        ValueError,
        RecursionError,
    ) as error:  # of text, of JSON, of a number too long, of too deep a nest
        raise UserError(
            f"'{path}' is cut short or not JSON ({error}): restore it or start a new run"
        ) from None


def weights(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name, each once where several names share a tensor."""
    named = dict(module.named_parameters()) | dict(module.named_buffers())
    kept = set(module.state_dict(keep_vars=True))
    return {key: value.detach() for key, value in named.items() if key in kept}


def load_weights(module: nn.Module, state: Mapping[str, Tensor], source: Path) -> None:
    """Copy `state`, whole, into the module in place; UserError where names or shapes do not fit."""
    own = weights(module)
    if set(own) != set(state):
        odd = sorted(set(own) ^ set(state))[0]
        raise UserError(f"'{source}' belongs to another network (they differ in '{odd}'): resume its own run")
    with torch.no_grad():
        for key, value in own.items():
            if value.shape != state[key].shape:
                shapes = f"{tuple(state[key].shape)}, the network's is {tuple(value.shape)}"
                raise UserError(f"'{key}' in '{source}' has shape {shapes}: resume with the same networks")
            local(value).copy_(own_part(value, state[key]))


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors and see them on disk; OSError where it takes them not."""
    try:
        save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, path, metadata)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read safetensors; UserError where the file is missing, cut short or something else."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise UserError(f"'{path}' is missing from its checkpoint: {_way_out(path)}") from None
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"'{path}' is cut short or not safetensors ({str(error).splitlines()[0]}): {_way_out(path)}"
        ) from None


def _way_out(path: Path) -> str:
    others = [c for c in listing(path.parent.parent) if c != path.parent]
    if others:
        return f"remove '{path.parent}' and resume, the run then goes on from {others[-1].name}"
    return f"remove '{path.parent}' and resume, the run then starts again"


def listing(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, oldest first."""
    return sorted(path for path in folder.glob(f"{PREFIX}*") if path.is_dir()) if folder.is_dir() else []


def save(folder: Path, step: int, files: Mapping[str, Mapping[str, Tensor]], state: Any, keep: int) -> Path:
    """Write checkpoint `step` and remove all but the newest `keep`.

    `files` maps a file's stem to its tensors; empty ones are not written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"{PREFIX}{step:08d}"
    part = folder / f".part-{os.getpid()}"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        for stem, tensors in files.items():
            if tensors:
                save_tensors(part / f"{stem}.safetensors", tensors)
        sizes = {stem: len(tensors) for stem, tensors in files.items() if tensors}
        sums = {stem: checksum(part / f"{stem}.safetensors") for stem in sizes}
        whole = {**state, "files": sizes, "sums": sums, "versions": made_with()}
        write_json(part / "state.json", {**whole, "sum": _checksum_of(whole)})
        _discard(final)
        os.replace(part, final)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    for old in listing(folder)[:-keep]:
        _discard(old)
    return final


def _discard(path: Path) -> None:
    """Remove a checkpoint; killed in the middle, it leaves nothing that passes for one."""
    if path.is_dir():
        gone = path.with_name(f".part-{os.getpid()}-{path.name}")
        os.replace(path, gone)
        shutil.rmtree(gone)


@cache
def made_with() -> dict[str, str]:
    """The versions that bits depend on."""
    return {name: number for name, number in versions().items() if name in ("stillroom", "torch")}


def checksum(path: Path) -> int:
    """CRC-32 of a file: half a second a gigabyte, a small part of writing it."""
    found = 0
    with open(path, "rb") as file:
        while chunk := file.read(2**20):
            found = zlib.crc32(chunk, found)
    return found


def _checksum_of(state: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(state, sort_keys=True).encode())


def load(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """State and files of the checkpoint at `path`; UserError where anything of it is missing, cut short or changed."""
    state = _read_state(path)
    files = {stem: load_tensors(path / f"{stem}.safetensors") for stem in state["files"]}
    for stem, tensors in files.items():
        if len(tensors) != state["files"][stem]:
            wanted = state["files"][stem]
            short = (
                f"'{path / stem}.safetensors' has {len(tensors)} tensors, not the {wanted} that were written"
            )
            raise UserError(f"{short}: {_way_out(path / stem)}")
    for stem in files if "sums" in state else ():
        if checksum(path / f"{stem}.safetensors") != state["sums"].get(stem):
            changed = f"'{path / stem}.safetensors' is damaged, its bytes are not those that were written"
            raise UserError(f"{changed}: {_way_out(path / stem)}")
    return state, files


def _read_state(path: Path) -> dict[str, Any]:
    file, way = path / "state.json", _way_out(path / "state.json")
    try:
        state = read_json(file)
    except UserError:
        raise UserError(f"'{file}' is missing or cut short: {way}") from None
    if not isinstance(state, dict) or not _is_state(state):
        raise UserError(f"'{path}' is not a checkpoint of Stillroom's: {way}")
    summed = "sum" in state or "sums" in state  # checkpoints of earlier versions have no sums
    if state.pop("sum", None) != _checksum_of(state) and summed:
        raise UserError(f"'{file}' is damaged, it is not as it was written: {way}")
    return state


def _is_state(state: Mapping[str, Any]) -> bool:
    kinds = {"step": int, "seconds": float, "history": int, "window": dict, "files": dict}
    return (
        all(type(state.get(key)) is kind for key, kind in kinds.items())
        and isinstance(state.get("sums", {}), dict)
        and isinstance(made := state.get("versions", {}), dict)
        and all(isinstance(number, str) for number in made.values())
        and min(state["step"], state["history"], state["seconds"]) >= 0
        and math.isfinite(state["seconds"])
        and all(Path(stem).name == stem for stem in state["files"])  # a name is no way to somewhere else
    )


def clean(folder: Path) -> None:
    """Remove what a killed writer left half-written."""
    if folder.is_dir():
        for part in folder.glob(".part-*"):
            shutil.rmtree(part, ignore_errors=True)

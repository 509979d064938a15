"""Options as JSON: a dataclass of options to plain values and back."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import types
import typing
from typing import Any, TypeVar

from stillroom.errors import UserError

T = TypeVar("T")
_WAY = "restore config.json, or start a new run"


def to_plain(value: Any) -> Any:
    """Dataclasses as dictionaries of their fields, tuples as lists, the rest as it is."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
    if isinstance(value, (list, tuple)):
        return [to_plain(v) for v in value]
    if isinstance(value, dict):
        return {k: to_plain(v) for k, v in value.items()}
    return value


def from_plain(kind: type[T], plain: dict[str, Any]) -> T:
    """The dataclass `kind` from what `to_plain` made of one; UserError for an unknown field or another type."""
    if not isinstance(plain, dict):
        raise UserError(f"config has {plain!r} for the options of {kind.__name__}: {_WAY}")
    hints = typing.get_type_hints(kind)
    names = {f.name for f in dataclasses.fields(kind) if f.init}  # type: ignore[arg-type]
    odd = sorted(set(plain) - names)
    if odd:
        raise UserError(f"config has the option '{odd[0]}', which {kind.__name__} does not: start a new run")
    for name, value in plain.items():
        if not _fits(hints[name], value):
            raise UserError(f"config has {value!r} for the option '{name}' of {kind.__name__}: {_WAY}")
    return kind(**{name: _typed(hints[name], value) for name, value in plain.items()})


def _fits(hint: Any, value: Any) -> bool:
    """Whether a value that was read is one that an option of type `hint` can have been written as."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _fits(inner[0], value)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(one, value) for one in inner)
    if origin is typing.Literal:
        return any(value == one and type(value) is type(one) for one in inner)
    if origin is tuple:
        each = inner[:1] * len(value) if inner[1:] == (...,) and isinstance(value, list) else inner
        return isinstance(value, list) and len(each) == len(value) and all(map(_fits, each, value))
    if hint is float:
        return type(value) in (int, float) and math.isfinite(value)
    if hint is int:
        return type(value) is int and abs(value) < 2**63
    return type(value) is hint if hint in (bool, str, types.NoneType) else True


def _typed(hint: Any, value: Any) -> Any:
    origin = typing.get_origin(hint)
    if origin is typing.Annotated:
        return _typed(typing.get_args(hint)[0], value)
    if origin in (typing.Union, types.UnionType):
        inner = [a for a in typing.get_args(hint) if a is not type(None)]
        return None if value is None else _typed(inner[0], value)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_plain(hint, value)
    return tuple(value) if origin is tuple else value


def differences(old: Any, new: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """Where two plain values differ: (dotted path, old, new)."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(k for k in new if k not in old)]
        found = [differences(old.get(k), new.get(k), f"{path}.{k}" if path else k) for k in keys]
        return [item for items in found for item in items]
    return [] if old == new else [(path, old, new)]


def flag_of(path: str) -> str:
    """The flag that sets a dotted path of a run's config: `options.gamma` is --method.gamma."""
    path = path.replace("options.", "method.", 1).replace("engine.recipe.", "engine.", 1)
    return "--" + path.replace("_", "-")


def digest(plain: Any) -> str:
    """A short name for a plain value: 16 hexadecimal digits, the same on every machine."""
    text = json.dumps(plain, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]

"""Typed values out of plain mappings: dataclass fields in, a list of every problem out.

Two kinds of document share it: files that people write (an unknown key is a mistake) and documents that machines
send (an unknown key belongs to a newer writer and is kept in the dataclass's `extra`).
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from edge_sdk.registry import near_miss

T = TypeVar("T")
MISSING = object()


def read_dataclass(data: Any, cls: type[T], *, keep_unknown: bool = False) -> tuple[T | None, list[str]]:
    """Read `data` as `cls`: the value or None, and one line for each unknown, missing or wrong key.

    Fields may be str, int, float, bool, Path, an Enum, a Literal, a nested dataclass, `X | None`, `tuple[X, ...]`
    or `dict[str, X]`. `field(metadata={"min": a, "max": b, "key": "name-in-file"})` bounds and renames a field.
    """
    reader = _Reader(keep_unknown)
    value = reader.dataclass(data, cls, "")
    return (None if value is MISSING or reader.problems else value), reader.problems


def write_dataclass(value: Any) -> Any:
    """Return `value` as plain JSON types, the entries of `extra` merged back in.

    A field that is None and has the default None is left out.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        out: dict[str, Any] = {}
        for field in dataclasses.fields(value):
            item = getattr(value, field.name)
            if field.name == "extra":
                out.update({k: v for k, v in item.items() if k not in out})
            elif not (item is None and field.default is None):
                out[field.metadata.get("key", field.name)] = write_dataclass(item)
        return out
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(k): write_dataclass(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [write_dataclass(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    return value


@functools.cache
def _plan(cls: Any) -> tuple[dict[str, tuple[dataclasses.Field[Any], Any]], bool]:
    hints = typing.get_type_hints(cls)
    fields = {f.metadata.get("key", f.name): (f, hints[f.name]) for f in dataclasses.fields(cls) if f.name != "extra"}
    return fields, any(f.name == "extra" for f in dataclasses.fields(cls))


class _Reader:
    def __init__(self, keep_unknown: bool) -> None:
        self.keep_unknown = keep_unknown
        self.problems: list[str] = []

    def dataclass(self, data: Any, cls: Any, path: str) -> Any:
        if not isinstance(data, Mapping):
            return self._wrong(path or "top level", "a table", data)
        known, has_extra = _plan(cls)
        before = len(self.problems)
        values: dict[str, Any] = {}
        unknown = {k: v for k, v in data.items() if k not in known}
        if self.keep_unknown and has_extra:
            values["extra"] = unknown
        elif not self.keep_unknown:
            for key in unknown:
                hint = near_miss(str(key), known)
                self.problems.append(f"{_join(path, key)}: unknown key" + (f", {hint}" if hint else ""))
        for key, (field, hint) in known.items():
            if key in data:
                value = self.value(data[key], hint, _join(path, key))
                if value is not MISSING:
                    values[field.name] = value
                    self._bounds(value, field.metadata, _join(path, key))
            elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                self.problems.append(f"{_join(path, key)}: missing")
        if len(self.problems) > before:
            return MISSING
        try:
            return cls(**values)
        except ValueError as error:
            self.problems.append(f"{path or 'top level'}: {error}")
            return MISSING

    def value(self, value: Any, hint: Any, path: str) -> Any:
        origin = typing.get_origin(hint)
        if origin in (typing.Union, types.UnionType):
            if value is None:
                return None
            return self.value(value, next(a for a in typing.get_args(hint) if a is not type(None)), path)
        if origin is typing.Literal:
            return self._choice(value, {str(a): a for a in typing.get_args(hint)}, path)
        if origin in (tuple, list):
            return self._sequence(value, typing.get_args(hint)[0], path)
        if origin in (dict, Mapping) or origin is typing.get_origin(Mapping[str, int]):
            return self._table(value, typing.get_args(hint)[1], path)
        if hint is Any:
            return value
        if isinstance(hint, type) and issubclass(hint, enum.Enum):
            return self._choice(value, {str(m.value): m for m in hint}, path)
        if dataclasses.is_dataclass(hint):
            return self.dataclass(value, hint, path)
        return self._scalar(value, hint, path)

    def _scalar(self, value: Any, hint: Any, path: str) -> Any:
        if hint is Path and isinstance(value, str):
            return Path(value)
        if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
            if math.isfinite(value):
                return float(value)
        elif isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
            return value
        return self._wrong(path, _NAMES.get(hint, str(hint)), value)

    def _choice(self, value: Any, choices: Mapping[str, Any], path: str) -> Any:
        if isinstance(value, (str, int)) and str(value) in choices:
            return choices[str(value)]
        return self._wrong(path, f"one of {', '.join(choices)}", value)

    def _sequence(self, value: Any, item: Any, path: str) -> Any:
        if not isinstance(value, (list, tuple)):
            return self._wrong(path, "an array", value)
        items = [self.value(v, item, f"{path}[{i}]") for i, v in enumerate(value)]
        return MISSING if any(v is MISSING for v in items) else tuple(items)

    def _table(self, value: Any, item: Any, path: str) -> Any:
        if not isinstance(value, Mapping):
            return self._wrong(path, "a table", value)
        items = {k: self.value(v, item, _join(path, k)) for k, v in value.items()}
        return MISSING if any(v is MISSING for v in items.values()) else items

    def _bounds(self, value: Any, metadata: Mapping[str, Any], path: str) -> None:
        low, high = metadata.get("min"), metadata.get("max")
        if value is None or (low is None and high is None):
            return
        if (low is not None and value < low) or (high is not None and value > high):
            span = f"{low if low is not None else '-inf'} to {high if high is not None else 'inf'}"
            self.problems.append(f"{path}: expected {span}, found {value}")

    def _wrong(self, path: str, expected: str, value: Any) -> Any:
        self.problems.append(f"{path}: expected {expected}, found {_show(value)}")
        return MISSING


def _join(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)


def _show(value: Any) -> str:
    name = _NAMES.get(type(value), type(value).__name__)
    text = repr(value)
    return f"{name} {text if len(text) <= 40 else text[:37] + '...'}"


_NAMES: dict[Any, str] = {
    str: "a string",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    dict: "a table",
    list: "an array",
    tuple: "an array",
    type(None): "nothing",
    Path: "a path",
}

"""JSON that machines send: strict to read, canonical to write, unknown keys kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar

from edge_sdk.errors import SchemaError
from edge_sdk.parsing import read_dataclass, write_dataclass

T = TypeVar("T")

MAX_BYTES = 16 * 1024 * 1024
MAX_DEPTH = 64


def loads(raw: bytes | str, *, where: str, max_bytes: int = MAX_BYTES) -> Any:
    """Parse JSON, refusing what Python's parser lets through: NaN, infinities, duplicate keys, deep nesting.

    Raises:
        SchemaError: the text is too large, not UTF-8, not JSON, or has one of the above.
    """
    if len(raw) > max_bytes:
        raise SchemaError(f"{where} is {len(raw)} bytes, the limit is {max_bytes}", hint="the sender is wrong")
    try:
        text = raw.decode("utf-8") if isinstance(raw, (bytes, bytearray)) else raw
        _check_depth(text, where)
        return json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise SchemaError(
            f"{where} is not UTF-8: {error.reason} at byte {error.start}", hint="the sender is wrong or the data is cut"
        ) from None
    except (ValueError, RecursionError) as error:
        raise SchemaError(
            f"{where} is not valid JSON: {error}", hint="the sender is wrong or the data is cut"
        ) from None


def loads_object(raw: bytes | str, *, where: str, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """Parse JSON whose top level must be an object.

    Raises:
        SchemaError: as `loads`, or the top level is something else.
    """
    value = loads(raw, where=where, max_bytes=max_bytes)
    if not isinstance(value, dict):
        raise SchemaError(f"{where}: expected an object, found {type(value).__name__}", hint="the sender is wrong")
    return value


def dumps(value: Any) -> bytes:
    """Return canonical JSON: sorted keys, no spaces, UTF-8, no NaN; equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def dumps_pretty(value: Any) -> bytes:
    """Return JSON for people: sorted keys, two spaces, a newline at the end."""
    return json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def read(data: Mapping[str, Any], cls: type[T], *, where: str) -> T:
    """Read an object as the dataclass `cls`; keys it does not know go to its `extra`.

    Raises:
        SchemaError: keys are missing or have a wrong type; all of them are named.
    """
    value, problems = read_dataclass(data, cls, keep_unknown=True)
    if value is None:
        raise SchemaError(f"{where}: " + "; ".join(problems), hint="written by another version, or damaged")
    return value


def write(value: Any) -> dict[str, Any]:
    """Return a dataclass as a JSON object, with its `extra` keys merged back."""
    out: dict[str, Any] = write_dataclass(value)
    return out


def check_schema(found: Any, family: str, major: int, *, where: str) -> None:
    """Refuse a document of another family or major version.

    Raises:
        SchemaError: `found` is not `family/major` (a minor part, `family/1.4`, is accepted).
    """
    name, _, version = str(found).partition("/")
    if name != family or version.split(".")[0] != str(major):
        raise SchemaError(
            f"{where}: schema is `{found}`, this version reads `{family}/{major}`",
            hint="upgrade edge-sdk to read it" if name == family else f"this is not a {family} document",
        )


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        seen: set[str] = set()
        twice = next(k for k, _ in pairs if k in seen or seen.add(k))  # type: ignore[func-returns-value]
        raise ValueError(f"key `{twice}` appears twice")
    return out


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _check_depth(text: str, where: str) -> None:
    depth = 0
    in_string = escaped = False
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    for char in text:
        if in_string:
            if escaped:
                escaped = False
            elif char == "\\":
                escaped = True
            elif char == '"':
                in_string = False
        elif char == '"':
            in_string = True
        elif char in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise SchemaError(f"{where} is nested more than {MAX_DEPTH} deep", hint="the sender is wrong")
        elif char in "]}":
            depth -= 1

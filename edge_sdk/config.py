"""TOML files that people write, parsed into frozen dataclasses; every wrong key is reported at once."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from edge_sdk.errors import ConfigError
from edge_sdk.parsing import read_dataclass

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")


def load_toml(path: Path, cls: type[T]) -> T:
    """Read `path` and parse it as the dataclass `cls`.

    Raises:
        ConfigError: the file cannot be read, is not TOML, or has wrong keys (all of them are listed).
    """
    return parse(read_toml(path), cls, where=str(path))


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file as a plain mapping.

    Raises:
        ConfigError: the file cannot be read or is not TOML.
    """
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except FileNotFoundError:
        raise ConfigError(f"no such file: {path}", hint="check the path") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}", hint="correct the line that is named") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}", hint="check that it is a readable UTF-8 text") from None


def parse(data: Mapping[str, Any], cls: type[T], *, where: str) -> T:
    """Parse a mapping as the dataclass `cls` (see `edge_sdk.parsing.read_dataclass` for the field types).

    Raises:
        ConfigError: with one line for each unknown, missing or wrong key.
    """
    value, problems = read_dataclass(data, cls)
    if value is None:
        count = f"{len(problems)} problem" + ("s" if len(problems) > 1 else "")
        raise ConfigError(f"{where}: {count}", problems=problems, hint="correct the keys named above")
    return value

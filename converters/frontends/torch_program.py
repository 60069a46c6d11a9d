"""Exported PyTorch programs (.pt2), looked through before torch opens them: its loader unpickles and evaluates."""

from __future__ import annotations

import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from edge_sdk.errors import ConversionError

_EXPRESSION = re.compile(
    r"(?<![\w.])(?:[a-z]+\d+|Symbol|Integer|Rational|Add|Mul|Pow|Max|Min|Mod|FloorDiv|CeilDiv|PythonMod|CleanDiv"
    r"|ModularIndexing|True|False|positive|negative|nonnegative|integer|real)(?![\w.])"
    r"|[-+*/()<>=', 0-9]"
)
"""What a size may be made of. torch gives the text to sympy, which evaluates it."""
_TARGET = re.compile(
    r"torch\.ops\.(?:aten|prim|prims|quantized|quantized_decomposed|higher_order|torchvision)\.\w+(?:\.\w+)?"
    r"|_operator\.(?:getitem|add|sub|mul|mod|floordiv|truediv|neg|pow|eq|ne|lt|le|gt|ge|and_|or_|not_)"
    r"|torch\.sym_\w+|math\.\w+"
)
"""What a node may call. torch takes the text as a path from its own module, from where everything can be reached."""
_OLD_PARTS = ("serialized_state_dict.pt", "serialized_constants.pt", "serialized_example_inputs.pt")


def load(path: Path) -> Any:
    """Return the `torch.export.ExportedProgram` of a .pt2 file, on the CPU.

    Raises:
        ConversionError: it is damaged, of another version of torch, or holds what would run code when it is loaded.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _check(path.name, archive)
    except (zipfile.BadZipFile, json.JSONDecodeError, UnicodeDecodeError, KeyError, EOFError) as error:
        raise _damaged(path, error) from None
    try:
        return torch.export.load(str(path))
    except Exception as error:
        raise _damaged(path, error) from None


def is_program(names: list[str]) -> bool:
    """Return whether a zip with these entries is an exported program."""
    return any(n.endswith(("/archive_format", "serialized_exported_program.json")) for n in names)


def _damaged(path: Path, error: Exception) -> ConversionError:
    line = " ".join(str(error).split())[:160]
    return ConversionError(
        f"`{path.name}` cannot be read as an exported program by torch {torch.__version__.partition('+')[0]}: {line}",
        hint="export it again with this torch: torch.export.save(torch.export.export(model, (example,)), 'model.pt2')",
    )


def _check(name: str, archive: zipfile.ZipFile) -> None:
    names = archive.namelist()
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice is not None:
        raise ConversionError(f"`{name}` has the entry `{twice}` twice", hint="export it again")
    for entry in names:
        if "/aotinductor/" in entry or entry.endswith((".so", ".o", ".cubin")):
            raise ConversionError(
                f"`{name}` holds native code (`{entry}`), expected an exported program",
                hint="export with torch.export.save, not as an AOTInductor package",
            )
        if entry.endswith("_config.json"):
            _check_payloads(name, archive, entry)
        elif entry.endswith(".json"):
            _check_program(name, entry, json.loads(archive.read(entry)))
        elif entry.endswith((".pt", *_OLD_PARTS)):
            _check_pickle(name, entry, archive.read(entry))


def _check_payloads(name: str, archive: zipfile.ZipFile, config: str) -> None:
    folder = config.rpartition("/")[0]
    for weight, entry in json.loads(archive.read(config))["config"].items():
        path = str(entry["path_name"])
        if path.startswith(("custom_obj", "opaque_obj")):
            raise _objects(name, weight)
        if entry["use_pickle"]:
            _check_pickle(name, weight, archive.read(f"{folder}/{path}"))


def _check_pickle(name: str, entry: str, content: bytes) -> None:
    if not content:
        return
    try:
        torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception:
        raise _objects(name, entry) from None


def _objects(name: str, entry: str) -> ConversionError:
    return ConversionError(
        f"`{name}` keeps Python objects in `{entry}`, not only weights; loading it would run code from the file",
        hint="export a model whose constants are tensors, or give the weights and --factory package.module:function",
    )


def _check_program(name: str, entry: str, value: Any) -> None:
    """Refuse text that torch would evaluate: sizes that are no arithmetic, calls of what is no operator."""
    if isinstance(value, dict):
        text, target = value.get("expr_str"), value.get("target")
        if isinstance(text, str) and _EXPRESSION.sub("", text):
            raise ConversionError(
                f"`{name}` has a size in `{entry}` that is no plain arithmetic: `{text[:60]}`",
                hint="export it again with fixed sizes",
            )
        if isinstance(target, str) and "inputs" in value and not _TARGET.fullmatch(target):
            raise ConversionError(
                f"`{name}` calls `{target[:60]}`, which is no operator of torch",
                hint="export the model without custom operators",
            )
        for part in value.values():
            _check_program(name, entry, part)
    elif isinstance(value, list):
        for part in value:
            _check_program(name, entry, part)

"""What the TFLite Metadata of a file says of its image input and its labels; most files have none.

https://www.tensorflow.org/lite/models/convert/metadata, schema `metadata_schema.fbs`.
"""

from __future__ import annotations

import io
import struct
import zipfile
from dataclasses import dataclass
from typing import Any

from flatbuffers import number_types as numbers
from flatbuffers.table import Table

NAME = b"TFLITE_METADATA"
_RGB, _GRAY = 1, 2
_NORMALIZATION, _IMAGE = 1, 2
_AXIS_LABELS, _VALUE_LABELS = 2, 3
_MODEL_SUBGRAPHS, _GRAPH_INPUTS, _GRAPH_OUTPUTS = 3, 2, 3
_TENSOR_CONTENT, _TENSOR_UNITS, _TENSOR_FILES = 3, 4, 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Metadata:
    """Colour, mean and std (pixel units) of the input, and labels by class; None or empty where the file is silent."""

    color: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    labels: tuple[str, ...] = ()


def read(raw: bytes, buffer: bytes | None) -> Metadata:
    """Return what the metadata `buffer` and the files appended to the model say; damaged metadata says nothing."""
    try:
        found = _tensors(buffer) if buffer else Metadata()
        named = _label_file(buffer) if buffer else None
    except (struct.error, IndexError, ValueError, UnicodeDecodeError):
        found, named = Metadata(), None
    return Metadata(color=found.color, mean=found.mean, std=found.std, labels=_labels(raw, named))


def _labels(raw: bytes, named: str | None) -> tuple[str, ...]:
    """Return the lines of the label file that the metadata names, or of the only text file there is."""
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            texts = [n for n in archive.namelist() if n.endswith(".txt")]
            name = named if named in texts else (texts[0] if len(texts) == 1 and named is None else None)
            if name is None or archive.getinfo(name).file_size > 2**20:
                return ()
            lines = archive.read(name).decode("utf-8").splitlines()
    except (zipfile.BadZipFile, UnicodeDecodeError, KeyError, RuntimeError):
        return ()
    while lines and not lines[-1].strip():
        lines.pop()
    return tuple(line.strip() for line in lines)


def _tensors(buffer: bytes) -> Metadata:
    inputs = _children(_graph(buffer), _GRAPH_INPUTS)
    if len(inputs) != 1:
        return Metadata()
    color: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    content = _child(inputs[0], _TENSOR_CONTENT)
    if content is not None and _byte(content, 0) == _IMAGE:
        image = _child(content, 1)
        color = {_RGB: "rgb", _GRAY: "gray"}.get(_byte(image, 0)) if image is not None else None
    for unit in _children(inputs[0], _TENSOR_UNITS):
        options = _child(unit, 1)
        if _byte(unit, 0) == _NORMALIZATION and options is not None:
            mean, std = _floats(options, 0) or None, _floats(options, 1) or None
    return Metadata(color=color, mean=mean, std=std)


def _label_file(buffer: bytes) -> str | None:
    for tensor in _children(_graph(buffer), _GRAPH_OUTPUTS):
        for file in _children(tensor, _TENSOR_FILES):
            if _byte(file, 2) in (_AXIS_LABELS, _VALUE_LABELS):
                place = _offset(file, 0)
                return bytes(file.String(place + file.Pos)).decode() if place else None
    return None


def _graph(buffer: bytes) -> Any:
    root = struct.unpack_from("<I", buffer)[0]
    graphs = _children(Table(bytearray(buffer), root), _MODEL_SUBGRAPHS)
    if not graphs:
        raise ValueError("no subgraph")
    return graphs[0]


def _offset(table: Any, field: int) -> int:
    return int(table.Offset(4 + 2 * field))


def _child(table: Any, field: int) -> Any:
    place = _offset(table, field)
    return Table(table.Bytes, table.Indirect(place + table.Pos)) if place else None


def _children(table: Any, field: int) -> list[Any]:
    place = _offset(table, field)
    if not place:
        return []
    start, count = table.Vector(place), min(int(table.VectorLen(place)), 4096)
    return [Table(table.Bytes, table.Indirect(start + 4 * k)) for k in range(count)]


def _byte(table: Any, field: int) -> int:
    place = _offset(table, field)
    return int(table.Get(numbers.Uint8Flags, place + table.Pos)) if place else 0


def _floats(table: Any, field: int) -> tuple[float, ...]:
    place = _offset(table, field)
    if not place:
        return ()
    start, count = table.Vector(place), min(int(table.VectorLen(place)), 16)
    return tuple(float(table.Get(numbers.Float32Flags, start + 4 * k)) for k in range(count))

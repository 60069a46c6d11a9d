"""What no artifact may carry: code that runs on loading, archives, weights outside the file."""

from __future__ import annotations

import io
import pickletools
from collections.abc import Iterator
from typing import BinaryIO

from edge_sdk.errors import ArtifactError

HEAD_BYTES = 1 << 16
_CODE_SUFFIXES = (".pt", ".pth", ".pkl", ".pickle", ".joblib", ".ckpt", ".npz", ".dill", ".mar")
_ARCHIVES = {b"PK\x03\x04": "a zip archive", b"PK\x05\x06": "a zip archive", b"\x1f\x8b\x08": "a gzip archive"}
_ARCHIVES |= {b"\xfd7zXZ\x00": "an xz archive", b"BZh9": "a bzip2 archive", b"7z\xbc\xaf\x27\x1c": "a 7z archive"}
_HINT = "convert the model to ONNX, OpenVINO IR or LiteRT with `edge convert`"

_MAX_DEPTH = 64
_MAX_FIELDS = 4_000_000
# Which fields of which ONNX message lead to a TensorProto (onnx.proto3: field number -> message).
_ONNX = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14


def check_name_carries_no_code(name: str) -> None:
    """Refuse the file names of pickles.

    Raises:
        ArtifactError: it is one.
    """
    if name.lower().endswith(_CODE_SUFFIXES):
        raise ArtifactError(f"`{name}` is a pickle by its name: loading it could run any code", hint=_HINT)


def check_head(name: str, head: bytes) -> None:
    """Refuse pickles, numpy arrays of objects and archives by the first 64 KiB of a file.

    Raises:
        ArtifactError: it is one of these.
    """
    for magic, kind in _ARCHIVES.items():
        if head.startswith(magic):
            raise ArtifactError(f"`{name}` is {kind}: an artifact holds none (a torch file is one)", hint=_HINT)
    if head.startswith(b"\x93NUMPY") and b"O" in _npy_type(head):
        raise ArtifactError(f"`{name}` is a numpy array of objects, which is a pickle", hint=_HINT)
    if _is_pickle(head):
        raise ArtifactError(f"`{name}` is a pickle: loading it could run any code", hint=_HINT)


def check_onnx(file: BinaryIO, offset: int, size: int, name: str) -> None:
    """Refuse an ONNX model that keeps tensors outside itself, or that is no protobuf message.

    The model at `offset` of `file` is walked field by field; tensors are skipped, never read.

    Raises:
        ArtifactError: a tensor of it says EXTERNAL or has external_data, or the message is malformed.
    """
    reader = _Reader(file, offset + size, name)
    pending = [(offset, offset + size, "model", 0)]
    graphs = fields = 0
    while pending:
        start, end, message, depth = pending.pop()
        if depth > _MAX_DEPTH:
            raise reader.malformed("its graphs are nested too deep")
        graphs += message == "graph"
        for number, value, inner in reader.fields(start, end):
            fields += 1
            if fields > _MAX_FIELDS:
                raise reader.malformed("it has too many parts")
            outside = message == "tensor" and (
                (number == _EXTERNAL_DATA and inner is not None)
                or (number == _DATA_LOCATION and inner is None and value != 0)
            )
            if outside:
                raise ArtifactError(
                    f"`{name}` keeps weights in another file (ONNX external data)",
                    hint="save it in one file: onnx.save_model(model, path, save_as_external_data=False)",
                )
            kind = _ONNX[message].get(number)
            if kind is not None and inner is not None:
                pending.append((*inner, kind, depth + 1))
    if not graphs:
        raise reader.malformed("it has no graph")


class _Reader:
    """Protobuf fields of a region of a file, through a small window of it."""

    def __init__(self, file: BinaryIO, end: int, name: str) -> None:
        self._file = file
        self._end = end
        self._name = name
        self._window = b""
        self._from = 0

    def fields(self, start: int, end: int) -> Iterator[tuple[int, int, tuple[int, int] | None]]:
        """Yield (field number, value, None) for a varint, (number, 0, (start, end)) for bytes."""
        position = start
        while position < end:
            tag, position = self._varint(position, end)
            number, wire = tag >> 3, tag & 7
            value, inner = 0, None
            if wire == 0:
                value, position = self._varint(position, end)
            elif wire == 2:
                length, position = self._varint(position, end)
                inner = (position, position + length)
                position += length
            elif wire in (1, 5):
                position += 8 if wire == 1 else 4
            else:
                raise self.malformed(f"field {number} has wire type {wire}")
            if number == 0 or position > end:
                raise self.malformed("a field leaves its message")
            yield number, value, inner

    def malformed(self, why: str) -> ArtifactError:
        return ArtifactError(f"`{self._name}` is not a readable ONNX model: {why}", hint="export or copy it again")

    def _varint(self, position: int, end: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):
            if position >= end:
                raise self.malformed("it is cut short")
            byte = self._byte(position)
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, position
        raise self.malformed("a number has more than ten bytes")

    def _byte(self, position: int) -> int:
        index = position - self._from
        if not 0 <= index < len(self._window):
            self._file.seek(position)
            self._window = self._file.read(min(HEAD_BYTES, self._end - position))
            self._from, index = position, 0
            if not self._window:
                raise self.malformed("it is cut short")
        return self._window[index]


def _npy_type(head: bytes) -> bytes:
    """Return the `descr` value of a numpy header."""
    _, _, rest = head[:4096].partition(b"descr")
    return rest.partition(b"fortran_order")[0]


def _is_pickle(head: bytes) -> bool:
    """Say whether `head` begins a pickle of protocol 2 to 5: its opcodes parse to the end, or far enough."""
    if len(head) < 2 or head[0] != 0x80 or not 2 <= head[1] <= 5:
        return False
    seen = 0
    try:
        for opcode, _, _ in pickletools.genops(io.BytesIO(head)):
            seen += 1
            if opcode.name == "STOP" or seen > 1000:
                return True
    except Exception:
        return seen >= 16 and len(head) >= HEAD_BYTES
    return False

"""Real small parts for tests of what uses the SDK: a model file, an artifact, a runtime, a source, a sink.

Everything here implements the real protocols; nothing needs the `onnx` package.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edge_sdk.artifact import Artifact, golden_entries, write_artifact
from edge_sdk.errors import BackendError
from edge_sdk.model import Model
from edge_sdk.runtimes.base import Tensor, Tensors, TensorSpec
from edge_sdk.schemas.manifest import SCHEMA, Manifest
from edge_sdk.sinks.base import FrameResult
from edge_sdk.sources.base import Frame

LABELS = ("blue", "green", "red")
TINY_SIZE = 32
_CELL = 8
_FLOAT, _UINT8 = 1, 2


def color_frame(
    color: str, *, width: int = 64, height: int = 48, box: Sequence[int] | None = None
) -> NDArray[np.uint8]:
    """Return a BGR frame of one of `LABELS`, or a black one with a `box` (x1, y1, x2, y2) of that colour."""
    frame = np.zeros((height, width, 3), np.uint8)
    x1, y1, x2, y2 = box if box is not None else (0, 0, width, height)
    frame[y1:y2, x1:x2, LABELS.index(color)] = 255
    return frame


def tiny_classifier_onnx(*, gain: float = 8.0, constant: float | None = None) -> bytes:
    """Return an ONNX model, uint8 (1, 32, 32, 3) BGR to float32 (1, 3) logits: `gain` x each channel's mean, 0 to 1.

    With `constant` every logit is that value (NaN included), whatever the image.
    """
    weights = np.eye(3, dtype=np.float32) * np.float32(0 if constant is not None else gain / 255)
    bias = np.full(3, 0 if constant is None else constant, np.float32)
    nodes = [
        _node("Cast", ["image"], ["pixels"], to=_FLOAT),
        _node("ReduceMean", ["pixels"], ["mean"], axes=[1, 2], keepdims=0),
        _node("MatMul", ["mean", "weights"], ["product"]),
        _node("Add", ["product", "bias"], ["logits"]),
    ]
    image = _value("image", _UINT8, (1, TINY_SIZE, TINY_SIZE, 3))
    return _onnx(nodes, {"weights": weights, "bias": bias}, image, _value("logits", _FLOAT, (1, 3)))


def tiny_detector_onnx() -> bytes:
    """Return an ONNX model in the form of YOLOX, uint8 (1, 32, 32, 3) to (1, 16, 8): one 8 x 8 box a bright cell.

    The score of a cell is that of its brightest channel, the class is the channel.
    """
    cells = TINY_SIZE // _CELL
    kernel = np.zeros((8, 3, _CELL, _CELL), np.float32)
    bias = np.zeros((1, 8, 1, 1), np.float32)
    scale = np.float32(16.0 / (255 * _CELL * _CELL))
    kernel[4] = scale
    for channel in range(3):
        kernel[5 + channel, channel] = scale
    bias[0, 4:] = -8.0
    nodes = [
        _node("Cast", ["image"], ["pixels"], to=_FLOAT),
        _node("Transpose", ["pixels"], ["planes"], perm=[0, 3, 1, 2]),
        _node("Conv", ["planes", "kernel"], ["sums"], strides=[_CELL, _CELL]),
        _node("Add", ["sums", "bias"], ["raw"]),
        _node("Slice", ["raw", "zero", "four", "axis"], ["box"]),
        _node("Slice", ["raw", "four", "eight", "axis"], ["score_logits"]),
        _node("Add", ["box", "centre"], ["box_centred"]),
        _node("Sigmoid", ["score_logits"], ["scores"]),
        _node("Concat", ["box_centred", "scores"], ["grid"], axis=1),
        _node("Reshape", ["grid", "shape"], ["rows"]),
        _node("Transpose", ["rows"], ["output"], perm=[0, 2, 1]),
    ]
    constants: dict[str, NDArray[Any]] = {
        "kernel": kernel,
        "bias": bias,
        "centre": np.array([0.5, 0.5, 0, 0], np.float32).reshape(1, 4, 1, 1),
        "zero": np.array([0], np.int64),
        "four": np.array([4], np.int64),
        "eight": np.array([8], np.int64),
        "axis": np.array([1], np.int64),
        "shape": np.array([1, 8, cells * cells], np.int64),
    }
    image = _value("image", _UINT8, (1, TINY_SIZE, TINY_SIZE, 3))
    return _onnx(nodes, constants, image, _value("output", _FLOAT, (1, cells * cells, 8)))


def tiny_manifest(task: str = "classification", **changes: Any) -> dict[str, Any]:
    """Return the manifest of the tiny classifier or detector, as `write_artifact` takes it; `changes` replace keys."""
    detection = task == "detection"
    output = {"name": "output", "shape": [1, 16, 8]} if detection else {"name": "logits", "shape": [1, 3]}
    return {
        "schema": SCHEMA,
        "name": f"tiny-{task}",
        "version": "1.0.0",
        "profile": "generic-cpu",
        "task": task,
        "source_sha256": "0" * 64,
        "parent": None,
        "payload_digest": "0" * 64,
        "files": {},
        "input": {
            "name": "image",
            "shape": [1, TINY_SIZE, TINY_SIZE, 3],
            "dtype": "uint8",
            "layout": "NHWC",
            "color": "bgr",
            "resize": {"mode": "letterbox" if detection else "stretch", "align": "topleft", "pad": 0},
        },
        "outputs": [output | {"dtype": "float32"}],
        "decoder": {"name": "yolox", "params": {"strides": [_CELL]}}
        if detection
        else {"name": "softmax", "params": {}},
        "runtime": {"name": "onnxruntime", "options": {"threads": 1}},
        "licences": {"model": "Apache-2.0"},
        **changes,
    }


def build_artifact(
    path: Path,
    *,
    task: str = "classification",
    model: bytes | None = None,
    golden: bool = True,
    evidence: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Artifact:
    """Write a small artifact that runs in ONNX Runtime and return it.

    The classifier answers which of `LABELS` a frame is; the detector finds bright cells. Golden cases need onnxruntime.

    Args:
        task: `classification` or `detection`.
        model: another model file with the same inputs and outputs, such as `tiny_classifier_onnx(constant=0)`.
        golden: record what the real tiny model answers as the self-test, also when `model` is another.
        changes: keys of the manifest, such as `version`.
    """
    genuine = tiny_detector_onnx() if task == "detection" else tiny_classifier_onnx()
    manifest = tiny_manifest(task, **changes)
    entries: dict[str, bytes | Path] = {
        "model/model.onnx": genuine if model is None else model,
        "labels.txt": "".join(f"{label}\n" for label in LABELS).encode(),
        "card.md": f"# {manifest['name']}\n\nA small model for tests.\n".encode(),
    }
    if golden:
        entries |= _tiny_golden(path.parent, genuine, manifest)
    return write_artifact(path, manifest=manifest, entries=entries, evidence=evidence or {})


def _tiny_golden(folder: Path, genuine: bytes, manifest: Mapping[str, Any]) -> dict[str, bytes]:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f".{manifest['name']}.golden.onnx"
    file.write_bytes(genuine)
    try:
        with Model.open_files(Manifest.from_json(_json(manifest)), file, LABELS) as reference:
            box = (16, 16, 48, 32) if manifest["task"] == "detection" else None
            return golden_entries(reference, [color_frame(label, box=box) for label in LABELS])
    finally:
        file.unlink()


class FakeRuntime:
    """A runtime whose `infer` is a function of the feeds; raises what the function raises."""

    name: ClassVar[str] = "fake"

    def __init__(
        self,
        function: Callable[[Tensors], Mapping[str, Tensor]],
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
    ) -> None:
        self._function = function
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.calls = 0
        self.closed = False

    def infer(self, feeds: Tensors) -> dict[str, Tensor]:
        if self.closed:
            raise BackendError("the runtime is closed")
        self.calls += 1
        return dict(self._function(feeds))

    def close(self) -> None:
        self.closed = True


def fake_model(answer: Callable[[NDArray[np.uint8]], Sequence[float]], **changes: Any) -> Model:
    """Return a classifier of `LABELS` whose logits are `answer(image)`; the image is BGR uint8 (32, 32, 3)."""
    manifest = Manifest.from_json(_json(tiny_manifest("classification", **changes)))
    image, logits = manifest.input, manifest.outputs[0]
    runtime = FakeRuntime(
        lambda feeds: {logits.name: np.asarray(answer(feeds[image.name][0]), np.float32).reshape(1, 3)},
        [TensorSpec(name=image.name, shape=image.shape, dtype=image.dtype)],
        [TensorSpec(name=logits.name, shape=logits.shape, dtype=logits.dtype)],
    )
    return Model(manifest, runtime, LABELS)


class ListSource:
    """A finite source over images in memory, `fps` frames a second of media time; an Exception among them is raised."""

    live = False

    def __init__(
        self, images: Sequence[NDArray[np.uint8] | Exception], *, fps: float = 10.0, uri: str = "list:"
    ) -> None:
        self.uri = uri
        self.fps = fps
        self._images = list(images)
        self._next = 0
        self.opened = False

    def open(self) -> None:
        self.opened = True

    def grab(self) -> bool:
        self._next += 1
        return self._next <= len(self._images)

    def retrieve(self) -> Frame:
        index = self._next - 1
        image = self._images[index]
        if isinstance(image, Exception):
            raise image
        return Frame(image, index, index / self.fps, time.monotonic(), self.uri)

    def close(self) -> None:
        self.opened = False


class CollectingSink:
    """Keeps every result in `items`."""

    def __init__(self, uri: str = "collect:", options: Mapping[str, Any] | None = None) -> None:
        self.uri = uri
        self.options = dict(options or {})
        self.items: list[FrameResult] = []
        self.opened = False

    def open(self) -> None:
        self.opened = True

    def write(self, item: FrameResult) -> None:
        self.items.append(item)

    def close(self) -> None:
        self.opened = False


# ONNX messages, field by field (onnx.proto3, IR version 8, opset 13).


def _onnx(nodes: Sequence[bytes], constants: Mapping[str, NDArray[Any]], image: bytes, output: bytes) -> bytes:
    graph = b"".join(_bytes(1, node) for node in nodes) + _bytes(2, b"tiny")
    graph += b"".join(_bytes(5, _tensor(name, value)) for name, value in constants.items())
    graph += _bytes(11, image) + _bytes(12, output)
    return _int(1, 8) + _bytes(2, b"edge_sdk.testing") + _bytes(7, graph) + _bytes(8, _int(2, 13))


def _node(op: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: int | Sequence[int]) -> bytes:
    raw = b"".join(_bytes(1, i.encode()) for i in inputs) + b"".join(_bytes(2, o.encode()) for o in outputs)
    raw += _bytes(4, op.encode())
    for name, value in attributes.items():
        if isinstance(value, int):
            raw += _bytes(5, _bytes(1, name.encode()) + _int(3, value) + _int(20, 2))
        else:
            raw += _bytes(5, _bytes(1, name.encode()) + b"".join(_int(8, v) for v in value) + _int(20, 7))
    return raw


def _tensor(name: str, value: NDArray[Any]) -> bytes:
    kind = {"float32": _FLOAT, "int64": 7}[value.dtype.name]
    dims = b"".join(_int(1, size) for size in value.shape)
    return (
        dims
        + _int(2, kind)
        + _bytes(8, name.encode())
        + _bytes(9, value.astype(value.dtype.newbyteorder("<")).tobytes())
    )


def _value(name: str, kind: int, shape: Sequence[int]) -> bytes:
    dims = b"".join(_bytes(1, _int(1, size)) for size in shape)
    return _bytes(1, name.encode()) + _bytes(2, _bytes(1, _int(1, kind) + _bytes(2, dims)))


def _int(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out) + struct.pack("B", value)


def _json(manifest: Mapping[str, Any]) -> bytes:
    from edge_sdk.schemas import document

    return document.dumps(dict(manifest))

"""One small convolution as ONNX bytes, in float and in int8, to measure a runtime without the onnx package.

The wire encoding is protobuf's (https://protobuf.dev/programming-guides/encoding/) and the field numbers are those of
onnx.proto (ModelProto, GraphProto, NodeProto, TensorProto), IR version 8, opset 13.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_FLOAT, _UINT8, _INT8 = 1, 2, 3
SHAPE = (1, 64, 28, 28)


def convolution(*, int8: bool) -> bytes:
    """Return a model `x -> y`: a 3x3 convolution of 64 channels on 28 x 28, padded, with weights of a fixed seed."""
    weights = np.random.default_rng(0).normal(0, 0.05, (64, 64, 3, 3)).astype(np.float32)
    if not int8:
        nodes = [_node("Conv", ("x", "w"), "y", pads=1)]
        return _model(nodes, [_tensor("w", weights)])
    scale = np.float32(np.abs(weights).max() / 127)
    quantized = np.clip(np.round(weights / scale), -127, 127).astype(np.int8)
    nodes = [
        _node("QuantizeLinear", ("x", "s", "z"), "xq"),
        _node("DequantizeLinear", ("xq", "s", "z"), "xd"),
        _node("DequantizeLinear", ("w", "ws", "wz"), "wd"),
        _node("Conv", ("xd", "wd"), "c", pads=1),
        _node("QuantizeLinear", ("c", "ys", "z"), "yq"),
        _node("DequantizeLinear", ("yq", "ys", "z"), "y"),
    ]
    constants = [
        _tensor("w", quantized),
        _tensor("ws", np.array(scale, np.float32)),
        _tensor("wz", np.array(0, np.int8)),
        _tensor("s", np.array(1 / 255, np.float32)),
        _tensor("ys", np.array(0.02, np.float32)),
        _tensor("z", np.array(0, np.uint8)),
    ]
    return _model(nodes, constants)


def saturating() -> bytes:
    """Return a 1x1 int8 convolution whose true sum, 64 x 255 x 127, is wrong where pairs are added in 16 bits.

    With an input of ones its output is 1.0 on a CPU that adds in 32 bits and about half of that otherwise.
    """
    nodes = [
        _node("QuantizeLinear", ("x", "s", "z"), "xq"),
        _node("DequantizeLinear", ("xq", "s", "z"), "xd"),
        _node("DequantizeLinear", ("w", "ws", "wz"), "wd"),
        _node("Conv", ("xd", "wd"), "c"),
        _node("QuantizeLinear", ("c", "ys", "z"), "yq"),
        _node("DequantizeLinear", ("yq", "ys", "z"), "y"),
    ]
    constants = [
        _tensor("w", np.full((64, 64, 1, 1), 127, np.int8)),
        _tensor("ws", np.array(1 / 127 / 64, np.float32)),
        _tensor("wz", np.array(0, np.int8)),
        _tensor("s", np.array(1 / 255, np.float32)),
        _tensor("ys", np.array(1 / 200, np.float32)),
        _tensor("z", np.array(0, np.uint8)),
    ]
    return _model(nodes, constants)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _int(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes | str) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _node(op: str, inputs: tuple[str, ...], output: str, pads: int | None = None) -> bytes:
    body = b"".join(_bytes(1, i) for i in inputs) + _bytes(2, output) + _bytes(4, op)
    if pads is not None:
        attribute = _bytes(1, "pads") + b"".join(_int(8, pads) for _ in range(4)) + _int(20, 7)
        body += _bytes(5, attribute)
    return body


def _tensor(name: str, value: NDArray[np.generic]) -> bytes:
    kind = {"float32": _FLOAT, "uint8": _UINT8, "int8": _INT8}[value.dtype.name]
    dims = b"".join(_int(1, d) for d in value.shape)
    return dims + _int(2, kind) + _bytes(8, name) + _bytes(9, value.tobytes())


def _value(name: str) -> bytes:
    shape = b"".join(_bytes(1, _int(1, d)) for d in SHAPE)
    return _bytes(1, name) + _bytes(2, _bytes(1, _int(1, _FLOAT) + _bytes(2, shape)))


def _model(nodes: list[bytes], constants: list[bytes]) -> bytes:
    graph = b"".join(_bytes(1, n) for n in nodes) + _bytes(2, "kernel")
    graph += b"".join(_bytes(5, t) for t in constants) + _bytes(11, _value("x")) + _bytes(12, _value("y"))
    return _int(1, 8) + _bytes(7, graph) + _bytes(8, _bytes(1, "") + _int(2, 13))

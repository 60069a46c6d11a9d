"""How much int8 of each layer of an ONNX model disturbs it: every layer beside its own quantized twin, in one graph."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from converters import graph as g
from converters.backends import sqnr
from converters.backends.base import BuildRequest, LayerError
from converters.backends.onnx_int8 import Prepared
from converters.backends.onnx_ranges import give, observe, reduction, session
from device_profiles.profile import Int8Scheme

_KINDS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_FUSED = frozenset({"Relu", "Clip"})
_ROUND = f"{g.PREFIX}round_"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    """A weighted node, the activation right after it that the runtime fuses with it, and what that makes."""

    node: Any
    after: Any
    weights: NDArray[Any]

    @property
    def output(self) -> str:
        return str((self.after or self.node).output[0])

    @property
    def axis(self) -> int:
        """Return the axis of the weights that numbers the output channels."""
        if self.node.op_type == "ConvTranspose":
            return 1
        turned = any(a.name == "transB" and a.i for a in self.node.attribute)
        return 0 if self.node.op_type == "Conv" or turned else self.weights.ndim - 1


def measure(request: BuildRequest, prepared: Prepared, images: int) -> list[LayerError]:
    """Return the error of each layer that the request would quantize, worst first.

    A layer's input, weights and, where the method quantizes it, output are rounded to 8 bits while all else stays
    float; the error is noise over signal at its output (see `converters.backends.sqnr`).
    """
    layers = _layers(prepared)
    if not layers:
        return []

    def pictures() -> Iterable[NDArray[Any]]:
        return itertools.islice(prepared.tensors(request), images)

    rounds_output = request.method == ""
    names = [layer.node.input[0] for layer in layers] + [layer.output for layer in layers]
    ranges = observe(prepared.model, pictures(), names)
    part = onnx.ModelProto()
    part.CopyFrom(prepared.model)
    part.graph.ClearField("output")
    for index, layer in enumerate(layers):
        _twin(part, layer, index, ranges, request.scheme, rounds_output=rounds_output)
    running = session(part)
    image = running.get_inputs()[0].name
    seen = [sqnr.Sums() for _ in layers]
    for tensor in pictures():
        values = running.run(None, {image: tensor})
        for index, sums in enumerate(seen):
            sums.add(*values[3 * index : 3 * index + 3])
    rows = [LayerError(layer=la.node.name, error=s.error()) for la, s in zip(layers, seen, strict=True)]
    return sorted(rows, key=lambda row: -row.error)


def _layers(prepared: Prepared) -> list[_Layer]:
    constants = {t.name: t for t in prepared.model.graph.initializer}
    outputs = {o.name for o in prepared.model.graph.output}
    readers: dict[str, list[Any]] = {}
    for node in prepared.model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found = []
    for node in prepared.model.graph.node:
        if node.op_type not in _KINDS or node.name in prepared.excluded or node.input[1] not in constants:
            continue
        following = readers.get(node.output[0], [])
        fused = len(following) == 1 and following[0].op_type in _FUSED and node.output[0] not in outputs
        weights = np.array(numpy_helper.to_array(constants[node.input[1]]))
        if weights.dtype == np.float32:
            found.append(_Layer(node=node, after=following[0] if fused else None, weights=weights))
    return found


def _twin(
    part: Any,
    layer: _Layer,
    index: int,
    ranges: dict[str, tuple[float, float]],
    scheme: Int8Scheme,
    *,
    rounds_output: bool,
) -> None:
    """Add the layer once more with rounded numbers, and three outputs: noise, mean and square by channel."""
    stem = f"{_ROUND}{index}"
    source = layer.node.input[0]
    _round(part, source, f"{stem}_in", ranges[source])
    rounded = sqnr.round_weights(
        layer.weights, layer.axis if scheme.per_channel else None, 64 if scheme.reduce_range else 127
    )
    part.graph.initializer.append(numpy_helper.from_array(rounded, f"{stem}_w"))
    twin = onnx.NodeProto()
    twin.CopyFrom(layer.node)
    twin.name, twin.input[0], twin.input[1], twin.output[0] = f"{stem}_node", f"{stem}_in", f"{stem}_w", f"{stem}_raw"
    part.graph.node.append(twin)
    last = f"{stem}_raw"
    if layer.after is not None:
        after = onnx.NodeProto()
        after.CopyFrom(layer.after)
        after.name, after.input[0], after.output[0] = f"{stem}_after", last, f"{stem}_fused"
        part.graph.node.append(after)
        last = f"{stem}_fused"
    if rounds_output:
        _round(part, last, f"{stem}_out", ranges[layer.output])
        last = f"{stem}_out"
    # The outputs of a dense layer are compared with each other, so its signal is the variance of all of them.
    axes = None if layer.node.op_type in ("Gemm", "MatMul") else [0, 2, 3]
    part.graph.node.append(helper.make_node("Sub", [layer.output, last], [f"{stem}_d"]))
    for name, (a, b) in {"noise": (f"{stem}_d",) * 2, "square": (layer.output,) * 2}.items():
        part.graph.node.append(helper.make_node("Mul", [a, b], [f"{stem}_{name}2"]))
    for name, tensor in (("noise", f"{stem}_noise2"), ("mean", layer.output), ("square", f"{stem}_square2")):
        part.graph.node.append(reduction(part, "ReduceMean", tensor, f"{stem}_{name}", axes))
        give(part, f"{stem}_{name}")


def _round(part: Any, source: str, target: str, ends: tuple[float, float]) -> None:
    """Add a pair that rounds a tensor to uint8 between its ends."""
    scale, zero = sqnr.asymmetric(*ends)
    for name, value in ((f"{target}_s", scale), (f"{target}_z", zero)):
        part.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    pair = [f"{target}_s", f"{target}_z"]
    part.graph.node.append(helper.make_node("QuantizeLinear", [source, *pair], [f"{target}_q"]))
    part.graph.node.append(helper.make_node("DequantizeLinear", [f"{target}_q", *pair], [target]))

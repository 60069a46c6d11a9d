"""Which nodes of an ONNX model stay float in an int8 build, and that they read float numbers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from converters import graph as g
from converters.backends.onnx_ranges import observe

MIXED_SPAN = 32.0
"""Tensors that are joined keep their own ranges when one spans this many times the other: 8 bits would leave it 3."""
_ACTIVATIONS = frozenset(
    {
        "Relu",
        "Clip",
        "LeakyRelu",
        "PRelu",
        "Sigmoid",
        "HardSigmoid",
        "HardSwish",
        "Tanh",
        "Mul",
        "Elu",
        "Softplus",
        "Gelu",
    }
)
_MOVES = frozenset({"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Split", "Identity"})


def with_activation(model: Any, layers: Collection[str]) -> set[str]:
    """Return the named nodes and the activation function right after each (SiLU is two nodes: Sigmoid and Mul)."""
    constants = {t.name for t in model.graph.initializer}
    found = set(layers)
    made = {o for n in model.graph.node if n.name in found for o in n.output}
    for node in model.graph.node:
        reads = [i for i in node.input if i and i not in constants]
        if node.op_type in _ACTIVATIONS and reads and all(i in made for i in reads):
            found.add(node.name)
            made.update(node.output)
    return found


def integer_kernels(model: Any) -> bool:
    """Return whether ONNX Runtime can run most convolutions on integers when only their inputs are rounded: it fuses
    Relu and Clip into them, not SiLU and its like, after which they would need a rounded output of their own."""
    readers: dict[str, list[str]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node.op_type)
    after = [readers.get(n.output[0], []) for n in model.graph.node if n.op_type == "Conv"]
    curved = [kinds for kinds in after if set(kinds) & {"Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Softplus"}]
    return 2 * len(curved) < len(after)


def decoding(model: Any) -> set[str]:
    """Return the weighted nodes that decode, the nodes before them down to their softmax included.

    A product of constants with a softmax is the mean of a distribution (distribution focal loss of box sides): its
    steps would be those of 8 bits over the whole side.
    """
    constants = {t.name for t in model.graph.initializer}
    maker = g.producers(model)
    found: set[str] = set()
    for node in model.graph.node:
        if node.op_type not in g.WEIGHT_OPS or node.input[1] not in constants:
            continue
        path = [node.name]
        before = maker.get(node.input[0])
        while before is not None and before.op_type in _MOVES:
            path.append(before.name)
            before = maker.get(before.input[0])
        if before is not None and before.op_type == "Softmax":
            found.update([*path, before.name])
    return found


def mixed(model: Any, tensors: Iterable[NDArray[Any]]) -> set[str]:
    """Return joins (Concat) of tensors of very different spans, such as boxes in pixels and scores, and the weighted
    nodes that read them: one 8-bit range would leave the small one no steps."""
    constants = {t.name for t in model.graph.initializer}
    joins = [n for n in model.graph.node if n.op_type == "Concat" and not any(i in constants for i in n.input)]
    if not joins:
        return set()
    ranges = observe(model, tensors, [i for n in joins for i in n.input])
    found, made = set(), set()
    for node in model.graph.node:
        if node in joins and apart([ranges[i] for i in node.input if i in ranges]):
            found.add(node.name)
            made.update(node.output)
        elif any(i in made for i in node.input) and (node.op_type in _MOVES or node.op_type in g.WEIGHT_OPS):
            found.add(node.name)
            if node.op_type in _MOVES:
                made.update(node.output)
    return found


def apart(ranges: Sequence[tuple[float, float]]) -> bool:
    """Return whether one of the ranges (low, high) spans MIXED_SPAN times another or more."""
    spans = [max(high, 0.0) - min(low, 0.0) for low, high in ranges if np.isfinite([low, high]).all()]
    spans = [s for s in spans if s > 0]
    return bool(spans) and max(spans) / min(spans) >= MIXED_SPAN


def read_floats(model: Any, layers: Collection[str]) -> Any:
    """Return a QDQ model whose named nodes read tensors as they were before the quantize-dequantize pair.

    Excluding a node from a quantizer leaves its input rounded where the node before it, or another reader, rounds it.
    """
    out = onnx.ModelProto()
    out.CopyFrom(model)
    maker = g.producers(out)
    constants = {t.name for t in out.graph.initializer}
    for node in out.graph.node:
        if node.name in layers:
            for k, name in enumerate(node.input):
                node.input[k] = _before_pair(maker, constants, name)
    _drop_unread(out)
    return out


def _before_pair(maker: Mapping[str, Any], constants: Collection[str], name: str) -> str:
    back = maker.get(name)
    if back is None or back.op_type != "DequantizeLinear" or back.input[0] in constants:
        return name
    pair = maker.get(back.input[0])
    return str(pair.input[0]) if pair is not None and pair.op_type == "QuantizeLinear" else name


def _drop_unread(model: Any) -> None:
    """Remove quantize and dequantize nodes that nothing reads any more, and constants of theirs; in place."""
    outputs = {o.name for o in model.graph.output}
    while True:
        read = {i for n in model.graph.node for i in n.input} | outputs
        keep = [
            n
            for n in model.graph.node
            if n.op_type not in ("QuantizeLinear", "DequantizeLinear") or any(o in read for o in n.output)
        ]
        if len(keep) == len(model.graph.node):
            break
        copies = [onnx.NodeProto.FromString(n.SerializeToString()) for n in keep]
        model.graph.ClearField("node")
        model.graph.node.extend(copies)
    used = [t for t in model.graph.initializer if t.name in read]
    copies = [onnx.TensorProto.FromString(t.SerializeToString()) for t in used]
    model.graph.ClearField("initializer")
    model.graph.initializer.extend(copies)

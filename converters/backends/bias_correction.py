"""Bias correction: give back the shift of a convolution's mean output that rounding its weights causes.

Nagel et al., Data-Free Quantization through Weight Equalization and Bias Correction, arXiv:1906.04721, section 4.2,
with the inputs' means taken from the calibration images; the border that padding adds is not counted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from converters import graph as g

_REDUCE_INPUT_OPSET = 18
"""From this opset on ReduceMean takes its axes as an input."""


def correct(
    model: Any, tensors: Iterable[NDArray[Any]], *, leave: Collection[str], reduce_range: bool
) -> tuple[Any, int]:
    """Return the model with corrected biases, and how many convolutions have one.

    Args:
        tensors: inputs of the model.
        leave: names of nodes that stay float.
    """
    weights = {t.name: t for t in model.graph.initializer}
    nodes = [n for n in model.graph.node if n.op_type == "Conv" and n.name not in leave and n.input[1] in weights]
    if not nodes:
        return model, 0
    means = _channel_means(model, sorted({n.input[0] for n in nodes}), tensors)
    out = onnx.ModelProto()
    out.CopyFrom(model)
    by_name = {n.name: n for n in out.graph.node}
    for node in nodes:
        mean = means.get(node.input[0])
        if mean is None:
            continue
        shift = _shift(numpy_helper.to_array(weights[node.input[1]]), mean, _groups(node), reduce_range)
        name = f"{g.PREFIX}bias_{node.name}"
        target = by_name[node.name]
        if len(node.input) > 2 and node.input[2]:
            bias = weights.get(node.input[2])
            if bias is None:
                continue
            shift = shift + numpy_helper.to_array(bias)
            target.input[2] = name
        else:
            del target.input[2:]
            target.input.append(name)
        out.graph.initializer.append(numpy_helper.from_array(shift.astype(np.float32), name))
    used = {i for n in out.graph.node for i in n.input} | {o.name for o in out.graph.output}
    keep = [t for t in out.graph.initializer if t.name in used]
    out.graph.ClearField("initializer")
    out.graph.initializer.extend(keep)
    return out, len(nodes)


def _shift(weights: NDArray[Any], mean: NDArray[np.float64], groups: int, reduce_range: bool) -> NDArray[np.float64]:
    """Return E[(W - Wq) x] for each output channel of weights (out, in / groups, …)."""
    flat = weights.reshape(len(weights), -1).astype(np.float64)
    top = 64.0 if reduce_range else 127.0
    scale = np.maximum(np.abs(flat).max(axis=1, keepdims=True), 1e-12) / top
    lost = flat - np.clip(np.round(flat / scale), -top, top) * scale
    per_input = lost.reshape(len(weights), weights.shape[1], -1).sum(axis=2)
    group = np.arange(len(weights)) // (len(weights) // groups)
    columns = group[:, None] * weights.shape[1] + np.arange(weights.shape[1])[None, :]
    return np.asarray((per_input * mean[columns]).sum(axis=1))


def _groups(node: Any) -> int:
    return next((int(a.i) for a in node.attribute if a.name == "group"), 1)


def _channel_means(model: Any, names: list[str], tensors: Iterable[NDArray[Any]]) -> dict[str, NDArray[np.float64]]:
    """Return the mean of each channel of the named (n, c, h, w) tensors over the inputs."""
    part = onnx.ModelProto()
    part.CopyFrom(model)
    opset = max(o.version for o in part.opset_import if o.domain in ("", "ai.onnx"))
    outputs = []
    for index, name in enumerate(names):
        label = f"{g.PREFIX}mean_{index}"
        if opset >= _REDUCE_INPUT_OPSET:
            part.graph.initializer.append(numpy_helper.from_array(np.array([0, 2, 3], np.int64), f"{label}_axes"))
            node = helper.make_node("ReduceMean", [name, f"{label}_axes"], [label], keepdims=0)
        else:
            node = helper.make_node("ReduceMean", [name], [label], axes=[0, 2, 3], keepdims=0)
        part.graph.node.append(node)
        part.graph.output.append(helper.make_tensor_value_info(label, onnx.TensorProto.FLOAT, None))
        outputs.append(label)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(part.SerializeToString(), options, providers=["CPUExecutionProvider"])
    total: list[NDArray[np.float64]] = []
    count = 0
    for tensor in tensors:
        values = [v.astype(np.float64) for v in session.run(outputs, {session.get_inputs()[0].name: tensor})]
        total = values if not total else [a + b for a, b in zip(total, values, strict=True)]
        count += 1
    return {name: value / count for name, value in zip(names, total, strict=True)}

"""The weighted layers of a TFLite graph: how much int8 of each disturbs it, and what rounding its weights shifts.

Bias correction: Nagel et al., Data-Free Quantization through Weight Equalization and Bias Correction, arXiv:1906.04721,
section 4.2, with the inputs' means taken from calibration images; the border that padding adds is not counted.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from converters import tflite_graph as g
from converters.backends import sqnr
from converters.backends.base import LayerError
from edge_sdk.runtimes.litert import LiteRtRuntime

CHANNEL_AXIS = {g.OP.CONV_2D: 0, g.OP.FULLY_CONNECTED: 0, g.OP.TRANSPOSE_CONV: 0, g.OP.DEPTHWISE_CONV_2D: 3}
"""Which axis of its weights numbers the output channels of a layer."""
_TOP = 127
_LEVELS = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A weighted operation with constant weights; `data` and `out` are the indices of its input and output tensors."""

    op: Any
    name: str
    weights: NDArray[Any]
    axis: int
    data: int
    out: int


def layers(model: Any, leave: Collection[str] = ()) -> list[Layer]:
    """Return the weighted layers in the order of the graph, without those whose outputs are named in `leave`."""
    found = []
    for op in model.subgraphs[0].operators:
        kind = g.code(model, op)
        weights = g.constant(model, int(op.inputs[1])) if kind in CHANNEL_AXIS else None
        label = g.scope(model, op)
        if weights is None or weights.dtype != np.float32 or label in leave:
            continue
        data = int(op.inputs[2] if kind == g.OP.TRANSPOSE_CONV else op.inputs[0])
        found.append(
            Layer(op=op, name=label, weights=weights, axis=CHANNEL_AXIS[kind], data=data, out=int(op.outputs[0]))
        )
    return found


def rounded(layer: Layer, per_channel: bool) -> NDArray[np.float32]:
    """Return the layer's weights as int8 keeps them."""
    return sqnr.round_weights(layer.weights, layer.axis if per_channel else None, _TOP)


def sensitivity(
    model: Any,
    ranges: Mapping[str, Any],
    tensors: Iterable[NDArray[Any]],
    work: Path,
    *,
    leave: Collection[str],
    per_channel: bool,
) -> list[LayerError]:
    """Return the error of each layer, worst first: its input, weights and output in 8 bits, all else float.

    Every layer stands in one graph beside its rounded twin, which reads the same float input.

    Args:
        ranges: smallest and largest value of the tensors, by name.
        work: folder for the graph, which is removed.
    """
    twins = copy.deepcopy(model)
    known = [entry for entry in layers(twins, leave) if _range(twins, ranges, entry.data) is not None]
    if not known:
        return []
    graph = twins.subgraphs[0]
    pairs = []
    for entry in known:
        pairs.append((entry, _name(graph, entry.out), _name(graph, _twin(twins, entry, ranges, per_channel))))
    outputs = [int(i) for i in graph.outputs]
    by_name = {g.name(t): k for k, t in enumerate(graph.tensors)}
    graph.outputs = list(dict.fromkeys([*outputs, *(by_name[n] for _, a, b in pairs for n in (a, b))]))
    file = work / "twins.tflite"
    g.save(twins, file)
    engine = LiteRtRuntime(file, {"threads": 1})
    sums = {entry.name: sqnr.Sums() for entry in known}
    try:
        for tensor in tensors:
            values = engine.infer({engine.inputs[0].name: tensor})
            for entry, own, twin in pairs:
                before, after = (_rows(values[name]) for name in (own, twin))
                after = _round(after, _range(twins, ranges, entry.out))
                sums[entry.name].add(((after - before) ** 2).mean(0), before.mean(0), (before**2).mean(0))
    finally:
        engine.close()
        file.unlink()
    errors = [LayerError(layer=name, error=total.error()) for name, total in sums.items()]
    return sorted(errors, key=lambda row: -row.error)


def _rows(values: NDArray[Any]) -> NDArray[np.float32]:
    return np.asarray(values, np.float32).reshape(-1, values.shape[-1])


def _name(graph: Any, index: int) -> str:
    return g.name(graph.tensors[index])


def _range(model: Any, ranges: Mapping[str, Any], index: int) -> tuple[float, float] | None:
    row = ranges.get(g.name(model.subgraphs[0].tensors[index]))
    if not row or "min" not in row:
        return None
    return min(float(np.min(row["min"])), 0.0), max(float(np.max(row["max"])), 0.0)


def _round(values: NDArray[np.float32], ends: tuple[float, float] | None) -> NDArray[np.float32]:
    if ends is None:
        return values
    step = max(ends[1] - ends[0], 1e-12) / _LEVELS
    zero = np.round(-ends[0] / step)
    return np.asarray((np.clip(np.round(values / step) + zero, 0, _LEVELS) - zero) * step, np.float32)


def _twin(model: Any, layer: Layer, ranges: Mapping[str, Any], per_channel: bool) -> int:
    """Put the layer's twin behind it, with its input rounded by QUANTIZE and DEQUANTIZE; return its output."""
    graph = model.subgraphs[0]
    ends = _range(model, ranges, layer.data)
    assert ends is not None
    step = max(ends[1] - ends[0], 1e-12) / _LEVELS
    label = f"{g.PREFIX}twin_{layer.out}"
    shape = graph.tensors[layer.data].shape
    zero = int(np.clip(np.round(-128 - ends[0] / step), -128, 127))
    small = g.add_tensor(model, f"{label}_small", shape, g.KIND.INT8, scale=step, zero=zero)
    back = g.add_tensor(model, f"{label}_back", shape, g.KIND.FLOAT32)
    weights = rounded(layer, per_channel)
    inner = g.add_tensor(model, f"{label}_weights", weights.shape, g.KIND.FLOAT32, data=weights)
    out = g.add_tensor(model, label, graph.tensors[layer.out].shape, g.KIND.FLOAT32)
    twin = copy.copy(layer.op)
    twin.inputs = [back if int(i) == layer.data else inner if k == 1 else int(i) for k, i in enumerate(layer.op.inputs)]
    twin.outputs = [out]
    ops = [
        g.make_op(model, g.OP.QUANTIZE, [layer.data], [small], _options("Quantize")),
        g.make_op(model, g.OP.DEQUANTIZE, [small], [back], _options("Dequantize")),
        twin,
    ]
    place = next(k for k, op in enumerate(graph.operators) if op is layer.op)
    graph.operators = [*graph.operators[: place + 1], *ops, *graph.operators[place + 1 :]]
    return out


def _options(kind: str) -> tuple[int, Any]:
    return getattr(schema.BuiltinOptions, f"{kind}Options"), getattr(schema, f"{kind}OptionsT")()


def correct_biases(
    model: Any, tensors: Iterable[NDArray[Any]], work: Path, *, leave: Collection[str], per_channel: bool
) -> int:
    """Add to each layer's bias the mean that rounding its weights takes from its outputs; return how many have one."""
    biased = [entry for entry in layers(model, leave) if _bias(model, entry) is not None]
    means = _means(model, sorted({entry.data for entry in biased}), tensors, work)
    for entry in biased:
        bias = _bias(model, entry)
        assert bias is not None
        lost = entry.weights.astype(np.float64) - rounded(entry, per_channel)
        mean = means[entry.data]
        if entry.axis == 3:
            sums = lost.sum(axis=(0, 1, 2))
            shift = sums * np.repeat(mean, len(sums) // len(mean))
        else:
            per_input = lost.reshape(len(lost), -1, lost.shape[-1]).sum(axis=1)
            groups = len(mean) // per_input.shape[1]
            rows = np.arange(len(lost)) // max(1, len(lost) // max(1, groups))
            shift = (per_input * mean.reshape(groups, -1)[rows]).sum(axis=1)
        _give_bias(model, entry, (bias + shift).astype(np.float32))
    return len(biased)


def _bias(model: Any, layer: Layer) -> NDArray[Any] | None:
    place = 3 if g.code(model, layer.op) == g.OP.TRANSPOSE_CONV else 2
    if g.code(model, layer.op) == g.OP.TRANSPOSE_CONV or len(layer.op.inputs) <= place:
        return None
    index = int(layer.op.inputs[place])
    value = None if index < 0 else g.constant(model, index)
    shape = model.subgraphs[0].tensors[layer.data].shape
    fits = layer.axis == 3 or int(shape[-1]) % layer.weights.shape[-1] == 0
    return value if value is not None and value.dtype == np.float32 and fits else None


def _give_bias(model: Any, layer: Layer, values: NDArray[np.float32]) -> None:
    label = f"{g.PREFIX}bias_{layer.out}"
    index = g.add_tensor(model, label, values.shape, g.KIND.FLOAT32, data=values)
    layer.op.inputs = [int(layer.op.inputs[0]), int(layer.op.inputs[1]), index]


def _means(
    model: Any, wanted: Iterable[int], tensors: Iterable[NDArray[Any]], work: Path
) -> dict[int, NDArray[np.float64]]:
    """Return the mean over images of each channel (the last axis) of the wanted tensors."""
    shown = copy.deepcopy(model)
    graph = shown.subgraphs[0]
    image = int(graph.inputs[0])
    inner = [k for k in wanted if k != image]
    graph.outputs = list(dict.fromkeys([*(int(i) for i in graph.outputs), *inner]))
    names = {k: _name(graph, k) for k in inner}
    file = work / "shown.tflite"
    g.save(shown, file)
    engine = LiteRtRuntime(file, {"threads": 1})
    total: dict[int, NDArray[np.float64]] = {}
    count = 0
    try:
        for tensor in tensors:
            values = engine.infer({engine.inputs[0].name: tensor})
            seen: dict[int, Any] = {image: tensor} | {k: values[n] for k, n in names.items()}
            for k, value in seen.items():
                mean = np.asarray(value, np.float64).reshape(-1, value.shape[-1]).mean(axis=0)
                total[k] = total.get(k, np.zeros_like(mean)) + mean
            count += 1
    finally:
        engine.close()
        file.unlink()
    return {k: value / max(count, 1) for k, value in total.items()}

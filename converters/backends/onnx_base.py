"""Requantize an ONNX model with the scales of an earlier build, so that the difference of the two files is small."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from converters.backends import reuse as rule
from edge_sdk.errors import ConversionError


def reuse(model: Any, base: Any, floats: Any) -> tuple[Any, str]:
    """Return the QDQ model with the scales of `base` where they fit (see `converters.backends.reuse`), and a step.

    Args:
        base: an earlier QDQ model of the same graph; tensors are matched by name.
        floats: the float model that `model` was quantized from, with the same node names.

    Raises:
        ConversionError: the base is no int8 model.
    """
    if not any(n.op_type == "DequantizeLinear" for n in base.graph.node):
        raise ConversionError(
            "the base's model has no int8 scales to use again", hint="give an int8 artifact of this model as --base"
        )
    out = onnx.ModelProto()
    out.CopyFrom(model)
    new, old = _Held.of(out), _Held.of(base)
    kept = _activations(new, old)
    integers, total = _weights(new, old, floats)
    _biases(new, floats)
    return out, (
        f"scales of the base used again: {kept} of {len(new.activations)} activation ranges, {integers} of {total} "
        "integers of weights"
    )


@dataclass
class _Held:
    """The constants of a QDQ model by name, its activations (float tensor -> scale, zero) and its constant pairs."""

    values: dict[str, Any]
    activations: dict[str, tuple[str, str]]
    constants: dict[str, Any]
    readers: dict[str, tuple[str, int]]
    made_from: dict[str, Any]

    @classmethod
    def of(cls, model: Any) -> _Held:
        values = {t.name: t for t in model.graph.initializer}
        nodes = list(model.graph.node)
        found = cls(values=values, activations={}, constants={}, readers={}, made_from={})
        for node in nodes:
            for index, name in enumerate(node.input):
                found.readers.setdefault(name, (node.name, index))
            if node.op_type == "QuantizeLinear" and len(node.input) == 3:
                found.activations[node.input[0]] = (node.input[1], node.input[2])
            if node.op_type == "DequantizeLinear":
                found.made_from[node.output[0]] = node
                if node.input[0] in values:
                    found.constants[node.input[0]] = node
        return found

    def array(self, name: str) -> NDArray[Any]:
        return np.array(numpy_helper.to_array(self.values[name]))

    def put(self, name: str, value: NDArray[Any]) -> None:
        self.values[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value), name))


def _activations(new: _Held, old: _Held) -> int:
    kept = 0
    for name, (scale, zero) in new.activations.items():
        if name not in old.activations or scale not in new.values or zero not in new.values:
            continue
        before = old.activations[name]
        if any(b not in old.values for b in before):
            continue
        mine, theirs = (new.array(scale), new.array(zero)), (old.array(before[0]), old.array(before[1]))
        same = all(a.shape == b.shape and a.dtype == b.dtype for a, b in zip(mine, theirs, strict=True))
        if same and _ranges_fit(mine, theirs):
            new.put(scale, theirs[0])
            new.put(zero, theirs[1])
            kept += 1
    return kept


def _ranges_fit(mine: tuple[Any, Any], theirs: tuple[Any, Any]) -> bool:
    info = np.iinfo(mine[1].dtype)

    def ends(scale: NDArray[Any], zero: NDArray[Any]) -> list[tuple[float, float]]:
        low = (info.min - zero.astype(np.float64)) * scale
        high = (info.max - zero.astype(np.float64)) * scale
        return list(zip(low.ravel().tolist(), high.ravel().tolist(), strict=True))

    return all(rule.range_fits(a, b) for a, b in zip(ends(*theirs), ends(*mine), strict=True))


def _weights(new: _Held, old: _Held, floats: Any) -> tuple[int, int]:
    exact = _float_inputs(floats)
    kept = total = 0
    for name, node in new.constants.items():
        now = new.array(name)
        if now.dtype not in (np.int8, np.uint8):
            continue
        scale, zero = new.array(node.input[1]), new.array(node.input[2])
        total += now.size
        twin = old.constants.get(name)
        source = exact.get(new.readers.get(node.output[0], ("", 0)))
        if twin is None or source is None or source.shape != now.shape:
            continue
        before, their_scale = old.array(name), old.array(twin.input[1])
        their_zero = old.array(twin.input[2])
        if before.shape != now.shape or before.dtype != now.dtype or their_scale.shape != scale.shape:
            continue
        if not np.array_equal(zero, their_zero):
            continue
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1) if scale.ndim else 0
        rows = [_rows(v, axis, scale.size) for v in (source, before)]
        middle = np.broadcast_to(zero.ravel().astype(np.float64), (scale.size,))
        top = int(np.abs(_rows(now, axis, scale.size).astype(np.float64) - middle[:, None]).max())
        used, made, count = rule.weights(rows[0], scale.ravel(), their_scale.ravel(), middle, rows[1], top=top)
        kept += count
        new.put(name, _back(made, axis, now.shape, scale.ndim))
        new.put(node.input[1], used.reshape(scale.shape))
    return kept, total


def _rows(values: NDArray[Any], axis: int, channels: int) -> NDArray[Any]:
    """Return weights as (channels, n); one channel where one scale serves for all."""
    return np.moveaxis(values, axis, 0).reshape(channels, -1) if channels > 1 else values.reshape(1, -1)


def _back(rows: NDArray[Any], axis: int, shape: tuple[int, ...], spread: int) -> NDArray[Any]:
    if not spread or len(rows) == 1:
        return rows.reshape(shape)
    moved = (shape[axis], *shape[:axis], *shape[axis + 1 :])
    return np.moveaxis(rows.reshape(moved), 0, axis)


def _float_inputs(floats: Any) -> dict[tuple[str, int], NDArray[Any]]:
    """Return the float constants of a model by the node that reads them and the place among its inputs."""
    values = {t.name: t for t in floats.graph.initializer}
    return {
        (node.name, index): np.array(numpy_helper.to_array(values[name]))
        for node in floats.graph.node
        for index, name in enumerate(node.input)
        if name in values
    }


def _biases(new: _Held, floats: Any) -> None:
    """Write the 32-bit biases again: their scale is that of the input times that of the weights."""
    exact = _float_inputs(floats)
    inputs = {reader: name for name, reader in new.readers.items()}
    for name, node in new.constants.items():
        if new.array(name).dtype != np.int32:
            continue
        layer, place = new.readers.get(node.output[0], ("", 0))
        source = exact.get((layer, place))
        feeds = [new.made_from.get(inputs.get((layer, k), "")) for k in (0, 1)]
        if source is None or feeds[0] is None or feeds[1] is None:
            continue
        data, weight = (new.array(f.input[1]).astype(np.float64) for f in feeds if f is not None)
        scale = (data * weight).reshape(new.array(node.input[1]).shape)
        info = np.iinfo(np.int32)
        new.put(name, np.clip(np.round(source / scale), info.min, info.max).astype(np.int32))
        new.put(node.input[1], scale.astype(np.float32))

"""The image input of a TFLite graph: preprocessing folded in, or stated for the device where it cannot be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from converters import tflite_graph as g
from edge_sdk.errors import ConversionError
from edge_sdk.schemas.manifest import InputSpec

SAME_SCALE = 2e-4
"""How far a step may be from one pixel level, relatively: 255 steps are then off by a twentieth of a level."""


def spec_of(model: Any, spec: InputSpec) -> InputSpec:
    """Return `spec` with the name, shape and layout of the file's image input, and its integers where it has others.

    The file may be NHWC where the source is NCHW: converters turn it.

    Raises:
        ConversionError: the input is another one than the source's.
    """
    graph = model.subgraphs[0]
    if len(graph.inputs) != 1:
        raise ConversionError(f"the TFLite file has {len(graph.inputs)} inputs, expected one image")
    tensor = graph.tensors[graph.inputs[0]]
    shape = tuple(int(d) for d in tensor.shape)
    if shape != spec.shape:
        order = (0, 2, 3, 1) if spec.layout == "NCHW" else (0, 3, 1, 2)
        if shape != tuple(spec.shape[i] for i in order):
            raise ConversionError(f"the TFLite file takes {list(shape)}, the source {list(spec.shape)}")
        spec = replace(spec, shape=shape, layout="NHWC" if spec.layout == "NCHW" else "NCHW")
    kind, q = g.DTYPES.get(tensor.type), tensor.quantization
    if kind is None:
        raise ConversionError(f"the input `{g.name(tensor)}` of the TFLite file has a type that no image has")
    if kind == spec.dtype:
        return replace(spec, name=g.name(tensor))
    scaled = np.dtype(kind).kind in "iu" and q is not None and q.scale is not None and len(q.scale) == 1
    return replace(
        spec,
        name=g.name(tensor),
        dtype=kind,
        scale=float(q.scale[0]) if scaled else None,
        zero=int(q.zeroPoint[0]) if scaled else None,
    )


def pixel_range(spec: InputSpec) -> tuple[float, float]:
    """Return the least and the greatest value that a pixel of 0 to 255 becomes in the input."""
    ends = [(v - m) / s for v in (0.0, 255.0) for m, s in zip(*_broad(spec), strict=True)]
    return min(ends), max(ends)


def takes_integers(spec: InputSpec, io_dtypes: Sequence[str]) -> bool:
    """Say whether 8-bit integers can be the input of a quantized graph on a device that takes `io_dtypes` (none: any).

    As int8 always, since the device's table makes them; as uint8 where the pixels are theirs by one scale and zero.
    """
    mean, std = _broad(spec)
    even = len(set(mean)) == 1 and len(set(std)) == 1 and std[0] > 0 and 0 <= mean[0] <= 255
    return not io_dtypes or "int8" in io_dtypes or ("uint8" in io_dtypes and even and spec.layout == "NHWC")


def fold_float(model: Any, spec: InputSpec, io_dtypes: Sequence[str]) -> tuple[InputSpec, list[str]]:
    """Put `(pixels - mean) / std` and the layout before a float input, so that it takes uint8 NHWC.

    One std for all channels is the scale of the pixels and costs one DEQUANTIZE, a whole mean is their zero. The input
    keeps its name. Where the profile takes no uint8, nothing changes.
    """
    if spec.dtype != "float32" or (io_dtypes and "uint8" not in io_dtypes):
        return spec, []
    graph = model.subgraphs[0]
    target = int(graph.inputs[0])
    graph.tensors[target].name = f"{g.PREFIX}{spec.name}".encode()
    shape = (spec.shape[0], spec.height, spec.width, spec.channels)
    mean, std = _broad(spec)
    scale = 1 / std[0] if len(set(std)) == 1 and std[0] > 0 else 1.0
    shift = [m * scale for m in mean]
    zero = 0
    if len(set(mean)) == 1 and float(mean[0]).is_integer() and 0 <= mean[0] <= 255:
        zero, shift = int(mean[0]), [0.0]
    rest = [1 / (s * scale) for s in std]
    image = current = g.add_tensor(model, spec.name, shape, g.KIND.UINT8, scale=scale, zero=zero)
    ops: list[Any] = []
    if spec.layout == "NCHW":
        order = np.array([0, 3, 1, 2], np.int32)
        perm = g.add_tensor(model, f"{g.PREFIX}perm", [4], g.KIND.INT32, data=order)
        planes = [shape[i] for i in order]
        current = g.add_tensor(model, f"{g.PREFIX}planes", planes, g.KIND.UINT8, scale=scale, zero=zero)
        ops.append(g.make_op(model, g.OP.TRANSPOSE, [image, perm], [current], _options("TransposeOptions")))
    steps = [(g.OP.SUB, "mean", shift, "SubOptions")] if any(shift) else []
    steps += [(g.OP.MUL, "scale", rest, "MulOptions")] if any(abs(r - 1) > 1e-12 for r in rest) else []
    real = [g.add_tensor(model, f"{g.PREFIX}real{k}", spec.shape, g.KIND.FLOAT32) for k in range(len(steps))] + [target]
    ops.append(g.make_op(model, g.OP.DEQUANTIZE, [current], [real[0]], _options("DequantizeOptions")))
    for k, (kind, label, values, options) in enumerate(steps):
        data = _per_channel(values, spec.layout)
        other = g.add_tensor(model, f"{g.PREFIX}{label}", data.shape, g.KIND.FLOAT32, data=data)
        ops.append(g.make_op(model, kind, [real[k], other], [real[k + 1]], _options(options)))
    graph.inputs = [image]
    graph.operators = [*ops, *graph.operators]
    return pixels(spec), ["uint8 NHWC input: mean, std and layout folded in"]


def fold_integer(model: Any, spec: InputSpec, io_dtypes: Sequence[str]) -> tuple[InputSpec, list[str]]:
    """Return the input of a quantized graph: int8 where the device takes it, else uint8, else as the graph has it.

    Where all channels have one mean and one std, a step of the input is a pixel level, so int8 is the pixels minus 128
    and uint8 the pixels. Other means and stds are applied by the device, with a table from pixels to integers.
    """
    graph = model.subgraphs[0]
    old = int(graph.inputs[0])
    tensor = graph.tensors[old]
    kind = g.DTYPES[tensor.type]
    if kind == "float32":
        return fold_float(model, spec, io_dtypes)
    scale, zero = float(tensor.quantization.scale[0]), int(tensor.quantization.zeroPoint[0])
    mean, std = _broad(spec)
    even = len(set(mean)) == 1 and len(set(std)) == 1
    same = kind == "int8" and even and abs(scale * std[0] - 1) <= SAME_SCALE and abs(mean[0] - (zero + 128)) <= 0.5
    if kind == "int8" and io_dtypes and "int8" not in io_dtypes and takes_integers(spec, io_dtypes):
        # One more operation in the engine, which costs more than the device's table.
        tensor.name = f"{g.PREFIX}{spec.name}".encode()
        level, middle = (scale, zero + 128) if same else (1 / std[0], round(mean[0]))
        image = g.add_tensor(model, spec.name, spec.shape, g.KIND.UINT8, scale=level, zero=middle)
        op = g.make_op(model, g.OP.QUANTIZE, [image], [old], _options("QuantizeOptions"))
        graph.inputs, graph.operators = [image], [op, *graph.operators]
        return pixels(spec), ["uint8 NHWC input: mean and std are its scale and zero"]
    if same:
        plain = replace(spec, dtype=kind, mean=(0.0,), std=(1.0,), scale=None, zero=None)
        return plain, ["int8 input: the pixels minus 128, mean and std are its scale and zero"]
    return replace(spec, dtype=kind, scale=scale, zero=zero), [f"{kind} input, mean and std applied on the device"]


def pixels(spec: InputSpec) -> InputSpec:
    """Return the input that takes uint8 NHWC pixels as they are."""
    shape = (spec.shape[0], spec.height, spec.width, spec.channels)
    return replace(spec, shape=shape, layout="NHWC", dtype="uint8", mean=(0.0,), std=(1.0,), scale=None, zero=None)


def _broad(spec: InputSpec) -> tuple[list[float], list[float]]:
    mean, std = (np.broadcast_to(np.asarray(v, np.float64), (spec.channels,)) for v in (spec.mean, spec.std))
    return [float(v) for v in mean], [float(v) for v in std]


def _options(name: str) -> tuple[int, Any]:
    return getattr(schema.BuiltinOptions, name), getattr(schema, f"{name}T")()


def _per_channel(values: Sequence[float], layout: str) -> np.ndarray[Any, Any]:
    """Return one value where all are equal, which is faster to broadcast, else one for each channel."""
    if len(set(values)) == 1:
        return np.asarray(values[:1], np.float32)
    return np.asarray(values, np.float32).reshape((1, -1, 1, 1) if layout == "NCHW" else (1, 1, 1, -1))

"""Half precision in ONNX: weights and sums in fp16, input, outputs and the preprocessing as they were."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from converters.backends.onnx_ranges import floats, observe, session
from edge_sdk.errors import ConversionError

TOP = 65504.0
"""The largest finite number of half precision."""
MARGIN = 4.0
"""How many times an activation seen here may grow on another image before it overflows."""
IMAGES = 8
_FLOAT_ONLY = ("Cast", "QuantizeLinear", "DequantizeLinear")
"""Operators that stay float: casts, and integers at inputs and outputs, whose scales are float32 before opset 19."""


def convert(
    model: Any, tensors: Iterable[NDArray[Any]], keep: Sequence[str], float_layers: Sequence[str]
) -> tuple[Any, str]:
    """Return the model in half precision, and the step.

    Nodes that make or read a number near the end of the range stay in float.

    Args:
        tensors: inputs to look for large activations on.
        keep: nodes that stay float, such as the preprocessing.
        float_layers: further ones that were asked for.

    Raises:
        ConversionError: the tool fails, or the half-precision model overflows although the source does not.
    """
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    seen = list(itertools.islice(tensors, IMAGES))
    wide = sorted(_out_of_range(model, seen) - set(keep))
    try:
        half = convert_float_to_float16(
            model,
            keep_io_types=True,
            op_block_list=[*DEFAULT_OP_BLOCK_LIST, *_FLOAT_ONLY],
            node_block_list=[*keep, *float_layers, *wide],
        )
    except Exception as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ConversionError(f"the model could not be turned to fp16: {line}", hint="its fp32 build serves") from None
    _join_floats(half)
    _check(model, half, seen)
    del half.graph.value_info[:]
    note = f", {len(wide)} nodes float because they hold numbers above {TOP / MARGIN:.0f}" if wide else ""
    more = f", {len(float_layers)} layers float as asked" if float_layers else ""
    return half, f"onnxruntime.transformers.float16: fp16 inside, input and outputs as before{note}{more}"


def _out_of_range(model: Any, seen: Sequence[NDArray[Any]]) -> set[str]:
    """Return the names of nodes that read a constant or touch an activation near the end of the range."""
    large = {
        t.name
        for t in model.graph.initializer
        if t.data_type == onnx.TensorProto.FLOAT and np.abs(numpy_helper.to_array(t)).max(initial=0) > TOP / MARGIN
    }
    names = floats(model)
    for tensor in seen:
        large |= {
            n
            for n, ends in observe(model, [tensor], names).items()
            if np.isfinite(ends).all() and max(map(abs, ends)) > TOP / MARGIN
        }
    return {n.name for n in model.graph.node if large & {*n.input, *n.output}}


def _join_floats(model: Any) -> None:
    """Let float nodes read each other's numbers as they are, not through the pairs of casts of the tool; in place."""
    casts = {
        n.output[0]: (n.input[0], next(a.i for a in n.attribute if a.name == "to"))
        for n in model.graph.node
        if n.op_type == "Cast"
    }
    for node in model.graph.node:
        for k, name in enumerate(node.input):
            inner, kind = casts.get(name, ("", 0))
            source, middle = casts.get(inner, ("", 0))
            if (kind, middle) == (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16):
                node.input[k] = source
    read = {i for n in model.graph.node for i in n.input} | {o.name for o in model.graph.output}
    while True:
        keep = [n for n in model.graph.node if n.op_type != "Cast" or n.output[0] in read]
        if len(keep) == len(model.graph.node):
            return
        copies = [onnx.NodeProto.FromString(n.SerializeToString()) for n in keep]
        model.graph.ClearField("node")
        model.graph.node.extend(copies)
        read = {i for n in model.graph.node for i in n.input} | {o.name for o in model.graph.output}


def _check(model: Any, half: Any, seen: Sequence[NDArray[Any]]) -> None:
    try:
        runs = [session(m) for m in (model, half)]
    except Exception as error:
        line = str(error).strip().splitlines()[0][:200]
        raise ConversionError(f"onnxruntime cannot load the fp16 model: {line}", hint="its fp32 build serves") from None
    names = [o.name for o in model.graph.output]
    for tensor in seen:
        values = [r.run(names, {r.get_inputs()[0].name: tensor}) for r in runs]
        for name, before, after in zip(names, *values, strict=True):
            if np.isfinite(before).all() and not np.isfinite(after).all():
                raise ConversionError(
                    f"fp16 overflows: the output `{name}` is not finite where the source's is",
                    hint=f"half precision ends at {TOP:.0f}: keep fp32, or scale the layers before it down",
                )

"""The range of every activation of an ONNX model, from one run over the calibration images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, shape_inference

from converters import graph as g

_REDUCE_INPUT_OPSET = 18
"""From this opset on ReduceMean, ReduceMin and ReduceMax take their axes as an input."""


def session(model: Any) -> Any:
    """Open a model in memory on one CPU thread."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def opset_of(model: Any) -> int:
    """Return the version of the standard operators that a model uses; 0 where it uses none."""
    return max((int(o.version) for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)


def floats(model: Any) -> list[str]:
    """Return the names of the float32 tensors that the nodes of a model make."""
    inferred = shape_inference.infer_shapes(model)
    kinds = {
        v.name: v.type.tensor_type.elem_type
        for v in (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)
    }
    return [o for n in inferred.graph.node for o in n.output if kinds.get(o) == TensorProto.FLOAT]


def reduction(part: Any, op: str, source: str, target: str, axes: Sequence[int] | None) -> Any:
    """Return a node that reduces `source` over `axes` (None: all) without keeping them, for the opset of `part`."""
    if axes is None:
        return helper.make_node(op, [source], [target], keepdims=0)
    if opset_of(part) >= _REDUCE_INPUT_OPSET:
        part.graph.initializer.append(numpy_helper.from_array(np.array(axes, np.int64), f"{target}_axes"))
        return helper.make_node(op, [source, f"{target}_axes"], [target], keepdims=0)
    return helper.make_node(op, [source], [target], axes=list(axes), keepdims=0)


def give(part: Any, name: str) -> None:
    """Make a float tensor an output of the model too."""
    part.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))


def observe(model: Any, tensors: Iterable[NDArray[Any]], names: Iterable[str] = ()) -> dict[str, tuple[float, float]]:
    """Return (low, high) of each float tensor: the mean over the images of its smallest and of its largest value.

    The mean keeps one odd image from widening a range for all (NNCF's default for activations, too). A tensor that is
    not finite on some image has that in its range.

    Args:
        names: only these tensors; all float32 ones when it is empty.
    """
    part = onnx.ModelProto()
    part.CopyFrom(model)
    wanted = list(dict.fromkeys(names)) or floats(model)
    part.graph.ClearField("output")
    for index, name in enumerate(wanted):
        for op in ("ReduceMin", "ReduceMax"):
            part.graph.node.append(reduction(part, op, name, f"{g.PREFIX}{op}_{index}", None))
            give(part, f"{g.PREFIX}{op}_{index}")
    running = session(part)
    image = running.get_inputs()[0].name
    total: NDArray[np.float64] | None = None
    count = 0
    for tensor in tensors:
        values = np.asarray(running.run(None, {image: tensor}), np.float64).reshape(-1, 2)
        total = values if total is None else total + values
        count += 1
    if total is None:
        return {}
    return {name: (float(low), float(high)) for name, (low, high) in zip(wanted, total / count, strict=True)}

"""Edits of ONNX graphs: fix the batch, fold preprocessing in, find the tail after the last weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WEIGHT_OPS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN"})
PREFIX = "edge_"


def image_inputs(model: Any) -> list[Any]:
    """Return the graph inputs that are no initializers."""
    constants = {t.name for t in model.graph.initializer}
    return [i for i in model.graph.input if i.name not in constants]


def dims(value: Any) -> tuple[int | str | None, ...]:
    """Return the sizes of a value; a symbol where it is dynamic, None where nothing is known."""
    out: list[int | str | None] = []
    for d in value.type.tensor_type.shape.dim:
        out.append(d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else (d.dim_param or None))
    return tuple(out)


def set_dims(value: Any, shape: Sequence[int]) -> None:
    """Set the sizes of a graph input or output."""
    value.type.tensor_type.shape.ClearField("dim")
    for size in shape:
        value.type.tensor_type.shape.dim.add().dim_value = size


def producers(model: Any) -> dict[str, Any]:
    """Return the node that makes each tensor."""
    return {out: node for node in model.graph.node for out in node.output}


def tail(model: Any) -> list[Any]:
    """Return the nodes between the last weighted operations and the outputs: decode arithmetic, softmax, reshapes."""
    maker = producers(model)
    found: dict[int, Any] = {}
    stack = [o.name for o in model.graph.output]
    while stack:
        node = maker.get(stack.pop())
        if node is None or id(node) in found or node.op_type in WEIGHT_OPS:
            continue
        found[id(node)] = node
        stack.extend(i for i in node.input if i)
    order = {id(n): k for k, n in enumerate(model.graph.node)}
    return sorted(found.values(), key=lambda n: order[id(n)])


def head(model: Any, layers: int) -> list[Any]:
    """Return the nodes with at most `layers` weighted operations before them on every path, themselves included."""
    if layers == 0:
        return []
    constants = {t.name for t in model.graph.initializer}
    depth = dict.fromkeys((i.name for i in image_inputs(model)), 0)
    found = []
    for node in model.graph.node:
        before = [depth[i] for i in node.input if i and i not in constants and i in depth]
        own = max(before, default=0) + (node.op_type in WEIGHT_OPS)
        depth.update(dict.fromkeys(node.output, own))
        if before and own <= layers:
            found.append(node)
    return found


def last(model: Any, layers: int) -> list[Any]:
    """Return the nodes between the outputs and the weighted operations before the last `layers` of every path."""
    maker = producers(model)
    found: dict[int, Any] = {}
    frontier = [o.name for o in model.graph.output]
    for _ in range(layers):
        weighted: list[Any] = []
        while frontier:
            node = maker.get(frontier.pop())
            if node is None or id(node) in found:
                continue
            found[id(node)] = node
            if node.op_type in WEIGHT_OPS:
                weighted.append(node)
            else:
                frontier.extend(i for i in node.input if i)
        frontier = [i for n in weighted for i in n.input[:1]]
    return list(found.values())


def tail_ops(model: Any, outputs: Iterable[str]) -> set[str]:
    """Return the operations of the tail that lead to the named outputs."""
    wanted = set(outputs)
    part = onnx.ModelProto()
    part.CopyFrom(model)
    keep = [o for o in part.graph.output if o.name in wanted]
    part.graph.ClearField("output")
    part.graph.output.extend(keep)
    return {n.op_type for n in tail(part)}


def name_nodes(model: Any) -> None:
    """Give every node a name; quantizers exclude nodes by name."""
    used = {n.name for n in model.graph.node if n.name}
    for index, node in enumerate(model.graph.node):
        if not node.name:
            name = f"{node.op_type}_{index}"
            while name in used:
                name += "_"
            node.name = name
            used.add(name)


def fold_preprocessing(
    model: Any,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    layout: str,
    channels: int,
    scale: float | None = None,
    zero: int | None = None,
) -> tuple[Any, tuple[str, ...]]:
    """Return the model with a uint8 NHWC input that does `(pixels - mean) / std` and the layout itself.

    The second value names the nodes that were put in front. The input keeps its name; mean and std are in pixel units.
    An integer input of the model gets that over `scale` plus `zero`, rounded; without a scale the pixels, or the pixels
    minus 128 when it is int8.
    """
    out = onnx.ModelProto()
    out.CopyFrom(model)
    graph = out.graph
    image = image_inputs(out)[0]
    name, size = image.name, [int(d) for d in dims(image) if isinstance(d, int)]
    n, h, w = (size[0], size[2], size[3]) if layout == "NCHW" else (size[0], size[1], size[2])
    inner = f"{PREFIX}{name}_float"
    for node in graph.node:
        for k, source in enumerate(node.input):
            if source == name:
                node.input[k] = inner
    wanted = image.type.tensor_type.elem_type
    target = np.dtype(helper.tensor_dtype_to_np_dtype(wanted))
    whole = target.kind in "iu" and (scale is not None or target == np.int8)
    kind = TensorProto.FLOAT if whole else wanted
    if whole and scale is None:
        mean, std = (128.0,), (1.0,)
    elif whole and scale is not None:
        step = np.asarray(std, np.float64) * scale
        shifted = np.asarray(mean, np.float64) - (zero or 0) * step
        mean, std = [float(m) for m in shifted], [float(s) for s in step]
    # A source that is a build of this library has nodes of these names already.
    used = {n.name for n in graph.node} | {o for n in graph.node for o in n.output}
    nodes: list[Any] = []
    current = name

    def add(op: str, extra: Sequence[str] = (), **attributes: Any) -> None:
        nonlocal current
        label = f"{PREFIX}{op.lower()}" if attributes.get("to") != wanted or not whole else f"{PREFIX}quantized"
        while label in used:
            label += "_"
        nodes.append(helper.make_node(op, [current, *extra], [label], name=label, **attributes))
        current = label

    def constant(label: str, values: Sequence[float]) -> str:
        full = np.asarray(values, np.float32)
        shaped = full.reshape((1, -1, 1, 1) if layout == "NCHW" else (1, 1, 1, -1))
        tensor = numpy_helper.from_array(shaped.astype(helper.tensor_dtype_to_np_dtype(kind)), f"{PREFIX}{label}")
        graph.initializer.append(tensor)
        return str(tensor.name)

    if layout == "NCHW" and channels > 1:
        add("Transpose", perm=[0, 3, 1, 2])
    add("Cast", to=kind)
    if layout == "NCHW" and channels == 1:
        shape = numpy_helper.from_array(np.array([n, 1, h, w], np.int64), f"{PREFIX}shape")
        graph.initializer.append(shape)
        add("Reshape", [shape.name])
    if any(mean):
        add("Sub", [constant("mean", mean)])
    if any(s != 1 for s in std):
        add("Mul", [constant("scale", [1 / s for s in std])])
    if whole:
        add("Round")
        limits = dict(zip((f"{PREFIX}low", f"{PREFIX}high"), _limits(target), strict=True))
        graph.initializer.extend(numpy_helper.from_array(np.array(v, np.float32), k) for k, v in limits.items())
        add("Clip", list(limits))
        add("Cast", to=wanted)
    nodes[-1].output[0] = inner
    existing = list(graph.node)
    graph.ClearField("node")
    graph.node.extend([*nodes, *existing])
    image.type.tensor_type.elem_type = TensorProto.UINT8
    set_dims(image, (n, h, w, channels))
    return out, tuple(node.name for node in nodes)


def _limits(kind: np.dtype[Any]) -> tuple[int, int]:
    info = np.iinfo(kind)
    return int(info.min), int(info.max)

"""Preprocessing inside the first convolutions of an ONNX model: scale and mean of its input in weights and biases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from converters import graph as g

_ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div"})
_IMAGE_DIMS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chain:
    """Convolutions of `scale x + offset` (a value for each channel), x being the pixels; `nodes` make it, each by the
    name of its output.

    `shape` is that of a constant with a value for each channel where the first of these nodes stands; empty where all
    channels have the same.
    """

    nodes: tuple[str, ...]
    convolutions: tuple[Any, ...]
    scale: NDArray[np.float64]
    offset: NDArray[np.float64]
    shape: tuple[int, ...]


def absorb(model: Any) -> tuple[Any, str | None]:
    """Return the model with the arithmetic between a uint8 input and its first convolutions inside these, and the step.

    `a x + b` of a channel goes into weights, `W a`, and into biases, `sum(W b)`. Where a convolution pads with zeros,
    which stand for `x = -b / a`, that is subtracted before it and only the scale goes into the weights. The model comes
    back as it is, with None, where something else than float convolutions with constant weights reads the result, or
    where there is no node less to run.
    """
    chain = _find(model)
    if chain is None or not chain.nodes or not chain.scale.all():
        return model, None
    mean = -chain.offset / chain.scale
    subtract = bool(mean.any()) and any(_pads(c) for c in chain.convolutions)
    if subtract and len(chain.nodes) == 1:
        return model, None
    out = onnx.ModelProto()
    out.CopyFrom(model)
    made = [c.output[0] for c in chain.convolutions]
    for node in out.graph.node:
        if node.output[0] in made:
            _rewrite(out, node, chain.scale, None if subtract else chain.offset)
    _remove(out, chain.nodes[1:] if subtract else chain.nodes)
    if subtract:
        _subtract(out, chain, mean)
    _drop_unread(out)
    what = "scale and mean" if mean.any() and not subtract else "scale"
    return out, f"{what} of the input in the weights of {', '.join(c.name for c in chain.convolutions)}"


def _find(model: Any) -> _Chain | None:
    images = g.image_inputs(model)
    if len(images) != 1 or images[0].type.tensor_type.elem_type != TensorProto.UINT8:
        return None
    floats = {t.name: t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT}
    readers: dict[str, list[Any]] = {o.name: [None] for o in model.graph.output}
    for node in model.graph.node:
        for name in dict.fromkeys(node.input):
            readers.setdefault(name, []).append(node)
    path: list[tuple[Any, NDArray[np.float64] | None]] = []
    current = images[0].name
    while len(found := readers.get(current, [])) == 1 and found[0] is not None:
        (node,) = found
        constant = _constant(node, current, floats)
        if constant is None and not _moves(node, current):
            break
        path.append((node, constant))
        current = node.output[0]
    if not found or not all(_takes(node, current, floats) for node in found):
        return None
    return _of_path(path, found, floats)


def _moves(node: Any, name: str) -> bool:
    """Say whether a node gives the numbers of `name` as they are, in another order or as float32."""
    if node.op_type == "Cast":
        return any(a.name == "to" and a.i == TensorProto.FLOAT for a in node.attribute)
    return node.op_type in ("Transpose", "Reshape") and node.input[0] == name


def _constant(node: Any, name: str, floats: Mapping[str, Any]) -> NDArray[np.float64] | None:
    """Return the constant that a node adds to `name`, takes off it, multiplies it by or divides it by; else None."""
    if node.op_type not in _ARITHMETIC or list(node.input).count(name) != 1:
        return None
    first, second = node.input
    constant = second if first == name else first
    if constant not in floats or (first != name and node.op_type in ("Sub", "Div")):
        return None
    return np.array(numpy_helper.to_array(floats[constant]), np.float64)


def _takes(node: Any, name: str, floats: Mapping[str, Any]) -> bool:
    """Say whether a node is a convolution of images whose weights and bias are constants."""
    if node is None or node.op_type != "Conv" or node.input[0] != name:
        return False
    return all(i in floats for i in node.input[1:] if i) and len(floats[node.input[1]].dims) == _IMAGE_DIMS


def _of_path(
    path: Sequence[tuple[Any, NDArray[np.float64] | None]], convolutions: Sequence[Any], floats: Mapping[str, Any]
) -> _Chain | None:
    """Return the chain, or None where a constant has neither one value nor one for each channel.

    Read backwards, from the channels of the convolution to the axis that they are on before.
    """
    channels = int(floats[convolutions[0].input[1]].dims[1]) * _group(convolutions[0])
    axis: int | None = 1
    scale, offset = np.ones(channels), np.zeros(channels)
    shape: tuple[int, ...] = ()
    for node, constant in reversed(path):
        if node.op_type == "Transpose" and axis is not None:
            axis = next((int(a.ints[axis]) for a in node.attribute if a.name == "perm"), _IMAGE_DIMS - 1 - axis)
        elif node.op_type == "Reshape":
            axis = None
        if constant is None:
            continue
        shape = () if axis is None else tuple(channels if k == axis else 1 for k in range(_IMAGE_DIMS))
        value = _by_channel(constant, shape)
        if value is None:
            return None
        if node.op_type in ("Add", "Sub"):
            offset += scale * (value if node.op_type == "Add" else -value)
        else:
            scale *= value if node.op_type == "Mul" else 1 / value
    nodes = tuple(node.output[0] for node, constant in path if constant is not None)
    return _Chain(nodes=nodes, convolutions=tuple(convolutions), scale=scale, offset=offset, shape=shape)


def _by_channel(constant: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.float64] | None:
    """Return a constant as one value (1,) or one for each channel (c,); None where it is of another form."""
    if constant.ndim > _IMAGE_DIMS:
        return None
    if constant.size == 1:
        return constant.reshape(1)
    full = (1,) * (_IMAGE_DIMS - constant.ndim) + constant.shape
    return constant.reshape(-1) if full == shape else None


def _attribute(node: Any, name: str) -> Any:
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), None)


def _group(conv: Any) -> int:
    return int(_attribute(conv, "group") or 1)


def _pads(conv: Any) -> bool:
    kind = (_attribute(conv, "auto_pad") or b"NOTSET").decode()
    return any(_attribute(conv, "pads") or ()) if kind == "NOTSET" else kind != "VALID"


def _rewrite(model: Any, conv: Any, scale: NDArray[np.float64], offset: NDArray[np.float64] | None) -> None:
    """Give a convolution weights that scale its input, and a bias that adds the offset to it; in place."""
    values = {t.name: t for t in model.graph.initializer}
    weights = np.array(numpy_helper.to_array(values[conv.input[1]]), np.float64)
    outputs, inputs = weights.shape[:2]
    group = np.arange(outputs) // (outputs // _group(conv))
    columns = group[:, None] * inputs + np.arange(inputs)[None, :]

    def put(place: int, role: str, value: NDArray[np.float64]) -> None:
        name = f"{g.PREFIX}{role}_{conv.output[0]}"
        model.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
        if place < len(conv.input):
            conv.input[place] = name
        else:
            conv.input.append(name)

    if offset is not None and offset.any():
        bias = (weights.sum(axis=(2, 3)) * offset[columns]).sum(axis=1)
        if len(conv.input) > 2 and conv.input[2]:
            bias += numpy_helper.to_array(values[conv.input[2]])
        put(2, "bias", bias)
    put(1, "weight", weights * scale[columns][:, :, None, None])


def _remove(model: Any, names: Sequence[str]) -> None:
    """Take nodes out of a chain, each reader reads what they have read; in place."""
    made = {o for node in model.graph.node for o in node.output} | {i.name for i in model.graph.input}
    instead: dict[str, str] = {}
    kept = []
    for node in model.graph.node:
        for k, name in enumerate(node.input):
            node.input[k] = instead.get(name, name)
        if node.output[0] in names:
            instead[node.output[0]] = next(i for i in node.input if i in made)
        else:
            kept.append(onnx.NodeProto.FromString(node.SerializeToString()))
    model.graph.ClearField("node")
    model.graph.node.extend(kept)


def _subtract(model: Any, chain: _Chain, mean: NDArray[np.float64]) -> None:
    """Make the first node of the chain take the mean off; in place."""
    (node,) = (n for n in model.graph.node if n.output[0] == chain.nodes[0])
    made = {o for n in model.graph.node for o in n.output} | {i.name for i in model.graph.input}
    source = next(i for i in node.input if i in made)
    same = bool((mean == mean[0]).all())
    value = mean[0] if same else mean.reshape(chain.shape)
    name = f"{g.PREFIX}offset"
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
    node.CopyFrom(helper.make_node("Sub", [source, name], list(node.output), name=node.name))


def _drop_unread(model: Any) -> None:
    """Remove constants and notes of shapes that belong to nothing any more; in place."""
    read = {i for n in model.graph.node for i in n.input} | {o.name for o in model.graph.output}
    for field in ("initializer", "value_info"):
        part = getattr(model.graph, field)
        kept = [type(t).FromString(t.SerializeToString()) for t in part if t.name in read]
        model.graph.ClearField(field)
        getattr(model.graph, field).extend(kept)

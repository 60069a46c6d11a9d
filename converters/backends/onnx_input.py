"""Preprocessing inside the first convolutions of an ONNX model: scale, mean, layout of the input in their weights."""

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
_PLANES = (0, 3, 1, 2)
"""The axes of pixels (n, h, w, c) in the order of planes (n, c, h, w)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chain:
    """Convolutions of `scale x + offset` (a value for each channel), x being the planes of a uint8 image.

    `nodes` make it, each by the name of its output, `arithmetic` of them with constants. `size` is that of the image,
    (n, h, w, c).
    """

    image: str
    size: tuple[int, ...]
    nodes: tuple[str, ...]
    arithmetic: int
    convolutions: tuple[Any, ...]
    scale: NDArray[np.float64]
    offset: NDArray[np.float64]


def absorb(model: Any, *, rows: bool) -> tuple[Any, str | None]:
    """Return the model with what lies between a uint8 NHWC input and its first convolutions inside these, and the step.

    `a x + b` of a channel goes into weights, `W a`, and into biases, `sum(W b)`. Where a convolution pads with zeros,
    which stand for `x = -b / a`, that is subtracted before it and only the scale goes into the weights. With `rows` the
    pixels are not put into planes: (n, h, w, c) is read as one plane (n, 1, h, w c), over which a kernel of width k is
    one of width k c that moves c times as far. The model comes back as it is, with None, where something else than
    float convolutions with constant weights reads the result, or where there is no node less to run.
    """
    chain = _find(model)
    if chain is None or not chain.scale.all():
        return model, None
    mean = -chain.offset / chain.scale
    subtract = bool(mean.any()) and any(_pads(c) for c in chain.convolutions)
    rows = (rows and all(_slides(c) for c in chain.convolutions)) or chain.size[3] == 1
    if not rows and chain.arithmetic <= subtract:
        return model, None
    out = onnx.ModelProto()
    out.CopyFrom(model)
    made = [c.output[0] for c in chain.convolutions]
    last = _head(out, chain, mean if subtract else None, rows=rows)
    for node in out.graph.node:
        if node.output[0] in made:
            node.input[0] = last
            _rewrite(out, node, chain.scale, None if subtract else chain.offset)
            if rows:
                _widen(out, node)
    _drop_unread(out)
    parts = [
        "scale" if chain.arithmetic > subtract else "",
        "mean" if mean.any() and not subtract else "",
        "layout" if rows else "",
    ]
    names = ", ".join(c.name for c in chain.convolutions)
    return out, f"{', '.join(filter(None, parts))} of the input in the weights of {names}"


def _find(model: Any) -> _Chain | None:
    images = g.image_inputs(model)
    if len(images) != 1 or images[0].type.tensor_type.elem_type != TensorProto.UINT8:
        return None
    size = tuple(d for d in g.dims(images[0]) if isinstance(d, int))
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
    if len(size) != len(_PLANES) or not found or not all(_takes(node, current, floats) for node in found):
        return None
    affine = _affine(path, size, {t.name: t for t in model.graph.initializer})
    if affine is None:
        return None
    return _Chain(
        image=images[0].name,
        size=size,
        nodes=tuple(node.output[0] for node, _ in path),
        arithmetic=sum(constant is not None for _, constant in path),
        convolutions=tuple(found),
        scale=affine[0],
        offset=affine[1],
    )


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
    return all(i in floats for i in node.input[1:] if i) and len(floats[node.input[1]].dims) == len(_PLANES)


def _affine(
    path: Sequence[tuple[Any, NDArray[np.float64] | None]], size: tuple[int, ...], values: Mapping[str, Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Return scale and offset by channel; None where the path does not turn pixels into planes, or where one of its
    constants has neither one value nor one for each channel."""
    axes = [0, 1, 2, 3]
    scale, offset = np.ones(size[3]), np.zeros(size[3])
    for node, constant in path:
        if node.op_type == "Transpose":
            axes = [axes[k] for k in _attribute(node, "perm") or (3, 2, 1, 0)]
        elif node.op_type == "Reshape":
            axes = [axes[k] for k in _PLANES]
            wanted = values.get(node.input[1])
            if size[3] > 1 or wanted is None or [size[k] for k in axes] != numpy_helper.to_array(wanted).tolist():
                return None
        if constant is None:
            continue
        value = _by_channel(constant, tuple(size[3] if axis == 3 else 1 for axis in axes))
        if value is None:
            return None
        if node.op_type in ("Add", "Sub"):
            offset = offset + (value if node.op_type == "Add" else -value)
        else:
            factor = value if node.op_type == "Mul" else 1 / value
            scale, offset = scale * factor, offset * factor
    return (scale, offset) if tuple(axes) == _PLANES else None


def _by_channel(constant: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.float64] | None:
    """Return a constant as one value (1,) or one for each channel (c,); None where it is of another form."""
    if constant.ndim > len(shape):
        return None
    if constant.size == 1:
        return constant.reshape(1)
    full = (1,) * (len(shape) - constant.ndim) + constant.shape
    return constant.reshape(-1) if full == shape else None


def _attribute(node: Any, name: str) -> Any:
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), None)


def _group(conv: Any) -> int:
    return int(_attribute(conv, "group") or 1)


def _pads(conv: Any) -> bool:
    kind = (_attribute(conv, "auto_pad") or b"NOTSET").decode()
    return any(_attribute(conv, "pads") or ()) if kind == "NOTSET" else kind != "VALID"


def _slides(conv: Any) -> bool:
    """Say whether a convolution of planes can be one of rows of pixels: all channels together, columns side by side."""
    dilations = _attribute(conv, "dilations") or (1, 1)
    kind = (_attribute(conv, "auto_pad") or b"NOTSET").decode()
    return _group(conv) == 1 and dilations[1] == 1 and kind in ("NOTSET", "VALID")


def _head(model: Any, chain: _Chain, mean: NDArray[np.float64] | None, *, rows: bool) -> str:
    """Put fresh nodes in front for those of the chain, and return what they make; in place."""
    n, h, w, c = chain.size
    nodes: list[Any] = []

    def add(op: str, constant: NDArray[Any] | None = None, **attributes: Any) -> None:
        label = f"{g.PREFIX}{op.lower()}"
        source = nodes[-1].output[0] if nodes else chain.image
        more = [] if constant is None else [f"{label}_by"]
        model.graph.initializer.extend(numpy_helper.from_array(constant, name) for name in more)
        nodes.append(helper.make_node(op, [source, *more], [label], name=label, **attributes))

    if rows:
        add("Reshape", np.array([n, 1, h, w * c], np.int64))
    else:
        add("Transpose", perm=_PLANES)
    add("Cast", to=TensorProto.FLOAT)
    if mean is not None:
        value = np.asarray(mean, np.float32)
        same = bool((value == value[0]).all())
        spread = np.tile(value, w).reshape(1, 1, 1, -1) if rows else value.reshape(1, -1, 1, 1)
        add("Sub", np.asarray(value[0]) if same else spread)
    others = (node for node in model.graph.node if node.output[0] not in chain.nodes)
    rest = [onnx.NodeProto.FromString(node.SerializeToString()) for node in others]
    model.graph.ClearField("node")
    model.graph.node.extend([*nodes, *rest])
    return str(nodes[-1].output[0])


def _widen(model: Any, conv: Any) -> None:
    """Turn a convolution of planes into the same one of rows of pixels; in place."""
    (tensor,) = (t for t in model.graph.initializer if t.name == conv.input[1])
    planes = numpy_helper.to_array(tensor)
    outputs, c, height, width = planes.shape
    kernel = np.ascontiguousarray(planes.transpose(0, 2, 3, 1)).reshape(outputs, 1, height, width * c)
    tensor.CopyFrom(numpy_helper.from_array(kernel, tensor.name))
    down, across = _attribute(conv, "strides") or (1, 1)
    top, left, bottom, right = _attribute(conv, "pads") or (0, 0, 0, 0)
    changed: dict[str, tuple[int, ...]] = {"kernel_shape": (height, width * c), "strides": (down, across * c)}
    if _attribute(conv, "pads") is not None:
        changed["pads"] = (top, left * c, bottom, right * c)
    kept = {a.name: helper.get_attribute_value(a) for a in conv.attribute} | changed
    del conv.attribute[:]
    conv.attribute.extend(helper.make_attribute(name, value) for name, value in kept.items())


def _rewrite(model: Any, conv: Any, scale: NDArray[np.float64], offset: NDArray[np.float64] | None) -> None:
    """Give a convolution weights that scale its input, and a bias that adds the offset to it; in place."""
    values = {t.name: t for t in model.graph.initializer}
    weights = np.array(numpy_helper.to_array(values[conv.input[1]]), np.float64)
    outputs, inputs = weights.shape[:2]
    group = np.arange(outputs) // (outputs // _group(conv))
    columns = group[:, None] * inputs + np.arange(inputs)[None, :]

    def put(place: int, role: str, value: NDArray[np.float64]) -> None:
        name = f"{g.PREFIX}input_{role}_{conv.output[0]}"
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


def _drop_unread(model: Any) -> None:
    """Remove constants and notes of shapes that belong to nothing any more; in place."""
    read = {i for n in model.graph.node for i in n.input} | {o.name for o in model.graph.output}
    for field in ("initializer", "value_info"):
        part = getattr(model.graph, field)
        kept = [type(t).FromString(t.SerializeToString()) for t in part if t.name in read]
        model.graph.ClearField(field)
        getattr(model.graph, field).extend(kept)

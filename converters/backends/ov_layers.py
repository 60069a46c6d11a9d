"""Which operations of an OpenVINO model stay float in an int8 build."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from converters.backends.base import BuildRequest
from converters.backends.onnx_float import apart
from converters.backends.onnx_int8 import check_layers
from converters.backends.ov_source import WEIGHTED

_MOVES = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Split", "VariadicSplit", "Slice", "StridedSlice"})


def ignored(model: Any, request: BuildRequest, tensors: Sequence[Any] = ()) -> list[str]:
    """Return the names of what stays float: the tail after the last weighted operations, decoding before it, and what
    the request names, and joins of boxes with scores as far as `tensors`, inputs of the model, show them.

    Raises:
        ConversionError: the model has no layer of a name in `float_layers`.
    """
    check_layers(request.float_layers, {op.get_friendly_name() for op in model.get_ordered_ops()})
    return sorted(
        {
            *near_outputs(model, request.float_last),
            *near_inputs(model, request.float_first),
            *_decoding(model),
            *mixed(model, _join_ranges(model, tensors)),
            *request.float_layers,
        }
    )


def joins(model: Any) -> list[Any]:
    """Return the operations that join tensors (Concat), none of them constant."""
    return [
        op
        for op in model.get_ordered_ops()
        if op.get_type_name() == "Concat"
        and all(v.get_node().get_type_name() not in ("Constant", "Convert") for v in op.input_values())
    ]


def mixed(model: Any, ranges: Mapping[str, Sequence[tuple[float, float]]]) -> set[str]:
    """Return joins of tensors of very different spans and the weighted operations that read them, by name.

    Args:
        ranges: join -> (low, high) of each of its inputs.
    """
    found: set[str] = set()
    made: set[str] = set()
    for op in model.get_ordered_ops():
        name, kind = op.get_friendly_name(), op.get_type_name()
        reads = any(v.get_node().get_friendly_name() in made for v in op.input_values())
        if name in ranges and apart(ranges[name]):
            found.add(name)
            made.add(name)
        elif reads and (kind in _MOVES or kind in WEIGHTED):
            found.add(name)
            if kind in _MOVES:
                made.add(name)
    return found


def near_outputs(model: Any, rings: int) -> list[str]:
    """Return the names of the operations after the last weighted ones, and of `rings` weighted ones before them."""
    names: set[str] = set()
    frontier = [r.input_value(0).get_node() for r in model.get_results()]
    for ring in range(rings + 1):
        nodes, frontier = frontier, []
        seen: set[str] = set()
        while nodes:
            node = nodes.pop()
            name = node.get_friendly_name()
            if name in seen or node.get_type_name() in ("Constant", "Parameter"):
                continue
            seen.add(name)
            if node.get_type_name() in WEIGHTED:
                if ring < rings:
                    names.add(name)
                    frontier.append(node.input_value(0).get_node())
                else:
                    frontier.append(node)
                continue
            if not _is_bias(node):
                names.add(name)
            nodes.extend(v.get_node() for v in node.input_values())
    return sorted(names)


def near_inputs(model: Any, layers: int) -> list[str]:
    """Return the names of the operations with at most `layers` weighted ones before them, themselves included."""
    depth: dict[str, int] = {}
    for node in model.get_ordered_ops():
        kind, name = node.get_type_name(), node.get_friendly_name()
        before = [depth[n] for v in node.input_values() if (n := v.get_node().get_friendly_name()) in depth]
        if kind == "Parameter":
            depth[name] = 0
        elif before:
            depth[name] = max(before) + (kind in WEIGHTED)
    return [n for n, d in depth.items() if d <= layers] if layers else []


def _decoding(model: Any) -> set[str]:
    """Return weighted operations that read a softmax: they take the mean of a distribution, as box decoders do."""
    found = set()
    for node in model.get_ordered_ops():
        if node.get_type_name() not in WEIGHTED:
            continue
        before = node.input_value(0).get_node()
        while before.get_type_name() in _MOVES:
            before = before.input_value(0).get_node()
        weights = node.input_value(1).get_node().get_type_name()
        if before.get_type_name() == "Softmax" and weights in ("Constant", "Convert", "Reshape"):
            found.add(node.get_friendly_name())
    return found


def _is_bias(node: Any) -> bool:
    """Return whether the node adds a constant right after a weighted operation, as a convolution's bias does."""
    if node.get_type_name() != "Add":
        return False
    kinds = {v.get_node().get_type_name() for v in node.input_values()}
    return bool(kinds & WEIGHTED) and bool(kinds & {"Constant", "Reshape", "Convert"})


def _join_ranges(model: Any, tensors: Sequence[Any]) -> dict[str, list[tuple[float, float]]]:
    from converters.backends.ov_run import ranges

    found = joins(model)
    if not found or not tensors:
        return {}
    values = [v for op in found for v in op.input_values()]
    ends = iter(ranges(model, [(v, None) for v in values], tensors))
    return {op.get_friendly_name(): [tuple(next(ends)[0]) for _ in op.input_values()] for op in found}

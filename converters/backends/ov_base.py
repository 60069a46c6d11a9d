"""Requantize an OpenVINO model with the scales of an earlier build, so that the two files differ little."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import edge_sdk.runtimes.no_analytics  # noqa: F401  (before openvino)

# isort: split
import openvino as ov
import openvino.opset13 as ops

from converters.backends import reuse as rule
from converters.backends.ov_source import VERSION, WEIGHTED, constant, said
from edge_sdk.errors import ConversionError


def float_weights(model: Any) -> dict[str, NDArray[np.float32]]:
    """Return the weights of a float model by the name of the operation that reads them."""
    found = {}
    for node in model.get_ordered_ops():
        if node.get_type_name() in WEIGHTED:
            weights = constant(node.input_value(1))
            if weights is not None:
                found[node.get_friendly_name()] = weights
    return found


def reuse(model: Any, base: Path, floats: Mapping[str, NDArray[np.float32]]) -> str:
    """Give an int8 model the scales of the IR `base` where they fit (see `converters.backends.reuse`); return a step.

    Operations are matched by their order, which is the same for two builds of one graph.

    Raises:
        ConversionError: the base cannot be read, or is no int8 model.
    """
    try:
        earlier = ov.Core().read_model(str(base))
    except Exception as error:
        raise ConversionError(
            f"openvino {VERSION} cannot read the base's model: {said(error)}", hint="give another --base"
        ) from None
    old, new = list(earlier.get_ordered_ops()), list(model.get_ordered_ops())
    if not any(op.get_type_name() == "FakeQuantize" for op in old):
        raise ConversionError(
            "the base's model has no int8 scales to use again", hint="give an int8 artifact of this model as --base"
        )
    olds, news = ([op for op in ops_ if _matters(op)] for ops_ in (old, new))
    if [o.get_type_name() for o in olds] != [o.get_type_name() for o in news]:
        return "scales of the base not used: its graph has other layers in int8"
    kept = ranges = integers = total = 0
    for before, now in zip(olds, news, strict=True):
        if now.get_type_name() == "FakeQuantize":
            ranges += 1
            kept += _range(before, now)
            continue
        weights = floats.get(now.get_friendly_name())
        done = _weights(before, now, weights) if weights is not None else None
        if done is not None:
            integers, total = integers + done[0], total + done[1]
    counts = f"{kept} of {ranges} activation ranges, {integers} of {total} integers of weights"
    return f"scales of the base used again: {counts}"


def _matters(op: Any) -> bool:
    return op.get_type_name() == "FakeQuantize" or op.get_type_name() in WEIGHTED


def _range(before: Any, now: Any) -> bool:
    theirs, mine = (np.stack([np.ravel(_data(op.input_value(k))) for k in (1, 2)], axis=1) for op in (before, now))
    if theirs.shape != mine.shape:
        return False
    if not all(rule.range_fits((a[0], a[1]), (b[0], b[1])) for a, b in zip(theirs, mine, strict=True)):
        return False
    for k in range(1, 5):
        _put(now, k, _data(before.input_value(k)))
    return True


def _weights(before: Any, now: Any, weights: NDArray[np.float32]) -> tuple[int, int] | None:
    """Write the integers and scales of one layer again; return how many integers it kept, of how many."""
    theirs, mine = quantized(before), quantized(now)
    if theirs is None or mine is None:
        return None
    (scale_at, ints_at), scale, ints = mine
    _, old_scale, old_ints = theirs
    if ints.shape != old_ints.shape or scale.shape != old_scale.shape or weights.size != ints.size:
        return None
    leading = ints.shape[: scale.ndim - sum(1 for _ in itertools.takewhile(lambda n: n == 1, scale.shape[::-1]))]
    if int(np.prod(leading)) != scale.size:
        return None
    rows = [np.asarray(v).reshape(scale.size, -1) for v in (weights, old_ints)]
    top = int(np.abs(ints.astype(np.int32)).max())
    used, made, count = rule.weights(rows[0], scale.ravel(), old_scale.ravel(), np.zeros(scale.size), rows[1], top=top)
    _put(scale_at[0], scale_at[1], used.reshape(scale.shape))
    _put(ints_at[0], ints_at[1], made.reshape(ints.shape))
    return count, int(ints.size)


def quantized(layer: Any) -> tuple[tuple[tuple[Any, int], tuple[Any, int]], NDArray[Any], NDArray[Any]] | None:
    """Return the places (node, input) of scale and integers of a layer's symmetric weights, and both."""
    node = layer.input_value(1).get_node()
    while node.get_type_name() == "Reshape":
        node = node.input_value(0).get_node()
    if node.get_type_name() != "Multiply":
        return None
    convert = node.input_value(0).get_node()
    if convert.get_type_name() != "Convert" or convert.input_value(0).get_node().get_type_name() != "Constant":
        return None
    ints = np.array(convert.input_value(0).get_node().data)
    if ints.dtype != np.int8 or node.input_value(1).get_node().get_type_name() != "Constant":
        return None
    return ((node, 1), (convert, 0)), _data(node.input_value(1)), ints


def _data(value: Any) -> NDArray[Any]:
    found = constant(value)
    assert found is not None
    return found


def _put(node: Any, index: int, value: NDArray[Any]) -> None:
    name = node.input_value(index).get_node().get_friendly_name()
    fresh = ops.constant(np.ascontiguousarray(value))
    fresh.set_friendly_name(name)
    node.input(index).replace_source_output(fresh.output(0))

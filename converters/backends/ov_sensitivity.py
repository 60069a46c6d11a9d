"""How much int8 of each layer of an OpenVINO model disturbs it: every layer beside its own quantized twin."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

import edge_sdk.runtimes.no_analytics  # noqa: F401  (before openvino)

# isort: split
import openvino.opset13 as ops
from openvino.utils.node_factory import NodeFactory

from converters.backends import ov_run, sqnr
from converters.backends.base import LayerError
from converters.backends.ov_source import constant
from device_profiles.profile import Int8Scheme

_KINDS = frozenset(
    {"Convolution", "GroupConvolution", "MatMul", "ConvolutionBackpropData", "GroupConvolutionBackpropData"}
)
_LEVELS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    node: Any
    weights: NDArray[np.float32]

    @property
    def grouped(self) -> bool:
        return bool(self.node.get_type_name().startswith("Group"))

    @property
    def spatial(self) -> list[int]:
        """Return the axes of the output over which a channel's numbers lie; all of a dense layer's are compared."""
        rank = len(self.node.output(0).get_partial_shape())
        return [k for k in range(rank) if k != 1 or self.node.get_type_name() == "MatMul"]


def measure(model: Any, left: Iterable[str], tensors: Iterable[NDArray[Any]], scheme: Int8Scheme) -> list[LayerError]:
    """Return the error of each layer whose name is not in `left`, worst first.

    The input and the weights of a layer are rounded to 8 bits as NNCF does, grouped convolutions channel by channel;
    the error is noise over signal at its output (see `converters.backends.sqnr`).
    """
    pictures = list(tensors)
    skipped = set(left)
    layers = [la for la in _layers(model) if la.node.get_friendly_name() not in skipped]
    if not layers:
        return []
    places = [(la.node.input_value(0), 1 if la.grouped else None) for la in layers]
    ranges = ov_run.ranges(model, places, pictures)
    results = []
    for layer, ends in zip(layers, ranges, strict=True):
        results += _twin(layer, ends, scheme)
    seen = [sqnr.Sums() for _ in layers]
    for values in ov_run.values(model, results, pictures):
        for index, sums in enumerate(seen):
            sums.add(*values[3 * index : 3 * index + 3])
    rows = [LayerError(layer=la.node.get_friendly_name(), error=s.error()) for la, s in zip(layers, seen, strict=True)]
    return sorted(rows, key=lambda row: -row.error)


def _layers(model: Any) -> list[_Layer]:
    found = []
    for node in model.get_ordered_ops():
        if node.get_type_name() in _KINDS:
            weights = constant(node.input_value(1))
            if weights is not None:
                found.append(_Layer(node=node, weights=weights))
    return found


def _twin(layer: _Layer, ends: NDArray[np.float64], scheme: Int8Scheme) -> list[Any]:
    """Return three nodes: mean square of the noise, mean and mean square of the signal, by output channel."""
    source = layer.node.input_value(0)
    rank = len(source.get_partial_shape())
    shape = [1] * rank
    if len(ends) > 1:
        shape[1] = len(ends)
    low, high = (np.asarray(v, np.float32).reshape(shape) for v in _widened(ends))
    rounded = ops.fake_quantize(source, low, high, low, high, _LEVELS)
    weights = ops.constant(_rounded(layer, scheme))
    twin = NodeFactory("opset13").create(
        layer.node.get_type_name(), [rounded.output(0), weights.output(0)], layer.node.get_attributes()
    )
    signal = layer.node.output(0)
    noise = ops.subtract(signal, twin)
    axes = ops.constant(np.array(layer.spatial, np.int64))
    return [
        ops.reduce_mean(ops.multiply(noise, noise), axes, False),
        ops.reduce_mean(signal, axes, False),
        ops.reduce_mean(ops.multiply(signal, signal), axes, False),
    ]


def _widened(ends: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    low, high = np.minimum(ends[:, 0], 0.0), np.maximum(ends[:, 1], 0.0)
    return low, np.where(high - low > 1e-9, high, low + 1e-9)


def _rounded(layer: _Layer, scheme: Int8Scheme) -> NDArray[np.float32]:
    top = 64 if scheme.reduce_range else 127
    kind, weights = layer.node.get_type_name(), layer.weights
    if kind == "MatMul":
        turned = bool(layer.node.get_attributes().get("transpose_b"))
        return sqnr.round_weights(weights, weights.ndim - 2 if turned else weights.ndim - 1, top)
    if not layer.grouped:
        return sqnr.round_weights(weights, 1 if kind == "ConvolutionBackpropData" else 0, top)
    flat = weights.reshape(-1, *weights.shape[2:])
    if kind == "GroupConvolution":
        return sqnr.round_weights(flat, 0, top).reshape(weights.shape)
    return sqnr.round_weights(weights, 0, top)

"""Run parts of an OpenVINO model on the CPU: exact float arithmetic, one thread."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

import edge_sdk.runtimes.no_analytics  # noqa: F401  (before openvino)

# isort: split
import openvino as ov
import openvino.opset13 as ops

from converters.backends.ov_source import VERSION
from edge_sdk.errors import ConversionError


def compile_model(model: Any) -> Any:
    """Compile so that equal inputs give equal numbers.

    Raises:
        ConversionError: OpenVINO cannot run the model.
    """
    properties = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
    try:
        return ov.Core().compile_model(model, "CPU", properties)
    except Exception as error:
        line = (str(error).strip().splitlines() or [""])[-1][:200]
        raise ConversionError(f"openvino {VERSION} cannot run the model: {line}", hint="try another runtime") from None


def values(model: Any, extra: Sequence[Any], tensors: Sequence[NDArray[Any]]) -> Iterator[list[NDArray[np.float64]]]:
    """Yield the values of further nodes of the model for each input."""
    part = ov.Model([ops.result(node) for node in extra], model.get_parameters(), "part")
    compiled = compile_model(part)
    for tensor in tensors:
        answer = compiled(tensor)
        yield [np.array(answer[k], np.float64) for k in range(len(extra))]


def ranges(
    model: Any, ports: Sequence[tuple[Any, int | None]], tensors: Sequence[NDArray[Any]]
) -> list[NDArray[np.float64]]:
    """Return the ends, (1 or channels, 2), of each port by the channels of an axis or over all; means over inputs."""
    nodes = []
    for port, axis in ports:
        rank = len(port.get_partial_shape())
        axes = ops.constant(np.array([k for k in range(rank) if k != axis], np.int64))
        nodes += [reduce(port, axes, False) for reduce in (ops.reduce_min, ops.reduce_max)]
    rows = list(values(model, nodes, tensors))
    means = [np.mean(column, axis=0).reshape(-1) for column in zip(*rows, strict=True)]
    return [np.stack(means[2 * k : 2 * k + 2], axis=1) for k in range(len(ports))]

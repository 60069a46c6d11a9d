"""TensorFlow functions to ONNX and to a SavedModel with fixed shapes; the one place that imports TensorFlow."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

# isort: split
import tensorflow as tf
import tf2onnx

from converters.frontends import onnx as onnx_frontend
from converters.frontends import parity
from converters.frontends.base import Source
from converters.frontends.canonical import canonical
from edge_sdk.errors import BackendError, ConversionError

OPSET = 18
"""The newest that tf2onnx writes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A TensorFlow model that takes one image.

    `call` gives the outputs by name; `outputs` has the names in the model's own order; `tracked` owns its variables.
    """

    name: str
    input: str
    shape: tuple[int, ...]
    dtype: Any
    outputs: tuple[str, ...]
    call: Callable[[Any], Mapping[str, Any]]
    tracked: Any

    def function(self) -> Any:
        """Return the model as a tf.function of fixed shape."""
        spec = tf.TensorSpec(self.shape, self.dtype, name=self.input)
        return tf.function(self.call, input_signature=[spec])


def convert(network: Network, path: str, work: Path, options: Mapping[str, Any]) -> tuple[Any, Source]:
    """Return the ONNX model and its source with the forms `savedmodel` and parity stated; nothing recognised yet.

    Raises:
        BackendError: tf2onnx has not an operation.
        ConversionError: TensorFlow cannot trace it, or the ONNX model answers differently.
    """
    function = network.function()
    try:
        concrete = function.get_concrete_function()
    except Exception as error:
        raise ConversionError(
            f"`{network.name}` fails on an input {list(network.shape)}: {said(error)}",
            hint="check --size and --layout",
        ) from None
    spec = [tf.TensorSpec(network.shape, network.dtype, name=network.input)]
    model = _checked(
        network.name,
        options.get("opset"),
        lambda opset: tf2onnx.convert.from_function(function, input_signature=spec, opset=opset)[0],
    )
    _order(model, network.outputs)
    fixed, source = onnx_frontend.fixed(network.name, model.SerializeToString(), options)

    def run(value: Any) -> dict[str, Any]:
        return {k: np.asarray(v) for k, v in concrete(tf.constant(value)).items()}

    found = parity.compare(source.input, source.outputs, run, parity.onnx_run(fixed), rounds=False)
    line = parity.require(found, "TensorFlow to ONNX", "give the model as TFLite or ONNX instead")
    folder = work / "source_savedmodel"
    module = tf.Module()
    module.call, module.tracked = function, network.tracked
    tf.saved_model.save(module, str(folder), signatures={"serving_default": concrete})
    (folder / "fingerprint.pb").unlink(missing_ok=True)  # a random number that nothing needs
    source = replace(
        source,
        path=path,
        because=(f"exported to ONNX opset {source.opset}", line),
        forms={"savedmodel": str(folder)},
    )
    return fixed, source


def from_tflite(path: Path, opset: int | None, *, dequantize: bool) -> Any:
    """Return the ONNX model of a TFLite file; with `dequantize` in float arithmetic, weights as the file rounds them.

    Raises:
        BackendError: tf2onnx has not an operation.
    """
    return _checked(
        path.name,
        opset,
        lambda chosen: tf2onnx.convert._convert_common(
            None, tflite_path=str(path), name="model", opset=chosen, dequantize=dequantize
        )[0],
    )


def _checked(name: str, asked: int | None, export: Callable[[int], Any]) -> Any:
    try:
        model = export(asked or OPSET)
    except Exception as error:
        raise BackendError(
            f"tf2onnx {tf2onnx.__version__} cannot convert `{name}`: {said(error)}",
            hint="its operations have no ONNX form; name a profile with litert",
        ) from None
    onnx_frontend.check_opset(model, asked)
    used = {n.domain for n in model.graph.node} | {""}
    kept = [o for o in model.opset_import if o.domain in used]
    model.ClearField("opset_import")
    model.opset_import.extend(kept)
    return canonical(model)


def _order(model: Any, names: tuple[str, ...]) -> None:
    """Put the graph's outputs into the model's own order; TensorFlow sorts them by name."""
    by_name = {o.name: o for o in model.graph.output}
    if set(by_name) == set(names):
        ordered = [by_name[n] for n in names]
        model.graph.ClearField("output")
        model.graph.output.extend(ordered)


def said(error: BaseException) -> str:
    """Return the first line of what a tool said."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__

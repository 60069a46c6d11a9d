"""The OpenVINO model that a build starts from, by the form of the source, its preprocessing folded in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

import edge_sdk.runtimes.no_analytics  # noqa: F401  (before openvino)

# isort: split
import openvino as ov
from openvino.preprocess import PrePostProcessor

from converters.backends.base import BuildRequest
from converters.backends.onnx_prepare import fold
from converters.backends.onnx_ranges import opset_of
from edge_sdk.errors import BackendError, ConversionError
from edge_sdk.schemas.manifest import InputSpec

VERSION = ov.__version__.split("-")[0]
WEIGHTED = frozenset(
    {"Convolution", "GroupConvolution", "MatMul", "ConvolutionBackpropData", "GroupConvolutionBackpropData"}
    | {"LSTMSequence", "GRUSequence", "RNNSequence"}
)


def load(request: BuildRequest) -> tuple[Any, InputSpec, list[str]]:
    """Return the model with a uint8 NHWC input where the source has a float one, that input, and the steps.

    The outputs carry the names that the request gives.

    Raises:
        BackendError: OpenVINO has not an operator or the opset of the model, or does not read the form.
        ConversionError: the model has other outputs than the request names.
    """
    if request.form == "onnx":
        folded, spec, _, steps = fold(request)
        _check_opset(folded)
        source = request.out / "folded.onnx"
        onnx.save(folded, str(source))
        try:
            return _read(str(source)), spec, steps
        finally:
            source.unlink()
    if request.form not in ("openvino", "tflite"):
        raise BackendError(
            f"the openvino back-end starts from onnx, openvino or tflite, not {request.form}",
            hint="choose another back-end for this source",
        )
    model = _read(str(request.model))
    _name_outputs(model, request.outputs)
    return _fold(model, request.input)


def _check_opset(model: Any) -> None:
    """Refuse an opset that this onnx does not define either: OpenVINO would take each operator for the newest it has,
    whatever the opset has made of it."""
    opset, newest = opset_of(model), onnx.defs.onnx_opset_version()
    if opset > newest:
        raise BackendError(
            f"the model has opset {opset}, which openvino {VERSION} does not know: onnx {onnx.__version__} defines "
            f"opsets up to {newest}",
            hint=f"export it again with opset {newest} or lower, or install newer openvino and onnx",
        )


def _read(path: str) -> Any:
    try:
        return ov.convert_model(path) if not path.endswith(".xml") else ov.Core().read_model(path)
    except Exception as error:
        raise BackendError(
            f"openvino {VERSION} cannot convert the model: {said(error)}",
            hint="the model needs an operator or an opset that openvino has not: try another runtime",
        ) from None


def said(error: Exception) -> str:
    """Return the telling line of an OpenVINO message: the operator it misses, or the last one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "not supported" in line.lower() or "no conversion rule" in line.lower()]
    return (telling or lines[-1:] or [type(error).__name__])[0][:200]


def _name_outputs(model: Any, wanted: Sequence[str]) -> None:
    """Give each output its name of the source; where the tools changed the names, by its place."""
    known = {name for port in model.outputs for name in port.get_names()}
    if not wanted or all(name in known for name in wanted):
        return
    if len(wanted) != len(model.outputs):
        raise ConversionError(
            f"openvino sees {len(model.outputs)} outputs, the source has {len(wanted)}: {', '.join(wanted)}",
            hint="convert it from its ONNX form",
        )
    for port, name in zip(model.outputs, wanted, strict=True):
        if name not in known:
            port.get_tensor().add_names({name})


def _fold(model: Any, spec: InputSpec) -> tuple[Any, InputSpec, list[str]]:
    """Put `(pixels - mean) / std` and the layout before a model with a float input."""
    port = model.input(0)
    port.get_tensor().set_names({spec.name})
    if port.get_element_type() not in (ov.Type.f32, ov.Type.f16):
        return model, spec, [f"input {spec.dtype} {spec.layout} as in the source"]
    model.reshape({0: list(spec.shape)})
    before = PrePostProcessor(model)
    image = before.input(0)
    image.tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
    image.model().set_layout(ov.Layout(spec.layout))
    steps = image.preprocess().convert_element_type(ov.Type.f32)
    if any(spec.mean):
        steps.mean(list(spec.mean) * (spec.channels // len(spec.mean)))
    if any(s != 1 for s in spec.std):
        steps.scale(list(spec.std) * (spec.channels // len(spec.std)))
    built = before.build()
    built.input(0).get_tensor().set_names({spec.name})
    size = (spec.shape[0], spec.height, spec.width, spec.channels)
    out = replace(spec, shape=size, dtype="uint8", layout="NHWC", mean=(0.0,), std=(1.0,))
    said_step = (
        f"fold preprocessing: uint8 NHWC in, mean {list(spec.mean)}, std {list(spec.std)}, {spec.layout} inside "
        "(openvino PrePostProcessor)"
    )
    return built, out, [said_step]


def constant(value: Any) -> NDArray[np.float32] | None:
    """Return the float numbers behind a port: a constant, perhaps stored in half precision or in another shape."""
    node = value.get_node()
    if node.get_type_name() == "Constant":
        data = np.asarray(node.data)
        return data.astype(np.float32) if data.dtype.kind == "f" else None
    if node.get_type_name() in ("Convert", "Reshape") and value.get_partial_shape().is_static:
        inner = constant(node.input_value(0))
        return None if inner is None else inner.reshape(tuple(value.get_shape()))
    return None

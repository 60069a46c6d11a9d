"""ONNX in: load without following anything outside the file, fix its shapes, recognise what its graph shows."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference

from converters import graph as g
from converters.frontends import parity, recognise
from converters.frontends.base import Source, TensorInfo, fix_sizes, nan_weights, one_image
from converters.frontends.ops import of_onnx
from converters.onnx_source import MAX_BYTES, all_nodes, lower_ir, quantized, rename, sort_nodes, tensors, whole
from edge_sdk.errors import BackendError, ConversionError, UsageError

STANDARD = frozenset({"", "ai.onnx", "ai.onnx.ml"})
INPUT_TYPES = ("float32", "float16", "uint8", "int8", "int16", "int32")


def inspect(path: str, work: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `Source` of an ONNX file as JSON and write the model with fixed shapes into `work`.

    Args:
        options: `layout` and `size` (width, height), where the file does not tell.

    Raises:
        ConversionError: the file is damaged, lacks a file beside it, holds non-finite weights or no image input.
        BackendError: it needs operators of another domain.
        UsageError: its layout or size cannot be read from the file.
    """
    raw = Path(path).read_bytes()
    inside, beside = whole(Path(path).name, raw, Path(path).parent)
    model, source = fixed(Path(path).name, inside, options)
    source = replace(source, path=path, sha256=hashlib.sha256(raw + bytes.fromhex(beside)).hexdigest())
    if quantized(model):
        line = "its layers have integer weights already: int8 keeps them"
        source = replace(source, quantized=True, precision="int8", because=(*source.because, line))
    return write(model, source, work).to_json()


def fixed(name: str, raw: bytes, options: Mapping[str, Any]) -> tuple[Any, Source]:
    """Return a model with fixed shapes and its `Source`, with nothing recognised, no path, hash or form yet.

    Raises:
        ConversionError, BackendError, UsageError: as for `inspect`.
    """
    layout, size = options.get("layout"), options.get("size")
    model = load(name, raw)
    _fix_shapes(model, layout, size)
    image = _find_input(model)
    outputs = _outputs(model)
    found = TensorInfo(name=image.name, shape=_static(image), dtype=_dtype(image))
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    source = Source(
        path="",
        format="onnx",
        sha256="",
        input=found,
        layout=layout or layout_of(found),
        outputs=outputs,
        opset=opset,
    )
    return model, source


def check_opset(model: Any, asked: int | None) -> int:
    """Return the opset that an exporter wrote.

    Raises:
        ConversionError: another one was asked for.
    """
    written = next((int(o.version) for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    if asked is not None and written != asked:
        raise ConversionError(f"--opset {asked}: the exporter wrote opset {written}", hint="leave --opset out")
    return written


def write(model: Any, source: Source, work: Path) -> Source:
    """Write the model as the form `onnx` into `work` and return the source with what its graph shows."""
    path = work / "source.onnx"
    onnx.save(model, str(path))
    source = replace(source, forms={**source.forms, "onnx": str(path)})

    def run(value: Any) -> Mapping[str, Any]:
        return parity.onnx_run(model)(value)

    return recognise.recognise(of_onnx(model), source, run)


def load(name: str, raw: bytes) -> Any:
    """Parse an ONNX file and refuse what must not travel.

    Raises:
        ConversionError, BackendError: as for `inspect`.
    """
    if len(raw) > MAX_BYTES:
        raise ConversionError(f"`{name}` has {len(raw)} bytes, an ONNX file holds at most 2 GiB")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(raw)
    except Exception:
        raise ConversionError(
            f"`{name}` is not an ONNX model, or it is cut short", hint="export or copy it again"
        ) from None
    if not model.graph.node:
        raise ConversionError(f"`{name}` has an empty graph", hint="export it again")
    _check_domains(name, model)
    _check_tensors(name, model)
    sort_nodes(model)
    rename(model, g.PREFIX)
    lower_ir(model)
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        line = str(error).strip().splitlines()[0][:200]
        raise ConversionError(f"`{name}` is not a valid ONNX model: {line}", hint="export it again") from None
    constants = {t.name for t in model.graph.initializer}
    keep = [i for i in model.graph.input if i.name not in constants]
    model.graph.ClearField("input")
    model.graph.input.extend(keep)
    return model


def _check_domains(name: str, model: Any) -> None:
    known = {f.domain for f in model.functions} | STANDARD
    custom = sorted({n.domain for n in all_nodes(model.graph)} - known)
    if custom:
        node = next(n for n in all_nodes(model.graph) if n.domain == custom[0])
        raise BackendError(
            f"`{name}` needs the operator `{node.op_type}` of the domain `{custom[0]}`, which no back-end here has",
            hint="export the model without it, or cut the graph before it",
        )


def _check_tensors(name: str, model: Any) -> None:
    for tensor in tensors(model):
        if tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE):
            values = numpy_helper.to_array(tensor)
            if not np.isfinite(values).all() and np.isnan(values).any():
                bad = int(np.isnan(values).sum())
                raise nan_weights(name, tensor.name, bad)


def _fix_shapes(model: Any, layout: str | None, size: tuple[int, int] | None) -> None:
    for value in g.image_inputs(model):
        g.set_dims(value, fix_sizes(value.name, g.dims(value), layout, size))
    constants = {t.name for t in model.graph.initializer} | {i.name for i in g.image_inputs(model)}
    shapes = [o for o in model.graph.output if o.name not in constants]
    for value in shapes:
        value.type.tensor_type.ClearField("shape")
    model.graph.ClearField("value_info")
    try:
        inferred = shape_inference.infer_shapes(model, data_prop=True)
    except Exception as error:
        raise ConversionError(f"the shapes of the model contradict each other: {str(error)[:200]}") from None
    model.CopyFrom(inferred)


def _find_input(model: Any) -> Any:
    inputs = g.image_inputs(model)
    images = [i for i in inputs if len(g.dims(i)) == 4 and {g.dims(i)[1], g.dims(i)[3]} & {1, 3}]
    if len(inputs) != 1 or len(images) != 1:
        raise one_image(", ".join(f"{i.name} {list(g.dims(i))}" for i in inputs))
    if _dtype(images[0]) not in INPUT_TYPES:
        raise ConversionError(
            f"the input `{images[0].name}` has dtype {_dtype(images[0])}, expected float32 or uint8",
            hint="export it in single precision (PyTorch: model.float())",
        )
    return images[0]


def layout_of(info: TensorInfo) -> str:
    """Return where the channels of an image input are.

    Raises:
        UsageError: both places have 1 or 3.
    """
    first, last = info.shape[1] in (1, 3), info.shape[3] in (1, 3)
    if first == last:
        raise UsageError(
            f"the input {list(info.shape)} may be NCHW or NHWC", hint="say which with --layout NCHW or --layout NHWC"
        )
    return "NCHW" if first else "NHWC"


def _outputs(model: Any) -> tuple[TensorInfo, ...]:
    """Return the outputs; sizes that inference left open are measured with one run on zeros."""
    open_sizes = any(not isinstance(d, int) for o in model.graph.output for d in g.dims(o))
    if not open_sizes and all(g.dims(o) for o in model.graph.output):
        return tuple(TensorInfo(name=o.name, shape=_static(o), dtype=_dtype(o)) for o in model.graph.output)
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    image = g.image_inputs(model)[0]
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        values = session.run(None, {image.name: np.zeros(_static(image), _dtype(image))})
    except Exception as error:
        line = str(error).strip().splitlines()[0][:200]
        raise ConversionError(f"the model does not run: {line}", hint="export it with static shapes") from None
    out = []
    for value, array in zip(model.graph.output, values, strict=True):
        g.set_dims(value, array.shape)
        out.append(TensorInfo(name=value.name, shape=tuple(array.shape), dtype=array.dtype.name))
    return tuple(out)


def _static(value: Any) -> tuple[int, ...]:
    return tuple(int(d) for d in g.dims(value) if isinstance(d, int))


def _dtype(value: Any) -> str:
    try:
        return str(np.dtype(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)).name)
    except (KeyError, TypeError):
        return "unknown"

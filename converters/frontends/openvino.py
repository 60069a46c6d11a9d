"""OpenVINO IR in: .xml with its .bin beside it; it has no other form."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import edge_sdk.runtimes.no_analytics  # noqa: F401  (before openvino)

# isort: split
import openvino as ov

from converters import graph as g
from converters.frontends import onnx as onnx_frontend
from converters.frontends import recognise
from converters.frontends.base import Source, TensorInfo, fix_sizes, nan_weights, one_image
from converters.frontends.ops import Node, OpGraph
from edge_sdk.errors import ArtifactError, ConversionError, EdgeError
from edge_sdk.runtimes.openvino import OpenVinoRuntime

_WORDS = {
    "Convolution": "Conv",
    "GroupConvolution": "Conv",
    "ConvolutionBackpropData": "ConvTranspose",
    "GroupConvolutionBackpropData": "ConvTranspose",
    "LSTMSequence": "LSTM",
    "GRUSequence": "GRU",
    "SoftMax": "Softmax",
    "Softmax": "Softmax",
    "VariadicSplit": "Split",
    "StridedSlice": "Slice",
    "Convert": "Cast",
    "FakeQuantize": "QuantizeLinear",
    "AvgPool": "AveragePool",
    "ReLU": "Relu",
    "Multiply": "Mul",
    "Power": "Pow",
    "Subtract": "Sub",
}
"""OpenVINO's operations in ONNX's words, where they differ; TopK of one value is an ArgMax."""


def inspect(path: str, work: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `Source` of an OpenVINO IR as JSON and write its form `openvino` into `work`.

    Args:
        options: `size` (width, height) and `layout`, where the file does not tell.

    Raises:
        ConversionError: the .bin is missing or belongs to another .xml, weights are NaN, or there is no single image.
        BackendError: the IR is older than version 10, or an operation is unknown.
        UsageError: the size of its input is open.
    """
    file = Path(path)
    weights = file.with_suffix(".bin")
    _check_parts(file, weights)
    copy = work / "source.xml"
    shutil.copyfile(file, copy)
    shutil.copyfile(weights, copy.with_suffix(".bin"))
    model = _read(file, copy)
    if _fix_input(model, options):
        # Its weights are mapped from the copy, so it is written beside that.
        copy = work / "source_fixed.xml"
        ov.save_model(model, str(copy), compress_to_fp16=False)
    engine = _open(file, copy)
    try:
        image = engine.inputs[0]
        found = TensorInfo(name=image.name, shape=tuple(int(d or 1) for d in image.shape), dtype=image.dtype)
        if found.dtype not in onnx_frontend.INPUT_TYPES:
            raise ConversionError(f"the input `{found.name}` has dtype {found.dtype}, expected float32 or uint8")
        quantized = any(n.get_type_name() == "FakeQuantize" for n in model.get_ordered_ops())
        source = Source(
            path=path,
            format="openvino",
            sha256=hashlib.sha256(file.read_bytes() + weights.read_bytes()).hexdigest(),
            input=found,
            layout=options.get("layout") or onnx_frontend.layout_of(found),
            outputs=tuple(
                TensorInfo(name=o.name, shape=tuple(int(d or 1) for d in o.shape), dtype=o.dtype)
                for o in engine.outputs
            ),
            forms={"openvino": str(copy)},
            reference="openvino",
            absent={"onnx": "an OpenVINO IR cannot be turned back into ONNX"},
            quantized=quantized,
            precision="int8" if quantized else "fp32",
        )
        source = recognise.recognise(_op_graph(model, source), source, lambda value: engine.infer({found.name: value}))
    finally:
        engine.close()
    return replace(source, path=path).to_json()


def _check_parts(file: Path, weights: Path) -> None:
    if not weights.is_file():
        raise ConversionError(
            f"`{file.name}` has no weights: `{weights.name}` is not beside it", hint="copy both files into one folder"
        )
    text = file.read_text(encoding="utf-8", errors="replace")
    if not text.rstrip().endswith("</net>"):
        raise ConversionError(f"`{file.name}` is cut short: it does not end with </net>", hint="copy it again")
    wanted = max(
        (int(o) + int(s) for o, s in re.findall(r'offset="(\d+)"[^>]*?\bsize="(\d+)"', text)),
        default=0,
    )
    have = weights.stat().st_size
    if have < wanted:
        raise ConversionError(
            f"`{weights.name}` has {have} bytes, `{file.name}` reads up to {wanted}",
            hint="it is cut short or belongs to another model: copy both files again",
        )


def _read(file: Path, copy: Path) -> Any:
    _open(file, copy).close()
    model = ov.Core().read_model(str(copy))
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Constant" or not node.get_element_type().is_real():
            continue
        values = np.asarray(node.get_data(), np.float32)
        if np.isnan(values).any():
            raise nan_weights(file.name, node.get_friendly_name(), int(np.isnan(values).sum()))
    return model


def _open(file: Path, copy: Path) -> OpenVinoRuntime:
    try:
        return OpenVinoRuntime(copy, {"threads": 1})
    except EdgeError as error:
        kind = ConversionError if isinstance(error, ArtifactError) else type(error)
        raise kind(error.message.replace(copy.name, file.name), hint=error.hint) from None


def _fix_input(model: Any, options: Mapping[str, Any]) -> bool:
    """Check that there is one image input and give it a fixed size; return whether that changed it."""
    shapes = [
        [d.get_length() if d.is_static else None for d in i.get_partial_shape()]
        for i in model.inputs
        if i.get_partial_shape().rank.is_static
    ]
    if len(model.inputs) != 1 or len(shapes) != 1 or len(shapes[0]) != 4:
        raise one_image(", ".join(f"{i.get_any_name()} {i.get_partial_shape()}" for i in model.inputs))
    name = model.inputs[0].get_any_name()
    fixed = fix_sizes(name, shapes[0], options.get("layout"), options.get("size"))
    if list(fixed) == shapes[0]:
        return False
    model.reshape({name: list(fixed)})
    return True


def _op_graph(model: Any, source: Source) -> OpGraph:
    """Return the graph; the tensors before the results have the names of the source's outputs."""
    names = {
        _port(result.input_value(0)): output.name
        for result, output in zip(model.get_results(), source.outputs, strict=True)
    }

    def name(port: Any) -> str:
        return names.get(_port(port), _port(port))

    nodes = [
        Node(
            _word(node),
            tuple(name(v) for v in node.input_values()),
            tuple(name(o) for o in node.outputs()),
            _whole_numbers(node),
        )
        for node in model.get_ordered_ops()
        if node.get_type_name() not in ("Result", "Parameter")
    ]
    shapes = {
        name(o): tuple(o.get_shape())
        for node in model.get_ordered_ops()
        for o in node.outputs()
        if o.get_partial_shape().is_static
    }
    return OpGraph(nodes, shapes)


def _port(port: Any) -> str:
    return f"{port.get_node().get_friendly_name()}:{port.get_index()}"


def _word(node: Any) -> str:
    kind = str(node.get_type_name())
    if kind == "Add" and _is_bias(node):
        return "Conv"
    if kind == "TopK" and node.output(0).get_partial_shape().is_static:
        data, found = node.input(0).get_shape(), node.output(0).get_shape()
        return "ArgMax" if sorted(set(data) - set(found)) and 1 in found else kind
    return _WORDS.get(kind, kind)


def _is_bias(node: Any) -> bool:
    """Return whether the node adds a constant to what a weighted operation gives, which ONNX does inside it."""
    made = [v.get_node() for v in node.input_values()]
    weighted = [n for n in made if _WORDS.get(n.get_type_name(), n.get_type_name()) in g.WEIGHT_OPS]
    return len(weighted) == 1 and all(_is_constant(n) for n in made if n is not weighted[0])


def _is_constant(node: Any) -> bool:
    while node.get_type_name() in ("Convert", "Reshape") and node.get_input_size():
        node = node.input_value(0).get_node()
    return bool(node.get_type_name() == "Constant")


def _whole_numbers(node: Any) -> dict[str, int]:
    if node.get_type_name() != "DetectionOutput":
        return {}
    return {str(k): int(v) for k, v in node.get_attributes().items() if isinstance(v, (bool, int))}

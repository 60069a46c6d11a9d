"""TFLite in: the file as it is for LiteRT, ONNX beside it where tf2onnx can."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from flatbuffers import flexbuffers

from converters import tflite_graph
from converters.frontends import onnx as onnx_frontend
from converters.frontends import parity, recognise, tflite_metadata
from converters.frontends.base import Preprocess, Source, TensorInfo, fix_sizes, nan_weights, one_image
from converters.frontends.ops import Node, OpGraph
from edge_sdk.errors import ArtifactError, ConversionError, EdgeError
from edge_sdk.runtimes.base import TensorSpec, dequantize
from edge_sdk.runtimes.litert import LiteRtRuntime

_WORDS = {
    "CONV_2D": "Conv",
    "DEPTHWISE_CONV_2D": "Conv",
    "CONV_3D": "Conv",
    "TRANSPOSE_CONV": "ConvTranspose",
    "FULLY_CONNECTED": "Gemm",
    "BATCH_MATMUL": "MatMul",
    "UNIDIRECTIONAL_SEQUENCE_LSTM": "LSTM",
    "LOGISTIC": "Sigmoid",
    "SOFTMAX": "Softmax",
    "EXP": "Exp",
    "CONCATENATION": "Concat",
    "PACK": "Concat",
    "UNPACK": "Split",
    "SPLIT": "Split",
    "SPLIT_V": "Split",
    "RESHAPE": "Reshape",
    "TRANSPOSE": "Transpose",
    "SQUEEZE": "Squeeze",
    "EXPAND_DIMS": "Unsqueeze",
    "SLICE": "Slice",
    "STRIDED_SLICE": "Slice",
    "GATHER": "Gather",
    "CAST": "Cast",
    "QUANTIZE": "QuantizeLinear",
    "DEQUANTIZE": "DequantizeLinear",
    "MEAN": "ReduceMean",
    "AVERAGE_POOL_2D": "AveragePool",
    "RELU": "Relu",
    "ADD": "Add",
    "ARG_MAX": "ArgMax",
}
"""TFLite's operations in ONNX's words, those that rules of recognition read."""
_KINDS = {number: word for word, number in vars(tflite_graph.OP).items() if not word.startswith("_")}
_QUANTIZED = ("int8", "int16x8", "dynamic")


def inspect(path: str, work: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `Source` of a TFLite file as JSON; write its forms `tflite` and, where it can be had, `onnx`.

    Args:
        options: `size` (width, height) and `layout`, where the file does not tell; `opset`.

    Raises:
        ConversionError: the file is damaged, holds NaN or no single image input.
        BackendError: LiteRT has not one of its operations.
        UsageError: the size of its input is open.
    """
    file = Path(path)
    raw = file.read_bytes()
    copy = work / "source.tflite"
    copy.write_bytes(raw)
    try:
        model = tflite_graph.read(file)
    except ConversionError:
        _open(file.name, copy).close()  # LiteRT says more exactly what is wrong
        raise
    _check_weights(file.name, model)
    _fix_input(model, copy, options)
    engine = _open(file.name, copy)
    try:
        source = _describe(path, raw, model, engine, options)
        source = replace(source, forms={"tflite": str(copy)}, reference="tflite")
        source = recognise.recognise(_op_graph(model), source, _runner(engine))
        source = _with_metadata(source, raw, model)
        rounds = source.quantized or any(n.op == "QuantizeLinear" for n in _op_graph(model).nodes)
        source = _with_onnx(source, copy, work, engine, options, rounds=rounds)
    finally:
        engine.close()
    return source.to_json()


def _check_weights(name: str, model: Any) -> None:
    for index, tensor in enumerate(model.subgraphs[0].tensors):
        if tensor.type not in (tflite_graph.KIND.FLOAT32, tflite_graph.KIND.FLOAT16):
            continue
        try:
            values = tflite_graph.constant(model, index)
        except (ValueError, IndexError):
            raise ConversionError(
                f"`{name}` is damaged: the tensor `{tflite_graph.name(tensor)}` has not the bytes its shape asks for",
                hint="export or copy it again",
            ) from None
        if values is not None and np.isnan(values).any():
            raise nan_weights(name, tflite_graph.name(tensor), int(np.isnan(values).sum()))


def _fix_input(model: Any, copy: Path, options: Mapping[str, Any]) -> None:
    """Check that there is one image input; where its size is open, write the copy with the size of the flags."""
    graph = model.subgraphs[0]
    inputs = [graph.tensors[i] for i in graph.inputs]
    shapes = [[int(d) for d in (t.shape if t.shape is not None else [])] for t in inputs]
    images = [s for s in shapes if len(s) == 4 and {s[1], s[3]} & {1, 3}]
    if len(inputs) != 1 or len(images) != 1:
        raise one_image(", ".join(f"{tflite_graph.name(t)} {s}" for t, s in zip(inputs, shapes, strict=True)))
    signature = inputs[0].shapeSignature
    if signature is None or len(signature) != 4 or all(int(d) >= 0 for d in signature[1:]):
        return
    sizes = [int(d) if int(d) >= 0 else None for d in signature]
    fixed = fix_sizes(tflite_graph.name(inputs[0]), sizes, options.get("layout"), options.get("size"))
    inputs[0].shape, inputs[0].shapeSignature = list(fixed), list(fixed)
    tflite_graph.save(model, copy)


def _open(name: str, copy: Path) -> LiteRtRuntime:
    try:
        return LiteRtRuntime(copy, {"threads": 1})
    except EdgeError as error:
        kind = ConversionError if isinstance(error, ArtifactError) else type(error)
        raise kind(error.message.replace(copy.name, name), hint=error.hint) from None


def _info(spec: TensorSpec) -> TensorInfo:
    return TensorInfo(
        name=spec.name,
        shape=tuple(int(d or 1) for d in spec.shape),
        dtype=spec.dtype,
        scale=spec.scale,
        zero=spec.zero,
    )


def _describe(path: str, raw: bytes, model: Any, engine: LiteRtRuntime, options: Mapping[str, Any]) -> Source:
    image = _info(engine.inputs[0])
    if image.dtype not in onnx_frontend.INPUT_TYPES:
        raise ConversionError(f"the input `{image.name}` has dtype {image.dtype}, expected float32, uint8 or int8")
    precision = tflite_graph.precision(model)
    known = integer_pixels(image)
    because = [f"its weights are {precision} already"] if precision != "fp32" else []
    if known is not None:
        because.append(f"the input's scale {image.scale:g} and zero {image.zero} make its integers the pixels")
    return Source(
        path=path,
        format="tflite",
        sha256=hashlib.sha256(raw).hexdigest(),
        input=image,
        layout=options.get("layout") or onnx_frontend.layout_of(image),
        outputs=tuple(_info(o) for o in engine.outputs),
        preprocess=known or Preprocess(),
        because=tuple(because),
        quantized=precision in _QUANTIZED,
        precision=precision,
    )


def integer_pixels(image: TensorInfo) -> Preprocess | None:
    """Return mean and std that make an integer input the pixels (minus 128 for int8), if its range says it is so.

    The integers stand for one of the ranges that images are scaled to: 0 to 1, -1 to 1, 0 to 255, within 1 %.
    """
    if np.dtype(image.dtype).kind not in "iu" or np.dtype(image.dtype).itemsize != 1 or image.scale is None:
        return None
    lowest = int(np.iinfo(image.dtype).min)
    zero = image.zero or 0
    low, high = (lowest - zero) * image.scale, (lowest + 255 - zero) * image.scale
    for wanted in ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)):
        width = wanted[1] - wanted[0]
        if abs(low - wanted[0]) <= 0.01 * width and abs(high - wanted[1]) <= 0.01 * width:
            return Preprocess(mean=(float(zero - lowest),), std=(1 / image.scale,))
    return None


def _with_metadata(source: Source, raw: bytes, model: Any) -> Source:
    buffers = {bytes(m.name or b""): m.buffer for m in model.metadata or []}
    index = buffers.get(tflite_metadata.NAME)
    data = model.buffers[index].data if index is not None else None
    found = tflite_metadata.read(raw, bytes(bytearray(data)) if data is not None else None)
    known, because = source.preprocess, []
    if found.color is not None and source.channels == (1 if found.color == "gray" else 3):
        known = replace(known, color=found.color)
        because.append(f"metadata: the input is {found.color}")
    if found.mean and found.std and source.input.dtype == "float32":
        known = replace(known, mean=found.mean, std=found.std)
        because.append(f"metadata: mean {list(found.mean)}, std {list(found.std)}")
    labels = _fitting(found.labels, source.classes)
    if labels:
        because.append(f"metadata: {len(labels)} labels")
    return replace(source, preprocess=known, labels=labels, because=(*source.because, *because))


def _fitting(labels: tuple[str, ...], classes: int | None) -> tuple[str, ...]:
    """Return the labels where they are as many as the classes; a first one for the background may be left out."""
    if classes is None or len(labels) == classes:
        return labels if classes is not None else ()
    return labels[1:] if len(labels) == classes + 1 and labels[0].strip("? ").lower() in ("", "background") else ()


def _with_onnx(
    source: Source, copy: Path, work: Path, engine: LiteRtRuntime, options: Mapping[str, Any], *, rounds: bool
) -> Source:
    """Return the source with the form `onnx`, or with the reason why there is none."""
    missing = next((p for p in ("tensorflow", "tf2onnx") if find_spec(p) is None), None)
    if missing is not None:
        return replace(source, absent={"onnx": f"`{missing}` is not installed: pip install 'edge-sdk[tensorflow]'"})
    try:
        line, opset = _bridge(source, copy, work, engine, options, rounds=rounds)
    except EdgeError as error:
        return replace(source, absent={"onnx": error.message})
    forms = {**source.forms, "onnx": str(work / "source.onnx")}
    return replace(source, forms=forms, opset=opset, because=(*source.because, line))


def _bridge(
    source: Source, copy: Path, work: Path, engine: LiteRtRuntime, options: Mapping[str, Any], *, rounds: bool
) -> tuple[str, int]:
    from converters.frontends import tf_bridge

    model = tf_bridge.from_tflite(copy, options.get("opset"), dequantize=source.quantized)
    names = [o.name for o in source.outputs]
    _order(model, names)
    _float_outputs(model)
    fixed, found = onnx_frontend.fixed(Path(source.path).name, model.SerializeToString(), options)
    if (found.input.name, found.input.dtype) != (source.input.name, source.input.dtype):
        raise ConversionError(f"tf2onnx changed the input to {found.input.name} {found.input.dtype}")
    forms = (_runner(engine), parity.onnx_run(fixed))
    how = f"TFLite to ONNX opset {found.opset}{', in float arithmetic' if source.quantized else ''}"
    if source.decoder == "ssd_pp":
        # Boxes that the detector's own suppression put in order change places with the rounding.
        line = parity.strongest(source.input, source.outputs[2], *forms, names=how)
    else:
        line = parity.require(parity.compare(source.input, source.outputs, *forms, rounds=rounds), how, hint="")
    onnx.save(fixed, str(work / "source.onnx"))
    return line, found.opset


def _runner(engine: LiteRtRuntime) -> Callable[[Any], Mapping[str, Any]]:
    """Return the model on one input; quantized outputs as the floats they stand for."""
    specs = {o.name: o for o in engine.outputs}

    def run(value: Any) -> Mapping[str, Any]:
        values = engine.infer({engine.inputs[0].name: value})
        return {k: np.array(v) if specs[k].scale is None else dequantize(v, specs[k]) for k, v in values.items()}

    return run


def _order(model: Any, outputs: list[str]) -> None:
    """Put the outputs into the source's order; tf2onnx keeps the names."""
    by_name = {o.name: o for o in model.graph.output}
    if len(model.graph.input) != 1 or not set(outputs) <= set(by_name):
        raise ConversionError(f"tf2onnx renamed the outputs to {', '.join(by_name)}")
    ordered = [by_name[n] for n in outputs]
    model.graph.ClearField("output")
    model.graph.output.extend(ordered)


def _float_outputs(model: Any) -> None:
    """Give outputs that are quantized in the last step as floats: int8 back-ends end in steps of their own."""
    for output in model.graph.output:
        last = next((n for n in model.graph.node if output.name in n.output), None)
        if last is None or last.op_type != "QuantizeLinear":
            continue
        inner = last.input[0]
        model.graph.node.remove(last)
        for node in model.graph.node:
            for names in (node.input, node.output):
                for index, name in enumerate(names):
                    if name == inner:
                        names[index] = output.name
        output.type.tensor_type.elem_type = onnx.TensorProto.FLOAT


def _op_graph(model: Any) -> OpGraph:
    graph = model.subgraphs[0]
    names = [tflite_graph.name(t) for t in graph.tensors]
    nodes = [
        Node(
            _word(model, op),
            tuple(names[i] for i in op.inputs if i >= 0),
            tuple(names[i] for i in op.outputs),
            _custom_options(op),
        )
        for op in graph.operators
    ]
    shapes = {
        name: tuple(int(d) for d in tensor.shape)
        for name, tensor in zip(names, graph.tensors, strict=True)
        if tensor.shape is not None
    }
    return OpGraph(nodes, shapes)


def _word(model: Any, op: Any) -> str:
    entry = model.operatorCodes[op.opcodeIndex]
    if entry.customCode:
        return bytes(entry.customCode).decode(errors="replace")
    kind = _KINDS.get(tflite_graph.code(model, op), "?")
    return str(_WORDS.get(kind, kind))


def _custom_options(op: Any) -> dict[str, int]:
    """Return the whole numbers among a custom operation's options; none where they are not in FlexBuffers' form."""
    if op.customOptions is None or len(op.customOptions) == 0:
        return {}
    try:
        found = flexbuffers.Loads(bytes(bytearray(op.customOptions)))
    except (struct.error, IndexError, ValueError, TypeError, OverflowError, RecursionError):
        return {}
    items = found.items() if isinstance(found, dict) else ()
    return {str(k): int(v) for k, v in items if isinstance(v, int)}

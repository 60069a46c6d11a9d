"""Edits of TFLite graphs: read, write, find the tail after the last weights, put operations before the input."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

from edge_sdk.errors import BackendError, ConversionError
from edge_sdk.schemas.manifest import DType

OP = schema.BuiltinOperator
KIND = schema.TensorType
WEIGHT_OPS = frozenset(
    {OP.CONV_2D, OP.DEPTHWISE_CONV_2D, OP.TRANSPOSE_CONV, OP.CONV_3D, OP.FULLY_CONNECTED, OP.BATCH_MATMUL}
    | {OP.LSTM, OP.UNIDIRECTIONAL_SEQUENCE_LSTM, OP.UNIDIRECTIONAL_SEQUENCE_RNN, OP.SVDF}
)
JOINTS = frozenset({OP.ADD, OP.SUB, OP.CONCATENATION})
"""Operations in which branches meet."""
DTYPES: dict[int, DType] = {
    KIND.FLOAT32: "float32",
    KIND.FLOAT16: "float16",
    KIND.INT8: "int8",
    KIND.UINT8: "uint8",
    KIND.INT16: "int16",
    KIND.INT32: "int32",
    KIND.INT64: "int64",
    KIND.BOOL: "bool",
}
PREFIX = "edge_"
SIGNATURE = "serving_default"


def load(path: Path) -> Any:
    """Read a TFLite file of one subgraph as the object tree of its schema.

    Raises:
        ConversionError: it is damaged.
        BackendError: it has several subgraphs, as models with control flow have.
    """
    model = read(path)
    if len(model.subgraphs) != 1:
        raise BackendError(
            f"`{path.name}` has {len(model.subgraphs)} subgraphs, this back-end edits models with one",
            hint="export the part without control flow",
        )
    return model


def read(path: Path) -> Any:
    """Read a TFLite file as the object tree of its schema.

    Raises:
        ConversionError: it is damaged.
    """
    raw = path.read_bytes()
    if raw[4:8] != b"TFL3":
        raise ConversionError(f"`{path.name}` is no TFLite model: it has not the mark TFL3", hint="export it again")
    try:
        model = flatbuffer_utils.read_model_from_bytearray(bytearray(raw))
    except Exception as error:
        raise ConversionError(
            f"`{path.name}` is damaged: {type(error).__name__}", hint="export or copy it again"
        ) from None
    if not model.subgraphs:
        raise ConversionError(f"`{path.name}` has no graph", hint="export it again")
    for entry in model.operatorCodes:
        # Old files have the number in the deprecated field only.
        entry.builtinCode = max(entry.builtinCode, entry.deprecatedBuiltinCode)
    return model


def save(model: Any, path: Path) -> None:
    """Write the model with one signature that names its tensors, and without metadata, which differs from tool to tool
    and day to day."""
    _forget_unused(model)
    graph = model.subgraphs[0]
    signature = schema.SignatureDefT()
    signature.signatureKey = SIGNATURE.encode()
    signature.subgraphIndex = 0
    signature.inputs = [_named(graph, i) for i in graph.inputs]
    signature.outputs = [_named(graph, i) for i in graph.outputs]
    model.signatureDefs = [signature]
    model.metadata = []
    model.metadataBuffer = []
    model.description = b"edge-sdk"
    path.write_bytes(bytes(flatbuffer_utils.convert_object_to_bytearray(model)))


def _named(graph: Any, index: int) -> Any:
    entry = schema.TensorMapT()
    entry.name = graph.tensors[index].name
    entry.tensorIndex = index
    return entry


def _forget_unused(model: Any) -> None:
    """Drop tensors that nothing reads or makes, and empty the buffers of none."""
    graph = model.subgraphs[0]
    ends = [int(i) for i in [*graph.inputs, *graph.outputs]]
    inner = [op.intermediates for op in graph.operators if op.intermediates is not None]
    listed = [op.inputs for op in graph.operators] + [op.outputs for op in graph.operators] + inner
    read = {int(i) for row in listed for i in row if int(i) >= 0} | set(ends)
    kept = [k for k in range(len(graph.tensors)) if k in read]
    place = {old: new for new, old in enumerate(kept)} | {-1: -1}
    graph.tensors = [graph.tensors[k] for k in kept]
    graph.inputs = [place[int(i)] for i in graph.inputs]
    graph.outputs = [place[int(i)] for i in graph.outputs]
    for op in graph.operators:
        op.inputs = [place[int(i)] for i in op.inputs]
        op.outputs = [place[int(i)] for i in op.outputs]
        if op.intermediates is not None:
            op.intermediates = [place[int(i)] for i in op.intermediates]
    used = {t.buffer for t in graph.tensors}
    for index, buffer in enumerate(model.buffers):
        if index not in used:
            buffer.data = None


def code(model: Any, op: Any) -> int:
    """Return the builtin operator of `op`."""
    return int(model.operatorCodes[op.opcodeIndex].builtinCode)


def name(tensor: Any) -> str:
    """Return a tensor's name."""
    return bytes(tensor.name or b"").decode(errors="replace")


def constant(model: Any, index: int) -> np.ndarray[Any, Any] | None:
    """Return the value of a tensor that is stored in the file, or None."""
    tensor = model.subgraphs[0].tensors[index]
    data = model.buffers[tensor.buffer].data
    if data is None or len(data) == 0 or DTYPES.get(tensor.type) is None:
        return None
    shape = [int(d) for d in tensor.shape] if tensor.shape is not None else []
    return np.frombuffer(bytes(bytearray(data)), DTYPES[tensor.type]).reshape(shape)


def precision(model: Any) -> str:
    """Return what the weights and activations of the file are: fp32, fp16, dynamic, int8 or int16x8."""
    graph = model.subgraphs[0]
    found = "fp32"
    for op in graph.operators:
        if code(model, op) not in WEIGHT_OPS or len(op.inputs) < 2:
            continue
        data, weight = graph.tensors[op.inputs[0]], graph.tensors[op.inputs[1]]
        if weight.type in (KIND.INT8, KIND.UINT8, KIND.INT4):
            if data.type == KIND.FLOAT32:
                found = "dynamic"
            else:
                return "int16x8" if data.type == KIND.INT16 else "int8"
    halves = any(t.type == KIND.FLOAT16 for t in graph.tensors)
    return "fp16" if found == "fp32" and halves else found


def scope(model: Any, op: Any) -> str:
    """Return the name by which a recipe finds an operation: those of its outputs."""
    return ";".join(name(model.subgraphs[0].tensors[i]) for i in op.outputs)


def producers(model: Any) -> dict[int, Any]:
    """Return the operation that makes each tensor, by its index."""
    return {int(i): op for op in model.subgraphs[0].operators for i in op.outputs}


def last(model: Any, layers: int) -> list[Any]:
    """Return the operations between the outputs and the weighted ones that come before the last `layers` of them.

    With 0 layers it is the tail: decode arithmetic, softmax, reshapes.
    """
    maker = producers(model)
    found: dict[int, Any] = {}
    frontier = [int(i) for i in model.subgraphs[0].outputs]
    for ring in range(layers + 1):
        weighted: list[Any] = []
        while frontier:
            op = maker.get(frontier.pop())
            if op is None or id(op) in found:
                continue
            if code(model, op) in WEIGHT_OPS:
                if ring < layers:
                    found[id(op)] = op
                    weighted.append(op)
                continue
            found[id(op)] = op
            frontier.extend(int(i) for i in op.inputs if i >= 0)
        frontier = [int(op.inputs[0]) for op in weighted]
    return list(found.values())


def head(model: Any, layers: int) -> list[Any]:
    """Return the operations with at most `layers` weighted ones before them on every path, themselves included."""
    if layers == 0:
        return []
    graph = model.subgraphs[0]
    depth = dict.fromkeys((int(i) for i in graph.inputs), 0)
    found = []
    for op in graph.operators:
        before = [depth[int(i)] for i in op.inputs if int(i) in depth]
        own = max(before, default=0) + (code(model, op) in WEIGHT_OPS)
        if before:
            depth.update(dict.fromkeys((int(i) for i in op.outputs), own))
            if own <= layers:
                found.append(op)
    return found


def beside(model: Any, layers: Collection[str]) -> list[Any]:
    """Return the operations without weights between the named layers and the weighted ones before and after them.

    A layer that stays float wins nothing where its input was rounded before it and its output is rounded after it.
    Sums and concatenations are the last that are taken, so that one layer does not take the trunk of a residual network
    with it.
    """
    maker = producers(model)
    readers: dict[int, list[Any]] = {}
    for op in model.subgraphs[0].operators:
        for index in op.inputs:
            readers.setdefault(int(index), []).append(op)

    def before(op: Any) -> list[Any]:
        return [maker[int(i)] for i in op.inputs if int(i) in maker]

    def after(op: Any) -> list[Any]:
        return [reader for i in op.outputs for reader in readers.get(int(i), [])]

    found: dict[int, Any] = {}
    for step in (before, after):
        frontier = [op for op in model.subgraphs[0].operators if scope(model, op) in layers]
        seen: set[int] = set()
        while frontier:
            for op in step(frontier.pop()):
                if id(op) in seen or code(model, op) in WEIGHT_OPS:
                    continue
                seen.add(id(op))
                found[id(op)] = op
                if code(model, op) not in JOINTS:
                    frontier.append(op)
    return list(found.values())


def add_tensor(
    model: Any,
    label: str,
    shape: Sequence[int],
    kind: int,
    *,
    data: np.ndarray[Any, Any] | None = None,
    scale: float | None = None,
    zero: int = 0,
) -> int:
    """Add a tensor and return its index; `data` makes it a constant, `scale` a quantized one."""
    tensor, buffer = schema.TensorT(), schema.BufferT()
    buffer.data = None if data is None else np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8)
    model.buffers.append(buffer)
    tensor.name, tensor.shape, tensor.type = label.encode(), [int(d) for d in shape], kind
    tensor.buffer = len(model.buffers) - 1
    if scale is not None:
        tensor.quantization = schema.QuantizationParametersT()
        tensor.quantization.scale, tensor.quantization.zeroPoint = [float(scale)], [int(zero)]
    model.subgraphs[0].tensors.append(tensor)
    return len(model.subgraphs[0].tensors) - 1


def make_op(model: Any, kind: int, inputs: Iterable[int], outputs: Iterable[int], options: tuple[int, Any]) -> Any:
    """Return a new operation; `options` are the schema's number and object of its builtin options."""
    codes = enumerate(model.operatorCodes)
    index = next((k for k, c in codes if c.builtinCode == kind and c.version in (0, 1)), None)
    if index is None:
        entry = schema.OperatorCodeT()
        entry.builtinCode, entry.deprecatedBuiltinCode, entry.version = kind, min(kind, 127), 1
        model.operatorCodes.append(entry)
        index = len(model.operatorCodes) - 1
    op = schema.OperatorT()
    op.opcodeIndex, op.inputs, op.outputs = index, list(inputs), list(outputs)
    op.builtinOptionsType, op.builtinOptions = options
    return op


def forget_ranges(model: Any) -> None:
    """Drop what old converters noted of ranges at float tensors; quantizers would take them for quantized ones."""
    for tensor in model.subgraphs[0].tensors:
        if tensor.type in (KIND.FLOAT32, KIND.FLOAT16):
            tensor.quantization = None


def unpack_halves(model: Any) -> int:
    """Turn constants stored in half precision with a DEQUANTIZE after each into float32 constants; return how many."""
    graph = model.subgraphs[0]
    kept, count = [], 0
    for op in graph.operators:
        value = constant(model, int(op.inputs[0])) if code(model, op) == OP.DEQUANTIZE else None
        if value is None or value.dtype != np.float16:
            kept.append(op)
            continue
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(value.astype(np.float32).tobytes(), np.uint8)
        model.buffers.append(buffer)
        graph.tensors[int(op.outputs[0])].buffer = len(model.buffers) - 1
        count += 1
    graph.operators = kept
    return count


def name_outputs(
    model: Any, places: Sequence[int], names: Sequence[str], turns: Sequence[Sequence[int] | None] = ()
) -> None:
    """Keep the outputs at `places`, in that order, under `names`, each turned by a TRANSPOSE where `turns` says so."""
    graph = model.subgraphs[0]
    kept = []
    for position, place in enumerate(places):
        index = int(graph.outputs[place])
        turn = turns[position] if turns else None
        if turn is not None:
            tensor = graph.tensors[index]
            perm = add_tensor(model, f"{PREFIX}turn{position}", [len(turn)], KIND.INT32, data=np.array(turn, np.int32))
            shape = [int(tensor.shape[i]) for i in turn]
            out = add_tensor(model, f"{PREFIX}turned{position}", shape, tensor.type)
            graph.tensors[out].quantization = tensor.quantization
            options = (schema.BuiltinOptions.TransposeOptions, schema.TransposeOptionsT())
            graph.operators = [*graph.operators, make_op(model, OP.TRANSPOSE, [index, perm], [out], options)]
            index = out
        kept.append(index)
    for index, tensor in enumerate(graph.tensors):
        if name(tensor) in names and index not in kept:
            tensor.name = f"{PREFIX}inner_{name(tensor)}".encode()
    for index, label in zip(kept, names, strict=True):
        graph.tensors[index].name = label.encode()
    graph.outputs = kept


def name_input(model: Any, label: str) -> None:
    """Call the one input `label`; another tensor of that name gets another."""
    graph = model.subgraphs[0]
    for index, tensor in enumerate(graph.tensors):
        if index == int(graph.inputs[0]):
            tensor.name = label.encode()
        elif name(tensor) == label:
            tensor.name = f"{PREFIX}inner_{label}".encode()


def drop_entry_quantize(model: Any) -> bool:
    """Make the integers behind a float input the input itself where only a QUANTIZE reads it; return whether."""
    graph = model.subgraphs[0]
    image = int(graph.inputs[0])
    readers = [op for op in graph.operators if image in [int(i) for i in op.inputs]]
    if len(readers) != 1 or code(model, readers[0]) != OP.QUANTIZE or image in [int(i) for i in graph.outputs]:
        return False
    inner = int(readers[0].outputs[0])
    label = graph.tensors[image].name
    graph.tensors[image].name = f"{PREFIX}gone_{name(graph.tensors[image])}".encode()
    graph.tensors[inner].name = label
    graph.inputs = [inner]
    graph.operators = [op for op in graph.operators if op is not readers[0]]
    return True

"""What ONNX files of other tools bring: weights in files beside them, nodes out of order, integers already."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto

from edge_sdk.errors import ConversionError

MAX_BYTES = 2**31 - 1
_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_INTEGER = frozenset({"QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"})
_SAME_VALUES = frozenset({"Transpose", "Reshape", "Identity", "Squeeze", "Unsqueeze"})
_ONE_FILE = "save it in one file: onnx.save(onnx.load(path), out, save_as_external_data=False)"


def all_nodes(graph: Any) -> list[Any]:
    """Return the nodes of a graph and of the graphs in them."""
    nodes = list(graph.node)
    for node in graph.node:
        for attribute in node.attribute:
            for sub in [attribute.g, *attribute.graphs]:
                nodes.extend(all_nodes(sub))
    return nodes


def tensors(model: Any) -> Iterator[Any]:
    """Yield every constant of the model."""
    yield from model.graph.initializer
    for node in all_nodes(model.graph):
        yield from (a.t for a in node.attribute if a.type == onnx.AttributeProto.TENSOR)


def whole(name: str, raw: bytes, folder: Path) -> tuple[bytes, str]:
    """Return an ONNX file with the tensors in it that stand in files beside it, and the SHA-256 of those files.

    Only plain files in the folder of the model itself are read, and only what the tensors need of them. A file without
    such tensors, or that cannot be parsed, comes back as it is, with "".

    Raises:
        ConversionError: a tensor names another place, its file is absent or too short, or all are more than 2 GiB.
    """
    model = onnx.ModelProto()
    try:
        model.ParseFromString(raw)
    except Exception:
        return raw, ""
    outside = [t for t in tensors(model) if t.data_location == TensorProto.EXTERNAL or t.external_data]
    if not outside:
        return raw, ""
    found: dict[str, str] = {}
    total = len(raw)
    for tensor in outside:
        facts = {e.key: e.value for e in tensor.external_data}
        file = _beside(name, tensor.name, facts.get("location", ""), folder)
        start, length = _part(name, tensor, facts, file)
        total += length
        if total > MAX_BYTES:
            raise ConversionError(f"`{name}` and its data have more than 2 GiB, which no ONNX build can hold")
        with file.open("rb") as data:
            data.seek(start)
            tensor.raw_data = data.read(length)
        tensor.ClearField("external_data")
        tensor.data_location = TensorProto.DEFAULT
        if file.name not in found:
            with file.open("rb") as data:
                found[file.name] = hashlib.file_digest(data, "sha256").hexdigest()
    digest = hashlib.sha256("\n".join(found[k] for k in sorted(found)).encode()).hexdigest()
    return bytes(model.SerializeToString()), digest


def _beside(name: str, tensor: str, location: str, folder: Path) -> Path:
    if not location or Path(location).name != location:
        raise ConversionError(f"`{name}` keeps the tensor `{tensor}` in another place, `{location}`", hint=_ONE_FILE)
    file = folder / location
    if file.is_symlink() or not file.is_file():
        raise ConversionError(
            f"`{name}` keeps the tensor `{tensor}` in `{location}`, which is no file beside it",
            hint=f"copy `{location}` into the same folder, or {_ONE_FILE}",
        )
    return file


def _part(name: str, tensor: Any, facts: dict[str, str], file: Path) -> tuple[int, int]:
    """Return where in its file the tensor begins and how many bytes it has there."""
    size = file.stat().st_size
    try:
        start, count = int(facts.get("offset") or 0), 1
        length = int(facts.get("length") or size - start)
        for d in tensor.dims:
            count *= d
        per = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    except (ValueError, KeyError, TypeError):
        raise ConversionError(f"`{name}` does not say where the tensor `{tensor.name}` is", hint=_ONE_FILE) from None
    if start < 0 or length < 0 or start + length > size or length > count * per:
        raise ConversionError(
            f"`{file.name}` has {size} bytes, the tensor `{tensor.name}` of `{name}` is {count * per} from {start} on",
            hint="it is cut short or belongs to another model: copy both files again",
        )
    return start, length


def sort_nodes(model: Any) -> None:
    """Put the nodes of the graph into an order in which each stands behind what it reads, as runtimes load them too.

    Nodes that no order suits, and subgraphs, stay as they are.
    """
    graph = model.graph
    maker = {o: i for i, n in enumerate(graph.node) for o in n.output if o}
    needs = [{maker[name] for name in _reads(n) if name in maker} - {i} for i, n in enumerate(graph.node)]
    if all(all(j < i for j in before) for i, before in enumerate(needs)):
        return
    followers: dict[int, list[int]] = {}
    for index, before in enumerate(needs):
        for j in before:
            followers.setdefault(j, []).append(index)
    left = [len(before) for before in needs]
    ready = [i for i, count in enumerate(left) if count == 0]
    order = []
    while ready:
        index = heapq.heappop(ready)
        order.append(index)
        for follower in followers.get(index, ()):
            left[follower] -= 1
            if left[follower] == 0:
                heapq.heappush(ready, follower)
    if len(order) == len(needs):
        copies = [onnx.NodeProto.FromString(graph.node[i].SerializeToString()) for i in order]
        graph.ClearField("node")
        graph.node.extend(copies)


def _reads(node: Any) -> set[str]:
    """Return what a node reads, the graphs in it included."""
    names = set(node.input)
    for attribute in node.attribute:
        for sub in [attribute.g, *attribute.graphs]:
            for inner in sub.node:
                names |= _reads(inner)
    return names


def rename(model: Any, prefix: str) -> None:
    """Give nodes and inner tensors that begin with `prefix` other names: nodes put in front will have such."""
    graph = model.graph
    inner = [s for n in all_nodes(graph) for a in n.attribute for s in (a.g, *a.graphs)]
    outside = {v.name for part in (graph, *inner) for v in (*part.input, *part.output)}
    outside |= {t.name for part in inner for t in part.initializer}

    def other(name: str) -> str:
        return f"source_{name}" if name.startswith(prefix) and name not in outside else name

    for node in all_nodes(graph):
        node.name = other(node.name)
        for names in (node.input, node.output):
            names[:] = [other(n) for n in names]
    for tensor in graph.initializer:
        tensor.name = other(tensor.name)


def lower_ir(model: Any) -> None:
    """Lower the IR version to what the opset needs, 8 at least: older runtimes refuse a file for its number alone."""
    needed = onnx.helper.find_min_ir_version_for(model.opset_import, ignore_unknown=True)
    model.ir_version = min(model.ir_version, max(8, needed))


def quantized(model: Any) -> bool:
    """Return whether layers of the model have integer weights already: by integer operators or QDQ pairs."""
    makers = {o: n for n in model.graph.node for o in n.output}
    for node in model.graph.node:
        if node.op_type in _INTEGER:
            return True
        if node.op_type in _WEIGHTED and len(node.input) > 1:
            maker = makers.get(node.input[1])
            while maker is not None and maker.op_type in _SAME_VALUES:
                maker = makers.get(maker.input[0])
            if maker is not None and maker.op_type == "DequantizeLinear":
                return True
    return False

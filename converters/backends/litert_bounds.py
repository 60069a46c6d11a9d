"""Values that no range of 8 or 16 bits can hold, such as the least float with which max pools are padded."""

from __future__ import annotations

from typing import Any

import numpy as np

from converters import tflite_graph as g

BOUND = 1e30
"""Greatest magnitude that counts as a value; beyond stand stand-ins for infinity, and engines take no such scale."""


def bind_pads(model: Any, ranges: dict[str, Any], bits: int) -> int:
    """Give pads that only max pools read the least value of the range that they pad; return how many were changed.

    In integers nothing lies below that value, so each pool answers as it did, and the range stays that of the data.
    The ranges of the padded and pooled tensors are changed in place.
    """
    graph = model.subgraphs[0]
    count = 0
    for op in graph.operators:
        fill = g.constant(model, int(op.inputs[2])) if g.code(model, op) == g.OP.PADV2 else None
        known = ranges.get(g.name(graph.tensors[int(op.inputs[0])]), {})
        readers = _readers(model, int(op.outputs[0]))
        if fill is None or fill.dtype != np.float32 or fill.size != 1 or "min" not in known or not readers:
            continue
        low, high = min(float(np.min(known["min"])), 0.0), max(float(np.max(known["max"])), 0.0)
        low = -max(-low, high) if bits == 16 else low
        if float(fill.item()) >= low or low < -BOUND or any(g.code(model, r) != g.OP.MAX_POOL_2D for r in readers):
            continue
        constant = g.add_tensor(
            model, f"{g.PREFIX}pad_{int(op.outputs[0])}", fill.shape, g.KIND.FLOAT32, data=np.full_like(fill, low)
        )
        op.inputs = [int(op.inputs[0]), int(op.inputs[1]), constant]
        names = [g.name(graph.tensors[i]) for i in (int(op.outputs[0]), *(int(r.outputs[0]) for r in readers))]
        for label in names:
            if label in ranges and "min" in ranges[label]:
                row = ranges[label]
                ranges[label] = {"min": np.maximum(row["min"], low), "max": np.maximum(row["max"], low)}
        level = np.full_like(known["min"], low)
        ranges[g.name(graph.tensors[constant])] = {"min": level, "max": level}
        count += 1
    return count


def unbounded(model: Any, ranges: dict[str, Any]) -> list[Any]:
    """Return the operations that read or make a tensor with a value beyond `BOUND`, such as masks of attention."""
    graph = model.subgraphs[0]
    wide = {k for k, tensor in enumerate(graph.tensors) if _wide(ranges.get(g.name(tensor)), g.constant(model, k))}
    return [op for op in graph.operators if wide & {int(i) for i in [*op.inputs, *op.outputs]}]


def _readers(model: Any, index: int) -> list[Any]:
    """Return the operations that read a tensor; none for an output of the graph."""
    graph = model.subgraphs[0]
    if index in [int(i) for i in graph.outputs]:
        return []
    return [op for op in graph.operators if index in [int(i) for i in op.inputs]]


def _wide(row: Any, constant: Any) -> bool:
    ends = [np.ravel(row[k]) for k in ("min", "max") if k in row] if row else []
    if constant is not None and constant.dtype.kind == "f":
        ends.append(np.ravel(constant))
    return any(not bool(np.all(np.abs(values) <= BOUND)) for values in ends)

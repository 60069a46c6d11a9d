"""The same graph, the same bytes: order and names that do not depend on how an exporter walked through it."""

from __future__ import annotations

import re
from typing import Any

import onnx

_COUNTER = re.compile(r"(?:__\d+)+$")


def canonical(model: Any) -> Any:
    """Return the model with nodes and weights in the order in which the outputs reach them, and names without counters.

    Inputs and outputs keep their names, nodes that lead to no output go. A model with subgraphs is returned as it is.
    """
    if any(a.g.node or a.graphs for n in model.graph.node for a in n.attribute):
        return model
    graph = model.graph
    makers = {out: node for node in graph.node for out in node.output if out}
    order: list[Any] = []
    done: set[int] = set()
    stack = [(makers[o.name], False) for o in reversed(graph.output) if o.name in makers]
    while stack:
        node, left = stack.pop()
        if left:
            order.append(node)
        elif id(node) not in done:
            done.add(id(node))
            stack.append((node, True))
            stack.extend((makers[i], False) for i in reversed(node.input) if i in makers)
    kept = {v.name for v in (*graph.input, *graph.output)}
    names = {name: name for name in kept}
    taken = set(kept)
    nodes = [_renamed(node, names, taken) for node in order]
    weights = {t.name: t for t in graph.initializer}
    used = [n for n in names if n in weights]
    out = onnx.ModelProto()
    out.CopyFrom(model)
    for part in ("node", "initializer", "value_info"):
        out.graph.ClearField(part)
    out.graph.node.extend(nodes)
    for name in used:
        tensor = out.graph.initializer.add()
        tensor.CopyFrom(weights[name])
        tensor.name = names[name]
    return out


def _renamed(node: Any, names: dict[str, str], taken: set[str]) -> Any:
    out = onnx.NodeProto()
    out.CopyFrom(node)
    for field in (out.input, out.output):
        for index, name in enumerate(field):
            if name:
                field[index] = _name(name, names, taken)
    out.name = f"{node.op_type}:{out.output[0]}"
    out.doc_string = ""
    return out


def _name(name: str, names: dict[str, str], taken: set[str]) -> str:
    if name not in names:
        base = _COUNTER.sub("", name) or "tensor"
        new, count = base, 0
        while new in taken:
            count += 1
            new = f"{base}_{count}"
        names[name] = new
        taken.add(new)
    return names[name]

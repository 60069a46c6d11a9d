"""A graph as the rules of recognition read it: operations in ONNX's words, whatever format it came from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from converters import graph as g


@dataclass(frozen=True, slots=True)
class Node:
    """One operation, the tensors it reads (constants too) and makes; `facts` are whole numbers among its attributes."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    facts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class OpGraph:
    """Operations in any order, and the sizes of tensors where they are known."""

    nodes: Sequence[Node]
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def maker(self, tensor: str) -> Node | None:
        """Return the operation that makes the tensor."""
        return next((n for n in self.nodes if tensor in n.outputs), None)

    def origin(self, tensor: str) -> Node | None:
        """Return the operation that makes the tensor, before casts that change nothing else."""
        node = self.maker(tensor)
        for _ in range(8):
            if node is None or node.op not in ("Cast", "Identity") or not node.inputs:
                break
            node = self.maker(node.inputs[0])
        return node

    def tail(self, outputs: Iterable[str]) -> list[Node]:
        """Return the operations between the last weighted ones and the named outputs."""
        makers = {name: node for node in self.nodes for name in node.outputs}
        found: dict[int, Node] = {}
        stack = list(outputs)
        while stack:
            node = makers.get(stack.pop())
            if node is None or id(node) in found or node.op in g.WEIGHT_OPS:
                continue
            found[id(node)] = node
            stack.extend(node.inputs)
        return list(found.values())

    def tail_ops(self, outputs: Iterable[str]) -> set[str]:
        """Return the kinds of the tail's operations, without constants."""
        return {n.op for n in self.tail(outputs)} - {"Constant"}


def of_onnx(model: Any) -> OpGraph:
    """Return the graph of an ONNX model."""
    values = [*model.graph.input, *model.graph.value_info, *model.graph.output]
    shapes = {v.name: tuple(d if isinstance(d, int) else 0 for d in g.dims(v)) for v in values}
    return OpGraph([Node(n.op_type, tuple(i for i in n.input if i), tuple(n.output)) for n in model.graph.node], shapes)

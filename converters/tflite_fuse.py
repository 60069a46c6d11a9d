"""Activations of TFLite graphs that stand alone, put into the operation before them."""

from __future__ import annotations

from collections import Counter
from typing import Any

from ai_edge_litert import schema_py_generated as schema

from converters import tflite_graph as g

_ACTIVATION = schema.ActivationFunctionType
_CLAMPS = {
    g.OP.RELU: _ACTIVATION.RELU,
    g.OP.RELU6: _ACTIVATION.RELU6,
    g.OP.RELU_N1_TO_1: _ACTIVATION.RELU_N1_TO_1,
}
_TAKERS = frozenset({g.OP.CONV_2D, g.OP.DEPTHWISE_CONV_2D, g.OP.FULLY_CONNECTED, g.OP.ADD, g.OP.SUB, g.OP.MUL})


def fuse_activations(model: Any) -> int:
    """Let convolutions, dense layers and sums clamp their own outputs; return how many activations went.

    Answers stay the same. In integers the range of the sum before the activation is spent on what the activation cuts
    off, and the XNNPACK delegate leaves a RELU of its own to the built-in kernels, which ends its part of the graph.
    """
    graph = model.subgraphs[0]
    makers = g.producers(model)
    reads = Counter(int(i) for op in graph.operators for i in op.inputs)
    reads.update(int(i) for i in graph.outputs)
    gone = set()
    for op in graph.operators:
        clamp = _CLAMPS.get(g.code(model, op))
        data = int(op.inputs[0])
        maker = makers.get(data)
        if clamp is None or maker is None or reads[data] != 1 or g.code(model, maker) not in _TAKERS:
            continue
        options = maker.builtinOptions
        if options is None or options.fusedActivationFunction != _ACTIVATION.NONE:
            continue
        options.fusedActivationFunction = clamp
        maker.outputs = [int(op.outputs[0])]
        makers[int(op.outputs[0])] = maker
        gone.add(id(op))
    graph.operators = [op for op in graph.operators if id(op) not in gone]
    return len(gone)

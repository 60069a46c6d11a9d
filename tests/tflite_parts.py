"""Small TFLite models that tests make themselves, without a converter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from converters import tflite_graph as g


def empty(size: int, channels: int = 3, name: str = "image") -> Any:
    """A model with one float NHWC input and no operations."""
    model, graph = schema.ModelT(), schema.SubGraphT()
    model.version, model.buffers, model.operatorCodes = 3, [schema.BufferT()], []
    graph.tensors, graph.operators, graph.inputs, graph.outputs = [], [], [], []
    model.subgraphs = [graph]
    graph.inputs = [g.add_tensor(model, name, (1, size, size, channels), g.KIND.FLOAT32)]
    return model


def constant(model: Any, name: str, values: Any, kind: int = g.KIND.FLOAT32) -> int:
    data = np.asarray(values, g.DTYPES[kind])
    return g.add_tensor(model, name, data.shape, kind, data=data)


def add(
    model: Any, kind: int, inputs: list[int], name: str, shape: tuple[int, ...], options: str, **values: Any
) -> int:
    """Append an operation and return its output."""
    built = getattr(schema, f"{options}T")()
    for key, value in values.items():
        setattr(built, key, value)
    out = g.add_tensor(model, name, shape, g.KIND.FLOAT32)
    op = g.make_op(model, kind, inputs, [out], (getattr(schema.BuiltinOptions, options), built))
    model.subgraphs[0].operators.append(op)
    return out


def color_classifier(path: Path, *, size: int = 32, gain: float = 30.0, name: str = "probs") -> Path:
    """A convolutional network that names the brightest colour (blue, green, red) of an RGB picture in 0 to 1."""
    model = empty(size)
    rng = np.random.default_rng(0)
    relu = schema.ActivationFunctionType.RELU
    first = rng.normal(0, 0.02, (8, 3, 3, 3)).astype(np.float32)
    first[:3, 1, 1] += np.eye(3)[::-1]
    weights = constant(model, "w1", first)
    half = size // 2
    steps = {"strideW": 1, "strideH": 1, "dilationWFactor": 1, "dilationHFactor": 1, "fusedActivationFunction": relu}
    conv = add(
        model, g.OP.CONV_2D, [0, weights, constant(model, "b1", np.zeros(8))], "conv", (1, size, size, 8),
        "Conv2DOptions", **steps,
    )  # fmt: skip
    depth = rng.normal(0, 0.02, (1, 3, 3, 8)).astype(np.float32)
    depth[0, 1, 1] += 1
    wide = steps | {"strideW": 2, "strideH": 2, "depthMultiplier": 1}
    inputs = [conv, constant(model, "w2", depth), constant(model, "b2", np.zeros(8))]
    deep = add(model, g.OP.DEPTHWISE_CONV_2D, inputs, "deep", (1, half, half, 8), "DepthwiseConv2DOptions", **wide)
    axes = constant(model, "axes", [1, 2], g.KIND.INT32)
    mean = add(model, g.OP.MEAN, [deep, axes], "mean", (1, 8), "ReducerOptions", keepDims=False)
    last = np.zeros((3, 8), np.float32)
    last[:3, :3] = np.eye(3) * gain
    inputs = [mean, constant(model, "w3", last), constant(model, "b3", np.zeros(3))]
    logits = add(model, g.OP.FULLY_CONNECTED, inputs, "logits", (1, 3), "FullyConnectedOptions")
    probs = add(model, g.OP.SOFTMAX, [logits], name, (1, 3), "SoftmaxOptions", beta=1.0)
    model.subgraphs[0].outputs = [probs]
    g.save(model, path)
    return path


def pictures(root: Path, count: int, *, size: int = 32, seed: int = 0) -> tuple[str, ...]:
    """Noisy pictures in which blue, green or red is brightest, as files."""
    import cv2

    rng = np.random.default_rng(seed)
    root.mkdir(parents=True, exist_ok=True)
    names = []
    for index in range(count):
        base = cv2.resize(rng.integers(0, 90, (5, 5, 3), np.uint8), (size, size), interpolation=cv2.INTER_CUBIC)
        base[:, :, index % 3] = np.clip(base[:, :, index % 3].astype(int) + rng.integers(70, 150), 0, 255)
        names.append(str(root / f"{index:03}.png"))
        cv2.imwrite(names[-1], base)
    return tuple(names)


def onnx_twin(path: Path, *, size: int = 32, gain: float = 30.0) -> Path:
    """The network of `color_classifier` in ONNX, with planes as its input."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    first = rng.normal(0, 0.02, (8, 3, 3, 3)).astype(np.float32)
    first[:3, 1, 1] += np.eye(3)[::-1]
    depth = rng.normal(0, 0.02, (1, 3, 3, 8)).astype(np.float32)
    depth[0, 1, 1] += 1
    last = np.zeros((3, 8), np.float32)
    last[:3, :3] = np.eye(3) * gain
    weights = {"w1": first.transpose(0, 3, 1, 2), "w2": depth.transpose(3, 0, 1, 2), "w3": last.T}
    nodes = [
        helper.make_node("Conv", ["image", "w1"], ["conv"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["conv"], ["relu"]),
        helper.make_node("Conv", ["relu", "w2"], ["wide"], pads=[0, 0, 1, 1], strides=[2, 2], group=8),
        helper.make_node("Relu", ["wide"], ["deep"]),
        helper.make_node("GlobalAveragePool", ["deep"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w3"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probs"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, size, size])],
        [helper.make_tensor_value_info("probs", TensorProto.FLOAT, [1, 3])],
        [numpy_helper.from_array(np.ascontiguousarray(v), k) for k, v in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path

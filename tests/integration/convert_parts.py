"""Small models and image folders that the converter's tests make themselves."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

COLORS = ("blue", "green", "red")


def const(name: str, value) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(value, np.float32), name)


def save(path: Path, nodes, constants, shape, outputs, opset: int = 13) -> Path:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(model, str(path))
    return path


def classifier(path: Path, *, size: int = 32, classes: int = 3, softmax: bool = True, gain: float = 6.0) -> Path:
    """A convolutional network that names the brightest colour of an RGB picture in 0 to 1."""
    rng = np.random.default_rng(0)
    first = rng.normal(0, 0.02, (6, 3, 3, 3))
    first[:3, :, 1, 1] += np.eye(3)[::-1]
    second = rng.normal(0, 0.02, (6, 6, 3, 3))
    second[np.arange(6), np.arange(6), 1, 1] += 1
    last = np.zeros((classes, 6))
    last[:3, :3] = np.eye(3) * gain
    nodes = [
        helper.make_node("Conv", ["image", "w1", "b1"], ["c1"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("GlobalAveragePool", ["r2"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["logits"], transB=1),
    ]
    if softmax:
        nodes.append(helper.make_node("Softmax", ["logits"], ["probs"], axis=1))
    constants = [const("w1", first), const("b1", np.zeros(6)), const("w2", second), const("w3", last)]
    constants.append(const("b3", np.r_[np.zeros(3), np.full(classes - 3, -9.0)]))
    out = "probs" if softmax else "logits"
    return save(path, nodes, constants, [1, 3, size, size], [(out, [1, classes])])


def uneven(path: Path, *, size: int = 32, layers: int = 6, gain: float = 4000.0) -> Path:
    """The network of `classifier` with one channel that is far larger than the others and that nothing reads.

    Integers for the tensor behind the first layer have steps that the other channels fall between.
    """
    weights = [np.zeros((6, 3, 3, 3)), *(np.zeros((6, 6, 3, 3)) for _ in range(layers - 1))]
    weights[0][:3, :, 1, 1] = np.eye(3)[::-1]
    weights[0][5, :, 1, 1] = gain
    for weight in weights[1:]:
        weight[np.arange(5), np.arange(5), 1, 1] = 1
    last = np.zeros((3, 6))
    last[:3, :3] = np.eye(3) * 6
    nodes, at = [], "image"
    for index in range(layers):
        nodes.append(helper.make_node("Conv", [at, f"w{index}"], [f"c{index}"], pads=[1, 1, 1, 1], name=f"conv{index}"))
        nodes.append(helper.make_node("Relu", [f"c{index}"], [f"r{index}"]))
        at = f"r{index}"
    nodes += [
        helper.make_node("GlobalAveragePool", [at], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "w", "b"], ["logits"], transB=1),
        helper.make_node("Softmax", ["logits"], ["probs"], axis=1),
    ]
    constants = [const(f"w{i}", w) for i, w in enumerate(weights)] + [const("w", last), const("b", np.zeros(3))]
    return save(path, nodes, constants, [1, 3, size, size], [("probs", [1, 3])])


def detector(path: Path, *, size: int = 544) -> Path:
    """A YOLOv8-like head: one (1, 4 + 2, n) tensor of boxes in pixels and class scores of bright 32-pixel cells."""
    cells = [size // s for s in (8, 16, 32)]
    nodes, constants, rows = [], [], []
    for index, (cell, stride) in enumerate(zip(cells, (8, 16, 32), strict=True)):
        weight = np.zeros((2, 3, stride, stride), np.float32)
        weight[0, 2], weight[1, 1] = 12 / stride**2, 12 / stride**2
        grid = np.stack(np.meshgrid(np.arange(cell), np.arange(cell)), 0).reshape(1, 2, -1) * stride + stride / 2
        boxes = np.concatenate([grid, np.full((1, 2, cell * cell), stride)], 1)
        constants += [
            const(f"w{index}", weight),
            const(f"b{index}", [-6, -6] if stride == 32 else [-30, -30]),
            const(f"box{index}", boxes),
        ]
        constants.append(numpy_helper.from_array(np.array([1, 2, -1], np.int64), f"shape{index}"))
        constants.append(const(f"zero{index}", np.zeros((1, 1, 1))))
        nodes += [
            helper.make_node("Conv", ["image", f"w{index}", f"b{index}"], [f"c{index}"], strides=[stride, stride]),
            helper.make_node("Sigmoid", [f"c{index}"], [f"s{index}"]),
            helper.make_node("Reshape", [f"s{index}", f"shape{index}"], [f"r{index}"]),
            helper.make_node("ReduceMean", [f"r{index}"], [f"m{index}"], axes=[1, 2], keepdims=1),
            helper.make_node("Mul", [f"m{index}", f"zero{index}"], [f"z{index}"]),
            helper.make_node("Add", [f"z{index}", f"box{index}"], [f"x{index}"]),
            helper.make_node("Concat", [f"x{index}", f"r{index}"], [f"o{index}"], axis=1),
        ]
        rows.append(f"o{index}")
    nodes.append(helper.make_node("Concat", rows, ["output"], axis=2))
    total = sum(c * c for c in cells)
    return save(path, nodes, constants, [1, 3, size, size], [("output", [1, 6, total])])


def color_folders(root: Path, count: int, *, seed: int, size: int = 40) -> Path:
    """Class folders blue, green, red of noisy pictures."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        name = COLORS[index % 3]
        base = cv2.resize(rng.integers(0, 90, (5, 5, 3), np.uint8), (size, size), interpolation=cv2.INTER_CUBIC)
        base[:, :, index % 3] = np.clip(base[:, :, index % 3].astype(int) + rng.integers(70, 150), 0, 255)
        (root / name).mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(root / name / f"{seed}_{index}.png"), base)
    return root


def bright_cells(root: Path, count: int, *, seed: int, size: int = 544) -> Path:
    """Pictures with red or green squares on dark noise, labelled in YOLO form."""
    rng = np.random.default_rng(seed)
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    for index in range(count):
        image = rng.integers(0, 40, (size, size, 3), np.uint8)
        x, y = (int(v) * 32 for v in rng.integers(0, size // 32, 2))
        kind = int(rng.integers(0, 2))
        image[y : y + 32, x : x + 32, 2 - kind] = 255
        cv2.imwrite(str(root / f"images/{seed}_{index}.png"), image)
        line = f"{kind} {(x + 16) / size} {(y + 16) / size} {32 / size} {32 / size}\n"
        (root / f"labels/{seed}_{index}.txt").write_text(line)
    (root / "classes.yaml").write_text("names: [red, green]\n")
    return root

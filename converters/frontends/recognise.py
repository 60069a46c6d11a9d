"""Task, decoder and preprocessing by the structure of the graph: shapes, strides and operations, never a file name.

Each rule is strict: what fits two rules, or none, stays unknown and is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from converters.frontends.base import Preprocess, Source, TensorInfo
from converters.frontends.ops import OpGraph

_MOVES = frozenset(
    {"Transpose", "Reshape", "Concat", "Squeeze", "Unsqueeze", "Identity", "Flatten", "Slice", "Split", "Constant"}
    | {"Shape", "Gather", "Cast", "Dropout", "DequantizeLinear", "QuantizeLinear"}
)
_SIGMOIDS = frozenset({"Sigmoid", "HardSigmoid"})


def recognise(graph: OpGraph, source: Source) -> Source:
    """Return the source with what exactly one rule recognised."""
    answers = [a for a in (rule(graph, source) for rule in _RULES) if a is not None]
    return answers[0] if len(answers) == 1 else source


def _size(source: Source) -> tuple[int, int]:
    shape = source.input.shape
    return (shape[2], shape[3]) if source.layout == "NCHW" else (shape[1], shape[2])


def _cells(source: Source, strides: tuple[int, ...]) -> list[int]:
    height, width = _size(source)
    return [-(-height // s) * -(-width // s) for s in strides]


def _answer(source: Source, task: str, decoder: str, because: str, **more: Any) -> Source:
    return replace(source, task=task, decoder=decoder, because=(*source.because, because), **more)


def _yolox(graph: OpGraph, source: Source) -> Source | None:
    """One output [1, sum of cells, 5 + c] whose tail only moves data and applies sigmoids: boxes relative to cells."""
    out = source.outputs[0]
    cells = sum(_cells(source, (8, 16, 32)))
    if len(source.outputs) != 1 or len(out.shape) != 3 or out.shape[1] != cells or out.shape[2] < 6:
        return None
    ops = graph.tail_ops([out.name])
    classes = out.shape[2] - 5
    if ops <= _MOVES | _SIGMOIDS and ops & _SIGMOIDS:
        return _answer(
            source,
            "detection",
            "yolox",
            f"output {list(out.shape)} has a row for each cell of strides 8, 16, 32 and no box arithmetic: YOLOX",
            decoder_params={"classes": classes},
            classes=classes,
            preprocess=Preprocess(
                color="bgr",
                resize={"mode": "letterbox", "align": "topleft", "pad": 114},
                mean=(0.0,),
                std=(1.0,),
            ),
        )
    if "Exp" in ops and ops & _SIGMOIDS:
        return _answer(
            source,
            "detection",
            "yolov5",
            f"output {list(out.shape)} has a row for each cell of strides 8, 16, 32 and decodes boxes: YOLOX, decoded",
            decoder_params={"classes": classes},
            classes=classes,
        )
    return None


def _yolov8(graph: OpGraph, source: Source) -> Source | None:
    """One output [1, 4 + c, sum of cells]."""
    out = source.outputs[0]
    cells = sum(_cells(source, (8, 16, 32)))
    if len(source.outputs) != 1 or len(out.shape) != 3 or out.shape[2] != cells or not 5 <= out.shape[1] < cells:
        return None
    if not graph.tail_ops([out.name]) & _SIGMOIDS:
        return None
    classes = out.shape[1] - 4
    return _answer(
        source,
        "detection",
        "yolov8",
        f"output {list(out.shape)} has a column for each cell of strides 8, 16, 32: YOLOv8",
        decoder_params={"classes": classes},
        classes=classes,
        preprocess=Preprocess(
            color="rgb", resize={"mode": "letterbox", "align": "center", "pad": 114}, mean=(0.0,), std=(255.0,)
        ),
    )


def _gfl(graph: OpGraph, source: Source) -> Source | None:
    """For each level a class output with sigmoid and a box output of 4 x 8 bins without: NanoDet (3) or PicoDet (4)."""
    for name, strides in (("nanodet", (8, 16, 32)), ("picodet", (8, 16, 32, 64))):
        if len(source.outputs) != 2 * len(strides) or any(len(o.shape) != 3 for o in source.outputs):
            continue
        counts = _cells(source, strides)
        if len(set(counts)) != len(counts):
            continue
        scores = [o for o in source.outputs if _SIGMOIDS & graph.tail_ops([o.name])]
        boxes = [o for o in source.outputs if o not in scores]
        same = sorted(o.shape[1] for o in scores) == sorted(o.shape[1] for o in boxes) == sorted(counts)
        classes, widths = {o.shape[2] for o in scores}, {o.shape[2] for o in boxes}
        if not same or len(classes) != 1 or len(widths) != 1:
            continue
        width, count = widths.pop(), classes.pop()
        if width % 4 or width < 8:
            continue
        resize = {"mode": "letterbox", "align": "center", "pad": 0}
        pre = Preprocess(color="bgr", resize=resize, mean=(103.53, 116.28, 123.675), std=(57.375, 57.12, 58.395))
        return _answer(
            source,
            "detection",
            name,
            f"{len(strides)} pairs of scores and box distributions of {width // 4} bins: {name}",
            decoder_params={"classes": count, "reg_max": width // 4 - 1},
            classes=count,
            preprocess=pre if name == "nanodet" else Preprocess(),
        )
    return None


def _fastestdet(graph: OpGraph, source: Source) -> Source | None:
    """One output [1, 5 + c, h / 16, w / 16]: a concatenation of sigmoid, 4 raw channels and a softmax."""
    out = source.outputs[0]
    height, width = _size(source)
    if len(source.outputs) != 1 or len(out.shape) != 4 or out.shape[2:] != (height // 16, width // 16):
        return None
    last = graph.maker(out.name)
    if last is None or last.op != "Concat" or len(last.inputs) != 3 or out.shape[1] < 6:
        return None
    makers = [graph.maker(i) for i in last.inputs]
    kinds = [m.op if m is not None else "" for m in makers]
    if kinds[0] != "Sigmoid" or kinds[1] != "Conv" or "Softmax" not in graph.tail_ops([out.name]):
        return None
    return _answer(
        source,
        "detection",
        "fastestdet",
        f"output {list(out.shape)} joins a sigmoid, four raw channels and a softmax at stride 16: FastestDet",
        decoder_params={"classes": out.shape[1] - 5},
        classes=out.shape[1] - 5,
        preprocess=Preprocess(color="bgr", resize={"mode": "stretch"}, mean=(0.0,), std=(255.0,)),
    )


def _ultraface(graph: OpGraph, source: Source) -> Source | None:
    """Scores [1, n, 2] and boxes [1, n, 4] where n is the number of UltraFace's anchors; decoded or raw by the tail."""
    by_width = {o.shape[2]: o for o in source.outputs if len(o.shape) == 3}
    if len(source.outputs) != 2 or set(by_width) != {2, 4}:
        return None
    anchors = sum(n * c for n, c in zip((3, 2, 2, 3), _cells(source, (8, 16, 32, 64)), strict=True))
    scores, boxes = by_width[2], by_width[4]
    if scores.shape[1] != anchors or boxes.shape[1] != anchors:
        return None
    if "Softmax" not in graph.tail_ops([scores.name]):
        return None
    decoded = "Exp" in graph.tail_ops([boxes.name])
    return _answer(
        source,
        "detection",
        "ultraface",
        f"{anchors} rows are UltraFace's anchors; boxes are {'decoded' if decoded else 'raw anchor deltas'}",
        decoder_params={"decoded": decoded},
        classes=1,
        outputs=(scores, boxes),
        preprocess=Preprocess(color="rgb", resize={"mode": "stretch"}, mean=(127.0,), std=(128.0,)),
    )


def _yunet(graph: OpGraph, source: Source) -> Source | None:  # noqa: ARG001
    """For each of strides 8, 16, 32: class and objectness of width 1, boxes of width 4, five points of width 10."""
    if len(source.outputs) != 12 or any(len(o.shape) != 3 for o in source.outputs):
        return None
    for count in _cells(source, (8, 16, 32)):
        if sorted(o.shape[2] for o in source.outputs if o.shape[1] == count) != [1, 1, 4, 10]:
            return None
    return _answer(
        source,
        "detection",
        "yunet",
        "three levels of class, objectness, box and five points: YuNet",
        classes=1,
        preprocess=Preprocess(color="bgr", resize={"mode": "stretch"}, mean=(0.0,), std=(1.0,)),
    )


def _classifier(graph: OpGraph, source: Source) -> Source | None:
    """One output of c values that a softmax makes, or that the weights make (task unknown: maybe a regression)."""
    out = source.outputs[0]
    if len(source.outputs) != 1 or not _flat(out):
        return None
    classes = max(out.shape)
    ops = graph.tail_ops([out.name])
    if "Softmax" in ops and ops <= _MOVES | {"Softmax", "GlobalAveragePool", "AveragePool", "ReduceMean", "Relu"}:
        return _answer(
            source,
            "classification",
            "softmax",
            f"output {list(out.shape)} is a softmax over {classes} classes",
            decoder_params={"logits": False},
            classes=classes,
        )
    moves = _MOVES | {"GlobalAveragePool", "AveragePool", "ReduceMean", "Add", "BatchNormalization"}
    if ops <= moves:
        return replace(source, classes=classes, decoder_params={"logits": True})
    return None


def _flat(out: TensorInfo) -> bool:
    total = 1
    for d in out.shape:
        total *= d
    return total == max(out.shape) and total >= 2


def _mask(graph: OpGraph, source: Source) -> Source | None:  # noqa: ARG001
    """One output with a value for each class and pixel of the input."""
    out = source.outputs[0]
    if len(source.outputs) != 1 or len(out.shape) != 4:
        return None
    height, width = _size(source)
    if out.shape[1:3] == (height, width) and 2 <= out.shape[3] <= 256:
        classes = out.shape[3]
    elif out.shape[2:4] == (height, width) and 2 <= out.shape[1] <= 256:
        classes = out.shape[1]
    else:
        return None
    return _answer(
        source,
        "segmentation",
        "argmax_mask",
        f"output {list(out.shape)} has {classes} values for each pixel of the input",
        decoder_params={"layout": "NHWC" if out.shape[1:3] == (height, width) else "NCHW", "classes": classes},
        classes=classes,
    )


_RULES: tuple[Callable[[OpGraph, Source], Source | None], ...] = (
    _yolox,
    _yolov8,
    _gfl,
    _fastestdet,
    _ultraface,
    _yunet,
    _classifier,
    _mask,
)

"""Detectors by the structure of their graph: shapes, strides and operations, never a file name."""

from __future__ import annotations

from converters.frontends.base import Preprocess, Source
from converters.frontends.rules import MOVES, SIGMOIDS, Facts, Rule, answer, cells, size

_YOLO_INPUT = Preprocess(
    color="rgb", resize={"mode": "letterbox", "align": "center", "pad": 114}, mean=(0.0,), std=(255.0,)
)
_FRACTION = 4.0
"""Boxes over the whole picture reach 1 as fractions, far above this in pixels."""


def _yolox(facts: Facts, source: Source) -> Source | None:
    """One output [1, sum of cells, 5 + c] whose tail only moves data and applies sigmoids: boxes relative to cells."""
    out = source.outputs[0]
    total = sum(cells(source, (8, 16, 32)))
    if len(source.outputs) != 1 or len(out.shape) != 3 or out.shape[1] != total or out.shape[2] < 6:
        return None
    ops = facts.graph.tail_ops([out.name])
    classes = out.shape[2] - 5
    if ops <= MOVES | SIGMOIDS and ops & SIGMOIDS:
        return answer(
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
    if "Exp" in ops and ops & SIGMOIDS:
        return answer(
            source,
            "detection",
            "yolov5",
            f"output {list(out.shape)} has a row for each cell of strides 8, 16, 32 and decodes boxes: YOLOX, decoded",
            decoder_params={"classes": classes},
            classes=classes,
        )
    return None


def _yolov5(facts: Facts, source: Source) -> Source | None:
    """One output [1, 3 x sum of cells, 5 + c]: three anchors a cell, boxes decoded."""
    out = source.outputs[0]
    rows = 3 * sum(cells(source, (8, 16, 32)))
    if len(source.outputs) != 1 or len(out.shape) != 3 or out.shape[1] != rows or out.shape[2] < 6:
        return None
    ops = facts.graph.tail_ops([out.name])
    largest = facts.largest(source, lambda v: v[..., :4])
    if not ops & SIGMOIDS or not ops & {"Mul", "Pow"} or largest is None:
        return None
    normalized = largest < _FRACTION
    return answer(
        source,
        "detection",
        "yolov5",
        f"output {list(out.shape)} has three rows a cell of strides 8, 16, 32, boxes {_unit(normalized)}: YOLOv5",
        decoder_params={"classes": out.shape[2] - 5, "normalized": normalized},
        classes=out.shape[2] - 5,
        preprocess=_YOLO_INPUT,
    )


def _yolov8(facts: Facts, source: Source) -> Source | None:
    """One output [1, 4 + c, sum of cells]."""
    out = source.outputs[0]
    columns = sum(cells(source, (8, 16, 32)))
    if len(source.outputs) != 1 or len(out.shape) != 3 or out.shape[2] != columns or not 5 <= out.shape[1] < columns:
        return None
    largest = facts.largest(source, lambda v: v[:, :4])
    if not facts.graph.tail_ops([out.name]) & SIGMOIDS or largest is None:
        return None
    normalized = largest < _FRACTION
    return answer(
        source,
        "detection",
        "yolov8",
        f"output {list(out.shape)} has a column a cell of strides 8, 16, 32, boxes {_unit(normalized)}: YOLOv8",
        decoder_params={"classes": out.shape[1] - 4, "normalized": normalized},
        classes=out.shape[1] - 4,
        preprocess=_YOLO_INPUT,
    )


def _unit(normalized: bool) -> str:
    return "as fractions" if normalized else "in pixels"


def _gfl(facts: Facts, source: Source) -> Source | None:
    """For each level a class output with sigmoid and a box output of 4 x 8 bins without: NanoDet (3) or PicoDet (4)."""
    for name, strides in (("nanodet", (8, 16, 32)), ("picodet", (8, 16, 32, 64))):
        if len(source.outputs) != 2 * len(strides) or any(len(o.shape) != 3 for o in source.outputs):
            continue
        counts = cells(source, strides)
        if len(set(counts)) != len(counts):
            continue
        scores = [o for o in source.outputs if SIGMOIDS & facts.graph.tail_ops([o.name])]
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
        return answer(
            source,
            "detection",
            name,
            f"{len(strides)} pairs of scores and box distributions of {width // 4} bins: {name}",
            decoder_params={"classes": count, "reg_max": width // 4 - 1},
            classes=count,
            preprocess=pre if name == "nanodet" else Preprocess(),
        )
    return None


def _fastestdet(facts: Facts, source: Source) -> Source | None:
    """One output [1, 5 + c, h / 16, w / 16]: a concatenation of sigmoid, 4 raw channels and a softmax."""
    out = source.outputs[0]
    height, width = size(source)
    if len(source.outputs) != 1 or len(out.shape) != 4 or out.shape[2:] != (height // 16, width // 16):
        return None
    last = facts.graph.maker(out.name)
    if last is None or last.op != "Concat" or len(last.inputs) != 3 or out.shape[1] < 6:
        return None
    makers = [facts.graph.maker(i) for i in last.inputs]
    kinds = [m.op if m is not None else "" for m in makers]
    if kinds[0] != "Sigmoid" or kinds[1] != "Conv" or "Softmax" not in facts.graph.tail_ops([out.name]):
        return None
    return answer(
        source,
        "detection",
        "fastestdet",
        f"output {list(out.shape)} joins a sigmoid, four raw channels and a softmax at stride 16: FastestDet",
        decoder_params={"classes": out.shape[1] - 5},
        classes=out.shape[1] - 5,
        preprocess=Preprocess(color="bgr", resize={"mode": "stretch"}, mean=(0.0,), std=(255.0,)),
    )


def _ultraface(facts: Facts, source: Source) -> Source | None:
    """Scores [1, n, 2] and boxes [1, n, 4] where n is the number of UltraFace's anchors; decoded or raw by the tail."""
    by_width = {o.shape[2]: o for o in source.outputs if len(o.shape) == 3}
    if len(source.outputs) != 2 or set(by_width) != {2, 4}:
        return None
    anchors = sum(n * c for n, c in zip((3, 2, 2, 3), cells(source, (8, 16, 32, 64)), strict=True))
    scores, boxes = by_width[2], by_width[4]
    if scores.shape[1] != anchors or boxes.shape[1] != anchors:
        return None
    if "Softmax" not in facts.graph.tail_ops([scores.name]):
        return None
    decoded = "Exp" in facts.graph.tail_ops([boxes.name])
    return answer(
        source,
        "detection",
        "ultraface",
        f"{anchors} rows are UltraFace's anchors; boxes are {'decoded' if decoded else 'raw anchor deltas'}",
        decoder_params={"decoded": decoded},
        classes=1,
        outputs=(scores, boxes),
        preprocess=Preprocess(color="rgb", resize={"mode": "stretch"}, mean=(127.0,), std=(128.0,)),
    )


def _yunet(facts: Facts, source: Source) -> Source | None:  # noqa: ARG001
    """For each of strides 8, 16, 32: class and objectness of width 1, boxes of width 4, five points of width 10."""
    if len(source.outputs) != 12 or any(len(o.shape) != 3 for o in source.outputs):
        return None
    for count in cells(source, (8, 16, 32)):
        if sorted(o.shape[2] for o in source.outputs if o.shape[1] == count) != [1, 1, 4, 10]:
            return None
    return answer(
        source,
        "detection",
        "yunet",
        "three levels of class, objectness, box and five points: YuNet",
        classes=1,
        preprocess=Preprocess(color="bgr", resize={"mode": "stretch"}, mean=(0.0,), std=(1.0,)),
    )


def _blazeface(facts: Facts, source: Source) -> Source | None:  # noqa: ARG001
    """Boxes with six points [1, n, 16] and scores [1, n, 1], n the anchors of MediaPipe's short range model."""
    by_width = {o.shape[2]: o for o in source.outputs if len(o.shape) == 3}
    if len(source.outputs) != 2 or set(by_width) != {16, 1}:
        return None
    anchors = sum(n * c for n, c in zip((2, 6), cells(source, (8, 16)), strict=True))
    if {o.shape[1] for o in source.outputs} != {anchors}:
        return None
    return answer(
        source,
        "detection",
        "blazeface",
        f"{anchors} rows of 16 values and a score are the anchors of BlazeFace, short range",
        classes=1,
        outputs=(by_width[16], by_width[1]),
        preprocess=Preprocess(
            color="rgb", resize={"mode": "letterbox", "align": "center", "pad": 0}, mean=(127.5,), std=(127.5,)
        ),
    )


def _ssd(facts: Facts, source: Source) -> Source | None:
    """The outputs of one post-processing operation: TFLite's four, or the rows of seven of Caffe and OpenVINO."""
    maker = facts.graph.origin(source.outputs[0].name)
    if maker is None or any(facts.graph.origin(o.name) is not maker for o in source.outputs):
        return None
    by_name = {o.name: o for o in source.outputs}
    if maker.op == "TFLite_Detection_PostProcess" and set(by_name) == set(maker.outputs):
        return answer(
            source,
            "detection",
            "ssd_pp",
            "TFLite_Detection_PostProcess gives boxes, classes, scores and their count",
            outputs=tuple(by_name[n] for n in maker.outputs),
            classes=maker.facts.get("num_classes"),
            preprocess=Preprocess(color="rgb"),
        )
    rows = source.outputs[0].shape
    if maker.op == "DetectionOutput" and len(source.outputs) == 1 and len(rows) == 4 and rows[3] == 7:
        background = int(maker.facts.get("background_label_id", 0))
        count = maker.facts.get("num_classes")
        return answer(
            source,
            "detection",
            "ssd_pp",
            f"DetectionOutput gives rows of seven{', class 0 is the background' if background == 0 else ''}",
            decoder_params={"label_offset": -1} if background == 0 else {},
            classes=count - (background == 0) if count is not None else None,
        )
    return None


RULES: tuple[Rule, ...] = (_yolox, _yolov5, _yolov8, _gfl, _fastestdet, _ultraface, _yunet, _blazeface, _ssd)

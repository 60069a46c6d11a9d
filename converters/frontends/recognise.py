"""Task, decoder and preprocessing by the structure of the graph: shapes, strides and operations, never a file name.

Each rule is strict: what fits two rules, or none, stays unknown and is asked for.
"""

from __future__ import annotations

from dataclasses import replace

from converters.frontends.base import Preprocess, Source, TensorInfo
from converters.frontends.ops import OpGraph
from converters.frontends.recognise_detectors import RULES as DETECTORS
from converters.frontends.rules import MOVES, Facts, Rule, Run, answer, size

_KEYPOINTS = 17


def recognise(graph: OpGraph, source: Source, run: Run | None = None) -> Source:
    """Return the source with what exactly one rule recognised.

    Args:
        run: the model on one input, for what only its answers tell (boxes in pixels or as fractions).
    """
    facts = Facts(graph, run)
    answers = [a for a in (rule(facts, source) for rule in (*DETECTORS, *_RULES)) if a is not None]
    return answers[0] if len(answers) == 1 else source


def _classifier(facts: Facts, source: Source) -> Source | None:
    """One output of c values that a softmax makes, or that the weights make (task unknown: maybe a regression)."""
    out = source.outputs[0]
    if len(source.outputs) != 1 or not _flat(out):
        return None
    classes = max(out.shape)
    ops = facts.graph.tail_ops([out.name])
    if "Softmax" in ops and ops <= MOVES | {"Softmax", "GlobalAveragePool", "AveragePool", "ReduceMean", "Relu"}:
        return answer(
            source,
            "classification",
            "softmax",
            f"output {list(out.shape)} is a softmax over {classes} classes",
            decoder_params={"logits": False},
            classes=classes,
        )
    moves = MOVES | {"GlobalAveragePool", "AveragePool", "ReduceMean", "Add", "BatchNormalization"}
    if ops <= moves:
        return replace(source, classes=classes, decoder_params={"logits": True})
    return None


def _flat(out: TensorInfo) -> bool:
    total = 1
    for d in out.shape:
        total *= d
    return total == max(out.shape) and total >= 2


def _mask(facts: Facts, source: Source) -> Source | None:  # noqa: ARG001
    """One output with a value for each class and pixel of the input."""
    out = source.outputs[0]
    if len(source.outputs) != 1 or len(out.shape) != 4:
        return None
    height, width = size(source)
    if out.shape[1:3] == (height, width) and 2 <= out.shape[3] <= 256:
        classes = out.shape[3]
    elif out.shape[2:4] == (height, width) and 2 <= out.shape[1] <= 256:
        classes = out.shape[1]
    else:
        return None
    return answer(
        source,
        "segmentation",
        "argmax_mask",
        f"output {list(out.shape)} has {classes} values for each pixel of the input",
        decoder_params={"layout": "NHWC" if out.shape[1:3] == (height, width) else "NCHW", "classes": classes},
        classes=classes,
    )


def _class_ids(facts: Facts, source: Source) -> Source | None:
    """One output with a class id for each pixel, made by an ArgMax over the classes."""
    out = source.outputs[0]
    sides = tuple(d for d in out.shape[1:] if d != 1)
    if len(source.outputs) != 1 or out.dtype not in ("int32", "int64", "uint8") or len(sides) != 2:
        return None
    picks = [n for n in facts.graph.tail([out.name]) if n.op == "ArgMax"]
    scores = facts.graph.shapes.get(picks[0].inputs[0], ()) if len(picks) == 1 else ()
    rest = list(scores[1:])
    for side in sides:
        if side not in rest:
            return None
        rest.remove(side)
    if len(rest) != 1 or not 2 <= rest[0] <= 255:
        return None
    return answer(
        source,
        "segmentation",
        "argmax_mask",
        f"output {list(out.shape)} is the best of {rest[0]} classes for each pixel",
        classes=rest[0],
    )


def _movenet(facts: Facts, source: Source) -> Source | None:  # noqa: ARG001
    """One output [1, 1, 17, 3] of y, x and score."""
    if len(source.outputs) != 1 or source.outputs[0].shape != (1, 1, _KEYPOINTS, 3):
        return None
    return answer(
        source,
        "keypoints",
        "movenet",
        f"output {list(source.outputs[0].shape)} is y, x and score of {_KEYPOINTS} points: MoveNet",
        classes=_KEYPOINTS,
        preprocess=Preprocess(
            color="rgb",
            resize={"mode": "letterbox", "align": "center", "pad": 0},
            mean=(0.0,) if source.input.dtype != "float32" else None,
            std=(1.0,) if source.input.dtype != "float32" else None,
        ),
    )


_RULES: tuple[Rule, ...] = (_classifier, _mask, _class_ids, _movenet)

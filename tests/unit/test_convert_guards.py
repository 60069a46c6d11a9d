"""Every reason to refuse a build, by what was measured of it and of the source."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from converters.metrics import classification, outputs
from converters.metrics.guards import Limits, guards
from converters.metrics.measured import Measured, mean_of
from edge_sdk.schemas.manifest import OutputSpec

CLASSES = np.array([0] * 190 + [1] * 190 + [2] * 12)
NAMES = ("bolt", "nut", "crack")


def answers(lost: float = 0.0, seed: int = 0) -> np.ndarray:
    """Probabilities that are right but for the share `lost` of the rare class, which become nuts."""
    rng = np.random.default_rng(seed)
    out = np.eye(3)[CLASSES] * 0.8 + rng.random((len(CLASSES), 3)) * 0.1
    rows = np.flatnonzero(CLASSES == 2)[: round(12 * lost)]
    out[rows] = np.array([0.05, 0.9, 0.0]) + rng.random((len(rows), 3)) * 0.01
    return out / out.sum(axis=1, keepdims=True)


def measured(probs: np.ndarray) -> Measured:
    return classification.measure(probs, CLASSES, NAMES, labelled=True)


def still(low, high) -> dict:
    return {"scores": {"low": low, "high": high}}


MOVES = still([0.0, 0.0, 0.0], [1.0, 1.0, 1.0])


def kinds(source, build, limits=None, channels=MOVES, rows=()) -> list[str]:
    found = guards(
        source,
        build,
        limits or Limits(max_drop=0.05),
        source_channels=MOVES,
        channels=channels,
        outputs=rows,
        labels=NAMES,
    )
    return [r.kind for r in found]


def test_a_build_that_answers_as_the_source_passes():
    assert kinds(measured(answers()), measured(answers(seed=1))) == []


def test_losing_a_rare_class_is_refused_although_top1_hardly_falls():
    source, build = measured(answers()), measured(answers(lost=1.0))
    found = guards(source, build, Limits(max_drop=0.05), source_channels=MOVES, channels=MOVES, labels=NAMES)

    assert source.value - build.value < 0.05
    assert {r.kind for r in found} == {"macro", "rare class"}
    rare = next(r.message for r in found if r.kind == "rare class")
    assert rare.startswith("PR-AUC of the rare class `crack` (12 labels) fell by ")
    assert "the limit is 0.25" in rare
    assert "macro-F1 fell by" in next(r.message for r in found if r.kind == "macro")


def test_one_lost_image_of_a_rare_class_is_no_reason():
    assert kinds(measured(answers()), measured(answers(lost=1 / 12))) == []


def test_a_drop_above_the_limit_says_the_interval():
    source, build = (
        Measured(name="mAP50", value=float(v.mean()), n=100, of_weights=mean_of(v))
        for v in (np.ones(100), np.r_[np.ones(80), np.zeros(20)])
    )
    found = guards(source, build, Limits(max_drop=0.01), source_channels={}, channels={})

    assert [r.kind for r in found] == ["drop"]
    assert found[0].message.startswith("mAP50 fell by 0.2000 (1.0000 -> 0.8000, 95 % interval 0.1")


def test_a_metric_below_the_smallest_that_was_asked_for_is_refused():
    source = measured(answers())

    found = guards(source, source, Limits(max_drop=1.0, min_metric=1.0 + 1e-9), source_channels={}, channels={})

    assert [r.kind for r in found] == ["min-metric"]
    assert "--min-metric asks for 1" in found[0].message


def test_collapsed_scores_come_first_whatever_the_drop_allowed():
    source = measured(answers())

    found = kinds(source, source, Limits(max_drop=1.0), still([0.5] * 3, [0.5] * 3))

    assert found == ["collapsed"]


def test_a_group_that_no_longer_follows_the_source_is_refused_and_a_whole_output_is_not():
    rows = [
        {"name": "boxes", "group": True, "images": 9, "sqnr_db": -1.0, "correlation": 0.2},
        {"name": "output", "group": False, "images": 9, "sqnr_db": -1.0, "correlation": 0.2},
    ]
    source = measured(answers())
    found = guards(source, source, Limits(max_drop=1.0), source_channels={}, channels={}, outputs=rows)

    assert [r.kind for r in found] == ["output"]
    assert "the boxes of the build no longer follow the source's: correlation 0.200" in found[0].message


@pytest.mark.parametrize(("drop", "by_class"), [(0.01, 0.05), (0.05, 0.25), (0.2, 0.5), (0.7, 0.7), (0.0, 0.0)])
def test_a_class_may_fall_five_times_as_far_but_not_by_more_than_half(drop, by_class):
    assert Limits(max_drop=drop).class_drop == pytest.approx(by_class)


def split(decoder: str, arrays, **params) -> dict[str, tuple[int, ...]]:
    named = SimpleNamespace(decoder=SimpleNamespace(name=decoder, params=params))
    return {k: v.shape for k, v in outputs.groups(named, arrays).items()}


def zeros(*shapes) -> list[np.ndarray]:
    return [np.zeros(s, np.float32) for s in shapes]


@pytest.mark.parametrize(
    ("decoder", "shapes", "params", "expected"),
    [
        ("softmax", [(1, 10)], {}, {"scores": (1, 10)}),
        ("yolox", [(1, 21, 8)], {}, {"boxes": (21, 4), "objectness": (21, 1), "scores": (21, 3)}),
        ("yolov5", [(1, 21, 4), (1, 21, 4)], {}, {"boxes": (21, 4), "objectness": (21, 1), "scores": (21, 3)}),
        ("yolox", [(1, 9, 4), (1, 9, 1), (1, 9, 3)], {}, {"boxes": (9, 4), "objectness": (9, 1), "scores": (9, 3)}),
        ("yolov8", [(1, 6, 100)], {}, {"boxes": (100, 4), "scores": (100, 2)}),
        ("yolov8", [(1, 100, 6)], {"classes": 2}, {"boxes": (100, 4), "scores": (100, 2)}),
        ("yolov8", [(1, 4, 100), (1, 2, 100)], {}, {"boxes": (100, 4), "scores": (100, 2)}),
        ("nanodet", [(1, 50, 42)], {}, {"boxes": (50, 32), "scores": (50, 10)}),
        ("nanodet", [(1, 40, 10), (1, 10, 10), (1, 40, 32), (1, 10, 32)], {}, {"boxes": (50, 32), "scores": (50, 10)}),
        ("picodet", [(1, 40, 32), (1, 40, 32)], {}, {"boxes": (40, 32), "scores": (40, 32)}),
        ("fastestdet", [(1, 9, 4, 4)], {}, {"objectness": (16, 1), "boxes": (16, 4), "scores": (16, 4)}),
        ("ssd_pp", [(1, 10, 4), (1, 10), (1, 10), (1,)], {}, {"scores": (10, 1), "boxes": (10, 4)}),
        ("ssd_pp", [(1, 1, 20, 7)], {}, {"scores": (20, 1), "boxes": (20, 4)}),
        ("ultraface", [(1, 44, 2), (1, 44, 4)], {}, {"scores": (44, 1), "boxes": (44, 4)}),
        ("yunet", [(1, 9, 1), (1, 9, 1), (1, 9, 4), (1, 9, 10)], {},
         {"scores": (18, 1), "boxes": (9, 4), "landmarks": (9, 10)}),
        ("blazeface", [(1, 8, 16), (1, 8, 1)], {}, {"scores": (8, 1), "boxes": (8, 4), "landmarks": (8, 12)}),
        ("movenet", [(1, 1, 17, 3)], {}, {"points": (1, 34), "scores": (1, 17)}),
        ("argmax_mask", [(1, 8, 9, 3)], {}, {"scores": (72, 3)}),
        ("argmax_mask", [(1, 3, 8, 9)], {}, {"scores": (72, 3)}),
        ("argmax_mask", [(1, 8, 9)], {}, {}),
        ("embedding", [(1, 1, 1, 64)], {}, {"embedding": (1, 64)}),
        ("regression", [(1, 2), (1, 1)], {}, {"values": (1, 3)}),
        ("of_a_third_party", [(1, 2)], {}, {}),
    ],
)  # fmt: skip
def test_the_channels_of_every_decoder_are_told_apart(decoder, shapes, params, expected):
    assert split(decoder, zeros(*shapes), **params) == expected


def test_errors_of_a_group_are_its_own_and_not_the_outputs():
    """Boxes in pixels beside scores in [0, 1]: the output's cosine is near 1 while the scores are noise."""
    rng = np.random.default_rng(0)
    boxes, scores = rng.random((1000, 4)) * 400, rng.random((1000, 3))
    found = outputs.Errors()
    for _ in range(2):
        noise = rng.random((1000, 3))
        found.add("output:o", np.concatenate([boxes, scores], 1), np.concatenate([boxes, noise], 1))
        found.add("group:scores", scores, noise)
        found.add("group:boxes", boxes, boxes[:5])

    rows = {r["name"]: r for r in found.rows()}

    assert rows["o"]["cosine"] > 0.9999
    assert abs(rows["scores"]["correlation"]) < 0.1
    assert rows["scores"]["images"] == 2
    assert "boxes" not in rows


def test_a_group_that_stands_still_has_no_correlation():
    found = outputs.Errors()
    found.add("group:scores", np.arange(4.0), np.ones(4))

    assert found.rows()[0]["correlation"] is None


def test_quantized_outputs_are_compared_as_the_floats_they_stand_for():
    spec = OutputSpec(name="o", shape=(1, 2), dtype="uint8", scale=0.5, zero=2)
    real = outputs.real(SimpleNamespace(outputs=(spec,)), {"o": np.array([[2, 6]], np.uint8)})

    assert real[0].tolist() == [[0.0, 2.0]]

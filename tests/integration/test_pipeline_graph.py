"""Cascades, every n-th frame, regions and shadows as TOML, as Python and through `edge run`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edge_sdk.errors import ConfigError
from edge_sdk.pipeline import Pipeline
from edge_sdk.pipeline_config import PipelineConfig
from edge_sdk.schemas import codec
from edge_sdk.telemetry.observer import open_observer
from edge_sdk.telemetry.outbox import Outbox
from edge_sdk.testing import ListSource, build_artifact, color_frame

LETTERBOX = {"mode": "letterbox", "align": "topleft", "pad": 114}


@pytest.fixture(scope="module")
def models(tmp_path_factory: Any) -> Path:
    """A folder with a detector `cells.edge` and a classifier `colors.edge`."""
    folder: Path = tmp_path_factory.mktemp("models")
    build_artifact(folder / "cells.edge", task="detection")
    build_artifact(folder / "colors.edge")
    return folder


def edge(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edge_sdk", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


TOML = """
[source]
uri = "synthetic:64x64?n=40"
[[stage]]
name = "detect"
kind = "detect"
model = "cells.edge"
params = { score = 0.2 }
every = 3
roi = [[0, 0], [64, 48]]
shadow = "cells.edge"
shadow_every = 4
[[stage]]
kind = "track"
params = { confirm = 1 }
[[stage]]
name = "color"
kind = "classify"
model = "colors.edge"
after = "detect"
params = { top = 1 }
crop = { pad = 0.2, min_size = 4, max_per_frame = 5, refresh_frames = 2, square = true }
[[stage]]
name = "floor"
kind = "zone"
params = { polygon = [[0, 0], [64, 0], [64, 64], [0, 64]], where_not = { color = ["blue"] } }
[[sink]]
uri = "out.jsonl"
"""


def test_the_same_graph_as_toml_and_as_python_gives_the_same_lines(models: Path) -> None:
    (models / "p.toml").write_text(TOML)
    config = PipelineConfig.from_toml(models / "p.toml")
    assert PipelineConfig.from_mapping(config.to_json()) == config
    done = edge("run", models / "p.toml", "--json")
    assert done.returncode == 0, done.stderr
    stages = json.loads(done.stdout)["stages"]
    assert [s["name"] for s in stages] == ["detect", "track", "color", "floor"]
    assert (stages[0]["every"], stages[0]["inferred"]) == (3, 14)
    assert stages[0]["shadow"]["every"] == 4
    assert stages[2]["crops"] > 0
    cells, colors = models / "cells.edge", models / "colors.edge"
    pipe = Pipeline("synthetic:64x64?n=40")
    pipe.detect(cells, score=0.2, every=3, roi=[(0, 0), (64, 48)], shadow=cells, shadow_every=4).track(confirm=1)
    pipe.then(
        colors, name="color", params={"top": 1}, pad=0.2, min_size=4, max_per_frame=5, refresh_frames=2, square=True
    )
    pipe.zone("floor", [(0, 0), (64, 0), (64, 64), (0, 64)], where_not={"color": ["blue"]})
    lines = [json.loads(line) for line in (models / "out.jsonl").read_text().splitlines()]
    assert lines == json.loads(json.dumps([i.to_json() for i in pipe]))
    assert any("then" in d for line in lines for d in line["detections"])


def test_check_opens_every_model_and_names_it(models: Path) -> None:
    (models / "c.toml").write_text(TOML)
    done = edge("run", models / "c.toml", "--check", "--json")
    assert done.returncode == 0, done.stdout
    rows = json.loads(done.stdout)["stages"]
    assert [(r["name"], r.get("selftests")) for r in rows] == [
        ("detect", 3),
        ("track", None),
        ("color", 3),
        ("floor", None),
        ("detect, shadow", 3),
    ]


@pytest.mark.parametrize(
    ("old", "new", "code", "message"),
    [
        ('model = "colors.edge"', 'model = "none.edge"', 4, "none.edge"),
        ('shadow = "cells.edge"', 'shadow = "none.edge"', 4, "none.edge"),
        ('kind = "classify"', 'kind = "segment"', 2, "stage kind `segment` needs a model for segmentation"),
        ('color = ["blue"]', 'color = ["bleu"]', 2, "stage `floor`: the second model `color` has no class `bleu`"),
        ("[[0, 0], [64, 48]]", "[[90, 0], [99, 48]]", 2, "roi: [90, 0, 99, 48] lies outside the frame of 64 x 64"),
        ("refresh_frames = 2", 'classes = ["pink"]', 2, "stage `color`: crop: the model has no class `pink`"),
    ],
)
def test_check_says_what_does_not_fit(
    models: Path, tmp_path: Path, old: str, new: str, code: int, message: str
) -> None:
    for name in ("cells.edge", "colors.edge"):
        (tmp_path / name).write_bytes((models / name).read_bytes())
    (tmp_path / "p.toml").write_text(TOML.replace(old, new))
    done = edge("run", tmp_path / "p.toml", "--check", "--json")
    error = json.loads(done.stdout)["error"]
    assert done.returncode == error["exit"] == code
    assert message in error["message"]


def test_every_wrong_key_of_the_graph_is_listed_with_its_place() -> None:
    stages = [
        {"name": "detect", "model": "a.edge", "every": 0, "roi": [[1, 1]]},
        {"name": "ppe", "after": "detect", "model": "b.edge", "crop": {"padd": 1, "min_size": 0}, "every": 2},
        {"kind": "zone", "name": "z", "params": {"polygon": [[0, 0], [9, 0], [9, 9]], "where": {"ppa": ["x"]}}},
    ]
    with pytest.raises(ConfigError) as caught:
        PipelineConfig.from_mapping({"source": {"uri": "0"}, "stage": stages})
    assert caught.value.problems == (
        "stage[0].every: expected 1 to 100000, found 0",
        "stage[1].crop.padd: unknown key, did you mean `pad`?",
        "stage[1].crop.min_size: expected 1 to 100000, found 0",
    )
    stages[0]["every"], stages[1]["crop"] = 1, {"pad": 0.1}
    stages += [
        {"after": "dtect", "name": "pose"},
        {"kind": "track", "every": 3, "crop": {}, "shadow": "c.edge"},
        {"name": "other", "model": "d.edge", "crop": {}},
    ]
    with pytest.raises(ConfigError) as caught:
        PipelineConfig.from_mapping({"source": {"uri": "0"}, "stage": stages})
    assert caught.value.problems == (
        "stage: expected one `[[stage]]` with a model, found 2; one that works on the boxes of another names it in "
        "`after`",
        "stage[0].roi: expected [x, y] points, two corners of a rectangle or at least three of a polygon",
        "stage[1].every: a second model answers when the first does, `crop.refresh_frames` spares it more",
        "stage[2].params.where.ppa: no second model `ppa` before it, did you mean `ppe`?",
        "stage[3].after: no model `dtect` before it, the one that sees the frames is `detect`",
        "stage[3].model: missing, a second model is named; only the first comes from a slot",
        "stage[4].every: belongs to a stage with a model, this one is `track`",
        "stage[4].crop: belongs to a stage with a model, this one is `track`",
        "stage[4].shadow: belongs to a stage with a model, this one is `track`",
        "stage[5].crop: belongs to a second model, one with `after`",
    )


def test_edge_run_says_what_second_model_and_shadow_did_and_explains_it(models: Path) -> None:
    (models / "e.toml").write_text(TOML.replace("n=40", "n=300"))
    done = edge("run", models / "e.toml", "--explain", "5")
    assert done.returncode == 0, done.stderr
    assert "shadow of detect: agreement 1.000 in " in done.stdout
    assert "color: " in done.stdout
    steps = {tuple(line.split()[1:3]) for line in done.stdout.splitlines() if line[:1].isdigit() and "." in line[:4]}
    assert ("color", "answer") in steps
    assert ("floor", "filter") in steps


def test_edge_bench_counts_the_engines_that_really_run(models: Path) -> None:
    (models / "b.toml").write_text(TOML)
    done = edge("bench", models / "b.toml", "--frames", "30", "--json")
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert data["frames"] == 30
    assert 0 < data["engine_cpu_ms"] < data["pipeline_cpu_ms"]


def test_metrics_of_second_model_and_shadow_reach_the_outbox(models: Path, tmp_path: Path) -> None:
    spec = {"outbox": str(tmp_path / "outbox.db"), "sample_period_s": 0.01, "window_n": 5}
    images = [color_frame("red", width=64, height=64, box=(16, 16, 32, 32))] * 20
    cells, colors = models / "cells.edge", models / "colors.edge"
    pipe = Pipeline(ListSource(images)).detect(cells, shadow=cells, shadow_every=2).then(colors, name="color")
    pipe.observe(open_observer(spec, model="m")).run()
    with Outbox.open(tmp_path / "outbox.db") as box:
        batches = box.next_batches(100, now=1e12)
    stored = [e for batch in batches for e in codec.decode_body(*codec.read_header(batch.payload))]
    events = [e for e in stored if e["kind"] == "metric"]
    by_name = {e["name"]: e for e in events}
    assert by_name["second"]["labels"] == {"red": 20}
    assert by_name["shadow"]["pairs"] >= 1
    assert all(e["pipeline"] == "main" and e["t"] > 0 for e in events)


@pytest.fixture(scope="module")
def person(real_artifact: Any, coco_labels: Any) -> Path:
    return Path(real_artifact("yolox_nano_416.onnx", "yolox", labels=coco_labels, color="bgr", resize=LETTERBOX))


def test_second_models_of_every_task_answer_about_a_real_person(
    person: Path, real_artifact: Any, testdata: Path
) -> None:
    face = real_artifact("yunet_n_320.onnx", "yunet", labels=("face",), color="bgr", resize={"mode": "letterbox"})
    pose = real_artifact("movenet_lightning_ptq.tflite", "movenet", resize={"mode": "letterbox", "align": "center"})
    voc = (testdata / "labels" / "pascal_voc_labels.txt").read_text().split("\n")
    cloth = real_artifact("deeplabv3_float_257.onnx", "argmax_mask", labels=voc, mean=[127.5], std=[127.5])
    pipe = Pipeline(str(testdata / "videos" / "asl_help.mkv")).detect(person, score=0.5)
    pipe.then(face, name="face", classes=["person"]).then(pose, name="pose", classes=["person"], pad=0.1, square=True)
    pipe.then(cloth, name="cloth", classes=["person"])
    pipe.start(frames=3)
    items = list(pipe)
    pipe.close()
    for item in items:
        found = item.detections
        row = int([found.label(int(c)) for c in found.class_id].index("person"))
        x1, y1, x2, y2 = found.xyxy[row]
        faces = found.then["face"][row].result
        assert len(faces) == 1
        middle = (faces.xyxy[0, :2] + faces.xyxy[0, 2:]) / 2
        assert x1 < middle[0] < x2
        assert y1 < middle[1] < y1 + 0.4 * (y2 - y1)
        nose = found.then["pose"][row].result.points[0]
        assert faces.xyxy[0, 0] < nose[0] < faces.xyxy[0, 2]
        assert faces.xyxy[0, 1] < nose[1] < faces.xyxy[0, 3]
        shares = {s["label"]: s["share"] for s in found.then["cloth"][row].to_json()["mask"]["segments"]}
        assert shares["person"] > 0.4


def test_boxes_are_carried_along_a_real_video_of_which_each_fifth_frame_is_inferred(
    person: Path, testdata: Path
) -> None:
    video = str(testdata / "videos" / "car-detection.mp4")
    boxes: dict[int, list[Any]] = {}
    for every in (1, 5):
        pipe = Pipeline(video, workers=1).detect(person, score=0.3, every=every)
        pipe.track(high=0.3, new=0.3, class_aware=False)
        pipe.start(frames=120)
        boxes[every] = [item.detections for item in pipe]
    assert pipe.report().stage["inferred"] == 24
    near = []
    for full, sparse in zip(boxes[1], boxes[5], strict=True):
        for box in sparse.xyxy[(sparse.track_id >= 0) & (sparse.score > 0.5)] if sparse.track_id is not None else ():
            near.append(max((iou(box, other) for other in full.xyxy), default=0.0))
    assert len(near) >= 15
    assert sum(near) / len(near) > 0.7


def iou(a: Any, b: Any) -> float:
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(0.0, float(w)) * max(0.0, float(h))
    return both / (float((a[2] - a[0]) * (a[3] - a[1])) + float((b[2] - b[0]) * (b[3] - b[1])) - both)

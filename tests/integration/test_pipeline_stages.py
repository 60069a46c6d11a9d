"""Stages around a model, in Python, in TOML and through `edge run`: what they add to results and what they refuse."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sdk.artifact import write_artifact
from edge_sdk.errors import ConfigError, UsageError
from edge_sdk.pipeline import Pipeline
from edge_sdk.pipeline_config import PipelineConfig
from edge_sdk.testing import (
    CollectingSink,
    ListSource,
    build_artifact,
    color_frame,
    tiny_detector_onnx,
    tiny_manifest,
)

ROOT = Path(__file__).resolve().parent.parent.parent
DOOR = [[40, 0], [64, 0], [64, 64], [40, 64]]


@pytest.fixture(scope="module")
def detector(tmp_path_factory: Any) -> Path:
    return build_artifact(tmp_path_factory.mktemp("artifacts") / "cells.edge", task="detection").path


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: Any) -> Path:
    return build_artifact(tmp_path_factory.mktemp("artifacts") / "colors.edge").path


def frame(x: int, y: int = 16, *, color: str = "red") -> Any:
    """A black 64 x 64 frame with a bright cell that the tiny detector finds."""
    return color_frame(color, width=64, height=64, box=(x, y, x + 16, y + 16))


def still(n: int) -> list[Any]:
    return [frame(48) for _ in range(n)]


def walk() -> list[Any]:
    """A cell that stands on the left, then on the right."""
    return [frame(0)] * 5 + [frame(16)] * 5 + [frame(32)] * 5 + [frame(48)] * 5


def source(images: list[Any], fps: float = 10.0) -> ListSource:
    return ListSource(images, fps=fps)


def collect(pipe: Pipeline) -> list[Any]:
    return list(pipe)


def kinds(items: list[Any]) -> list[str]:
    return [e["kind"] for item in items for e in item.events]


def test_a_tracked_object_crosses_a_line_and_enters_a_zone(detector: Path) -> None:
    pipe = Pipeline(source(walk())).detect(detector)
    pipe.track(match=1.0, match_tentative=1.0, lost_s=5, confirm=1)
    items = collect(pipe.zone("door", DOOR, anchor="center").alert("anything", min_frames=2, cooldown_s=60))
    assert kinds(items)[0] == "alert"
    assert "zone_enter" in kinds(items)
    assert items[-1].counts["door"]["inside"] == 1
    line = json.loads(json.dumps(items[-1].to_json()))
    assert line["counts"]["door"]["labels"] == {"red": 1}
    assert line["detections"][0]["track"] >= 1
    report = pipe.report().to_json()
    assert [s["name"] for s in report["stages"]] == ["detect", "track", "door", "anything"]
    assert report["stages"][3]["events"] == 1


def test_results_pass_the_stages_in_frame_order_however_many_threads_infer(detector: Path) -> None:
    images = [frame(2 * (f % 20), 16) for f in range(200)]
    runs = []
    for workers in (1, 2):
        pipe = Pipeline(source(images), workers=workers).detect(detector).track()
        items = collect(pipe.line("gate", (24, 0), (24, 64)))
        assert [i.frame.index for i in items] == list(range(200))
        runs.append([i.to_json() | {"source": ""} for i in items])
    assert runs[0] == runs[1]


def test_a_closed_gate_lets_the_last_answer_stand(detector: Path) -> None:
    pipe = Pipeline(source(still(30))).detect(detector).motion_gate(hold_s=0.2, refresh_s=0)
    items = collect(pipe)
    gated = [i.gated for i in items]
    assert not any(gated[:3])
    assert all(gated[3:])
    assert all(len(i.detections) == len(items[0].detections) >= 1 for i in items)
    assert items[-1].to_json()["gated"] is True
    report = pipe.report()
    assert report.processed == 30
    assert report.steps[0] == {"name": "motion_gate", "kind": "motion_gate", "frames": 30, "skipped": 27}


def test_an_object_that_stands_still_behind_a_closed_gate_goes_on_dwelling(detector: Path) -> None:
    pipe = Pipeline(source(still(40))).detect(detector).motion_gate(hold_s=0, refresh_s=0)
    items = collect(pipe.track().zone("door", DOOR, dwell_s=[3.0]))
    assert kinds(items) == ["zone_enter", "zone_dwell"]


def test_what_is_hidden_is_hidden_before_sinks_and_readers_get_it(detector: Path) -> None:
    sink = CollectingSink()
    items = collect(Pipeline(source(walk())).detect(detector).blur(["red"], mode="fill", grow=1.0).sink(sink))
    for item in [*items, *sink.items]:
        assert not item.frame.image.any()


def test_other_classes_are_not_hidden(detector: Path) -> None:
    for item in collect(Pipeline(source(walk())).detect(detector).blur(["blue"])):
        assert item.frame.image.any()


def test_a_frame_that_cannot_be_written_to_is_hidden_in_a_copy(detector: Path) -> None:
    images = still(3)
    for image in images:
        image.flags.writeable = False
    items = collect(Pipeline(source(images)).detect(detector).blur(mode="fill", grow=1.0))
    assert not any(i.frame.image.any() for i in items)
    assert images[0].any()


def test_a_camera_that_goes_black_is_an_event(detector: Path) -> None:
    bright = [np.full((64, 64, 3), 120, np.uint8) + np.uint8(f % 5) for f in range(60)]
    dark = [np.zeros((64, 64, 3), np.uint8)] * 60
    items = collect(Pipeline(source(bright + dark)).detect(detector).camera_health())
    events = [e for i in items for e in i.events]
    assert [(e["kind"], e["problem"], e["state"]) for e in events] == [("camera", "black", "begin")]
    assert 8.0 <= events[0]["t_s"] <= 8.5
    assert items[-1].counts["camera"] == {"problems": ["black"]}


def test_tiles_find_a_small_object_that_the_whole_frame_loses(detector: Path) -> None:
    image = np.zeros((128, 128, 3), np.uint8)
    image[16:32, 16:32, 2] = 255  # 4 x 4 pixels of the 32 pixel input, too dark for a cell of 8 x 8
    whole = collect(Pipeline(source([image])).detect(detector))
    tiled = collect(Pipeline(source([image])).detect(detector, tiles={"columns": 2, "rows": 2, "overlap": 0.0}))
    assert len(whole[0].detections) == 0
    assert len(tiled[0].detections) == 1
    x1, _, x2, y2 = tiled[0].detections.xyxy[0]
    assert 0 <= x1 <= 20
    assert 28 <= x2 <= 64
    assert y2 <= 64


def test_the_same_pipeline_as_toml_gives_the_same_lines(detector: Path, tmp_path: Path) -> None:
    text = f"""
[source]
uri = "synthetic:64x64?n=40"
[[stage]]
name = "gate"
kind = "motion_gate"
[[stage]]
kind = "detect"
model = {json.dumps(str(detector))}
[[stage]]
kind = "track"
params = {{ confirm = 1 }}
[[stage]]
name = "door"
kind = "zone"
params = {{ polygon = {DOOR}, dwell_s = [0.5] }}
[[stage]]
name = "anything"
kind = "alert"
params = {{ min_frames = 1, min_score = 0.3 }}
[[sink]]
uri = "jsonl:out.jsonl"
"""
    (tmp_path / "p.toml").write_text(text)
    config = PipelineConfig.from_toml(tmp_path / "p.toml")
    assert PipelineConfig.from_mapping(config.to_json()) == config
    command = [sys.executable, "-m", "edge_sdk", "run", str(tmp_path / "p.toml"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    stages = json.loads(done.stdout)["stages"]
    assert [s["name"] for s in stages] == ["detect", "gate", "track", "door", "anything"]
    pipe = Pipeline("synthetic:64x64?n=40").detect(detector).motion_gate().track(confirm=1)
    items = collect(pipe.zone("door", DOOR, dwell_s=[0.5]).alert("anything", min_frames=1, min_score=0.3))
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert lines == json.loads(json.dumps([i.to_json() for i in items]))


def test_check_builds_the_stages_and_names_them(detector: Path, tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text(
        f'[source]\nuri = "synthetic:64x64?n=3"\n[[stage]]\nmodel = {json.dumps(str(detector))}\n'
        '[[stage]]\nkind = "track"\n[[stage]]\nkind = "line"\nname = "gate"\nparams = {start = [0, 9], end = [0, 9]}\n'
    )
    command = [sys.executable, "-m", "edge_sdk", "run", str(tmp_path / "p.toml"), "--check", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["message"] == "line `gate`: both ends are [0, 9]"
    text = (tmp_path / "p.toml").read_text().replace("end = [0, 9]", "end = [50, 9]")
    (tmp_path / "p.toml").write_text(text)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert json.loads(done.stdout)["stages"][1:] == [
        {"name": "track", "kind": "track"},
        {"name": "gate", "kind": "line"},
    ]


def test_every_wrong_key_of_a_stage_is_listed_with_its_place() -> None:
    stages = [
        {"model": "a.edge"},
        {"kind": "track", "params": {"hihg": 0.5, "lost_s": -1}},
        {"kind": "zone", "name": "door", "params": {"polygon": [[0, "a"], [1, 1]]}},
        {"kind": "blur", "model": "b.edge"},
    ]
    with pytest.raises(ConfigError) as caught:
        PipelineConfig.from_mapping({"source": {"uri": "0"}, "stage": stages})
    assert caught.value.problems == (
        "stage[1].params.hihg: unknown key, did you mean `high`?",
        "stage[1].params.lost_s: expected 0 to 3600, found -1.0",
        "stage[2].params.polygon[0][1]: expected a number, found a string 'a'",
        "stage[3].model: a `blur` stage has no model",
    )


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda p: p.line("gate", (0, 0), (1, 1)), "stage `gate`: a line counts tracks"),
        (lambda p: p.track().zone("door", [(0, 0), (1, 1)]), "expected at least 3 different corners, found 2"),
        (lambda p: p.track().zone("track", DOOR), "two stages are called `track`"),
        (lambda p: p.blur(["persn"]), "stage `blur`: the model has no class `persn`"),
        (lambda p: p.motion_gate().motion_gate("b"), "a pipeline has one motion gate, found two"),
        (lambda p: p.alert("a", min_frame=3), "min_frame: unknown key, did you mean `min_frames`?"),
        (lambda p: p.zone("door", "here"), "expected an array, found a string 'here'"),
    ],
)
def test_a_stage_that_cannot_work_is_refused_before_the_source_is_opened(
    build: Any, message: str, detector: Path
) -> None:
    frames = source(still(1))
    with pytest.raises(UsageError) as caught:
        build(Pipeline(frames).detect(detector)).run()
    assert message in str(caught.value)
    assert not frames.opened


def test_a_stage_that_needs_boxes_is_refused_after_a_classifier(classifier: Path) -> None:
    with pytest.raises(UsageError, match=r"stage `track` \(track\) needs a model for detection, this one is for class"):
        Pipeline(source(still(1))).classify(classifier).track().run()


def test_tiles_are_refused_for_a_classifier(classifier: Path) -> None:
    with pytest.raises(ConfigError, match="`tiles` needs a model for detection, `tiny-classification` is for class"):
        Pipeline(source(still(1))).classify(classifier, tiles={}).run()


def test_a_swap_to_a_model_without_the_named_class_is_refused_and_the_old_one_goes_on(
    detector: Path, tmp_path: Path
) -> None:
    entries = {"model/model.onnx": tiny_detector_onnx(), "labels.txt": b"a\nb\nc\n"}
    other = write_artifact(tmp_path / "o.edge", manifest=tiny_manifest("detection"), entries=entries, evidence={}).path
    with Pipeline("synthetic:64x64?fps=50&live=1").detect(detector).blur(["red"]) as pipe:
        results = iter(pipe)
        digest = next(results).model
        with pytest.raises(UsageError, match="stage `blur`: the model has no class `red`"):
            pipe.swap("detect", other)
        assert next(results).model == digest


def test_every_event_and_non_event_can_be_explained(detector: Path) -> None:
    pipe = Pipeline(source(still(20))).detect(detector).motion_gate(refresh_s=0)
    collect(pipe.track().zone("door", DOOR).alert("late", min_frames=50))
    why = [(d.stage, d.step, d.accepted) for d in pipe.explain(0.0, window_s=0.3)]
    assert ("motion_gate", "gate", True) in why
    assert ("door", "debounce", True) in why
    assert ("late", "debounce", False) in why
    assert all(abs(d.t_s - 1.0) <= 0.5 for d in pipe.explain(1.0, window_s=0.5))


def test_the_example_counts_over_a_line_on_a_real_video(testdata: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model = yolox(testdata, tmp_path)
    video = testdata / "videos" / "car-detection.mp4"
    command = [sys.executable, str(ROOT / "examples" / "count_over_line.py"), str(model), str(video)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    *events, total = done.stdout.splitlines()
    crossings = [line.split()[-1] for line in events]
    assert total == f"in {crossings.count('line_in')}, out {crossings.count('line_out')}"
    assert len(crossings) >= 3


def yolox(testdata: Path, folder: Path) -> Path:
    """YOLOX-nano as it is published, preprocessing in the manifest."""
    size = {"mode": "letterbox", "align": "topleft", "pad": 114}
    image = {"name": "images", "shape": [1, 3, 416, 416], "dtype": "float32", "layout": "NCHW", "color": "bgr"}
    output = {"name": "output", "shape": [1, 3549, 85], "dtype": "float32"}
    manifest = tiny_manifest(
        "detection", input=image | {"resize": size}, outputs=[output], decoder={"name": "yolox", "params": {}}
    )
    entries = {
        "model/model.onnx": testdata / "models" / "yolox_nano_416.onnx",
        "labels.txt": "\n".join(str(i) for i in range(80)).encode(),
    }
    return write_artifact(folder / "yolox.edge", manifest=manifest, entries=entries, evidence={}).path


def test_edge_run_explains_a_moment_and_nothing_else(detector: Path, tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text(
        f'[source]\nuri = "synthetic:64x64?n=300"\n[[stage]]\nmodel = {json.dumps(str(detector))}\n'
        '[[stage]]\nkind = "alert"\nname = "late"\nparams = {min_frames = 9999}\n'
    )
    command = [sys.executable, "-m", "edge_sdk", "run", str(tmp_path / "p.toml"), "--explain", "5"]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=60, check=False)
    rows = json.loads(done.stdout)["explain"]
    assert rows
    assert all(abs(r["t_s"] - 5) <= 2 and r["stage"] == "late" for r in rows)
    text = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout
    assert rows[0]["why"] in text


def test_edge_run_refuses_to_explain_a_moment_that_is_no_number(detector: Path) -> None:
    command = [sys.executable, "-m", "edge_sdk", "run", "--model", str(detector), "--source", "0", "--explain", "nan"]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["message"] == "--explain takes seconds of the source, found nan"

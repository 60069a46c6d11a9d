"""OpenVINO's asynchronous mode (`requests` above 1), and what every runtime promises about outputs that it keeps."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from pipeline_parts import COLORS, eventually, frames

from edge_sdk import runtimes
from edge_sdk.artifact import Artifact
from edge_sdk.errors import BackendError, UsageError
from edge_sdk.pipeline import Pipeline
from edge_sdk.pipeline.measure import measure
from edge_sdk.pipeline.models import frame_threads
from edge_sdk.testing import CollectingSink, ListSource, build_artifact, fake_model, tiny_classifier_onnx

pytest.importorskip("openvino", reason="openvino is not installed")
REAL = ("fastestdet_352.onnx", "yunet_n_320.onnx", "person-detection-retail-0013.xml")
KEEPING = {"onnxruntime": "fastestdet_352.onnx", "openvino": "yunet_n_320.onnx", "litert": "vww_96_int8.tflite"}


class Prompt(ListSource):
    """A source whose frames wait for nothing, as those of a video file."""

    prompt = True


def open_runtime(path: Path, *, engine: str = "openvino", **options: Any) -> Any:
    table = runtimes.registry()
    if table.missing(engine):
        pytest.skip(f"{engine} is not installed")
    return table.load(engine)(path, options)


def feeds_of(runtime: Any, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {spec.name: rng.integers(0, 100, [d or 1 for d in spec.shape]).astype(spec.dtype) for spec in runtime.inputs}


def artifact(folder: Path, *, requests: int = 2, model: bytes | None = None, version: str = "1.0.0") -> Path:
    runtime = {"name": "openvino", "options": {"threads": 1, "requests": requests}}
    return build_artifact(folder / f"{version}.edge", runtime=runtime, model=model, version=version).path


@pytest.fixture
def tiny(tmp_path: Path) -> Any:
    path = tmp_path / "tiny.onnx"
    path.write_bytes(tiny_classifier_onnx())
    runtime = open_runtime(path, requests=2)
    yield runtime
    runtime.close()


@pytest.mark.parametrize("engine", KEEPING)
def test_outputs_that_are_kept_do_not_change_with_the_next_inference(engine: str, testdata: Path) -> None:
    runtime = open_runtime(testdata / "models" / KEEPING[engine], engine=engine)
    assert runtime.keeps_outputs
    kept = [runtime.infer(feeds_of(runtime, seed)) for seed in range(3)]
    for seed, outputs in enumerate(kept):
        for name, value in runtime.infer(feeds_of(runtime, seed)).items():
            np.testing.assert_array_equal(outputs[name], value)


SIGNALLED = """
import os, signal, sys, threading
from pathlib import Path
from edge_sdk import runtimes

signal.signal(signal.SIGTERM, lambda *_: print("handled"))
first, second = (runtimes.registry().load("openvino")(Path(sys.argv[1]), {}) for _ in range(2))
first.close()
del first
os.kill(os.getpid(), signal.SIGTERM)
held = [second]
del second
other = threading.Thread(target=lambda: held.pop().close())
other.start()
other.join()
os.kill(os.getpid(), signal.SIGTERM)
"""


def test_engines_that_are_closed_in_any_order_and_thread_leave_a_process_that_a_signal_does_not_end(
    tmp_path: Path,
) -> None:
    (tmp_path / "m.onnx").write_bytes(tiny_classifier_onnx())
    words = [sys.executable, "-c", SIGNALLED, str(tmp_path / "m.onnx")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "handled\nhandled\n"), done.stderr


@pytest.mark.parametrize("name", REAL)
def test_inferences_at_once_answer_what_one_after_the_other_does(name: str, testdata: Path) -> None:
    one = open_runtime(testdata / "models" / name)
    several = open_runtime(testdata / "models" / name, requests=2)
    assert (one.requests, several.requests) == (1, 2)
    given = [feeds_of(one, seed) for seed in range(5)]
    started = [several.start(feeds) for feeds in given]
    answers = [s.result() for s in reversed(started)][::-1]
    for feeds, started_one, answer in zip(given, started, answers, strict=True):
        assert started_one.result() is answer
        for key, value in one.infer(feeds).items():
            np.testing.assert_allclose(answer[key], value, rtol=1e-4, atol=1e-4)
    for key, value in several.infer(given[0]).items():
        np.testing.assert_allclose(answers[0][key], value, rtol=1e-4, atol=1e-4)


def test_wrong_feeds_are_refused_when_they_are_started_and_the_others_are_answered(tiny: Any) -> None:
    good = feeds_of(tiny)
    first = tiny.start(good)
    for feeds in ({}, {"nothing": good["image"]}, {"image": good["image"].astype("float32")}):
        with pytest.raises(BackendError, match="the model has inputs image uint8"):
            tiny.start(feeds)
    with pytest.raises(BackendError, match="openvino failed"):
        tiny.start({"image": good["image"][:, :3]})
    second = tiny.start(good)
    np.testing.assert_array_equal(first.result()["logits"], second.result()["logits"])


def test_an_inference_that_fails_says_so_in_its_answer_alone(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    wide = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, "n"])
    four = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 4])
    shape = onnx.helper.make_tensor("shape", onnx.TensorProto.INT64, [2], [1, 4])
    node = onnx.helper.make_node("Reshape", ["x", "shape"], ["y"])
    graph = onnx.helper.make_graph([node], "four", [wide], [four], [shape])
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    (tmp_path / "four.onnx").write_bytes(made.SerializeToString())
    runtime = open_runtime(tmp_path / "four.onnx", requests=2)
    good, bad = ({"x": np.ones((1, n), np.float32)} for n in (4, 5))
    started = [runtime.start(feeds) for feeds in (good, bad, good)]
    assert started[0].result()["y"].tolist() == started[2].result()["y"].tolist() == [[1.0] * 4]
    for _ in range(2):
        with pytest.raises(BackendError, match="openvino failed: .") as caught:
            started[1].result()
    assert caught.value.hint
    assert runtime.infer(good)["y"].tolist() == [[1.0] * 4]


def test_closing_waits_for_what_is_under_way_and_its_answers_can_still_be_fetched(testdata: Path) -> None:
    runtime = open_runtime(testdata / "models" / "yolox_nano_416.onnx", requests=2)
    feeds = feeds_of(runtime)
    expected = runtime.infer(feeds)
    started = [runtime.start(feeds) for _ in range(4)]
    runtime.close()
    runtime.close()
    for one in started:
        for key, value in one.result().items():
            np.testing.assert_allclose(value, expected[key], rtol=1e-4, atol=1e-4)
    for call in (runtime.start, runtime.infer):
        with pytest.raises(BackendError, match="the model is closed"):
            call(feeds)


def test_a_number_of_requests_out_of_range_is_named(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(tiny_classifier_onnx())
    with pytest.raises(UsageError, match="requests"):
        open_runtime(tmp_path / "m.onnx", requests=0)


@pytest.mark.parametrize("workers", [None, 1, 3])
def test_a_pipeline_with_several_requests_answers_every_frame_once_and_in_order(
    workers: int | None, tmp_path: Path
) -> None:
    sink = CollectingSink()
    report = Pipeline(Prompt(frames(90)), workers=workers).classify(artifact(tmp_path)).sink(sink).run(frames=85)
    assert [i.frame.index for i in sink.items] == list(range(85))
    assert [i.result.label(i.result.class_id) for i in sink.items] == [COLORS[i % 3] for i in range(85)]
    assert (report.frames_in, report.processed) == (85, 85)


def test_frames_with_nan_among_several_requests_are_dropped_alone(tmp_path: Path) -> None:
    # Above a mean of 100 of 255 a logit is infinite.
    model = tiny_classifier_onnx(gain=255 * 3.4e36)
    images = [np.full((48, 64, 3), 200 if i % 4 == 1 else 50, np.uint8) for i in range(60)]
    sink = CollectingSink()
    report = Pipeline(Prompt(images), workers=1).classify(artifact(tmp_path, model=model)).sink(sink).run()
    assert [i.frame.index for i in sink.items] == [i for i in range(60) if i % 4 != 1]
    assert dict(report.dropped) == {"nonfinite": 15}


def test_a_swap_with_requests_under_way_loses_no_frame(tmp_path: Path) -> None:
    old, new = artifact(tmp_path), artifact(tmp_path, version="2.0.0", requests=1)
    with Pipeline(Prompt(frames(120)), workers=2).classify(old) as pipe:
        seen = []
        for item in pipe:
            seen.append((item.frame.index, item.model))
            if len(seen) == 10:
                assert pipe.swap("classify", new)["artifact"] == "tiny-classification 2.0.0"
    assert [i for i, _ in seen] == list(range(120))
    assert {m for _, m in seen} <= {Artifact.open(p).sha256 for p in (old, new)}
    assert seen[-1][1] == Artifact.open(new).sha256


def test_stopping_with_requests_under_way_delivers_what_was_taken(tmp_path: Path) -> None:
    sink = CollectingSink()
    with Pipeline(Prompt(frames(2000)), workers=1).classify(artifact(tmp_path)).sink(sink) as pipe:
        for item in pipe:
            if item.frame.index == 20:
                pipe.stop()
        report = pipe.report()
    assert [i.frame.index for i in sink.items] == list(range(report.frames_in))


def test_a_source_that_fails_with_requests_under_way_costs_no_frame_before_it(tmp_path: Path) -> None:
    sink = CollectingSink()
    images = [*frames(50), BackendError("the disk is gone")]
    with pytest.raises(BackendError, match="the disk is gone"):
        Pipeline(Prompt(images), workers=1).classify(artifact(tmp_path)).sink(sink).run()
    assert [i.frame.index for i in sink.items] == list(range(50))


def test_an_inference_that_never_ends_shows_as_a_frame_thread_that_infers() -> None:
    let_go = threading.Event()

    class Never:
        def result(self) -> dict[str, Any]:
            let_go.wait(30)
            return {"logits": np.zeros((1, 3), np.float32)}

    model: Any = fake_model(lambda image: (0.0, 0.0, 1.0))
    model.keeps_outputs, model.requests = True, 2
    model.start = lambda feeds: Never()
    pipe = Pipeline(Prompt(frames(40))).classify(model)
    pipe.start(hand_out=False)
    try:
        eventually(lambda: pipe.busy(time.monotonic() + 60)[0] == "infer")
        assert pipe.busy(time.monotonic() + 60)[1] > 50
    finally:
        let_go.set()
        pipe.close()
    assert pipe.report().processed > 0


def test_an_engine_with_two_requests_takes_the_place_of_two_frame_threads(tmp_path: Path) -> None:
    one, two = (Artifact.open(artifact(tmp_path, requests=n, version=f"{n}.0.0")) for n in (1, 2))
    assert frame_threads(two, live=False) == max(1, frame_threads(one, live=False) // 2)
    assert frame_threads(two, live=True) == 1


def test_bench_measures_an_engine_with_several_requests(tmp_path: Path) -> None:
    made = artifact(tmp_path)
    pipeline = {"source": {"uri": "synthetic:64x48?n=40"}, "stage": [{"kind": "classify", "model": str(made)}]}
    result = measure({"pipeline": pipeline, "frames": 30, "rounds": 1}, lambda line: None)
    assert (result["frames"], result["workers"]) == (30, frame_threads(Artifact.open(made), live=False))
    assert result["engine_cpu_ms"] > 0

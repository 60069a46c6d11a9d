"""Several pipelines in one worker: commands reach the one that is named, and engines are shared where that is sound."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from support import until

from edge_sdk.agent.process import Worker
from edge_sdk.errors import ArtifactError, SourceError, UsageError
from edge_sdk.pipeline import Cameras, Pipeline
from edge_sdk.pipeline.shared import SharedArtifacts, why_not
from edge_sdk.testing import build_artifact, color_frame, tiny_classifier_onnx

LIVE = "synthetic:64x48?fps=100&live=1"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    return build_artifact(tmp_path_factory.mktemp("artifacts") / "colors.edge").path


@pytest.fixture
def worker(artifact):
    ready = threading.Event()
    cameras = [
        {"name": name, "pipeline": {"source": {"uri": LIVE}, "stage": [{"name": "sort", "model": str(artifact)}]}}
        for name in ("door", "yard")
    ]
    worker = Worker({"mode": "group", "cameras": cameras}, on_event=lambda e: e["event"] == "ready" and ready.set())
    worker.start()
    assert ready.wait(30), worker.log_tail
    yield worker
    worker.stop()


def stats(worker: Worker) -> dict:
    return worker.request("stats")["stats"]["cameras"]


def test_a_command_changes_the_camera_that_it_names_and_no_other(worker, artifact, tmp_path):
    other = build_artifact(tmp_path / "other.edge", model=tiny_classifier_onnx(gain=4.0)).path
    before = stats(worker)
    assert before["door"]["model"] == before["yard"]["model"]
    worker.request("swap", camera="door", stage="sort", artifact=str(other))
    after = stats(worker)
    assert after["door"]["model"] != before["door"]["model"]
    assert after["yard"]["model"] == before["yard"]["model"]
    assert after["yard"]["errors"] == {}
    worker.request("stop", camera="yard")
    seen = stats(worker)["door"]["frames"]
    until(lambda: stats(worker)["door"]["frames"] >= seen + 20)
    until(lambda: "yard" not in stats(worker))
    with pytest.raises(SourceError, match="camera `yard` does not run now"):
        worker.request("selftest", camera="yard")


def test_a_command_without_a_camera_or_with_an_unknown_one_names_those_that_there_are(worker):
    with pytest.raises(UsageError, match="`swap` needs the name of a camera in `camera`") as caught:
        worker.request("swap", stage="sort", artifact="none.edge")
    assert caught.value.hint == "cameras: door, yard"
    with pytest.raises(UsageError):
        worker.request("swap", camera="dor", stage="sort", artifact="none.edge")


def test_cameras_give_results_by_name_and_stop_one_by_one(artifact):
    cameras = Cameras({n: Pipeline(LIVE).classify(artifact) for n in ("a", "b")})
    seen = {"a": 0, "b": 0}
    with cameras:
        for name, item in cameras:
            assert item.result.labels
            seen[name] += 1
            if seen["a"] == 10:
                cameras["a"].stop()
            if seen["b"] == 200:
                break
    assert seen["a"] < 200
    assert cameras.report()["totals"]["failed"] == 0


def test_what_one_camera_fails_with_stands_in_its_report(artifact, tmp_path):
    def broken(tmp: Path) -> Path:
        path = tmp / "broken.edge"
        path.write_bytes(b"no artifact")
        return path

    cameras = Cameras(
        {
            "good": Pipeline("synthetic:64x48?n=20").classify(artifact),
            "bad": Pipeline("synthetic:64x48?n=20").classify(broken(tmp_path)),
        }
    )
    report = cameras.run()
    assert report["cameras"]["good"]["frames"]["processed"] == 20
    assert report["cameras"]["bad"]["error"]["kind"] == "artifact"
    assert report["error"]["exit"] == 4
    assert isinstance(cameras.errors["bad"], ArtifactError)


def test_no_camera_at_all_is_refused():
    with pytest.raises(UsageError, match="there is no camera"):
        Cameras({})


def test_one_engine_serves_equal_artifacts_and_closes_with_its_last_user(artifact, tmp_path):
    copy = tmp_path / "copy.edge"
    copy.write_bytes(artifact.read_bytes())
    shared = SharedArtifacts()
    first, second = shared.artifact(artifact), shared.artifact(copy)
    a, b, another = first.load(), second.load(), first.load()
    assert a.runtime._runtime is b.runtime._runtime
    assert another.runtime._runtime is not a.runtime._runtime
    session = a.runtime._runtime
    answer = a(color_frame("red")).class_id
    a.close()
    assert b(color_frame("red")).class_id == answer == 2
    b.close()
    another.close()
    assert session._session is None
    assert first.load()(color_frame("blue")).class_id == 0


def test_engines_that_share_answer_side_by_side_as_alone(artifact):
    shared = SharedArtifacts()
    models = [shared.artifact(artifact).load() for _ in range(4)]
    wrong: list[int] = []

    def work(i: int) -> None:
        frame, expected = color_frame(("blue", "green", "red")[i % 3]), i % 3
        wrong.extend(i for _ in range(300) if models[i](frame).class_id != expected)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize(
    ("runtime", "words"),
    [("openvino", "one stream"), ("litert", "tensors of one inference"), ("other", "does not say")],
)
def test_runtimes_that_cannot_be_shared_say_why(runtime, words):
    assert words in why_not(runtime)
    assert why_not("onnxruntime") is None

"""A pipeline from source to sinks: order, losses, failures, swaps."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from edge_sdk.backoff import Backoff
from edge_sdk.errors import ArtifactError, BackendError, ConfigError, SinkError, SourceError, UsageError
from edge_sdk.pipeline import Pipeline
from edge_sdk.pipeline.burst import burst_size
from edge_sdk.pipeline.feeds import LiveFeed, _Pace
from edge_sdk.pipeline.report import Quantiles
from edge_sdk.pipeline_config import PipelineConfig
from edge_sdk.sources.base import BrokenFrame, Frame
from edge_sdk.testing import (
    CollectingSink,
    ListSource,
    build_artifact,
    color_frame,
    fake_model,
    tiny_classifier_onnx,
)

COLORS = ("blue", "green", "red")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    return build_artifact(tmp_path_factory.mktemp("artifacts") / "colors.edge").path


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return build_artifact(tmp_path_factory.mktemp("artifacts") / "colors2.edge", version="2.0.0").path


def frames(n: int) -> list:
    return [color_frame(COLORS[i % 3]) for i in range(n)]


class Watcher:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.results: list[int] = []
        self.errors: list[tuple[str, str]] = []
        self.drops: list[tuple[str, int]] = []
        self.threads: set[str] = set()
        self.closed = False

    def on_result(self, item) -> None:
        self.threads.add(threading.current_thread().name)
        self.results.append(item.frame.index)

    def on_error(self, kind, detail) -> None:
        self.errors.append((kind, detail))

    def on_drop(self, cause, n) -> None:
        self.drops.append((cause, n))

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_every_frame_of_a_file_is_answered_once_and_in_order(artifact, workers):
    sink, watcher = CollectingSink(), Watcher()
    report = Pipeline(ListSource(frames(60)), workers=workers).classify(artifact).sink(sink).observe(watcher).run()
    assert [i.frame.index for i in sink.items] == list(range(60))
    assert [i.result.label(i.result.class_id) for i in sink.items] == [COLORS[i % 3] for i in range(60)]
    assert watcher.results == list(range(60))
    assert watcher.closed
    assert len(watcher.threads) == 1
    assert (report.frames_in, report.processed, dict(report.dropped)) == (60, 60, {})
    assert {k: v["frames"] for k, v in report.results.items()} == {"blue": 20, "green": 20, "red": 20}


def test_the_report_has_the_keys_that_stay(artifact):
    data = Pipeline(ListSource(frames(5))).classify(artifact).run().to_json()
    assert {"frames", "fps", "cpu_ms_per_frame", "latency_ms", "frame_age_ms", "rss_mb", "stages", "model"} <= set(data)
    assert set(data["frames"]) == {"in", "processed", "dropped"}
    assert set(data["latency_ms"]) == {"p50", "p95", "p99"}
    json.dumps(data, allow_nan=False)


def test_iterating_gives_results_in_order_and_ends(artifact):
    with Pipeline(ListSource(frames(20))).classify(artifact) as pipe:
        found = [item.frame.index for item in pipe]
    assert found == list(range(20))


def test_leaving_the_loop_early_stops_the_pipeline(artifact):
    source = ListSource(frames(500))
    with Pipeline(source).classify(artifact) as pipe:
        for item in pipe:
            if item.frame.index == 3:
                break
    assert not source.opened
    assert pipe.report().frames_in < 100


def test_a_limit_of_frames_is_kept(artifact):
    report = Pipeline(ListSource(frames(50)), workers=2).classify(artifact).run(frames=7)
    assert (report.frames_in, report.processed) == (7, 7)


def test_a_slow_sink_of_a_file_job_loses_nothing(artifact):
    gate = threading.Semaphore(0)

    class Slow(CollectingSink):
        def write(self, item) -> None:
            gate.acquire()
            super().write(item)

    sink = Slow()
    pipe = Pipeline(ListSource(frames(40)), workers=2).classify(artifact).sink(sink).start(hand_out=False)
    gate.release(40)
    report = pipe.wait()
    assert len(sink.items) == 40
    assert report.sinks[0]["written"] == 40
    assert report.sinks[0]["dropped"] == 0


def test_a_sink_that_fails_ends_a_file_job_with_its_error(artifact):
    class Full(CollectingSink):
        def write(self, item) -> None:
            if len(self.items) == 3:
                raise SinkError("`out.jsonl`: no space left on device")
            super().write(item)

    watcher = Watcher()
    with pytest.raises(SinkError, match="no space left"):
        Pipeline(ListSource(frames(200))).classify(artifact).sink(Full()).observe(watcher).run()
    assert ("sink", "collect:: `out.jsonl`: no space left on device") in watcher.errors


def test_a_frame_that_the_model_cannot_answer_is_counted_and_the_next_goes_on():
    def answer(image):
        if image[0, 0, 1] > 128:
            raise BackendError("the engine failed")
        return image.reshape(-1, 3).mean(axis=0)

    watcher, sink = Watcher(), CollectingSink()
    model = fake_model(answer)
    report = Pipeline(ListSource(frames(9))).classify(model).observe(watcher).sink(sink).run()
    assert (report.frames_in, report.processed, dict(report.dropped)) == (9, 6, {"infer": 3})
    assert [i.frame.index for i in sink.items] == [0, 2, 3, 5, 6, 8]
    assert watcher.errors[0] == ("infer", "frame 1: the engine failed")
    assert ("infer", 1) in watcher.drops


def test_an_output_that_is_not_a_number_is_counted_by_its_name():
    model = fake_model(lambda image: [np.nan, 0, 0] if image[0, 0, 1] > 128 else [1, 0, 0])
    watcher = Watcher()
    report = Pipeline(ListSource(frames(6))).classify(model).observe(watcher).run()
    assert dict(report.errors) == {"nonfinite": 2}
    assert dict(report.dropped) == {"nonfinite": 2}
    assert watcher.errors[0][0] == "nonfinite"


def test_a_run_in_which_every_frame_failed_is_a_failure():
    model = fake_model(lambda image: [np.nan, 0, 0])
    with pytest.raises(BackendError, match="NaN"):
        Pipeline(ListSource(frames(3))).classify(model).run()


def test_a_broken_frame_is_skipped_with_its_name(artifact):
    images = frames(4)
    images[2] = BrokenFrame("image `c.png` is cut", name="c.png")
    report = Pipeline(ListSource(images)).classify(artifact).run()
    assert (report.frames_in, report.processed, dict(report.dropped)) == (4, 3, {"broken": 1})
    assert report.broken == ("c.png",)


def test_a_folder_of_nothing_but_broken_images_is_a_source_error(artifact):
    images = [BrokenFrame(f"image `{n}.png` is cut", name=f"{n}.png") for n in range(3)]
    with pytest.raises(SourceError, match=r"none of 3 images can be decoded; the first: image `0.png` is cut"):
        Pipeline(ListSource(images)).classify(artifact).run()


def test_a_source_that_fails_in_the_middle_delivers_what_came_before_and_then_raises(artifact):
    images = [*frames(5), SourceError("the disk is gone")]
    sink = CollectingSink()
    with pytest.raises(SourceError, match="the disk is gone"):
        Pipeline(ListSource(images), workers=2).classify(artifact).sink(sink).run()
    assert [i.frame.index for i in sink.items] == [0, 1, 2, 3, 4]


def test_a_broken_observer_stops_nothing(artifact, caplog):
    class Broken(Watcher):
        def on_result(self, item) -> None:
            raise RuntimeError("observer bug")

    good = Watcher()
    report = Pipeline(ListSource(frames(4))).classify(artifact).observe(Broken()).observe(good).run()
    assert report.processed == 4
    assert good.results == [0, 1, 2, 3]
    assert "observer bug" in caplog.text


def test_a_swap_changes_the_model_between_two_frames_and_loses_none(artifact, other):
    step = threading.Semaphore(4)

    class Stepped(ListSource):
        def grab(self) -> bool:
            step.acquire()
            return super().grab()

    with Pipeline(Stepped(frames(60)), workers=2).classify(artifact) as pipe:
        seen = []
        for item in pipe:
            seen.append((item.frame.index, item.model))
            if len(seen) == 4:
                assert pipe.swap("classify", other)["artifact"] == "tiny-classification 2.0.0"
                step.release(100)
    assert [i for i, _ in seen] == list(range(60))
    models = [m for _, m in seen]
    assert len(set(models)) == 2
    first_new = models.index(models[-1])
    assert models == models[:1] * first_new + models[-1:] * (60 - first_new)


class Prompt(ListSource):
    """A source whose frames wait for nothing, as those of a video file."""

    prompt = True


@pytest.mark.parametrize("workers", [1, 3])
def test_frames_taken_several_at_once_are_all_answered_in_order(artifact, workers):
    sink = CollectingSink()
    images = frames(70)
    report = Pipeline(Prompt(images), workers=workers).classify(artifact).sink(sink).run(frames=67)
    assert [i.frame.index for i in sink.items] == list(range(67))
    assert [i.result.label(i.result.class_id) for i in sink.items] == [COLORS[i % 3] for i in range(67)]
    assert (report.frames_in, report.processed) == (67, 67)
    assert all(i.latency_ms > 0 for i in sink.items)


def test_frames_taken_before_the_source_fails_are_answered(artifact):
    sink = CollectingSink()
    images = [*frames(30), SourceError("the disk is gone")]
    with pytest.raises(SourceError, match="the disk is gone"):
        Pipeline(Prompt(images), workers=1).classify(artifact).sink(sink).run()
    assert [i.frame.index for i in sink.items] == list(range(30))


def test_a_frame_that_fails_among_several_takes_no_other_with_it():
    def picky(image):
        if image[0, 0, 1] > 128:
            raise BackendError("the engine failed")
        return image.reshape(-1, 3).mean(axis=0)

    sink, model = CollectingSink(), fake_model(picky)
    model.keeps_outputs = True
    report = Pipeline(Prompt(frames(60))).classify(model).sink(sink).run()
    assert [i.frame.index for i in sink.items] == [i for i in range(60) if i % 3 != 1]
    assert dict(report.dropped) == {"infer": 20}


@pytest.mark.parametrize(
    ("shape", "service_s", "frames"),
    [((432, 768, 3), 0.003, 8), ((1080, 1920, 3), 0.003, 1), ((432, 768, 3), 0.03, 3), ((432, 768, 3), None, 1)],
)
def test_how_many_frames_a_thread_takes_is_bounded_by_memory_and_time(shape, service_s, frames):
    frame = Frame(np.zeros(shape, np.uint8), 0, 0.0, 0.0, "file")
    assert burst_size(frame, service_s) == frames


@pytest.fixture
def running(artifact):
    hold = threading.Event()

    class Held(ListSource):
        def grab(self) -> bool:
            if self._next >= 2:
                hold.wait(20)
            return super().grab()

    with Pipeline(Held(frames(6)), workers=1).classify(artifact) as pipe:
        yield pipe, hold
        hold.set()


@pytest.mark.parametrize("case", ["bad-golden", "not-an-artifact", "another-task"])
def test_a_swap_that_fails_keeps_the_old_model(running, tmp_path, case):
    pipe, hold = running
    before = pipe.describe()["model"]
    if case == "bad-golden":
        new = build_artifact(tmp_path / "new.edge", model=tiny_classifier_onnx(constant=0.0)).path
        expected = pytest.raises(ArtifactError, match="self-tests on this machine")
    elif case == "not-an-artifact":
        new = tmp_path / "new.edge"
        new.write_bytes(b"nothing")
        expected = pytest.raises(ArtifactError, match="not a zip")
    else:
        new = build_artifact(tmp_path / "new.edge", task="detection").path
        expected = pytest.raises(ConfigError, match="needs a model for classification")
    with expected:
        pipe.swap("classify", new)
    hold.set()
    assert [i.model for i in pipe] == [before] * 6


def test_a_swap_of_an_unknown_stage_names_the_stage_there_is(running, artifact):
    pipe, _ = running
    with pytest.raises(UsageError, match="no stage `detect`") as caught:
        pipe.swap("detect", artifact)
    assert "classify" in caught.value.hint


def test_a_pipeline_without_a_model_says_so():
    with pytest.raises(UsageError, match="no model"):
        Pipeline(ListSource(frames(1))).run()


# -- live sources ---------------------------------------------------------------------------------------------------


class Camera:
    """A live source whose frames come when the test lets them."""

    live = True
    fps = None

    def __init__(self, script: Script) -> None:
        self.uri = "camera:test"
        self._script = script
        self.closed = False
        self._index = -1

    def open(self) -> None:
        self._script.opened.append(self)
        if self._script.refuse:
            raise SourceError("`camera:test` cannot be opened: no such host")

    def grab(self) -> bool:
        self._script.step.acquire()
        if self._script.fail.is_set():
            self._script.fail.clear()
            raise SourceError("`camera:test` stopped giving frames")
        self._index += 1
        return not self._script.over.is_set()

    def retrieve(self) -> Frame:
        self._script.decoded += 1
        return Frame(color_frame("red"), self._index, self._index * 0.1, time.monotonic(), self.uri)

    def close(self) -> None:
        self.closed = True


class Script:
    def __init__(self, *, refuse: bool = False) -> None:
        self.step = threading.Semaphore(0)
        self.fail, self.over = threading.Event(), threading.Event()
        self.opened: list[Camera] = []
        self.decoded = 0
        self.refuse = refuse


class Events:
    def __init__(self) -> None:
        self.n = 0
        self.drops: list[str] = []
        self.lost: list[str] = []
        self.back = threading.Event()

    def grabbed(self) -> None:
        self.n += 1

    def dropped(self, cause) -> None:
        self.drops.append(cause)

    def broken(self, error) -> None: ...

    def source_lost(self, error) -> None:
        self.lost.append(error.message)

    def source_back(self) -> None:
        self.back.set()


def eventually(condition) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that within 10 s"
        time.sleep(0.005)


QUICK = Backoff(first_s=0.01, max_s=0.02)


def test_a_camera_that_fails_is_opened_again(artifact):
    script, events = Script(), Events()
    feed = LiveFeed(lambda: Camera(script), events, backoff=QUICK)
    script.step.release(1)
    feed.start()
    assert feed.next() is not None
    script.fail.set()
    script.step.release(2)
    assert feed.next() is not None
    assert events.back.wait(5)
    assert events.lost == ["`camera:test` stopped giving frames"]
    assert len(script.opened) == 2
    assert script.opened[0].closed
    script.over.set()
    script.step.release(10)
    feed.close()


def test_a_camera_that_freezes_is_noticed_from_another_thread_and_left_behind():
    script, events = Script(), Events()
    feed = LiveFeed(lambda: Camera(script), events, backoff=QUICK, stall_s=0.2)
    script.step.release(1)
    feed.start()
    assert feed.next() is not None
    eventually(lambda: len(script.opened) == 2)
    assert events.lost == ["`camera:test` gave no frame for 0.2 s"]
    script.step.release(2)
    assert feed.next() is not None
    script.over.set()
    script.step.release(10)
    feed.close()


def test_a_decoder_that_hangs_again_and_again_ends_the_feed_for_a_fresh_process():
    script, events = Script(), Events()
    feed = LiveFeed(lambda: Camera(script), events, backoff=QUICK, stall_s=0.1, open_s=0.1)
    script.step.release(1)
    feed.start()
    assert feed.next() is not None
    with pytest.raises(SourceError, match="3 readers hang"):
        feed.next()
    script.over.set()
    script.step.release(10)
    feed.close()


def test_a_camera_that_cannot_be_opened_at_first_is_an_error_at_once():
    feed = LiveFeed(lambda: Camera(Script(refuse=True)), Events(), backoff=QUICK)
    with pytest.raises(SourceError, match="no such host"):
        feed.start()
    feed.close()


def test_a_device_keeps_trying_a_camera_that_is_not_there_yet():
    script, events = Script(refuse=True), Events()
    feed = LiveFeed(lambda: Camera(script), events, backoff=QUICK, retry_first=True)
    feed.start()
    eventually(lambda: len(script.opened) >= 3)
    script.refuse = False
    script.step.release(1)
    assert feed.next() is not None
    script.over.set()
    script.step.release(10)
    feed.close()


def test_a_slow_reader_of_a_camera_gets_the_latest_frame_and_the_rest_is_counted():
    script, events = Script(), Events()
    feed = LiveFeed(lambda: Camera(script), events, backoff=QUICK)
    script.step.release(1)
    feed.start()
    assert feed.next().index == 0
    script.step.release(9)
    eventually(lambda: len(events.drops) + len(feed._slot) == 9)
    frame = feed.next()
    assert set(events.drops) == {"latest"}
    assert frame.index >= 1
    script.over.set()
    script.step.release(10)
    feed.close()


def test_frames_that_no_thread_will_be_free_for_are_not_decoded():
    pace = _Pace()
    for start in range(3):
        pace.idle(start * 0.3)
        pace.busy(start * 0.3)
        for frame in range(3):
            pace.arrival(start * 0.3 + frame * 0.1)
    pace.idle(0.9)
    pace.busy(0.9)
    assert [pace.wants(0.9 + dt) for dt in (0.05, 0.1, 0.25)] == [False, False, True]


def test_a_live_pipeline_stops_cleanly_and_accounts_for_every_frame(artifact):
    pipe = Pipeline("synthetic:64x48?fps=200&live=1").classify(artifact)
    seen = []
    with pipe:
        for item in pipe:
            seen.append(item.frame.index)
            if len(seen) == 10:
                break
    report = pipe.report()
    assert seen == sorted(set(seen))
    assert report.policy == "latest"
    assert report.processed + sum(report.dropped.values()) == report.frames_in


def test_a_file_played_as_the_latest_frame_keeps_its_own_pace(artifact):
    began = time.monotonic()
    report = Pipeline(ListSource(frames(5), fps=20.0), policy="latest").classify(artifact).run()
    assert time.monotonic() - began >= 4 / 20
    assert report.processed + sum(report.dropped.values()) == 5


# -- configuration --------------------------------------------------------------------------------------------------


def test_a_pipeline_file_runs_with_paths_relative_to_itself(artifact, tmp_path, monkeypatch):
    import cv2

    (tmp_path / "photos").mkdir()
    for i, color in enumerate(COLORS):
        cv2.imwrite(str(tmp_path / "photos" / f"{i}.png"), color_frame(color))
    (tmp_path / "m.edge").write_bytes(Path(artifact).read_bytes())
    (tmp_path / "p.toml").write_text(
        '[source]\nuri = "photos"\n[[stage]]\nname = "sort"\nkind = "classify"\nmodel = "m.edge"\n'
        '[[sink]]\nuri = "out.jsonl"\n'
    )
    monkeypatch.chdir("/")
    report = Pipeline.from_config(PipelineConfig.from_toml(tmp_path / "p.toml")).run()
    assert report.stage["name"] == "sort"
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["classes"][0]["label"] for line in lines] == list(COLORS)
    assert set(lines[0]) == {"v", "frame", "t_s", "source", "model", "classes"}


def test_every_wrong_key_of_a_pipeline_file_is_named_at_once(tmp_path):
    (tmp_path / "p.toml").write_text(
        '[source]\nuri = "a.mp4"\npolicy = "newest"\n[[stage]]\nknd = "detect"\n[[sink]]\nuri = 3\n[extra]\n'
    )
    with pytest.raises(ConfigError) as caught:
        PipelineConfig.from_toml(tmp_path / "p.toml")
    text = caught.value.message
    for words in (
        "source.policy: expected one of",
        "stage[0].knd: unknown key, did you mean `kind`?",
        "extra: unknown key",
    ):
        assert words in text
    assert "sink[0].uri: expected a string" in text


def test_values_that_cannot_work_are_named_at_once(tmp_path):
    (tmp_path / "p.toml").write_text(
        '[source]\nuri = "rtp://u:s3cret@cam"\n[[stage]]\nmodel = "a.edge"\n'
        '[[sink]]\nuri = "out.xyz"\n[[sink]]\nuri = "mqt://h/t"\n[[sink]]\nuri="a.csv"\n[[sink]]\nuri="csv:a.csv"\n'
    )
    with pytest.raises(ConfigError) as caught:
        PipelineConfig.from_toml(tmp_path / "p.toml")
    text = caught.value.message
    assert "4 problems" in text
    assert "source.uri: unknown source `rtp`" in text
    assert "sink[0].uri" in text
    assert "unknown sink `mqt`, did you mean `mqtt`?" in text
    assert "sink[3].uri: `a.csv` is written twice" in text
    assert "s3cret" not in text


def test_a_stage_that_waits_for_a_slot_cannot_be_run_alone():
    config = PipelineConfig.from_mapping({"source": {"uri": "0"}, "stage": [{}]})
    with pytest.raises(UsageError, match="takes its model from a slot"):
        Pipeline.from_config(config)
    assert config.with_model("a.edge").stages[0].model == "a.edge"


def test_a_model_of_another_task_is_refused(artifact):
    with pytest.raises(ConfigError, match="stage kind `detect` needs a model for detection"):
        Pipeline(ListSource(frames(1))).detect(artifact).run()


def test_quantiles_of_many_values_stay_within_one_per_cent():
    quantiles = Quantiles()
    for value in range(1, 10_001):
        quantiles.add(value / 10)
    assert quantiles.at(0.5) == pytest.approx(500, rel=0.01)
    assert quantiles.at(0.99) == pytest.approx(990, rel=0.01)
    assert Quantiles().to_json() == {"p50": None, "p95": None, "p99": None}


def test_waits_double_with_jitter_and_stop_growing():
    backoff = Backoff(first_s=1.0, max_s=8.0)
    assert [backoff.delay_s(n, lambda: 1.0) for n in range(6)] == [1, 2, 4, 8, 8, 8]
    assert backoff.delay_s(1, lambda: 0.0) == 1.0

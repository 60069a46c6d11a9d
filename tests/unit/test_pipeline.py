"""A pipeline over a file, from source to sinks: order, losses, failures."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from pipeline_parts import COLORS, Watcher, frames

from edge_sdk.errors import BackendError, SinkError, SourceError, UsageError
from edge_sdk.pipeline import Pipeline
from edge_sdk.pipeline.burst import burst_size
from edge_sdk.sources.base import BrokenFrame, Frame
from edge_sdk.testing import CollectingSink, ListSource, build_artifact, fake_model


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    return build_artifact(tmp_path_factory.mktemp("artifacts") / "colors.edge").path


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
    [((432, 768, 3), 0.003, 12), ((1080, 1920, 3), 0.003, 2), ((432, 768, 3), 0.04, 3), ((432, 768, 3), None, 1)],
)
def test_how_many_frames_a_thread_takes_is_bounded_by_memory_and_time(shape, service_s, frames):
    frame = Frame(np.zeros(shape, np.uint8), 0, 0.0, 0.0, "file")
    assert burst_size(frame, service_s) == frames


def test_a_pipeline_without_a_model_says_so():
    with pytest.raises(UsageError, match="no model"):
        Pipeline(ListSource(frames(1))).run()

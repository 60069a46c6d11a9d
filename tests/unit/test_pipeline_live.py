"""Live sources: the latest frame, freezes, reconnects."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from pipeline_parts import eventually, frames

from edge_sdk.backoff import Backoff
from edge_sdk.errors import SourceError
from edge_sdk.pipeline import Pipeline
from edge_sdk.pipeline.feeds import LiveFeed, _Pace
from edge_sdk.sources.base import Frame
from edge_sdk.testing import ListSource, build_artifact, color_frame


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    return build_artifact(tmp_path_factory.mktemp("artifacts") / "colors.edge").path


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
    assert events.back.wait(60)
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

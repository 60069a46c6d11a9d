"""What a live feed does with readers that hang and with sources that come within reach again."""

from __future__ import annotations

import threading
import time

from edge_sdk.backoff import Backoff
from edge_sdk.errors import SourceError
from edge_sdk.pipeline.feeds import LiveFeed
from edge_sdk.sources.base import Frame
from edge_sdk.testing import color_frame

SLOW = Backoff(first_s=600.0, max_s=600.0)
QUICK = Backoff(first_s=0.01, max_s=0.02)


class World:
    """What the cameras of one test share."""

    def __init__(self) -> None:
        self.there = threading.Event()
        self.there.set()
        self.hang = threading.Event()
        self.interrupted = 0
        self.lost: list[str] = []
        self.back = threading.Event()

    def grabbed(self) -> None: ...

    def dropped(self, cause: str) -> None: ...

    def broken(self, error: Exception) -> None: ...

    def source_lost(self, error: SourceError) -> None:
        self.lost.append(error.message)

    def source_back(self) -> None:
        self.back.set()


class Camera:
    """Gives a frame a hundred times a second while the world is `there`, and none while it hangs."""

    live = True
    fps = None
    uri = "camera:test"

    def __init__(self, world: World) -> None:
        self.world = world
        self.free = threading.Event()
        self.index = -1

    def open(self) -> None:
        if not self.world.there.is_set():
            raise SourceError("`camera:test` cannot be opened")

    def grab(self) -> bool:
        time.sleep(0.01)
        if not self.world.there.is_set():
            raise SourceError("`camera:test` stopped giving frames")
        if self.world.hang.is_set():
            self.free.wait()
            raise SourceError("`camera:test` was closed")
        self.index += 1
        return True

    def retrieve(self) -> Frame:
        return Frame(color_frame("red"), self.index, 0.0, time.monotonic(), self.uri)

    def close(self) -> None: ...


class Reachable(Camera):
    def reachable(self) -> bool:
        return self.world.there.is_set()


class Interruptible(Camera):
    def interrupt(self) -> None:
        self.world.interrupted += 1
        self.free.set()


class Patient(Camera):
    patient = True

    def grab(self) -> bool:
        self.free.wait(0.5)
        return super().grab()


def frames(feed: LiveFeed, n: int) -> None:
    for _ in range(n):
        assert feed.next() is not None


def test_a_camera_that_comes_within_reach_is_opened_without_waiting_out_the_pause():
    world = World()
    feed = LiveFeed(lambda: Reachable(world), world, backoff=SLOW)
    feed.start()
    frames(feed, 3)
    world.there.clear()
    while not world.lost:
        time.sleep(0.01)
    threading.Timer(0.8, world.there.set).start()
    # The pause would be five minutes and more.
    assert world.back.wait(30)
    feed.close()


def test_a_reader_that_hangs_is_interrupted_and_its_thread_ends():
    world = World()
    feed = LiveFeed(lambda: Interruptible(world), world, backoff=QUICK, stall_s=0.2)
    feed.start()
    frames(feed, 3)
    for round_ in range(1, 6):
        world.hang.set()
        while len(world.lost) < round_:
            time.sleep(0.01)
        world.hang.clear()
        assert world.back.wait(30)
        world.back.clear()
    assert world.interrupted >= 5
    feed.close()
    assert not [t for t in threading.enumerate() if t.name == "source-read" and t.is_alive()]


def test_after_one_that_cannot_be_interrupted_comes_one_in_a_process_of_its_own():
    world, made = World(), []

    def isolated() -> Camera:
        made.append(Interruptible(World()))
        return made[-1]

    stuck = Camera(world)
    feed = LiveFeed(lambda: stuck, world, make_isolated=isolated, backoff=QUICK, stall_s=0.2)
    feed.start()
    frames(feed, 3)
    world.hang.set()
    assert world.back.wait(30)
    assert len(made) == 1
    frames(feed, 3)
    stuck.free.set()
    feed.close()


def test_a_patient_source_is_never_called_silent():
    world = World()
    feed = LiveFeed(lambda: Patient(world), world, backoff=QUICK, stall_s=0.1)
    feed.start()
    frames(feed, 2)
    assert world.lost == []
    feed.close()

"""How a frame thread takes frames: one or several, prepared as they come."""

from __future__ import annotations

import numpy as np
import pytest

from edge_sdk.pipeline.burst import MAX_FRAMES, Taken
from edge_sdk.pipeline.models import ModelSet, ModelSlot
from edge_sdk.pipeline.order import InOrder
from edge_sdk.pipeline.pull import Puller
from edge_sdk.sinks.base import Origin
from edge_sdk.sources.base import Frame
from edge_sdk.testing import fake_model


class Feed:
    """Frames in memory; calls `meanwhile`, as another thread would, before it gives one."""

    def __init__(self, n: int) -> None:
        self.left = [Frame(np.full((32, 32, 3), i, np.uint8), i, float(i), 0.0, "memory:") for i in range(n)]
        self.meanwhile = lambda: None

    def next(self) -> Frame | None:
        self.meanwhile()
        return self.left.pop(0) if self.left else None


@pytest.fixture
def feed() -> Feed:
    return Feed(20)


@pytest.fixture
def puller(feed: Feed) -> Puller:
    model = fake_model(lambda _image: (0.0, 0.0, 1.0))
    model.keeps_outputs = True
    order: InOrder[Taken] = InOrder(lambda _item: None)
    return Puller(
        feed,  # type: ignore[arg-type]
        ModelSlot(ModelSet((model,))),
        order,
        origin=lambda frame: Origin.CARRIED if frame.index == 3 else Origin.INFERRED,
        note=lambda _i, _what: None,
        workers=2,
        frames=None,
        lossless=True,
        single=False,
    )


def quick(puller: Puller) -> None:
    """Tell the puller that a frame keeps a thread for a millisecond."""
    puller.served(
        [Taken(0, Frame(np.zeros((32, 32, 3), np.uint8), 0, 0.0, 0.0, "memory:"), 0.0, Origin.INFERRED)], 1e-3
    )


def test_of_several_frames_each_has_feeds_of_its_own_when_it_is_taken(puller):
    quick(puller)
    taken, models = puller.pull(0, wait=True)
    assert [one.frame.index for one in taken] == list(range(MAX_FRAMES))
    assert [one.feeds is None for one in taken] == [one.frame.index == 3 for one in taken]
    for one in taken:
        if one.feeds is not None:
            (tensor,) = one.feeds.values()
            assert np.array_equal(tensor, models.models[0].prepare(one.frame.image)[0]["image"])


def test_a_frame_taken_alone_is_prepared_when_it_is_answered(puller):
    taken, models = puller.pull(0, wait=True)
    assert [one.feeds for one in taken] == [None]
    assert models is not None


def test_a_thread_that_learns_while_another_takes_changes_only_what_is_taken_next(puller, feed):
    feed.meanwhile = lambda: quick(puller)
    assert [one.feeds for one in puller.pull(0, wait=True)[0]] == [None]
    taken, _ = puller.pull(0, wait=True)
    assert len(taken) == MAX_FRAMES
    assert all(one.feeds is not None for one in taken if one.origin is Origin.INFERRED)


def test_at_the_end_no_models_are_held(puller, feed):
    feed.left.clear()
    assert puller.pull(0, wait=True) == ([], None)
    assert puller._slot.current.in_flight == 0

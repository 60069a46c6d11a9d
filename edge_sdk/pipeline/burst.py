"""How one frame thread answers the frames it took: several of a file at once, phase by phase.

Decoder, engine and postprocessing each need most of a core's cache: decoding a few frames, then inferring them, then
postprocessing them costs up to a tenth less CPU than going through all three for each frame (`bench/pipeline.py`).
Preprocessing goes with the decoder: it reads each picture while its pixels are still in the cache.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from edge_sdk.errors import NonFiniteError
from edge_sdk.pipeline.models import ModelSet
from edge_sdk.sinks.base import FrameResult, Origin
from edge_sdk.sources.base import Frame

MAX_FRAMES = 12
MAX_BYTES = 12 << 20
MAX_S = 0.15
_INFERRED = Origin.INFERRED


@dataclass(slots=True)
class Taken:
    """A frame on its way: `seq` is its place in the order, `origin` says whether it needs inference."""

    seq: int
    frame: Frame
    decode_s: float
    origin: Origin
    feeds: Any = None
    geometry: Any = None
    started: Any = None
    outputs: Any = None
    item: FrameResult | None = None
    failure: tuple[str, Exception] | None = None
    times: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Burst:
    """Frames that one thread took at once: begun, which took `seconds`, and perhaps inferred while it does others."""

    taken: list[Taken]
    models: ModelSet
    under_way: bool
    seconds: float


def burst_size(frame: Frame, service_s: float | None) -> int:
    """Return how many such frames one thread may take at once when each keeps it for `service_s`.

    Bounded by 12 frames, 12 MB of pixels and 0.15 s of work, so that memory and the wait for a result stay small.
    """
    if service_s is None:
        return 1
    return max(1, min(MAX_FRAMES, MAX_BYTES // max(1, frame.image.nbytes), int(MAX_S / max(service_s, 1e-6))))


def prepare(one: Taken, models: ModelSet, i: int) -> None:
    """Prepare a frame that may be answered together with others, for model `i`."""
    model = models.models[i]
    if _keeps_outputs(model):
        _guard(one, _prepare, model, True)


def begin(taken: Sequence[Taken], models: ModelSet, i: int, note: Callable[[], None]) -> bool:
    """Start what model `i` infers by itself of frames that `prepare` saw; say whether it does.

    `note` is called before each frame's native work.
    """
    model = models.models[i]
    if not _together(taken, model) or getattr(model, "requests", 1) == 1:
        return False
    for one in taken:
        note()
        _guard(one, _start, model, models.digest)
    return True


def answer(taken: Sequence[Taken], models: ModelSet, i: int, note: Callable[[], None]) -> None:
    """Fill `item` or `failure` of each frame that `begin` saw, with model `i`.

    Engines whose outputs do not outlive the next call, and single frames, go frame by frame.
    """
    model, digest = models.models[i], models.digest
    together = _together(taken, model)
    for one in taken:
        if one.origin is not _INFERRED:
            age_ms = (time.monotonic() - one.frame.captured_s) * 1000.0
            one.item = FrameResult(one.frame, None, digest, age_ms, 0.0, origin=one.origin)  # type: ignore[arg-type]
            one.times["decode"] = one.decode_s
        elif not together:
            note()
            _guard(one, _prepare, model, False)
            _guard(one, _infer, model, digest)
            _guard(one, _decode, model, digest)
    if together:
        for phase in (_infer, _decode):
            for one in taken:
                note()
                _guard(one, phase, model, digest)


def _together(taken: Sequence[Taken], model: Any) -> bool:
    return len(taken) > 1 and _keeps_outputs(model)


def _keeps_outputs(model: Any) -> bool:
    return bool(getattr(model, "keeps_outputs", False))


def _guard(one: Taken, phase: Callable[[Taken, Any, Any], None], model: Any, argument: Any) -> None:
    """Run a phase unless the frame is done for, and keep what it raises."""
    if one.failure is not None or one.origin is not _INFERRED:
        return
    try:
        phase(one, model, argument)
    except NonFiniteError as error:
        one.failure = ("nonfinite", error)
    except Exception as error:
        one.failure = ("infer", error)


def _prepare(one: Taken, model: Any, keep: bool) -> None:
    """Fill `feeds`, unless that was done when the frame was taken."""
    if one.feeds is not None:
        return
    start = time.perf_counter()
    feeds, one.geometry = model.prepare(one.frame.image)
    one.feeds = {name: value.copy() for name, value in feeds.items()} if keep else feeds
    one.times["prepare"] = time.perf_counter() - start


def _start(one: Taken, model: Any, _digest: str) -> None:
    one.started = model.start(one.feeds)


def _infer(one: Taken, model: Any, _digest: str) -> None:
    """Infer, or wait for what was started; the time is what it took this thread."""
    start = time.perf_counter()
    if one.started is None:
        one.outputs = model.infer(one.feeds)
    else:
        one.outputs = one.started.result()
        one.started = None
    one.feeds = None
    one.times["infer"] = time.perf_counter() - start


def _decode(one: Taken, model: Any, digest: str) -> None:
    start = time.perf_counter()
    result = model.decode(one.outputs, one.geometry)
    one.outputs = None
    end = time.perf_counter()
    one.times["postprocess"] = end - start
    latency_ms = sum(one.times.values()) * 1000.0
    age_ms = (time.monotonic() - one.frame.captured_s) * 1000.0
    one.item = FrameResult(one.frame, result, digest, age_ms, latency_ms)
    one.times["decode"] = one.decode_s

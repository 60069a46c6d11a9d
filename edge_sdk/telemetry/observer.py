"""What a pipeline reports to: samples frames off the hot path and writes windows and alarms to the outbox."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edge_sdk.config import parse
from edge_sdk.errors import EdgeError
from edge_sdk.schemas.telemetry import Alarm
from edge_sdk.sinks.base import FrameResult
from edge_sdk.tasks.summary import label_counts
from edge_sdk.telemetry import features
from edge_sdk.telemetry.outbox import MAX_BYTES, MAX_ROWS, Grouped, Outbox
from edge_sdk.telemetry.window import Latency, OpenWindow

logger = logging.getLogger(__name__)

BASELINE_FRAMES = 200
ALARM_PERIOD_S = 60.0
_METRICS_KEPT = 100
ALARM_NAMES = {
    "infer": "inference_failed",
    "nonfinite": "output_not_finite",
    "source": "source_failed",
    "sink": "sink_failed",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetrySpec:
    """How one pipeline is observed.

    A window closes after `window_n` samples, one each `sample_period_s`, or after `max_window_s` (default: 1.5 times
    the time that so many samples take), whatever it holds by then. `result_period_s` above 0 also sends one whole
    result per period. `baseline_p95_ms` is the latency whose double counts as slow; unknown, the first 200 frames give
    it. `restarts` are the worker's restarts since the last window.
    """

    outbox: Path
    pipeline: str = "main"
    sample_period_s: float = 10.0
    window_n: int = 200
    max_window_s: float | None = None
    result_period_s: float = 0.0
    baseline_p95_ms: float | None = None
    restarts: int = 0
    max_rows: int = MAX_ROWS
    max_bytes: int = MAX_BYTES

    @property
    def window_s(self) -> float:
        return self.max_window_s or max(1.0, 1.5 * self.window_n * max(self.sample_period_s, 0.01))


def open_observer(spec: Mapping[str, Any], *, model: str) -> WindowObserver:
    """Open the outbox that `spec` names and start observing; `spec` holds the fields of TelemetrySpec.

    Raises:
        ConfigError: `spec` has wrong keys.
        SyncError: the outbox cannot be opened.
    """
    wanted = parse(spec, TelemetrySpec, where="telemetry")
    outbox = Outbox.open(wanted.outbox, max_rows=wanted.max_rows, max_bytes=wanted.max_bytes)
    return WindowObserver(wanted, outbox, model=model)


class WindowObserver:
    """Observer of a pipeline: counters in the caller's thread, features in its own.

    One frame per `sample_period_s` is copied into a one-slot mailbox; when the thread is still busy with the one
    before, the frame is not sampled. Windows never mix models: the first result of another model closes the window.
    """

    def __init__(
        self,
        spec: TelemetrySpec,
        outbox: Outbox,
        *,
        model: str,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._spec = spec
        self._outbox = outbox
        self._events = Grouped(outbox)
        self._clock = clock
        self._monotonic = monotonic
        self._wake = threading.Condition()
        self._window = OpenWindow(model, clock(), monotonic())
        self._window.count.restarts = spec.restarts
        self._closed: deque[tuple[OpenWindow, float]] = deque()
        self._mailbox: tuple[FrameResult, OpenWindow] | None = None
        self._alarms: deque[tuple[str, str, str]] = deque()
        self._metrics: deque[dict[str, Any]] = deque(maxlen=_METRICS_KEPT)
        self._alarm_sent: dict[str, tuple[float, int]] = {}
        self._next_sample_s = -math.inf
        self._next_result_s = -math.inf
        self._baseline = spec.baseline_p95_ms
        self._lifetime = Latency()
        self._stopping = False
        self._thread = threading.Thread(target=self._loop, name="telemetry", daemon=True)
        self._thread.start()

    def on_result(self, item: FrameResult) -> None:
        now = self._monotonic()
        with self._wake:
            if item.model != self._window.model:
                self._change_model(item.model)
            window = self._window
            window.count.processed += 1
            window.latency.add(item.latency_ms)
            self._lifetime.add(item.latency_ms)
            if self._baseline is None and self._lifetime.n >= BASELINE_FRAMES:
                self._baseline = self._lifetime.quantile(0.95)
            if self._baseline is not None and item.latency_ms > 2 * self._baseline:
                window.count.slow += 1
            for event in item.events:
                alarm = _alarm_of(event)
                if alarm is not None and len(self._alarms) < 1000:
                    self._alarms.append((*alarm, item.model))
                    self._wake.notify()
            if now >= self._next_sample_s and self._mailbox is None:
                self._next_sample_s = now + self._spec.sample_period_s
                frame = replace(item.frame, image=item.frame.image.copy())  # the pipeline may reuse its buffer
                self._mailbox = (replace(item, frame=frame), window)
                self._wake.notify()

    def on_error(self, kind: str, detail: str) -> None:
        with self._wake:
            if kind in ("infer", "nonfinite"):
                self._window.count.errors += 1
                self._window.count.nonfinite += kind == "nonfinite"
            if len(self._alarms) < 1000:
                self._alarms.append((kind, detail, self._window.model))
            self._wake.notify()

    def on_metric(self, metric: Mapping[str, Any]) -> None:
        """Send what second models answered and how shadows differ, as an event of kind `metric`."""
        with self._wake:
            self._metrics.append({**metric, "kind": "metric", "t": self._clock(), "pipeline": self._spec.pipeline})
            self._wake.notify()

    def on_drop(self, cause: str, n: int) -> None:
        """Count frames that were never answered; `observer` were, unseen by this one; other causes come as errors."""
        with self._wake:
            if cause in ("latest", "broken"):
                self._window.count.dropped += n
            elif cause == "observer":
                self._window.count.processed += n

    def close(self) -> None:
        """Close the window, write everything to the outbox and stop."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join(timeout=30)
        self._outbox.close()

    def _change_model(self, model: str) -> None:
        if self._lifetime.n >= BASELINE_FRAMES:
            self._baseline = self._lifetime.quantile(0.95)
        self._lifetime = Latency()
        self._next_sample_s = -math.inf
        self._close_window(model)

    def _close_window(self, model: str) -> None:
        self._closed.append((self._window, self._clock()))
        self._window = OpenWindow(model, self._clock(), self._monotonic())
        self._wake.notify()

    def _loop(self) -> None:
        stopping = False
        while not stopping:
            with self._wake:
                idle = not (self._closed or self._alarms or self._metrics)
                if self._mailbox is None and idle and not self._stopping:
                    self._wake.wait(timeout=0.25)
                stopping = self._stopping
                work, alarms = self._mailbox, list(self._alarms)
                self._alarms.clear()
                metrics = list(self._metrics)
                self._metrics.clear()
            try:
                for metric in metrics:
                    self._events.add(metric, now_s=self._monotonic())
                self._work(work, alarms, stopping)
            except EdgeError as error:
                logger.error("telemetry: %s", error.message)
            except Exception:
                logger.exception("telemetry could not use a sample")

    def _work(
        self, work: tuple[FrameResult, OpenWindow] | None, alarms: list[tuple[str, str, str]], last: bool
    ) -> None:
        for kind, detail, model in alarms:
            self._alarm(kind, detail, model)
        try:
            if work is not None:
                self._sample(*work)
        finally:
            with self._wake:
                if work is not None:
                    self._mailbox = None
                window = self._window
                age_s = self._monotonic() - window.opened_s
                if window.n >= self._spec.window_n or age_s >= self._spec.window_s or (last and _holds(window)):
                    self._close_window(window.model)
                closed, self._closed = list(self._closed), deque()
            for done, t1 in closed:
                self._events.add(done.close(self._spec.pipeline, t1).to_event(), now_s=self._monotonic())
            self._events.poll(self._monotonic())
            if last:
                self._events.flush()

    def _sample(self, item: FrameResult, window: OpenWindow) -> None:
        image = item.frame.image
        try:
            values = features.image_features(image)
        except ValueError:
            values = np.full(len(features.IMAGE_NAMES), np.nan)
        found: dict[str, tuple[tuple[str, ...], features.Vector]] = {"image": (features.IMAGE_NAMES, values)}
        output = features.output_features(item.result, image.shape)
        if output is not None:
            found["output"] = output
        embedding = features.embedding_features(item.result)
        if embedding is not None:
            found["embedding"] = embedding
        window.add(found, labels=label_counts(item.result), confidence=features.top_score(item.result))
        now = self._monotonic()
        if self._spec.result_period_s > 0 and now >= self._next_result_s:
            self._next_result_s = now + self._spec.result_period_s
            line = {k: v for k, v in item.to_json().items() if k != "v"}
            event = {**line, "kind": "result", "t": self._clock(), "pipeline": self._spec.pipeline}
            self._events.add(event, now_s=now)

    def _alarm(self, kind: str, detail: str, model: str) -> None:
        """Send the first alarm of a kind at once, then at most one a minute with the count of those between."""
        now = self._monotonic()
        sent_s, waiting = self._alarm_sent.get(kind, (-math.inf, 0))
        if now - sent_s < ALARM_PERIOD_S:
            self._alarm_sent[kind] = (sent_s, waiting + 1)
            return
        self._alarm_sent[kind] = (now, 0)
        name = ALARM_NAMES.get(kind, kind.partition(" ")[0])
        alarm = Alarm(
            t=self._clock(),
            name=name,
            message=detail[:500],
            pipeline=self._spec.pipeline,
            model=model,
            count=waiting + 1,
        )
        self._events.add(alarm.to_event(), now_s=now, urgent=True)


def _holds(window: OpenWindow) -> bool:
    return window.n > 0 or any(v for v in (window.count.processed, window.count.dropped, window.count.errors))


def _alarm_of(event: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return kind and message of the alarm that an event of a result calls for; None for most."""
    if event["kind"] == "alert":
        what = f"{event['count']} matching, best {event['label']} {event['score']:.2f}"
        return f"alert {event['name']}", f"`{event['name']}`: {what}"
    if event["kind"] == "degraded":
        return "degraded", f"level {event['level']}: {event['why']}"
    if event["kind"] == "camera" and event["state"] == "begin":
        return f"camera_{event['problem']} {event['name']}", f"`{event['name']}`: {event['why']}"
    return None

"""Several pipelines in one process, each with its own source, stages, sinks and report."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from edge_sdk.errors import EXIT_BUG, EdgeError, UsageError
from edge_sdk.pipeline.build import Pipeline
from edge_sdk.pipeline.outlet import Mailbag
from edge_sdk.pipeline.report import Report, memory_mb
from edge_sdk.pipeline.shared import SharedArtifacts
from edge_sdk.sinks.base import FrameResult

logger = logging.getLogger(__name__)


class Cameras:
    """Runs pipelines side by side; one that ends or fails leaves the others alone.

    Equal artifacts are read once, and one engine serves all pipelines where the runtime allows it.

        with Cameras({"door": Pipeline("rtsp://…").detect(m), "yard": Pipeline("rtsp://…").detect(m)}) as cameras:
            for name, result in cameras: ...

    Args:
        pipelines: by name, none of them started.
    """

    def __init__(self, pipelines: Mapping[str, Pipeline]) -> None:
        if not pipelines:
            raise UsageError("there is no camera", hint="give at least one pipeline by its name")
        self._pipelines = dict(pipelines)
        self._shared = SharedArtifacts()
        self._clock = Clock()
        self._bag: Mailbag[tuple[str, FrameResult]] = Mailbag(2 * len(pipelines), block=True)
        self._reports: dict[str, Report] = {}
        self._threads: list[threading.Thread] = []
        self._ended = threading.Event()
        self.errors: dict[str, Exception] = {}

    def __getitem__(self, name: str) -> Pipeline:
        """Return one pipeline, to swap, stop or explain it."""
        return self._pipelines[name]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._pipelines)

    def start(self, *, frames: int | None = None, hand_out: bool = True) -> Cameras:
        """Start all of them at once; what cannot be started stands in `errors`.

        Args:
            frames: of each camera at most so many.
            hand_out: keep results for iteration.
        """
        if self._threads:
            raise UsageError("the cameras have been started")
        self._clock.begin()
        self._threads = [
            threading.Thread(target=self._run, args=(name, pipe, frames, hand_out), name=f"camera-{name}", daemon=True)
            for name, pipe in self._pipelines.items()
        ]
        for thread in self._threads:
            thread.start()
        threading.Thread(target=self._close_bag, name="cameras-end", daemon=True).start()
        return self

    def run(
        self, on_result: Callable[[str, FrameResult], None] | None = None, frames: int | None = None
    ) -> dict[str, Any]:
        """Run all of them to their ends and return `report()`; failures stand in it, nothing is raised for them."""
        self.start(frames=frames, hand_out=on_result is not None)
        try:
            if on_result is not None:
                for name, item in self:
                    on_result(name, item)
            return self.wait()
        finally:
            self.close()

    def __iter__(self) -> Iterator[tuple[str, FrameResult]]:
        """Yield name and result of whichever camera has one, in order for each camera."""
        if not self._threads:
            self.start()
        while (pair := self._bag.get()) is not None:
            yield pair

    def wait(self) -> dict[str, Any]:
        """Wait for the end of all of them and return `report()`."""
        for thread in self._threads:
            thread.join()
        return self.report()

    def stop(self) -> None:
        """Let all of them take no more frames. Does not wait; `cameras[name].stop()` stops one."""
        for pipe in self._pipelines.values():
            pipe.stop()

    def close(self) -> None:
        """Stop all of them and wait until sinks are closed and models are unloaded."""
        self.stop()
        self._bag.close(discard=True)
        self.wait()

    def __enter__(self) -> Cameras:
        return self if self._threads else self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def report(self) -> dict[str, Any]:
        """Return the report of each camera (or its error), the totals, and which engines are shared."""
        rows: dict[str, dict[str, Any]] = {}
        for name, pipe in self._pipelines.items():
            if name in self._reports:
                rows[name] = self._reports[name].to_json()
            elif pipe.running:
                rows[name] = pipe.report().to_json()
            else:
                rows[name] = {}
            if name in self.errors:
                rows[name]["error"] = as_json(self.errors[name])
        return together(rows, self._clock, self._shared.describe())

    def _run(self, name: str, pipe: Pipeline, frames: int | None, hand_out: bool) -> None:
        try:
            pipe.among(len(self._pipelines)).with_artifacts(self._shared.artifact)
            pipe.start(frames=frames, hand_out=hand_out)
            if hand_out:
                for item in pipe:
                    self._bag.put((name, item))
            self._reports[name] = pipe.wait()
        except Exception as error:
            if not isinstance(error, EdgeError):
                logger.exception("camera `%s` failed", name)
            self.errors[name] = error
        finally:
            pipe.close()

    def _close_bag(self) -> None:
        for thread in self._threads:
            thread.join()
        self._clock.end()
        self._bag.close()


class Clock:
    """Wall and CPU time of the process from `begin` to `end`, or to now."""

    def __init__(self) -> None:
        self._began = self._ended = (0.0, 0.0)

    def begin(self) -> None:
        self._began, self._ended = self._now(), (0.0, 0.0)

    def end(self) -> None:
        self._ended = self._now()

    def spent(self) -> tuple[float, float]:
        """Return seconds of wall and of CPU."""
        end = self._ended if self._ended != (0.0, 0.0) else self._now()
        return end[0] - self._began[0], end[1] - self._began[1]

    @staticmethod
    def _now() -> tuple[float, float]:
        return time.monotonic(), time.process_time()


def together(rows: Mapping[str, dict[str, Any]], clock: Clock, models: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the report of several cameras: their own ones, totals, models, and the first error where one failed.

    CPU time is that of the process: no camera has a share of its own, so `cpu_ms_per_frame` of each is null.

    Args:
        rows: by name, the report of a camera, with `error` where it failed.
        models: what `SharedArtifacts.describe` says.
    """
    seconds, cpu_s = clock.spent()
    frames, dropped = Counter[str](), Counter[str]()
    for row in rows.values():
        if "frames" in row:
            row["cpu_ms_per_frame"] = None
            frames.update({k: row["frames"][k] for k in ("in", "processed")})
            dropped.update(row["frames"]["dropped"])
    processed = frames["processed"]
    errors = [row["error"] for row in rows.values() if "error" in row]
    totals = {
        "cameras": len(rows),
        "failed": len(errors),
        "frames": {"in": frames["in"], "processed": processed, "dropped": dict(dropped)},
        "fps": round(processed / seconds, 2) if seconds > 0 else 0.0,
        "seconds": round(seconds, 3),
        "cpu_ms_per_frame": round(cpu_s * 1000 / processed, 3) if processed else None,
        "rss_mb": memory_mb()[1],
    }
    out = {"cameras": dict(rows), "totals": totals, "models": models}
    return out | {"error": errors[0]} if errors else out


def as_json(error: Exception) -> dict[str, Any]:
    """Return what ended one camera in the form of `EdgeError.to_json`, unforeseen failures too."""
    if isinstance(error, EdgeError):
        return error.to_json()
    return {"exit": EXIT_BUG, "kind": "bug", "message": f"{type(error).__name__}: {error}", "hint": None}

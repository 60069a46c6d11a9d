"""A worker's job with several pipelines: one that fails, ends or is changed leaves the others alone."""

from __future__ import annotations

import logging
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from edge_sdk.agent.worker_jobs import Channel, Job
from edge_sdk.backoff import Backoff
from edge_sdk.errors import EdgeError, SourceError, UsageError
from edge_sdk.pipeline.cameras import Clock, as_json, together
from edge_sdk.pipeline.shared import SharedArtifacts
from edge_sdk.sources.uri import redact

logger = logging.getLogger(__name__)


class GroupJob:
    """Runs `spec["cameras"]`, each `{"name", "pipeline"}`, side by side; commands go to the one that `camera` names."""

    def __init__(self, spec: Mapping[str, Any], channel: Channel) -> None:
        self._channel = channel
        self._clock, self._shared = Clock(), SharedArtifacts()
        self._lock = threading.Lock()
        self._told = False
        self.running = False
        cameras = spec["cameras"]
        common = {"frames": spec.get("frames"), "resume": spec.get("resume"), "retry_source": True}

        def make(camera: Mapping[str, Any], channel: Any) -> Job:
            job = Job(common | dict(camera), channel)
            job.pipeline.among(len(cameras)).with_artifacts(self._shared.artifact)
            return job

        self._members = {c["name"]: _Member(c, make, channel, self._settled) for c in cameras}
        self.pipeline = self

    def run(self) -> dict[str, Any]:
        """Run all of them to their ends and return the report; what one of them failed with stands in it."""
        self._clock.begin()
        notes = _Notes(self._channel)
        logging.getLogger("edge_sdk").addHandler(notes)
        threads = [threading.Thread(target=m.run, name=f"camera-{n}", daemon=True) for n, m in self._members.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self._clock.end()
        return together({n: m.row() for n, m in self._members.items()}, self._clock, self._shared.describe())

    def stop(self) -> None:
        """Let all of them take no more frames."""
        for member in self._members.values():
            member.stop()

    def busy(self, now: float) -> tuple[str, float]:
        """Return what has been in one native call for longest, of all cameras."""
        states = [(f"{what} of {name}", s) for name, m in self._members.items() for what, s in [m.busy(now)]]
        return max(states, key=lambda state: state[1])

    def stats(self) -> dict[str, Any]:
        """Return the counts of all cameras together, and of each."""
        each = {name: stats for name, m in self._members.items() if (stats := m.stats()) is not None}
        dropped: Counter[str] = Counter()
        for stats in each.values():
            dropped.update(stats["dropped"])
        return {
            "processed": sum(s["processed"] for s in each.values()),
            "dropped": dict(dropped),
            "latency_ms": {"p50": None},
            "cameras": each,
            "t": time.time(),
        }

    def obey(self, command: Mapping[str, Any]) -> None:
        """Carry out one command, or hand it to the camera that it names."""
        camera = command.get("camera")
        member = self._members.get(str(camera))
        if member is not None and member.obey(command):
            return
        try:
            reply = {"ok": True} | self._own(command, camera, member is not None)
        except EdgeError as error:
            reply = {"ok": False, "error": error.to_json()}
        self._channel.send({"id": command.get("id")} | reply)

    def _own(self, command: Mapping[str, Any], camera: Any, known: bool) -> dict[str, Any]:
        if known:
            raise SourceError(f"camera `{camera}` does not run now", hint="it has ended, or waits to be started again")
        if camera is None and command.get("cmd") == "stats":
            return {"stats": self.stats(), "modules": sorted({name.partition(".")[0] for name in sys.modules})}
        if camera is None and command.get("cmd") == "stop":
            self.stop()
            return {}
        names = ", ".join(self._members)
        raise UsageError(f"`{command.get('cmd')}` needs the name of a camera in `camera`", hint=f"cameras: {names}")

    def _settled(self) -> None:
        """Say `ready` once every camera has started or failed."""
        with self._lock:
            if self._told or not all(m.settled for m in self._members.values()):
                return
            self._told = self.running = True
        ready = [(n, m.ready) for n, m in self._members.items() if m.ready is not None]
        self._channel.send(
            {
                "event": "ready",
                "pid": os.getpid(),
                "live": bool(ready) and all(event["live"] for _, event in ready),
                "stages": [{"camera": n} | stage for n, event in ready for stage in event["stages"]],
                "addresses": [(f"{n}: {what}", url) for n, event in ready for what, url in event["addresses"]],
            }
        )


class _Member:
    """One camera: its pipeline, started again when a live source is lost for good."""

    def __init__(
        self,
        camera: Mapping[str, Any],
        make: Callable[[Mapping[str, Any], Any], Job],
        channel: Channel,
        settled: Callable[[], None],
    ) -> None:
        self.name = str(camera["name"])
        self._camera = dict(camera)
        self._make, self._channel, self._settled = make, channel, settled
        self._stopping = threading.Event()
        self._backoff = Backoff(first_s=0.5, max_s=30.0)
        self._job: Job | None = None
        self._report: dict[str, Any] = {}
        self._error: dict[str, Any] | None = None
        self.ready: dict[str, Any] | None = None
        self.settled = False

    def run(self) -> None:
        """Run it to its end, whatever that is."""
        attempt = 0
        while not self._stopping.is_set():
            began = time.monotonic()
            again = self._once()
            if not again or self._stopping.is_set():
                break
            attempt = 0 if time.monotonic() - began > 30.0 else attempt + 1
            self._camera["resume"] = True
            self._stopping.wait(self._backoff.delay_s(attempt, random.random))
        self._is_settled()

    def send(self, message: Mapping[str, Any]) -> None:
        """Take what the pipeline's job says: its `ready` is kept, all else goes on with the camera's name."""
        if message.get("event") == "ready":
            self.ready = dict(message)
            self._is_settled()
        else:
            self._channel.send(dict(message) | {"camera": self.name})

    def row(self) -> dict[str, Any]:
        """Return the last report, and the error that ended it."""
        return self._report | ({} if self._error is None else {"error": self._error})

    def stop(self) -> None:
        self._stopping.set()
        job = self._job
        if job is not None:
            job.pipeline.stop()

    def busy(self, now: float) -> tuple[str, float]:
        job = self._job
        return ("idle", 0.0) if job is None else job.busy(now)

    def stats(self) -> dict[str, Any] | None:
        job = self._job
        return dict(job.stats()) if job is not None and job.running else None

    def obey(self, command: Mapping[str, Any]) -> bool:
        """Carry out a command; False when nothing runs that could."""
        if command.get("cmd") == "stop":
            self._stopping.set()
        job = self._job
        if job is None or not job.running:
            return False
        job.obey(command)
        return True

    def _once(self) -> bool:
        """Run the pipeline once; True when it should be started again."""
        self._error = None
        job: Job | None = None
        try:
            job = self._job = self._make(self._camera, self)
            if self._stopping.is_set():
                job.pipeline.stop()
            self._report = job.run()
            return False
        except Exception as error:
            if not isinstance(error, EdgeError):
                logger.exception("camera `%s` failed", self.name)
            self._error = as_json(error)
            if job is not None and job.running:
                self._report = job.pipeline.report().to_json()
            logger.warning("%s: %s", self.name, self._error["message"])
            return self.ready is not None and self.ready["live"] and isinstance(error, SourceError)
        finally:
            self._job = None

    def _is_settled(self) -> None:
        self.settled = True
        self._settled()


class _Notes(logging.Handler):
    """Sends warnings to the people who watch the command: with several cameras it goes on when one is in trouble."""

    def __init__(self, channel: Channel) -> None:
        super().__init__(logging.WARNING)
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        self._channel.send({"event": "note", "text": redact(record.getMessage())})

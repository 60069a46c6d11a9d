"""The worker of the device's pipeline, as updates need it: run this slot, switch to that one, go back."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edge_sdk.agent.config import TelemetryConfig
from edge_sdk.agent.process import error_from_json
from edge_sdk.agent.slots import Slots
from edge_sdk.agent.supervisor import Supervisor
from edge_sdk.errors import EdgeError, WorkerError
from edge_sdk.pipeline_config import PipelineConfig

logger = logging.getLogger(__name__)
Event = dict[str, Any]
SWAP_TIMEOUT_S = 120.0
CHANGE_TIMEOUT_S = 15.0


class Runner:
    """Keeps one supervised worker on one slot, or none.

    `on_event` gets the worker's events from another thread. Methods that switch are called by one thread at a time.
    """

    def __init__(
        self,
        pipeline: PipelineConfig,
        slots: Slots,
        *,
        outbox: Path,
        name: str,
        on_event: Callable[[Event], None],
        start_timeout_s: float,
    ) -> None:
        self._pipeline = pipeline
        self._slots = slots
        self._outbox = outbox
        self._name = name
        self._on_event = on_event
        self._start_timeout_s = start_timeout_s
        self._telemetry = TelemetryConfig()
        self._baseline_p95_ms: float | None = None
        self._unreported_restarts = 0
        self._supervisor: Supervisor | None = None
        self._ready = threading.Event()
        self._last_error: EdgeError | None = None
        self.restarts = 0
        self.digest: str | None = None
        self.stats: Mapping[str, Any] = {}

    @property
    def stage(self) -> str:
        return self._pipeline.model_stage.label

    @property
    def state(self) -> str:
        return self._supervisor.state if self._supervisor else "stopped"

    @property
    def pid(self) -> int | None:
        worker = self._supervisor.worker if self._supervisor else None
        return worker.pid if worker else None

    def observe(self, telemetry: TelemetryConfig, baseline_p95_ms: float | None) -> bool:
        """Take telemetry settings for the next worker; True when they differ from those of the one that runs."""
        changed = telemetry != self._telemetry
        self._telemetry, self._baseline_p95_ms = telemetry, baseline_p95_ms
        self._update()
        return changed

    def describe(self, pipeline: PipelineConfig) -> Sequence[str]:
        """Run another description of the pipeline: between two frames as far as possible, else in a fresh worker.

        Returns what changed between two frames; a worker that does not run now uses it when it starts.

        Raises:
            EdgeError: the worker refused it; the old one goes on.
        """
        if pipeline == self._pipeline:
            return ()
        before, self._pipeline = self._pipeline, pipeline
        supervisor, digest = self._supervisor, self.digest
        if supervisor is None or digest is None or supervisor.state != "running":
            self._update()
            if supervisor is not None and supervisor.state == "starting":
                self.begin(digest)
            return ()
        try:
            reply = supervisor.request("change", CHANGE_TIMEOUT_S, pipeline=self._spec(digest)["pipeline"])
        except EdgeError:
            self._pipeline = before
            raise
        self._update()
        if reply.get("restart"):
            logger.warning("a fresh worker for the new pipeline: %s", "; ".join(reply["restart"]))
            self.begin(digest)
        return tuple(reply.get("changed", ()))

    def begin(self, digest: str | None) -> None:
        """Run a slot without waiting for it to be ready; None stops."""
        self.digest = digest
        if digest is None:
            self.stop()
            return
        self._ready.clear()
        self._last_error = None
        if self._supervisor is not None and self._supervisor.state not in ("done", "stopped"):
            self._supervisor.replace(self._spec(digest))
            return
        self._supervisor = Supervisor(self._spec(digest), on_event=self._event)
        self._supervisor.start()

    def switch(self, digest: str) -> None:
        """Run another slot: between two frames when a worker runs, else in a fresh one; on an error the old goes on.

        Raises:
            EdgeError: the artifact was refused, or no worker could run it.
        """
        old = self.digest
        if self._supervisor is not None and self._supervisor.state == "running" and old is not None:
            artifact = str(self._slots.artifact(digest))
            self._supervisor.request("swap", SWAP_TIMEOUT_S, stage=self.stage, artifact=artifact)
            self.digest = digest
            self._update()
            return
        try:
            self._begin_and_wait(digest)
        except EdgeError:
            self.begin(old)
            raise

    def restore(self, digest: str | None) -> None:
        """Run `digest` again, whatever state the worker is in; None stops it.

        Raises:
            EdgeError: it does not come up.
        """
        if digest is None:
            self.begin(None)
            return
        if digest == self.digest and self.state == "running":
            return
        try:
            if self.state == "running":
                self.switch(digest)
                return
        except EdgeError as error:
            logger.warning("switching back failed, starting a fresh worker: %s", error.message)
        self._begin_and_wait(digest)

    def stop(self, timeout_s: float = 15.0) -> None:
        """Stop the worker; its telemetry is in the outbox when this returns."""
        if self._supervisor is not None:
            self._supervisor.stop(timeout_s)
            self._supervisor = None

    def _begin_and_wait(self, digest: str) -> None:
        self.begin(digest)
        supervisor = self._supervisor
        deadline = time.monotonic() + self._start_timeout_s
        while not self._ready.wait(0.05):
            if self._last_error is not None:
                raise self._last_error
            if supervisor is None or supervisor.state == "stopped":
                raise WorkerError("the agent is stopping")
            if time.monotonic() > deadline:
                raise WorkerError(f"the worker was not ready within {self._start_timeout_s:g} s")

    def _event(self, event: Event) -> None:
        kind = event.get("event")
        if kind == "ready":
            self._unreported_restarts = 0
            self._update()
            self._ready.set()
        elif kind == "stats":
            self.stats = event
        elif kind == "error":
            self._last_error = error_from_json(event.get("error") or {})
        elif kind == "exit" and not event.get("clean"):
            self.restarts += 1
            self._unreported_restarts += 1
            self._last_error = self._last_error or WorkerError(f"the worker died: {event.get('exit')}")
            self._update()
        self._on_event(event)

    def _update(self) -> None:
        if self._supervisor is not None and self.digest is not None:
            self._supervisor.update(self._spec(self.digest))

    def _spec(self, digest: str) -> dict[str, Any]:
        telemetry: dict[str, Any] = {
            "outbox": str(self._outbox),
            "pipeline": self._name,
            "sample_period_s": self._telemetry.sample_period_s,
            "window_n": self._telemetry.window_n,
            "max_window_s": self._telemetry.max_window_s,
            "result_period_s": self._telemetry.result_period_s,
            "baseline_p95_ms": self._baseline_p95_ms,
            "restarts": self._unreported_restarts,
            "max_rows": self._telemetry.max_rows,
            "max_bytes": self._telemetry.max_mb * 1024 * 1024,
        }
        pipeline = self._pipeline.with_model(self._slots.artifact(digest)).to_json()
        spec = {"pipeline": pipeline, "telemetry": telemetry, "frames": None, "retry_source": True}
        return spec if "serve" not in pipeline else spec | {"serve": pipeline["serve"]}

"""Keeps a worker running: the process that must not die restarts the one that may; standard library only."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from edge_sdk.agent.process import Event, Worker, WorkerExit
from edge_sdk.backoff import Backoff
from edge_sdk.errors import WorkerError

logger = logging.getLogger(__name__)


class Supervisor:
    """Keeps one worker running: restarts with backoff, counts them, notices a crash loop.

    Every worker after the first gets `resume` in its spec, so that it goes on with the files of the one before.

    `state` is starting, running, waiting (before a restart), crash_loop (waiting, after `loop_n` deaths that each came
    within `stable_s`), done (the source ended or the worker was asked to stop), failed (`restart` said no) or stopped.
    Every event of the worker goes to `on_event`, and so do `{"event": "exit", "exit", "clean", "log"}` and
    `{"event": "restart", "delay_s", "restarts", "state"}`.
    """

    def __init__(
        self,
        spec: Mapping[str, Any],
        *,
        on_event: Callable[[Event], None] | None = None,
        on_log: Callable[[str], None] | None = None,
        backoff: Backoff | None = None,
        stable_s: float = 30.0,
        loop_n: int = 5,
        silence_s: float = 30.0,
        hang_s: float = 60.0,
        restart: Callable[[WorkerExit], bool] = lambda _: True,
    ) -> None:
        self._spec = dict(spec)
        self._on_event = on_event
        self._on_log = on_log
        self._silence_s, self._hang_s = silence_s, hang_s
        self._restart = restart
        self._backoff = backoff or Backoff(first_s=0.5, max_s=60.0)
        self._stable_s, self._loop_n = stable_s, loop_n
        self._lock = threading.Condition()
        self._worker: Worker | None = None
        self._replaced = False
        self._stopping = threading.Event()
        self.restarts = 0
        self.state = "stopped"
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._keep, name="supervisor", daemon=True)
        self.state = "starting"
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether it still runs a worker or will start one."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def worker(self) -> Worker | None:
        """The worker that runs now."""
        return self._worker

    def request(self, cmd: str, timeout_s: float = 30.0, **fields: Any) -> Event:
        """Send a command to the worker that runs now; raises as `Worker.request`."""
        worker = self._worker
        if worker is None:
            raise WorkerError("the worker does not run", hint=f"the supervisor is {self.state}")
        return worker.request(cmd, timeout_s, **fields)

    def update(self, spec: Mapping[str, Any]) -> None:
        """Use `spec` when a worker is started next; the one that runs goes on (after a hot swap, for instance)."""
        with self._lock:
            self._spec = dict(spec)

    def replace(self, spec: Mapping[str, Any], timeout_s: float = 15.0) -> None:
        """Run `spec` from now on, in a fresh worker, without waiting out a backoff."""
        with self._lock:
            self._spec = dict(spec)
            self._replaced = True
            worker = self._worker
            self._lock.notify_all()
        if worker is not None:
            worker.stop(timeout_s)

    def stop(self, timeout_s: float = 15.0) -> None:
        """Stop the worker and restart nothing."""
        with self._lock:
            self._stopping.set()
            worker = self._worker
            self._lock.notify_all()
        if worker is not None:
            worker.stop(timeout_s)
        if self._thread is not None:
            self._thread.join(timeout_s)
        self.state = "stopped"

    def _keep(self) -> None:
        try:
            self._keep_running()
        except Exception:
            logger.exception("the worker cannot be supervised any more")
            worker, self._worker = self._worker, None
            self.state = "failed"
            if worker is not None:
                worker.kill("nobody supervises it any more")

    def _keep_running(self) -> None:
        early_deaths = 0
        again = False
        while True:
            with self._lock:
                if self._stopping.is_set():
                    return
                self._replaced = False
                worker = self._worker = Worker(
                    self._spec | ({"resume": True} if again else {}),
                    on_event=self._event,
                    on_log=self._on_log,
                    silence_s=self._silence_s,
                    hang_s=self._hang_s,
                )
            began, again = time.monotonic(), True
            try:
                worker.start()
            except WorkerError as error:
                logger.warning("%s", error.message)
            else:
                worker.wait()
            with self._lock:
                self._worker = None
                replaced = self._replaced
            if self._stopping.is_set():
                return
            if replaced:
                early_deaths = 0
                continue
            ended = worker.exit or WorkerExit(None, None, "it could not be started")
            self._event({"event": "exit", "exit": str(ended), "clean": ended.clean, "log": list(worker.log_tail[-20:])})
            if ended.clean or not self._restart(ended):
                self.state = "done" if ended.clean else "failed"
                return
            early_deaths = early_deaths + 1 if time.monotonic() - began < self._stable_s else 0
            self._pause(early_deaths)

    def _pause(self, early_deaths: int) -> None:
        delay_s = self._backoff.delay_s(max(0, early_deaths - 1), random.random)
        self.restarts += 1
        self.state = "crash_loop" if early_deaths >= self._loop_n else "waiting"
        self._event({"event": "restart", "delay_s": round(delay_s, 2), "restarts": self.restarts, "state": self.state})
        with self._lock:
            self._lock.wait_for(lambda: self._stopping.is_set() or self._replaced, timeout=delay_s)
        if self.state == "waiting":
            self.state = "starting"

    def _event(self, event: Event) -> None:
        if event["event"] == "ready":
            self.state = "running"
        if self._on_event is not None:
            try:
                self._on_event(event)
            except Exception:
                logger.exception("an event of the worker could not be handled")

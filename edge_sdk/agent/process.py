"""One worker process and the two pipes to it; standard library only: native code stays in the worker."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_sdk import errors
from edge_sdk.agent.pipes import read_lines, write_all
from edge_sdk.errors import EdgeError, WorkerError
from edge_sdk.sources.uri import redact

logger = logging.getLogger(__name__)
Event = dict[str, Any]
_LOG_LINES = 200
_STOP: Event = {"id": 0, "cmd": "stop"}


@dataclass(frozen=True, slots=True)
class WorkerExit:
    """How a worker ended: an exit code, or the signal that killed it; `why` is set when the supervisor did it."""

    code: int | None
    signal: int | None
    why: str | None = None

    @property
    def clean(self) -> bool:
        return self.code == 0

    def __str__(self) -> str:
        if self.signal is None:
            return f"exit code {self.code}"
        try:
            name = signal.Signals(self.signal).name
        except ValueError:
            name = f"signal {self.signal}"
        return f"killed by {name}" + (f" ({self.why})" if self.why else "")


class Worker:
    """One worker process, `python -m edge_sdk.agent.worker`, that runs `spec`.

    Events come from a thread of the worker's. A worker whose heart stops for `silence_s`, or that hangs in one native
    call for `hang_s`, is killed. It ends by itself when this process dies. Its end is seen by its process id: whatever
    it forked, and may live on with its pipes, is not waited for.

    Args:
        spec: pipeline, telemetry, frames, …; JSON types only. It has the descriptors in `inherit` open, too.
        on_event: gets every event line; must be quick.
        on_log: gets every line that the worker's engines and decoders print, credentials removed.
    """

    def __init__(
        self,
        spec: Mapping[str, Any],
        *,
        on_event: Callable[[Event], None] | None = None,
        on_log: Callable[[str], None] | None = None,
        silence_s: float = 30.0,
        hang_s: float = 60.0,
    ) -> None:
        self.spec = dict(spec)
        self.last_event: Event = {}
        self._on_event = on_event
        self._on_log = on_log
        self._silence_s, self._hang_s = silence_s, hang_s
        self._process: subprocess.Popen[bytes] | None = None
        self._log: deque[str] = deque(maxlen=_LOG_LINES)
        self._replies: dict[int, queue.SimpleQueue[Event]] = {}
        self._next_id = 0
        self._lock = threading.Lock()
        self._send_lock = threading.Lock()
        self._has_spec = self._stopping = False
        self._beat = 0.0
        self._why: str | None = None
        self._exit: WorkerExit | None = None
        self._ended = threading.Event()

    def start(self) -> None:
        """Start the process and hand it the spec.

        Raises:
            WorkerError: the system cannot start a process.
        """
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "edge_sdk.agent.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,
                env=_environment(),
                pass_fds=tuple(self.spec.get("inherit", ())),
            )
        except OSError as error:
            raise WorkerError(f"a worker process cannot be started: {error}", hint="is memory short?") from None
        assert self._process.stdin is not None
        os.set_blocking(self._process.stdin.fileno(), False)
        self._beat = time.monotonic()
        log = threading.Thread(target=self._read_log, name="worker-log", daemon=True)
        events = threading.Thread(target=self._read_events, args=(log,), name="worker-events", daemon=True)
        try:
            threading.Thread(target=self._watch, name="worker-watch", daemon=True).start()
            log.start()
            events.start()
        except RuntimeError as error:
            self.kill("it cannot be watched")
            self._finish(log if log.ident is not None else None)
            raise WorkerError(f"a worker process cannot be watched: {error}", hint="is memory short?") from None
        with self._send_lock:
            self._write(self.spec)
            self._has_spec = True
            if self._stopping:
                self._write(_STOP)

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def alive(self) -> bool:
        return self._process is not None and not self._ended.is_set()

    @property
    def exit(self) -> WorkerExit | None:
        """How it ended; None while it runs."""
        return self._exit

    @property
    def log_tail(self) -> tuple[str, ...]:
        """The last lines that it printed, credentials removed."""
        return tuple(self._log)

    def wait(self, timeout_s: float | None = None) -> WorkerExit | None:
        """Wait for the end; None when it still runs after `timeout_s`."""
        self._ended.wait(timeout_s)
        return self._exit

    def request(self, cmd: str, timeout_s: float = 30.0, **fields: Any) -> Event:
        """Send a command and return its reply.

        Raises:
            EdgeError: the worker refused, with the kind of error it had.
            WorkerError: it died or did not answer in time.
        """
        with self._lock:
            self._next_id += 1
            number = self._next_id
            replies = self._replies[number] = queue.SimpleQueue()
        try:
            if not (self.alive and self._has_spec):
                raise WorkerError(f"the worker does not run: {self._exit or 'not started'}")
            self._send({"id": number, "cmd": cmd, **fields})
            try:
                reply = replies.get(timeout=timeout_s)
            except queue.Empty:
                raise WorkerError(f"the worker did not answer `{cmd}` within {timeout_s:g} s") from None
        finally:
            with self._lock:
                self._replies.pop(number, None)
        if reply.get("ok"):
            return reply
        raise error_from_json(reply.get("error") or {"message": f"`{cmd}` failed"})

    def stop(self, timeout_s: float = 15.0) -> WorkerExit:
        """Let it finish what it took, then end it; after `timeout_s` kill it."""
        with self._send_lock:
            self._stopping = True
            if self._has_spec:
                self._write(_STOP)
        if not self._ended.wait(timeout_s) and self._process is not None:
            self.kill(f"it did not stop within {timeout_s:g} s")
            self._ended.wait(10.0)
        return self._exit or WorkerExit(None, None)

    def kill(self, why: str) -> None:
        """Kill it at once; `why` stands in its exit."""
        self._why = self._why or why
        if self._process is not None and not self._ended.is_set():
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    # -- threads -------------------------------------------------------------------------------------------------

    def _gone(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def _send(self, message: Mapping[str, Any]) -> None:
        with self._send_lock:
            if self._has_spec:
                self._write(message)

    def _write(self, message: Mapping[str, Any]) -> None:
        process = self._process
        if process is None or process.stdin is None:
            return
        with contextlib.suppress(OSError, ValueError):
            write_all(process.stdin.fileno(), json.dumps(message).encode() + b"\n", self._gone)

    def _read_events(self, log: threading.Thread) -> None:
        process = self._process
        assert process is not None
        assert process.stdout is not None
        try:
            for line in read_lines(process.stdout.fileno(), self._gone):
                self._beat = time.monotonic()
                try:
                    event = json.loads(line)
                except ValueError:
                    self._keep_log(line)
                    continue
                if isinstance(event, dict):
                    self._take(event)
        except Exception:
            logger.exception("the events of the worker could not be read")
            self.kill("its events could not be read")
        finally:
            self._finish(log)

    def _finish(self, log: threading.Thread | None) -> None:
        """Wait for the process, which ends or is killed for its silence, and tell everybody who waits for it."""
        process = self._process
        assert process is not None
        try:
            code = process.wait()
            if log is not None:
                log.join(2.0)
            self._exit = WorkerExit(None, -code, self._why) if code < 0 else WorkerExit(code, None, self._why)
            with self._send_lock:
                for stream in (process.stdin, process.stdout):
                    with contextlib.suppress(OSError):
                        if stream is not None:
                            stream.close()
        finally:
            self._ended.set()
            with self._lock:
                waiting = list(self._replies.values())
            dead = WorkerError(f"the worker died: {self._exit}").to_json()
            for replies in waiting:
                replies.put({"ok": False, "error": dead})

    def _take(self, event: Event) -> None:
        if "event" in event:
            self.last_event = event
            if event["event"] == "heartbeat" and event.get("busy_s", 0.0) > self._hang_s:
                self.kill(f"it hung in {event.get('busy', 'a native call')} for {event['busy_s']:.0f} s")
            if self._on_event is not None:
                try:
                    self._on_event(event)
                except Exception:
                    logger.exception("an event of the worker could not be handled")
            return
        with self._lock:
            replies = self._replies.get(event.get("id", -1))
        if replies is not None:
            replies.put(event)

    def _read_log(self) -> None:
        process = self._process
        assert process is not None
        assert process.stderr is not None
        with process.stderr as stream:
            for line in read_lines(stream.fileno(), self._gone):
                self._keep_log(line)

    def _keep_log(self, raw: bytes) -> None:
        line = redact(raw.decode(errors="replace").rstrip())[:2000]
        if line:
            self._log.append(line)
            if self._on_log is not None:
                try:
                    self._on_log(line)
                except Exception:
                    logger.exception("a line of the worker could not be shown")

    def _watch(self) -> None:
        """Kill a worker that sends nothing any more (its heartbeat comes every second, whatever the frames do)."""
        while not self._ended.wait(min(1.0, self._silence_s / 4)):
            if time.monotonic() - self._beat > self._silence_s:
                self.kill(f"it sent nothing for {self._silence_s:g} s")


def error_from_json(data: Mapping[str, Any]) -> EdgeError:
    """Return the EdgeError that `to_json` described in another process; an unknown kind is a WorkerError."""
    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, EdgeError)]
    kinds: dict[str, type[EdgeError]] = {c.kind: c for c in classes if c is not EdgeError}
    return kinds.get(str(data.get("kind")), WorkerError)(str(data.get("message", "failed")), hint=data.get("hint"))


def _environment() -> dict[str, str]:
    """Return the worker's environment: imports come from where this process got them, never from the current folder."""
    root = Path(__file__).resolve().parents[2]
    env = dict(os.environ) | {"PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}
    env.setdefault("OPENCV_LOG_LEVEL", "ERROR")
    env.setdefault("MALLOC_ARENA_MAX", "2")  # a heap for every thread costs memory and gains nothing here
    env.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", "100000000")
    if root.name not in ("site-packages", "dist-packages"):
        env["PYTHONPATH"] = os.pathsep.join(p for p in (str(root), env.get("PYTHONPATH")) if p)
    return env

"""The process that decodes and infers: one pipeline, driven by JSON lines on stdin, telling on stdout.

The first line of stdin is the spec `{"mode", "pipeline", "telemetry", "frames", "retry_source", "resume", …}`;
every later line is a command `{"id", "cmd", …}` with one reply `{"id", "ok", …}`. Events are `ready`, `heartbeat`,
`stats`, `done` and `error`. End of stdin means that the parent is gone: the worker finishes and ends too.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from edge_sdk.agent.worker_jobs import Channel, Job, ServeJob
from edge_sdk.errors import EXIT_BUG, EdgeError

_HEARTBEAT_S = 1.0
_DEAD_MAN_S = 120
_ORPHAN_S = 15.0


class _Heart(threading.Thread):
    """Sends a heartbeat every second and the statistics every period.

    It also keeps an alarm of the system ahead of itself: native code that holds the interpreter for longer than that
    ends the process, even when nobody is left to kill it.
    """

    def __init__(self, job: Any, channel: Channel, stats_period_s: float) -> None:
        super().__init__(name="heart", daemon=True)
        self._job, self._channel, self._stats_period_s = job, channel, stats_period_s

    def run(self) -> None:
        next_stats = time.monotonic()
        while True:
            signal.alarm(_DEAD_MAN_S)
            now = time.monotonic()
            busy, busy_s = self._job.busy(now)
            self._channel.send({"event": "heartbeat", "t": time.time(), "busy": busy, "busy_s": round(busy_s, 1)})
            if now >= next_stats and self._job.running:
                self._channel.send({"event": "stats"} | self._job.stats())
                next_stats = now + self._stats_period_s
            time.sleep(_HEARTBEAT_S)


def main() -> int:
    """Run the worker and return its exit code."""
    faulthandler.enable()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Engines print on stdout when they like: only this descriptor carries events.
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    channel = Channel(sys.stdin, events)
    spec = channel.spec()
    if spec is None:
        return EXIT_BUG
    try:
        report = _MODES[spec.get("mode", "run")](spec, channel)
    except EdgeError as error:
        channel.send({"event": "error", "error": error.to_json()})
        return error.exit_code
    except Exception as error:
        traceback.print_exc()
        message = f"{type(error).__name__}: {error}"
        channel.send({"event": "error", "error": {"exit": EXIT_BUG, "kind": "bug", "message": message, "hint": None}})
        return EXIT_BUG
    channel.send({"event": "done", "report": report})
    return 0


def _run(spec: Mapping[str, Any], channel: Channel) -> dict[str, Any]:
    return _drive(Job(spec, channel), channel, _period_s(spec))


def _serve(spec: Mapping[str, Any], channel: Channel) -> dict[str, Any]:
    return _drive(ServeJob(spec, channel), channel, _period_s(spec))


def _group(spec: Mapping[str, Any], channel: Channel) -> dict[str, Any]:
    from edge_sdk.agent.group import GroupJob

    return _drive(GroupJob(spec, channel), channel, _period_s(spec))


def _period_s(spec: Mapping[str, Any]) -> float:
    return float(spec.get("stats_period_s") or 1.0)


def _drive(job: Any, channel: Channel, stats_period_s: float) -> dict[str, Any]:
    stopped = threading.Event()

    def stop(*_: object) -> None:
        if not stopped.is_set():
            stopped.set()
            # A handler must not wait for a lock that the interrupted code may hold.
            threading.Thread(target=job.pipeline.stop, daemon=True).start()

    def listen() -> None:
        for command in channel.commands():
            threading.Thread(target=job.obey, args=(command,), daemon=True).start()
        stop()
        time.sleep(_ORPHAN_S)
        os._exit(EXIT_BUG)

    signal.signal(signal.SIGTERM, stop)
    threading.Thread(target=listen, name="commands", daemon=True).start()
    _Heart(job, channel, stats_period_s).start()
    return dict(job.run())


def _check(spec: Mapping[str, Any], _channel: Channel) -> dict[str, Any]:
    from edge_sdk.pipeline.check import check, check_all

    return dict(check_all(spec["cameras"]) if "cameras" in spec else check(spec["pipeline"]))


def _bench(spec: Mapping[str, Any], channel: Channel) -> dict[str, Any]:
    from edge_sdk.pipeline.measure import measure

    return dict(measure(spec, lambda text: channel.send({"event": "progress", "text": text})))


_MODES: Mapping[str, Callable[[Mapping[str, Any], Channel], dict[str, Any]]] = {
    "run": _run,
    "group": _group,
    "serve": _serve,
    "check": _check,
    "bench": _bench,
}


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    # Native threads that still run (an abandoned decoder) must not keep the process.
    os._exit(code)

"""A pipeline file that is changed while it runs: read again on SIGHUP, or as soon as it is written with `--watch`."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edge_sdk.agent.supervisor import Supervisor
from edge_sdk.errors import EdgeError, WorkerError
from edge_sdk.output import Output
from edge_sdk.pipeline_config import PipelineConfig

_TIMEOUT_S = 120.0


class Reloader:
    """Reads the file, and lets the worker become what it says.

    A file that is wrong is said with all its problems, and the one before stays. What cannot change while the pipeline
    runs is said, and holds when its worker is started again.

    Args:
        read: returns the pipeline that the file and the flags of the command line describe.
        watch: look at the file without being told to.
    """

    def __init__(self, path: Path, read: Callable[[], PipelineConfig], output: Output, *, watch: bool) -> None:
        self._path, self._read, self._output = path, read, output
        self._watch = watch
        self._asked = threading.Event()
        self._stamp = self._moved = _stamp(path)
        self._handler: Any = None

    def __enter__(self) -> Reloader:
        self._handler = signal.signal(signal.SIGHUP, lambda *_: self._asked.set())
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGHUP, self._handler)

    def look(self, supervisor: Supervisor, spec: dict[str, Any]) -> None:
        """Apply the file if it was asked for or has changed; one that is being written waits for the next look.

        `spec` is what the next worker gets; its pipeline is replaced.
        """
        stamp = _stamp(self._path)
        settled = stamp == self._moved
        self._moved = stamp
        news = self._watch and stamp is not None and stamp != self._stamp and settled
        if not (self._asked.is_set() or news):
            return
        self._asked.clear()
        self._stamp = stamp
        try:
            config = self._read()
        except EdgeError as error:
            self._say(f"{self._path} is not used, what ran before goes on: {error.message}", "red")
            return
        pipeline = config.to_json()
        try:
            reply = supervisor.request("change", _TIMEOUT_S, pipeline=pipeline)
        except WorkerError as error:
            self._say(f"{self._path} is used when the worker is started again: {error.message}", "yellow")
        except EdgeError as error:
            self._say(f"{self._path} is not used, what ran before goes on: {error.message}", "red")
            return
        else:
            self._tell(reply)
        spec["pipeline"] = pipeline
        supervisor.update(spec)

    def _tell(self, reply: dict[str, Any]) -> None:
        changed, restart = reply.get("changed", ()), reply.get("restart", ())
        if changed:
            self._say(f"{self._path}: changed {', '.join(changed)}", "green")
        for reason in restart:
            self._say(f"{self._path}: {reason}", "yellow")
        if not changed and not restart:
            self._say(f"{self._path}: nothing is different", "dim")

    def _say(self, text: str, style: str) -> None:
        self._output.note(text, style)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """Return what tells one state of a file from another; None while it is missing."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino

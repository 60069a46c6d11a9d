"""Pipeline files that are changed while they run: read again on SIGHUP, or as soon as one is written with `--watch`."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edge_sdk.agent.supervisor import Supervisor
from edge_sdk.errors import EdgeError, WorkerError
from edge_sdk.output import Output
from edge_sdk.pipeline_config import PipelineConfig, SourceConfig

_TIMEOUT_S = 120.0
_Stamp = tuple[int, int, int] | None


@dataclass(slots=True)
class File:
    """One file that runs.

    Args:
        read: returns the pipeline that the file, and the flags of the command line, describe.
        source: what runs in place of the source that was read at the start, such as an inherited descriptor.
        camera: the name of its pipeline where several run.
    """

    path: Path
    read: Callable[[], PipelineConfig]
    source: SourceConfig
    camera: str | None = None
    first: SourceConfig = field(init=False)
    used: _Stamp = field(init=False)
    seen: _Stamp = field(init=False)
    asked: bool = False

    def __post_init__(self) -> None:
        self.used = self.seen = _stamp(self.path)
        self.first = self.read().source

    def changed(self) -> bool:
        """Say whether it differs from what runs and has been left alone since the last look."""
        stamp = _stamp(self.path)
        settled, self.seen = stamp == self.seen, stamp
        return stamp is not None and stamp != self.used and settled

    def load(self) -> PipelineConfig:
        """Read it again."""
        self.used = _stamp(self.path)
        config = self.read()
        return replace(config, source=self.source) if config.source == self.first else config


class Reloader:
    """Reads files again, and lets the worker become what they say.

    A file that is wrong is said with all its problems, and what ran before goes on. What cannot change while a pipeline
    runs is said, and holds when its worker is started again.

    Args:
        watch: look at the files without being told to.
    """

    def __init__(self, files: Sequence[File], output: Output, *, watch: bool) -> None:
        self._files, self._output, self._watch = files, output, watch
        self._asked = threading.Event()
        self._handler: Any = None
        self._terminal = os.isatty(2)

    def __enter__(self) -> Reloader:
        self._handler = signal.signal(signal.SIGHUP, self._hang_up)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGHUP, self._handler)

    def _hang_up(self, *_: object) -> None:
        """Note the wish; when the terminal went away the signal has its old meaning, and the run ends."""
        if self._terminal and not os.isatty(2):
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            self._asked.set()

    def look(self, supervisor: Supervisor, spec: dict[str, Any]) -> None:
        """Apply the files that were asked for or have changed; `spec`, what the next worker gets, is kept up."""
        asked = self._asked.is_set()
        self._asked.clear()
        for file in self._files:
            if (file.changed() and self._watch) or asked:
                self._apply(file, supervisor, spec)

    def _apply(self, file: File, supervisor: Supervisor, spec: dict[str, Any]) -> None:
        try:
            pipeline = file.load().to_json()
        except EdgeError as error:
            self._say(f"{file.path} is not used, what ran before goes on: {error.message}", "red")
            return
        fields: dict[str, Any] = {} if file.camera is None else {"camera": file.camera}
        try:
            reply = supervisor.request("change", _TIMEOUT_S, pipeline=pipeline, **fields)
        except WorkerError as error:
            self._say(f"{file.path} is used when the worker is started again: {error.message}", "yellow")
        except EdgeError as error:
            self._say(f"{file.path} is not used, what ran before goes on: {error.message}", "red")
            return
        else:
            self._tell(file, reply)
        parts = [spec] if file.camera is None else [c for c in spec["cameras"] if c["name"] == file.camera]
        for part in parts:
            part["pipeline"] = pipeline
        supervisor.update(spec)

    def _tell(self, file: File, reply: dict[str, Any]) -> None:
        changed, restart = reply.get("changed", ()), reply.get("restart", ())
        if changed:
            self._say(f"{file.path}: changed {', '.join(changed)}", "green")
        for reason in restart:
            self._say(f"{file.path}: {reason}", "yellow")
        if not changed and not restart:
            self._say(f"{file.path}: nothing is different", "dim")

    def _say(self, text: str, style: str) -> None:
        self._output.note(text, style)


def _stamp(path: Path) -> _Stamp:
    """Return what tells one state of a file from another; None while it is missing."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino

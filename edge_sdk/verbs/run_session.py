"""One run of `edge run`: its worker from start to report, and what its death means."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import replace
from typing import Any

from edge_sdk.agent.process import Event, WorkerExit, error_from_json
from edge_sdk.agent.supervisor import Supervisor
from edge_sdk.errors import EdgeError, SourceError, WorkerError
from edge_sdk.output import Output
from edge_sdk.pipeline_config import PipelineConfig
from edge_sdk.sources.uri import kind_of
from edge_sdk.verbs.run_reload import Reloader

_STOP_S = 45.0


class Session:
    """One worker from start to report: signals, progress, restarts of live sources, what its death means."""

    def __init__(self, spec: dict[str, Any], output: Output, *, verbose: bool = False) -> None:
        self._output, self._spec = output, spec
        self._frames = spec.get("frames")
        # What was read from a pipe is gone: another worker would begin in the middle of a frame.
        self._may_restart = not spec.get("inherit")
        self._report: dict[str, Any] | None = None
        self._error: dict[str, Any] | None = None
        self._exit: Event | None = None
        self._live = self._was_ready = self._stopping = False
        self.interrupted = False
        self._ended = threading.Event()
        log = (lambda line: output.note(f"worker: {line}", "dim")) if verbose else None
        self._supervisor = Supervisor(spec, on_event=self._event, on_log=log, restart=self._restart)

    def run(self, reloader: Reloader | None = None) -> dict[str, Any]:
        """Run to the end and return the worker's report; empty when it was stopped before there was one.

        Raises:
            EdgeError: what the worker reported, or that it died.
        """
        handlers = {s: signal.signal(s, self._signal) for s in (signal.SIGTERM, signal.SIGINT)}
        try:
            self._supervisor.start()
            while not self._ended.wait(0.5):
                if not self._supervisor.alive or (self._stopping and self._supervisor.worker is None):
                    break
                if reloader is not None and self._was_ready and not self._stopping:
                    reloader.look(self._supervisor, self._spec)
        finally:
            self._supervisor.stop(_STOP_S)
            for number, handler in handlers.items():
                signal.signal(number, handler)
        if self._report is not None:
            return self._report
        if self._error is not None:
            raise error_from_json(self._error)
        if self._stopping:
            return {}
        raise self._death()

    def _signal(self, number: int, _frame: Any) -> None:
        if number == signal.SIGINT:
            if self.interrupted:
                raise KeyboardInterrupt
            self.interrupted = True
        if not self._stopping:
            self._stopping = True
            threading.Thread(target=self._stop, daemon=True).start()

    def _stop(self) -> None:
        self._supervisor.stop(_STOP_S)
        self._ended.set()

    def _restart(self, ended: WorkerExit) -> bool:
        """Restart a live source's worker that died or whose source is gone, never one that did not come up once."""
        again = self._will_restart()
        if again:
            self._output.note(f"worker: {ended}: starting it again", "yellow")
            self._error = None
        return again

    def _event(self, event: Event) -> None:
        name = event["event"]
        if name == "ready":
            self._was_ready, self._live = True, bool(event.get("live")) and self._may_restart
            for what, url in event.get("addresses", ()):
                self._output.note(f"{what}: {url}", "bold")
        elif name == "stats":
            self._output.progress(_progress(event, self._frames))
        elif name == "progress":
            self._output.progress(event["text"])
        elif name == "note":
            self._output.note(event["text"], "yellow")
        elif name == "done":
            self._report = event["report"]
        elif name == "error":
            self._error = event["error"]
        elif name == "exit":
            self._exit = event
            if event["clean"] or not self._will_restart():
                self._ended.set()

    def _will_restart(self) -> bool:
        if self._report is not None:
            return False
        return self._was_ready and self._live and (self._error is None or self._error.get("kind") == "source")

    def _death(self) -> EdgeError:
        how = self._exit["exit"] if self._exit else "it could not be started"
        tail = list((self._exit or {}).get("log", ()))[-8:]
        text = f"the worker process died: {how}"
        if tail:
            text += "\nits last words:\n" + "\n".join(f"  {line}" for line in tail)
        hint = "the input or the model makes native code crash; this process is not affected"
        return WorkerError(text, hint=hint)


def _progress(stats: Event, frames: int | None) -> str:
    done = f"{stats['processed']}" + (f" of {frames}" if frames else "")
    latency = stats["latency_ms"]["p50"]
    dropped = sum(stats["dropped"].values())
    text = f"{done} frames" + (f", {latency:.1f} ms" if latency else "")
    return text + (f", {dropped} dropped" if dropped else "")


def with_stdin(config: PipelineConfig) -> tuple[PipelineConfig, list[int]]:
    """Return a pipeline whose worker reads this process's standard input, and the descriptors that it inherits."""
    if kind_of(config.source.uri) != "stdin" or "fd" in config.source.params:
        return config, []
    try:
        # The worker's own standard input carries commands.
        fd = os.dup(0)
    except OSError:
        raise SourceError("standard input is closed", hint="pipe frames into the command") from None
    return replace(config, source=replace(config.source, params={**config.source.params, "fd": fd})), [fd]

"""The process that decodes and infers: one pipeline, driven by JSON lines on stdin, telling on stdout.

The first line of stdin is the spec `{"mode", "pipeline", "telemetry", "frames", "retry_source", "resume", …}`;
every later line is a command `{"id", "cmd", …}` with one reply `{"id", "ok", …}`. Events are `ready`, `heartbeat`,
`stats`, `done` and `error`. End of stdin means that the parent is gone: the worker finishes and ends too.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from edge_sdk.errors import EXIT_BUG, EdgeError, UsageError

logger = logging.getLogger(__name__)
_HEARTBEAT_S = 1.0
_DEAD_MAN_S = 120
_ORPHAN_S = 15.0


class Channel:
    """The worker's side of the two pipes."""

    def __init__(self, commands: TextIO, events: TextIO) -> None:
        self._commands = commands
        self._events = events
        self._lock = threading.Lock()

    def spec(self) -> dict[str, Any] | None:
        """Return the first line; None when the parent was gone before it was sent."""
        line = self._commands.readline()
        return json.loads(line) if line.strip() else None

    def send(self, message: Mapping[str, Any]) -> None:
        """Send one line; a parent that no longer reads ends the worker."""
        line = json.dumps(message, default=str) + "\n"
        try:
            with self._lock:
                self._events.write(line)
                self._events.flush()
        except (OSError, ValueError):
            os._exit(EXIT_BUG)

    def commands(self) -> Any:
        """Yield commands until the parent is gone."""
        for line in self._commands:
            try:
                command = json.loads(line)
            except ValueError:
                continue
            if isinstance(command, dict):
                yield command


class Job:
    """What the worker does: a pipeline that runs, and what can be asked of it."""

    def __init__(self, spec: Mapping[str, Any], channel: Channel) -> None:
        from edge_sdk.pipeline.build import Pipeline
        from edge_sdk.pipeline_config import PipelineConfig

        self._channel = channel
        self._spec = spec
        config = PipelineConfig.from_mapping(spec["pipeline"])
        self.pipeline = Pipeline.from_config(
            config, retry_source=bool(spec.get("retry_source")), resume=bool(spec.get("resume"))
        )
        self._explain_s: float | None = spec.get("explain")
        if self._explain_s is not None:
            self.pipeline.focus(self._explain_s)
        if spec.get("telemetry"):
            from edge_sdk.artifact import Artifact
            from edge_sdk.telemetry.observer import open_observer

            digest = Artifact.open(config.model_stage.model).sha256
            self.pipeline.observe(open_observer(spec["telemetry"], model=digest))
        self._service: Any = None
        if spec.get("serve"):
            from edge_sdk.config import parse
            from edge_sdk.serve_config import ServeConfig
            from edge_sdk.serving.metrics import Watch
            from edge_sdk.serving.service import Service

            self._watch = Watch()
            self._service = Service(parse(spec["serve"], ServeConfig, where="serve"))
            self.pipeline.observe(self._watch)
        self._stage = config.model_stage
        self._commands: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
            "stats": self._stats,
            "swap": self._swap,
            "change": self._change,
            "selftest": self._self_test,
            "stop": self._stop,
        }

    def run(self) -> dict[str, Any]:
        """Run to the end and return the report."""
        try:
            if self._service is not None:
                self._service.open()
            self.pipeline.start(frames=self._spec.get("frames"), hand_out=False)
            if self._service is not None:
                self._service.serve(self._models(self._stage.model), pipeline=self.pipeline, watch=self._watch)
            addresses = [*self.pipeline.addresses, *([self._service.address] if self._service else [])]
            self._channel.send(
                {
                    "event": "ready",
                    "pid": os.getpid(),
                    "live": self.pipeline.live,
                    "stages": self.pipeline.models(),
                    "addresses": addresses,
                }
            )
            report = self.pipeline.wait().to_json()
            if self._explain_s is not None:
                report["explain"] = [d.to_json() for d in self.pipeline.explain(self._explain_s)]
            return report
        finally:
            if self._service is not None:
                self._service.close()
            self.pipeline.close()

    @property
    def running(self) -> bool:
        return bool(self.pipeline.running)

    def busy(self, now: float) -> tuple[str, float]:
        """Return what has been in one native call for longest, and for how many seconds."""
        states: list[tuple[str, float]] = [
            self.pipeline.busy(now),
            *([self._service.busy(now)] if self._service is not None else []),
        ]
        return max(states, key=lambda state: state[1])

    def stats(self) -> dict[str, Any]:
        return dict(self.pipeline.stats())

    def _models(self, path: str) -> Any:
        from edge_sdk.pipeline.models import load_models

        return load_models(path, count=1, kind=self._stage.kind, params=self._stage.params, test=False)

    def obey(self, command: Mapping[str, Any]) -> None:
        """Carry out one command and reply."""
        number = command.get("id")
        try:
            handler = self._commands.get(str(command.get("cmd")))
            if handler is None:
                raise UsageError(f"unknown command `{command.get('cmd')}`", hint=f"known: {', '.join(self._commands)}")
            reply = {"id": number, "ok": True} | handler(command)
        except EdgeError as error:
            reply = {"id": number, "ok": False, "error": error.to_json()}
        except Exception as error:
            logger.exception("command `%s` failed", command.get("cmd"))
            reply = {"id": number, "ok": False, "error": {"exit": EXIT_BUG, "kind": "bug", "message": repr(error)}}
        self._channel.send(reply)

    def _stats(self, _command: Mapping[str, Any]) -> dict[str, Any]:
        return {"stats": self.pipeline.stats(), "modules": sorted({name.partition(".")[0] for name in sys.modules})}

    def _swap(self, command: Mapping[str, Any]) -> dict[str, Any]:
        artifact, stage = str(command.get("artifact")), str(command.get("stage"))
        swapped = {"stage": self.pipeline.swap(stage, artifact)}
        # The service answers with the model that sees the frames, not with one that looks at its boxes.
        if self._service is not None and stage not in {m["name"] for m in self.pipeline.models()[1:]}:
            self._service.swap(self._models(artifact))
        return swapped

    def _change(self, command: Mapping[str, Any]) -> dict[str, Any]:
        """Change one stage or sink by `params`, or become what `pipeline` describes."""
        from edge_sdk.pipeline_config import PipelineConfig

        params, config = command.get("params") or {}, command.get("pipeline")
        if config is not None:
            changes = self.pipeline.apply(PipelineConfig.from_mapping(config))
        elif isinstance(params, dict) and ("stage" in command or "sink" in command):
            name = str(command.get("stage", command.get("sink")))
            if "enabled" in command:
                changes = self.pipeline.switch(name, enabled=bool(command["enabled"]))
            else:
                changes = self.pipeline.change(name, **params)
        else:
            raise UsageError("`change` needs `stage` or `sink` with `params`, or `pipeline`")
        stage = self.pipeline.live_stages[0]
        if self._service is not None and (stage.params != self._stage.params or stage.model != self._stage.model):
            self._stage = stage
            self._service.swap(self._models(stage.model))
        return dict(changes.to_json())

    def _self_test(self, command: Mapping[str, Any]) -> dict[str, Any]:
        from edge_sdk.artifact import Artifact
        from edge_sdk.pipeline.models import self_test

        checks = self_test(Artifact.open(str(command["artifact"]))) if "artifact" in command else None
        checks = self.pipeline.self_test() if checks is None else checks
        return {"checks": [{"name": c.name, "ok": c.ok, "detail": c.detail} for c in checks]}

    def _stop(self, _command: Mapping[str, Any]) -> dict[str, Any]:
        self.pipeline.stop()
        return {}


class ServeJob(Job):
    """A service without a pipeline."""

    def __init__(self, spec: Mapping[str, Any], channel: Channel) -> None:
        from edge_sdk.serving.session import ServeOnly

        self._channel, self._spec = channel, spec
        self.pipeline: Any = ServeOnly(spec)
        self._service: Any = None
        self._commands = {"stats": self._stats, "swap": self._swap, "stop": self._stop}

    def run(self) -> dict[str, Any]:
        """Serve until told to stop and return the report."""
        self.pipeline.start()
        addresses = [self.pipeline.service.address]
        self._channel.send({"event": "ready", "pid": os.getpid(), "live": True, "addresses": addresses})
        return dict(self.pipeline.wait())

    def _swap(self, command: Mapping[str, Any]) -> dict[str, Any]:
        self.pipeline.swap(str(command.get("artifact")))
        return {}


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

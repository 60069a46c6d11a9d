"""What a worker process does, and the pipes through which it is told to and tells."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from edge_sdk.errors import EXIT_BUG, EdgeError, UsageError

logger = logging.getLogger(__name__)


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

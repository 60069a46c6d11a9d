"""A worker that only serves: no source, no pipeline, a model and its HTTP service until it is told to stop."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import cv2

from edge_sdk.artifact import Artifact
from edge_sdk.config import parse
from edge_sdk.pipeline.models import frame_threads, load_models
from edge_sdk.serve_config import ServeConfig
from edge_sdk.serving.service import Service


class ServeOnly:
    """Takes the place of a pipeline in a worker: it can be started, asked, and stopped."""

    live = True

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self._stage: Mapping[str, Any] = spec["stage"]
        self.service = Service(parse(spec["serve"], ServeConfig, where="serve"))
        self._stopped = threading.Event()
        self.running = False

    def start(self) -> None:
        """Listen, then load the models: one a core.

        Raises:
            EdgeError: the address is taken, or the model cannot be loaded.
        """
        cv2.setNumThreads(1)
        self.service.open()
        try:
            self.service.serve(self._models(str(self._stage["model"])))
        except BaseException:
            self.service.close()
            raise
        self.running = True

    def swap(self, artifact: str) -> None:
        """Load and test `artifact` beside the running model, then answer with it."""
        self.service.swap(self._models(artifact))

    def wait(self) -> dict[str, Any]:
        """Wait for `stop`, finish what is in flight and return the report."""
        self._stopped.wait()
        self.service.close()
        return self.service.report()

    def stop(self) -> None:
        """Stop soon; does not wait."""
        self._stopped.set()

    def busy(self, now: float) -> tuple[str, float]:
        return self.service.busy(now)

    def stats(self) -> dict[str, Any]:
        return self.service.stats()

    def _models(self, path: str) -> Any:
        artifact = Artifact.open(path)
        count = frame_threads(artifact, live=False)
        kind, params = self._stage.get("kind"), self._stage.get("params") or {}
        return load_models(artifact, count=count, kind=kind, params=params, test=True)

"""The models of a stage: one per frame thread, replaced all at once between two frames."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from edge_sdk.artifact import Artifact, check_golden
from edge_sdk.config import parse
from edge_sdk.errors import ArtifactError, ConfigError, UsageError
from edge_sdk.pipeline_config import TASK_OF_KIND
from edge_sdk.roi import RoiModel
from edge_sdk.sources.base import Image
from edge_sdk.stage_params import TilesParams
from edge_sdk.tiling import TiledModel


class StageModel(Protocol):
    """What a stage needs of a model; `edge_sdk.model.Model` is one."""

    manifest: Any
    labels: tuple[str, ...]
    digest: str

    def prepare(self, frame_bgr: Image) -> tuple[Any, Any]: ...

    def infer(self, feeds: Any) -> Any: ...

    def decode(self, outputs: Any, geometry: Any) -> Any: ...

    def warm(self) -> None: ...

    def close(self) -> None: ...


class ModelSet:
    """Equal models, one for each frame thread, and how many frames are in them."""

    def __init__(self, models: tuple[StageModel, ...]) -> None:
        self.models = models
        self.digest = models[0].digest
        self.in_flight = 0

    def describe(self) -> dict[str, Any]:
        manifest = self.models[0].manifest
        return {
            "model": self.digest,
            "artifact": f"{manifest.name} {manifest.version}",
            "task": manifest.task,
            "runtime": manifest.runtime.name,
        }

    def close(self) -> None:
        for model in self.models:
            model.close()


class ModelSlot:
    """Holds the current set; `replace` waits until no frame is in the old one and then closes it."""

    def __init__(self, current: ModelSet) -> None:
        self._current = current
        self._closed = False
        self._sharing: list[ModelSet] = []
        self._changed = threading.Condition()

    @property
    def current(self) -> ModelSet:
        return self._current

    def acquire(self) -> ModelSet:
        with self._changed:
            self._current.in_flight += 1
            return self._current

    def release(self, models: ModelSet) -> None:
        with self._changed:
            models.in_flight -= 1
            if models is not self._current and models.in_flight == 0:
                self._changed.notify_all()

    def replace(self, new: ModelSet, *, close: bool = True) -> None:
        """Make `new` the one that the next frame gets; without `close` it has the engines of the one before.

        Raises:
            UsageError: the pipeline has ended; `new` is closed.
        """
        with self._changed:
            if not self._closed:
                old, self._current = self._current, new
                if not close:
                    self._sharing = [s for s in self._sharing if s.in_flight] + [old]
                    return
                busy, self._sharing = [*self._sharing, old], []
                self._changed.wait_for(lambda: not any(s.in_flight for s in busy), timeout=60)
            else:
                old = new
        if close:
            old.close()
        if old is new:
            raise UsageError("the pipeline has ended, there is nothing to swap", hint="start it again")

    def close(self) -> None:
        with self._changed:
            if self._closed:
                return
            self._closed = True
        self._current.close()


def load_models(
    artifact: Any,
    *,
    count: int,
    kind: str | None,
    params: Mapping[str, Any],
    test: bool,
    roi: Sequence[Sequence[float]] = (),
) -> ModelSet:
    """Open `artifact` (a path or an Artifact) `count` times, each warm; with `test`, run its golden inputs first.

    Each has an engine of its own: threads that share one take 3 % more CPU a frame than its memory is worth to a file.

    Raises:
        ArtifactError: it cannot be read, or it fails its own golden inputs here.
        BackendError: its runtime is missing or cannot run it.
        ConfigError: its task is not the one of `kind`.
    """
    opened = artifact if isinstance(artifact, Artifact) else Artifact.open(Path(artifact))
    check_kind(opened.manifest, kind)
    models: list[StageModel] = []
    try:
        for i in range(count):
            model = _open(opened, params, roi)
            models.append(model)
            if i == 0 and test:
                self_test(opened, model if not params and not roi else None)
            model.warm()
    except BaseException:
        for model in models:
            model.close()
        raise
    return ModelSet(tuple(models))


def innermost(model: Any) -> Any:
    """Return the model inside tiles and regions."""
    while (inner := getattr(model, "inner", None)) is not None:
        model = inner
    return model


def _open(artifact: Artifact, params: Mapping[str, Any], roi: Sequence[Sequence[float]]) -> StageModel:
    """Open one model with a stage's params: those of its decoder, and `tiles`; `roi` is what it sees of a frame."""
    own = dict(params)
    tiles = own.pop("tiles", None)
    model: StageModel = artifact.load(decoder_params=own or None)
    try:
        if tiles is not None:
            model = TiledModel(model, parse(tiles, TilesParams, where="params.tiles"))
        return RoiModel(model, roi) if roi else model
    except BaseException:
        model.close()
        raise


def check_kind(manifest: Any, kind: str | None) -> None:
    """Refuse an artifact whose task is not that of the stage.

    Raises:
        ConfigError: it is another.
    """
    if kind is not None and manifest.task != TASK_OF_KIND[kind]:
        raise ConfigError(
            f"stage kind `{kind}` needs a model for {TASK_OF_KIND[kind]}, `{manifest.name}` is for {manifest.task}",
            hint="leave `kind` out, or name another model",
        )


def self_test(artifact: Artifact, model: Any = None) -> list[Any]:
    """Run the golden inputs of an artifact on this machine and return the checks.

    Raises:
        ArtifactError: an answer is outside its tolerance.
    """
    golden = artifact.golden()
    own: Any = model if model is not None else artifact.load()
    try:
        checks = check_golden(own, golden)
    finally:
        if model is None:
            own.close()
    failed = [c for c in checks if not c.ok]
    if failed:
        raise ArtifactError(
            f"`{artifact.path.name}` fails {len(failed)} of {len(checks)} self-tests on this machine: "
            f"{failed[0].name}: {failed[0].detail}",
            hint="`edge verify` shows all of them",
        )
    return list(checks)


def frame_threads(artifact: Artifact, *, live: bool) -> int:
    """Return how many frame threads a pipeline gets: one for live sources, else as many as the cores feed."""
    options = artifact.manifest.runtime.options
    busy = int(options.get("threads", 1) or 1) * int(options.get("requests", 1) or 1)
    return 1 if live else max(1, _cores() // busy)


def single_model(model: Any, kind: str | None) -> ModelSet:
    """Return the set of one model that is loaded already; raises as `check_kind`."""
    check_kind(model.manifest, kind)
    return ModelSet((model,))


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1

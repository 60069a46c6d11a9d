"""Artifacts of several pipelines in one process: each is read once, and its engine opened once where that is sound."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge_sdk import runtimes
from edge_sdk.artifact import Artifact
from edge_sdk.errors import UsageError
from edge_sdk.model import Model
from edge_sdk.runtimes.base import Runtime, Tensors


@dataclass(slots=True)
class _Opened:
    """One artifact: the engines that are open, and how many models use each of them."""

    artifact: Artifact
    runtimes: list[Runtime | None] = field(default_factory=list)
    users: list[int] = field(default_factory=list)
    pipelines: int = 0


class SharedArtifacts:
    """What is open in this process, by the artifact's SHA-256.

    Pipelines of one artifact share an engine where several threads may use it at once; a model keeps its own
    preprocessing and decoder.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._opened: dict[str, _Opened] = {}

    def artifact(self, artifact: Any) -> Any:
        """Return an artifact for one pipeline, by its path or opened; anything else is given back as it is.

        Raises:
            ArtifactError: it cannot be read.
        """
        if not isinstance(artifact, (str, Path, Artifact)):
            return artifact
        found = artifact if isinstance(artifact, Artifact) else Artifact.open(artifact)
        with self._lock:
            opened = self._opened.setdefault(found.sha256, _Opened(found))
            opened.pipelines += 1
        return _View(self, opened) if why_not(found.manifest.runtime.name) is None else opened.artifact

    def describe(self) -> list[dict[str, Any]]:
        """Return for each artifact in how many pipelines it is, whether they share engines, and why not."""
        with self._lock:
            rows = []
            for digest, opened in self._opened.items():
                name = opened.artifact.manifest.runtime.name
                why = why_not(name)
                row = {
                    "model": digest,
                    "runtime": name,
                    "pipelines": opened.pipelines,
                    "shared": why is None and opened.pipelines > 1,
                    "why": why,
                }
                rows.append(row)
            return rows

    def take(self, opened: _Opened, used: set[int]) -> tuple[int, Runtime]:
        """Return the first engine that a pipeline does not use yet, opening it when it is not open."""
        with self._lock:
            place = next(i for i in range(len(opened.runtimes) + 1) if i not in used)
            if place == len(opened.runtimes):
                opened.runtimes.append(None)
                opened.users.append(0)
            runtime = opened.runtimes[place]
            if runtime is None:
                runtime = opened.runtimes[place] = opened.artifact.load().runtime
            opened.users[place] += 1
            return place, runtime

    def give_back(self, opened: _Opened, place: int) -> None:
        """Close an engine that no model uses any more."""
        with self._lock:
            opened.users[place] -= 1
            runtime = opened.runtimes[place]
            if opened.users[place] or runtime is None:
                return
            opened.runtimes[place] = None
        runtime.close()


class _View(Artifact):
    """An artifact as one pipeline sees it: `load` takes engines that others have open."""

    def __init__(self, shared: SharedArtifacts, opened: _Opened) -> None:
        self.__dict__.update(vars(opened.artifact))
        self._shared, self._opened = shared, opened
        self._used: set[int] = set()

    def load(
        self, *, options: Mapping[str, Any] | None = None, decoder_params: Mapping[str, Any] | None = None
    ) -> Model:
        if options:
            return super().load(options=options, decoder_params=decoder_params)
        place, runtime = self._shared.take(self._opened, self._used)
        self._used.add(place)
        lent: Any = Lent(runtime, lambda: self._return(place))
        try:
            return Model(self.manifest, lent, self.labels, digest=self.sha256, decoder_params=decoder_params)
        except BaseException:
            lent.close()
            raise

    def _return(self, place: int) -> None:
        self._used.discard(place)
        self._shared.give_back(self._opened, place)


class Lent:
    """An engine that others use too: closing it gives it back."""

    def __init__(self, runtime: Runtime, give_back: Any) -> None:
        self.name = runtime.name
        self.inputs, self.outputs = runtime.inputs, runtime.outputs
        self.keeps_outputs = bool(getattr(runtime, "keeps_outputs", False))
        self._runtime: Runtime | None = runtime
        self._give_back = give_back

    def infer(self, feeds: Tensors) -> dict[str, Any]:
        from edge_sdk.runtimes.base import closed

        if self._runtime is None:
            raise closed(self.name)
        return self._runtime.infer(feeds)

    def close(self) -> None:
        runtime, self._runtime = self._runtime, None
        if runtime is not None:
            self._give_back()


def why_not(runtime: str) -> str | None:
    """Return why pipelines cannot share an engine of `runtime`; None when they can."""
    try:
        capabilities = runtimes.registry().plugin(runtime).capabilities
    except UsageError:
        capabilities = {}
    if capabilities.get("shares"):
        return None
    return str(capabilities.get("unshared", "the runtime does not say that several threads may use one engine"))

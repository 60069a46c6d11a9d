"""An artifact whose engine runs in a process of its own: one that crashes or hangs ends there, alone."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from edge_sdk.artifact import Artifact
from edge_sdk.errors import ArtifactError, BackendError, WorkerError
from edge_sdk.model import Model
from edge_sdk.runtimes.base import Tensor, Tensors, TensorSpec, closed
from edge_sdk.sources.isolated import environment
from edge_sdk.sources.process import Child

_LOAD_S = 120.0
_INFER_S = 60.0
_LINE_BYTES = 1 << 20
NICE = 10


class Contained(Artifact):
    """An artifact as it is; only `load` gives models whose engine is in a child process of low priority."""

    def __init__(self, artifact: Artifact) -> None:
        self.__dict__.update(vars(artifact))

    def load(
        self, *, options: Mapping[str, Any] | None = None, decoder_params: Mapping[str, Any] | None = None
    ) -> Model:
        """Open the engine in a child; preprocessing and decoding stay in this process.

        Raises:
            WorkerError: the child died or hung.
            EdgeError: as `Artifact.load`.
        """
        runtime: Any = ContainedRuntime(self.path, {"path": str(self.path), "options": dict(options or {})})
        try:
            return Model(self.manifest, runtime, self.labels, digest=self.sha256, decoder_params=decoder_params)
        except BaseException:
            runtime.close()
            raise


class ContainedRuntime:
    """The runtime of an artifact in a child process; tensors go through its pipes.

    Raises:
        WorkerError: the child dies or does not answer, now or at an inference.
        BackendError, ArtifactError: what the engine says about the model.
    """

    name: ClassVar[str] = "contained"
    keeps_outputs = True

    def __init__(self, model: Path, options: Mapping[str, Any]) -> None:
        self._what = Path(model).name
        self.pid = 0
        words = [sys.executable, "-m", "edge_sdk.pipeline.contained_child"]
        spec = json.dumps(dict(options)).encode() + b"\n"
        self._child: Child | None = Child(words, name="engine", stdin=spec, talk=True, env=environment())
        self.pid = self._child.process.pid
        try:
            head = self._reply(_LOAD_S)
        except BaseException:
            self.close()
            raise
        self.inputs, self.outputs = (
            tuple(TensorSpec(**{**row, "shape": tuple(row["shape"])}) for row in head[key])
            for key in ("inputs", "outputs")
        )

    def infer(self, feeds: Tensors) -> dict[str, Tensor]:
        """Return every output by name.

        Raises:
            WorkerError: the child died, or did not answer within a minute.
            BackendError: the engine failed.
        """
        child = self._child
        if child is None:
            raise closed(self.name)
        for part in message(feeds):
            child.write(part)
        head = self._reply(_INFER_S)
        out: dict[str, Tensor] = {}
        for row in head["tensors"]:
            data = bytearray(row["bytes"])
            self._fill(memoryview(data), _INFER_S)
            out[row["name"]] = np.frombuffer(data, np.dtype(row["dtype"])).reshape(row["shape"])
        return out

    def interrupt(self) -> None:
        """Kill the child; allowed from every thread."""
        child = self._child
        if child is not None:
            child.kill()

    def close(self) -> None:
        """End the child, whatever it does."""
        child, self._child = self._child, None
        if child is not None:
            child.close()

    # -- inside ----------------------------------------------------------------------------------------------------

    def _reply(self, timeout_s: float) -> dict[str, Any]:
        assert self._child is not None
        try:
            line = self._child.read_line(timeout_s, _LINE_BYTES)
        except TimeoutError:
            raise self._hung(timeout_s) from None
        if not line:
            raise self._death()
        head: dict[str, Any] = json.loads(line)
        if "error" in head:
            cls = ArtifactError if head["error"]["kind"] == ArtifactError.kind else BackendError
            raise cls(head["error"]["message"], hint=head["error"]["hint"])
        return head

    def _fill(self, view: memoryview, timeout_s: float) -> None:
        assert self._child is not None
        try:
            whole = self._child.read_into(view, timeout_s) == len(view)
        except TimeoutError:
            raise self._hung(timeout_s) from None
        if not whole:
            raise self._death()

    def _hung(self, timeout_s: float) -> WorkerError:
        if self._child is not None:
            self._child.kill()
        return WorkerError(
            f"the engine of `{self._what}` did not answer within {timeout_s:g} s and was ended",
            hint="`edge verify` tries the artifact in a process of its own",
        )

    def _death(self) -> WorkerError:
        child = self._child
        code = child.ending() if child is not None else None
        return WorkerError(
            f"the engine of `{self._what}` took its process down: {_how(code)}",
            hint="`edge verify` tries the artifact in a process of its own",
        )


def message(tensors: Tensors) -> list[bytes]:
    """Return tensors as they go through a pipe: a line of JSON that describes them, then the bytes of each."""
    arrays = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    rows = [{"name": n, "dtype": a.dtype.name, "shape": a.shape, "bytes": a.nbytes} for n, a in arrays.items()]
    return [json.dumps({"tensors": rows}).encode() + b"\n", *(a.tobytes() for a in arrays.values())]


def _how(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"

"""One model on this device: preprocess, infer, decode."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_sdk import runtimes, tasks
from edge_sdk.errors import ArtifactError, BackendError, NonFiniteError, UsageError
from edge_sdk.registry import Registry
from edge_sdk.runtimes.base import Runtime, Started, TensorSpec, dequantize
from edge_sdk.runtimes.versions import check_version
from edge_sdk.schemas.manifest import Manifest, OutputSpec
from edge_sdk.tasks.base import Decoder, Geometry, Result
from edge_sdk.tasks.preprocess import Preprocessor

logger = logging.getLogger(__name__)
Tensors = dict[str, NDArray[Any]]


class Model:
    """A loaded model; call it with a BGR frame. One thread at a time: more workers open more models.

    Args:
        runtime: opened on the model's file; closed with the model.
        labels: class names by class id.
        digest: the artifact's SHA-256, empty where there is no artifact.
        decoder_params: override the manifest's, key by key.

    Raises:
        ArtifactError: the manifest's inputs and outputs are not those of the model file, or decoder and task differ.
        BackendError: the decoder is unknown here.
        UsageError: the decoder's params are wrong.
    """

    def __init__(
        self,
        manifest: Manifest,
        runtime: Runtime,
        labels: Sequence[str],
        *,
        digest: str = "",
        decoder_params: Mapping[str, Any] | None = None,
    ) -> None:
        self.manifest = manifest
        self.labels = tuple(labels)
        self.digest = digest
        self.runtime = runtime
        _check_signature(manifest, runtime)
        params = {**manifest.decoder.params, **(decoder_params or {})}
        decoder_class = _load_plugin(tasks.decoders(), manifest.decoder.name)
        if decoder_class.task != manifest.task:
            raise ArtifactError(
                f"decoder `{manifest.decoder.name}` is for {decoder_class.task}, the manifest says {manifest.task}",
                hint="name the model's decoder when converting",
            )
        self.decoder: Decoder = decoder_class(params, self.labels)
        self.keeps_outputs = bool(getattr(runtime, "keeps_outputs", False))
        self.requests = int(getattr(runtime, "requests", 1))
        self._preprocess = Preprocessor(manifest.input)
        self._finite = {o.name for o in manifest.outputs if np.dtype(o.dtype).kind == "f"}

    @classmethod
    def open_files(
        cls,
        manifest: Manifest,
        model_path: Path,
        labels: Sequence[str],
        *,
        options: Mapping[str, Any] | None = None,
        digest: str = "",
        decoder_params: Mapping[str, Any] | None = None,
    ) -> Model:
        """Open the runtime that the manifest names on `model_path`; `options` override the manifest's, key by key.

        Raises:
            BackendError: the runtime is not installed, of another version, or cannot run the model.
            ArtifactError: the file cannot be read as a model or does not fit the manifest.
        """
        table = runtimes.registry()
        runtime_class = load_runtime(manifest, table)
        runtime = runtime_class(model_path, {**manifest.runtime.options, **(options or {})})
        try:
            return cls(manifest, runtime, labels, digest=digest, decoder_params=decoder_params)
        except BaseException:
            runtime.close()
            raise

    def __call__(self, frame_bgr: NDArray[Any]) -> Result:
        """Return the result for one upright BGR frame (h, w, 3) uint8, in its pixels.

        Raises:
            UsageError: the frame has another form.
            NonFiniteError: an output holds NaN or infinity.
            BackendError: the engine failed.
        """
        feeds, geometry = self.prepare(frame_bgr)
        return self.decode(self.infer(feeds), geometry)

    def prepare(self, frame_bgr: NDArray[Any]) -> tuple[Tensors, Geometry]:
        """Return the feeds of one frame, valid until the next call, and where they lie in it."""
        tensor, geometry = self._preprocess(frame_bgr)
        return {self.manifest.input.name: tensor}, geometry

    def infer(self, feeds: Tensors) -> Tensors:
        """Return the outputs that the manifest names, as the engine gives them, valid until the next call."""
        values = self.runtime.infer(feeds)
        return {spec.name: values[spec.name] for spec in self.manifest.outputs}

    def start(self, feeds: Tensors) -> Started:
        """Begin an inference, for engines with `requests` above 1; `feeds` must stay as they are until it is done."""
        started: Started = self.runtime.start(feeds)  # type: ignore[attr-defined]
        return started

    def decode(self, outputs: Mapping[str, NDArray[Any]], geometry: Geometry) -> Result:
        """Return the result that `outputs` stand for.

        Raises:
            NonFiniteError: an output holds NaN or infinity.
        """
        for name in self._finite:
            # A sum is finite unless a value is not, or it overflows: one pass without a temporary array, which einsum
            # makes with wider instructions than np.sum, and without warnings.
            total = np.einsum("i->", outputs[name].reshape(-1))
            if not np.isfinite(total) and not np.isfinite(outputs[name]).all():
                bad = int(np.size(outputs[name]) - np.isfinite(outputs[name]).sum())
                raise NonFiniteError(
                    f"output `{name}` holds {bad} of {outputs[name].size} values that are NaN or infinite",
                    hint="the model overflows: convert it again with more precision, or check its input scaling",
                )
        return self.decoder({s.name: _as_real(outputs[s.name], s) for s in self.manifest.outputs}, geometry)

    def warm(self) -> None:
        """Run the engine twice on mid-grey pixels, so that the first real frame is as fast as the others."""
        spec = self.manifest.input
        feeds, _ = self.prepare(np.full((spec.height, spec.width, 3), 128, np.uint8))
        for _ in range(2):
            self.infer(feeds)

    def reference(self) -> Model:
        """Return this model, on the same runtime, with the manifest's own decoder params."""
        same = copy.copy(self)
        decoder_class = type(self.decoder)
        same.decoder = decoder_class(self.manifest.decoder.params, self.labels)
        return same

    def close(self) -> None:
        self.runtime.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def load_runtime(manifest: Manifest, table: Registry) -> type[Runtime]:
    """Return the class of the manifest's runtime, its version checked.

    Raises:
        BackendError: it is unknown here, not installed, or of a version outside the manifest's range.
    """
    spec = manifest.runtime
    runtime_class: type[Runtime] = _load_plugin(table, spec.name)
    check_version(table, spec.name, spec.min, spec.max, spec.distribution)
    return runtime_class


def _load_plugin(table: Registry, name: str) -> Any:
    try:
        return table.load(name)
    except UsageError as error:
        raise BackendError(
            f"the model needs {table.kind} `{name}`, which this edge-sdk has not",
            hint=f"install the package that brings it, or upgrade edge-sdk; {error.hint}",
        ) from None


def _as_real(value: NDArray[Any], spec: OutputSpec) -> NDArray[Any]:
    """Return floats as float32, quantized integers as the floats they stand for, other integers as they are."""
    if spec.scale is None and value.dtype.kind in "iub":
        return value
    return dequantize(value, spec)


def _check_signature(manifest: Manifest, runtime: Runtime) -> None:
    spec = manifest.input
    names = [i.name for i in runtime.inputs]
    if len(names) != 1 or spec.name not in names:
        raise ArtifactError(
            f"the model has inputs {', '.join(names) or 'none'}, the manifest has one, `{spec.name}`",
            hint="the manifest belongs to another model",
        )
    _check_tensor("input", spec.name, spec.shape, spec.dtype, runtime.inputs[0])
    outputs = {o.name: o for o in runtime.outputs}
    for output in manifest.outputs:
        if output.name not in outputs:
            raise ArtifactError(
                f"the model has no output `{output.name}`, it has {', '.join(outputs)}",
                hint="the manifest belongs to another model",
            )
        _check_tensor("output", output.name, output.shape, output.dtype, outputs[output.name])


def _check_tensor(what: str, name: str, shape: tuple[int, ...], dtype: str, found: TensorSpec) -> None:
    same = len(shape) == len(found.shape) and all(b is None or a == b for a, b in zip(shape, found.shape, strict=False))
    if not same or dtype != found.dtype:
        raise ArtifactError(
            f"{what} `{name}` is {found.dtype} {list(found.shape)} in the model, {dtype} {list(shape)} in the manifest",
            hint="the manifest belongs to another model",
        )

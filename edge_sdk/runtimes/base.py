"""What a runtime is to the rest of the SDK."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import ArtifactError, BackendError, UsageError
from edge_sdk.parsing import read_dataclass

T = TypeVar("T")

Tensor = NDArray[Any]
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """Name, shape (None where dynamic) and numpy dtype name of an input or output; quantization where it is integer."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str
    scale: float | None = None
    zero: int | None = None


class Started(Protocol):
    """An inference under way."""

    def result(self) -> dict[str, Tensor]:
        """Wait for it and return every output by name, valid for good; the same again when asked again.

        Raises:
            BackendError: the engine failed.
        """
        ...


class Runtime(Protocol):
    """One loaded model. `infer` is called from one thread at a time; more workers open more runtimes.

    A runtime that computes by itself while its caller does something else also has `requests`, how many inferences it
    runs at once (1: not now), and `start(feeds) -> Started`, which takes any number and raises what `infer` raises for
    wrong feeds. Its `close`, from any thread, waits for what is under way, and the answers stay.

    A constructor takes `(model: Path, options: Mapping[str, Any])` and raises BackendError when the engine lacks
    something the model needs and ArtifactError when the file cannot be read as a model. The file may be gone when the
    constructor returns. Options that every runtime knows: `threads` (default 1), `provider`. Unknown options raise
    UsageError.
    """

    name: ClassVar[str]

    def __init__(self, model: Path, options: Mapping[str, Any]) -> None: ...

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...

    def infer(self, feeds: Tensors) -> dict[str, Tensor]:
        """Return every output by name; the arrays stay valid until the next call (`keeps_outputs = True`: for good).

        Raises:
            BackendError: a feed has a wrong name, shape or dtype, or the engine failed.
        """
        ...

    def close(self) -> None: ...


def read_options(options: Mapping[str, Any], cls: type[T], runtime: str) -> T:
    """Read a runtime's options as the dataclass `cls`.

    Raises:
        UsageError: options are unknown or wrong; all of them are named.
    """
    value, problems = read_dataclass(options, cls)
    if value is None:
        raise UsageError(
            f"options of runtime `{runtime}`: " + "; ".join(problems),
            hint="they stand in the profile's [[runtime]] options",
        )
    return value


def check_model_file(model: Path, runtime: str) -> None:
    """Refuse what no engine should see: a missing or empty file, a folder, a Git LFS pointer.

    Raises:
        ArtifactError: it is one of these.
    """
    if not model.is_file():
        raise ArtifactError(f"no model file at {model}", hint="check the path")
    with model.open("rb") as file:
        head = file.read(64)
    if not head:
        raise ArtifactError(f"`{model.name}` is empty, expected a model for {runtime}", hint="copy the file again")
    if head.startswith(b"version https://git-lfs"):
        raise ArtifactError(
            f"`{model.name}` is a Git LFS pointer, expected a model for {runtime}", hint="run `git lfs pull`"
        )


def closed(runtime: str) -> BackendError:
    """Return the error of an inference after `close`."""
    return BackendError(f"{runtime}: the model is closed", hint="open it again")


def first_line(error: BaseException, limit: int = 300) -> str:
    """Return what an engine said, as one line."""
    text = " ".join(str(error).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def dequantize(tensor: Tensor, spec: Any) -> NDArray[np.float32]:
    """Return `(q - zero) * scale` as float32 for an integer tensor with a scale, else the tensor as float32."""
    if spec.scale is None:
        return tensor.astype(np.float32, copy=False)
    return (tensor.astype(np.float32) - np.float32(spec.zero or 0)) * np.float32(spec.scale)

"""What a runtime is to the rest of the SDK."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

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


class Runtime(Protocol):
    """One loaded model. `infer` is called from one thread at a time; more workers open more runtimes.

    A constructor takes `(model: Path, options: Mapping[str, Any])` and raises BackendError when the engine lacks
    something the model needs and ArtifactError when the file cannot be read as a model. Options that every runtime
    knows: `threads` (default 1), `provider`. Unknown options raise UsageError.
    """

    name: ClassVar[str]

    def __init__(self, model: Path, options: Mapping[str, Any]) -> None: ...

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...

    def infer(self, feeds: Tensors) -> dict[str, Tensor]:
        """Return every output by name; the arrays stay valid until the next call.

        Raises:
            BackendError: a feed has a wrong name, shape or dtype, or the engine failed.
        """
        ...

    def close(self) -> None: ...


def dequantize(tensor: Tensor, spec: Any) -> NDArray[np.float32]:
    """Return `(q - zero) * scale` as float32 for an integer tensor with a scale, else the tensor as float32."""
    if spec.scale is None:
        return tensor.astype(np.float32, copy=False)
    return (tensor.astype(np.float32) - np.float32(spec.zero or 0)) * np.float32(spec.scale)

"""What a back-end gets and gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from device_profiles.profile import Int8Scheme
from edge_sdk.errors import CalibrationError, ConversionError
from edge_sdk.parsing import read_dataclass, write_dataclass
from edge_sdk.schemas.manifest import InputSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRequest:
    """One candidate to build.

    `model` is ONNX with static shapes, `input` how frames become its input; `images` calibrate, in this order. In int8
    the first `float_first` and the last `float_last` weighted layers of every path stay float.
    """

    model: Path
    out: Path
    precision: str
    input: InputSpec
    scheme: Int8Scheme = field(default_factory=Int8Scheme)
    images: tuple[str, ...] = ()
    float_first: int = 0
    float_last: int = 0

    def to_json(self) -> dict[str, Any]:
        return dict(write_dataclass(self))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> BuildRequest:
        value, problems = read_dataclass(data, cls)
        if value is None:
            raise ConversionError(f"the build request is wrong: {problems[0]}")
        return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """The files of a build, the main one first, its input, and the steps that made it (arguments included)."""

    files: tuple[Path, ...]
    input: InputSpec
    steps: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return dict(write_dataclass(self))


class Backend(Protocol):
    """Builds the request's precision into `request.out`, an empty folder; equal requests give equal bytes."""

    def __call__(self, request: BuildRequest) -> Built: ...


def calibration_tensors(request: BuildRequest, spec: InputSpec) -> Iterator[NDArray[Any]]:
    """Yield a fresh input tensor for each calibration image, in order.

    Raises:
        CalibrationError: an image cannot be read any more.
    """
    from converters.images import read
    from edge_sdk.tasks.preprocess import Preprocessor

    preprocess = Preprocessor(spec)
    for name in request.images:
        image = read(name)
        if image is None:
            raise CalibrationError(f"cannot read the calibration image {name}", hint="remove it or copy it again")
        yield np.array(preprocess(image)[0])

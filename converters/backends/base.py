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

    `model` is the source in `form`, `input` how frames become its input and `outputs` the names of its outputs in the
    decoder's order; `images` calibrate, in this order. In int8 the first `float_first` and the last `float_last`
    weighted layers of every path stay float, and so do `float_layers`, by the names that the back-end's sensitivity
    gives. `base` is the model file of an earlier build whose scales are used again where they still fit. `io_dtypes`
    are the dtypes that the device takes at inputs and outputs (empty: any). `reference`, in `reference_form`, runs as
    the source: outputs whose names were lost on the way are found by what they answer. `provider` is the runtime's
    execution provider, or the compiler, that the build is for.
    """

    model: Path
    out: Path
    precision: str
    input: InputSpec
    form: str = "onnx"
    outputs: tuple[str, ...] = ()
    method: str = ""
    float_layers: tuple[str, ...] = ()
    base: Path | None = None
    io_dtypes: tuple[str, ...] = ()
    reference: Path | None = None
    reference_form: str = ""
    scheme: Int8Scheme = field(default_factory=Int8Scheme)
    images: tuple[str, ...] = ()
    float_first: int = 0
    float_last: int = 0
    provider: str = "CPU"

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
    """The files of a build, the main one first, its input, and the steps that made it (arguments included).

    `outputs` are the names of its outputs in the order of the source's (empty: the same names). `decoder_params` stand
    instead of the plan's where the outputs are laid out in another way.
    """

    files: tuple[Path, ...]
    input: InputSpec
    steps: tuple[str, ...]
    outputs: tuple[str, ...] = ()
    decoder_params: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return dict(write_dataclass(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerError:
    """How much quantizing one layer alone disturbs what follows: noise over signal (0 is none), by the layer's name."""

    layer: str
    error: float


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

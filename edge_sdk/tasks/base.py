"""What a result and a decoder are; the results themselves are in `edge_sdk.tasks.results`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

from numpy.typing import NDArray

from edge_sdk.errors import ArtifactError, UsageError
from edge_sdk.parsing import read_dataclass
from edge_sdk.tasks.results import Classes, Detections, Embedding, Float, Geometry, Keypoints, Mask, Values

__all__ = [
    "Classes",
    "Decoder",
    "Detections",
    "Embedding",
    "Float",
    "Geometry",
    "Keypoints",
    "Mask",
    "Result",
    "Values",
    "read_params",
    "wrong_outputs",
]

T = TypeVar("T")


class Result(Protocol):
    """One frame's answer of one model."""

    def to_json(self) -> dict[str, Any]: ...


class Decoder(Protocol):
    """Turns a model's float32 outputs into a result.

    A constructor takes `(params: Mapping[str, Any], labels: Sequence[str])` and raises UsageError on unknown or wrong
    params.
    """

    task: str

    def __init__(self, params: Mapping[str, Any], labels: Sequence[str]) -> None: ...

    def __call__(self, outputs: Mapping[str, NDArray[Any]], geometry: Geometry) -> Result: ...


def read_params(params: Mapping[str, Any], cls: type[T], decoder: str) -> T:
    """Read a decoder's params as the dataclass `cls`.

    Raises:
        UsageError: params are unknown or wrong; all of them are named.
    """
    value, problems = read_dataclass(params, cls)
    if value is None:
        raise UsageError(
            f"params of decoder `{decoder}`: " + "; ".join(problems),
            hint="they stand in the manifest's decoder, and in the stage's params",
        )
    return value


def wrong_outputs(decoder: str, expected: str, outputs: Mapping[str, NDArray[Any]]) -> ArtifactError:
    """Return the error of a decoder that does not fit the model it is given."""
    found = ", ".join(f"{name} {list(value.shape)}" for name, value in outputs.items()) or "no outputs"
    return ArtifactError(
        f"decoder `{decoder}` expects {expected}, the model gives {found}",
        hint="name the model's decoder when converting",
    )

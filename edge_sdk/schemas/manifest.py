"""The manifest of an artifact: `edge.artifact/1`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from edge_sdk.schemas import document

FAMILY = "edge.artifact"
MAJOR = 1
SCHEMA = f"{FAMILY}/{MAJOR}"
MODEL_DIR = "model/"

DType = Literal["float32", "float16", "uint8", "int8", "int16", "int32", "int64", "bool"]
Task = Literal["classification", "detection", "segmentation", "keypoints", "embedding", "regression"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    sha256: str
    size: int = field(metadata={"min": 0})
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resize:
    """How a frame of any size becomes the model's size.

    `stretch` ignores the aspect ratio; `letterbox` keeps it and fills with `pad`, the picture at the centre or at the
    top left; `crop` keeps it, scales the short side to the model's size and cuts the centre (`align` must be `center`).
    """

    mode: Literal["stretch", "letterbox", "crop"] = "stretch"
    align: Literal["center", "topleft"] = "center"
    pad: int = field(default=114, metadata={"min": 0, "max": 255})
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSpec:
    """The model's image input.

    The tensor is `(pixels - mean) / std`, both in pixel units 0 to 255 and channel order `color`.
    """

    name: str
    shape: tuple[int, ...]
    dtype: DType
    layout: Literal["NHWC", "NCHW"]
    color: Literal["bgr", "rgb", "gray"]
    resize: Resize = field(default_factory=Resize)
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    scale: float | None = None
    zero: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        channels = 1 if self.color == "gray" else 3
        if len(self.shape) != 4 or any(d <= 0 for d in self.shape):
            raise ValueError(f"shape {list(self.shape)} is not four positive sizes")
        if self.shape[3 if self.layout == "NHWC" else 1] != channels:
            raise ValueError(
                f"shape {list(self.shape)} in {self.layout} has not the {channels} channels of `{self.color}`"
            )
        for name in ("mean", "std"):
            if len(getattr(self, name)) not in (1, channels):
                raise ValueError(f"{name} has {len(getattr(self, name))} values, expected 1 or {channels}")
        if any(s == 0 for s in self.std):
            raise ValueError("std has a zero")

    @property
    def height(self) -> int:
        return self.shape[1 if self.layout == "NHWC" else 2]

    @property
    def width(self) -> int:
        return self.shape[2 if self.layout == "NHWC" else 3]

    @property
    def channels(self) -> int:
        return self.shape[3 if self.layout == "NHWC" else 1]


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputSpec:
    """One output tensor; an integer output with `scale` stands for `(q - zero) * scale`."""

    name: str
    shape: tuple[int, ...]
    dtype: DType
    scale: float | None = None
    zero: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderSpec:
    name: str
    params: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeSpec:
    """The runtime that executes the model, its version range (min inclusive, max exclusive) and its options.

    `distribution` is the package whose versions are meant, where several that are not alike provide the runtime.
    """

    name: str
    distribution: str | None = None
    min: str | None = None
    max: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricSpec:
    """The task metric on the golden set, of the source and of this build, in [0, 1]."""

    name: str
    value: float
    source: float
    drop: float
    n: int = field(metadata={"min": 0})
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Everything a device needs to know to run the model; unknown keys survive in `extra`."""

    schema: str
    name: str
    version: str
    profile: str
    task: Task
    source_sha256: str
    parent: str | None
    payload_digest: str
    files: dict[str, FileEntry]
    input: InputSpec
    outputs: tuple[OutputSpec, ...]
    decoder: DecoderSpec
    runtime: RuntimeSpec
    metric: MetricSpec | None = None
    licences: dict[str, str] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, raw: bytes | str, *, where: str = "manifest.json") -> Manifest:
        """Read a manifest.

        Raises:
            SchemaError: it is not JSON, of another major version, or keys are missing or wrong.
        """
        data = document.loads_object(raw, where=where, max_bytes=4 * 1024 * 1024)
        document.check_schema(data.get("schema"), FAMILY, MAJOR, where=where)
        return document.read(data, cls, where=where)

    def to_json(self) -> bytes:
        """Return the bytes to store; equal manifests give equal bytes."""
        return document.dumps_pretty(document.write(self) | {"parent": self.parent})

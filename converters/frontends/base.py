"""What every front end returns: a source model as the rest of the converter sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge_sdk.errors import ConversionError, UsageError
from edge_sdk.parsing import read_dataclass, write_dataclass

FORMS = {
    "onnx": "onnxruntime",
    "tflite": "litert",
    "openvino": "openvino",
    "torch": None,
    "keras": None,
    "savedmodel": None,
}
"""Form of a model -> the runtime that runs such a file as it is: ONNX with fixed shapes, TFLite, OpenVINO IR (.xml with
its .bin beside it), an exported PyTorch program (.pt2), a Keras file, a SavedModel folder."""
LFS = b"version https://git-lfs.github.com/spec/"


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """A tensor of a source with fixed sizes; an integer one with a scale stands for (q - zero) * scale."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    scale: float | None = None
    zero: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocess:
    """What goes before the model; None where the file does not tell. `resize` as in the manifest."""

    color: str | None = None
    resize: dict[str, Any] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One model: its tensors and what its graph says about task, decoder and preprocessing.

    `because` has a line for each thing that was recognised; `outputs` are those the decoder reads. `forms` are files
    of this model, by form (see FORMS), that back-ends can start from; all take the input and give the outputs named
    here unless the form is a framework's own. `reference` is the form that stands for the source in comparisons,
    `absent` says of other forms why this model has none. `quantized`: its weights are integers already. `labels` are
    class names that the file itself carries.
    """

    path: str
    format: str
    sha256: str
    input: TensorInfo
    layout: str
    outputs: tuple[TensorInfo, ...]
    opset: int = 0
    task: str | None = None
    decoder: str | None = None
    decoder_params: dict[str, Any] = field(default_factory=dict)
    classes: int | None = None
    preprocess: Preprocess = field(default_factory=Preprocess)
    because: tuple[str, ...] = ()
    forms: dict[str, str] = field(default_factory=dict)
    reference: str = "onnx"
    absent: dict[str, str] = field(default_factory=dict)
    quantized: bool = False
    labels: tuple[str, ...] = ()

    @property
    def channels(self) -> int:
        return self.input.shape[1 if self.layout == "NCHW" else 3]

    def to_json(self) -> dict[str, Any]:
        return dict(write_dataclass(self))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Source:
        value, problems = read_dataclass(data, cls)
        if value is None:
            raise ConversionError(f"the front end's answer is wrong: {problems[0]}")
        return value


def sniff(path: Path) -> str:
    """Return the format of a model file by its content: onnx, tflite, keras, hdf5, torch, openvino or savedmodel.

    Raises:
        UsageError: there is no such file.
        ConversionError: it is empty, a Git LFS pointer or no model that is known.
    """
    if path.is_dir():
        if (path / "saved_model.pb").is_file():
            return "savedmodel"
        raise UsageError(f"{path} is a folder without saved_model.pb", hint="give the model file")
    if not path.is_file():
        raise UsageError(f"no such model: {path}", hint="check the path")
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise ConversionError(f"`{path.name}` is empty", hint="export or copy it again")
    if head.startswith(LFS):
        raise ConversionError(
            f"`{path.name}` is a Git LFS pointer of {path.stat().st_size} bytes, not the model", hint="git lfs pull"
        )
    if head[4:8] == b"TFL3":
        return "tflite"
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return "hdf5"
    if head.startswith(b"PK\x03\x04"):
        return "keras" if path.suffix == ".keras" else "torch"
    if head.startswith(b"\x80") and path.suffix in (".pt", ".pth", ".pkl", ".bin"):
        return "torch"
    if b"<net " in head or (head.lstrip().startswith(b"<?xml") and path.suffix == ".xml"):
        return "openvino"
    if path.suffix == ".safetensors":
        return "torch"
    if path.suffix == ".onnx":
        return "onnx"
    raise ConversionError(
        f"`{path.name}` is no model that is known: it begins with {head[:8]!r}", hint="give an .onnx file"
    )

"""What every front end returns: a source model as the rest of the converter sees it."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
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
    `absent` says of other forms why this model has none. `quantized`: its weights are integers already, `precision`
    is theirs. `labels` are class names that the file itself carries.
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
    precision: str = "fp32"
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
        return "keras" if path.suffix == ".keras" or _holds_keras(path) else "torch"
    if head.startswith(b"\x80") and path.suffix in (".pt", ".pth", ".pkl", ".bin"):
        return "torch"
    if b"<net " in head or (head.lstrip().startswith(b"<?xml") and path.suffix == ".xml"):
        return "openvino"
    if path.suffix == ".safetensors":
        return "torch"
    if path.suffix == ".onnx":
        return "onnx"
    raise ConversionError(
        f"`{path.name}` is no model that is known: it begins with {head[:8]!r}",
        hint="give an ONNX, PyTorch, Keras, TFLite or OpenVINO (.xml) file, or a SavedModel folder",
    )


def _holds_keras(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return {"config.json", "model.weights.h5"} <= set(archive.namelist())
    except zipfile.BadZipFile:
        return False


def fix_sizes(
    name: str, sizes: Sequence[int | str | None], layout: str | None, size: tuple[int, int] | None
) -> tuple[int, ...]:
    """Return the sizes of an input with a batch of 1 and, where they are open, the height and width of `size`.

    Args:
        sizes: four for an image; a name or None where dynamic.
        size: width, height.

    Raises:
        UsageError: sizes stay open, or `size` is not what the model fixes.
        ConversionError: the batch is fixed at more than 1.
    """
    fixed = list(sizes)
    if len(fixed) == 4:
        batch = fixed[0] if isinstance(fixed[0], int) else 1
        fixed[0] = batch
        if batch > 1:
            raise ConversionError(
                f"the input `{name}` takes {batch} images at a time, frames come one by one",
                hint="export it with a batch of 1, or one that is not fixed",
            )
        rows, columns = (1, 2) if layout == "NHWC" or fixed[3] in (1, 3) else (2, 3)
        told = (fixed[columns], fixed[rows])
        if size is not None and all(isinstance(d, int) for d in told) and told != tuple(size):
            raise UsageError(
                f"the input `{name}` is {told[0]}x{told[1]} in the model, --size says {size[0]}x{size[1]}",
                hint="leave --size out, or export the model with that size or an open one",
            )
        if size is not None and not (isinstance(fixed[rows], int) and isinstance(fixed[columns], int)):
            fixed[rows], fixed[columns] = size[1], size[0]
    if any(not isinstance(d, int) for d in fixed):
        shown = ", ".join(str(d if d is not None else "?") for d in fixed)
        raise UsageError(
            f"the input `{name}` has the dynamic shape [{shown}]",
            hint="say the size that the device will use: --size WIDTHxHEIGHT",
        )
    return tuple(int(d) for d in fixed if isinstance(d, int))


def nan_weights(file: str, name: str, count: int) -> ConversionError:
    """Return the error for a weight that holds NaN."""
    return ConversionError(
        f"`{file}` has {count} NaN values in the weight `{name}`",
        hint="the training diverged or the file is damaged: export a good checkpoint",
    )


def one_image(found: str) -> ConversionError:
    """Return the error for a model whose inputs (`found`) are not one image."""
    return ConversionError(
        f"the model needs one image input of 1 or 3 channels, it has {found or 'none'}",
        hint="export the part that takes one image",
    )

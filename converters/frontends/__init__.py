"""Front ends read a model of one format; one file each, behind the `FrontEnd` protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from converters.frontends.base import sniff
from converters.recipe import Recipe
from edge_sdk.errors import BackendError, UsageError
from edge_sdk.registry import Plugin, Registry


def registry() -> Registry:
    """Return the table of front ends by the format that `sniff` returns; capabilities: its `title` for people."""
    return Registry(
        "frontend",
        {
            "onnx": Plugin(
                target="converters.frontends.onnx:inspect",
                requires=("onnx", "onnxruntime"),
                extra="convert",
                capabilities={"title": "ONNX"},
            ),
            "torch": Plugin(
                target="converters.frontends.torch:inspect",
                requires=("torch", "onnx", "onnxscript", "onnxruntime"),
                extra="convert,torch",
                capabilities={"title": "PyTorch"},
            ),
            "keras": Plugin(
                target="converters.frontends.keras:inspect",
                requires=("tensorflow", "tf2onnx", "onnx", "onnxruntime"),
                extra="convert,tensorflow",
                capabilities={"title": "Keras"},
            ),
            "hdf5": Plugin(
                target="converters.frontends.keras:inspect",
                requires=("tensorflow", "tf2onnx", "onnx", "onnxruntime"),
                extra="convert,tensorflow",
                capabilities={"title": "Keras"},
            ),
            "savedmodel": Plugin(
                target="converters.frontends.savedmodel:inspect",
                requires=("tensorflow", "tf2onnx", "onnx", "onnxruntime"),
                extra="convert,tensorflow",
                capabilities={"title": "SavedModel"},
            ),
            "tflite": Plugin(
                target="converters.frontends.tflite:inspect",
                requires=("ai_edge_litert", "onnx"),
                extra="convert",
                capabilities={"title": "TFLite"},
            ),
            "openvino": Plugin(
                target="converters.frontends.openvino:inspect",
                requires=("openvino",),
                extra="convert",
                capabilities={"title": "OpenVINO IR"},
            ),
        },
    )


def inspect(path: str, work: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return the `Source` of a model file as JSON; its forms are written into the folder `work`.

    Args:
        path: the file or folder; empty when a PyTorch factory loads its own weights.
        options: what the flags say that a front end may need: layout, size (width, height), color, factory, opset,
            signature.

    Raises:
        UsageError: the format is not known, or the file needs a flag.
        ConversionError, BackendError: the model cannot be read, or a package is missing.
    """
    kind = sniff(Path(path)) if path else "torch"
    found: dict[str, Any] = registry().load(kind)(path, Path(work), options)
    return found


def check(kind: str, recipe: Recipe) -> None:
    """Refuse what a front end cannot do, before any process is started.

    Raises:
        UsageError: a flag is for models of another format.
        BackendError: a package that the format needs is not installed.
    """
    table = registry()
    name = recipe.model.name if recipe.model else str(recipe.factory)
    title = table.plugin(kind).capabilities["title"]
    for flag, value, only in (
        ("--factory", recipe.factory, ("torch",)),
        ("--opset", recipe.opset, ("torch", "keras", "hdf5", "savedmodel", "tflite")),
        ("--signature", recipe.signature, ("savedmodel",)),
    ):
        if value is not None and kind not in only:
            titles = " and ".join(dict.fromkeys(str(table.plugin(k).capabilities["title"]) for k in only))
            raise UsageError(f"`{name}` is a {title} model, {flag} is for {titles}", hint=f"leave out {flag}")
    missing = table.missing(kind)
    if missing:
        raise BackendError(
            f"`{name}` is a {title} model, which needs `{missing[0]}`; it is not installed",
            hint=f"pip install 'edge-sdk[{table.plugin(kind).extra}]'",
        )

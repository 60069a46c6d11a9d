"""Front ends read a model of one format; one file each, behind the `FrontEnd` protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from converters.frontends.base import sniff
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
        },
    )


def inspect(path: str, work: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return the `Source` of a model file as JSON; its forms are written into the folder `work`.

    Args:
        options: what the flags say that a front end may need: layout, size (width, height), factory, weights, opset.

    Raises:
        UsageError: the format is not known, or the file needs a flag.
        ConversionError, BackendError: the model cannot be read, or a package is missing.
    """
    found: dict[str, Any] = registry().load(sniff(Path(path)))(path, Path(work), options)
    return found

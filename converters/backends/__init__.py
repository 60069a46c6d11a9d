"""A back-end builds model files for one runtime; one file each, behind the `Backend` protocol."""

from __future__ import annotations

from edge_sdk.registry import Plugin, Registry


def registry() -> Registry:
    """Return the table of back-ends by the name of the runtime they build for."""
    return Registry(
        "backend",
        {
            "onnxruntime": Plugin(
                target="converters.backends.ort:build",
                requires=("onnx", "onnxruntime"),
                extra="convert",
                capabilities={"precisions": ("fp32", "int8"), "tools": ("onnx", "onnxruntime")},
            ),
            "openvino": Plugin(
                target="converters.backends.openvino:build",
                requires=("onnx", "openvino", "nncf"),
                extra="convert",
                capabilities={"precisions": ("fp32", "fp16", "int8"), "tools": ("onnx", "openvino", "nncf")},
            ),
        },
    )

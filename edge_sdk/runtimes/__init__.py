"""Runtimes execute a model; one file each, behind the `Runtime` protocol."""

from __future__ import annotations

from edge_sdk.registry import Plugin, Registry


def registry() -> Registry:
    """Return the table of runtimes by the name that stands in a manifest."""
    return Registry(
        "runtime",
        {
            "onnxruntime": Plugin(
                target="edge_sdk.runtimes.ort:OrtRuntime",
                requires=("onnxruntime",),
                extra="ort",
                capabilities={"suffixes": (".onnx",), "distribution": "onnxruntime"},
            ),
            "openvino": Plugin(
                target="edge_sdk.runtimes.openvino:OpenVinoRuntime",
                requires=("openvino",),
                extra="openvino",
                capabilities={"suffixes": (".xml", ".onnx"), "distribution": "openvino"},
            ),
        },
    )

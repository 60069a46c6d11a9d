"""Runtimes execute a model; one file each, behind the `Runtime` protocol."""

from __future__ import annotations

import importlib.util

from edge_sdk.registry import Plugin, Registry


def registry() -> Registry:
    """Return the table of runtimes by the name that stands in a manifest.

    Capabilities: `suffixes` of a model's main file, `distribution` (the one that pip installs), `distributions` (all
    that provide the runtime), `unlike` (those that provide it and answer differently, the usual one first), `shares`
    (several threads may infer with one engine at once), `unshared` (why not).
    """
    return Registry(
        "runtime",
        {
            "onnxruntime": Plugin(
                target="edge_sdk.runtimes.ort:OrtRuntime",
                requires=("onnxruntime",),
                extra="ort",
                capabilities={
                    "suffixes": (".onnx",),
                    "shares": True,
                    "distribution": "onnxruntime",
                    "distributions": (
                        "onnxruntime",
                        "onnxruntime-gpu",
                        "onnxruntime-openvino",
                        "onnxruntime-directml",
                        "onnxruntime-qnn",
                    ),
                },
            ),
            "openvino": Plugin(
                target="edge_sdk.runtimes.openvino:OpenVinoRuntime",
                requires=("openvino",),
                extra="openvino",
                capabilities={
                    "suffixes": (".xml", ".onnx"),
                    "distribution": "openvino",
                    "unshared": "a compiled model has one stream: one camera's inference would wait for another's",
                },
            ),
            "litert": _litert(),
        },
    )


def _litert() -> Plugin:
    old = importlib.util.find_spec("ai_edge_litert") is None and importlib.util.find_spec("tflite_runtime") is not None
    package, extra, distribution = (
        ("tflite_runtime", "tflite", "tflite-runtime") if old else ("ai_edge_litert", "litert", "ai-edge-litert")
    )
    return Plugin(
        target="edge_sdk.runtimes.litert:LiteRtRuntime",
        requires=(package,),
        extra=extra,
        capabilities={
            "suffixes": (".tflite",),
            "distribution": distribution,
            "unlike": ("ai-edge-litert", "tflite-runtime"),
            "unshared": "an interpreter holds the tensors of one inference",
        },
    )

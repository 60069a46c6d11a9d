"""A back-end builds model files for one runtime; one file each, behind the `Backend` protocol."""

from __future__ import annotations

from edge_sdk.registry import Plugin, Registry

_LITERT_METHODS = {"fp32": ("",), "fp16": ("",), "int8": ("",), "int16x8": ("",)}
_DYNAMIC = {"dynamic": ("", "legacy")}
_LITERT_IO = ("fp32", "fp16", "dynamic", "int8", "int16x8")
_DYNAMIC_ONLY_ON = {("dynamic", ""): ("ai-edge-litert",)}


def registry() -> Registry:
    """Return the table of back-ends by name.

    Capabilities: `runtime` it builds for; `reads`, the forms of a source it can start from, best first; `methods` by
    precision, the plain one (the empty string) first; `only_on`, (precision, method) -> distributions of the runtime
    that answer rightly with it (absent: all); `chooses_io`, precisions whose inputs and outputs depend on the dtypes
    that the profile takes; `tools`, distributions whose versions are evidence; `on_request`: tried only when a recipe
    names the back-end; `sensitivity`: a function `(request, images) -> list[LayerError]` that says which layers int8
    hurts; `last_resort`, precision -> the method, minutes long, that is tried when the guard refuses all others.
    """
    return Registry(
        "backend",
        {
            "ort": Plugin(
                target="converters.backends.ort:build",
                requires=("onnx", "onnxruntime", "nncf"),
                extra="convert",
                capabilities={
                    "runtime": "onnxruntime",
                    "reads": ("onnx",),
                    "methods": {"fp32": ("",), "fp16": ("",), "int8": ("", "nncf")},
                    "tools": ("onnx", "onnxruntime", "nncf"),
                    "sensitivity": "converters.backends.ort:sensitivity",
                },
            ),
            "openvino": Plugin(
                target="converters.backends.openvino:build",
                requires=("onnx", "openvino", "nncf"),
                extra="convert",
                capabilities={
                    "runtime": "openvino",
                    "reads": ("openvino", "onnx", "tflite"),
                    "methods": {"fp32": ("",), "fp16": ("",), "int8": ("",)},
                    "last_resort": {"int8": "accuracy"},
                    "sensitivity": "converters.backends.openvino:sensitivity",
                    "tools": ("onnx", "openvino", "nncf"),
                },
            ),
            "inc": Plugin(
                target="converters.backends.inc:build",
                requires=("neural_compressor", "torch", "torchao", "onnx", "onnxruntime", "onnxscript"),
                extra="inc",
                capabilities={
                    "runtime": "onnxruntime",
                    "reads": ("torch",),
                    "methods": {"int8": ("pt2e", "autotune")},
                    "on_request": True,
                    "tools": ("neural-compressor", "torch", "torchao", "onnx", "onnxruntime"),
                },
            ),
            "litert": Plugin(
                target="converters.backends.litert:build",
                requires=("ai_edge_quantizer", "ai_edge_litert"),
                extra="convert",
                capabilities={
                    "runtime": "litert",
                    "reads": ("tflite",),
                    "methods": _LITERT_METHODS | _DYNAMIC,
                    "only_on": _DYNAMIC_ONLY_ON,
                    "chooses_io": _LITERT_IO,
                    "tools": ("ai-edge-litert", "ai-edge-quantizer"),
                    "sensitivity": "converters.backends.litert:sensitivity",
                },
            ),
            "tensorflow": Plugin(
                target="converters.backends.tensorflow:build",
                requires=("tensorflow", "ai_edge_litert"),
                extra="tensorflow",
                capabilities={
                    "runtime": "litert",
                    "reads": ("savedmodel",),
                    "methods": _LITERT_METHODS | {"dynamic": ("",)},
                    "chooses_io": _LITERT_IO,
                    "tools": ("tensorflow", "ai-edge-litert"),
                    "sensitivity": "converters.backends.tensorflow:sensitivity",
                },
            ),
        },
    )

"""The compilers that are known by name. Their command lines are the vendors'; none of them could be run here."""

from __future__ import annotations

from converters.compilers.base import Tool

EDGETPU = Tool(
    name="edgetpu",
    program="edgetpu_compiler",
    version=("edgetpu_compiler", "--version"),
    commands=(("edgetpu_compiler", "--show_operations", "--out_dir", "{folder}", "{input}"),),
    output="{stem}_edgetpu.tflite",
    reads=".tflite",
    precisions=("int8",),
    install="apt install edgetpu-compiler from Coral's package archive (x86-64 only)",
)
"""Coral Edge TPU, documentation "Edge TPU Compiler": fully quantized TFLite in, TFLite with one custom operator out."""

TENSORRT = Tool(
    name="tensorrt",
    program="trtexec",
    version=("dpkg-query", "--show", "libnvinfer-bin"),
    commands=(("trtexec", "--onnx={input}", "--saveEngine={output}", "--skipInference", "--{precision}"),),
    output="{stem}.engine",
    reads=".onnx",
    precisions=("fp16", "fp32", "int8"),
    where="device",
    install="apt install libnvinfer-bin on the device; trtexec lies in /usr/src/tensorrt/bin",
    options={"precision": "fp16"},
)
"""NVIDIA TensorRT, Developer Guide, "trtexec": an engine belongs to one GPU and one TensorRT, so it is built there."""

_RKNN = (
    """
import sys
from rknn.api import RKNN
model, out, platform, dataset = sys.argv[1:5]
rknn = RKNN()
def must(code, what):
    if code != 0:
        sys.exit(f"{what} failed: {code}")
must(rknn.config(target_platform=platform) or 0, "config")
must(rknn.load_onnx(model=model), "load_onnx")
must(rknn.build(do_quantization=bool(dataset), dataset=dataset or None), "build")
must(rknn.export_rknn(out), "export_rknn")
""".strip()
    .replace("{", "{{")
    .replace("}", "}}")
)

RKNN = Tool(
    name="rknn",
    program="rknn-python",
    version=("rknn-python", "-c", "from importlib.metadata import version; print(version('rknn-toolkit2'))"),
    commands=(("rknn-python", "-c", _RKNN, "{input}", "{output}", "{platform}", "{dataset}"),),
    output="{stem}.rknn",
    reads=".onnx",
    precisions=("fp16", "fp32", "int8"),
    install="make an environment with rknn-toolkit2 and link its python as `rknn-python` on PATH",
    options={"platform": "rk3588", "dataset": ""},
)
"""Rockchip RKNN-Toolkit2, User Guide, "RKNN API": `dataset` is a text file of image paths for int8."""

HAILO = Tool(
    name="hailo",
    program="hailo",
    version=("hailo", "--version"),
    commands=(
        ("hailo", "parser", "onnx", "{input}", "--har-path", "{folder}/parsed.har", "--hw-arch", "{arch}", "-y"),
        (
            *("hailo", "optimize", "{folder}/parsed.har", "--hw-arch", "{arch}"),
            *("--calib-set-path", "{calibration}", "--output-har-path", "{folder}/{stem}.har"),
        ),
        ("hailo", "compiler", "{folder}/{stem}.har", "--hw-arch", "{arch}", "--output-dir", "{folder}"),
    ),
    output="{stem}.hef",
    reads=".onnx",
    precisions=("int8", "fp32"),
    install="the Hailo Dataflow Compiler from the vendor's developer zone (a wheel, x86-64 only)",
    options={"arch": "hailo8", "calibration": ""},
)
"""Hailo Dataflow Compiler, User Guide, "Command Line Tools": `calibration` is a .npy of preprocessed images."""

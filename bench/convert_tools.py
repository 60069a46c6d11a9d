"""The builds that the tools make directly, as their documentation shows, without anything of edge-sdk around them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Make = Callable[[Path, Path, Any, Sequence[str]], Path]


def _tensors(spec: Any, images: Sequence[str]) -> Iterator[Any]:
    """Yield the model's own input for each image."""
    from converters.images import read
    from edge_sdk.tasks.preprocess import Preprocessor

    preprocess = Preprocessor(spec)
    for name in images:
        yield np.array(preprocess(read(name))[0])


def _as_it_is(model: Path, folder: Path, spec: Any, images: Sequence[str]) -> Path:  # noqa: ARG001
    return Path(shutil.copy(model, folder / f"model{model.suffix}"))


def _ort_int8(model: Path, folder: Path, spec: Any, images: Sequence[str]) -> Path:
    """onnxruntime.ai, "Quantize ONNX models": pre-processing, then quantize_static with its defaults."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rows = _tensors(spec, images)

        def get_next(self) -> Any:
            row = next(self.rows, None)
            return None if row is None else {spec.name: row}

    ready, out = folder / "ready.onnx", folder / "model.onnx"
    quant_pre_process(str(model), str(ready), skip_symbolic_shape=True)
    quantize_static(str(ready), str(out), Reader())
    return out


def _openvino(model: Path, folder: Path, spec: Any, images: Sequence[str]) -> Path:  # noqa: ARG001
    import edge_sdk.runtimes.no_analytics  # noqa: F401  (before openvino)

    # isort: split
    import openvino as ov

    out = folder / "model.xml"
    ov.save_model(ov.convert_model(str(model)), str(out), compress_to_fp16=False)
    return out


def _nncf_int8(model: Path, folder: Path, spec: Any, images: Sequence[str]) -> Path:
    """docs.openvino.ai, "Basic Quantization Flow": nncf.quantize with its defaults."""
    import edge_sdk.runtimes.no_analytics  # noqa: F401  (before openvino)

    # isort: split
    import nncf
    import openvino as ov

    quantized = nncf.quantize(ov.convert_model(str(model)), nncf.Dataset(list(_tensors(spec, images))))
    out = folder / "model.xml"
    ov.save_model(quantized, str(out))
    return out


def _litert_int8(model: Path, folder: Path, spec: Any, images: Sequence[str]) -> Path:
    """ai-edge-quantizer's README: the recipe static_wi8_ai8, calibrated on the signature's input."""
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import quantizer, recipe

    interpreter = Interpreter(str(model))
    signatures = interpreter.get_signature_list()
    key = next(iter(signatures), "serving_default")
    name = signatures[key]["inputs"][0] if signatures else spec.name
    tool = quantizer.Quantizer(str(model))
    tool.load_quantization_recipe(recipe.static_wi8_ai8())
    ranges = tool.calibrate({key: [{name: row} for row in _tensors(spec, images)]})
    out = folder / "model.tflite"
    tool.quantize(ranges).export_model(str(out))
    return out


TOOLS: dict[str, tuple[str, str, Make]] = {
    "ORT fp32": ("onnxruntime", "onnx", _as_it_is),
    "ORT int8 naive": ("onnxruntime", "onnx", _ort_int8),
    "OpenVINO fp32": ("openvino", "onnx", _openvino),
    "OpenVINO NNCF int8": ("openvino", "onnx", _nncf_int8),
    "LiteRT fp32": ("litert", "tflite", _as_it_is),
    "LiteRT int8": ("litert", "tflite", _litert_int8),
}
"""Name -> runtime, form of the source it starts from, function."""

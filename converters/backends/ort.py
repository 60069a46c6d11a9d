"""ONNX Runtime: float, and static int8 as quantize-dequantize pairs (QDQ)."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

from converters import graph as g
from converters.backends import bias_correction
from converters.backends.base import BuildRequest, Built, calibration_tensors
from converters.backends.onnx_prepare import QDQ_OPSET, fold, optimise
from edge_sdk.errors import BackendError, ConversionError

MEAN_IMAGES = 64
_TYPES = {"uint8": QuantType.QUInt8, "int8": QuantType.QInt8}


def build(request: BuildRequest) -> Built:
    """Build fp32 or int8; the tail after the last weighted layers stays float, so that boxes and scores that share an
    output keep their own ranges.

    Raises:
        BackendError: the precision is not one of them.
        ConversionError: ONNX Runtime cannot load or quantize the model.
    """
    if request.precision not in ("fp32", "int8"):
        raise BackendError(f"the onnxruntime back-end builds fp32 and int8, not {request.precision}")
    model, spec, folded, steps = fold(request)
    out = request.out / "model.onnx"
    if request.precision == "fp32":
        optimise(model, out)
        return Built(files=(out,), input=spec, steps=(*steps, "onnxruntime graph optimisation: basic"))
    prepared = request.out / "prepared.onnx"
    optimise(model, prepared)
    steps.append(_quantize(request, prepared, out, folded, spec))
    prepared.unlink()
    return Built(files=(out,), input=spec, steps=tuple(steps))


def _quantize(request: BuildRequest, prepared: Path, out: Path, folded: tuple[str, ...], spec: Any) -> str:
    model = onnx.load(str(prepared))
    opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)
    scheme = request.scheme
    per_channel = scheme.per_channel and opset >= QDQ_OPSET
    kept = [*g.tail(model), *g.head(model, request.float_first), *g.last(model, request.float_last)]
    excluded = sorted({*folded, *(n.name for n in kept)})
    corrected, count = bias_correction.correct(
        model,
        itertools.islice(calibration_tensors(request, spec), MEAN_IMAGES),
        leave=set(excluded),
        reduce_range=scheme.reduce_range,
    )
    onnx.save(corrected, str(prepared))
    try:
        quantize_static(
            str(prepared),
            str(out),
            _Reader(request, spec),
            quant_format=QuantFormat.QDQ,
            per_channel=per_channel,
            reduce_range=scheme.reduce_range,
            activation_type=_TYPES[scheme.activation],
            weight_type=_TYPES[scheme.weight],
            nodes_to_exclude=excluded,
            calibrate_method=CalibrationMethod.MinMax,
        )
    except (ValueError, RuntimeError, KeyError, AttributeError, IndexError, TypeError) as error:
        line = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise ConversionError(f"onnxruntime could not quantize the model: {line}") from None
    kinds = f"{scheme.activation[0]}8{scheme.weight[0]}8"
    return (
        f"onnxruntime quantize_static: QDQ {kinds}, {'per channel' if per_channel else 'per tensor'}, "
        f"reduce_range {str(scheme.reduce_range).lower()}, min-max over {len(request.images)} images, "
        f"{len(excluded)} nodes float, {count} biases corrected"
    )


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, request: BuildRequest, spec: Any) -> None:
        self._tensors = calibration_tensors(request, spec)
        self._name = spec.name

    def get_next(self) -> dict[str, Any] | None:
        tensor = next(self._tensors, None)
        return None if tensor is None else {self._name: tensor}

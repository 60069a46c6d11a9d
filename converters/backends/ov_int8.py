"""Static int8 for OpenVINO by NNCF: plain, or with the layers that cost agreement taken back to float."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

import edge_sdk.runtimes.no_analytics  # noqa: F401  (before openvino and nncf)

# isort: split
import nncf

from converters.backends import ov_layers
from converters.backends.base import BuildRequest, calibration_tensors
from converters.backends.onnx_int8 import RANGE_IMAGES, nothing_to_quantize
from converters.backends.ov_base import quantized
from converters.backends.ov_run import compile_model
from converters.backends.ov_source import WEIGHTED
from converters.backends.sqnr import agreement
from edge_sdk.errors import BackendError, CalibrationError, ConversionError
from edge_sdk.schemas.manifest import InputSpec

MAX_LOSS = 0.01
"""How far the agreement with the float model (1 is perfect) may fall before another layer goes back to float."""
CHECKED, RANKED, ROUNDS = 16, 4, 6
"""Images that a check reads, images that rank the layers, and layers at most that go back: bounds of the time."""


def quantize(model: Any, request: BuildRequest, spec: InputSpec) -> tuple[Any, str]:
    """Return the int8 model and the step.

    Raises:
        BackendError: the method is unknown.
        CalibrationError: the request has no images.
        ConversionError: NNCF failed, or the source is int8 already.
    """
    if request.method not in ("", "accuracy"):
        raise BackendError(
            f"the openvino back-end has no int8 method `{request.method}`", hint="known: accuracy, or none"
        )
    if rounded(model):
        raise ConversionError(
            "the source is quantized already: int8 of it would be rounded twice", hint="convert the float model"
        )
    tensors = list(calibration_tensors(request, spec))
    if not tensors:
        raise CalibrationError("int8 needs calibration images", hint="--calibration DIR")
    left = ov_layers.ignored(model, request, tensors[:RANGE_IMAGES])
    overflow = nncf.OverflowFix.ENABLE if request.scheme.reduce_range else nncf.OverflowFix.DISABLE
    words: dict[str, Any] = {
        "subset_size": len(tensors),
        "preset": nncf.QuantizationPreset.MIXED,
        "target_device": nncf.TargetDevice.CPU,
        "ignored_scope": nncf.IgnoredScope(names=left, validate=False),
    }
    advanced = nncf.AdvancedQuantizationParameters(overflow_fix=overflow)
    try:
        if request.method == "":
            made = nncf.quantize(model, nncf.Dataset(tensors), advanced_parameters=advanced, **words)
            said = "nncf.quantize"
        else:
            made, said = _by_accuracy(model, tensors, advanced, words)
    except Exception as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ConversionError(
            f"nncf {nncf.__version__} could not quantize the model: {line}",
            hint="its fp32 build may still serve; -v shows the traceback",
        ) from None
    if not any(op.get_type_name() in WEIGHTED and quantized(op) is not None for op in made.get_ordered_ops()):
        raise nothing_to_quantize()
    return made, (
        f"{said}: preset mixed, overflow_fix {overflow.value}, fast bias correction over {len(tensors)} images, "
        f"{len(left)} nodes float"
    )


def rounded(model: Any) -> bool:
    """Say whether a layer reads integers: outputs that are rounded behind the last layer do not count."""
    ops = model.get_ordered_ops()
    behind = [op for op in ops if op.get_type_name() == "FakeQuantize"]
    seen = set()
    while behind:
        op = behind.pop()
        if op.get_type_name() in WEIGHTED:
            return True
        if op.get_friendly_name() not in seen:
            seen.add(op.get_friendly_name())
            behind += [port.get_node() for out in op.outputs() for port in out.get_target_inputs()]
    return any(op.get_type_name() in WEIGHTED and quantized(op) is not None for op in ops)


def _by_accuracy(model: Any, tensors: list[Any], advanced: Any, words: dict[str, Any]) -> tuple[Any, str]:
    checked = tensors[:CHECKED]
    compiled = compile_model(model)
    wanted = [_run(compiled, t) for t in checked]
    items = list(zip(checked, wanted, strict=True))

    def validate(candidate: Any, data: Iterable[Any]) -> tuple[float, list[float]]:
        values = [agreement(_run(candidate, tensor), before) for tensor, before in data]
        return float(np.mean(values)), values

    made = nncf.quantize_with_accuracy_control(
        model,
        nncf.Dataset(tensors),
        nncf.Dataset(items, lambda item: item[0]),
        validate,
        max_drop=MAX_LOSS,
        drop_type=nncf.DropType.ABSOLUTE,
        advanced_quantization_parameters=advanced,
        advanced_accuracy_restorer_parameters=nncf.AdvancedAccuracyRestorerParameters(
            max_num_iterations=ROUNDS, ranking_subset_size=min(RANKED, len(items)), num_ranking_workers=1
        ),
        **words,
    )
    return made, f"nncf.quantize_with_accuracy_control (agreement with float falls by at most {MAX_LOSS:g})"


def _run(compiled: Any, tensor: Any) -> list[Any]:
    answer = compiled(tensor)
    return [np.array(answer[port]) for port in compiled.outputs]

"""Static int8 in ONNX as quantize-dequantize pairs (QDQ): by ONNX Runtime's quantizer or by NNCF's."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from converters import graph as g
from converters.backends import bias_correction, onnx_base
from converters.backends import onnx_float as keep
from converters.backends.base import BuildRequest, calibration_tensors
from converters.backends.onnx_prepare import QDQ_OPSET, optimise
from converters.backends.onnx_ranges import observe, opset_of, session
from edge_sdk.errors import BackendError, CalibrationError, ConversionError
from edge_sdk.registry import near_miss
from edge_sdk.schemas.manifest import InputSpec

MEAN_IMAGES = 64
RANGE_IMAGES = 8
LOST = 0.25
"""A layer stays float when int8 of it alone makes more noise than this share of its signal (6 dB): often the first
depthwise convolution, whose channels differ widely in range (YOLOX-nano: two layers, mAP50 .36 -> .47)."""
LOST_IMAGES = 16
_TYPES = {"uint8": QuantType.QUInt8, "int8": QuantType.QInt8}
_PAIR = ("QuantizeLinear", "DequantizeLinear")
_SHIFT = 128
_FAILURES = (ValueError, RuntimeError, KeyError, AttributeError, IndexError, TypeError, AssertionError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """An optimised float model with its uint8 input, the nodes of it that stay float, and those of them that must read
    unrounded numbers; `lost` are the layers among them that int8 would fill with noise."""

    model: Any
    spec: InputSpec
    excluded: tuple[str, ...]
    exact: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()

    def tensors(self, request: BuildRequest) -> Any:
        """Yield the calibration images as the model takes them."""
        return calibration_tensors(request, self.spec)


def prepare(request: BuildRequest, model: Any, spec: InputSpec, folded: Sequence[str]) -> Prepared:
    """Optimise a folded model and say what stays float: the tail after the last weighted operations, so that boxes and
    scores that share an output keep their own ranges, decoding before it, what the request names, the preprocessing.

    Raises:
        CalibrationError: the request has no images.
        ConversionError: ONNX Runtime cannot load it, or it has no layer of a name in `float_layers`.
    """
    if not request.images:
        raise CalibrationError("int8 needs calibration images", hint="--calibration DIR")
    path = request.out / "prepared.onnx"
    optimise(model, path)
    out = onnx.load(str(path))
    path.unlink()
    names = {n.name for n in out.graph.node}
    check_layers(request.float_layers, names)
    asked = keep.with_activation(out, request.float_layers)
    joined = keep.mixed(out, itertools.islice(calibration_tensors(request, spec), RANGE_IMAGES))
    exact = {*asked, *keep.decoding(out), *joined, *(n.name for n in g.last(out, request.float_last))}
    plain = {n.name for n in (*g.tail(out), *g.head(out, request.float_first))} | set(folded)
    return Prepared(
        model=out, spec=spec, excluded=tuple(sorted((plain | exact) & names)), exact=tuple(sorted(exact & names))
    )


def without_lost(request: BuildRequest, prepared: Prepared) -> Prepared:
    """Return the model with those layers float, too, whose own output int8 would fill with noise (see LOST)."""
    from converters.backends import onnx_sensitivity

    rows = onnx_sensitivity.measure(request, prepared, LOST_IMAGES)
    lost = keep.with_activation(prepared.model, [r.layer for r in rows if r.error > LOST])
    return replace(
        prepared,
        excluded=tuple(sorted({*prepared.excluded, *lost})),
        exact=tuple(sorted({*prepared.exact, *lost})),
        lost=tuple(r.layer for r in rows if r.error > LOST),
    )


def check_layers(wanted: Sequence[str], names: set[str]) -> None:
    """Refuse a name in `float_layers` that is no node of the model.

    Raises:
        ConversionError: a layer is unknown; the hint has the nearest name.
    """
    for layer in wanted:
        if layer not in names:
            raise ConversionError(
                f"the model has no layer `{layer}` to keep in float",
                hint=near_miss(layer, names) or "the layers' names are those that the sensitivity of this build gives",
            )


def quantize(request: BuildRequest, prepared: Prepared) -> tuple[Any, list[str]]:
    """Return the int8 model and the steps that made it.

    Raises:
        BackendError: the method is unknown.
        ConversionError: the quantizer failed, or gave a model without int8.
    """
    ways: Mapping[str, Callable[[BuildRequest, Prepared], tuple[Any, Any, str]]] = {"": _static, "nncf": _nncf}
    if request.method not in ways:
        raise BackendError(
            f"the onnxruntime back-end has no int8 method `{request.method}`", hint="known: nncf, or none"
        )
    model, floats, step = ways[request.method](request, prepared)
    if not _has_int8_weights(model):
        raise nothing_to_quantize()
    model = keep.read_floats(model, prepared.exact)
    steps = [step]
    if prepared.lost:
        steps.append(f"float because int8 would leave them noise: {', '.join(prepared.lost)}")
    if request.base is not None:
        model, said = onnx_base.reuse(model, onnx.load(str(request.base)), floats)
        steps.append(said)
    return model, steps


def _has_int8_weights(model: Any) -> bool:
    held = {t.name: t.data_type for t in model.graph.initializer}
    kinds = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
    return any(n.op_type == "DequantizeLinear" and held.get(n.input[0]) in kinds for n in model.graph.node)


def nothing_to_quantize() -> ConversionError:
    """Return the error for an int8 build in which every layer stayed float."""
    return ConversionError(
        "nothing of the model was quantized: no layer has constant weights and is allowed int8",
        hint="its fp32 build is all there is",
    )


def _static(request: BuildRequest, prepared: Prepared) -> tuple[Any, Any, str]:
    scheme = request.scheme
    per_channel = scheme.per_channel and opset_of(prepared.model) >= QDQ_OPSET
    corrected, count = bias_correction.correct(
        prepared.model,
        itertools.islice(prepared.tensors(request), MEAN_IMAGES),
        leave=set(prepared.excluded),
        reduce_range=scheme.reduce_range,
    )
    ranges = observe(corrected, prepared.tensors(request))
    source, target = request.out / "corrected.onnx", request.out / "quantized.onnx"
    onnx.save(corrected, str(source))
    try:
        quantize_static(
            str(source),
            str(target),
            _One(request, prepared),
            quant_format=QuantFormat.QDQ,
            per_channel=per_channel,
            reduce_range=scheme.reduce_range,
            activation_type=_TYPES[scheme.activation],
            weight_type=_TYPES[scheme.weight],
            nodes_to_exclude=list(prepared.excluded),
            extra_options={
                "TensorQuantOverrides": _overrides(ranges),
                # A float layer reads what is before the rounding, so that must not have lost its Relu to it.
                "QDQKeepRemovableActivations": bool(prepared.exact),
            },
        )
    except _FAILURES as error:
        raise _failed("onnxruntime", error) from None
    model = onnx.load(str(target))
    for path in (source, target):
        path.unlink()
    kinds = f"{scheme.activation[0]}8{scheme.weight[0]}8"
    return (
        model,
        corrected,
        f"onnxruntime quantize_static: QDQ {kinds}, {'per channel' if per_channel else 'per tensor'}, "
        f"reduce_range {str(scheme.reduce_range).lower()}, mean of the extremes of {len(request.images)} images, "
        f"{len(prepared.excluded)} nodes float, {count} biases corrected",
    )


def _overrides(ranges: Mapping[str, tuple[float, float]]) -> dict[str, list[dict[str, Any]]]:
    return {
        name: [{"rmin": np.float32(min(low, 0)), "rmax": np.float32(max(high, 0))}]
        for name, (low, high) in ranges.items()
        if np.isfinite(low) and np.isfinite(high)
    }


class _One(CalibrationDataReader):  # type: ignore[misc]
    """One image: `quantize_static` wants to calibrate, the ranges that count are given to it."""

    def __init__(self, request: BuildRequest, prepared: Prepared) -> None:
        self._tensors = itertools.islice(prepared.tensors(request), 1)
        self._name = prepared.spec.name

    def get_next(self) -> dict[str, Any] | None:
        tensor = next(self._tensors, None)
        return None if tensor is None else {self._name: tensor}


def _nncf(request: BuildRequest, prepared: Prepared) -> tuple[Any, Any, str]:
    tensors = [{prepared.spec.name: t} for t in prepared.tensors(request)]
    by_channel = not keep.integer_kernels(prepared.model)
    model = _nncf_model(request, prepared, tensors, by_channel=by_channel)
    if by_channel and not _loads(model):
        by_channel = False
        model = _nncf_model(request, prepared, tensors, by_channel=False)
    scheme = request.scheme
    own = {n.name for n in prepared.model.graph.node if n.op_type in _PAIR}
    retype(model, activation=scheme.activation, weight=scheme.weight, leave=own)
    kinds = f"{scheme.activation[0]}8{scheme.weight[0]}8"
    return (
        model,
        prepared.model,
        f"nncf.quantize on ONNX: QDQ {kinds}, preset mixed, "
        f"weights {'per channel' if scheme.per_channel else 'per tensor'}, "
        f"activations {'per channel before depthwise layers' if by_channel else 'per tensor'}, "
        f"reduce_range {str(scheme.reduce_range).lower()}, fast bias correction over {len(tensors)} images, "
        f"{len(prepared.excluded)} nodes float",
    )


def _nncf_model(request: BuildRequest, prepared: Prepared, tensors: Sequence[Any], *, by_channel: bool) -> Any:
    """Quantize with NNCF.

    `by_channel` gives the inputs of depthwise convolutions a scale for each channel: exact, but ONNX Runtime has no
    integer kernel for that, so it is for models whose layers run in float there anyway.
    """
    import edge_sdk.runtimes.no_analytics  # noqa: F401  (before nncf)

    # isort: split
    import nncf
    from nncf.quantization.advanced_parameters import QuantizationParameters

    advanced = nncf.AdvancedQuantizationParameters(
        overflow_fix=nncf.OverflowFix.ENABLE if request.scheme.reduce_range else nncf.OverflowFix.DISABLE
    )
    if not by_channel:
        advanced.activations_quantization_params = QuantizationParameters(per_channel=False)
    if not request.scheme.per_channel:
        advanced.weights_quantization_params = QuantizationParameters(per_channel=False)
    copy = onnx.ModelProto()
    copy.CopyFrom(prepared.model)
    try:
        return nncf.quantize(
            copy,
            nncf.Dataset(tensors),
            subset_size=len(tensors),
            preset=nncf.QuantizationPreset.MIXED,
            target_device=nncf.TargetDevice.CPU,
            ignored_scope=nncf.IgnoredScope(names=list(prepared.excluded), validate=False),
            advanced_parameters=advanced,
        )
    except Exception as error:
        raise _failed(f"nncf {nncf.__version__}", error) from None


def _loads(model: Any) -> bool:
    try:
        session(model)
    except Exception:
        return False
    return True


def _failed(tool: str, error: Exception) -> ConversionError:
    lines = str(error).strip().splitlines()
    line = lines[0][:200] if lines else type(error).__name__
    return ConversionError(
        f"{tool} could not quantize the model: {line}", hint="its fp32 build may still serve; -v shows the traceback"
    )


def retype(model: Any, *, activation: str, weight: str, leave: Collection[str] = ()) -> None:
    """Turn the 8-bit integers of a QDQ model into the ones that a scheme names, by a shift of 128; in place.

    The zero point and, for a constant, the values move together, so that each pair stands for the same numbers. Nodes
    named in `leave` stay: the source's own, whose integers are its inputs and outputs.
    """
    held = {t.name: t for t in model.graph.initializer}
    done: dict[str, str] = {}
    for node in model.graph.node:
        if node.op_type not in _PAIR or node.name in leave:
            continue
        constant = node.op_type == "DequantizeLinear" and node.input[0] in held
        wanted = weight if constant else activation
        for name in (*(node.input[:1] if constant else ()), *node.input[2:3]):
            if done.setdefault(name, wanted) != wanted:
                raise ConversionError(f"the zero point `{name}` belongs to weights and to activations")
            if name in held:
                _shift(held[name], wanted)
    del model.graph.value_info[:]


def _shift(tensor: Any, wanted: str) -> None:
    values = numpy_helper.to_array(tensor)
    if values.dtype in (np.int8, np.uint8) and values.dtype != np.dtype(wanted):
        moved = values.astype(np.int16) + (_SHIFT if wanted == "uint8" else -_SHIFT)
        tensor.CopyFrom(numpy_helper.from_array(moved.astype(wanted), tensor.name))


def save(model: Any, path: Path) -> None:
    """Write a model without what differs from run to run."""
    model.producer_name, model.producer_version = "", ""
    model.graph.name = "model"
    model.doc_string = model.graph.doc_string = ""
    onnx.save(model, str(path))

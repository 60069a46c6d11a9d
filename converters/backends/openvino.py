"""OpenVINO: float, half-precision weights, and static int8 by NNCF."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx

import edge_sdk.runtimes.no_analytics  # noqa: F401  (before openvino)

# isort: split
import openvino as ov

from converters.backends.base import BuildRequest, Built, calibration_tensors
from converters.backends.onnx_prepare import fold
from edge_sdk.errors import BackendError, ConversionError

_WEIGHTED = frozenset(
    {"Convolution", "GroupConvolution", "MatMul", "ConvolutionBackpropData", "GroupConvolutionBackpropData"}
    | {"LSTMSequence", "GRUSequence", "RNNSequence"}
)


def build(request: BuildRequest) -> Built:
    """Build fp32, fp16 (storage) or int8; the tail after the last weighted layers stays float.

    Raises:
        BackendError: the precision is not one of them, or OpenVINO has not an operator of the model.
        ConversionError: NNCF failed.
    """
    if request.precision not in ("fp32", "fp16", "int8"):
        raise BackendError(f"the openvino back-end builds fp32, fp16 and int8, not {request.precision}")
    folded, spec, _, steps = fold(request)
    source = request.out / "folded.onnx"
    onnx.save(folded, str(source))
    try:
        model = ov.convert_model(str(source))
    except Exception as error:
        line = str(error).strip().splitlines()[-1][:200]
        raise BackendError(f"openvino {ov.__version__.split('-')[0]} cannot convert the model: {line}") from None
    finally:
        source.unlink()
    if request.precision == "int8":
        model, step = _quantize(model, request, spec)
        steps.append(step)
    out = request.out / "model.xml"
    _save(model, out, half=request.precision == "fp16")
    steps.append(f"openvino IR, {'fp16' if request.precision == 'fp16' else 'fp32'} storage")
    return Built(files=(out, out.with_suffix(".bin")), input=spec, steps=tuple(steps))


def _quantize(model: Any, request: BuildRequest, spec: Any) -> tuple[Any, str]:
    import nncf

    ignored = sorted({*_near_outputs(model, request.float_last), *_near_inputs(model, request.float_first)})
    overflow = nncf.OverflowFix.ENABLE if request.scheme.reduce_range else nncf.OverflowFix.DISABLE
    tensors = list(calibration_tensors(request, spec))
    try:
        quantized = nncf.quantize(
            model,
            nncf.Dataset(tensors),
            subset_size=len(tensors),
            preset=nncf.QuantizationPreset.MIXED,
            target_device=nncf.TargetDevice.CPU,
            ignored_scope=nncf.IgnoredScope(names=ignored, validate=False),
            advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=overflow),
        )
    except Exception as error:
        line = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise ConversionError(f"nncf {nncf.__version__} could not quantize the model: {line}") from None
    return quantized, (
        f"nncf.quantize: preset mixed, overflow_fix {overflow.value}, fast bias correction over {len(tensors)} images, "
        f"{len(ignored)} nodes float"
    )


def _near_outputs(model: Any, rings: int) -> list[str]:
    """Return the names of the operations after the last weighted ones, and of `rings` weighted ones before them."""
    names: set[str] = set()
    frontier = [r.input_value(0).get_node() for r in model.get_results()]
    for ring in range(rings + 1):
        nodes, frontier = frontier, []
        seen: set[str] = set()
        while nodes:
            node = nodes.pop()
            name = node.get_friendly_name()
            if name in seen or node.get_type_name() in ("Constant", "Parameter"):
                continue
            seen.add(name)
            if node.get_type_name() in _WEIGHTED:
                if ring < rings:
                    names.add(name)
                    frontier.append(node.input_value(0).get_node())
                else:
                    frontier.append(node)
                continue
            if not _is_bias(node):
                names.add(name)
            nodes.extend(v.get_node() for v in node.input_values())
    return sorted(names)


def _near_inputs(model: Any, layers: int) -> list[str]:
    """Return the names of the operations with at most `layers` weighted ones before them, themselves included."""
    depth: dict[str, int] = {}
    for node in model.get_ordered_ops():
        kind, name = node.get_type_name(), node.get_friendly_name()
        before = [depth[n] for v in node.input_values() if (n := v.get_node().get_friendly_name()) in depth]
        if kind == "Parameter":
            depth[name] = 0
        elif before:
            depth[name] = max(before) + (kind in _WEIGHTED)
    return [n for n, d in depth.items() if d <= layers] if layers else []


def _is_bias(node: Any) -> bool:
    """Return whether the node adds a constant right after a weighted operation, as a convolution's bias does."""
    if node.get_type_name() != "Add":
        return False
    kinds = {v.get_node().get_type_name() for v in node.input_values()}
    return bool(kinds & _WEIGHTED) and bool(kinds & {"Constant", "Reshape", "Convert"})


def _save(model: Any, out: Path, *, half: bool) -> None:
    """Write the IR without what differs from run to run: counters in names and paths in the conversion record."""
    for index, node in enumerate(model.get_ordered_ops()):
        if node.get_type_name() not in ("Parameter", "Result"):
            node.set_friendly_name(f"{node.get_type_name()}_{index}")
    for path in (["conversion_parameters"], ["nncf"], ["Runtime_version"]):
        _forget(model, path)
    ov.save_model(model, str(out), compress_to_fp16=half)


def _forget(model: Any, path: Sequence[str]) -> None:
    info = model.get_rt_info()
    if path[0] in info:
        del info[path[0]]

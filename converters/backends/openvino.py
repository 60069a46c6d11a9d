"""OpenVINO: float, half-precision weights, and static int8 by NNCF."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import edge_sdk.runtimes.no_analytics  # noqa: F401  (before openvino)

# isort: split
import openvino as ov

from converters.backends.base import BuildRequest, Built, LayerError, calibration_tensors
from converters.backends.ov_source import load
from edge_sdk.errors import BackendError
from edge_sdk.schemas.manifest import InputSpec

_PRECISIONS = ("fp32", "fp16", "int8")


def build(request: BuildRequest) -> Built:
    """Build fp32, fp16 (storage) or int8; the tail after the last weighted layers stays float.

    A source whose layers read integers already keeps them in int8.

    Raises:
        BackendError: the precision or the method is not one of them, or OpenVINO has not an operator of the model.
        ConversionError: NNCF failed.
    """
    if request.precision not in _PRECISIONS:
        raise BackendError(
            f"the openvino back-end builds {', '.join(_PRECISIONS)}, not {request.precision}",
            hint="choose one of them with --precision",
        )
    model, spec, steps = load(request)
    if request.precision == "int8":
        model, said = _int8(model, request, spec)
        steps += said
    out = request.out / "model.xml"
    _save(model, out, half=request.precision == "fp16")
    steps.append(f"openvino IR, {'fp16' if request.precision == 'fp16' else 'fp32'} storage")
    return Built(files=(out, out.with_suffix(".bin")), input=spec, steps=tuple(steps))


def _int8(model: Any, request: BuildRequest, spec: InputSpec) -> tuple[Any, list[str]]:
    from converters.backends import ov_base, ov_int8

    if request.method == "" and ov_int8.rounded(model):
        return model, ["integers of the source kept"]
    weights = ov_base.float_weights(model) if request.base is not None else {}
    model, step = ov_int8.quantize(model, request, spec)
    return model, [step] if request.base is None else [step, ov_base.reuse(model, request.base, weights)]


def sensitivity(request: BuildRequest, images: int) -> list[LayerError]:
    """Return how much int8 of each layer alone disturbs its output, worst first, over the first `images` images.

    Raises:
        BackendError: OpenVINO has not an operator of the model.
        ConversionError: OpenVINO cannot run it.
    """
    from converters.backends import ov_layers, ov_sensitivity

    model, spec, _ = load(request)
    pictures = list(itertools.islice(calibration_tensors(request, spec), images))
    return ov_sensitivity.measure(model, ov_layers.ignored(model, request, pictures), pictures, request.scheme)


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

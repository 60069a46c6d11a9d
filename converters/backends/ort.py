"""ONNX Runtime: float, half precision, and static int8 as quantize-dequantize pairs (QDQ)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from converters import onnx_source
from converters.backends import onnx_fp16, onnx_input, onnx_int8, onnx_sensitivity
from converters.backends.base import BuildRequest, Built, LayerError, calibration_tensors
from converters.backends.onnx_prepare import fold, optimise
from edge_sdk.errors import BackendError
from edge_sdk.schemas.manifest import InputSpec

_PRECISIONS = ("fp32", "fp16", "int8")


def build(request: BuildRequest) -> Built:
    """Build fp32, fp16 or int8 with standard operators only; the runtime optimises further when it loads the file.

    A source that has integer weights already keeps them in int8.

    Raises:
        BackendError: the precision or the method is not one of them.
        ConversionError: ONNX Runtime cannot load the model, or a tool failed on it.
    """
    if request.precision not in _PRECISIONS:
        raise BackendError(
            f"the onnxruntime back-end builds {', '.join(_PRECISIONS)}, not {request.precision}",
            hint="choose one of them with --precision",
        )
    model, spec, folded, steps = fold(request)
    out = request.out / "model.onnx"
    if request.precision == "int8" and not onnx_source.quantized(model):
        prepared = onnx_int8.prepare(request, model, spec, folded)
        made, said = onnx_int8.quantize(request, onnx_int8.without_lost(request, prepared))
        onnx_int8.save(made, out)
        return Built(files=(out,), input=spec, steps=(*steps, *said))
    optimise(model, out)
    steps += ["integers of the source kept"] if request.precision == "int8" else []
    steps.append("onnxruntime graph optimisation: basic")
    if request.precision == "fp32":
        plain, absorbed = onnx_input.absorb(onnx.load(str(out)), rows=request.provider == "CPU")
        if absorbed is not None:
            onnx.save(plain, str(out))
            steps.append(absorbed)
    if request.precision == "fp16":
        plain = onnx.load(str(out))
        names = {n.name for n in plain.graph.node}
        onnx_int8.check_layers(request.float_layers, names)
        half, said_half = onnx_fp16.convert(
            plain, _pictures(request, spec), [n for n in folded if n in names], request.float_layers
        )
        onnx_int8.save(half, out)
        steps.append(said_half)
    return Built(files=(out,), input=spec, steps=tuple(steps))


def sensitivity(request: BuildRequest, images: int) -> list[LayerError]:
    """Return how much int8 of each layer alone disturbs its output, worst first, over the first `images` images.

    Layers that the build keeps float by itself are left out.

    Raises:
        ConversionError: ONNX Runtime cannot load the model.
    """
    model, spec, folded, _ = fold(request)
    prepared = onnx_int8.without_lost(request, onnx_int8.prepare(request, model, spec, folded))
    return onnx_sensitivity.measure(request, prepared, images)


def _pictures(request: BuildRequest, spec: InputSpec) -> Iterator[NDArray[Any]]:
    """Yield the calibration images, or black, white and noise where there are none."""
    if request.images:
        yield from calibration_tensors(request, spec)
        return
    for value in (0, 255):
        yield np.full(spec.shape, value, np.uint8)
    yield np.random.default_rng(0).integers(0, 256, spec.shape, np.uint8)

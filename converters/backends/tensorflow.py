"""LiteRT by TensorFlow's converter from SavedModels, which Keras files become too: float, fp16, dynamic, int8, 16x8."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from converters import tflite_graph as g
from converters import tflite_input
from converters.backends import litert, match, tflite_layers
from converters.backends.base import BuildRequest, Built, LayerError, calibration_tensors
from converters.tf_models import Frozen, frozen
from edge_sdk.errors import BackendError, ConversionError
from edge_sdk.schemas.manifest import InputSpec

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
PRECISIONS = ("fp32", "fp16", "dynamic", "int8", "int16x8")


def build(request: BuildRequest) -> Built:
    """Build one precision; in int8 the tail after the last weighted layers stays float.

    Raises:
        BackendError: the precision is not one of them, or TensorFlow Lite has not an operator of the model.
        ConversionError: the model cannot be loaded or quantized, or its outputs cannot be told apart.
    """
    if request.precision not in PRECISIONS:
        raise BackendError(f"the tensorflow back-end builds {', '.join(PRECISIONS)}, not {request.precision}")
    source = frozen(request.model, request.input.shape, request.input.dtype)
    plain = request.out / "float.tflite"
    plain.write_bytes(_convert(source, lambda _: None))
    floats = g.load(plain)
    places, turns = _outputs(request, source, floats, plain)
    spec = tflite_input.spec_of(floats, request.input)
    plain.unlink()
    if request.precision == "fp32":
        model, step = floats, "tensorflow TFLiteConverter: float32"
    elif request.precision in ("fp16", "dynamic"):
        model, step = _weights(request, source)
    else:
        model, step = _static(request, source, floats, spec)
    names = request.outputs or tuple(n[0] for n in source.names)
    g.name_outputs(model, places, names, turns)
    fold = tflite_input.fold_integer if request.precision in ("int8", "int16x8") else tflite_input.fold_float
    spec, folded = fold(model, spec, request.io_dtypes)
    out = request.out / "model.tflite"
    g.save(model, out)
    return Built(files=(out,), input=spec, steps=(step, *folded), outputs=names)


def sensitivity(request: BuildRequest, images: int) -> list[LayerError]:
    """Return the error of each layer that int8 would quantize, worst first, on the first `images` images.

    Raises:
        ConversionError: the model cannot be loaded or does not run.
    """
    request.out.mkdir(parents=True, exist_ok=True)
    source = frozen(request.model, request.input.shape, request.input.dtype)
    model = _loaded(request, _convert(source, lambda _: None))
    return litert.ranked(request, model, tflite_input.spec_of(model, request.input), images)


def _outputs(
    request: BuildRequest, source: Frozen, model: Any, file: Path
) -> tuple[tuple[int, ...], tuple[tuple[int, ...] | None, ...]]:
    """Return the places of the source's outputs in the function's, and how to turn each."""
    found = [g.name(model.subgraphs[0].tensors[i]) for i in model.subgraphs[0].outputs]
    if len(found) != len(source.names):
        raise ConversionError(f"TensorFlow's converter made {len(found)} outputs of {len(source.names)}")
    if not request.outputs:
        return tuple(range(len(found))), ()
    places = match.by_name(request.outputs, source.names)
    if places is not None:
        return places, ()
    from edge_sdk.runtimes.litert import LiteRtRuntime

    engine = LiteRtRuntime(file, {"threads": 1})
    image = engine.inputs[0]

    def run(value: Any) -> Mapping[str, Any]:
        return engine.infer({image.name: value})

    shape = [d or 1 for d in image.shape]
    run_source = match.reference_run(request)
    return match.by_answers(
        request.outputs, run_source, match.turned(run, request.input.layout, shape), found, match.tensor(request.input)
    )


def _convert(source: Frozen, configure: Any) -> bytes:
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_concrete_functions([source.function])
    configure(converter)
    return _run(converter.convert)


def _run(convert: Any) -> bytes:
    try:
        return bytes(convert())
    except Exception as error:
        text = str(error)
        needed = next((line.strip() for line in text.splitlines() if "op is neither" in line or "Flex" in line), None)
        if needed:
            raise BackendError(f"TensorFlow Lite has not an operator of the model: {needed[:200]}") from None
        line = text.strip().splitlines()[0][:200] if text.strip() else type(error).__name__
        raise ConversionError(f"TensorFlow's converter failed: {line}") from None


def _weights(request: BuildRequest, source: Frozen) -> tuple[Any, str]:
    import tensorflow as tf

    def configure(converter: Any) -> None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if request.precision == "fp16":
            converter.target_spec.supported_types = [tf.float16]

    kind = "half precision weights" if request.precision == "fp16" else "dynamic range, 8-bit weights"
    return _loaded(request, _convert(source, configure)), f"tensorflow TFLiteConverter: {kind}"


def _static(request: BuildRequest, source: Frozen, floats: Any, spec: InputSpec) -> tuple[Any, str]:
    import tensorflow as tf

    wide = request.precision == "int16x8"
    float_out = not request.io_dtypes or "float32" in request.io_dtypes
    kept = g.last(floats, request.float_last) if float_out and not wide else []
    ops = [*kept, *g.head(floats, request.float_first)]
    layers = sorted({*(g.scope(floats, op) for op in ops), *request.float_layers})

    def images() -> Iterator[list[Any]]:
        for tensor in calibration_tensors(request, spec):
            yield [np.asarray(tensor, np.float32)]

    def configure(converter: Any) -> None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = images
        sets = tf.lite.OpsSet
        kinds = [sets.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8] if wide else []
        converter.target_spec.supported_ops = [*(kinds or [sets.TFLITE_BUILTINS_INT8]), sets.TFLITE_BUILTINS]
        if not wide and not float_out:
            converter.inference_input_type = converter.inference_output_type = tf.int8

    if wide and layers:
        raise BackendError("TensorFlow's converter cannot leave layers of a 16x8 build in float")
    if not tflite_layers.layers(floats, layers):
        return floats, "tensorflow TFLiteConverter: every layer float"
    raw = _selective(source, configure, images, layers) if layers else _convert(source, configure)
    model = _loaded(request, raw)
    if not wide and tflite_input.takes_integers(spec, request.io_dtypes):
        g.drop_entry_quantize(model)
    return model, (
        f"tensorflow TFLiteConverter: {'16x8' if wide else 'int8'}, {len(request.images)} images, "
        f"{len(layers)} operations float"
    )


def _selective(source: Frozen, configure: Any, images: Any, layers: Sequence[str]) -> bytes:
    """Return a quantized model in which the operations of the named tensors stay float."""
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_concrete_functions([source.function])
    configure(converter)
    # An operation is named as the whole of what it was fused of, and an output as one of its parts.
    nodes = sorted({name for layer in layers for name in (layer, *layer.split(";"))})
    options = tf.lite.experimental.QuantizationDebugOptions(denylisted_nodes=nodes)
    made = []

    def convert() -> bytes:
        made.append(
            tf.lite.experimental.QuantizationDebugger(converter=converter, debug_dataset=images, debug_options=options)
        )
        return bytes(made[0].get_nondebug_quantized_model())

    return _run(convert)


def _loaded(request: BuildRequest, raw: bytes) -> Any:
    file = request.out / "made.tflite"
    file.write_bytes(raw)
    try:
        return g.load(file)
    finally:
        file.unlink()

"""LiteRT from a float TFLite file, without TensorFlow: fp32, fp16 and dynamic weights, static int8 and 16x8."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from converters import tflite_fuse, tflite_input
from converters import tflite_graph as g
from converters.backends import litert_bounds as bounds
from converters.backends import litert_calibration as calibration
from converters.backends import tflite_layers
from converters.backends.base import BuildRequest, Built, LayerError, calibration_tensors
from edge_sdk.errors import BackendError, ConversionError
from edge_sdk.schemas.manifest import InputSpec

STATIC = {"int8": 8, "int16x8": 16}
MEAN_IMAGES = 64
"""How many images the means of the bias correction are taken over."""
LEGACY_ELEMENTS = 1024
"""Weights a layer needs to be quantized in the `legacy` method: tflite-runtime 2.14 answers wrongly with smaller ones
in 8 bits beside float activations."""


def build(request: BuildRequest) -> Built:
    """Build one precision; a file that is quantized already passes through as its own precision and no other.

    In int8 and 16x8 the tail after the last weighted layers stays float, so that boxes and scores that share an output
    keep their own ranges, unless the profile takes no float outputs.

    Raises:
        BackendError: the precision is not one of them, or the file is quantized in another one.
        ConversionError: ai-edge-quantizer failed.
    """
    model = g.load(request.model)
    own, out = g.precision(model), request.out / "model.tflite"
    spec = tflite_input.spec_of(model, request.input)
    if own not in ("fp32", "fp16"):
        return _as_it_came(request, model, own, spec, out)
    g.forget_ranges(model)
    steps = [f"{g.unpack_halves(model)} constants from half to single precision"] if own == "fp16" else []
    fused = tflite_fuse.fuse_activations(model)
    steps += [f"{fused} activations fused into the operations before them"] if fused else []
    outputs = tuple(g.name(model.subgraphs[0].tensors[i]) for i in model.subgraphs[0].outputs)
    if request.precision in STATIC:
        model, step = _static(request, model, spec)
        steps.append(step)
        spec, folded = tflite_input.fold_integer(model, spec, request.io_dtypes)
    elif request.precision in ("fp32", "fp16", "dynamic"):
        if request.precision != "fp32":
            model, step = _weights(request, model)
            steps.append(step)
        spec, folded = tflite_input.fold_float(model, spec, request.io_dtypes)
    else:
        raise BackendError(f"the litert back-end builds fp32, fp16, int8, dynamic and int16x8, not {request.precision}")
    g.save(model, out)
    return Built(files=(out,), input=spec, steps=(*steps, *folded), outputs=_in_order(outputs, request))


def _as_it_came(request: BuildRequest, model: Any, own: str, spec: InputSpec, out: Path) -> Built:
    if request.precision != own:
        raise BackendError(
            f"the source is a TFLite file that is {own} already, so {request.precision} cannot be built from it",
            hint=f"give the float model, or ask for --precision {own}",
        )
    names = tuple(g.name(model.subgraphs[0].tensors[i]) for i in model.subgraphs[0].outputs)
    g.save(model, out)
    return Built(files=(out,), input=spec, steps=(f"{own} as it came",), outputs=_in_order(names, request))


def _in_order(names: tuple[str, ...], request: BuildRequest) -> tuple[str, ...]:
    """Return the source's outputs; the file's, where it has the names of another framework and as many."""
    if not request.outputs or set(request.outputs) <= set(names):
        return request.outputs or names
    if len(names) == len(request.outputs) == 1:
        return names
    raise ConversionError(
        f"the TFLite file has the outputs {', '.join(names)}, the source {', '.join(request.outputs)}",
        hint="which is which cannot be told: export the model with the same names",
    )


def _quantizer(model: Any, recipe: list[dict[str, Any]], work: Path) -> Any:
    from ai_edge_quantizer import quantizer

    file = work / "float.tflite"
    g.save(model, file)
    try:
        return quantizer.Quantizer(bytearray(file.read_bytes()), recipe)
    finally:
        file.unlink()


def _weights(request: BuildRequest, model: Any) -> tuple[Any, str]:
    """Return the model with weights in half precision or in 8 bits, activations float."""
    if request.precision == "fp16":
        config = {
            "weight_tensor_config": {"num_bits": 16, "dtype": "FLOAT"},
            "compute_precision": "FLOAT",
            "explicit_dequantize": True,
        }
        recipe = [{"regex": ".*", "operation": "*", "algorithm_key": "float_casting", "op_config": config}]
        return _run(model, recipe, {}, request.out), "ai-edge-quantizer float_casting: weights in half precision"
    legacy = request.method == "legacy"
    config = {
        "weight_tensor_config": {"num_bits": 8, "symmetric": True, "granularity": "CHANNELWISE", "dtype": "INT"},
        "compute_precision": "INTEGER",
        "explicit_dequantize": False,
    } | ({"min_weight_elements": LEGACY_ELEMENTS} if legacy else {})
    recipe = [
        {"regex": ".*", "operation": "*", "algorithm_key": "min_max_uniform_quantize", "op_config": config},
        *kept_float(request.float_layers),
    ]
    name = "dynamic_legacy_wi8_afp32" if legacy else "dynamic_wi8_afp32"
    return _run(model, recipe, {}, request.out), f"ai-edge-quantizer {name}"


def _static(request: BuildRequest, model: Any, spec: InputSpec) -> tuple[Any, str]:
    """Return the model with integer weights and activations."""
    bits = STATIC[request.precision]
    float_out = not request.io_dtypes or "float32" in request.io_dtypes
    wide = bits == 16
    float_in = "int16" not in request.io_dtypes if wide else not tflite_input.takes_integers(spec, request.io_dtypes)
    ops = [*(g.last(model, request.float_last) if float_out else ()), *g.head(model, request.float_first)]
    ops += g.beside(model, request.float_layers)
    layers = tuple(dict.fromkeys([*(g.scope(model, op) for op in ops), *request.float_layers]))
    per_channel = request.scheme.per_channel
    images = itertools.islice(calibration_tensors(request, spec), MEAN_IMAGES)
    count = tflite_layers.correct_biases(model, images, request.out, leave=set(layers), per_channel=per_channel)
    ranges = calibration.ranges(model, request, spec, request.out)
    pads = bounds.bind_pads(model, ranges, bits)
    layers = tuple(dict.fromkeys([*layers, *(g.scope(model, op) for op in bounds.unbounded(model, ranges))]))
    if request.base is not None:
        ranges, kept = calibration.keep_base(ranges, request.base)
    low, high = tflite_input.pixel_range(spec)
    image = g.name(model.subgraphs[0].tensors[model.subgraphs[0].inputs[0]])
    ranges[image] = {"min": ranges[image]["min"] * 0 + low, "max": ranges[image]["max"] * 0 + high}
    recipe = static_recipe(bits, request.scheme.per_channel, layers, float_in=float_in, float_out=float_out)
    quantized = _run(model, recipe, ranges, request.out)
    step = (
        f"ai-edge-quantizer static_wi8_ai{bits}: {'per channel' if request.scheme.per_channel else 'per tensor'}, "
        f"min-max over {len(request.images)} images, {len(layers)} operations float, {count} biases corrected"
    )
    step += f", {pads} pads of max pools in the range of their data" if pads else ""
    return quantized, step + (f", {kept} ranges of the base kept" if request.base is not None else "")


def sensitivity(request: BuildRequest, images: int) -> list[LayerError]:
    """Return the error of each layer that int8 would quantize, worst first, on the first `images` images.

    Raises:
        ConversionError: the model does not run.
    """
    model = g.load(request.model)
    g.forget_ranges(model)
    g.unpack_halves(model)
    tflite_fuse.fuse_activations(model)
    return ranked(request, model, tflite_input.spec_of(model, request.input), images)


def ranked(request: BuildRequest, model: Any, spec: InputSpec, images: int) -> list[LayerError]:
    """Return the layers of a float graph by their errors (see `sensitivity`)."""
    request.out.mkdir(parents=True, exist_ok=True)
    few = replace(request, images=request.images[:images])
    return tflite_layers.sensitivity(
        model,
        calibration.ranges(model, few, spec, request.out),
        calibration_tensors(few, spec),
        request.out,
        leave={g.scope(model, op) for op in g.last(model, 0)},
        per_channel=request.scheme.per_channel,
    )


def static_recipe(
    bits: int, per_channel: bool, layers: Iterable[str], *, float_in: bool, float_out: bool
) -> list[dict[str, Any]]:
    """Return a recipe of ai-edge-quantizer: integers of `bits` everywhere but in `layers` and at float ends."""
    config = {
        "activation_tensor_config": {
            "num_bits": bits,
            "symmetric": bits == 16,
            "granularity": "TENSORWISE",
            "dtype": "INT",
        },
        "weight_tensor_config": {
            "num_bits": 8,
            "symmetric": True,
            "granularity": "CHANNELWISE" if per_channel else "TENSORWISE",
            "dtype": "INT",
        },
        "compute_precision": "INTEGER",
        "explicit_dequantize": False,
    }
    recipe = [{"regex": ".*", "operation": "*", "algorithm_key": "min_max_uniform_quantize", "op_config": config}]
    ends = [*(["INPUT"] if float_in else []), *(["OUTPUT"] if float_out else [])]
    recipe += [{"regex": ".*", "operation": end, "algorithm_key": "no_quantize", "op_config": {}} for end in ends]
    return [*recipe, *kept_float(layers)]


def kept_float(layers: Iterable[str]) -> list[dict[str, Any]]:
    """Return the recipe's entry that leaves the operations that make the named tensors float."""
    names = sorted(set(layers))
    if not names:
        return []
    regex = "^(?:" + "|".join(re.escape(n) for n in names) + ");"
    return [{"regex": regex, "operation": "*", "algorithm_key": "no_quantize", "op_config": {}}]


def _run(model: Any, recipe: list[dict[str, Any]], ranges: dict[str, Any], work: Path) -> Any:
    try:
        found = _quantizer(model, recipe, work).quantize(ranges or None, enable_progress_report=False)
    except (ValueError, RuntimeError, KeyError, IndexError, TypeError, AttributeError) as error:
        line = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise ConversionError(f"ai-edge-quantizer could not quantize the model: {line}") from None
    file = work / "quantized.tflite"
    file.write_bytes(bytes(found.quantized_model))
    try:
        quantized = g.load(file)
    finally:
        file.unlink()
    # An output behind a DEQUANTIZE of the tool has a name of the tool's.
    graph = model.subgraphs[0]
    names = [g.name(graph.tensors[i]) for i in graph.outputs]
    if len(set(names)) == len(names):
        g.name_outputs(quantized, range(len(names)), names)
    return quantized

"""neural-compressor: static int8 of PyTorch programs (PT2E), for ONNX Runtime as quantize-dequantize pairs.

Only this file imports neural_compressor. Its quantizer rounds the inputs and weights of convolutions and linear layers;
what comes after the last of them stays float.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from converters import graph as g
from converters.backends.base import BuildRequest, Built, calibration_tensors
from converters.backends.onnx_int8 import retype, save
from converters.backends.onnx_prepare import fold, optimise
from converters.backends.onnx_ranges import opset_of
from converters.backends.sqnr import agreement
from converters.frontends import torch_program
from edge_sdk.errors import BackendError, CalibrationError, ConversionError

OPSET = 18
CHECKED = 16
"""Calibration images on which autotune compares a trial with the float program."""
TRIALS = 4
MAX_LOSS = 0.01
_HALF_RANGE = 127 / 64
_METHODS = ("pt2e", "autotune")


def build(request: BuildRequest) -> Built:
    """Build int8 from an exported program (.pt2) by the method pt2e (the default) or autotune.

    Raises:
        BackendError: the precision or the method is not one of them, or layers are asked to stay float.
        CalibrationError: the request has no images.
        ConversionError: the program cannot be read, quantized or exported.
    """
    if request.precision != "int8":
        raise BackendError(
            f"the inc back-end builds int8, not {request.precision}", hint="leave --backend inc out for it"
        )
    method = request.method or "pt2e"
    if method not in _METHODS:
        raise BackendError(f"the inc back-end has no int8 method `{method}`", hint="known: pt2e, autotune")
    if request.float_layers or request.float_first or request.float_last:
        raise BackendError(
            "the inc back-end cannot keep single layers in float", hint="the ort back-end can, from the ONNX form"
        )
    if not request.images:
        raise CalibrationError("int8 needs calibration images", hint="--calibration DIR")
    program = torch_program.load(request.model)
    with _quietly(request.out):
        module, said = _quantize(program, request, method)
        exported = request.out / "exported.onnx"
        _export(module, program, request, exported)
    model = onnx.load(str(exported))
    opset = opset_of(model)
    if request.scheme.reduce_range:
        _seven_bits(model)
    onnx.save(model, str(exported))
    folded, spec, _, steps = fold(replace(request, model=exported, form="onnx"))
    out = request.out / "model.onnx"
    optimise(folded, out)
    exported.unlink()
    made = onnx.load(str(out))
    retype(made, activation=request.scheme.activation, weight=request.scheme.weight)
    save(made, out)
    bits = "7" if request.scheme.reduce_range else "8"
    return Built(
        files=(out,),
        input=spec,
        steps=(
            f"{said} over {len(request.images)} images, {bits}-bit weights per channel",
            f"torch.onnx.export: QDQ, opset {opset}",
            *steps,
            "onnxruntime graph optimisation: basic",
        ),
    )


def _quantize(program: Any, request: BuildRequest, method: str) -> tuple[Any, str]:
    import neural_compressor
    from neural_compressor.torch.quantization import StaticQuantConfig, autotune, convert, prepare

    example = (_tensors(request, 1)[0],)
    module = _module(program)

    def calibrate(model: Any) -> None:
        with torch.no_grad():
            for tensor in calibration_tensors(request, request.input):
                model(torch.from_numpy(tensor))

    tool = f"neural-compressor {neural_compressor.__version__}"
    try:
        if method == "pt2e":
            prepared = prepare(module, StaticQuantConfig(), example_inputs=example)
            calibrate(prepared)
            return convert(prepared), f"{tool} PT2E static"
        from neural_compressor.common.base_tuning import TuningConfig

        config = TuningConfig(
            config_set=[StaticQuantConfig.get_config_set_for_tuning()], tolerable_loss=MAX_LOSS, max_trials=TRIALS
        )
        best = autotune(module, config, eval_fn=_judge(program, request), run_fn=calibrate, example_inputs=example)
    except Exception as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ConversionError(
            f"{tool} could not quantize the program: {line}", hint="the ort back-end quantizes its ONNX form"
        ) from None
    if best is None:
        raise ConversionError(
            f"{tool} autotune found no int8 within {MAX_LOSS:g} of the float program in {TRIALS} trials",
            hint="the plain method is `--backend inc` with pt2e; or keep fp32",
        )
    return best, f"{tool} PT2E autotune of at most {TRIALS} trials"


def _module(program: Any) -> Any:
    module = program.module()
    module._exported = True  # what neural_compressor's own export sets
    module.dynamic_shapes = None
    return module


def _tensors(request: BuildRequest, count: int) -> list[Any]:
    return [torch.from_numpy(t) for t in itertools.islice(calibration_tensors(request, request.input), count)]


def _judge(program: Any, request: BuildRequest) -> Callable[[Any], float]:
    """Return a function from a model to its agreement with the float program on the first calibration images."""
    tensors = _tensors(request, CHECKED)
    plain = program.module()
    wanted = [_run(plain, t) for t in tensors]

    def judge(model: Any) -> float:
        values = [agreement(_run(model, t), before) for t, before in zip(tensors, wanted, strict=True)]
        return float(np.mean(values))

    return judge


def _run(model: Any, tensor: Any) -> list[Any]:
    with torch.no_grad():
        answer = model(tensor)
    values = torch.utils._pytree.tree_leaves(answer)
    return [v.detach().numpy() for v in values if isinstance(v, torch.Tensor)]


def _export(module: Any, program: Any, request: BuildRequest, path: Path) -> None:
    """Write the quantized program as ONNX with the names of the request."""
    example = (_tensors(request, 1)[0],)
    try:
        _to_onnx(torch.export.export(module, example), example, path)
    except Exception as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ConversionError(
            f"torch {torch.__version__.partition('+')[0]} could not export the int8 program to ONNX: {line}",
            hint="the ort back-end quantizes its ONNX form",
        ) from None
    model = onnx.load(str(path))
    _rename(model, g.image_inputs(model)[0].name, request.input.name)
    found = [o.name for o in model.graph.output]
    if request.outputs and set(request.outputs) - set(found):
        plain = path.with_name("plain.onnx")
        _to_onnx(program, example, plain)
        names = [o.name for o in onnx.load(str(plain)).graph.output]
        plain.unlink()
        wanted = names if set(request.outputs) <= set(names) else list(request.outputs)
        if len(wanted) != len(found):
            raise ConversionError(
                f"the int8 program has {len(found)} outputs, the source has {len(wanted)}: {', '.join(wanted)}",
                hint="the ort back-end quantizes its ONNX form",
            )
        for old, new in zip(found, wanted, strict=True):
            _rename(model, old, new)
    onnx.save(model, str(path))


def _to_onnx(program: Any, example: tuple[Any, ...], path: Path) -> None:
    torch.onnx.export(program, example, str(path), dynamo=True, opset_version=OPSET, external_data=False, verbose=False)


def _rename(model: Any, old: str, new: str) -> None:
    if old == new:
        return
    for node in model.graph.node:
        for names in (node.input, node.output):
            for k, name in enumerate(names):
                if name in (old, new):
                    names[k] = new if name == old else f"{g.PREFIX}{new}"
    for value in (*model.graph.input, *model.graph.output):
        if value.name == old:
            value.name = new


def _seven_bits(model: Any) -> None:
    """Widen the scales of the weights so that they use 7 bits: 16-bit sums of two products cannot saturate then."""
    held = {t.name: t for t in model.graph.initializer}
    scales = {n.input[1] for n in model.graph.node if n.op_type == "QuantizeLinear" and n.input[0] in held}
    for name in sorted(scales & set(held)):
        wide = numpy_helper.to_array(held[name]) * np.float32(_HALF_RANGE)
        held[name].CopyFrom(numpy_helper.from_array(wide.astype(np.float32), name))


@contextlib.contextmanager
def _quietly(folder: Path) -> Iterator[None]:
    """Keep what the tools write by themselves, logs and workspaces, in the folder of the build."""
    before = Path.cwd()
    level = logging.root.manager.disable
    os.chdir(folder)
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(level)
        os.chdir(before)

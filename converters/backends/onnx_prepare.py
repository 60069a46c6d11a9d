"""The ONNX that every back-end starts from: preprocessing folded in, opset raised, constants folded."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
from onnx import helper, version_converter

from converters import graph as g
from converters.backends.base import BuildRequest
from converters.backends.onnx_ranges import opset_of
from edge_sdk.errors import ConversionError
from edge_sdk.schemas.manifest import InputSpec

QDQ_OPSET = 13
"""The first opset whose DequantizeLinear has an axis, which per-channel weights need."""
RESIZE_OPSET = 11
"""Before it Resize and Upsample sampled at `x / scale`; since then `half_pixel` is the default."""


def fold(request: BuildRequest) -> tuple[Any, InputSpec, tuple[str, ...], list[str]]:
    """Return the model with a uint8 NHWC input, that input for the manifest, the folded nodes and the steps."""
    model = onnx.load(str(request.model))
    spec = request.input
    folded, names = g.fold_preprocessing(
        model,
        mean=spec.mean,
        std=spec.std,
        layout=spec.layout,
        channels=spec.channels,
        scale=spec.scale,
        zero=spec.zero,
    )
    size = (spec.shape[0], spec.height, spec.width, spec.channels)
    out = replace(spec, shape=size, dtype="uint8", layout="NHWC", mean=(0.0,), std=(1.0,), scale=None, zero=None)
    steps = [f"fold preprocessing: uint8 NHWC in, mean {list(spec.mean)}, std {list(spec.std)}, {spec.layout} inside"]
    opset = opset_of(folded)
    if opset < QDQ_OPSET:
        try:
            folded = _raise_opset(folded, opset)
            steps.append(f"opset {opset} -> {QDQ_OPSET}")
        except Exception as error:
            steps.append(f"opset stays {opset}: {str(error).strip().splitlines()[0][:120]}")
    _drop_unused_domains(folded)
    g.name_nodes(folded)
    return folded, out, names, steps


def _raise_opset(model: Any, opset: int) -> Any:
    """Convert to opset 13; resizing keeps the rule it had before opset 11, which the converter does not write down."""
    out = version_converter.convert_version(model, QDQ_OPSET)
    if opset >= RESIZE_OPSET:
        return out
    for node in out.graph.node:
        if node.op_type == "Resize":
            kept = [a for a in node.attribute if a.name not in ("coordinate_transformation_mode", "nearest_mode")]
            del node.attribute[:]
            node.attribute.extend(kept)
            node.attribute.append(helper.make_attribute("coordinate_transformation_mode", "asymmetric"))
            node.attribute.append(helper.make_attribute("nearest_mode", "floor"))
    return out


def optimise(model: Any, path: Path) -> None:
    """Write the model with constants folded and batch norms fused, standard operators only.

    Higher levels of ONNX Runtime put nodes of its own domains into the file; the runtime applies them when it loads.

    Raises:
        ConversionError: ONNX Runtime cannot load the model.
    """
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise _cannot_load(model, error) from None
    out = onnx.load(str(path))
    _drop_unused_domains(out)
    g.name_nodes(out)
    onnx.save(out, str(path))


def _cannot_load(model: Any, error: Exception) -> ConversionError:
    opset = opset_of(model)
    newest = re.search(r"till opset (\d+)", str(error))
    if newest is not None:
        return ConversionError(
            f"the model has opset {opset}, onnxruntime {ort.__version__} reads up to {newest.group(1)}",
            hint=f"export it again with opset {newest.group(1)} or lower, or install a newer onnxruntime",
        )
    line = str(error).strip().splitlines()[0][:200]
    return ConversionError(
        f"onnxruntime {ort.__version__} cannot load the model: {line}", hint="the model needs another opset"
    )


def _drop_unused_domains(model: Any) -> None:
    used = {n.domain for n in model.graph.node} | {""}
    keep = [o for o in model.opset_import if o.domain in used or (o.domain == "ai.onnx" and "" in used)]
    model.ClearField("opset_import")
    model.opset_import.extend(keep)

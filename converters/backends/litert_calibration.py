"""Ranges of a TFLite model's tensors over calibration images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from converters import tflite_graph as g
from converters.backends.base import BuildRequest, calibration_tensors
from edge_sdk.errors import ConversionError
from edge_sdk.schemas.manifest import InputSpec

FITS = (0.5, 1.02)
"""A base's range is kept while the new one is at least half and at most 1.02 times as wide."""


def ranges(model: Any, request: BuildRequest, spec: InputSpec, work: Path) -> dict[str, Any]:
    """Return the smallest and largest value of each tensor, by name, as ai-edge-quantizer takes them.

    Raises:
        ConversionError: the model does not run.
    """
    from ai_edge_quantizer import calibrator, recipe, recipe_manager
    from ai_edge_quantizer.utils import qsv_utils

    file = work / "calibrated.tflite"
    g.save(model, file)
    image = g.name(model.subgraphs[0].tensors[model.subgraphs[0].inputs[0]])
    rules = recipe_manager.RecipeManager()
    rules.load_quantization_recipe(recipe.static_wi8_ai8())
    try:
        found = calibrator.Calibrator(
            bytes(file.read_bytes()),
            num_threads=1,
            mode=calibrator.CalibrationMode.CALIBRATION_PROFILER_BASED,
            qsv_update_func=qsv_utils.min_max_update,
        )
        for tensor in calibration_tensors(request, spec):
            found.calibrate({g.SIGNATURE: [{image: tensor}]}, rules)
    except (ValueError, RuntimeError) as error:
        line = str(error).strip().splitlines()[0][:200]
        raise ConversionError(f"the TFLite model does not run on the calibration images: {line}") from None
    finally:
        file.unlink()
    return dict(found.get_model_qsvs())


def keep_base(found: dict[str, Any], base: Path) -> tuple[dict[str, Any], int]:
    """Return the ranges with those of an earlier int8 build where they still fit, and how many were kept.

    A tensor of the base has the same name, one scale and 8 bits; so its bytes stay the same in the next build.
    """
    model = g.load(base)
    out, kept = dict(found), 0
    for tensor in model.subgraphs[0].tensors:
        label, q = g.name(tensor).removeprefix(f"{g.PREFIX}inner_"), tensor.quantization
        if label not in out or tensor.type != g.KIND.INT8 or q is None or q.scale is None or len(q.scale) != 1:
            continue
        if "min" not in out[label] or np.size(out[label]["min"]) != 1:
            continue
        low, high = ((edge - int(q.zeroPoint[0])) * float(q.scale[0]) for edge in (-128, 127))
        new_low, new_high = float(np.min(out[label]["min"])), float(np.max(out[label]["max"]))
        share = (max(new_high, 0.0) - min(new_low, 0.0)) / max(high - low, 1e-12)
        inside = new_low >= low * FITS[1] - 1e-6 and new_high <= high * FITS[1] + 1e-6
        if FITS[0] <= share <= FITS[1] and inside:
            like = np.asarray(out[label]["min"])
            out[label] = {"min": np.full_like(like, low), "max": np.full_like(like, high)}
            kept += 1
    return out, kept

"""Would more calibration images change the ranges: those of half the images against those of all.

The ranges are of the float model's activations in ONNX Runtime, whatever back-end will quantize: it is the images that
are judged. `ranges` runs in a worker process, the rest is pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converters.backends.base import BuildRequest, calibration_tensors
from edge_sdk.errors import ConversionError
from edge_sdk.parsing import read_dataclass
from edge_sdk.schemas.manifest import InputSpec

TOLERANCE = 0.02
"""Ranges have converged when those of half the images differ by no more than this, on average over the activations."""
MOST = 128
"""No more images are looked at: when their halves agree, so do those of more."""
DRAWS = 16
_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_WEIGHTED_TFLITE = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Convergence:
    """How the ranges of half the images differ from those of all.

    A range goes from the mean over the images of the smallest value to that of the largest, as NNCF and this
    converter take it. `shift` is the mean over activations of |half / all - 1|; `growth` how much the widest range
    seen grows from half to all, for quantizers that take that. `add` is how many more images are needed, 0 when the
    ranges have converged; `worst` names the activations that shift most.
    """

    n: int
    tensors: int
    shift: float
    growth: float
    add: int
    worst: tuple[tuple[str, float], ...] = ()

    @property
    def line(self) -> str | None:
        """Return the warning, or None when the ranges have converged."""
        if self.add == 0:
            return None
        return (
            f"{self.n} calibration images are too few: the ranges of half of them differ by {self.shift:.1%} from "
            f"those of all, {TOLERANCE:.0%} is sure: add about {self.add}"
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "n": self.n,
            "tensors": self.tensors,
            "shift": round(self.shift, 5),
            "growth": round(self.growth, 5),
            "tolerance": TOLERANCE,
            "add": self.add,
            "worst": [{"tensor": name, "shift": round(value, 5)} for name, value in self.worst],
        }


def ranges(form: str, model: str, spec: dict[str, Any], images: list[str]) -> dict[str, Any]:
    """Return names and, for each image, the smallest and largest value of what each weighted layer gives.

    Args:
        form: onnx or tflite.
        model: a file with fixed shapes that takes the input `spec` of a manifest.

    Raises:
        CalibrationError: an image cannot be read any more.
    """
    parsed, problems = read_dataclass(spec, InputSpec)
    if parsed is None:
        raise ConversionError(f"the input is wrong: {problems[0]}")
    tensors = calibration_tensors(BuildRequest(model=Path(model), out=Path(), precision="int8", input=parsed,
                                               images=tuple(images)), parsed)  # fmt: skip
    names, rows = (_of_tflite if form == "tflite" else _of_onnx)(Path(model), tensors)
    table = np.stack(rows).reshape(len(rows), len(names), 2)
    return {"names": names, "low": table[:, :, 0].tolist(), "high": table[:, :, 1].tolist()}


def _of_onnx(model: Path, tensors: Iterator[NDArray[Any]]) -> tuple[list[str], list[NDArray[Any]]]:
    import onnx

    from converters.backends import onnx_ranges

    part = onnx.load(str(model))
    known = set(onnx_ranges.floats(part))
    names = [n.output[0] for n in part.graph.node if n.op_type in _WEIGHTED and n.output[0] in known]
    part.graph.ClearField("output")
    for index, name in enumerate(names):
        for op in ("ReduceMin", "ReduceMax"):
            part.graph.node.append(onnx_ranges.reduction(part, op, name, f"{op}_{index}", None))
            onnx_ranges.give(part, f"{op}_{index}")
    if not names:
        return [], [np.zeros(0) for _ in tensors]
    running = onnx_ranges.session(part)
    image = running.get_inputs()[0].name
    return names, [np.asarray(running.run(None, {image: tensor}), np.float64).reshape(-1) for tensor in tensors]


def _of_tflite(model: Path, tensors: Iterator[NDArray[Any]]) -> tuple[list[str], list[NDArray[Any]]]:
    from ai_edge_litert.interpreter import Interpreter

    running = Interpreter(str(model), experimental_preserve_all_tensors=True, num_threads=1)
    running.allocate_tensors()
    details = {d["index"]: d for d in running.get_tensor_details()}
    outputs = [int(op["outputs"][0]) for op in running._get_ops_details() if op["op_name"] in _WEIGHTED_TFLITE]
    wanted = [i for i in outputs if details[i]["dtype"] == np.float32]
    image = running.get_input_details()[0]["index"]
    rows = []
    for tensor in tensors:
        running.set_tensor(image, tensor)
        running.invoke()
        values = [running.get_tensor(i) for i in wanted]
        rows.append(np.array([(v.min(), v.max()) for v in values], np.float64).reshape(-1))
    return [str(details[i]["name"]) for i in wanted], rows


def judge(
    names: Sequence[str], low: NDArray[np.float64], high: NDArray[np.float64], *, have: int | None = None, seed: int = 0
) -> Convergence:
    """Return how ranges of half the images differ from those of all, mean of 16 halves drawn at random.

    Args:
        low, high: (images, tensors) smallest and largest value.
        have: how many images calibrate, where `low` and `high` are of some of them only.
    """
    n, count = low.shape
    mean, widest = high.mean(axis=0) - low.mean(axis=0), high.max(axis=0) - low.min(axis=0)
    moving = mean > 0
    rng = np.random.default_rng(seed)
    shift, growth = np.zeros(count), np.zeros(count)
    for _ in range(DRAWS if n > 1 else 0):
        half = rng.permutation(n)[: n // 2]
        some = high[half].mean(axis=0) - low[half].mean(axis=0)
        top = high[half].max(axis=0) - low[half].min(axis=0)
        shift += np.abs(np.divide(some, mean, out=np.ones(count), where=moving) - 1) / DRAWS
        growth += (np.divide(widest, top, out=np.ones(count), where=top > 0) - 1) / DRAWS
    kept = np.flatnonzero(moving)
    value = float(shift[kept].mean()) if kept.size else 0.0
    worst = sorted(((names[i], float(shift[i])) for i in kept.tolist()), key=lambda pair: -pair[1])[:3]
    return Convergence(
        n=n,
        tensors=int(kept.size),
        shift=value,
        growth=float(growth[kept].mean()) if kept.size else 0.0,
        add=max(0, n + needed(n, value) - (have or n)),
        worst=tuple(worst),
    )


def needed(n: int, shift: float) -> int:
    """Return how many images to add until half of them differ by the tolerance: the error of a mean falls as 1/sqrt(n).

    Rounded up to tens.
    """
    if shift <= TOLERANCE:
        return 0
    more = n * (shift / TOLERANCE) ** 2 - n
    return int(np.ceil(more / 10) * 10)

"""Whether two forms of a model give the same answers, before any image of the user is seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converters.frontends.base import TensorInfo
from edge_sdk.errors import ConversionError

Run = Callable[[NDArray[Any]], Mapping[str, NDArray[Any]]]
TOLERANCE = 1e-3
"""Largest difference of an output over its largest value; float arithmetic in another order makes 1e-6 to 1e-4."""
ROUNDED_TOLERANCE = 0.5
"""Largest mean difference over the standard deviation, where one form rounds to 8 bits inside and the other does not:
0.01 to 0.25 for right conversions, 1 for unrelated answers. What the rounding costs is the golden set's to say."""
STRONGEST_TOLERANCE = 0.15
"""Largest difference of a detector's strongest score between 8-bit and float arithmetic; 0.01 to 0.08 is usual."""
AMPLITUDES = (1.0, 255.0)
"""Inputs in -1 to 1, and in 0 to 255: what the weights expect is not known yet."""


@dataclass(frozen=True, slots=True)
class Parity:
    """The worst difference over all outputs and where it was.

    It is over the output's largest value, or where a form `rounds` inside the mean one over the standard deviation.
    """

    worst: float
    output: str
    inputs: int
    rounds: bool


def examples(spec: TensorInfo) -> list[NDArray[Any]]:
    """Return smooth random pictures as the model's input: floats in both AMPLITUDES, integers over their range."""
    import cv2

    rng = np.random.default_rng(0)
    kind = np.dtype(spec.dtype)
    _, a, b, c = spec.shape
    nchw = a in (1, 3) and c not in (1, 3)
    height, width, channels = (b, c, a) if nchw else (a, b, c)
    found = []
    for amplitude in AMPLITUDES:
        small = rng.uniform(0, 1, (8, 8, channels)).astype(np.float32)
        picture = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC).reshape(height, width, channels)
        picture = np.clip(picture, 0, 1)
        if nchw:
            picture = np.ascontiguousarray(picture.transpose(2, 0, 1))
        if kind.kind == "f":
            values = picture * 2 - 1 if amplitude == 1 else picture * amplitude
        else:
            low, high = (0, 255) if kind.itemsize > 1 or kind.kind == "u" else (-128, 127)
            values = np.round(picture * (high - low) + low)
        found.append(values[None].astype(kind))
    return found


def compare(spec: TensorInfo, outputs: Sequence[TensorInfo], one: Run, other: Run, *, rounds: bool) -> Parity:
    """Run both on the same inputs and return how far `other` is from `one`.

    Inputs on which `one` gives NaN or infinity are left out.

    Raises:
        ConversionError: an output is missing, has another shape, or no input gives finite answers.
    """
    worst, where, used = 0.0, outputs[0].name, 0
    for value in examples(spec):
        first, second = one(value), other(value)
        if any(not np.isfinite(np.asarray(first[o.name], np.float64)).all() for o in outputs):
            continue
        used += 1
        for output in outputs:
            a, b = first[output.name], second.get(output.name)
            if b is None or a.shape != b.shape:
                found = "none" if b is None else list(b.shape)
                raise ConversionError(
                    f"the output `{output.name}` is {list(a.shape)} in one form, {found} in the other"
                )
            distance = _distance(a, b, rounds=rounds)
            if distance > worst:
                worst, where = distance, output.name
    if not used:
        raise ConversionError(
            "the model answers NaN or infinity on plain pictures", hint="check its weights; export a good checkpoint"
        )
    return Parity(worst, where, used, rounds)


def _distance(a: NDArray[Any], b: NDArray[Any], *, rounds: bool) -> float:
    if a.dtype.kind in "iub" and a.dtype.itemsize > 1:
        return float(np.mean(a != b))
    x, y = a.astype(np.float64), b.astype(np.float64)
    if not np.isfinite(y).all():
        return float("inf")
    if rounds:
        scale = max(float(x.std()), 1e-6 * float(np.abs(x).max()), 1e-12)
        return float(np.abs(x - y).mean()) / scale
    return float(np.abs(x - y).max()) / max(float(np.abs(x).max()), 1e-6)


def require(parity: Parity, names: str, hint: str) -> str:
    """Return a line that states the parity of a conversion (`names`: from what to what).

    Raises:
        ConversionError: it is over the tolerance.
    """
    limit, unit = (ROUNDED_TOLERANCE, "spread") if parity.rounds else (TOLERANCE, "range")
    if not parity.worst <= limit:
        raise ConversionError(
            f"{names}: the answers differ, `{parity.output}` by {parity.worst:.1e} of its {unit} (limit {limit:g})",
            hint=hint,
        )
    same = "close answers, mean" if parity.rounds else "same answers, largest"
    return f"{names}: {same} difference {parity.worst:.1e} of an output's {unit}, on {parity.inputs} inputs"


def strongest(spec: TensorInfo, scores: TensorInfo, one: Run, other: Run, *, names: str) -> str:
    """Return a line that states how far the strongest scores of two forms of a detector are apart.

    Raises:
        ConversionError: it is over STRONGEST_TOLERANCE on an input.
    """
    pairs = [(float(one(v)[scores.name].max()), float(other(v)[scores.name].max())) for v in examples(spec)]
    worst = max(abs(a - b) for a, b in pairs)
    if not worst <= STRONGEST_TOLERANCE:
        raise ConversionError(
            f"{names}: the answers differ, the strongest score by {worst:.2f} (limit {STRONGEST_TOLERANCE:g})"
        )
    return f"{names}: close answers, the strongest score differs by {worst:.2f}, on {len(pairs)} inputs"


def onnx_run(model: Any, names: Sequence[str] | None = None) -> Run:
    """Return a function that runs an ONNX model (proto or path) on one input and gives its outputs by name.

    Raises:
        ConversionError: ONNX Runtime cannot load it.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    content = str(model) if not hasattr(model, "SerializeToString") else model.SerializeToString()
    try:
        session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        line = str(error).strip().splitlines()[0][:200]
        raise ConversionError(f"onnxruntime cannot load the exported model: {line}") from None
    given = session.get_inputs()[0].name
    found = list(names or [o.name for o in session.get_outputs()])

    def run(value: NDArray[Any]) -> Mapping[str, NDArray[Any]]:
        return dict(zip(found, session.run(None, {given: value}), strict=True))

    return run

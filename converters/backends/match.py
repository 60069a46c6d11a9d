"""Which output of a built file is which of the source's: by name, or by what they answer, never by a guess."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converters.backends.base import BuildRequest
from converters.frontends.base import FORMS, TensorInfo
from converters.frontends.parity import Run, examples
from edge_sdk import runtimes
from edge_sdk.errors import ConversionError
from edge_sdk.schemas.manifest import InputSpec

NEAR = 0.02
"""Largest difference over the largest value at which two float outputs count as the same."""
TURNS = {4: ((0, 3, 1, 2), (0, 2, 3, 1)), 3: ((0, 2, 1),)}
"""How an output of so many dimensions may stand where a converter has turned the layout."""


def by_name(wanted: Sequence[str], names: Sequence[Sequence[str]]) -> tuple[int, ...] | None:
    """Return the place of each wanted output among `names` (all names of each output), None where that is not sure."""
    places = [[k for k, known in enumerate(names) if name in known] for name in wanted]
    if all(len(p) == 1 for p in places) and len({p[0] for p in places}) == len(wanted):
        return tuple(p[0] for p in places)
    return (0,) if len(wanted) == len(names) == 1 else None


def by_answers(
    wanted: Sequence[str], reference: Run, built: Run, names: Sequence[str], spec: TensorInfo
) -> tuple[tuple[int, ...], tuple[tuple[int, ...] | None, ...]]:
    """Return the place of each wanted output among `names`, and how each has to be turned (None: not at all).

    Args:
        reference: runs the source on an input of `spec`; `built` takes the same input.

    Raises:
        ConversionError: an output of the source is like none of the file's, or like several.
    """
    pairs = [(reference(x), built(x)) for x in examples(spec)]
    pairs = [p for p in pairs if all(np.isfinite(np.asarray(p[0][n], np.float64)).all() for n in wanted)]
    if not pairs:
        raise ConversionError("the source answers NaN or infinity on plain pictures, its outputs cannot be told apart")
    places, turns = [], []
    for name in wanted:
        fits = [(k, turn) for k, other in enumerate(names) for turn in _ways(pairs, name, other)]
        if len({k for k, _ in fits}) != 1:
            found = ", ".join(names[k] for k, _ in fits) or "none"
            raise ConversionError(
                f"the source's output `{name}` is like {found} of the converted file's outputs {', '.join(names)}",
                hint="export the model with outputs that have the same names",
            )
        places.append(fits[0][0])
        turns.append(fits[0][1])
    return tuple(places), tuple(turns)


def _ways(
    pairs: Sequence[tuple[Mapping[str, NDArray[Any]], Mapping[str, NDArray[Any]]]], name: str, other: str
) -> list[tuple[int, ...] | None]:
    """Return the turns (at most one) in which `other` of the second is `name` of the first on every input."""
    rank = pairs[0][0][name].ndim
    turns: list[tuple[int, ...] | None] = [None]
    if pairs[0][1][other].ndim == rank:
        turns += TURNS.get(rank, ())
    for turn in turns:
        if all(_near(a[name], b[other] if turn is None else b[other].transpose(turn)) for a, b in pairs):
            return [turn]
    return []


def _near(a: NDArray[Any], b: NDArray[Any]) -> bool:
    if a.shape != b.shape:
        return False
    x, y = a.astype(np.float64), b.astype(np.float64)
    return bool(np.abs(x - y).max(initial=0.0) <= NEAR * max(float(np.abs(x).max(initial=0.0)), 1e-6))


def reference_run(request: BuildRequest) -> Run:
    """Return a function that runs the source's reference form.

    Raises:
        ConversionError: the request names none.
    """
    if request.reference is None or FORMS.get(request.reference_form) is None:
        raise ConversionError(
            f"the outputs of the built file cannot be told apart: the source calls them {', '.join(request.outputs)}",
            hint="export the model with outputs that have the same names",
        )
    engine = runtimes.registry().load(str(FORMS[request.reference_form]))(request.reference, {"threads": 1})
    name = engine.inputs[0].name

    def run(value: NDArray[Any]) -> Mapping[str, NDArray[Any]]:
        return {k: np.array(v) for k, v in engine.infer({name: value}).items()}

    return run


def turned(run: Run, layout: str, shape: Sequence[int]) -> Run:
    """Return `run` for inputs of the source's `layout` where the file takes `shape`, perhaps in the other layout."""
    order = (0, 2, 3, 1) if layout == "NCHW" else (0, 3, 1, 2)

    def other(value: NDArray[Any]) -> Mapping[str, NDArray[Any]]:
        return run(value if value.shape == tuple(shape) else np.ascontiguousarray(value.transpose(order)))

    return other


def tensor(spec: InputSpec) -> TensorInfo:
    """Return the input tensor of `spec`."""
    return TensorInfo(name=spec.name, shape=spec.shape, dtype=spec.dtype)

"""What the rules of recognition share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converters.frontends.base import Preprocess, Source
from converters.frontends.ops import OpGraph
from converters.frontends.parity import examples

MOVES = frozenset(
    {"Transpose", "Reshape", "Concat", "Squeeze", "Unsqueeze", "Identity", "Flatten", "Slice", "Split", "Constant"}
    | {"Shape", "Gather", "Cast", "Dropout", "DequantizeLinear", "QuantizeLinear"}
)
SIGMOIDS = frozenset({"Sigmoid", "HardSigmoid"})
Run = Callable[[NDArray[Any]], Mapping[str, NDArray[Any]]]


@dataclass(frozen=True, slots=True)
class Facts:
    """What a rule looks at: the graph, and a run of the model on a picture where shapes and operations do not tell."""

    graph: OpGraph
    run: Run | None = None

    def largest(self, source: Source, pick: Callable[[NDArray[Any]], NDArray[Any]]) -> float | None:
        """Return the largest value of a part of the first output; None where the model cannot be run here."""
        if self.run is None:
            return None
        values = np.asarray(self.run(examples(source.input)[0])[source.outputs[0].name], np.float64)
        part = pick(values)
        return float(part.max()) if np.isfinite(part).all() else None


Rule = Callable[[Facts, Source], Source | None]


def size(source: Source) -> tuple[int, int]:
    """Return height and width of the input."""
    shape = source.input.shape
    return (shape[2], shape[3]) if source.layout == "NCHW" else (shape[1], shape[2])


def cells(source: Source, strides: tuple[int, ...]) -> list[int]:
    """Return how many cells each stride has."""
    height, width = size(source)
    return [-(-height // s) * -(-width // s) for s in strides]


def answer(source: Source, task: str, decoder: str, because: str, **more: Any) -> Source:
    """Return the source with what a rule found; what the file itself says of mean and std stays."""
    known = source.preprocess
    if known.mean is not None:
        more["preprocess"] = replace(more.get("preprocess", Preprocess()), mean=known.mean, std=known.std)
    return replace(source, task=task, decoder=decoder, because=(*source.because, because), **more)

"""Class probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edge_sdk.tasks.base import Classes, Geometry, read_params, wrong_outputs


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftmaxParams:
    """`logits`: the output is not yet probabilities; `skip`: leading classes to leave out, such as a background class;
    `top`: how many classes a result lists; `multi_label`: classes are independent (sigmoid instead of softmax)."""

    logits: bool = True
    multi_label: bool = False
    skip: int = field(default=0, metadata={"min": 0})
    top: int = field(default=5, metadata={"min": 1})
    classes: int | None = field(default=None, metadata={"min": 1})


class Softmax:
    """One output of c values, with any number of dimensions of size 1 around it."""

    task: ClassVar[str] = "classification"

    def __init__(self, params: Mapping[str, Any], labels: Sequence[str]) -> None:
        self.params = read_params(params, SoftmaxParams, "softmax")
        self.labels = tuple(labels)

    def __call__(self, outputs: Mapping[str, NDArray[Any]], geometry: Geometry) -> Classes:  # noqa: ARG002
        params = self.params
        values = next(iter(outputs.values())) if len(outputs) == 1 else None
        wanted = None if params.classes is None else params.classes + params.skip
        if values is None or max(values.shape, default=0) != values.size or (wanted and values.size != wanted):
            raise wrong_outputs("softmax", f"one output of {wanted or 'c'} values", outputs)
        flat = values.reshape(-1)[params.skip :].astype(np.float32)
        if params.logits:
            flat = sigmoid(flat) if params.multi_label else softmax(flat)
        return Classes(np.clip(flat, 0.0, 1.0), self.labels, params.top)


def softmax(values: NDArray[np.float32], axis: int = -1) -> NDArray[np.float32]:
    """Return exp(v) / sum(exp(v)) along `axis`, without overflow."""
    with np.errstate(over="ignore"):
        powers = np.exp(values - values.max(axis=axis, keepdims=True))
    return np.asarray(powers / powers.sum(axis=axis, keepdims=True), np.float32)


def sigmoid(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return 1 / (1 + exp(-v)), without overflow."""
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(values, -80.0, 80.0))), np.float32)

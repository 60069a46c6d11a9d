"""Noise over signal of a layer's output, by channel; and the rounding that makes the noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_TINY = 1e-12


class Sums:
    """Adds up, over images and by channel, mean square of a layer's noise and mean and mean square of its signal.

    A channel's signal is its variance, since what is constant carries nothing; the error of the layer is the mean over
    its live channels of noise / signal, at most 1 each, so that a small channel counts as much as a large one.
    """

    def __init__(self) -> None:
        self._rows: list[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]] = []

    def add(self, noise: NDArray[Any], mean: NDArray[Any], square: NDArray[Any]) -> None:
        """Count one image; each array has a value for each channel."""
        self._rows.append((np.ravel(noise), np.ravel(mean), np.ravel(square)))

    def error(self) -> float:
        """Return the error, 0 to 1; 1 where it is not finite and 0 where no channel is alive."""
        if not self._rows:
            return 0.0
        noise, mean, square = (
            np.mean(np.asarray(column, np.float64), axis=0) for column in zip(*self._rows, strict=True)
        )
        signal = square - mean**2
        alive = signal > _TINY
        if not alive.any():
            return 0.0
        ratio = np.nan_to_num(noise[alive] / signal[alive], nan=1.0, posinf=1.0)
        return float(np.minimum(ratio, 1.0).mean())


def round_weights(weights: NDArray[Any], axis: int | None, top: int) -> NDArray[np.float32]:
    """Return the weights rounded symmetrically to -top … top steps, by slice of `axis` (None: one scale for all)."""
    others = tuple(k for k in range(weights.ndim) if k != axis)
    largest = np.abs(weights).max(axis=others if axis is not None else None, keepdims=True)
    step = np.maximum(largest.astype(np.float64), _TINY) / top
    return np.asarray(np.round(weights / step) * step, np.float32)


def asymmetric(low: float, high: float) -> tuple[np.float32, np.uint8]:
    """Return scale and zero point that spread uint8 from low to high, 0 included."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max(high - low, _TINY) / 255
    return np.float32(scale), np.uint8(np.clip(np.round(-low / scale), 0, 255))


def agreement(after: Sequence[NDArray[Any]], before: Sequence[NDArray[Any]]) -> float:
    """Return how far the outputs of two models agree on one image: 1 - noise / signal, at least 0, mean over channels.

    The channels of an output are its shortest axis after the first (boxes and scores that share an output each count);
    an output of (1, n) is one channel.
    """
    values = []
    for now, then in zip(after, before, strict=True):
        axis = 1 + int(np.argmin(then.shape[1:])) if then.ndim > 2 else 0
        a, b = (np.moveaxis(v.astype(np.float64), axis, 0).reshape(v.shape[axis], -1) for v in (now, then))
        signal, noise = b.var(axis=1), ((a - b) ** 2).mean(axis=1)
        alive = signal > _TINY
        ratio = np.nan_to_num(noise[alive] / signal[alive], nan=1.0, posinf=1.0)
        values.append(float(1 - np.minimum(ratio, 1.0).mean()) if alive.any() else 1.0)
    return float(np.mean(values)) if values else 1.0

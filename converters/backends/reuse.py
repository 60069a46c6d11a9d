"""When the scales of an earlier int8 build still fit, and which integers stay with them.

The next version of a model goes out as a difference to the last one, so every byte that need not change should not.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

RANGE_TOLERANCE = 0.1
"""An activation keeps its range while both ends of the new one lie within this share of its width."""
FINER, COARSER = 0.95, 1.25
"""A weight channel keeps its scale while it is this many times the best one: below, values saturate; above, steps are
coarser."""
DEAD_BAND = 0.75
"""A weight keeps its integer while it lies within this many steps of it; plain rounding is 0.5."""


def range_fits(old: tuple[float, float], new: tuple[float, float]) -> bool:
    """Return whether the range (low, high) of an earlier build serves for the one that was calibrated now."""
    width = new[1] - new[0]
    return width > 0 and all(abs(a - b) <= RANGE_TOLERANCE * width for a, b in zip(old, new, strict=True))


def scales(old: NDArray[Any], new: NDArray[Any]) -> tuple[NDArray[Any], int]:
    """Return the scale of each weight channel, the old one where it still fits, and how many were kept."""
    ratio = old.astype(np.float64) / np.maximum(new.astype(np.float64), 1e-30)
    fits = (ratio >= FINER) & (ratio <= COARSER)
    return np.where(fits, old, new).astype(new.dtype), int(fits.sum())


def integers(
    weights: NDArray[Any], scale: NDArray[Any], zero: NDArray[Any] | int, old: NDArray[Any], *, low: int, high: int
) -> NDArray[Any]:
    """Return the weights as integers of the dtype of `old`, the old integer where it lies within the dead band.

    Args:
        scale, zero: they broadcast to the weights.
        low, high: the integers that may be used.
    """
    exact = weights.astype(np.float64) / scale.astype(np.float64) + zero
    before = old.astype(np.float64)
    kept = np.abs(exact - before) <= DEAD_BAND
    return np.clip(np.where(kept, before, np.round(exact)), low, high).astype(old.dtype)

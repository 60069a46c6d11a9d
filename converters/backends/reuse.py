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
DEAD_BAND = 0.65
"""A weight keeps its integer while it lies within this many steps of it; plain rounding is 0.5."""


def range_fits(old: tuple[float, float], new: tuple[float, float]) -> bool:
    """Return whether the range (low, high) of an earlier build serves for the one that was calibrated now."""
    width = new[1] - new[0]
    return width > 0 and all(abs(a - b) <= RANGE_TOLERANCE * width for a, b in zip(old, new, strict=True))


def weights(
    exact: NDArray[Any],
    new: NDArray[Any],
    old: NDArray[Any],
    zero: NDArray[Any],
    before: NDArray[Any],
    *,
    top: int,
) -> tuple[NDArray[Any], NDArray[Any], int]:
    """Return the scales (channels) and integers of weights, and how many integers are those of an earlier build.

    Each channel takes the scale that changes the fewest integers: the old one, the one that fits the old integers best
    (training often scales a channel as a whole), or the one that would be chosen without a base.

    Args:
        exact: float weights, (channels, n).
        new, old, zero: scale chosen without the base, scale of the base and zero point, (channels,).
        before: the integers of the base, (channels, n).
        top: how far an integer may be from its zero point.
    """
    centred = before.astype(np.float64) - zero[:, None]
    power = (centred**2).sum(axis=1)
    fitted = (exact * centred).sum(axis=1) / np.maximum(power, 1e-30)
    best = new.astype(np.float64)
    used, made, fewest = new.copy(), np.empty_like(before), np.full(len(new), before.shape[1] + 1)
    for scale in (old, fitted, best):
        stored = np.asarray(scale, new.dtype)
        ratio = stored.astype(np.float64) / np.maximum(best, 1e-30)
        found = integers(exact, np.where(stored > 0, stored, new), zero, before, top)
        changed = (found != before).sum(axis=1)
        better = (ratio >= FINER) & (ratio <= COARSER) & (changed < fewest)
        used[better], made[better], fewest[better] = stored[better], found[better], changed[better]
    return used, made, int((made == before).sum())


def integers(
    exact: NDArray[Any], scale: NDArray[Any], zero: NDArray[Any], before: NDArray[Any], top: int
) -> NDArray[Any]:
    """Return weights (channels, n) as integers, the earlier one where the weight lies within its dead band."""
    middle = zero[:, None].astype(np.float64)
    value = exact.astype(np.float64) / scale[:, None].astype(np.float64) + middle
    earlier = before.astype(np.float64)
    kept = np.where(np.abs(value - earlier) <= DEAD_BAND, earlier, np.round(value))
    info = np.iinfo(before.dtype)
    low, high = np.maximum(middle - top, info.min), np.minimum(middle + top, info.max)
    return np.asarray(np.clip(kept, low, high).astype(before.dtype))

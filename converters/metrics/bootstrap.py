"""Paired bootstrap over images: how sure a drop is."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

ROUNDS = 400
CHUNK = 4_000_000
"""How many weights are worked on at once, so that a set of 50,000 images needs no gigabytes."""
Weights = NDArray[np.float64]


def draw(n: int, rounds: int = ROUNDS, seed: int = 0) -> Weights:
    """Return (rounds, n) counts: how often each image is drawn in each round."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=rounds).astype(np.float64)


def interval(
    source: Callable[[Weights], NDArray[np.float64]],
    candidate: Callable[[Weights], NDArray[np.float64]],
    n: int,
    tail: float = 0.025,
) -> tuple[float, float]:
    """Return the interval of the drop `source - candidate` over paired draws of n images; 95 % with the default tail.

    Each callable maps (rounds, n) weights to the metric of each round; a round without a value is left out.
    """
    weights = draw(n)
    step = max(1, CHUNK // max(n, 1))
    parts = (weights[at : at + step] for at in range(0, len(weights), step))
    drops = np.concatenate([source(part) - candidate(part) for part in parts])
    drops = drops[np.isfinite(drops)]
    if drops.size == 0:
        return 0.0, 0.0
    low, high = np.quantile(drops, [tail, 1 - tail])
    return float(low), float(high)

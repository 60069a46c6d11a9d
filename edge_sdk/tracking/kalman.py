"""A constant-velocity Kalman filter over many boxes at once.

The DeepSORT filter has an 8x8 covariance a track. Its noises are diagonal and its transition ties each coordinate only
to its own speed, so the covariance stays four 2x2 blocks: three numbers a coordinate, the same result, no matrix
inverse. Coordinates are centre x, centre y, width, height (BoT-SORT, arXiv 2206.14651); time is counted in ticks of
1/30 s, the rate the published noises were chosen at.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

TICKS_PER_S = 30.0
STD_POSITION = 1 / 20
STD_SPEED = 1 / 160

Array = NDArray[np.float64]


@dataclass(slots=True)
class Kalman:
    """State of n boxes: `pos`, `vel` (pixels, pixels a tick) and the covariance blocks `pp`, `pv`, `vv`, all (n, 4)."""

    pos: Array
    vel: Array
    pp: Array
    pv: Array
    vv: Array

    @classmethod
    def at(cls, measured: Array) -> Kalman:
        """Start at measured boxes (n, 4), at rest, with wide uncertainty."""
        size = _sizes(measured)
        return cls(
            measured.copy(),
            np.zeros_like(measured),
            (2 * STD_POSITION * size) ** 2,
            np.zeros_like(measured),
            (10 * STD_SPEED * size) ** 2,
        )

    def __len__(self) -> int:
        return len(self.pos)

    def select(self, index: Any) -> Kalman:
        return Kalman(self.pos[index], self.vel[index], self.pp[index], self.pv[index], self.vv[index])

    def joined(self, other: Kalman) -> Kalman:
        pairs = zip(self.arrays(), other.arrays(), strict=True)
        return Kalman(*(np.concatenate(pair) for pair in pairs))

    def arrays(self) -> tuple[Array, Array, Array, Array, Array]:
        return self.pos, self.vel, self.pp, self.pv, self.vv

    def predict(self, ticks: float) -> None:
        """Move every box `ticks` forward in place: the sum of that many one-tick steps, for whole numbers exactly."""
        noise = _sizes(self.pos)
        noise *= noise
        speed = noise * (STD_SPEED**2)
        self.pos += self.vel * ticks
        np.maximum(self.pos[:, 2:], 1e-3, out=self.pos[:, 2:])
        self.pp += (2 * ticks) * self.pv + (ticks * ticks) * self.vv + (ticks * STD_POSITION**2) * noise
        self.pv += ticks * self.vv
        self.vv += ticks * speed
        if ticks > 1:
            self.pp += (ticks * (ticks - 1) * (2 * ticks - 1) / 6) * speed
            self.pv += (ticks * (ticks - 1) / 2) * speed

    def update(self, rows: NDArray[np.intp], measured: Array) -> None:
        """Correct the boxes of `rows` with measured boxes (k, 4), in place."""
        pos, vel, pp, pv, vv = (array[rows] for array in self.arrays())
        innovation = pp + (STD_POSITION * _sizes(pos)) ** 2
        gain_p, gain_v = pp / innovation, pv / innovation
        error = measured - pos
        self.pos[rows] = pos + gain_p * error
        self.vel[rows] = vel + gain_v * error
        self.pp[rows] = pp - gain_p * pp
        self.pv[rows] = pv - gain_p * pv
        self.vv[rows] = vv - gain_v * pv

    def boxes(self) -> Array:
        """Return (n, 4) x1 y1 x2 y2."""
        return to_corners(self.pos)


def to_centres(xyxy: NDArray[Any]) -> Array:
    """Turn (n, 4) x1 y1 x2 y2 into centre x, centre y, width, height, float64."""
    out = np.empty((len(xyxy), 4))
    out[:, :2] = (xyxy[:, :2] + xyxy[:, 2:]) / 2
    out[:, 2:] = xyxy[:, 2:] - xyxy[:, :2]
    return out


def to_corners(centres: Array) -> Array:
    out = np.empty_like(centres)
    half = centres[:, 2:] / 2
    out[:, :2] = centres[:, :2] - half
    out[:, 2:] = centres[:, :2] + half
    return out


def _sizes(boxes: Array) -> Array:
    """Widths and heights in the order of the coordinates, the scale of all noises."""
    return np.maximum(boxes[:, (2, 3, 2, 3)], 1.0)

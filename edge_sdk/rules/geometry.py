"""Points, polygons and lines in the plane, vectorised; y grows downwards as in images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import UsageError

Points = NDArray[np.float64]
_MAX_POINTS = 256


def polygon(points: Any, *, what: str = "polygon") -> Points:
    """Return (n, 2) corners of a simple polygon, a repeated last corner and doubles removed.

    Raises:
        UsageError: fewer than three different corners, numbers that are not finite, no area, or edges that cross.
    """
    corners = _points(points, what)
    keep = np.any(corners != np.roll(corners, 1, axis=0), axis=1)
    corners = corners[keep] if keep.any() else corners[:1]
    if len(corners) < 3:
        raise UsageError(f"{what}: expected at least 3 different corners, found {len(corners)}", hint=_EXAMPLE)
    if len(corners) > _MAX_POINTS:
        raise UsageError(f"{what}: expected at most {_MAX_POINTS} corners, found {len(corners)}")
    x, y = (corners - corners.mean(axis=0)).T
    area = abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2
    span = float(np.ptp(corners, axis=0).max())
    if area <= 1e-9 * span * span:
        crossed = _crossing(corners)
        if crossed is None:
            raise UsageError(f"{what}: the corners lie on one line, the area is 0", hint="move one corner off the line")
    else:
        crossed = _crossing(corners)
    if crossed is not None:
        i, j = crossed
        raise UsageError(
            f"{what}: the edges from corner {i + 1} and from corner {j + 1} cross",
            hint="list the corners in order around the outline",
        )
    return corners


_EXAMPLE = "give corners as [[x, y], [x, y], [x, y]]"


def segment(start: Any, end: Any, *, what: str = "line") -> tuple[Points, Points]:
    """Return two different finite points.

    Raises:
        UsageError: they are the same point or not numbers.
    """
    ends = _points([start, end], what, hint="give a line as [[x, y], [x, y]]")
    if np.array_equal(ends[0], ends[1]):
        raise UsageError(f"{what}: both ends are {_show(ends[0])}", hint="a line needs two different points")
    return ends[0], ends[1]


def inside(points: Points, corners: Points) -> NDArray[np.bool_]:
    """Say which of (n, 2) points lie in the polygon; its border belongs to it."""
    x, y = points[:, 0, None], points[:, 1, None]
    ax, ay = corners[:, 0], corners[:, 1]
    bx, by = np.roll(ax, -1), np.roll(ay, -1)
    cross = (bx - ax) * (y - ay) - (by - ay) * (x - ax)
    spans = (ay <= y) != (by <= y)
    left = (cross > 0) == (by > ay)
    odd = (np.count_nonzero(spans & left, axis=1) & 1).astype(bool)
    tolerance = 1e-9 * (np.abs(bx - ax) + np.abs(by - ay)) * max(1.0, float(np.abs(corners).max()))
    on_line = np.abs(cross) <= tolerance
    within = (
        (x >= np.minimum(ax, bx)) & (x <= np.maximum(ax, bx)) & (y >= np.minimum(ay, by)) & (y <= np.maximum(ay, by))
    )
    result: NDArray[np.bool_] = odd | np.any(on_line & within, axis=1)
    return result


def sides(points: Points, start: Points, end: Points) -> tuple[Points, Points]:
    """Return for (n, 2) points the signed distance to the line and the place along it.

    The distance is in the points' units, above 0 to the right of someone who walks from start to end on the picture.
    The place is 0 at start and 1 at end.
    """
    way = end - start
    length = float(np.hypot(way[0], way[1]))
    offset = points - start
    distance = (way[0] * offset[:, 1] - way[1] * offset[:, 0]) / length
    along = (offset @ way) / (length * length)
    return distance, along


def _points(points: Any, what: str, *, hint: str = "") -> Points:
    try:
        array = np.asarray(points, np.float64)
    except (TypeError, ValueError):
        array = np.zeros(0)
    if array.ndim != 2 or array.shape[1] != 2:
        raise UsageError(f"{what}: expected a list of [x, y] points, found {_brief(points)}", hint=hint or _EXAMPLE)
    if not np.isfinite(array).all():
        raise UsageError(f"{what}: expected finite coordinates, found {_brief(points)}")
    return array


def _crossing(corners: Points) -> tuple[int, int] | None:
    """Return two edges without a common corner that touch, or two neighbours that fold back onto each other."""
    n = len(corners)
    ends = np.roll(corners, -1, axis=0)
    for i in range(n):
        a, b, c = corners[i], ends[i], ends[(i + 1) % n]
        if _turn(a, b, c) == 0 and float(np.dot(b - a, c - b)) < 0:
            return i, (i + 1) % n
        for j in range(i + 2, n):
            if not (i == 0 and j == n - 1) and _touch(a, b, corners[j], ends[j]):
                return i, j
    return None


def _turn(a: Sequence[float] | Points, b: Any, c: Any) -> int:
    value = (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
    return 0 if value == 0 else int(math.copysign(1, value))


def _touch(a: Points, b: Points, c: Points, d: Points) -> bool:
    turns = _turn(a, b, c), _turn(a, b, d), _turn(c, d, a), _turn(c, d, b)
    if turns[0] != turns[1] and turns[2] != turns[3]:
        return True
    return any(
        turn == 0 and min(p[0], q[0]) <= r[0] <= max(p[0], q[0]) and min(p[1], q[1]) <= r[1] <= max(p[1], q[1])
        for turn, p, q, r in zip(turns, (a, a, c, c), (b, b, d, d), (c, d, a, b), strict=True)
    )


def _show(point: Points) -> str:
    return f"[{point[0]:g}, {point[1]:g}]"


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."

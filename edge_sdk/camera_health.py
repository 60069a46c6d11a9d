"""Cameras that lie: black, over-exposed, frozen, covered, defocused, moved, or of another size.

Every check reads a 160 pixel wide gray copy. Covered, defocused and moved compare it with a slow reference of the same
camera, so they begin after `warm_s` and need a scene with some texture.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_sdk.motion import Gray, analysis_gray
from edge_sdk.sources.base import Image
from edge_sdk.stage_params import CameraParams

Event = dict[str, Any]
Map = NDArray[np.float32]

# Correlations and shares that separate the altered from the unaltered clips by a wide margin.
_STEADY_LAG_S = 1.0
_STEADY = 0.3
_MIN_TEXTURE = 1.0
_MIN_LIKENESS = 0.3
_SAME_VIEW = 0.6
_SUSPECT = 0.75
_FOUND_AGAIN = 0.2
_TEXTURED = 0.3
_FLAT = 0.3
_GONE = 0.5
_ALIEN = 0.2
_MISSES = 2


class Problem(Enum):
    """What can be wrong with a camera's picture; the first that holds is the one that is reported."""

    SIZE = "size"
    BLACK = "black"
    OVEREXPOSED = "overexposed"
    FROZEN = "frozen"
    COVERED = "covered"
    DEFOCUSED = "defocused"
    MOVED = "moved"


@dataclass(frozen=True, slots=True)
class View:
    """What one analysed frame looks like.

    `edges` is (h, w) float32 edge strength, `cells` (5, 8) and `texture` its means over blocks and over all; 99 % of
    the pixels are at or below gray level `dark`, `bright` is the share at or above 250, `sharpness` the mean size of
    the Laplacian.
    """

    gray: Gray
    edges: Map
    cells: Map
    texture: float
    dark: float
    bright: float
    sharpness: float

    @classmethod
    def of(cls, gray: Gray) -> View:
        levels = cv2.calcHist([gray], [0], None, [256], [0, 256]).ravel()
        below = np.cumsum(levels) / gray.size
        laplacian = cv2.Laplacian(gray, cv2.CV_16S)
        edges = edges_of(gray)
        return cls(
            gray,
            edges,
            cv2.resize(edges, (8, 5), interpolation=cv2.INTER_AREA),  # type: ignore[arg-type]
            cv2.mean(edges)[0],
            float(np.searchsorted(below, 0.99)),
            float(1 - below[249]),
            float(cv2.norm(laplacian, cv2.NORM_L1)) / gray.size,
        )


def edges_of(gray: Gray) -> Map:
    """Return |dx| + |dy| of a smoothed gray image, float32."""
    dx, dy = cv2.spatialGradient(cv2.blur(gray, (3, 3)))
    return cv2.add(cv2.absdiff(dx, np.zeros_like(dx)), cv2.absdiff(dy, np.zeros_like(dy))).astype(np.float32)


def likeness(a: Map, b: Map) -> float:
    """Return the correlation of two maps in [-1, 1]; 0 when one is flat."""
    a, b = a - cv2.mean(a)[0], b - cv2.mean(b)[0]
    scale = cv2.norm(a) * cv2.norm(b)
    return float(np.vdot(a, b) / scale) if scale > 1e-6 else 0.0


Finding = tuple[Problem | None, float, float, str]
_FINE: Finding = (None, 0.0, 0.0, "")


@dataclass(slots=True)
class _Watch:
    """How long a problem has been seen or gone; `active` between its begin and end events, `missed` analysed frames
    without it before it begins."""

    active: bool = False
    missed: int = 0
    since_s: float | None = None
    clear_s: float | None = None


@dataclass(slots=True)
class _Reference:
    """Slow averages of a good picture."""

    gray: Map
    cells: Map
    sharpness: float
    texture: float
    likeness: float = 1.0
    unlike_since_s: float | None = None
    frames: int = 1
    started_s: float = 0.0

    def learn(self, view: View, like: float, weight: float) -> None:
        self.frames += 1
        weight = max(weight, 1 / self.frames)
        cv2.accumulateWeighted(view.gray, self.gray, weight)
        self.sharpness += weight * (view.sharpness - self.sharpness)
        self.cells += np.float32(weight) * (view.cells - self.cells)
        self.texture += weight * (view.texture - self.texture)
        self.likeness += weight * (like - self.likeness)


class CameraHealth:
    """Judges the frames of one camera, in order; `update` returns an event when a problem begins or ends."""

    kind = "camera"

    def __init__(self, name: str = "camera", params: CameraParams | None = None) -> None:
        self.name = name
        self.params = params or CameraParams()
        self._size = (self.params.width, self.params.height)
        self._watches = {problem: _Watch() for problem in Problem}
        self._reference: _Reference | None = None
        self._last_s: float | None = None
        self._last_gray: Gray | None = None
        self._same_since_s = 0.0
        self._recent: list[tuple[float, Map]] = []

    def adopt(self, old: CameraHealth) -> None:
        """Go on with the reference and the problems of another."""
        for name in ("_watches", "_reference", "_last_s", "_last_gray", "_same_since_s", "_recent"):
            setattr(self, name, getattr(old, name))

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong now, by name."""
        return tuple(p.value for p, watch in self._watches.items() if watch.active)

    def update(self, image: Image, t_s: float) -> tuple[Event, ...]:
        """Judge one frame; frames closer than `period_s` to the last analysed one are passed over.

        Args:
            image: BGR uint8 frame.
            t_s: its time in seconds; a step back starts the timers again.
        """
        if self._last_s is not None and t_s < self._last_s:
            self._rewind()
        if self._last_s is not None and t_s - self._last_s < self.params.period_s:
            return ()
        step = 0.0 if self._last_s is None else t_s - self._last_s
        self._last_s = t_s
        found, value, limit, why = self._judge(image, t_s, step)
        since_s = self._same_since_s if found is Problem.FROZEN else t_s
        return self._settle(found, {"value": round(value, 4), "limit": round(limit, 4), "why": why}, t_s, since_s)

    def _rewind(self) -> None:
        self._last_s, self._last_gray = None, None
        self._recent.clear()
        for watch in self._watches.values():
            watch.since_s = watch.clear_s = None

    def _judge(self, image: Image, t_s: float, step: float) -> Finding:
        p = self.params
        height, width = image.shape[:2]
        self._size = (self._size[0] or width, self._size[1] or height)
        if (width, height) != self._size:
            why = f"expected {self._size[0]}x{self._size[1]} pixels, found {width}x{height}"
            return Problem.SIZE, width, self._size[0], why
        view = View.of(analysis_gray(image))
        if self._last_gray is None or not np.array_equal(view.gray, self._last_gray):
            self._last_gray, self._same_since_s = view.gray, t_s
        same_s = t_s - self._same_since_s
        if view.dark < p.black_level:
            why = f"99 % of the pixels are below gray level {view.dark:.0f}"
            return Problem.BLACK, view.dark, p.black_level, why
        if view.bright > p.bright_share:
            why = f"{100 * view.bright:.0f} % of the pixels are white"
            return Problem.OVEREXPOSED, view.bright, p.bright_share, why
        if same_s >= p.frozen_s:
            return Problem.FROZEN, same_s, p.frozen_s, f"no pixel changed for {same_s:.1f} s"
        return self._compare(view, t_s, step)

    def _compare(self, view: View, t_s: float, step: float) -> Finding:
        """Judge against the reference, and teach the reference a frame that has nothing wrong."""
        p, ref = self.params, self._reference
        steady = self._steadiness(view, t_s)
        if ref is None:
            gray = view.gray.astype(np.float32)
            self._reference = _Reference(gray, view.cells.copy(), view.sharpness, view.texture, started_s=t_s)
            return _FINE
        reference = edges_of(cv2.convertScaleAbs(ref.gray))  # type: ignore[arg-type]
        like = likeness(view.edges, reference)
        if t_s - ref.started_s < p.warm_s or ref.texture < _MIN_TEXTURE:
            ref.learn(view, like, step / p.reference_s)
            return _FINE
        lost = _lost_cells(view.cells, ref.cells)
        flat = view.texture < _FLAT * ref.texture
        if (lost > p.covered_share or flat) and like < _SAME_VIEW * ref.likeness:
            return Problem.COVERED, lost, p.covered_share, f"{100 * lost:.0f} % of the view lost its texture"
        gone = 1 - view.texture / ref.texture
        if gone > _GONE and like < _ALIEN * ref.likeness:
            why = f"{100 * gone:.0f} % of the texture is gone, and the rest is not that of the view"
            return Problem.COVERED, gone, _GONE, why
        focus = view.sharpness / max(view.texture, 1e-6) * ref.texture / max(ref.sharpness, 1e-6)
        if focus < p.focus_share:
            why = f"{100 * focus:.0f} % of the usual sharpness is left"
            return Problem.DEFOCUSED, focus, p.focus_share, why
        moved = self._moved(view, reference, like, steady)
        if moved is None and like >= p.move_share * ref.likeness:
            ref.unlike_since_s = None
            ref.learn(view, like, step / p.reference_s)
            return _FINE
        ref.unlike_since_s = t_s if ref.unlike_since_s is None else ref.unlike_since_s
        if 0 < p.adopt_s <= t_s - ref.unlike_since_s:
            self._reference = None
        return moved or _FINE

    def _moved(self, view: View, reference: Map, like: float, steady: float) -> Finding | None:
        """Say whether the view is like that of a second ago and unlike the reference."""
        p, ref = self.params, self._reference
        if ref is None or ref.likeness < _MIN_LIKENESS or steady < _STEADY or like >= _SUSPECT * ref.likeness:
            return None
        x, y, response = _shift(reference, view.edges)
        found_again = response >= _FOUND_AGAIN and max(abs(x), abs(y)) >= p.move_percent
        share = like / steady
        if share >= p.move_share and not found_again:
            return None
        why = "the view is another one"
        if found_again:
            why = f"the view moved by {x:+.0f} % of the width and {y:+.0f} % of the height"
        return Problem.MOVED, share, p.move_share, why

    def _steadiness(self, view: View, t_s: float) -> float:
        """Return the likeness to the view of a second ago: low while a camera swings or drives."""
        self._recent.append((t_s, view.edges))
        while len(self._recent) > 2 and t_s - self._recent[1][0] >= _STEADY_LAG_S:
            self._recent.pop(0)
        return likeness(view.edges, self._recent[0][1])

    def _settle(self, found: Problem | None, detail: Event, t_s: float, since_s: float) -> tuple[Event, ...]:
        """Apply the hold times; return what began and what ended. What is new has been so since `since_s`."""
        events: list[Event] = []
        for problem, watch in self._watches.items():
            if problem is found:
                watch.clear_s, watch.missed = None, 0
                watch.since_s = since_s if watch.since_s is None else watch.since_s
                hold_s = 0.0 if problem in (Problem.FROZEN, Problem.SIZE) else self.params.hold_s
                if not watch.active and t_s - watch.since_s >= hold_s:
                    watch.active = True
                    events.append(self._event(problem, "begin", watch.since_s, t_s) | detail)
            elif not watch.active:
                watch.missed += 1
                if watch.missed >= _MISSES:
                    watch.since_s = None
            else:
                watch.clear_s = t_s if watch.clear_s is None else watch.clear_s
                if t_s - watch.clear_s >= self.params.clear_s:
                    events.append(self._event(problem, "end", watch.since_s or t_s, t_s))
                    self._watches[problem] = _Watch()
        return tuple(events)

    def _event(self, problem: Problem, state: str, since_s: float, t_s: float) -> Event:
        return {
            "kind": "camera",
            "name": self.name,
            "problem": problem.value,
            "state": state,
            "t_s": round(t_s, 3),
            "since_s": round(since_s, 3),
        }


def _lost_cells(cells: Map, usual: Map) -> float:
    """Return the share of blocks with texture that now have less than a third of it."""
    textured = usual >= _TEXTURED * usual.mean()
    return float(np.count_nonzero(cells[textured] < usual[textured] / 3) / np.count_nonzero(textured))


def _shift(reference: Map, edges: Map) -> tuple[float, float, float]:
    """Return how far the view moved in per cent of width and height, and how clearly (0 to 1) that was seen."""
    window = cv2.createHanningWindow(edges.shape[::-1], cv2.CV_32F)
    (x, y), response = cv2.phaseCorrelate(reference, edges, window)
    return 100 * x / edges.shape[1], 100 * y / edges.shape[0], response

"""What the stages around a model are told: the params of each kind in a pipeline file; standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal


class Anchor(Enum):
    """The point of a box that stands for the object; `bottom` is where it touches the ground."""

    BOTTOM = "bottom"
    CENTER = "center"
    TOP = "top"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackParams:
    """What a tracker is told.

    Args:
        high: score from which a detection takes part in the first association.
        low: score from which a detection may continue a known track.
        new: score from which an unmatched detection starts a track.
        match: largest cost, 1 - IoU * score, of the first association.
        match_low: largest 1 - IoU of the second association (weak detections).
        match_tentative: largest cost for a track that has no number yet; the paper has 0.7, 0.9 keeps fast objects
            at low frame rates.
        lost_s: seconds that an unseen track is kept.
        confirm: sightings before a track gets its number.
        class_aware: True keeps a track within one class.
    """

    high: float = field(default=0.5, metadata={"min": 0, "max": 1})
    low: float = field(default=0.1, metadata={"min": 0, "max": 1})
    new: float = field(default=0.6, metadata={"min": 0, "max": 1})
    match: float = field(default=0.8, metadata={"min": 0, "max": 1})
    match_low: float = field(default=0.5, metadata={"min": 0, "max": 1})
    match_tentative: float = field(default=0.9, metadata={"min": 0, "max": 1})
    lost_s: float = field(default=1.0, metadata={"min": 0, "max": 3600})
    confirm: int = field(default=2, metadata={"min": 1, "max": 100})
    class_aware: bool = True

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ValueError(f"low ({self.low}) must not be above high ({self.high})")


@dataclass(frozen=True, slots=True, kw_only=True)
class CropParams:
    """What a second model is told about the boxes that are cut out for it.

    Args:
        classes: labels of the detector that are cut out; none means all.
        min_score: score from which a detection is cut out.
        pad: share of its size by which a box is grown on each side; the crop ends at the frame's border.
        square: True grows the shorter side to the longer one, so that a model that stretches its input sees the true
            proportions.
        min_size: pixels; a box whose visible part has a shorter side below it is not cut out.
        max_per_frame: how many boxes of a frame are cut out, those without an answer first, then the oldest answers.
        refresh_frames: a tracked object keeps its answer for so many inferred frames; 1 asks in each of them.
        refresh_below: an answer with a lower score is asked for again in the next frame.
    """

    classes: tuple[str, ...] = ()
    min_score: float = field(default=0.0, metadata={"min": 0, "max": 1})
    pad: float = field(default=0.0, metadata={"min": 0, "max": 4})
    square: bool = False
    min_size: int = field(default=8, metadata={"min": 1, "max": 100000})
    max_per_frame: int = field(default=16, metadata={"min": 1, "max": 1000})
    refresh_frames: int = field(default=1, metadata={"min": 1, "max": 100000})
    refresh_below: float = field(default=0.0, metadata={"min": 0, "max": 1})


@dataclass(frozen=True, slots=True, kw_only=True)
class ZoneParams:
    """What a zone is told.

    Args:
        polygon: corners in pixels of the upright frame, at least three; the border belongs to the zone.
        classes: labels that count; none means all.
        min_score: score from which a detection counts.
        where: labels by the name of a second model; only objects that it gave one of them count.
        where_not: labels by the name of a second model; only objects that it answered without any of them count.
        anchor: the point of the box that must be inside.
        min_frames: frames in a row inside before `zone_enter`, and outside before `zone_leave`.
        dwell_s: seconds inside at which a `zone_dwell` event is sent, each once a visit.
        lost_s: seconds unseen after which an object has left.
    """

    polygon: tuple[tuple[float, ...], ...]
    classes: tuple[str, ...] = ()
    min_score: float = field(default=0.0, metadata={"min": 0, "max": 1})
    where: dict[str, tuple[str, ...]] = field(default_factory=dict)
    where_not: dict[str, tuple[str, ...]] = field(default_factory=dict)
    anchor: Anchor = Anchor.BOTTOM
    min_frames: int = field(default=2, metadata={"min": 1, "max": 1000})
    dwell_s: tuple[float, ...] = ()
    lost_s: float = field(default=2.0, metadata={"min": 0, "max": 3600})

    def __post_init__(self) -> None:
        if any(s <= 0 for s in self.dwell_s):
            raise ValueError(f"dwell_s: expected seconds above 0, found {list(self.dwell_s)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class LineParams:
    """What a line is told.

    Args:
        start: one end, pixels of the upright frame.
        end: the other end; `in` is towards the right of someone who walks from start to end on the picture (downwards
            for a line drawn from left to right).
        classes: labels that count; none means all.
        min_score: score from which a detection counts.
        where: labels by the name of a second model; only objects that it gave one of them count.
        where_not: labels by the name of a second model; only objects that it answered without any of them count.
        anchor: the point of the box that must cross.
        margin: pixels beyond the line that an object must reach before it counts, so that one that stands on the line
            is not counted again and again.
        lost_s: seconds unseen after which an object is forgotten.
    """

    start: tuple[float, ...]
    end: tuple[float, ...]
    classes: tuple[str, ...] = ()
    min_score: float = field(default=0.0, metadata={"min": 0, "max": 1})
    where: dict[str, tuple[str, ...]] = field(default_factory=dict)
    where_not: dict[str, tuple[str, ...]] = field(default_factory=dict)
    anchor: Anchor = Anchor.CENTER
    margin: float = field(default=4.0, metadata={"min": 0, "max": 10000})
    lost_s: float = field(default=2.0, metadata={"min": 0, "max": 3600})


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertParams:
    """What a debounced rule is told.

    Args:
        classes: labels that count; none means all.
        min_score: score from which a detection counts.
        where: labels by the name of a second model; only objects that it gave one of them count.
        where_not: labels by the name of a second model; only objects that it answered without any of them count.
        min_count: how many must be there at once.
        min_frames: in how many of the last `window_frames` frames.
        window_frames: 0 means `min_frames`: all of them in a row.
        cooldown_s: seconds after an event in which there is no second one.
        polygon: only detections with their anchor inside count; none means the whole frame.
        anchor: the point of the box that must be inside the polygon.
    """

    classes: tuple[str, ...] = ()
    min_score: float = field(default=0.5, metadata={"min": 0, "max": 1})
    where: dict[str, tuple[str, ...]] = field(default_factory=dict)
    where_not: dict[str, tuple[str, ...]] = field(default_factory=dict)
    min_count: int = field(default=1, metadata={"min": 1, "max": 100000})
    min_frames: int = field(default=3, metadata={"min": 1, "max": 10000})
    window_frames: int = field(default=0, metadata={"min": 0, "max": 10000})
    cooldown_s: float = field(default=10.0, metadata={"min": 0, "max": 86400})
    polygon: tuple[tuple[float, ...], ...] = ()
    anchor: Anchor = Anchor.BOTTOM

    def __post_init__(self) -> None:
        if 0 < self.window_frames < self.min_frames:
            raise ValueError(f"window_frames ({self.window_frames}) must be 0 or at least {self.min_frames}")


@dataclass(frozen=True, slots=True, kw_only=True)
class CameraParams:
    """What the health checks are told.

    Args:
        period_s: time between two analysed frames.
        hold_s: seconds that a problem must last before its event.
        clear_s: seconds without it before its end event.
        frozen_s: seconds of equal pixels that count as frozen; sensor noise makes a live picture change.
        warm_s: seconds of good picture before there is a reference.
        reference_s: time constant of the reference.
        adopt_s: a view unlike the reference for this long becomes the new reference; 0 means never.
        black_level: gray level below which all but 1 % of the pixels must lie.
        bright_share: share of pixels at or above level 250 that counts as over-exposed.
        covered_share: share of the view that must lose its texture.
        focus_share: share of the reference's sharpness below which a view is defocused.
        move_share: a steady view has moved when its likeness to the reference is below this share of its likeness to
            itself a second ago,
        move_percent: or when it is found again this far away, in per cent of its width or height.
        width: expected width in pixels, 0 means that of the first frame.
        height: expected height in pixels, 0 means that of the first frame.
    """

    period_s: float = field(default=0.25, metadata={"min": 0, "max": 60})
    hold_s: float = field(default=2.0, metadata={"min": 0, "max": 3600})
    clear_s: float = field(default=2.0, metadata={"min": 0, "max": 3600})
    frozen_s: float = field(default=5.0, metadata={"min": 0.1, "max": 3600})
    warm_s: float = field(default=2.0, metadata={"min": 0, "max": 3600})
    reference_s: float = field(default=60.0, metadata={"min": 0.1, "max": 86400})
    adopt_s: float = field(default=300.0, metadata={"min": 0, "max": 86400})
    black_level: int = field(default=32, metadata={"min": 1, "max": 255})
    bright_share: float = field(default=0.6, metadata={"min": 0.01, "max": 1})
    covered_share: float = field(default=0.6, metadata={"min": 0, "max": 1})
    focus_share: float = field(default=0.5, metadata={"min": 0, "max": 1})
    move_share: float = field(default=0.5, metadata={"min": 0, "max": 1})
    move_percent: float = field(default=3.0, metadata={"min": 1, "max": 50})
    width: int = field(default=0, metadata={"min": 0})
    height: int = field(default=0, metadata={"min": 0})


@dataclass(frozen=True, slots=True, kw_only=True)
class MotionParams:
    """What a motion gate is told.

    Args:
        threshold: gray levels by which a pixel must differ from the background.
        min_area: share of the watched pixels that must differ.
        background_s: time constant of the background.
        hold_s: seconds that the gate stays open after the last motion.
        refresh_s: a frame passes at least this often, moved or not; 0 means never.
        regions: polygons in pixels of the upright frame; only they are watched, none means the whole frame.
    """

    threshold: int = field(default=25, metadata={"min": 1, "max": 255})
    min_area: float = field(default=0.003, metadata={"min": 0, "max": 1})
    background_s: float = field(default=0.5, metadata={"min": 0.01, "max": 3600})
    hold_s: float = field(default=0.3, metadata={"min": 0, "max": 3600})
    refresh_s: float = field(default=10.0, metadata={"min": 0, "max": 86400})
    regions: tuple[tuple[tuple[float, ...], ...], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BlurParams:
    """What the privacy stage is told.

    Args:
        classes: labels to hide; none means every detection, of a mask every class but 0.
        mode: `pixelate` makes blocks, `blur` smooths, `fill` paints black.
        blocks: how many blocks (or blur widths) span the longer side of a box.
        grow: share of its size by which a box is grown on each side before it is hidden.
        min_score: score from which a detection is hidden.
        keep_s: seconds for which a box stays hidden after the detector lost the object.
    """

    classes: tuple[str, ...] = ()
    mode: Literal["pixelate", "blur", "fill"] = "pixelate"
    blocks: int = field(default=8, metadata={"min": 1, "max": 64})
    grow: float = field(default=0.1, metadata={"min": 0, "max": 2})
    min_score: float = field(default=0.0, metadata={"min": 0, "max": 1})
    keep_s: float = field(default=0.5, metadata={"min": 0, "max": 60})


@dataclass(frozen=True, slots=True, kw_only=True)
class TilesParams:
    """How a frame is cut for small objects (`tiles` in the params of a detector).

    Args:
        columns: tiles side by side.
        rows: tiles one below the other.
        overlap: share of a tile that it has in common with the next one.
        full: True looks at the whole frame as well, for what is larger than a tile.
        merge: `iou` compares boxes by intersection over union, `ios` over the smaller box, which also joins an object
            that a tile border cut.
        limit: overlap from which two boxes of a class are one object.
    """

    columns: int = field(default=2, metadata={"min": 1, "max": 16})
    rows: int = field(default=1, metadata={"min": 1, "max": 16})
    overlap: float = field(default=0.2, metadata={"min": 0, "max": 0.9})
    full: bool = True
    merge: Literal["iou", "ios"] = "ios"
    limit: float = field(default=0.5, metadata={"min": 0.01, "max": 1})


STEP_PARAMS: Mapping[str, Any] = {
    "track": TrackParams,
    "zone": ZoneParams,
    "line": LineParams,
    "alert": AlertParams,
    "blur": BlurParams,
    "camera": CameraParams,
    "motion_gate": MotionParams,
}

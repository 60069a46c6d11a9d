"""A second model that is asked about the boxes of the first: its answers go with the boxes."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edge_sdk.errors import NonFiniteError, UsageError
from edge_sdk.pipeline.crops import Rectangle, Skip, crop_of
from edge_sdk.pipeline.models import ModelSet, ModelSlot
from edge_sdk.pipeline.shadow import Shadow
from edge_sdk.pipeline_config import StageConfig
from edge_sdk.rules import Decision, Trace
from edge_sdk.rules.base import Filter, track_ids
from edge_sdk.sinks.base import FrameResult
from edge_sdk.sources.base import Image
from edge_sdk.stage_params import CropParams
from edge_sdk.tasks.results import Classes, Detections, Keypoints, Second
from edge_sdk.tasks.summary import label_counts

_FORGET_FRAMES = 300
_METRIC_S = 60.0


@dataclass(slots=True)
class _Known:
    """The answer about a tracked object: when it was asked for and when the object was last seen, inferred frames."""

    second: Second
    asked: int
    seen: int


class Cascade:
    """Cuts the boxes of each frame's result out, asks the model, and adds its answers; called in frame order.

    A tracked object keeps its answer for `refresh_frames` inferred frames. In frames that are not inferred the last
    answers stand. A crop that the model cannot answer is counted; its box keeps the answer it had, if any.

    Attributes, set by the run: `beat` is called before each inference, `failed` gets kind and detail of an error, at
    most one of a kind a frame, `metric` gets what the crops of a minute were.
    """

    def __init__(
        self,
        name: str,
        kind: str,
        models: ModelSet,
        config: StageConfig,
        trace: Trace,
        *,
        shadow: Shadow | None = None,
    ) -> None:
        self.name, self.kind, self.config = name, kind, config
        self.params = params = config.crop or CropParams()
        self.slot = ModelSlot(models)
        self.shadow = shadow
        self.filter = Filter(classes=params.classes, min_score=params.min_score)
        self.beat: Callable[[], None] = _nothing
        self.failed: Callable[[str, str], None] = _nothing
        self.metric: Callable[[dict[str, Any]], None] = _nothing
        self._trace = trace
        self._frame = 0
        self._known: dict[int, _Known] = {}
        self._held: tuple[Second | None, ...] | None = None
        self._crops = self._carried = 0
        self._skipped: Counter[str] = Counter()
        self._errors: Counter[str] = Counter()
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._minute: Counter[str] = Counter()
        self._minute_crops, self._minute_from = 0, time.monotonic()

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of the model that runs."""
        return self.slot.current.models[0].labels

    def apply(self, item: FrameResult) -> None:
        found: Detections = item.detections
        if not item.inferred:
            self._hold(item, found)
            return
        self._held = None
        start = time.perf_counter()
        seconds = self._answers(item, found) if len(found) else []
        self._held = tuple(seconds)
        item.result = _with(found, self.name, self._held)
        spent_ms = (time.perf_counter() - start) * 1000.0
        item.latency_ms += spent_ms
        item.age_ms += spent_ms
        self._frame += 1
        if self._frame % _FORGET_FRAMES == 0:
            self._forget()
        if time.monotonic() - self._minute_from >= _METRIC_S:
            self.send_metric()

    def check(self, labels: Sequence[str]) -> None:
        try:
            self.filter.ids(labels)
        except UsageError as error:
            raise UsageError(f"stage `{self.name}`: crop: {error.message}", hint=error.hint) from None

    def change(self, crop: CropParams) -> None:
        """Cut out as `crop` says from the next frame on."""
        self.params = crop
        self.filter = Filter(classes=crop.classes, min_score=crop.min_score)

    def forget(self) -> None:
        """Begin anew after a time of rest: answers that were kept are about what was seen then."""
        self._known, self._held = {}, None

    def describe(self) -> dict[str, Any]:
        """Return the model, how many crops it was asked about, which were not, and mean ms a crop by phase."""
        asked = max(1, self._crops)
        out = self.slot.current.describe() | {
            "crops": self._crops,
            "carried": self._carried,
            "skipped": dict(self._skipped),
            "errors": dict(self._errors),
            "ms": {k: round(s * 1000 / asked, 3) for k, s in list(self._seconds.items())},
        }
        return out | ({"shadow": self.shadow.describe()} if self.shadow is not None else {})

    def send_metric(self) -> None:
        """Send what the crops since the last metric were."""
        if self._minute_crops:
            self.metric(
                {
                    "name": "second",
                    "stage": self.name,
                    "model": self.slot.current.digest,
                    "crops": self._minute_crops,
                    "labels": dict(self._minute.most_common(40)),
                    "errors": dict(self._errors),
                }
            )
        self._minute.clear()
        self._minute_crops, self._minute_from = 0, time.monotonic()

    def close(self) -> None:
        self.slot.close()

    # -- one frame -------------------------------------------------------------------------------------------------

    def _hold(self, item: FrameResult, found: Detections) -> None:
        """Let the answers of the last inferred frame stand, whose rows these are."""
        held = self._held
        if held is None or len(held) != len(found):
            held = (None,) * len(found)
        carried = tuple(None if s is None else replace(s, carried=True) for s in held)
        item.result = _with(found, self.name, carried)

    def _answers(self, item: FrameResult, found: Detections) -> list[Second | None]:
        """Return the answer for each row."""
        t_s, image = item.frame.t_s, item.frame.image
        tracks = track_ids(found)
        keep = self.filter.mask(found)
        self.filter.trace(found, keep, t_s, self.name, self._trace)
        out: list[Second | None] = [None] * len(found)
        wanted: list[tuple[int, Rectangle]] = []
        for row in np.flatnonzero(keep).tolist():
            track = int(tracks[row])
            known = self._known.get(track) if track >= 0 else None
            if known is not None:
                known.seen = self._frame
                out[row] = replace(known.second, carried=True)
                if not self._due(known):
                    self._carried += 1
                    continue
            crop = crop_of(found.xyxy[row], self.params, image.shape[1], image.shape[0])
            if isinstance(crop, Skip):
                self._skip(crop, t_s, track)
            else:
                wanted.append((row, crop))
        wanted.sort(key=lambda pair: self._turn(int(tracks[pair[0]]), float(found.score[pair[0]])))
        for row, _ in wanted[self.params.max_per_frame :]:
            self._skip(Skip.LIMIT, t_s, int(tracks[row]))
        self._ask(item, wanted[: self.params.max_per_frame], tracks, out)
        return out

    def _due(self, known: _Known) -> bool:
        p = self.params
        if self._frame - known.asked >= p.refresh_frames:
            return True
        score = score_of(known.second.result)
        return score is not None and score < p.refresh_below

    def _turn(self, track: int, score: float) -> tuple[int, float]:
        """Return the place in the queue: objects without an answer, then the oldest answers; the surest first."""
        known = self._known.get(track) if track >= 0 else None
        return (-1 if known is None else known.asked, -score)

    def _ask(self, item: FrameResult, wanted: Sequence[tuple[int, Rectangle]], tracks: Any, out: list[Any]) -> None:
        if not wanted:
            return
        failures: dict[str, str] = {}
        models = self.slot.acquire()
        try:
            for row, crop in wanted:
                self.beat()
                track = int(tracks[row])
                try:
                    second = self._one(models, item.frame.image, crop, item.frame.index)
                except Exception as error:
                    kind = "nonfinite" if isinstance(error, NonFiniteError) else "infer"
                    self._errors[kind] += 1
                    failures.setdefault(kind, str(error))
                    self._note("answer", False, f"failed: {error}", item.frame.t_s, track)
                    continue
                out[row] = second
                if track >= 0:
                    self._known[track] = _Known(second, self._frame, self._frame)
                self._explain(second, item.frame.t_s, track)
        finally:
            self.slot.release(models)
        for kind, detail in failures.items():
            self.failed(kind, f"frame {item.frame.index}: stage `{self.name}`: {detail}")

    def _one(self, models: ModelSet, image: Image, crop: Rectangle, frame: int) -> Second:
        """Ask about one crop."""
        x1, y1, x2, y2 = crop
        part = np.ascontiguousarray(image[y1:y2, x1:x2])
        model = models.models[0]
        times = [time.perf_counter()]
        self._crops += 1
        feeds, geometry = model.prepare(part)
        times.append(time.perf_counter())
        outputs = model.infer(feeds)
        times.append(time.perf_counter())
        result = model.decode(outputs, geometry)
        times.append(time.perf_counter())
        for phase, begin, end in zip(("prepare", "infer", "postprocess"), times, times[1:], strict=False):
            self._seconds[phase] += end - begin
        if self.shadow is not None:
            self.shadow.see(part, result, models.digest, frame)
        self._minute_crops += 1
        self._minute.update(label_counts(result))
        if isinstance(result, (Detections, Keypoints)):
            result = result.moved(x1, y1)
        return Second(result, crop, frame)

    def _forget(self) -> None:
        """Drop the answers about objects that have not been seen for long."""
        oldest = self._frame - _FORGET_FRAMES
        self._known = {track: known for track, known in self._known.items() if known.seen >= oldest}

    # -- why -------------------------------------------------------------------------------------------------------

    def _skip(self, reason: Skip, t_s: float, track: int) -> None:
        self._skipped[reason.value] += 1
        why = {
            Skip.OUTSIDE: "the box lies outside the frame",
            Skip.SMALL: f"the box is smaller than {self.params.min_size} pixels",
            Skip.LIMIT: f"{self.params.max_per_frame} others of the frame came first",
        }[reason]
        self._note("crop", False, why, t_s, track)

    def _explain(self, second: Second, t_s: float, track: int) -> None:
        found = second.found()
        answer = ", ".join(sorted({label for label, _ in found})) or "nothing"
        if self._trace.known(self.name, "answer", track, True, answer):
            return
        why = ", ".join(f"{label} {score:.2f}" for label, score in found[:5]) or f"a result of {_kind_of(second)}"
        crop = "x".join(str(v) for v in (second.crop[2] - second.crop[0], second.crop[3] - second.crop[1]))
        decision = Decision(t_s, self.name, "answer", True, f"{why}, of {crop} pixels", track)
        self._trace.add(decision, answer=answer)

    def _note(self, step: str, accepted: bool, why: str, t_s: float, track: int) -> None:
        if not self._trace.known(self.name, step, track, accepted, why):
            self._trace.add(Decision(t_s, self.name, step, accepted, why, track), answer=why)


def score_of(result: Any) -> float | None:
    """Return how sure a second model's answer is, 0 to 1; None where its task has no score."""
    if isinstance(result, Classes):
        return result.score if result.probs.size else 0.0
    if isinstance(result, Detections):
        return float(result.score.max()) if len(result) else 0.0
    if isinstance(result, Keypoints):
        return float(result.score.mean()) if len(result) else 0.0
    return None


def _with(found: Detections, name: str, seconds: tuple[Second | None, ...]) -> Detections:
    return replace(found, then={**(found.then or {}), name: seconds})


def _kind_of(second: Second) -> str:
    return type(second.result).__name__.lower()


def _nothing(*_: Any) -> None:
    pass

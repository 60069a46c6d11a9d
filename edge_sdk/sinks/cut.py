"""Clips out of a recording: copied by ffmpeg, not decoded, from the segments of a span of time."""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_sdk.errors import SinkError, SourceError
from edge_sdk.sources.decoding import ffmpeg
from edge_sdk.sources.process import Child
from edge_sdk.sources.recording import Segment, segments

logger = logging.getLogger(__name__)
MARGIN_S = 1.0
_FLUSH_S = 2.5
_CUT_S = 30.0
_CLOSE_S = 5.0


@dataclass(frozen=True, slots=True)
class Span:
    """A part of a recorded segment, seconds from its begin; an `end_s` of None goes to its end."""

    segment: Segment
    begin_s: float
    end_s: float | None


def spans(kept: Sequence[Segment], start_s: float, end_s: float) -> list[Span]:
    """Return what of the segments (oldest first) lies between two times, seconds since 1970."""
    out = []
    for i, segment in enumerate(kept):
        following = kept[i + 1] if i + 1 < len(kept) else None
        if segment.size == 0 or segment.start_s >= end_s or (following and following.start_s <= start_s):
            continue
        last = following is None or following.start_s >= end_s
        out.append(
            Span(segment, max(0.0, start_s - segment.start_s), max(0.0, end_s - segment.start_s) if last else None)
        )
    return out


def cut(folder: Path, start_s: float, end_s: float, out: Path) -> None:
    """Copy what was recorded between two times, seconds since 1970, to `out` (Matroska), from the key frame before on.

    A segment is named by the second in which it began, so that a second more is taken at both ends.

    Raises:
        SinkError: nothing was recorded then, or it cannot be copied.
    """
    wanted = spans(segments(folder), start_s - MARGIN_S, end_s + MARGIN_S)
    path, _ = ffmpeg()
    if not wanted or path is None:
        raise SinkError("nothing was recorded then" if path else "there is no ffmpeg command")
    part = out.with_name(f".{out.name}.part")
    try:
        try:
            _copy(path, wanted, part)
        except SinkError:
            # The head of the segment that has just begun may not be there yet.
            if len(wanted) < 2:
                raise
            _copy(path, wanted[:-1], part)
        part.replace(out)
    except OSError as error:
        raise SinkError(f"`{out}`: {(error.strerror or str(error)).lower()}") from None
    finally:
        part.unlink(missing_ok=True)


def _copy(path: str, wanted: Sequence[Span], part: Path) -> None:
    words = [
        *(path, "-hide_banner", "-nostdin", "-loglevel", "error", "-nostats", "-y"),
        *("-f", "concat", "-safe", "0", "-protocol_whitelist", "file,pipe", "-i", "pipe:0"),
        *("-map", "0:v:0", "-map", "0:a?", "-c", "copy", "-avoid_negative_ts", "make_zero"),
        *("-f", "matroska", f"file:{part}"),
    ]
    try:
        child = Child(words, name="ffmpeg", stdin=script(wanted).encode(), env=dict(os.environ))
    except SourceError as error:
        raise SinkError(error.message, hint=error.hint) from None
    try:
        while child.read_line(_CUT_S):
            pass
        code = child.ending(_CUT_S)
    except TimeoutError:
        child.close()
        raise SinkError(f"ffmpeg did not cut a clip within {_CUT_S:g} s") from None
    if code:
        said = re.sub(r"^\[[^\]]*\]\s*", "", child.said[-1]) if child.said else f"exit code {code}"
        raise SinkError(f"ffmpeg cannot cut a clip: {said}")


def script(wanted: Sequence[Span]) -> str:
    """Return the list of files that ffmpeg's concat demuxer reads."""
    lines = ["ffconcat version 1.0"]
    for span in wanted:
        name = str(span.segment.path.absolute()).replace("'", "'\\''")
        lines.append(f"file 'file:{name}'")
        lines += [f"inpoint {span.begin_s:.3f}"] if span.begin_s > 0 else []
        lines += [f"outpoint {span.end_s:.3f}"] if span.end_s is not None else []
    return "\n".join(lines) + "\n"


@dataclass(frozen=True, slots=True)
class Job:
    """A clip to cut, and what gets None, or why it could not be cut."""

    start_s: float
    end_s: float
    out: Path
    done: Callable[[str | None], Any]


class Cutter:
    """Cuts clips in a thread of its own, each as soon as its end is on the disk."""

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.folder = folder
        self._clock = clock
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._thread: threading.Thread | None = None

    def add(self, job: Job) -> None:
        """Cut a clip when its time has come."""
        with self._changed:
            self._jobs.append(job)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="cutter", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def close(self) -> None:
        """Cut what waits with what is recorded now, five seconds at most."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(_CLOSE_S)

    def _work(self) -> None:
        while (job := self._next()) is not None:
            why = None
            try:
                cut(self.folder, job.start_s, job.end_s, job.out)
            except SinkError as error:
                why = error.message
                logger.warning("%s: %s; the clip of what the model saw is kept", job.out.name, why)
            except Exception as error:
                why = repr(error)
                logger.exception("%s", job.out)
            try:
                job.done(why)
            except OSError as error:
                logger.warning("%s: %s", job.out, error)

    def _next(self) -> Job | None:
        with self._changed:
            while True:
                now = self._clock()
                if self._jobs and (self._closing or now >= self._jobs[0].end_s + _FLUSH_S):
                    return self._jobs.popleft()
                if self._closing:
                    return None
                # Looked at again after a second at most: the clock may be set.
                self._changed.wait(min(1.0, self._jobs[0].end_s + _FLUSH_S - now) if self._jobs else None)

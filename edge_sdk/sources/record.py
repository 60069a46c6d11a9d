"""Records a stream without decoding it: an ffmpeg process copies it into segments, the oldest go first."""

from __future__ import annotations

import logging
import os
import random
import re
import shutil
import threading
import time
from pathlib import Path
from typing import Any

from edge_sdk.backoff import Backoff
from edge_sdk.errors import BackendError, EdgeError, SinkError, SourceError
from edge_sdk.sources.decoding import ffmpeg
from edge_sdk.sources.ffmpeg_words import PROTOCOLS, address_script
from edge_sdk.sources.process import Child
from edge_sdk.sources.recording import MB, STAMP, RecordingConfig, segments, to_delete
from edge_sdk.sources.uri import host_of, redact

logger = logging.getLogger(__name__)
_ROOM_S = 2.0
_OPEN_S = 15.0


class Recorder:
    """Keeps one recording process running, from `start` to `close`, whatever happens to the stream or the disk.

    A stream that fails or stands still is opened again after a pause. On a full disk the oldest segments go; where
    that does not help the recording waits and nothing else does.
    """

    def __init__(self, uri: str, config: RecordingConfig) -> None:
        host_of(uri)
        self._script = address_script(uri, "tcp")
        self.uri = redact(uri)
        self._config = config
        self.folder = Path(config.folder)
        self._backoff = Backoff(first_s=1.0, max_s=15.0)
        self._child: Child | None = None
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self.deleted = self.restarts = 0
        self.error: str | None = None

    def start(self) -> None:
        """Make the folder and start.

        Raises:
            BackendError: there is no ffmpeg command.
            SinkError: the folder cannot be written.
        """
        if ffmpeg()[0] is None:
            raise BackendError(
                "`record` needs the ffmpeg command", hint="apt-get install ffmpeg, or leave `record` out"
            )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SinkError(f"cannot record to `{self.folder}`: {(error.strerror or str(error)).lower()}") from None
        if not os.access(self.folder, os.W_OK):
            raise SinkError(f"cannot record to `{self.folder}`: it may not be written by this user")
        self._thread = threading.Thread(target=self._keep, name="recorder", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Finish the segment that is being written; allowed in every state."""
        self._stopped.set()
        child = self._child
        if child is not None:
            child.terminate()
        if self._thread is not None:
            self._thread.join(10.0)

    def describe(self) -> dict[str, Any]:
        """Return what is kept now and what went wrong last."""
        kept = segments(self.folder)
        return {
            "uri": self.uri,
            "folder": str(self.folder),
            "segments": len(kept),
            "mb": round(sum(s.size for s in kept) / MB, 1),
            "deleted": self.deleted,
            "restarts": self.restarts,
            "error": self.error,
        }

    def _keep(self) -> None:
        attempt = 0
        while not self._stopped.is_set():
            self._make_room()
            wrote = False
            try:
                wrote = self._record()
            except EdgeError as error:
                self._failed(error.message)
            except Exception as error:
                logger.exception("recording `%s` failed", self.uri)
                self._failed(str(error))
            attempt = 0 if wrote else attempt + 1
            # A segment is named by its second: the next process must not begin in that of the one before.
            if self._stopped.wait(1.0 + self._backoff.delay_s(attempt, random.random)):
                return
            self.restarts += 1

    def _record(self) -> bool:
        """Run one process to its end and say whether it wrote anything."""
        env = dict(os.environ) | {"TZ": "UTC"}
        child = self._child = Child(self._words(), name="ffmpeg", stdin=self._script, env=env)
        if self._stopped.is_set():
            child.terminate()
        wrote, seen, last = False, b"", time.monotonic()
        room_at = last + _ROOM_S
        # Until the stream's form is known nothing is written.
        limit_s = max(_OPEN_S, self._config.stall_s)
        try:
            while line := child.read_line(limit_s):
                now = time.monotonic()
                if line.startswith(b"out_time_us=") and line != seen:
                    wrote, seen, last = wrote or bool(seen), line, now
                    limit_s = self._config.stall_s if wrote else limit_s
                    if wrote and self.error is not None:
                        logger.warning("`%s` is recorded again", self.uri)
                        self.error = None
                if now - last > limit_s:
                    raise TimeoutError
                if now > room_at:
                    self._make_room()
                    room_at = now + _ROOM_S
            child.ending(5.0)
        except TimeoutError:
            self._failed(f"`{self.uri}` gave nothing to record for {limit_s:g} s")
            # It writes what it holds when it is asked to end.
            child.terminate()
            child.ending(2.0)
            return wrote
        finally:
            self._child = None
            child.close()
        if not self._stopped.is_set():
            said = re.sub(r"^\[[^\]]*\]\s*", "", child.said[-1]) if child.said else "the stream ended"
            self._failed(f"recording `{self.uri}` stopped: {said}")
        return wrote

    def _words(self) -> list[str]:
        path, _ = ffmpeg()
        if path is None:
            raise SourceError("the ffmpeg command is gone")
        # Matroska takes every codec that cameras send, and a file that was cut off can be read.
        return [
            *(path, "-hide_banner", "-nostdin", "-loglevel", "warning", "-nostats"),
            *("-progress", "pipe:1", "-stats_period", "0.5"),
            *("-f", "concat", "-safe", "0", "-protocol_whitelist", PROTOCOLS, "-i", "pipe:0"),
            *("-map", "0:v:0", "-map", "0:a?", "-c", "copy"),
            *("-f", "segment", "-segment_time", f"{self._config.segment_s:g}", "-segment_format", "matroska"),
            *("-segment_format_options", "cluster_time_limit=1000:flush_packets=1"),
            *("-reset_timestamps", "1", "-strftime", "1", str(self.folder).replace("%", "%%") + f"/{STAMP}"),
        ]

    def _make_room(self) -> None:
        try:
            free = shutil.disk_usage(self.folder).free
        except OSError as error:
            self._failed(f"`{self.folder}`: {error.strerror}")
            return
        kept = segments(self.folder)
        for segment in to_delete(kept, self._config, now_s=time.time(), free_bytes=free):
            try:
                segment.path.unlink()
            except OSError as error:
                self._failed(f"`{segment.path}` cannot be deleted: {error.strerror}")
                return
            self.deleted += 1

    def _failed(self, message: str) -> None:
        if message != self.error:
            logger.warning("%s", message)
        self.error = message

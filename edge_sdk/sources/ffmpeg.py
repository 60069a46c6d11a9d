"""Video files and network streams through an ffmpeg process, whose decoder may be hardware."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np

from edge_sdk.errors import BackendError, SourceError, UsageError
from edge_sdk.registry import near_miss
from edge_sdk.sources.base import Frame, Image
from edge_sdk.sources.decoding import DECODES, Choice, choose, ffmpeg, keeps_rate
from edge_sdk.sources.ffmpeg_words import PROTOCOLS, address_script
from edge_sdk.sources.pixels import MAX_PIXELS
from edge_sdk.sources.process import Child
from edge_sdk.sources.uri import (
    Options,
    answers,
    explain_silence,
    file_path,
    host_of,
    is_finite_url,
    kind_of,
    redact,
)
from edge_sdk.sources.video import check_file

logger = logging.getLogger(__name__)
_MARK = b"FRAME\n"
_SIZE = re.compile(rb"^YUV4MPEG2 W(\d+) H(\d+) F(\d+):(\d+)")


class Ffmpeg:
    """Frames out of an ffmpeg process: `decode` is auto, software, vaapi, v4l2m2m or nvdec.

    What does not work here is done in software, and `warnings` says so. An address goes to the process through a
    pipe, never in its arguments, which every user of the machine can read. Frames keep the size of the first one.

    Options: `decode`, `codec` (what v4l2m2m decodes, default h264), `threads`, `transport` (tcp or udp, RTSP only),
    `open_timeout_s`, `read_timeout_s`; `keyframes` decodes nothing but the keyframes of a live stream, in software.
    """

    def __init__(self, uri: str, options: Mapping[str, Any]) -> None:
        known = {"decode", "codec", "threads", "transport", "open_timeout_s", "read_timeout_s", "keyframes"}
        options = Options(options, frozenset(known), "a source with `decode`")
        self._is_file = kind_of(uri) == "video"
        self._address = uri
        self.uri = redact(uri)
        self.live = not self._is_file and not is_finite_url(uri)
        self.fps: float | None = None
        self._decode = str(options.get("decode", "software"))
        if self._decode not in DECODES:
            hint = near_miss(self._decode, DECODES) or f"known: {', '.join(DECODES)}"
            raise UsageError(f"source option `decode` cannot be {self._decode!r}", hint=hint)
        self._keyframes = options.flag("keyframes")
        if self._keyframes:
            self._decode = self._only_software()
        self._codec = str(options.get("codec", "h264"))
        if not re.fullmatch(r"[a-z0-9]{2,16}", self._codec):
            raise UsageError(f"source option `codec` must be a name such as h264 or hevc, found {self._codec!r}")
        self._threads = int(options.number("threads", 1, low=1, high=64) or 1)
        self._open_s = options.number("open_timeout_s", 15.0, low=0.1, high=600) or 15.0
        self._read_s = options.number("read_timeout_s", 10.0, low=0.1, high=600) or 10.0
        self._transport = str(options.get("transport", "tcp"))
        if self._transport not in ("tcp", "udp"):
            raise UsageError(f"source option `transport` must be tcp or udp, found {self._transport!r}")
        if not self._is_file:
            host_of(uri)
        self._warnings: list[str] = []
        self._child: Child | None = None
        self._stopped = False
        self._count, self._captured = 0, 0.0
        self._first: float | None = None
        self.decoder = ""

    def open(self) -> None:
        """Start the process and wait for its first frame's header; a decoder that fails gives way to software.

        Raises:
            BackendError: there is no ffmpeg command.
            SourceError: the source cannot be opened.
        """
        if ffmpeg()[0] is None:
            raise BackendError(
                "`decode` needs the ffmpeg command", hint="apt-get install ffmpeg, or leave `decode` out"
            )
        if self._is_file:
            check_file(file_path(self._address))
        choice = choose(self._decode, self._codec)
        if choice.fallback:
            self._warn(choice.fallback)
        try:
            self._start(choice)
        except SourceError as error:
            if choice.used.name == "software" or self._stopped:
                raise
            software = choose("software")
            self._start(software)
            self._warn(f"{choice.used.name} failed: {error.message}")
            choice = software
        self.decoder = choice.used.name
        logger.info("`%s` is decoded by ffmpeg, %s", self.uri, self.decoder)

    def grab(self) -> bool:
        child = self._child
        if child is None:
            return False
        try:
            whole = child.read_into(self._view, self._read_s) == len(self._view)
        except TimeoutError:
            child.kill()
            raise SourceError(f"`{self.uri}` gave no frame for {self._read_s:g} s") from None
        if not whole:
            return self._end(child)
        if bytes(self._view[: len(_MARK)]) != _MARK:
            raise SourceError(f"`{self.uri}`: ffmpeg gave something that is no frame")
        self._captured = time.monotonic()
        self._count += 1
        return True

    def retrieve(self) -> Frame:
        image: Image = cv2.cvtColor(self._planes, cv2.COLOR_YUV2BGR_I420)  # type: ignore[assignment]
        if self.live:
            self._first = self._captured if self._first is None else self._first
            t_s = self._captured - self._first
        else:
            t_s = (self._count - 1) / (self.fps or 25.0)
        return Frame(image, self._count - 1, t_s, self._captured, self.uri)

    def interrupt(self) -> None:
        """Kill the process, so that a read that waits for it ends; allowed from every thread."""
        self._stopped = True
        child = self._child
        if child is not None:
            child.kill()

    def reachable(self) -> bool | None:
        """Say whether the server takes connections, None when that cannot be told."""
        return None if self._is_file else answers(self._address)

    def close(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.close()

    def warnings(self) -> tuple[str, ...]:
        """Return what was done otherwise than asked."""
        return tuple(self._warnings)

    def _only_software(self) -> str:
        """Return the decoder of keyframes: the others, which cost most, are never decoded.

        Raises:
            UsageError: the source is no live stream, or a hardware decoder is named.
        """
        if not self.live:
            raise UsageError(
                f"source option `keyframes` does not go with `{self.uri}`", hint="of a file every frame is taken"
            )
        if self._decode not in ("software", "auto"):
            raise UsageError(
                f"source option `keyframes` does not go with `decode` = {self._decode!r}", hint="leave `decode` out"
            )
        return "software"

    def _start(self, choice: Choice) -> None:
        words, stdin = self._command(choice.used.arguments)
        child = self._child = Child(words, name="ffmpeg", stdin=stdin)
        if self._stopped:
            child.kill()
        try:
            head = child.read_line(self._open_s)
        except (TimeoutError, ValueError):
            child.close()
            raise SourceError(
                f"`{self.uri}` cannot be opened: nothing came for {self._open_s:g} s", hint="check address and network"
            ) from None
        size = _SIZE.match(head)
        if size is None:
            child.ending()
            raise SourceError(f"`{self.uri}` cannot be opened: {self._why(child)}", hint="`-v` shows what ffmpeg said")
        width, height, rate, per = map(int, size.groups())
        if width * height > MAX_PIXELS:
            child.close()
            raise SourceError(f"`{self.uri}` has frames of {width} x {height} pixels, the limit is {MAX_PIXELS}")
        fps = rate / per if per else 0.0
        self.fps = fps if 0.1 <= fps <= 1000 and not self._keyframes else None
        buffer = np.empty(len(_MARK) + height * 3 // 2 * width, np.uint8)
        self._planes = buffer[len(_MARK) :].reshape(height * 3 // 2, width)
        self._view = memoryview(buffer.data)
        self._count, self._captured, self._first = 0, 0.0, None
        for line in child.said:
            if choice.used.arguments and re.search("hwaccel|hw_device|Failed setup", line, re.IGNORECASE):
                self._warn(f"{choice.used.name} failed, ffmpeg decodes in software: {line}")
                break

    def _command(self, hardware: tuple[str, ...]) -> tuple[list[str], bytes | None]:
        path, _ = ffmpeg()
        assert path is not None
        words = [path, "-hide_banner", "-nostdin", "-loglevel", "warning", "-threads", str(self._threads), *hardware]
        words += ["-skip_frame", "nokey"] if self._keyframes else []
        stdin = None
        if self._is_file:
            words += ["-i", f"file:{file_path(self._address)}"]
        else:
            stdin = address_script(self._address, self._transport)
            words += ["-fflags", "nobuffer"] if self.live else []
            words += ["-f", "concat", "-safe", "0", "-protocol_whitelist", PROTOCOLS, "-i", "pipe:0"]
        # The chroma planes of an odd size have no form that everybody agrees on: the last row or column goes.
        even = "crop=trunc(iw/2)*2:trunc(ih/2)*2:0:0"
        words += ["-map", "0:v:0", "-vf", even, *keeps_rate(), "-pix_fmt", "yuv420p", "-f", "yuv4mpegpipe", "pipe:1"]
        return words, stdin

    def _end(self, child: Child) -> bool:
        """Say that a finite source is done, or what ended it."""
        code = child.ending()
        if not self.live and (self._stopped or (self._count and code == 0)):
            return False
        if self._count:
            raise SourceError(f"`{self.uri}` stopped giving frames: {self._why(child)}")
        raise SourceError(f"`{self.uri}` has no frame that can be decoded: {self._why(child)}")

    def _why(self, child: Child) -> str:
        """Return the last thing that ffmpeg said about it, without its own inner names."""
        lines = [re.sub(r"^\[[^\]]*\]\s*", "", line) for line in child.said]
        lines = [line.removeprefix("pipe:0: ") for line in lines if line and "Last message repeated" not in line]
        if lines:
            return lines[-1]
        if self._is_file:
            return "ffmpeg gave no reason"
        return "the stream ended" if self._count else explain_silence(self._address)

    def _warn(self, text: str) -> None:
        line = f"`{self.uri}`: {text}"
        if line not in self._warnings:
            self._warnings.append(line)
            logger.warning("%s", line)

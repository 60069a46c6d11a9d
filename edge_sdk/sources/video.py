"""Video files, cameras and network streams through OpenCV."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import cv2

from edge_sdk.errors import SourceError, UsageError
from edge_sdk.sources.base import Frame
from edge_sdk.sources.images import nearest_file
from edge_sdk.sources.pixels import MAX_PIXELS, to_bgr8
from edge_sdk.sources.uri import Options, answers, explain_silence, file_path, host_of, is_finite_url, redact

logger = logging.getLogger(__name__)
_ENVIRONMENT = threading.Lock()
_OPTIONS = "OPENCV_FFMPEG_CAPTURE_OPTIONS"


class _Capture:
    """What the three have in common: a cv2.VideoCapture, a frame count, times that never step back."""

    live = False

    def __init__(self, uri: str) -> None:
        self.uri = redact(uri)
        self.fps: float | None = None
        self._capture: Any = None
        self._count = 0
        self._last_t = 0.0

    def grab(self) -> bool:
        if self._capture is None or not self._capture.grab():
            return False
        self._count += 1
        return True

    def retrieve(self) -> Frame:
        captured = time.monotonic()
        ok, image = self._capture.retrieve()
        if not ok or image is None:
            raise SourceError(f"`{self.uri}`: frame {self._count - 1} could not be decoded")
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype.name != "uint8":
            image = to_bgr8(image)
        return Frame(image, self._count - 1, self._media_time(captured), captured, self.uri)

    def close(self) -> None:
        if self._capture is not None:
            self._capture.release()
            self._capture = None

    def _adopt(self, capture: Any) -> None:
        """Take an opened capture, refusing frames larger than the limit before one is decoded."""
        width, height = capture.get(cv2.CAP_PROP_FRAME_WIDTH), capture.get(cv2.CAP_PROP_FRAME_HEIGHT)
        if width * height > MAX_PIXELS:
            capture.release()
            raise SourceError(
                f"`{self.uri}` has frames of {width:.0f} x {height:.0f} pixels, the limit is {MAX_PIXELS}"
            )
        fps = float(capture.get(cv2.CAP_PROP_FPS))
        self.fps = fps if math.isfinite(fps) and 0.1 <= fps <= 1000 else None
        self._capture = capture
        self._count = 0
        self._last_t = 0.0

    def _media_time(self, _captured: float) -> float:
        """Return the frame's own time stamp, or index / fps where the container's makes no sense."""
        t = float(self._capture.get(cv2.CAP_PROP_POS_MSEC)) / 1000.0
        if not math.isfinite(t) or t < self._last_t or (t == 0.0 and self._count > 1):
            t = max(self._last_t, (self._count - 1) / (self.fps or 25.0))
        self._last_t = t
        return t


class VideoFile(_Capture):
    """A video file, every frame, turned upright by its rotation metadata.

    `prompt` says that a frame costs only its decoding, so that a frame thread may take several at once.
    """

    prompt = True

    def __init__(self, uri: str, options: Mapping[str, Any]) -> None:
        super().__init__(uri)
        options = Options(options, frozenset({"threads"}), "a video file")
        self.path = file_path(uri)
        self.declared: int | None = None
        self._at_end = False
        self._threads = int(options.number("threads", 1, low=1, high=64) or 1)

    def open(self) -> None:
        check_file(self.path)
        parameters = [cv2.CAP_PROP_N_THREADS, self._threads]
        try:
            capture = cv2.VideoCapture(str(self.path), cv2.CAP_FFMPEG, parameters)
        except cv2.error as error:
            raise SourceError(f"`{self.path}` is no video that can be read: {_reason(error)}") from None
        if not capture.isOpened():
            raise SourceError(
                f"`{self.path}` is no video that can be read",
                hint="`ffprobe FILE` says what it is; mp4, mkv, avi, mov, webm and ts are read",
            )
        self._adopt(capture)
        self._at_end = False
        count = capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.declared = int(count) if 0 < count < 1e9 else None

    def grab(self) -> bool:
        if super().grab():
            return True
        if self._count == 0:
            raise SourceError(
                f"`{self.path}` has no frame that can be decoded", hint="the file is damaged, or holds no picture"
            )
        self._at_end = True
        return False

    def warnings(self) -> tuple[str, ...]:
        """Return what is odd about the file, known once it has been read to its end."""
        if self._at_end and self.declared and self._count < 0.9 * self.declared:
            return (
                f"`{self.path}` says it has {self.declared} frames, {self._count} could be decoded: it may be damaged",
            )
        return ()


class Camera(_Capture):
    """A local camera by number or device file.

    Options: `width`, `height`, `fps` (asked of the driver, which may give others) and `fourcc`, such as MJPG.
    """

    live = True

    def __init__(self, uri: str, options: Mapping[str, Any]) -> None:
        super().__init__(uri)
        self._first: float | None = None
        options = Options(options, frozenset({"width", "height", "fps", "fourcc"}), "a camera")
        match = re.fullmatch(r"(?:camera:)?(?:/dev/video)?(\d{1,3})", uri.strip())
        if not match:
            raise UsageError(f"`{uri}` is no camera", hint="expected 0, camera:0 or /dev/video0")
        self.index = int(match.group(1))
        self._wanted = {
            name: options.number(key, None, low=1, high=100_000)
            for name, key in (("WIDTH", "width"), ("HEIGHT", "height"), ("FPS", "fps"))
        }
        self._fourcc = str(options.get("fourcc", ""))
        if self._fourcc and len(self._fourcc) != 4:
            raise UsageError(f"source option `fourcc` must be four letters, found {self._fourcc!r}")

    def open(self) -> None:
        device = Path(f"/dev/video{self.index}")
        if os.name == "posix" and Path("/sys/class").is_dir() and not device.exists():
            present = sorted(p.name for p in Path("/dev").glob("video[0-9]*"))
            hint = f"cameras here: {', '.join(present)}" if present else "this machine has no camera (no /dev/video*)"
            raise SourceError(f"camera {self.index} does not exist: no {device}", hint=hint)
        if device.exists() and not os.access(device, os.R_OK | os.W_OK):
            raise SourceError(f"{device} may not be opened by this user", hint="add the user to the group `video`")
        capture = cv2.VideoCapture(self.index, cv2.CAP_V4L2 if device.exists() else cv2.CAP_ANY)
        if not capture.isOpened():
            raise SourceError(f"camera {self.index} cannot be opened", hint="another program may be using it")
        if self._fourcc:
            capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*self._fourcc))
        names = {"WIDTH": cv2.CAP_PROP_FRAME_WIDTH, "HEIGHT": cv2.CAP_PROP_FRAME_HEIGHT, "FPS": cv2.CAP_PROP_FPS}
        for name, value in self._wanted.items():
            if value is not None:
                capture.set(names[name], value)
        capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        self._adopt(capture)

    def grab(self) -> bool:
        if super().grab():
            return True
        raise SourceError(f"camera {self.index} stopped giving frames", hint="check the cable")

    def reachable(self) -> bool | None:
        """Say whether the device is there."""
        return Path(f"/dev/video{self.index}").exists()

    def _media_time(self, _captured: float) -> float:
        self._first = _captured if self._first is None else self._first
        return _captured - self._first


class Stream(_Capture):
    """A network stream: RTSP, HTTP (MJPEG, HLS, or a video file, which is finite), RTMP, SRT, UDP.

    Options: `transport` (tcp or udp, RTSP only), `open_timeout_s`, `read_timeout_s`. Credentials in the address are
    used and never shown.
    """

    def __init__(self, uri: str, options: Mapping[str, Any]) -> None:
        super().__init__(uri)
        options = Options(options, frozenset({"transport", "open_timeout_s", "read_timeout_s"}), "a stream")
        self._address = uri
        self.live = not is_finite_url(uri)
        self._open_s = options.number("open_timeout_s", 10.0, low=0.1, high=600) or 10.0
        self._read_s = options.number("read_timeout_s", 5.0, low=0.1, high=600) or 5.0
        self._untimed = False
        self._first: float | None = None
        self._transport = str(options.get("transport", "tcp"))
        if self._transport not in ("tcp", "udp"):
            raise UsageError(f"source option `transport` must be tcp or udp, found {self._transport!r}")
        host_of(uri)

    def open(self) -> None:
        parameters = [
            *(cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, int(self._open_s * 1000)),
            *(cv2.CAP_PROP_READ_TIMEOUT_MSEC, int(self._read_s * 1000)),
            *(cv2.CAP_PROP_N_THREADS, 1),
        ]
        try:
            capture = cv2.VideoCapture()
            with _udp(self._transport == "udp" and urlsplit(self._address).scheme.startswith("rtsp")):
                capture.open(self._address, cv2.CAP_FFMPEG, parameters)
        except cv2.error as error:
            raise SourceError(f"`{self.uri}` cannot be opened: {_reason(error)}") from None
        if not capture.isOpened():
            raise SourceError(
                f"`{self.uri}` cannot be opened: {explain_silence(self._address)}", hint="check address and credentials"
            )
        self._adopt(capture)

    def _adopt(self, capture: Any) -> None:
        super()._adopt(capture)
        # JPEGs over HTTP have no times; FFmpeg makes some up for 25 frames a second, whatever the camera gives.
        web = urlsplit(self._address).scheme.lower() in ("http", "https")
        self._untimed = self.live and web and int(capture.get(cv2.CAP_PROP_FOURCC)) == cv2.VideoWriter.fourcc(*"MJPG")
        if self._untimed:
            self.fps = None

    def _media_time(self, captured: float) -> float:
        if not self._untimed:
            return super()._media_time(captured)
        self._first = captured if self._first is None else self._first
        return captured - self._first

    def grab(self) -> bool:
        if super().grab():
            return True
        if not self.live and self._count:
            return False
        raise SourceError(f"`{self.uri}` stopped giving frames")

    def reachable(self) -> bool | None:
        """Say whether the server takes connections, None when that cannot be told."""
        return answers(self._address)


@contextlib.contextmanager
def _udp(wanted: bool) -> Iterator[None]:
    """Let OpenCV open an RTSP stream over UDP: it prefers TCP and takes other options from the environment alone."""
    if not wanted or _OPTIONS in os.environ:
        # One that opens over UDP just now would lend its options to this one.
        with _ENVIRONMENT:
            pass
        yield
        return
    with _ENVIRONMENT:
        os.environ[_OPTIONS] = "rtsp_transport;udp"
        try:
            yield
        finally:
            del os.environ[_OPTIONS]


def check_file(path: Path) -> None:
    """Refuse what is no video before a decoder sees it.

    Raises:
        SourceError: no such file, a folder, empty, unreadable, or a Git LFS pointer.
    """
    try:
        if not path.exists():
            raise SourceError(f"no such file: `{path}`", hint=nearest_file(path))
        if not path.is_file():
            raise SourceError(f"`{path}` is not a regular file")
        with path.open("rb") as file:
            head = file.read(64)
    except (OSError, ValueError) as error:
        raise SourceError(f"`{path}` cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not head:
        raise SourceError(f"`{path}` is empty (0 bytes)")
    if head.startswith(b"version https://git-lfs"):
        raise SourceError(f"`{path}` is a Git LFS pointer, not the video", hint="fetch it with `git lfs pull`")


def _reason(error: Exception) -> str:
    return redact(str(error).strip().splitlines()[-1])[:200]

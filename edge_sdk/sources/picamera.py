"""The Raspberry Pi camera through picamera2, which comes with the system and not from PyPI."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import re
import time
from collections.abc import Mapping
from typing import Any

from edge_sdk.errors import BackendError, SourceError, UsageError
from edge_sdk.sources.base import Frame
from edge_sdk.sources.pixels import to_bgr8
from edge_sdk.sources.uri import Options, query_options

logger = logging.getLogger(__name__)
_OPTIONS = frozenset({"width", "height", "fps"})


class PiCamera:
    """`picamera:0?width=1280&height=720&fps=30`: a camera that libcamera drives, by its number.

    A frame that is only grabbed costs a request of the camera and no copy. The size may be aligned by the driver.
    """

    live = True

    def __init__(self, uri: str, options: Mapping[str, Any]) -> None:
        body, query = query_options(uri.partition(":")[2])
        merged = Options({**query, **options}, _OPTIONS, "the Raspberry Pi camera")
        if not re.fullmatch(r"\d{0,2}", body):
            raise UsageError(f"`{uri}` is no Raspberry Pi camera", hint="expected picamera:0, options behind a `?`")
        self.uri = uri
        self.index = int(body or 0)
        self._size = (
            int(merged.number("width", 1280, low=64, high=8192) or 0),
            int(merged.number("height", 720, low=64, high=8192) or 0),
        )
        self.fps: float | None = merged.number("fps", 30.0, low=0.1, high=1000)
        self._camera: Any = None
        self._request: Any = None
        self._count = 0
        self._first: float | None = None

    def open(self) -> None:
        """Start the camera.

        Raises:
            BackendError: picamera2 is not installed.
            SourceError: there is no such camera, or it is in use.
        """
        camera_class = _picamera2()
        found = list(camera_class.global_camera_info())
        if self.index >= len(found):
            names = ", ".join(f"{i}: {c.get('Model', 'unknown')}" for i, c in enumerate(found))
            raise SourceError(
                f"Raspberry Pi camera {self.index} does not exist",
                hint=f"cameras here: {names}"
                if names
                else "`rpicam-hello --list-cameras` finds none: check the ribbon",
            )
        try:
            self._camera = camera_class(self.index)
            # What libcamera calls RGB888 lies in memory as B, G, R.
            self._camera.configure(
                self._camera.create_video_configuration(
                    main={"size": self._size, "format": "RGB888"}, controls={"FrameRate": self.fps}, buffer_count=4
                )
            )
            self._camera.start()
        except (RuntimeError, OSError, ValueError, IndexError) as error:
            self.close()
            raise SourceError(
                f"Raspberry Pi camera {self.index} cannot be opened: {error}", hint="another program may be using it"
            ) from None

    def grab(self) -> bool:
        if self._camera is None:
            return False
        self._release()
        try:
            self._request = self._camera.capture_request()
        except (RuntimeError, OSError) as error:
            raise SourceError(f"Raspberry Pi camera {self.index} stopped giving frames: {error}") from None
        self._captured = time.monotonic()
        self._count += 1
        return True

    def retrieve(self) -> Frame:
        image = to_bgr8(self._request.make_array("main"))
        self._release()
        self._first = self._captured if self._first is None else self._first
        return Frame(image, self._count - 1, self._captured - self._first, self._captured, self.uri)

    def close(self) -> None:
        camera, self._camera = self._camera, None
        self._release()
        if camera is not None:
            try:
                camera.close()
            except (RuntimeError, OSError) as error:
                logger.info("closing camera %d: %s", self.index, error)

    def _release(self) -> None:
        request, self._request = self._request, None
        if request is not None:
            request.release()


def _picamera2() -> Any:
    if importlib.util.find_spec("picamera2") is None:
        raise BackendError(
            "source `picamera` needs `picamera2`, which is not installed",
            hint="on Raspberry Pi OS: sudo apt install python3-picamera2, and a virtual environment made with "
            "`python3 -m venv --system-site-packages`",
        )
    try:
        return importlib.import_module("picamera2").Picamera2
    except (ImportError, OSError) as error:
        raise BackendError(
            f"picamera2 cannot be loaded: {error}",
            hint="it must fit the system's libcamera and Python: use the system's Python, and its numpy where it asks",
        ) from None

"""A network camera: Motion JPEG over HTTP on 127.0.0.1, one picture encoded for all viewers, whose light can change."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

import cv2
import numpy as np

from cloud_sync.demo import scenes
from cloud_sync.demo.scenes import DAYLIGHT, Light

_BOUNDARY = "frame"
_SCENES = 260


class Camera:
    """Shows a new item of the live split in every frame.

    `GET /stream.mjpg` is the stream, `GET /light.json` the light it is taken in.
    """

    def __init__(self, *, fps: float = 8.0, seed: int = 0, light: Light = DAYLIGHT) -> None:
        self._period_s = 1.0 / fps
        self._rng = np.random.default_rng(seed)
        self._light = light
        self._changed = threading.Condition()
        self._picture = b""
        self._count = 0
        self._closing = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self._threads = [
            threading.Thread(target=self._server.serve_forever, name="camera-http", daemon=True),
            threading.Thread(target=self._film, name="camera-film", daemon=True),
        ]

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def url(self) -> str:
        return f"{self.address}/stream.mjpg"

    @property
    def light(self) -> Light:
        return self._light

    @light.setter
    def light(self, light: Light) -> None:
        self._light = light

    def start(self) -> Camera:
        for thread in self._threads:
            thread.start()
        return self

    def close(self) -> None:
        self._closing.set()
        with self._changed:
            self._changed.notify_all()
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> Camera:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def next_picture(self, seen: int) -> tuple[int, bytes]:
        """Wait for a picture later than number `seen`; an empty one means that the camera is closing."""
        with self._changed:
            self._changed.wait_for(lambda: self._count > seen or self._closing.is_set())
            return (self._count, b"") if self._closing.is_set() else (self._count, self._picture)

    def _film(self) -> None:
        items = scenes.split_indices("live")
        shown = [scenes.scene(int(items[i % len(items)]), self._rng) for i in range(_SCENES)]
        due = time.monotonic()
        while not self._closing.is_set():
            frame = scenes.lit(shown[int(self._rng.integers(_SCENES))], self._light, self._rng)
            picture = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, 88])[1].tobytes()
            with self._changed:
                self._picture, self._count = picture, self._count + 1
                self._changed.notify_all()
            due = max(due + self._period_s, time.monotonic())
            self._closing.wait(due - time.monotonic())


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False


def _handler(camera: Camera) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/light.json":
                self._answer("application/json", json.dumps(camera.light.to_json()).encode())
            elif self.path == "/stream.mjpg":
                self._stream()
            else:
                self.send_error(404)

        def _answer(self, kind: str, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _stream(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", f"multipart/x-mixed-replace; boundary={_BOUNDARY}")
            self.end_headers()
            seen = 0
            try:
                while True:
                    seen, picture = camera.next_picture(seen)
                    if not picture:
                        return
                    head = f"--{_BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\n\r\n"
                    self.wfile.write(head.encode() + picture + b"\r\n")
            except OSError:
                return  # the viewer left

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler

"""Network cameras: Motion JPEG over HTTP on 127.0.0.1, each with its own view, in one light that can change."""

from __future__ import annotations

import json
import re
import threading
import time
import zlib
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

import cv2
import numpy as np

from cloud_sync.demo import scenes
from cloud_sync.demo.scenes import DAYLIGHT, Image, Light

_BOUNDARY = "frame"
_SCENES = 260
_STREAM = re.compile(r"/([a-z0-9-]{1,40})\.mjpg")


@dataclass(slots=True)
class _View:
    """One camera's picture number `count`, as JPEG."""

    rng: np.random.Generator
    picture: bytes = b""
    count: int = 0


class Cameras:
    """Shows a new item of the live split in every frame of every camera, each picture encoded once for all viewers.

    `light` may be set at any time. `GET /NAME.mjpg` is the stream of camera NAME, `GET /light.json` the light.
    """

    def __init__(self, *, fps: float, seed: int = 0, light: Light = DAYLIGHT) -> None:
        self._period_s = 1.0 / fps
        self._seed = seed
        self.light = light
        self._shown: list[Image] = []
        self._views: dict[str, _View] = {}
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self._threads = [
            threading.Thread(target=self._server.serve_forever, name="camera-http", daemon=True),
            threading.Thread(target=self._film, name="camera-film", daemon=True),
        ]

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def url(self, name: str) -> str:
        return f"{self.address}/{name}.mjpg"

    def start(self) -> Cameras:
        for thread in self._threads:
            thread.start()
        return self

    def close(self) -> None:
        self._closing.set()
        with self._changed:
            self._changed.notify_all()
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> Cameras:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def next_picture(self, name: str, seen: int) -> tuple[int, bytes]:
        """Wait for a picture of camera `name` later than number `seen`; empty bytes mean that the cameras close."""
        with self._changed:
            if name not in self._views:
                self._views[name] = _View(np.random.default_rng([self._seed, zlib.crc32(name.encode())]))
            view = self._views[name]
            self._changed.wait_for(lambda: view.count > seen or self._closing.is_set())
            return view.count, b"" if self._closing.is_set() else view.picture

    def _film(self) -> None:
        items, rng = scenes.split_indices("live"), np.random.default_rng(self._seed)
        self._shown = [scenes.scene(int(items[i % len(items)]), rng) for i in range(_SCENES)]
        due = time.monotonic()
        while not self._closing.is_set():
            with self._changed:
                views = list(self._views.values())
            pictures = [self._shot(view.rng) for view in views]
            with self._changed:
                for view, picture in zip(views, pictures, strict=True):
                    view.picture, view.count = picture, view.count + 1
                self._changed.notify_all()
            due = max(due + self._period_s, time.monotonic())
            self._closing.wait(due - time.monotonic())

    def _shot(self, rng: np.random.Generator) -> bytes:
        frame = scenes.lit(self._shown[int(rng.integers(_SCENES))], self.light, rng)
        return cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, 88])[1].tobytes()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False


def _handler(cameras: Cameras) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            stream = _STREAM.fullmatch(self.path)
            if stream:
                self._stream(stream.group(1))
            elif self.path == "/light.json":
                body = json.dumps(cameras.light.to_json()).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
            else:
                self.send_error(404)

        def _stream(self, name: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", f"multipart/x-mixed-replace; boundary={_BOUNDARY}")
            self.end_headers()
            seen = 0
            try:
                while True:
                    seen, picture = cameras.next_picture(name, seen)
                    if not picture:
                        return
                    head = f"--{_BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\n\r\n"
                    self.wfile.write(head.encode() + picture + b"\r\n")
            except OSError:
                return  # the viewer left

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler

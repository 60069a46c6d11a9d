"""A live view in the browser: frames with results drawn on, as MJPEG, encoded only while somebody looks."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import cv2

from edge_sdk.errors import SinkError, UsageError
from edge_sdk.serving.exchange import Answer, HttpError, Limits, Request, check_port, json_answer, refusal
from edge_sdk.serving.http import LocalServer
from edge_sdk.sinks.base import FrameResult
from edge_sdk.sinks.draw import draw
from edge_sdk.sinks.uri import place
from edge_sdk.sources.base import Image
from edge_sdk.sources.uri import Options, query_options
from edge_sdk.tasks.summary import label_counts

_KNOWN = frozenset({"host", "quality", "max_fps", "max_width", "viewers", "fps", "live", "append"})
_SNAPSHOT_S = 5.0
_BOUNDARY = "frame"
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>Live view</title><style>
:root{color-scheme:light dark}
body{margin:0;font:15px/1.5 system-ui,sans-serif;background:#101418;color:#e6eaee;min-height:100vh;display:flex;
flex-direction:column}
header{padding:.6rem 1rem;display:flex;gap:1.2rem;align-items:baseline;flex-wrap:wrap}
h1{font-size:1rem;margin:0}a{color:#8ab4f8}#found{font-weight:600}.dim{color:#9aa4ae}
main{flex:1;display:flex;align-items:center;justify-content:center;padding:0 1rem 1rem}
img{max-width:100%;max-height:calc(100vh - 5rem);background:#000}
</style></head><body>
<header><h1>Live view</h1><span id="found" aria-live="polite"></span><span id="rate" class="dim"></span>
<a href="/snapshot.jpg" download>snapshot</a></header>
<main><img id="view" src="/stream.mjpg" alt="Live picture with results drawn on it"></main>
<script>
const view = document.getElementById("view"), found = document.getElementById("found");
const rate = document.getElementById("rate");
const again = () => setTimeout(() => { view.src = "/stream.mjpg?" + Date.now(); }, 2000);
view.onerror = again;
const tick = async () => {
  try {
    const s = await (await fetch("/stats.json")).json();
    found.textContent = Object.entries(s.found).map(([k, n]) => n + " " + k).join(", ") || "nothing found";
    rate.textContent = s.age_s === null ? "no frame yet" : s.age_s > 5 ?
      "no new frame for " + Math.round(s.age_s) + " s" :
      s.fps.toFixed(1) + " frames/s, " + s.latency_ms.toFixed(1) + " ms";
    if (rate.dataset.lost) { delete rate.dataset.lost; again(); }
  } catch { rate.textContent = "the pipeline has ended or cannot be reached"; rate.dataset.lost = "1"; }
};
tick();
setInterval(tick, 1000);
</script></body></html>
"""


class LiveView:
    """`live:PORT`: a page, `/stream.mjpg`, `/snapshot.jpg` and `/stats.json` on 127.0.0.1.

    Options, also as `live:PORT?max_fps=10`: `host` to bind, `quality` of the JPEG (1 to 100), `max_fps` and `max_width`
    of what is shown, `viewers` at once. One JPEG serves all viewers; each has a mailbox of one picture, so that a slow
    one misses pictures and holds up nobody.
    """

    changeable: ClassVar[frozenset[str]] = frozenset({"quality", "max_fps", "max_width"})

    def __init__(self, uri: str, options: Mapping[str, Any]) -> None:
        body, query = query_options(uri)
        merged: dict[str, Any] = {**query, **options}
        merged = Options(merged, _KNOWN, "a live view")
        self.uri = body
        text = place(body)
        if not (text.isascii() and text.isdigit() and len(text) <= 6):
            raise UsageError(f"`{body}` names no port", hint="live:8090")
        self._quality = int(merged.number("quality", 80, low=1, high=100) or 80)
        self._every_s = 1.0 / (merged.number("max_fps", 25.0, low=0.1, high=240) or 25.0)
        self._width = int(merged.number("max_width", 1280, low=64, high=7680) or 1280)
        self._most = int(merged.number("viewers", 8, low=1, high=100) or 8)
        # Four times the viewers: their pages also ask for figures.
        limits = Limits(connections=4 * self._most, body_bytes=0, send_s=5.0, send_buffer=1 << 17)
        host = str(merged.get("host", "127.0.0.1"))
        self._server = LocalServer(host, check_port(int(text), "a live view"), self, limits=limits, name="live-view")
        self._changed = threading.Condition()
        self._viewers = self._asked = 0
        self._jpeg: bytes | None = None
        self._number = 0
        self._closed = False
        self._due = 0.0
        self._times: deque[float] = deque(maxlen=30)
        self._stats: dict[str, Any] = {"found": {}, "latency_ms": 0.0, "frame": None}
        self.encoded = 0

    def adopt(self, other: LiveView) -> None:
        """Take over the options of another that was made for the same port."""
        self._quality, self._every_s, self._width = other._quality, other._every_s, other._width

    @property
    def address(self) -> tuple[str, str]:
        """What it is and its URL, once it is open."""
        return "live view", self._server.address

    def open(self) -> None:
        self._closed = False
        self._server.open()

    def write(self, item: FrameResult) -> None:
        now = time.monotonic()
        self._times.append(now)
        with self._changed:
            asked = self._asked > 0
            wanted = asked or self._viewers > 0
        if not wanted or (now < self._due and not asked):
            self._stats = {"item": item.result, "latency_ms": item.latency_ms, "frame": item.frame.index}
            return
        self._due = max(self._due + self._every_s, now)
        self._stats = {"found": label_counts(item.result), "latency_ms": item.latency_ms, "frame": item.frame.index}
        jpeg = self._encode(draw(item))
        with self._changed:
            self._jpeg = jpeg
            self._number += 1
            self.encoded += 1
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._server.close()

    def _encode(self, image: Image) -> bytes:
        height, width = image.shape[:2]
        if width > self._width:
            size = (self._width, max(1, round(height * self._width / width)))
            image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
        done, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, self._quality])
        if not done:
            raise SinkError(f"a frame of {width} x {height} cannot be encoded as JPEG")
        return data.tobytes()

    # -- what browsers ask for -------------------------------------------------------------------------------------

    def answer(self, request: Request) -> Answer:
        """Answer a browser."""
        route = _ROUTES.get(request.path)
        if route is None:
            raise HttpError(404, f"no page `{request.path[:80]}`", hint=f"pages: {', '.join(_ROUTES)}")
        if request.method not in ("GET", "HEAD"):
            raise HttpError(405, f"`{request.path}` is read with GET")
        return route(self)

    def refuse(self, path: str, error: HttpError) -> Answer:
        """Return the error as JSON."""
        del path
        return refusal(error)

    def _page(self) -> Answer:
        rules = "default-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; frame-ancestors 'none'"
        headers = {"Content-Security-Policy": rules, "Cache-Control": "no-cache"}
        return Answer(body=_PAGE.encode(), content_type="text/html; charset=utf-8", headers=headers)

    def _stats_page(self) -> Answer:
        stats, times = dict(self._stats), list(self._times)
        if (result := stats.pop("item", None)) is not None:
            stats["found"] = label_counts(result)
        span = times[-1] - times[0] if len(times) > 1 else 0.0
        stats["fps"] = round((len(times) - 1) / span, 2) if span > 0 else 0.0
        stats["age_s"] = round(time.monotonic() - times[-1], 2) if times else None
        stats["latency_ms"] = round(stats["latency_ms"], 2)
        stats["viewers"] = self._viewers
        return json_answer(stats, headers={"Cache-Control": "no-store"})

    def _snapshot(self) -> Answer:
        with self._changed:
            before = self._number
            self._asked += 1
            try:
                self._changed.wait_for(lambda: self._number > before or self._closed, timeout=_SNAPSHOT_S)
            finally:
                self._asked -= 1
            jpeg = self._jpeg if self._number > before else None
        if jpeg is None:
            raise HttpError(503, f"no frame came within {_SNAPSHOT_S:g} s", kind="source", retry_after_s=5)
        return Answer(body=jpeg, content_type="image/jpeg", headers={"Cache-Control": "no-store"})

    def _stream(self) -> Answer:
        with self._changed:
            if self._viewers >= self._most:
                message = f"{self._viewers} viewers are watching, the limit is {self._most}"
                raise HttpError(503, message, kind="busy", hint="close one, or set `viewers`", retry_after_s=5)
        kind = f"multipart/x-mixed-replace; boundary={_BOUNDARY}"
        return Answer(content_type=kind, headers={"Cache-Control": "no-store"}, stream=self._watch)

    def _next_picture(self, seen: int) -> tuple[int, bytes | None] | None:
        """Wait for a picture after `seen`, 10 s at most; None when the pipeline has ended."""
        with self._changed:
            self._changed.wait_for(lambda: self._number > seen or self._closed, timeout=10.0)
            return None if self._closed else (self._number, self._jpeg)

    def _watch(self, send: Callable[[bytes], None]) -> None:
        """Send each new picture, the latest one when the viewer is slower, until the viewer or the pipeline ends."""
        with self._changed:
            if self._viewers >= self._most:
                return
            self._viewers += 1
            seen = self._number
        try:
            send(f"--{_BOUNDARY}\r\n".encode())
            while (taken := self._next_picture(seen)) is not None:
                seen, jpeg = taken
                if jpeg is None:
                    continue
                # The last picture again, when there is no new one: a viewer that has gone is noticed.
                head = f"Content-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
                send(head.encode() + jpeg + f"\r\n--{_BOUNDARY}\r\n".encode())
        finally:
            with self._changed:
                self._viewers -= 1


_ROUTES: Mapping[str, Callable[[LiveView], Answer]] = {
    "/": LiveView._page,
    "/stream.mjpg": LiveView._stream,
    "/snapshot.jpg": LiveView._snapshot,
    "/stats.json": LiveView._stats_page,
}

"""Network cameras that are real enough: an MJPEG camera that freezes, dies and comes back, and RTSP."""

from __future__ import annotations

import base64
import itertools
import os
import shutil
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np
import pytest
from support import until

from edge_sdk.errors import SourceError
from edge_sdk.pipeline import Pipeline
from edge_sdk.sources import create
from edge_sdk.sources.base import read
from edge_sdk.testing import build_artifact, color_frame

JPEG = cv2.imencode(".jpg", color_frame("red", width=64, height=48))[1].tobytes()
AUTH = "Basic " + base64.b64encode(b"admin:s3cret").decode()


class MjpegCamera:
    """Serves a red picture at 50 frames a second on one port; can freeze, and can be switched off and on."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.frozen = threading.Event()
        self.picture = lambda n: JPEG
        self.sent = 0
        self.connections = 0
        self._server: ThreadingHTTPServer | None = None

    def on(self) -> None:
        camera = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.headers.get("Authorization") != AUTH:
                    self.send_response(401)
                    self.send_header("WWW-Authenticate", 'Basic realm="camera"')
                    self.end_headers()
                    return
                camera.connections += 1
                self.send_response(200)
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
                self.end_headers()
                off = self.server.off  # type: ignore[attr-defined]
                while not off.is_set():
                    if not camera.frozen.is_set():
                        jpeg = camera.picture(camera.sent)
                        camera.sent += 1
                        head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
                        try:
                            self.wfile.write(head.encode() + jpeg + b"\r\n")
                        except OSError:
                            return
                    off.wait(0.02)

            def log_message(self, *_: object) -> None: ...

        class Server(ThreadingHTTPServer):
            allow_reuse_address = True
            daemon_threads = True

        self._server = Server(("127.0.0.1", self.port), Handler)
        self._server.off = threading.Event()  # type: ignore[attr-defined]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def off(self) -> None:
        if self._server is not None:
            self._server.off.set()  # type: ignore[attr-defined]
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    @property
    def uri(self) -> str:
        return f"http://admin:s3cret@127.0.0.1:{self.port}/video.mjpg"


@pytest.fixture
def camera(free_port):
    camera = MjpegCamera(free_port)
    camera.on()
    yield camera
    camera.off()


@pytest.fixture
def artifact(tmp_path):
    return build_artifact(tmp_path / "m.edge").path


def test_a_camera_over_http_is_read_with_its_password_and_shown_without(camera):
    source = create(camera.uri)
    source.open()
    frame = read(source)
    source.close()
    assert frame.image.shape == (48, 64, 3)
    assert frame.image[24, 32].tolist() == pytest.approx([0, 0, 254], abs=3)
    assert frame.source == f"http://***@127.0.0.1:{camera.port}/video.mjpg"


def test_the_time_of_pictures_over_http_is_that_of_the_clock(camera):
    source = create(camera.uri)
    source.open()
    frames = [read(source) for _ in range(5)]
    source.close()
    assert source.fps is None
    assert [f.t_s for f in frames] == pytest.approx([f.captured_s - frames[0].captured_s for f in frames])


def test_a_wrong_password_is_an_error_that_does_not_show_it(camera):
    source = create(camera.uri.replace("s3cret", "wr0ng"))
    with pytest.raises(SourceError, match="credentials") as caught:
        source.open()
    assert "wr0ng" not in f"{caught.value.message}{caught.value.hint}"


@pytest.mark.parametrize("trouble", ["freezes", "dies"])
def test_a_camera_that_goes_and_comes_back_is_followed(camera, artifact, trouble):
    params = {"open_timeout_s": 2, "read_timeout_s": 1}
    pipe = Pipeline(camera.uri, params=params, stall_s=0.5).classify(artifact)
    order: list[tuple[int, float]] = []
    with pipe:
        for seen, item in enumerate(pipe, 1):
            assert item.result.label(item.result.class_id) == "red"
            order.append((item.frame.index, item.frame.t_s))
            if seen == 10:
                camera.frozen.set() if trouble == "freezes" else camera.off()
                threading.Thread(target=come_back, args=(camera, pipe, trouble), daemon=True).start()
            if seen > 10 and pipe.report().reconnects:
                break
    report = pipe.report()
    assert report.reconnects >= 1
    assert report.errors["source"] >= 1
    assert all(a[0] < b[0] and a[1] < b[1] for a, b in itertools.pairwise(order)), "numbers and times go on"


def come_back(camera: MjpegCamera, pipe: Pipeline, trouble: str) -> None:
    """Mend the camera once the pipeline has noticed that it is gone."""
    while not pipe.stats()["errors"].get("source"):
        time.sleep(0.01)
    if trouble == "freezes":
        camera.frozen.clear()
    else:
        camera.on()


def test_a_live_stream_drops_what_a_slow_model_has_no_time_for(camera, artifact):
    seen = []
    with Pipeline(camera.uri).classify(artifact) as pipe:
        for item in pipe:
            seen.append(item.frame.index)
            if len(seen) == 1:
                until(lambda: camera.sent >= 50, "50 pictures")
            if len(seen) == 15:
                break
    assert seen == sorted(set(seen))
    assert max(b - a for a, b in itertools.pairwise(seen[:8])) > 20, "what was sent meanwhile is passed over"
    assert sum(pipe.report().dropped.values()) > 20


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="needs the ffmpeg command to push RTSP")
def test_an_rtsp_camera_is_read(free_port, monkeypatch, artifact):
    monkeypatch.setenv("OPENCV_FFMPEG_CAPTURE_OPTIONS", "rtsp_flags;listen|listen_timeout;20|rtsp_transport;tcp")
    uri = f"rtsp://127.0.0.1:{free_port}/live"
    push = subprocess.Popen(
        ["sh", "-c", 'while :; do ffmpeg -v quiet -re -f lavfi -i color=red:s=320x240:r=20 '
         '-c:v mpeg4 -f rtsp -rtsp_transport tcp "$0"; sleep 0.3; done', uri],
        start_new_session=True,
    )  # fmt: skip
    try:
        with Pipeline(uri).classify(artifact) as pipe:
            for seen, item in enumerate(pipe, 1):
                assert item.result.label(item.result.class_id) == "red"
                if seen == 20:
                    break
        assert pipe.report().policy == "latest"
    finally:
        os.killpg(push.pid, 9)
        push.wait()


def picture(color: str, n: int, *, width: int = 64, level: int = 255) -> bytes:
    """A picture of a colour with noise that is another one in each frame, as a sensor gives it."""
    frame = np.minimum(color_frame(color, width=width, height=width * 3 // 4), level)
    noise = np.random.default_rng(n).integers(0, 6, frame.shape, np.uint8)
    return cv2.imencode(".jpg", cv2.add(frame.astype(np.uint8), noise))[1].tobytes()


SAME = picture("red", 0)
LIES = {
    "black": lambda n: picture("red", n, level=0),
    "frozen": lambda n: SAME,
}


@pytest.mark.parametrize("decode", [None, "software"], ids=["opencv", "ffmpeg"])
@pytest.mark.parametrize("lie", list(LIES))
def test_a_camera_that_lies_is_said_and_the_pipeline_goes_on(camera, artifact, lie, decode):
    if decode and not shutil.which("ffmpeg"):
        pytest.skip("needs the ffmpeg command")
    camera.picture = lambda n: picture("red", n)
    pipe = Pipeline(camera.uri, params={"decode": decode} if decode else None).classify(artifact)
    pipe.camera_health(period_s=0.05, hold_s=0.2, clear_s=0.2, frozen_s=0.5, warm_s=0.0)
    said = []
    with pipe:
        for seen, item in enumerate(pipe, 1):
            said += [(e["problem"], e["state"]) for e in item.events]
            if seen == 10:
                camera.picture = LIES[lie]
            if (lie, "begin") in said:
                camera.picture = lambda n: picture("red", n)
            if (lie, "end") in said:
                break
            assert seen < 2000, said
    assert said == [(lie, "begin"), (lie, "end")]
    assert pipe.report().errors == {}


@pytest.mark.parametrize("decode", [None, "software"], ids=["opencv", "ffmpeg"])
def test_a_camera_that_changes_its_size_is_scaled_to_its_first_one_and_goes_on(camera, artifact, decode):
    if decode and not shutil.which("ffmpeg"):
        pytest.skip("needs the ffmpeg command")
    shapes, sent = set(), 0
    with Pipeline(camera.uri, params={"decode": decode} if decode else None).classify(artifact) as pipe:
        for seen, item in enumerate(pipe, 1):
            assert item.result.label(item.result.class_id) == "red"
            shapes.add(item.frame.image.shape)
            if seen == 10:
                camera.picture = lambda n: picture("red", n, width=(128, 32)[n % 2])
                sent = camera.sent
            if seen > 10 and camera.sent > sent + 50:
                break
    assert shapes == {(48, 64, 3)}
    assert pipe.report().errors == {}

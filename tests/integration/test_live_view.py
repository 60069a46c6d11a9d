"""The live view in a browser: who is served, who is not, and what that costs the pipeline."""

from __future__ import annotations

import json
import socket
import threading
import time
import urllib.error
import urllib.request

import cv2
import numpy as np
import pytest
from support import until

from edge_sdk.errors import SinkError, UsageError
from edge_sdk.pipeline import Pipeline
from edge_sdk.pipeline_config import PipelineConfig
from edge_sdk.sinks import create
from edge_sdk.sinks.base import FrameResult
from edge_sdk.sources.base import Frame
from edge_sdk.tasks.base import Detections
from edge_sdk.testing import ListSource, build_artifact, color_frame

WAIT_S = 60


def item(index: int = 0, color: str = "red") -> FrameResult:
    found = Detections(
        np.array([[2, 2, 20, 20]], np.float32), np.array([0.9], np.float32), np.array([1]), ("cup", "bottle")
    )
    image = color_frame(color, width=320, height=240)
    return FrameResult(Frame(image, index, index / 10, time.monotonic(), "camera"), found, "digest", 3.0, 2.0)


@pytest.fixture
def view():
    sink = create("live:0", {"max_fps": 200, "viewers": 3, "live": True, "fps": 30.0})
    sink.open()
    yield sink
    sink.close()


def url(sink, path: str) -> str:
    return sink.address[1].rstrip("/") + path


def get(sink, path: str) -> bytes:
    with urllib.request.urlopen(url(sink, path), timeout=WAIT_S) as answer:
        return answer.read()


def refusal(request) -> tuple[int, str]:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=WAIT_S)
    with refused.value as answer:
        return answer.code, answer.read().decode()


def feed_until(sink, done) -> int:
    n, deadline = 0, time.monotonic() + WAIT_S
    while not done():
        assert time.monotonic() < deadline
        sink.write(item(n))
        n += 1
        time.sleep(0.002)
    return n


def read_picture(stream) -> np.ndarray:
    size = None
    while (line := stream.readline().strip()) or size is None:
        if line.lower().startswith(b"content-length:"):
            size = int(line.split(b":")[1])
    return cv2.imdecode(np.frombuffer(stream.read(size), np.uint8), cv2.IMREAD_COLOR)


def test_nothing_is_encoded_while_nobody_looks(view):
    for i in range(20):
        view.write(item(i))
    assert view.encoded == 0
    stats = json.loads(get(view, "/stats.json"))
    assert stats["found"] == {"bottle": 1}
    assert (stats["frame"], stats["latency_ms"], stats["viewers"]) == (19, 2.0, 0)


def test_the_page_shows_the_stream_and_loads_nothing_from_elsewhere(view):
    with urllib.request.urlopen(url(view, "/"), timeout=WAIT_S) as answer:
        page = answer.read().decode()
        assert answer.headers["Content-Security-Policy"].startswith("default-src 'self'")
    assert 'src="/stream.mjpg"' in page
    assert "http://" not in page.replace(url(view, "/"), "")
    assert "https://" not in page


def test_a_snapshot_is_the_next_frame_with_its_results_drawn_on_it(view):
    got: list[bytes] = []
    thread = threading.Thread(target=lambda: got.append(get(view, "/snapshot.jpg")))
    thread.start()
    feed_until(view, lambda: not thread.is_alive())
    image = cv2.imdecode(np.frombuffer(got[0], np.uint8), cv2.IMREAD_COLOR)
    assert image.shape == (240, 320, 3)
    plain = color_frame("red", width=320, height=240)
    assert np.abs(image.astype(int) - plain)[:60].max() > 60
    assert np.abs(image.astype(int) - plain)[120:].max() < 30


def test_several_viewers_share_one_encoding(view):
    streams = [urllib.request.urlopen(url(view, "/stream.mjpg"), timeout=WAIT_S) for _ in range(3)]
    assert streams[0].headers["Content-Type"] == "multipart/x-mixed-replace; boundary=frame"
    until(lambda: json.loads(get(view, "/stats.json"))["viewers"] == 3)
    for i in range(5):
        view.write(item(i))
        for stream in streams:
            assert read_picture(stream).shape == (240, 320, 3)
        time.sleep(0.01)
    assert view.encoded == 5
    code, text = refusal(url(view, "/stream.mjpg"))
    assert code == 503
    assert "3 viewers are watching, the limit is 3" in text
    for stream in streams:
        stream.close()
    feed_until(view, lambda: json.loads(get(view, "/stats.json"))["viewers"] == 0)


def test_a_viewer_that_reads_nothing_does_not_hold_up_the_pipeline_or_the_others(view):
    dead = socket.create_connection(("127.0.0.1", int(url(view, "").rsplit(":", 1)[1])))
    dead.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    dead.sendall(b"GET /stream.mjpg HTTP/1.1\r\nHost: localhost\r\n\r\n")
    good = urllib.request.urlopen(url(view, "/stream.mjpg"), timeout=WAIT_S)
    until(lambda: json.loads(get(view, "/stats.json"))["viewers"] == 2)
    noise = item()
    noise.frame.image[:] = np.random.default_rng(0).integers(0, 255, noise.frame.image.shape, np.uint8)
    for _ in range(100):
        before = view.encoded
        view.write(noise)
        if view.encoded > before:
            assert read_picture(good).shape == (240, 320, 3)
    dead.close()
    good.close()


def test_a_snapshot_of_a_camera_that_gives_nothing_says_so(view, monkeypatch):
    monkeypatch.setattr("edge_sdk.sinks.live._SNAPSHOT_S", 0.05)
    code, text = refusal(url(view, "/snapshot.jpg"))
    assert code == 503
    assert "no frame came" in json.loads(text)["error"]["message"]


def test_pages_that_are_not_there_and_other_methods_are_refused_as_json(view):
    code, text = refusal(url(view, "/etc/passwd"))
    assert code == 404
    assert "no page `/etc/passwd`" in json.loads(text)["error"]["message"]
    assert refusal(urllib.request.Request(url(view, "/"), method="DELETE"))[0] == 405


def test_a_page_of_another_site_cannot_look_through_a_name_that_it_points_here(view):
    request = urllib.request.Request(url(view, "/stats.json"), headers={"Host": "evil.example"})
    code, text = refusal(request)
    assert code == 403
    assert "does not answer for host `evil.example`" in text


def test_a_port_that_is_taken_is_a_sink_error(view):
    second = create(f"live:{url(view, '').rsplit(':', 1)[1]}", {})
    with pytest.raises(SinkError, match="cannot listen on 127.0.0.1 port [0-9]+: address already in use"):
        second.open()


@pytest.mark.parametrize("uri", ["live:", "live:door", "live:-1", "live:8090/x"])
def test_an_address_without_a_port_is_refused(uri):
    with pytest.raises(UsageError, match="names no port"):
        create(uri, {})
    with pytest.raises(UsageError, match="option `quality` of a live view must be 1 to 100, found 300"):
        create("live:0", {"quality": 300})
    with pytest.raises(UsageError, match="0 to 65535, found 70000"):
        create("live:70000", {})


def test_a_pipeline_file_can_have_a_live_view_and_its_address_is_known_once_it_runs(tmp_path):
    artifact = build_artifact(tmp_path / "m.edge", task="detection").path
    config = PipelineConfig.from_mapping(
        {
            "source": {"uri": "synthetic:64x48?live=1&fps=50"},
            "stage": [{"model": str(artifact)}],
            "sink": [{"uri": "live:0?max_fps=50"}],
        }
    )
    with Pipeline.from_config(config) as pipe:
        what, address = pipe.addresses[0]
        assert what == "live view"
        with urllib.request.urlopen(address + "snapshot.jpg", timeout=WAIT_S) as answer:
            assert answer.read().startswith(b"\xff\xd8")
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(address, timeout=WAIT_S)


def test_a_file_job_with_a_view_that_nobody_opens_loses_nothing(tmp_path):
    artifact = build_artifact(tmp_path / "m.edge").path
    images = [color_frame("green") for _ in range(50)]
    report = Pipeline(ListSource(images)).classify(artifact).sink("live:0").run()
    assert report.to_json()["sinks"][0] == {"uri": "live:0", "written": 50, "dropped": 0, "error": None}
